//! What holds for the runs of a handler now: its own policy, or what operators ask in its place.

use crate::coordination::policies::RunLimits;
use crate::handler::policy::RetryPolicy;
use crate::mutex::locked;
use crate::protocol::rate::Metered;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::Notify;

/// What holds for the runs of a handler.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// How long a run may take.
    pub timeout: Option<Duration>,
    /// When a failed one is tried again.
    pub retry: RetryPolicy,
    /// How many begin in a period.
    pub metered: Option<Metered>,
    /// How many go on at a time in this process.
    pub concurrency: Option<usize>,
    /// How many do in all workers together.
    pub total: Option<usize>,
}

impl Limits {
    /// The same with what operators ask in its place.
    fn under(self, asked: RunLimits) -> Self {
        let max_attempts = asked.max_attempts.unwrap_or(self.retry.max_attempts);
        Self {
            timeout: asked.timeout.or(self.timeout),
            retry: RetryPolicy {
                max_attempts,
                ..self.retry
            },
            metered: asked.rate.or(self.metered),
            concurrency: asked.worker.map(|most| most as usize).or(self.concurrency),
            total: asked.total.map(|most| most as usize).or(self.total),
        }
    }
}

/// The limits of one handler. Where nobody asks anything of its type, they cost one look at a flag, and an atomic number
/// for each run that waits for something.
#[derive(Debug)]
pub struct LiveLimits {
    own: Limits,
    is_asked: AtomicBool,
    now: Mutex<Limits>,
    changed: Notify,
}

impl LiveLimits {
    /// The limits of the handler's own policy.
    pub fn new(own: Limits) -> Self {
        Self {
            own,
            is_asked: AtomicBool::new(false),
            now: Mutex::new(own),
            changed: Notify::new(),
        }
    }

    /// Whether operators ask something.
    pub fn is_asked(&self) -> bool {
        self.is_asked.load(Ordering::Acquire)
    }

    /// What holds now.
    pub fn now(&self) -> Limits {
        match self.is_asked() {
            false => self.own,
            true => *locked(&self.now),
        }
    }

    /// Has these hold from now on; whether anything is another one.
    pub fn ask(&self, asked: RunLimits) -> bool {
        let next = self.own.under(asked);
        let before = std::mem::replace(&mut *locked(&self.now), next);
        let is_asked = asked != RunLimits::default();
        let was_asked = self.is_asked.swap(is_asked, Ordering::AcqRel);
        if before == next && was_asked == is_asked {
            return false;
        }
        self.changed.notify_waiters();
        true
    }

    /// Waits for so long, or until another rate holds than that one.
    pub async fn sleep_under(&self, metered: Option<Metered>, until: tokio::time::Instant) {
        let sleep = tokio::time::sleep_until(until);
        let mut sleep = std::pin::pin!(sleep);
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if metered.is_some() && self.now().metered != metered {
                return;
            }
            tokio::select! {
                () = &mut sleep => return,
                () = changed => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::rate::{Per, Rate};
    use std::sync::Arc;
    use tokio::time::Instant;

    const HOUR: Duration = Duration::from_secs(3600);

    fn own() -> Limits {
        Limits {
            timeout: Some(HOUR),
            retry: RetryPolicy::default(),
            metered: Some(metered(1)),
            concurrency: None,
            total: None,
        }
    }

    fn metered(limit: u32) -> Metered {
        let rate = Rate {
            limit,
            period: HOUR,
        };
        Metered {
            rate,
            per: Per::Type,
        }
    }

    #[test]
    fn what_is_asked_stands_in_for_the_handlers_own_part_by_part() {
        let limits = LiveLimits::new(own());
        let asked = RunLimits {
            max_attempts: Some(2),
            worker: Some(3),
            total: Some(9),
            ..RunLimits::default()
        };
        assert!(limits.ask(asked));
        assert!(!limits.ask(asked), "the same again");
        let now = limits.now();
        assert_eq!((now.timeout, now.metered), (Some(HOUR), own().metered));
        assert_eq!((now.retry.max_attempts, now.concurrency), (2, Some(3)));
        assert_eq!(now.total, Some(9));
        assert!(limits.ask(RunLimits::default()));
        assert_eq!(limits.now(), own());
        assert!(!limits.is_asked());
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_a_rate_goes_on_when_another_one_holds() {
        let limits = Arc::new(LiveLimits::new(own()));
        let began = Instant::now();
        let (own_rate, until) = (own().metered, began + HOUR);
        let waits = tokio::spawn({
            let limits = limits.clone();
            async move { limits.sleep_under(own_rate, until).await }
        });
        tokio::task::yield_now().await;
        // What else is asked changes nothing for it.
        let mut asked = RunLimits {
            max_attempts: Some(2),
            ..RunLimits::default()
        };
        limits.ask(asked);
        tokio::task::yield_now().await;
        assert!(!waits.is_finished());
        asked.rate = Some(metered(5));
        limits.ask(asked);
        waits.await.unwrap();
        // Whoever comes later does not wait either; who waits for something else does.
        limits.sleep_under(own_rate, until).await;
        assert_eq!(began.elapsed(), Duration::ZERO);
        limits.sleep_under(None, until).await;
        assert_eq!(began.elapsed(), HOUR);
    }
}
