//! What goes on in a lane beside its runs and its commits: a read, a takeover, one of each at a time.

use crate::connect::error::Reaction;
use crate::worker::reader::{Read, Reader};
use crate::worker::shared::Shared;
use crate::worker::takeover::{Job, Step};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

pub(super) type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;
pub(super) type Slot<T> = Option<Boxed<T>>;

pub(super) fn read(mut reader: Reader, count: usize, closed: Vec<usize>) -> Boxed<(Reader, Read)> {
    Box::pin(async move {
        let read = reader.next(count, &closed).await;
        (reader, read)
    })
}

pub(super) fn take(job: Job, shared: Arc<Shared>, room: usize) -> Boxed<Option<Step>> {
    Box::pin(async move {
        match job.step(&shared, room).await {
            Ok(step) => Some(step),
            // No group, or no stream: nothing is pending there. The next trigger looks again.
            Err(error) if matches!(error.reaction(), Reaction::RepairGroup | Reaction::GiveUp) => {
                tracing::debug!(lane = shared.name, %error, "taking over was given up");
                Some(Step::Done)
            }
            Err(error) => {
                tracing::debug!(lane = shared.name, %error, "taking over failed; trying again");
                tokio::time::sleep(Duration::from_millis(200)).await;
                None
            }
        }
    })
}

/// What the slot's future gives; never ready while the slot is empty.
pub(super) async fn occupied<T>(slot: &mut Slot<T>) -> T {
    match slot {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}
