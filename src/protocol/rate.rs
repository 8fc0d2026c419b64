//! How often something may run.

use std::time::Duration;

/// A rate: how many runs a source may have in which period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Runs allowed in any one period.
    pub limit: u32,
    /// The period.
    pub period: Duration,
}
