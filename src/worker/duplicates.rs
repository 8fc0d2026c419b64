//! Events that take effect once within a window, however often they were added: the field `dedup`.
//!
//! The first entry of an id is the event (see [`first`]). What is tried again as another entry does not carry
//! the field any more. A duplicate is settled unrun, and its requester gets the first one's reply, if that is
//! still known.

use super::settle;
use super::shared::Shared;
use crate::connect::error::BusError;
use crate::protocol::error::Code;
use crate::protocol::event::{Entry, Event, payload_of};
use crate::streams::commit::{Lease, Settlement};
use crate::streams::first;

/// How an event is settled that is a duplicate; `None` if it is the first.
///
/// # Errors
/// Without an answer of the server nobody knows which it is.
pub async fn judge(
    shared: &Shared,
    lease: Lease,
    event: &Event,
) -> Result<Option<Settlement>, BusError> {
    let (domain, partition) = &shared.places[lease.stream];
    let keys = &shared.process.keys;
    let id = event.given_id().unwrap_or_default();
    let key = keys.dedup(domain, *partition, id);
    let mut connection = shared.process.connector.pooled().await?;
    let first = first::claim(&mut connection, &key, lease.entry, shared.dedup_window).await?;
    let Some(first) = first else {
        return Ok(None);
    };
    let mut known = None;
    if event.reply_to().is_some() {
        let stream = &shared.routes[lease.stream].events;
        let entry = first::entry(&mut connection, stream, &first).await?;
        let to = entry.as_ref().and_then(|entry| entry.get("replyto"));
        let to = to.and_then(|to| std::str::from_utf8(to).ok());
        // Whoever may write the key could name any entry in it.
        if let Some(to) = to.filter(|to| keys.may_reply_to(to, stream)) {
            known = first::reply(&mut connection, to, id).await?;
        }
    }
    let known = known.as_ref().and_then(said);
    let scene = shared.scene(lease);
    Ok(Some(settle::duplicate(scene, event, &first, known)))
}

/// Status and payload of a reply.
fn said(reply: &Entry) -> Option<(&'static str, Vec<u8>)> {
    let status = match std::str::from_utf8(reply.get("status")?).ok()? {
        "ok" => "ok",
        code => Code::from_name(code)?.as_str(),
    };
    Some((status, payload_of(reply)?.into_owned()))
}
