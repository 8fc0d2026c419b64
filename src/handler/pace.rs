//! How long a type's handler holds its thread, learned from its runs.
//!
//! A handler that is ready at once runs inside its lane's loop, which costs no task. One that computes would hold up
//! the loop, and run on one core: its runs go to tasks. Which of the two a handler is, the time tells that its polls take.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

/// A mean from which a poll is long, in ns: giving a run to a task costs a tenth of that.
const LONG: u32 = 300_000;
/// A mean up to which it is short again.
const SHORT: u32 = 100_000;
/// One poll counts as one part in this many of the mean.
const WEIGHT: u32 = 8;
/// One poll counts as this at the most: a thread that the system held up once is no long poll.
const MOST: u32 = LONG / 3 * 2 * WEIGHT;

/// Whether some kind of poll is long.
#[derive(Debug, Default)]
pub struct Holds {
    /// Exponentially weighted, in ns.
    mean: AtomicU32,
    long: AtomicBool,
}

impl Holds {
    /// Notes how long a poll took. Of two notes at once one may be lost.
    pub fn took(&self, time: Duration) {
        let time = time.as_nanos().min(MOST.into()) as u32;
        let before = self.mean.load(Ordering::Relaxed);
        let mean = before - before / WEIGHT + time / WEIGHT;
        self.mean.store(mean, Ordering::Relaxed);
        let was = self.long.load(Ordering::Relaxed);
        let is = if was { mean > SHORT } else { mean > LONG };
        if is != was {
            self.long.store(is, Ordering::Relaxed);
        }
    }

    /// Whether they are long.
    pub fn are_long(&self) -> bool {
        self.long.load(Ordering::Relaxed)
    }
}

/// How long a handler holds its thread.
#[derive(Debug, Default)]
pub struct Pace {
    /// In the first poll of a run.
    pub first: Holds,
    /// In those after it.
    pub later: Holds,
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG_ONE: Duration = Duration::from_millis(50);
    const SHORT_ONE: Duration = Duration::from_micros(2);

    fn polled(holds: &Holds, time: Duration, polls: usize) {
        for _ in 0..polls {
            holds.took(time);
        }
    }

    #[test]
    fn it_is_learned_within_a_few_polls_and_unlearned_when_they_are_short_again() {
        let holds = Holds::default();
        polled(&holds, SHORT_ONE, 1000);
        assert!(!holds.are_long());
        polled(&holds, LONG_ONE, 2);
        assert!(holds.are_long());
        polled(&holds, LONG_ONE, 1000);
        polled(&holds, SHORT_ONE, 10);
        assert!(holds.are_long(), "not with the first that is short");
        polled(&holds, SHORT_ONE, 20);
        assert!(!holds.are_long());
    }

    #[test]
    fn one_that_the_system_held_up_tells_nothing() {
        let holds = Holds::default();
        for _ in 0..100 {
            polled(&holds, SHORT_ONE, 20);
            polled(&holds, LONG_ONE, 1);
            assert!(!holds.are_long());
        }
    }

    #[test]
    fn between_the_two_it_stays_as_it_is() {
        let between = Duration::from_micros(200);
        let holds = Holds::default();
        polled(&holds, between, 1000);
        assert!(!holds.are_long());
        polled(&holds, LONG_ONE, 10);
        polled(&holds, between, 1000);
        assert!(holds.are_long());
    }
}
