//! By what the handlers of a type are limited, as it is written: `mail.send=concurrency:4,rate:10/s`.

use super::{SettingError, Settings};
use crate::protocol::keys;
use crate::protocol::rate::{Metered, Per, Rate};
use std::collections::BTreeMap;
use std::time::Duration;

/// How long a circuit is open at first, where nobody says so.
const OPEN: Duration = Duration::from_secs(30);

/// The limits of one type's handler.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct HandlerLimits {
    pub(crate) concurrency: Option<usize>,
    /// Runs in all workers.
    pub(crate) total: Option<usize>,
    pub(crate) rate: Option<Metered>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) attempts: Option<u32>,
    /// Failures in a row, and how long it is open then.
    pub(crate) circuit: Option<(u32, Duration)>,
}

impl Settings {
    /// The limits of the handlers, by their types.
    pub(crate) fn handler_limits(&self) -> Result<BTreeMap<String, HandlerLimits>, SettingError> {
        parse(&self.limit).map_err(|problem| SettingError {
            setting: "limit",
            problem,
        })
    }
}

/// Reads what all items say, by type. One without a type goes on with that of the one before.
fn parse(items: &[String]) -> Result<BTreeMap<String, HandlerLimits>, String> {
    let mut all: BTreeMap<String, HandlerLimits> = BTreeMap::new();
    let mut kind = String::new();
    let mut pers: BTreeMap<String, Per> = BTreeMap::new();
    for item in items.iter().flat_map(|item| item.split(',')) {
        let said = match item.split_once('=') {
            None => item,
            Some((of, said)) => {
                of.trim().clone_into(&mut kind);
                said
            }
        };
        let said = said.trim();
        keys::check_event_type(&kind).map_err(|error| match kind.is_empty() {
            true => format!("{said:?} is of no type: write TYPE=concurrency:4,rate:10/s"),
            false => error.to_string(),
        })?;
        if keys::is_control(keys::domain_of(&kind)) {
            return Err(format!("{kind}: the control plane takes no limits"));
        }
        let limits = all.entry(kind.clone()).or_default();
        match limits.add(said) {
            Ok(None) => {}
            Ok(Some(per)) => drop(pers.insert(kind.clone(), per)),
            Err(problem) => return Err(format!("{kind}: {problem}")),
        }
    }
    for (kind, per) in pers {
        match all.get_mut(&kind).and_then(|limits| limits.rate.as_mut()) {
            Some(rate) => rate.per = per,
            None => return Err(format!("{kind}: per:{per} is of a rate, which is missing")),
        }
    }
    Ok(all)
}

impl HandlerLimits {
    /// Adds one; whose runs a rate counts together is given back.
    fn add(&mut self, said: &str) -> Result<Option<Per>, String> {
        const KNOWN: &str = "concurrency, total, rate, per, timeout, attempts, circuit";
        let (name, value) = match said.split_once(':') {
            Some((name, value)) => (name.trim(), value.trim()),
            // A number alone.
            None => ("concurrency", said),
        };
        let number = || match value.parse::<u32>() {
            Ok(number) if number > 0 => Ok(number),
            _ => Err(format!("{name}: {value:?} is not a whole number from 1 up")),
        };
        match name {
            "concurrency" => self.concurrency = Some(number()? as usize),
            "total" => self.total = Some(number()? as usize),
            "rate" => {
                let rate = Rate::parse(value).map_err(|problem| format!("rate: {problem}"))?;
                if rate.limit == 0 || rate.period.is_zero() {
                    return Err(format!("rate: {value:?}: nothing would ever begin"));
                }
                let per = Per::Type;
                self.rate = Some(Metered { rate, per });
            }
            "per" => {
                let per = Per::named(value);
                let per = per.ok_or(format!("per: {value:?} is not source, subject or type"))?;
                return Ok(Some(per));
            }
            "timeout" => self.timeout = Some(lasts(name, value)?),
            "attempts" => self.attempts = Some(number()?),
            "circuit" => {
                let (failures, open) = match value.split_once('/') {
                    None => (value, OPEN),
                    Some((failures, open)) => (failures, lasts(name, open)?),
                };
                let failures = failures.parse().ok().filter(|failures| *failures > 0);
                let failures = failures.ok_or(format!(
                    "circuit: {value:?} is not FAILURES or FAILURES/OPEN, such as 5 or 5/30s"
                ))?;
                self.circuit = Some((failures, open));
            }
            name => return Err(format!("{name:?} is not one of {KNOWN}")),
        }
        Ok(None)
    }
}

fn lasts(name: &str, text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(time) if !time.is_zero() => Ok(time),
        _ => Err(format!(
            "{name}: {text:?} is no time; write 500ms, 2s or 1m"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(items: &[&str]) -> Result<BTreeMap<String, HandlerLimits>, String> {
        let items: Vec<String> = items.iter().map(|item| (*item).to_owned()).collect();
        parse(&items)
    }

    #[test]
    fn limits_are_read_in_one_item_or_in_many() {
        let whole =
            "mail.send=concurrency:4,total:9,rate:10/s,per:source,timeout:5s,attempts:3,circuit:5";
        let one = read(&[whole]).unwrap();
        let many: Vec<&str> = whole.split(',').collect();
        assert_eq!(read(&many).unwrap(), one);
        let limits = HandlerLimits {
            concurrency: Some(4),
            total: Some(9),
            rate: Some(Metered {
                rate: Rate::parse("10/s").unwrap(),
                per: Per::Source,
            }),
            timeout: Some(Duration::from_secs(5)),
            attempts: Some(3),
            circuit: Some((5, Duration::from_secs(30))),
        };
        assert_eq!(one["mail.send"], limits);
        let two = read(&["a.b=4,c.d=circuit:2/1m, rate:1/h"]).unwrap();
        assert_eq!(two["a.b"].concurrency, Some(4));
        assert_eq!(two["c.d"].circuit, Some((2, Duration::from_secs(60))));
        assert_eq!(two["c.d"].rate.unwrap().per, Per::Type);
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for (item, why) in [
            ("rate:1/s", "of no type"),
            ("mail=4", "mail"),
            ("system.ping=4", "control plane"),
            ("a.b=", "is not a whole number"),
            ("a.b=total:0", "total: \"0\" is not a whole number"),
            ("a.b=0", "\"0\" is not a whole number"),
            ("a.b=rate:fast", "RUNS/PERIOD"),
            ("a.b=rate:0/s", "nothing would ever begin"),
            ("a.b=per:source", "which is missing"),
            ("a.b=rate:1/s,per:hour", "\"hour\" is not source"),
            ("a.b=timeout:soon", "no time"),
            ("a.b=circuit:many", "FAILURES"),
            ("a.b=speed:4", "is not one of concurrency"),
        ] {
            let problem = read(&[item]).unwrap_err();
            assert!(problem.contains(why), "{item}: {problem}");
        }
    }
}
