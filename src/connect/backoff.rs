//! The pause before the next try.

use std::time::Duration;

/// The wait before the next try after this many failures in a row: doubling from 100 ms to 5 s, full jitter.
pub fn reconnect_delay(failures: u32) -> Duration {
    let ceiling = 100u64.saturating_mul(1 << failures.min(6)).min(5000);
    Duration::from_millis(50 + fastrand::u64(0..ceiling))
}
