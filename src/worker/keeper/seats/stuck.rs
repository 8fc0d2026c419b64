//! Seats of runs that find no slot in their worker: others get them for a while.

use crate::handler::gate::permits::Look;
use std::time::Duration;
use tokio::time::Instant;

/// How long a seat is kept for a run that no slot is free for, where others wait; twice as long each time that its slot came
/// when the seat was gone.
const TURN: Duration = Duration::from_millis(500);
/// The longest.
const PATIENCE: Duration = Duration::from_secs(30);
/// For how many times as long others get it then: of those that find no slot for long there may be many.
const PAUSE: u32 = 32;

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
    /// How often its slot came too late since one began.
    times: u32,
}

impl Stuck {
    /// Whether it is so now.
    pub(super) fn lasts(&mut self, look: Look, others_need: bool, now: Instant) -> bool {
        if look.tries != self.tries || look.entered == 0 {
            if self.until.is_some() && look.entered > 0 {
                self.times = self.times.saturating_add(1);
            }
            (self.tries, self.since, self.until) = (look.tries, None, None);
        }
        if look.begins != self.begins {
            (self.begins, self.times) = (look.begins, 0);
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
            self.until = Some(now + patience * PAUSE);
        }
        is_over
    }

    /// How long they keep their seats.
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
    fn whoever_finds_no_slot_does_without_for_long_and_has_more_time_where_its_slot_came_too_late()
    {
        let mut stuck = Stuck::default();
        let mut now = Instant::now();
        let mut look = Look {
            runs: 0,
            entered: 1,
            waits: 0,
            limit: 9,
            tries: 0,
            begins: 0,
        };
        // No slot comes at all: its turn is as short each time, and others have much more.
        for _ in 0..3 {
            assert!(!stuck.lasts(look, true, now));
            now += TURN - Duration::from_millis(1);
            assert!(!stuck.lasts(look, true, now));
            now += Duration::from_millis(1);
            assert!(stuck.lasts(look, true, now));
            assert_eq!(stuck.due(), Some(now + TURN * PAUSE));
            // Others have what it had: that it does without lasts all the same.
            assert!(stuck.lasts(look, false, now + TURN / 2));
            now = stuck.due().unwrap();
        }
        // Its slot comes when the seat is gone: it asks at once, and has twice as long the next time.
        for turns in [1, 2, 4] {
            assert!(!stuck.lasts(look, true, now));
            assert_eq!(stuck.due(), Some(now + TURN * turns));
            now += TURN * turns;
            assert!(stuck.lasts(look, true, now));
            look.tries += 1;
        }
        assert!(!stuck.lasts(look, true, now));
        assert_eq!(stuck.due(), Some(now + TURN * 8));
        (look.tries, look.begins) = (look.tries + 1, 1);
        assert!(!stuck.lasts(look, true, now));
        assert_eq!(stuck.due(), Some(now + TURN));
        assert!(!stuck.lasts(look, false, now));
        assert_eq!(stuck.due(), None);
    }
}
