//! Deliveries of which nothing was begun.
//!
//! How often an entry was delivered tells what kills its workers ([`poison`](super::settle::poison)). A worker that
//! lets go of an entry which it never began says so, or an event behind a long backlog would be taken for poison after
//! a few restarts. A worker that was killed can say nothing: its deliveries count, since nobody knows which of them
//! killed it.

use super::shared::Shared;
use crate::connect::error::BusError;
use crate::protocol::event::EntryId;
use crate::streams::claim::{self, RENEWED};
use crate::streams::commit::Receipt;
use std::collections::BTreeMap;

/// Has these count as not delivered. Their entries stay pending, and are in nobody's hands.
pub(super) async fn undeliver(shared: &Shared, receipts: &[Receipt]) {
    let mut streams: BTreeMap<usize, Vec<(EntryId, u32)>> = BTreeMap::new();
    for receipt in receipts {
        let unbegun = streams.entry(receipt.stream).or_default();
        unbegun.push((receipt.entry, receipt.deliveries));
    }
    for (stream, unbegun) in streams {
        for some in unbegun.chunks(RENEWED) {
            // Never twice: see `claim::undeliver`.
            if let Err(error) = of_stream(shared, stream, some).await {
                let stream = &shared.routes[stream].events;
                tracing::debug!(%error, stream, "deliveries that nothing was begun of are counted");
            }
        }
    }
}

/// The same for some of one stream.
pub(super) async fn of_stream(
    shared: &Shared,
    stream: usize,
    unbegun: &[(EntryId, u32)],
) -> Result<usize, BusError> {
    let mut connection = shared.process.connector.pooled().await?;
    let (events, me) = (&shared.routes[stream].events, shared.instance());
    claim::undeliver(&mut connection, events, &shared.group, me, unbegun).await
}
