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

    /// Deletes a namespace's outcomes that are older than that; how many.
    ///
    /// # Errors
    /// Whatever the database says.
    #[doc(hidden)]
    pub async fn forget_outcomes(
        &self,
        namespace: &str,
        age: Duration,
    ) -> Result<u64, LedgerError> {
        let now = jiff::Timestamp::now().as_millisecond();
        let before = now.saturating_sub_unsigned(whole_ms(age));
        self.delete(Old::Outcomes, namespace, before).await
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

/// Deletes a namespace's facts and outcomes that are older than is set for each, again and again, until told to stop. Zero:
/// they are kept for good.
pub async fn keep_for(
    database: Database,
    namespace: String,
    facts: Duration,
    outcomes: Duration,
    stop: CancellationToken,
) {
    if facts.is_zero() && outcomes.is_zero() {
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
        match forget_both(&database, &namespace, facts, outcomes).await {
            Ok(0) => {}
            Ok(rows) => tracing::info!(rows, "old rows were deleted from the ledger"),
            Err(error) => tracing::debug!(%error, "old rows were not deleted; trying again later"),
        }
    }
}

async fn forget_both(
    database: &Database,
    namespace: &str,
    facts: Duration,
    outcomes: Duration,
) -> Result<u64, LedgerError> {
    let mut rows = 0;
    if !facts.is_zero() {
        rows += database.forget(namespace, facts).await?;
    }
    if !outcomes.is_zero() {
        rows += database.forget_outcomes(namespace, outcomes).await?;
    }
    Ok(rows)
}
