//! What is older goes.

use super::database::{Database, Pools, STATEMENT, within};
use super::error::LedgerError;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Rows that one transaction deletes at the most, so that it holds nobody up.
const ROWS: u64 = 1000;
/// How often is looked for what is old.
const PAUSE: Duration = Duration::from_secs(3600);
/// Ids in the inbox are kept for at least this long: an event may come again after a replay.
const INBOX: Duration = Duration::from_secs(30 * 24 * 3600);

const FACTS: [&str; 2] = [
    "DELETE FROM convoke_facts WHERE (stream, at, seq) IN (SELECT stream, at, seq FROM convoke_facts WHERE namespace = ? AND at < ? ORDER BY at LIMIT ?)",
    "DELETE FROM convoke_facts WHERE (stream, at, seq) IN (SELECT stream, at, seq FROM convoke_facts WHERE namespace = $1 AND at < $2 ORDER BY at LIMIT $3)",
];
const RECEIVED: [&str; 2] = [
    "DELETE FROM convoke_inbox WHERE (namespace, kind, source, event) IN (SELECT namespace, kind, source, event FROM convoke_inbox WHERE namespace = ? AND at < ? LIMIT ?)",
    "DELETE FROM convoke_inbox WHERE (namespace, kind, source, event) IN (SELECT namespace, kind, source, event FROM convoke_inbox WHERE namespace = $1 AND at < $2 LIMIT $3)",
];

impl Database {
    /// Deletes a namespace's facts that are older than `facts`, and its ids in the inbox that are
    /// older than that and 30 days; how many rows. By this machine's clock. Other namespaces in the
    /// same database are kept for as long as their own workers say.
    pub async fn forget(&self, namespace: &str, facts: Duration) -> Result<u64, LedgerError> {
        let now = jiff::Timestamp::now().as_millisecond();
        let before = |age: Duration| now.saturating_sub_unsigned(age.as_millis() as u64);
        let old = self.delete(FACTS, namespace, before(facts)).await?;
        let received = self
            .delete(RECEIVED, namespace, before(facts.max(INBOX)))
            .await?;
        Ok(old + received)
    }

    async fn delete(
        &self,
        [sqlite, postgres]: [&'static str; 2],
        namespace: &str,
        before: i64,
    ) -> Result<u64, LedgerError> {
        let mut deleted = 0;
        loop {
            let rows = within(STATEMENT, async {
                Ok::<_, sqlx::Error>(match &self.pools {
                    Pools::Sqlite { writer, .. } => {
                        let query = sqlx::query(sqlite)
                            .bind(namespace)
                            .bind(before)
                            .bind(ROWS as i64);
                        query.execute(writer).await?.rows_affected()
                    }
                    Pools::Postgres(pool) => {
                        let query = sqlx::query(postgres)
                            .bind(namespace)
                            .bind(before)
                            .bind(ROWS as i64);
                        query.execute(pool).await?.rows_affected()
                    }
                })
            })
            .await??;
            deleted += rows;
            if rows < ROWS {
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
