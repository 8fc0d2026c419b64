//! Keeps the log small, whatever others send.

use std::time::{Duration, Instant};

/// Lines that are logged in each period.
const LINES: u32 = 10;
/// The period.
const PERIOD: Duration = Duration::from_secs(10);

/// Counts lines that others cause (entries of a publisher, wires that fail), so that nobody fills the disk with
/// a log. The sum of dead letters, which a worker logs all the same, has what is left out.
#[derive(Debug)]
pub(super) struct Sparing {
    since: Instant,
    lines: u32,
}

impl Sparing {
    /// Nothing was logged yet.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            since: now,
            lines: 0,
        }
    }

    /// Whether one more line may be logged.
    pub(super) fn allows(&mut self, now: Instant) -> bool {
        if now.duration_since(self.since) >= PERIOD {
            *self = Self::new(now);
        }
        self.lines += 1;
        self.lines <= LINES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_lines_are_logged_in_each_period() {
        let begin = Instant::now();
        let mut sparing = Sparing::new(begin);
        for period in 0..3 {
            let now = begin + PERIOD * period;
            let logged = (0..1000).filter(|_| sparing.allows(now)).count();
            assert_eq!(logged, 10);
        }
    }
}
