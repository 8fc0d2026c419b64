//! How often this process answered system events, in which pattern, how long that took, and how old the answers were.
//!
//! It is reported with the pulses beside what the handlers did, as counters that only rise, under names that no event
//! type has: `health:hybrid`, and `health:hybrid:age` for the ages.

use super::metrics::HandlerSums;
use crate::mutex::locked;
use crate::protocol::histogram::{Histogram, Recorder};
use crate::protocol::pattern::{Pattern, Patterned};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

/// What parts the words of a name.
const BETWEEN: char = ':';
/// The last word of the name of the ages.
const AGE: &str = "age";

/// What one process answered.
#[derive(Debug, Default)]
pub(super) struct Answered(Mutex<BTreeMap<(Patterned, Pattern), One>>);

#[derive(Debug, Default)]
struct One {
    calls: u64,
    errors: u64,
    took: Recorder,
    ages: Recorder,
    aged: u64,
}

/// What all instances answered in one pattern of one event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answers {
    /// Answers, and attempts that failed.
    pub calls: u64,
    /// Attempts that failed.
    pub errors: u64,
    /// How long they took.
    pub latency: Histogram,
    /// How old the oldest part of an answer was, where an answer has an age.
    pub age: Histogram,
}

impl Answered {
    /// Counts one; `age` is that of the oldest part of the answer, where it has one.
    pub(super) fn note(
        &self,
        of: (Patterned, Pattern),
        took: Duration,
        failed: bool,
        age: Option<Duration>,
    ) {
        let mut all = locked(&self.0);
        let one = all.entry(of).or_default();
        one.calls += 1;
        one.errors += u64::from(failed);
        one.took.record(took);
        if let Some(age) = age {
            one.aged += 1;
            one.ages.record(age);
        }
    }

    /// What was counted so far, as it is reported.
    pub(super) fn sums(&self) -> Vec<(String, HandlerSums)> {
        let all = locked(&self.0);
        let mut sums = Vec::new();
        for ((event, pattern), one) in all.iter() {
            let name = format!("{event}{BETWEEN}{pattern}");
            let ages = HandlerSums {
                calls: one.aged,
                latency: Some(one.ages.histogram()),
                ..HandlerSums::default()
            };
            if one.aged > 0 {
                sums.push((format!("{name}{BETWEEN}{AGE}"), ages));
            }
            let did = HandlerSums {
                calls: one.calls,
                errors: one.errors,
                latency: Some(one.took.histogram()),
                ..HandlerSums::default()
            };
            sums.push((name, did));
        }
        sums
    }
}

/// Whether that is the name of what was answered, and not an event type.
pub fn is_name(kind: &str) -> bool {
    kind.contains(BETWEEN)
}

/// Takes what was answered out of what handlers did, by event and by pattern.
pub(super) fn taken_from(
    handlers: &mut BTreeMap<String, HandlerSums>,
) -> BTreeMap<String, BTreeMap<String, Answers>> {
    let mut answered: BTreeMap<String, BTreeMap<String, Answers>> = BTreeMap::new();
    for (name, sums) in handlers.extract_if(.., |name, _| is_name(name)) {
        let mut words = name.split(BETWEEN);
        let (Some(event), Some(pattern)) = (words.next(), words.next()) else {
            continue;
        };
        let of_event = answered.entry(event.to_owned()).or_default();
        let answers = of_event.entry(pattern.to_owned()).or_default();
        match words.next() {
            None => {
                (answers.calls, answers.errors) = (sums.calls, sums.errors);
                answers.latency = sums.latency.unwrap_or_default();
            }
            Some(AGE) => answers.age = sums.latency.unwrap_or_default(),
            // A later version counts more.
            Some(_) => {}
        }
    }
    answered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_answered_is_read_as_it_is_reported_and_handlers_stay() {
        let answered = Answered::default();
        let second = Duration::from_secs(1);
        let hybrid = (Patterned::Health, Pattern::Hybrid);
        answered.note(hybrid, second, false, Some(2 * second));
        answered.note(hybrid, second, true, None);
        answered.note(
            (Patterned::Register, Pattern::Centralized),
            second,
            false,
            None,
        );
        let mut handlers: BTreeMap<_, _> = answered.sums().into_iter().collect();
        handlers.insert("system.health".to_owned(), HandlerSums::default());
        let all = taken_from(&mut handlers);
        assert_eq!(handlers.keys().collect::<Vec<_>>(), ["system.health"]);
        let health = &all["health"]["hybrid"];
        assert_eq!((health.calls, health.errors), (2, 1));
        assert_eq!((health.latency.count(), health.age.count()), (2, 1));
        assert_eq!(health.age.sum, 2_000_000);
        let registered = &all["register"]["centralized"];
        assert_eq!((registered.calls, registered.age.count()), (1, 0));
    }
}
