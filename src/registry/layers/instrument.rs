//! What a handler did: counts and a latency histogram.

use hdrhistogram::Histogram;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// What one handler did since the process started.
#[derive(Debug)]
pub struct Stats {
    /// Runs.
    pub calls: AtomicU64,
    /// Runs that failed.
    pub errors: AtomicU64,
    /// Failures that are tried again.
    pub retries: AtomicU64,
    /// Runs refused by the rate limit.
    pub rate_limited: AtomicU64,
    /// Results that came from the cache.
    pub cache_hits: AtomicU64,
    latency: Mutex<Histogram<u64>>,
}

impl Default for Stats {
    fn default() -> Self {
        Self {
            calls: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            rate_limited: AtomicU64::new(0),
            cache_hits: AtomicU64::new(0),
            #[allow(clippy::expect_used)]
            latency: Mutex::new(
                Histogram::new_with_bounds(1, 3_600_000_000, 2)
                    .expect("the bounds are constants that the histogram takes"),
            ),
        }
    }
}

impl Stats {
    /// Counts one run.
    pub fn ran(&self, elapsed: Duration, failed: bool) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        if failed {
            self.errors.fetch_add(1, Ordering::Relaxed);
        }
        self.record(elapsed);
    }

    fn record(&self, elapsed: Duration) {
        let mut latency = self.latency.lock().unwrap_or_else(PoisonError::into_inner);
        latency.saturating_record(elapsed.as_micros().max(1) as u64);
    }

    /// The times so far, in microseconds; mergeable with those of other instances.
    pub fn latency(&self) -> Histogram<u64> {
        self.latency
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}
