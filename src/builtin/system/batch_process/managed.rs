//! Centralized: one manager, the leader, holds all batches.
//!
//! Whoever reads the event of one hands it to the leader: its entry, as one is handed on that a worker cannot run. It
//! is pending with the leader from then on, and with nobody else, so the leader is a holder like any other, with a lease
//! and a fence, and what happens when it dies is the same: whoever takes its entries over goes on at once. Two leaders do
//! no harm.
//!
//! An entry is handed to a leader once at most, when it is delivered first. So none goes round while leaders change, and
//! a batch that kills whoever runs it is found out as soon as any event that does.

use super::{Process, needed};
use crate::Context;
use crate::builtin::Services;
use crate::coordination::error::CoordinationError;
use crate::protocol::error::HandlerError;
use crate::protocol::keys;

/// The leader, where it is to have the batch; `None`: this worker is to, since it leads, has been handed the event, or
/// the leader cannot hold it.
pub(super) async fn manager(
    context: &Context,
    services: &Services,
    group: &str,
    event: &Process,
) -> Result<Option<String>, HandlerError> {
    if context.deliveries() > 1 || context.is_from_inbox() {
        return Ok(None);
    }
    let instances = &services.instances;
    let failed = CoordinationError::into_handler_error;
    let elected = instances.elected().await.map_err(failed)?;
    let leader = elected.map(|(leader, _)| leader);
    let Some(leader) = leader.filter(|leader| leader != context.instance()) else {
        return Ok(None);
    };
    let kind = context.event().kind();
    let entry = context.event().entry_id().to_string();
    let handed = context.keys().handed(keys::domain_of(kind), 0, &entry);
    let kinds = [kind, needed(event)];
    let takes = instances.takes(&leader, group, kinds, &handed).await;
    Ok(takes.map_err(failed)?.then_some(leader))
}
