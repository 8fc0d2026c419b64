//! Two batches that are under way while the primary goes.

use crate::support::sentinel::Deployment;
use crate::support::until;
use crate::{client, connector};
use convoke::client::publish::Outgoing;
use convoke::coordination::batches::Batches;
use convoke::coordination::batches::batch::BatchStatus;
use convoke::protocol::keys::Keys;
use serde_json::json;
use std::ops::Range;
use std::time::Duration;

/// Run by their holder, one after another; what they publish is stored with the progress.
pub(crate) const ONE: &str = "exclusive";
pub(crate) const ONES: u64 = 600;
/// Run by all workers.
pub(crate) const FAN: &str = "fan_out";
pub(crate) const FANNED: u64 = 3000;

/// The numbers of the batch's items.
pub(crate) fn numbers(mode: &str) -> Range<u64> {
    match mode {
        ONE => 2_000_000_000..2_000_000_000 + ONES,
        _ => 3_000_000_000..3_000_000_000 + FANNED,
    }
}

pub(crate) struct Running(Batches);

impl Running {
    /// Both are begun, and both replicas know of them.
    pub(crate) async fn begin(deployment: &Deployment) -> Self {
        let client = client(deployment);
        for (mode, ms) in [(ONE, 10), (FAN, 60)] {
            let items: Vec<_> = numbers(mode).map(|n| json!({"n": n, "ms": ms})).collect();
            // Where a failover forgot who took the batch over, whoever comes waits for two leases.
            let batch = json!({
                "batch_id": mode, "item_type": "load.work", "items": items, "mode": mode, "lease_ms": 3000
            });
            let event = Outgoing::new("system.batch.process", &batch)
                .id(mode)
                .dedup(true);
            let event = event.confirm(2, Duration::from_secs(1));
            until("the batch is stored", || async {
                client.publish(&event).await.is_ok()
            })
            .await;
        }
        let batches = Batches::new(connector(&deployment.url()), Keys::new("cb").unwrap());
        let running = Self(batches);
        until("both are under way", || async {
            running.processed(ONE).await > 0 && running.processed(FAN).await > 0
        })
        .await;
        running
    }

    async fn processed(&self, id: &str) -> u64 {
        let found = self.0.find(id).await.ok().flatten();
        found.map_or(0, |batch| batch.processed)
    }

    /// Waits until both are completed, with all of their items.
    pub(crate) async fn complete(&self) {
        for (id, total) in [(ONE, ONES), (FAN, FANNED)] {
            until(&format!("{id} is completed"), || async {
                let found = self.0.find(id).await.ok().flatten();
                found.is_some_and(|batch| {
                    let completed = batch.status == BatchStatus::Completed;
                    assert!(!completed || batch.processed == total, "{batch:?}");
                    completed
                })
            })
            .await;
        }
    }
}
