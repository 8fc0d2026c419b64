//! The parts of a document: what may be asked of which scope, and how it is kept.

use super::Scope;
use crate::connect::clock::{NEVER, whole_ms};
use crate::coordination::bounds::invalid;
use crate::coordination::error::CoordinationError;
use crate::protocol::event::LATEST;
use crate::protocol::rate::{Metered, Per, Rate};
use rmpv::Value;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// Bytes of a reason at the most.
pub const MAX_REASON: usize = 256;
/// The longest period of a rate, in ms: a year.
const MAX_PERIOD: u64 = 366 * 24 * 3600 * 1000;
/// The longest time-out, in ms.
const MAX_TIMEOUT: u64 = NEVER.as_millis() as u64;

/// The parts that this version knows.
pub const PARTS: [&str; 5] = ["pause", "rate", "concurrency", "timeout_ms", "max_attempts"];
/// What the part `concurrency` says: each is set, and taken away, alone.
const CONCURRENCY: [&str; 2] = ["worker", "total"];

/// A part of a document that is to be there from now on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PolicyPart {
    /// What it names waits.
    Pause {
        /// When it ends by itself.
        ends: Ends,
        /// Why.
        reason: String,
    },
    /// At most this many runs begin in a period, over all workers.
    Rate {
        /// Runs.
        limit: u32,
        /// The period in ms.
        period_ms: u64,
        /// Whose runs count together.
        per: Per,
    },
    /// At most this many runs go on at a time. What is not said stays as it is.
    Concurrency {
        /// In each worker.
        worker: Option<u32>,
        /// In all workers together.
        total: Option<u32>,
    },
    /// How many ms a run may take.
    Timeout(u64),
    /// An event is tried so often, the first time included.
    MaxAttempts(u32),
}

/// When a pause ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// Only when somebody takes it back.
    Never,
    /// At that Unix ms on the server.
    At(u64),
    /// After that time in ms, by the server's clock.
    In(u64),
}

/// A pause.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Pause {
    /// When it ends by itself, in Unix ms on the server.
    #[serde(default)]
    pub until: Option<u64>,
    /// Why: requesters are told.
    #[serde(default)]
    pub reason: String,
}

impl Pause {
    /// Whether it lasts at that time.
    pub fn lasts(&self, now: u64) -> bool {
        self.until.is_none_or(|until| now < until)
    }
}

/// What operators ask of the runs of a type, in the place of its handler's own policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunLimits {
    /// How many begin in a period, over all workers.
    pub rate: Option<Metered>,
    /// How many go on at a time in each worker.
    pub worker: Option<u32>,
    /// How many do in all workers together.
    pub total: Option<u32>,
    /// How long a run may take.
    pub timeout: Option<Duration>,
    /// How often an event is tried, the first time included.
    pub max_attempts: Option<u32>,
}

impl RunLimits {
    /// Takes the others where these say nothing.
    pub(super) fn or(self, others: Self) -> Self {
        Self {
            rate: self.rate.or(others.rate),
            worker: self.worker.or(others.worker),
            total: self.total.or(others.total),
            timeout: self.timeout.or(others.timeout),
            max_attempts: self.max_attempts.or(others.max_attempts),
        }
    }
}

/// The parts of a document as they are kept, by name. Those of a later version stay as they are.
pub(super) type Parts = BTreeMap<String, Value>;

impl PolicyPart {
    fn name(&self) -> &'static str {
        let [pause, rate, concurrency, timeout, attempts] = PARTS;
        match self {
            Self::Pause { .. } => pause,
            Self::Rate { .. } => rate,
            Self::Concurrency { .. } => concurrency,
            Self::Timeout(_) => timeout,
            Self::MaxAttempts(_) => attempts,
        }
    }

    /// Puts it among the parts of a document of that scope.
    pub(super) fn put(
        &self,
        parts: &mut Parts,
        scope: &Scope,
        now: u64,
    ) -> Result<(), CoordinationError> {
        let name = self.name();
        let has: &[&str] = match scope {
            Scope::Type(_) => &PARTS,
            Scope::Domain(_) => &["pause", "timeout_ms", "max_attempts"],
            Scope::Subject { .. } => &["pause"],
        };
        if !has.contains(&name) {
            let has = has.join(", ");
            return Err(invalid(format!(
                "{name}: {scope} can have {has}; {name} is of a type (type:TYPE)"
            )));
        }
        let value = match self {
            Self::Pause { ends, reason } => pause(*ends, reason, now)?,
            Self::Rate {
                limit,
                period_ms,
                per,
            } => {
                counts("rate.limit", *limit, "to have nothing run, pause it")?;
                within("rate.period_ms", *period_ms, MAX_PERIOD)?;
                Value::Map(vec![
                    ("limit".into(), (*limit).into()),
                    ("period_ms".into(), (*period_ms).into()),
                    ("per".into(), per.to_string().into()),
                ])
            }
            Self::Concurrency { worker, total } => {
                let mut said = Vec::new();
                for (part, most) in CONCURRENCY.into_iter().zip([worker, total]) {
                    if let Some(most) = most {
                        let name = format!("concurrency.{part}");
                        counts(&name, *most, "to have nothing run, pause it")?;
                        said.push((part.into(), (*most).into()));
                    }
                }
                Value::Map(said)
            }
            Self::Timeout(ms) => {
                within(name, *ms, MAX_TIMEOUT)?;
                (*ms).into()
            }
            Self::MaxAttempts(most) => {
                counts(name, *most, "the first try counts, so 1 is no retry")?;
                (*most).into()
            }
        };
        parts.insert(name.to_owned(), value);
        Ok(())
    }
}

/// Puts a part among those that are there.
pub(super) fn add(parts: &mut Parts, name: &str, part: &Value) {
    let before = parts.get_mut(name).filter(|_| name == PARTS[2]);
    let (Some(Value::Map(before)), Value::Map(said)) = (before, part) else {
        parts.insert(name.to_owned(), part.clone());
        return;
    };
    before.retain(|(name, _)| !said.iter().any(|(other, _)| other == name));
    before.extend(said.iter().cloned());
    before.sort_by_key(|(name, _)| {
        CONCURRENCY
            .iter()
            .position(|one| name.as_str() == Some(one))
    });
}

/// Takes parts away: by name, or as `concurrency.total`.
pub(super) fn take_away(parts: &mut Parts, names: &[String]) {
    parts.retain(|name, part| {
        if names.contains(name) {
            return false;
        }
        let Some(Value::Map(said)) = Some(part).filter(|_| name == PARTS[2]) else {
            return true;
        };
        said.retain(|(part, _)| {
            let whole = format!("{name}.{}", part.as_str().unwrap_or_default());
            !names.contains(&whole)
        });
        !said.is_empty()
    });
}

/// The first of these names that is no part, and none of `concurrency`.
pub(super) fn unknown(names: &[String]) -> Option<&str> {
    let is_known = |name: &str| match name.split_once('.') {
        Some((part, one)) => part == PARTS[2] && CONCURRENCY.contains(&one),
        None => PARTS.contains(&name),
    };
    names
        .iter()
        .map(String::as_str)
        .find(|name| !is_known(name))
}

fn counts(name: &str, number: u32, why: &str) -> Result<(), CoordinationError> {
    match number {
        0 => Err(invalid(format!("{name}: 0 is not 1 or more: {why}"))),
        _ => Ok(()),
    }
}

fn within(name: &str, number: u64, most: u64) -> Result<(), CoordinationError> {
    match (1..=most).contains(&number) {
        true => Ok(()),
        false => Err(invalid(format!("{name}: {number} is not 1 to {most}"))),
    }
}

fn pause(ends: Ends, reason: &str, now: u64) -> Result<Value, CoordinationError> {
    check_reason("pause.reason", reason)?;
    let until = match ends {
        Ends::Never => None,
        Ends::At(at) => Some(at),
        Ends::In(ms) => Some(now.saturating_add(ms)),
    };
    let mut fields = vec![("reason".into(), reason.into())];
    if let Some(at) = until {
        if !(now..=LATEST).contains(&at) {
            return Err(invalid(format!(
                "pause.until: {at} is not between now ({now}) and {LATEST}, in Unix ms"
            )));
        }
        fields.push(("until".into(), at.into()));
    }
    Ok(Value::Map(fields))
}

pub(super) fn check_reason(field: &str, reason: &str) -> Result<(), CoordinationError> {
    match reason.len() {
        0..=MAX_REASON => Ok(()),
        bytes => Err(invalid(format!(
            "{field}: {bytes} bytes are over the limit of {MAX_REASON}"
        ))),
    }
}

/// The pause that is among the parts.
pub(super) fn pause_of(parts: &Parts) -> Option<Pause> {
    read(parts, "pause")
}

/// The limits that are among the parts; what is out of bounds counts as not there.
pub(super) fn limits_of(parts: &Parts) -> RunLimits {
    #[derive(Deserialize)]
    struct KeptRate {
        limit: u32,
        period_ms: u64,
        per: Option<String>,
    }
    #[derive(Deserialize)]
    struct KeptConcurrency {
        worker: Option<u32>,
        total: Option<u32>,
    }
    let rate = read(parts, "rate").filter(|rate: &KeptRate| rate.limit > 0);
    let rate = rate.filter(|rate| (1..=MAX_PERIOD).contains(&rate.period_ms));
    let rate = rate.and_then(|rate| {
        let per = match rate.per.as_deref() {
            None => Per::Type,
            // A later version may know others.
            Some(name) => Per::named(name)?,
        };
        let (limit, period) = (rate.limit, Duration::from_millis(rate.period_ms));
        let rate = Rate { limit, period };
        Some(Metered { rate, per })
    });
    let concurrency: Option<KeptConcurrency> = read(parts, "concurrency");
    let most = |of: fn(&KeptConcurrency) -> Option<u32>| {
        let said = concurrency.as_ref().and_then(of);
        said.filter(|most| *most > 0)
    };
    let timeout = read(parts, "timeout_ms").filter(|ms| (1..=MAX_TIMEOUT).contains(ms));
    RunLimits {
        rate,
        worker: most(|one| one.worker),
        total: most(|one| one.total),
        timeout: timeout.map(Duration::from_millis),
        max_attempts: read(parts, "max_attempts").filter(|most| *most > 0),
    }
}

fn read<T: for<'de> Deserialize<'de>>(parts: &Parts, name: &str) -> Option<T> {
    rmpv::ext::from_value(parts.get(name)?.clone()).ok()
}

/// The period in ms, as the protocol has it.
pub fn period_ms(rate: Rate) -> u64 {
    whole_ms(rate.period)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(scope: &str, part: &PolicyPart) -> Result<Parts, String> {
        let mut parts = Parts::new();
        let scope = Scope::parse(scope).unwrap();
        let put = part.put(&mut parts, &scope, 5);
        put.map(|()| parts).map_err(|error| error.to_string())
    }

    fn concurrency(worker: Option<u32>, total: Option<u32>) -> PolicyPart {
        PolicyPart::Concurrency { worker, total }
    }

    #[test]
    fn what_is_said_of_concurrency_leaves_the_rest_of_it_as_it_is() {
        let mut all = put("type:mail.send", &concurrency(Some(3), Some(9))).unwrap();
        let more = put("type:mail.send", &concurrency(None, Some(5))).unwrap();
        add(&mut all, "concurrency", &more["concurrency"]);
        let kept = |all: &Parts| {
            let limits = limits_of(all);
            (limits.worker, limits.total)
        };
        assert_eq!(kept(&all), (Some(3), Some(5)));
        let total = ["concurrency.total".to_owned(), "rate".to_owned()];
        take_away(&mut all, &total);
        assert_eq!(kept(&all), (Some(3), None));
        let worker = ["concurrency.worker".to_owned()];
        take_away(&mut all, &worker);
        assert!(all.is_empty(), "{all:?}");
        assert_eq!(unknown(&total), None);
        for odd in ["concurrency.per_subject", "rate.limit", "speed"] {
            assert_eq!(unknown(&["pause".to_owned(), odd.to_owned()]), Some(odd));
        }
    }

    #[test]
    fn what_is_put_is_read_again() {
        let parts = [
            PolicyPart::Rate {
                limit: 10,
                period_ms: 1000,
                per: Per::Subject,
            },
            concurrency(Some(3), Some(9)),
            PolicyPart::Timeout(5000),
            PolicyPart::MaxAttempts(2),
        ];
        let mut all = Parts::new();
        for part in &parts {
            all.extend(put("type:mail.send", part).unwrap());
        }
        let limits = RunLimits {
            rate: Some(Metered {
                rate: Rate {
                    limit: 10,
                    period: Duration::from_secs(1),
                },
                per: Per::Subject,
            }),
            worker: Some(3),
            total: Some(9),
            timeout: Some(Duration::from_secs(5)),
            max_attempts: Some(2),
        };
        assert_eq!(limits_of(&all), limits);
        all.insert("rate".to_owned(), Value::from("10/s"));
        all.insert("max_attempts".to_owned(), Value::from(0));
        let odd = limits_of(&all);
        assert_eq!(
            (odd.rate, odd.max_attempts, odd.worker),
            (None, None, Some(3))
        );
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_what_would_do() {
        let rate = |limit, period_ms| PolicyPart::Rate {
            limit,
            period_ms,
            per: Per::Type,
        };
        for (scope, part, why) in [
            ("type:mail.send", rate(0, 1), "rate.limit: 0"),
            (
                "type:mail.send",
                rate(1, 0),
                "rate.period_ms: 0 is not 1 to",
            ),
            ("type:mail.send", rate(1, MAX_PERIOD + 1), "is not 1 to"),
            ("type:mail.send", concurrency(Some(0), None), "pause it"),
            (
                "type:mail.send",
                concurrency(Some(1), Some(0)),
                "concurrency.total: 0",
            ),
            ("type:mail.send", PolicyPart::Timeout(0), "timeout_ms: 0"),
            (
                "type:mail.send",
                PolicyPart::MaxAttempts(0),
                "max_attempts: 0",
            ),
            ("domain:mail", rate(1, 1), "rate is of a type"),
            (
                "domain:mail",
                concurrency(None, Some(1)),
                "domain:mail can have pause, timeout_ms, max_attempts",
            ),
            (
                "subject:mail:s",
                PolicyPart::Timeout(1),
                "subject:mail:s can have pause;",
            ),
        ] {
            let error = put(scope, &part).unwrap_err();
            assert!(error.contains(why), "{scope} {part:?}: {error}");
        }
        assert!(put("domain:mail", &PolicyPart::MaxAttempts(1)).is_ok());
    }
}
