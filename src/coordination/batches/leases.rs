//! The batches that this process holds: renewed from a thread of their own, so that an item that
//! blocks its thread does not lose its batch.

use crate::coordination::batches::Batches;
use crate::mutex::locked;
use crate::protocol::event::Entry;
use serde::Deserialize;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// The leases in this process's hands. Cheap to clone; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Leases(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    held: Mutex<Vec<Arc<Lease>>>,
    changed: Notify,
}

/// One lease.
#[derive(Debug)]
pub struct Lease {
    /// The batch.
    pub id: String,
    /// The holder's fence.
    pub fence: u64,
    length: Duration,
    renewed: Mutex<Instant>,
    lost: CancellationToken,
}

impl Lease {
    /// Is cancelled when the batch is no longer this process's.
    pub fn lost(&self) -> &CancellationToken {
        &self.lost
    }

    /// Whether the lease cannot have run out yet, by this process's clock.
    pub fn is_valid(&self) -> bool {
        !self.lost.is_cancelled() && self.age() < self.length
    }

    /// Notes that a call which was begun then has renewed it.
    pub fn renewed(&self, begun: Instant) {
        let mut renewed = locked(&self.renewed);
        *renewed = begun.max(*renewed);
    }

    fn age(&self) -> Duration {
        locked(&self.renewed).elapsed()
    }
}

/// A lease that is renewed until this is dropped.
#[derive(Debug)]
pub struct Held {
    lease: Arc<Lease>,
    all: Leases,
}

impl std::ops::Deref for Held {
    type Target = Lease;

    fn deref(&self) -> &Lease {
        &self.lease
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        locked(&self.all.0.held).retain(|lease| !Arc::ptr_eq(lease, &self.lease));
    }
}

impl Leases {
    /// Renews from now on a lease that was taken by a call that was begun then.
    pub fn hold(&self, id: &str, fence: u64, length: Duration, begun: Instant) -> Held {
        let lease = Arc::new(Lease {
            id: id.to_owned(),
            fence,
            length,
            renewed: Mutex::new(begun),
            lost: CancellationToken::new(),
        });
        locked(&self.0.held).push(lease.clone());
        self.0.changed.notify_one();
        Held {
            lease,
            all: self.clone(),
        }
    }

    /// Renews each lease when a third of it has passed; never ends. Whoever lost one is told.
    pub async fn keep(&self, batches: &Batches) {
        loop {
            let held = locked(&self.0.held).clone();
            let mut pause = Duration::from_secs(3600);
            for lease in held {
                let third = lease.length / 3;
                if lease.age() >= third {
                    self.renew(batches, &lease).await;
                }
                // After a failure the age is past the third: again soon.
                let soon = third.saturating_sub(lease.age()).max(third / 8);
                pause = pause.min(soon);
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.0.changed.notified() => {}
            }
        }
    }

    /// Ends a lease whose batch was cancelled, if that is what this fact says.
    pub fn hear(&self, fact: &Entry) {
        #[derive(Deserialize)]
        struct Cancelled {
            batch_id: String,
            fence: u64,
        }
        if fact.get("type") != Some(b"batch.cancelled") {
            return;
        }
        let told = fact.get("data").map(rmp_serde::from_slice::<Cancelled>);
        let Some(Ok(cancelled)) = told else { return };
        for lease in locked(&self.0.held).iter() {
            if lease.id == cancelled.batch_id && lease.fence < cancelled.fence {
                lease.lost.cancel();
            }
        }
    }

    async fn renew(&self, batches: &Batches, lease: &Lease) {
        let begun = Instant::now();
        match batches.renew(&lease.id, lease.fence, lease.length).await {
            Ok(true) => lease.renewed(begun),
            Ok(false) => lease.lost.cancel(),
            Err(error) if lease.is_valid() => {
                tracing::debug!(batch = lease.id, %error, "a lease was not renewed; trying again");
            }
            Err(error) => {
                tracing::warn!(batch = lease.id, %error, "a lease ran out, since it could not be renewed");
                lease.lost.cancel();
            }
        }
    }
}
