//! What goes on in a lane beside its runs and its commits: a read, a takeover, one of each at a time.

use crate::connect::error::{BusError, Reaction};
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
            Err(error) if shared.fence.as_ref().is_some_and(|it| it.hears(&error)) => None,
            // No group, or no stream: nothing is pending there. The next trigger looks again.
            Err(error) if is_nothing(&error, &shared) => {
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

/// Whether nothing is there to be taken over. In an owned partition only where that is sure: else what is newer would pass
/// what is older.
fn is_nothing(error: &BusError, shared: &Shared) -> bool {
    match error.reaction() {
        Reaction::RepairGroup => true,
        Reaction::GiveUp => shared.owned.is_none() || error.code() == Some("WRONGTYPE"),
        _ => false,
    }
}

/// What the slot's future gives; never ready while the slot is empty.
pub(super) async fn occupied<T>(slot: &mut Slot<T>) -> T {
    match slot {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}
