//! Writes outcomes of events into the ledger, apart from the lanes that commit them.

use crate::connect::backoff::Backoff;
use crate::ledger::LedgerError;
use crate::ledger::database::Database;
use crate::protocol::outcome::EventOutcome;
use crate::worker::outcomes::OutcomesReceiver;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often what came meanwhile is written.
const PAUSE: Duration = Duration::from_millis(500);
/// Outcomes that one transaction writes, at the most.
const BATCH: usize = 1000;
/// How long a schema that was found in order counts as such.
const SCHEMA: Duration = Duration::from_secs(5);

/// What writing needs.
pub(super) struct Keeping {
    pub(super) outcomes: OutcomesReceiver,
    pub(super) database: Database,
    pub(super) namespace: String,
    pub(super) instance: String,
    /// Nothing more is committed: what is there is written once more.
    pub(super) last: CancellationToken,
}

impl Keeping {
    /// Writes again and again, until the last is written.
    pub(super) async fn run(mut self) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(PAUSE) => {}
                () = self.last.cancelled() => {}
            }
            let is_last = self.last.is_cancelled();
            self.write_all().await;
            if is_last {
                return;
            }
        }
    }

    async fn write_all(&mut self) {
        let mut batch = Vec::new();
        loop {
            while batch.len() < BATCH
                && let Ok(outcome) = self.outcomes.from.try_recv()
            {
                batch.push(outcome);
            }
            let lost = self.outcomes.lost.swap(0, Ordering::Relaxed);
            if batch.is_empty() && lost == 0 {
                return;
            }
            if lost > 0 {
                tracing::warn!(
                    lost,
                    "outcomes of events came faster than the ledger's database took them: they are not kept, and counted"
                );
            }
            if !self.write(&batch, lost).await {
                return;
            }
            batch.clear();
        }
    }

    /// Writes a batch, trying again until the database takes it; at the end once. False if it was given up then.
    async fn write(&self, batch: &[EventOutcome], lost: u64) -> bool {
        let mut backoff = Backoff::default();
        loop {
            let written = self.try_to_write(batch, lost).await;
            let Err(error) = written else {
                return true;
            };
            if !backoff.is_failing() {
                tracing::warn!(%error, "the ledger's database takes no outcomes; they wait, and what is too much is lost");
            }
            // What the database will never take holds up no others.
            let is_odd = matches!(error, LedgerError::Refused(_)) && !batch.is_empty();
            if is_odd || self.last.is_cancelled() {
                let lost = lost + batch.len() as u64;
                self.outcomes.lost.fetch_add(lost, Ordering::Relaxed);
                return is_odd && !self.last.is_cancelled();
            }
            tokio::select! {
                () = tokio::time::sleep(backoff.failed()) => {}
                () = self.last.cancelled() => {}
            }
        }
    }

    async fn try_to_write(&self, batch: &[EventOutcome], lost: u64) -> Result<(), LedgerError> {
        self.database.ready(SCHEMA).await?;
        let (namespace, instance) = (&self.namespace, &self.instance);
        self.database
            .insert_outcomes(namespace, instance, batch, lost)
            .await
    }
}
