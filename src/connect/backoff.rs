//! The pause before the next try, and which failure of a row is logged.

use std::time::Duration;

/// The failures in a row of what is tried until it works.
///
/// The first one is logged and the others are not: nobody needs to read each second that a server is away.
#[derive(Clone, Copy, Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Whether it failed when it was tried last. If not, a failure is the first of its row: the one to log.
    pub fn is_failing(&self) -> bool {
        self.failures > 0
    }

    /// Counts a failure; how long to wait before the next try.
    pub fn failed(&mut self) -> Duration {
        let pause = reconnect_delay(self.failures);
        self.failures = self.failures.saturating_add(1);
        pause
    }

    /// Notes that it worked; whether it had failed before, so that its end is worth a line in the log.
    pub fn worked(&mut self) -> bool {
        std::mem::take(self).is_failing()
    }
}

/// The wait before the next try after this many failures in a row: doubling from 100 ms to 5 s, full jitter.
pub fn reconnect_delay(failures: u32) -> Duration {
    let ceiling = 100u64.saturating_mul(1 << failures.min(6)).min(5000);
    Duration::from_millis(50 + fastrand::u64(0..ceiling))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failure_of_a_row_is_logged_and_its_end_once() {
        let mut backoff = Backoff::default();
        assert!(!backoff.worked(), "nothing had failed");
        for row in 0..2 {
            let logged = (0..5).filter(|_| {
                let first = !backoff.is_failing();
                backoff.failed();
                first
            });
            assert_eq!(logged.count(), 1, "row {row}");
            assert!(backoff.worked());
            assert!(!backoff.worked());
        }
    }

    #[test]
    fn pauses_grow_to_a_bound_and_begin_anew() {
        let longest = |failures| (0..200).map(|_| reconnect_delay(failures)).max();
        assert!(longest(0) < Some(Duration::from_millis(150)));
        assert!(longest(3) > longest(0));
        assert!(longest(u32::MAX) < Some(Duration::from_millis(5050)));
        let mut backoff = Backoff { failures: u32::MAX };
        backoff.failed();
        assert!(backoff.worked());
        assert!(backoff.failed() < Duration::from_millis(150));
    }
}
