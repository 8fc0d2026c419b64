//! `system.cancel`: takes an event away, wherever it is.

use crate::builtin::Services;
use crate::connect::error::Reaction;
use crate::handler::state::State;
use crate::protocol::error::Code;
use crate::streams::cancel::{CancelError, Cancellation, Fate, Name, Order};
use crate::{Context, HandlerError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Entries that are looked at for an id, at the most.
const LOOKED_AT: usize = 100_000;
/// How long it waits where the server is away.
const AWAY: Duration = Duration::from_millis(500);

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Cancel {
    /// The event's domain: its type up to the first dot.
    domain: String,
    /// The event's id: its own, or its entry's if it has none.
    id: Option<String>,
    /// Its entry, such as `1700000000000-0`.
    entry: Option<String>,
    /// Why: whoever asked for the event is told.
    #[serde(default)]
    reason: String,
    /// Whether the event becomes a dead letter.
    #[serde(default)]
    keep: bool,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Cancelled {
    /// How it stood: `waiting`, `delayed`, `running`, `finished` or `unknown`.
    state: &'static str,
    /// Whether it is cancelled now, by this call or an earlier one.
    cancelled: bool,
    /// The event's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    r#type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    entry: Option<String>,
    /// Which worker had it in hand.
    #[serde(skip_serializing_if = "Option::is_none")]
    instance: Option<String>,
    /// Whether whoever asked for it was told; absent if nobody asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    told: Option<bool>,
    /// The earlier call that cancelled it.
    #[serde(skip_serializing_if = "Option::is_none")]
    earlier: Option<Earlier>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Earlier {
    by: String,
    reason: String,
    /// When, in Unix milliseconds on the server.
    at: u64,
}

impl From<Cancellation> for Earlier {
    fn from(earlier: Cancellation) -> Self {
        Self {
            by: earlier.by,
            reason: earlier.reason,
            at: earlier.at,
        }
    }
}

impl From<Fate> for Cancelled {
    fn from(fate: Fate) -> Self {
        Self {
            state: fate.state.as_str(),
            cancelled: fate.cancelled,
            id: fate.id,
            r#type: fate.kind,
            entry: fate.entry.map(|entry| entry.to_string()),
            instance: fate.instance,
            told: fate.told,
            earlier: fate.earlier.map(Earlier::from),
        }
    }
}

pub(super) async fn cancel(
    context: Context,
    asked: Cancel,
    services: State<Services>,
) -> Result<Cancelled, HandlerError> {
    let name = match (asked.id, asked.entry) {
        (Some(id), None) => Name::Id(id),
        (None, Some(entry)) => Name::Entry(
            entry
                .parse()
                .map_err(|error| HandlerError::invalid_argument(format!("entry: {error}")))?,
        ),
        _ => {
            let message = "id, entry: give one of them, which says which event is meant";
            return Err(HandlerError::invalid_argument(message));
        }
    };
    let order = Order {
        by: context.event().source().unwrap_or_default().to_owned(),
        reason: asked.reason,
        keep: asked.keep,
    };
    let names = [name];
    let canceller = &services.canceller;
    let fates = canceller.cancel(&asked.domain, &names, &order, LOOKED_AT);
    let mut fates = fates.await.map_err(refusal)?;
    let fate = fates
        .pop()
        .ok_or_else(|| HandlerError::internal("an event without a fate"))?;
    if fate.several {
        let message = format!(
            "entries of several partitions are called {}: give the id that its publisher gave the event",
            fate.name
        );
        return Err(HandlerError::failed_precondition(message));
    }
    Ok(fate.into())
}

fn refusal(error: CancelError) -> HandlerError {
    let said = error.to_string();
    match error {
        CancelError::Domain(_) | CancelError::Reason(_) => HandlerError::invalid_argument(said),
        CancelError::TooMany { .. } => HandlerError::new(Code::ResourceExhausted, said),
        CancelError::Refused(_) => HandlerError::failed_precondition(said),
        CancelError::Bus(error) => match error.reaction() {
            Reaction::GiveUp => HandlerError::unavailable(said),
            _ => HandlerError::later(AWAY, said),
        },
    }
}
