//! Retention: facts and ids that are older than a time are deleted.

use super::database::Database;
use super::error::LedgerError;
use super::store::{Old, STATEMENT, within};
use crate::connect::clock::whole_ms;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Rows that one transaction deletes at the most, so that it holds nobody up.
const ROWS: i64 = 1000;
/// How often is looked for what is old.
const PAUSE: Duration = Duration::from_secs(3600);
/// Ids in the inbox are kept for at least this long: an event may come again after a replay.
const INBOX: Duration = Duration::from_secs(30 * 24 * 3600);

impl Database {
    /// Deletes a namespace's facts that are older than `facts`, and its ids in the inbox that are
    /// older than that and 30 days; how many rows. By this machine's clock. Other namespaces in the
    /// same database are kept for as long as their own workers say.
    pub async fn forget(&self, namespace: &str, facts: Duration) -> Result<u64, LedgerError> {
        let now = jiff::Timestamp::now().as_millisecond();
        let before = |age: Duration| now.saturating_sub_unsigned(whole_ms(age));
        let old = self.delete(Old::Facts, namespace, before(facts)).await?;
        let received = self
            .delete(Old::Received, namespace, before(facts.max(INBOX)))
            .await?;
        Ok(old + received)
    }

    async fn delete(&self, old: Old, namespace: &str, before: i64) -> Result<u64, LedgerError> {
        let mut deleted = 0;
        loop {
            let some = self.store.delete(old, namespace, before, ROWS);
            let rows = within(STATEMENT, some).await??;
            deleted += rows;
            if rows < ROWS as u64 {
                return Ok(deleted);
            }
            // The facts that come in go first.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Deletes what a namespace has that is older than `keep`, again and again, until told to stop.
pub async fn keep_for(
    database: Database,
    namespace: String,
    keep: Duration,
    stop: CancellationToken,
) {
    if keep.is_zero() {
        return;
    }
    // Replicas that were started together do not delete together.
    let mut pause = PAUSE.mul_f64(fastrand::f64() / 10.0);
    loop {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => return,
        }
        pause = PAUSE.mul_f64(fastrand::f64() / 2.0 + 0.75);
        match database.forget(&namespace, keep).await {
            Ok(0) => {}
            Ok(rows) => tracing::info!(rows, "old rows were deleted from the ledger"),
            Err(error) => tracing::debug!(%error, "old rows were not deleted; trying again later"),
        }
    }
}
