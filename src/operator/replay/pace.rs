//! The pace of a replay.

use super::STEP;
use std::time::{Duration, Instant};

/// Keeps to a rate: small steps, each at its time.
#[derive(Debug)]
pub struct Pace {
    /// When it began.
    pub began: Instant,
    /// How many a second, at the most.
    pub rate: Option<u32>,
    /// How many one step moves, at the most.
    pub step: usize,
}

impl Pace {
    /// Begins now.
    pub fn new(rate: Option<u32>) -> Self {
        let step = rate.map_or(STEP, |rate| (rate as usize / 10).clamp(1, STEP));
        let began = Instant::now();
        Self { began, rate, step }
    }

    /// Waits until this many may have been done.
    pub async fn wait(&self, done: u64) {
        if let Some(rate) = self.rate {
            let due = Duration::from_secs_f64(done as f64 / f64::from(rate));
            tokio::time::sleep(due.saturating_sub(self.began.elapsed())).await;
        }
    }
}
