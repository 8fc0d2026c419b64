//! How often something may run.

use std::time::Duration;

/// A rate: so many runs a source in so long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Runs allowed in any one period.
    pub limit: u32,
    /// The period.
    pub period: Duration,
}
