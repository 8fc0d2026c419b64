//! Seats of runs that find no slot in their worker: others get them for a while.

use crate::handler::gate::permits::Look;
use std::time::Duration;
use tokio::time::Instant;

/// How long a seat is kept for a run that no slot is free for, where others wait; each time that none was, twice as long.
const TURN: Duration = Duration::from_millis(500);
/// The longest.
const PATIENCE: Duration = Duration::from_secs(30);

/// Whether runs that have a permit find no slot: then others get their seats for a while.
#[derive(Debug, Default)]
pub(super) struct Stuck {
    /// How often one of them was to begin, and did.
    tries: u64,
    begins: u64,
    /// Since when none was to, though others need what they have.
    since: Option<Instant>,
    /// Until when others get it.
    until: Option<Instant>,
    /// How often that was so since one began.
    times: u32,
}

impl Stuck {
    /// Whether it is so now.
    pub(super) fn lasts(&mut self, look: Look, others_need: bool, now: Instant) -> bool {
        if look.begins != self.begins {
            (self.begins, self.times) = (look.begins, 0);
        }
        if look.tries != self.tries || look.entered == 0 {
            (self.tries, self.since, self.until) = (look.tries, None, None);
        }
        if self.until.is_some_and(|until| until <= now) {
            (self.since, self.until) = (None, None);
        }
        if self.until.is_some() {
            return true;
        }
        if look.entered == 0 || !others_need {
            self.since = None;
            return false;
        }
        let patience = self.patience();
        let is_over = *self.since.get_or_insert(now) + patience <= now;
        if is_over {
            self.until = Some(now + patience);
            self.times = self.times.saturating_add(1);
        }
        is_over
    }

    /// How long they keep their seats, and then do without.
    fn patience(&self) -> Duration {
        TURN.saturating_mul(2u32.saturating_pow(self.times))
            .min(PATIENCE)
    }

    /// When that changes.
    pub(super) fn due(&self) -> Option<Instant> {
        let over = self.since.map(|since| since + self.patience());
        self.until.or(over)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_finds_no_slot_does_without_for_a_while_and_has_more_time_the_next_time() {
        let mut stuck = Stuck::default();
        let mut now = Instant::now();
        let entered = Look {
            runs: 0,
            entered: 1,
            waits: 0,
            limit: 9,
            tries: 0,
            begins: 0,
        };
        for turns in [1, 2, 4] {
            assert!(!stuck.lasts(entered, true, now));
            now += TURN * turns - Duration::from_millis(1);
            assert!(!stuck.lasts(entered, true, now), "{turns}");
            now += Duration::from_millis(1);
            assert!(stuck.lasts(entered, true, now), "{turns}");
            // Others have what it had: it has its time all the same.
            assert!(stuck.lasts(entered, false, now + TURN / 2));
            now = stuck.due().unwrap();
        }
        // One of them was to begin, and could not: it asks at once, and has as much time again.
        assert!(!stuck.lasts(
            Look {
                tries: 1,
                ..entered
            },
            true,
            now
        ));
        assert_eq!(stuck.due(), Some(now + TURN * 8));
        let began = Look {
            tries: 2,
            begins: 1,
            ..entered
        };
        assert!(!stuck.lasts(began, true, now));
        assert_eq!(stuck.due(), Some(now + TURN));
        assert!(!stuck.lasts(began, false, now));
        assert_eq!(stuck.due(), None);
    }
}
