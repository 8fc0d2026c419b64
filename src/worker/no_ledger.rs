//! A build without a database: no worker of it keeps a ledger, and settings that name one are refused.

use super::outcomes::OutcomesReceiver;
use super::supervisor::Supervisor;
use super::{RunError, Worker};
use tokio_util::sync::CancellationToken;

/// None.
pub(super) enum Ledger {}

impl Ledger {
    /// Starts nothing.
    pub(super) fn start(
        _: &Worker,
        _: Vec<String>,
        _: Option<OutcomesReceiver>,
        _: &CancellationToken,
        _: &Supervisor,
    ) -> Result<Option<Self>, RunError> {
        Ok(None)
    }

    /// Waits for nothing.
    pub(super) async fn ended(self) {
        match self {}
    }
}
