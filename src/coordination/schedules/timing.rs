//! When a schedule ticks, and when each tick is due. Pure: the time is given.

use super::cron::Expression;
use crate::coordination::bounds::invalid;
use crate::coordination::error::CoordinationError;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::ops::RangeInclusive;

/// The last tick there may be: the end of the year 9998.
pub(super) const MAX_TICK: u64 = 253_370_764_800_000;
/// How often the same interval may tick, in ms: once a second, once in a year at the least.
pub(super) const EVERY: RangeInclusive<u64> = 1000..=366 * 86_400_000;
/// How long after its tick an event may be stored by jitter, in ms.
pub(super) const MAX_JITTER: u64 = 86_400_000;

/// When a schedule ticks, as it is said: one of three.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct When {
    /// A cron expression in `time_zone`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cron: Option<String>,
    /// At each multiple of this many ms since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every_ms: Option<u64>,
    /// Once, at that Unix ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<u64>,
    /// The IANA name of the zone of `cron`.
    pub time_zone: String,
}

/// The same, ready to be asked.
#[derive(Clone, Debug)]
pub(super) enum Timing {
    Cron(Box<Expression>),
    Every(u64),
    At(u64),
}

impl When {
    /// Checks it.
    pub(super) fn timing(&self) -> Result<Timing, CoordinationError> {
        let timing = match (&self.cron, self.every_ms, self.at) {
            (Some(cron), None, None) => {
                return Expression::parse(cron, &self.time_zone)
                    .map(|cron| Timing::Cron(Box::new(cron)))
                    .map_err(invalid);
            }
            (None, Some(every), None) if EVERY.contains(&every) => Timing::Every(every),
            (None, Some(every), None) => {
                let (least, most) = (EVERY.start(), EVERY.end());
                return Err(invalid(format!(
                    "every_ms: {every} is not from {least} to {most}"
                )));
            }
            (None, None, Some(at)) if at <= MAX_TICK => Timing::At(at),
            (None, None, Some(_)) => {
                return Err(invalid("at: farther away than the year 9998".into()));
            }
            _ => {
                return Err(invalid(
                    "cron, every_ms, at: give one of them, which says when it ticks".into(),
                ));
            }
        };
        match self.time_zone == "UTC" {
            true => Ok(timing),
            false => Err(invalid("time_zone: only a cron expression has one".into())),
        }
    }
}

impl Timing {
    /// The first tick after that time.
    pub(super) fn next_after(&self, after: u64) -> Option<u64> {
        let next = match self {
            Timing::Cron(cron) => {
                let seconds = i64::try_from(after / 1000).ok()?;
                u64::try_from(cron.next_after(seconds)?).ok()? * 1000
            }
            Timing::Every(every) => (after / every + 1).checked_mul(*every)?,
            Timing::At(at) => Some(*at).filter(|at| *at > after)?,
        };
        (next <= MAX_TICK).then_some(next)
    }

    /// The last tick from `from` on, which is one, until that time.
    pub(super) fn last_until(&self, from: u64, until: u64) -> u64 {
        // From a tick on, `next_after` rises with what it is asked for: the largest answer is searched for, first in
        // growing steps back.
        let found = |after: u64| self.next_after(after).filter(|tick| *tick <= until);
        let mut step = 1000_u64;
        let mut low = loop {
            let low = until.saturating_sub(step).max(from);
            if found(low).is_some() {
                break low;
            }
            if low == from {
                return from;
            }
            step = step.saturating_mul(2);
        };
        let mut high = until;
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            match found(middle) {
                Some(_) => low = middle,
                None => high = middle,
            }
        }
        found(low).unwrap_or(from)
    }
}

/// When the event of a tick is stored: the tick, and up to `jitter` ms more, which only the name and the tick decide.
/// Always before the next tick.
pub(super) fn due(timing: &Timing, name: &str, jitter: u64, tick: u64) -> u64 {
    if jitter == 0 {
        return tick;
    }
    let gap = timing.next_after(tick).map_or(u64::MAX, |next| next - tick);
    let most = jitter.saturating_add(1).min(gap).max(1);
    let digest = sha1_smol::Sha1::from(format!("{name}@{tick}")).digest();
    let drawn = digest.bytes().into_iter().take(8);
    let drawn = drawn.fold(0_u64, |drawn, byte| drawn << 8 | u64::from(byte));
    tick + drawn % most
}

/// A tick as RFC 3339, in UTC.
pub(super) fn rfc3339(tick: u64) -> String {
    let tick = i64::try_from(tick.min(MAX_TICK)).unwrap_or_default();
    Timestamp::from_millisecond(tick)
        .unwrap_or_default()
        .to_string()
}
