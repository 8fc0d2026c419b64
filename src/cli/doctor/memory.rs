//! Whether the server's memory is full, or soon will be.

use super::super::Session;
use super::super::output::bytes;
use super::{Finding, Status};
use convoke::operator::memory;
use convoke::operator::server::ServerReport;
use convoke::protocol::keys::StreamKind;
use redis::aio::ConnectionLike;

/// From that part of its limit on a memory will soon be full.
pub(crate) const TIGHT: f64 = 0.80;
/// From that part of its limit on a memory counts as full.
pub(crate) const FULL: f64 = 0.95;
/// Keys that are named.
const NAMED: usize = 3;

pub(super) async fn memory(
    session: &Session,
    node: &mut impl ConnectionLike,
    server: &ServerReport,
) -> anyhow::Result<Finding> {
    let check = "memory";
    let Some(memory) = server.memory() else {
        let may_not = "the user may not run INFO, or the server does not tell it there";
        return Ok(Finding::unknown(check, may_not));
    };
    let used = bytes(memory.used);
    let Some(share) = memory.share() else {
        return Ok(Finding::fine(
            check,
            format!("{used} in use, without a limit"),
        ));
    };
    let what = format!(
        "{used} ({} bytes) of {} ({} bytes) are in use",
        memory.used,
        bytes(memory.limit),
        memory.limit
    );
    if share < TIGHT {
        return Ok(Finding::fine(check, what));
    }
    let keys = session.settings.keys()?;
    let largest = memory::largest(node, &keys, NAMED).await?;
    let sized: Vec<String> = largest
        .iter()
        .map(|(key, size)| format!("{key} with {}", bytes(*size)))
        .collect();
    let what = match sized.is_empty() {
        true => what,
        false => format!("{what}; the largest keys are {}", sized.join(", ")),
    };
    let first = largest.first();
    let kind = first.and_then(|(key, _)| Some((keys.stream_name(key)?.kind, key)));
    let room = match kind {
        Some((StreamKind::Dead, _)) => {
            "convoke dead list, then convoke replay dead or convoke dead drop; or ".to_owned()
        }
        Some((StreamKind::Events, key)) => format!(
            "have more workers read {key} (convoke streams shows whether any does), or publish less; or "
        ),
        Some((StreamKind::Results | StreamKind::Broadcast, _)) => {
            "keep less of what was done: a lower stream_history of the workers; or ".to_owned()
        }
        Some(_) | None => String::new(),
    };
    let full = share >= FULL;
    Ok(Finding {
        check,
        status: match full {
            true => Status::Danger,
            false => Status::Warning,
        },
        what,
        why: "at the limit Redis refuses what adds to it: nothing can be published, and no instance registers; \
              workers go on with what is there",
        fix: format!(
            "make room: {room}give it more: redis-cli CONFIG SET maxmemory {}",
            memory.limit.saturating_mul(2)
        ),
    })
}
