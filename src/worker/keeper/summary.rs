//! Says now and then what went wrong since: one line, however much it was.

use super::Chores;
use crate::worker::shared::Counts;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How often failures are summed up in the log.
const PAUSE: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Default, PartialEq)]
struct Failures {
    dead: u64,
    retried: u64,
    expired: u64,
}

/// Sums up what is new.
pub async fn run(chores: &Chores) {
    let mut before = Failures::default();
    loop {
        tokio::time::sleep(PAUSE).await;
        before = run_once(chores, before);
    }
}

fn run_once(chores: &Chores, before: Failures) -> Failures {
    let count = |pick: fn(&Counts) -> &AtomicU64| -> u64 {
        let lanes = chores.lanes.iter();
        lanes
            .map(|lane| pick(&lane.counts).load(Ordering::Relaxed))
            .sum()
    };
    let now = Failures {
        dead: count(|c| &c.dead),
        retried: count(|c| &c.retried),
        expired: count(|c| &c.expired),
    };
    if now != before {
        tracing::warn!(
            dead_letters = now.dead - before.dead,
            retries = now.retried - before.retried,
            past_deadline = now.expired - before.expired,
            seconds = PAUSE.as_secs(),
            "events failed"
        );
    }
    now
}
