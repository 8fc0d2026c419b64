//! Hybrid: the leader looks, and the answer reads what it saw. What nobody renews lapses, and whoever is asked then
//! looks.

use super::{Snapshot, look, patterns_of};
use crate::HandlerError;
use crate::builtin::Services;
use crate::coordination::error::CoordinationError;
use crate::coordination::view::MAX_RECENT;
use std::time::Duration;

/// The answer; `None` where no leader keeps one.
pub(super) async fn answer(
    services: &Services,
    recent: usize,
) -> Result<Option<Snapshot>, CoordinationError> {
    let (now, kept) = services.instances.merged_state().await?;
    let kept: Option<Snapshot> = kept.and_then(|kept| rmp_serde::from_slice(&kept).ok());
    Ok(kept.map(|mut state| {
        state.recent_events.truncate(recent);
        Snapshot {
            merged_ms: Some(now.saturating_sub(state.at)),
            worker_version: env!("CARGO_PKG_VERSION").into(),
            patterns: patterns_of(services),
            ..state
        }
    }))
}

/// Looks, and keeps what it saw for that long if it leads then: who was stopped meanwhile would put an older state in
/// the place of a newer. The answer says how old it is.
pub(crate) async fn put_together(
    services: &Services,
    kept: Duration,
    leads: impl Fn() -> bool,
) -> Result<(), HandlerError> {
    let state = Box::pin(look(services, MAX_RECENT)).await?;
    // What is made of strings and numbers is always encoded.
    let bytes = rmp_serde::to_vec_named(&state).unwrap_or_default();
    if !leads() {
        return Ok(());
    }
    let keeps = services.instances.keep_merged_state(&bytes, kept).await;
    keeps.map_err(CoordinationError::into_handler_error)
}
