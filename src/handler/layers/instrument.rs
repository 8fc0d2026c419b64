//! What a handler did: counts and a latency histogram.

use crate::protocol::histogram::{Histogram, Recorder};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What one handler did since the process started.
#[derive(Debug, Default)]
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
    latency: Recorder,
}

impl Stats {
    /// Counts one run.
    pub fn ran(&self, elapsed: Duration, failed: bool) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        if failed {
            self.errors.fetch_add(1, Ordering::Relaxed);
        }
        self.latency.record(elapsed);
    }

    /// The times so far; mergeable with those of other instances.
    pub fn latency(&self) -> Histogram {
        self.latency.histogram()
    }
}
