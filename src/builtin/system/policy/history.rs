//! `system.policy.history`: what became of the policies.

use super::scope;
use crate::builtin::Services;
use crate::coordination::error::CoordinationError;
use crate::coordination::policies::{MAX_CHANGES, PolicyChange};
use crate::handler::state::State;
use crate::{Context, HandlerError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Changes that an answer has where nobody says how many.
const SOME: usize = 50;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::builtin::system) struct History {
    /// The only scope that is wanted.
    scope: Option<String>,
    /// Changes before that version only.
    before: Option<u64>,
    /// How many: 1 to 200, 50 where it is not said.
    limit: Option<usize>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(in crate::builtin::system) struct Changes {
    /// The newest first.
    changes: Vec<Change>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Change {
    scope: String,
    version: u64,
    /// Who changed it.
    by: String,
    /// When, in Unix milliseconds on the server.
    at: u64,
    /// Why.
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    /// The parts before; without it, there was no document.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<serde_json::Value>")]
    before: Option<rmpv::Value>,
    /// The parts since then; without it, there is no document.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<serde_json::Value>")]
    after: Option<rmpv::Value>,
}

impl From<PolicyChange> for Change {
    fn from(change: PolicyChange) -> Self {
        Self {
            scope: change.scope,
            version: change.version,
            by: change.by,
            at: change.at,
            reason: change.reason,
            before: change.before,
            after: change.after,
        }
    }
}

pub(in crate::builtin::system) async fn history(
    _: Context,
    asked: History,
    services: State<Services>,
) -> Result<Changes, HandlerError> {
    let only = asked.scope.as_deref().map(scope).transpose()?;
    let limit = asked.limit.unwrap_or(SOME);
    if !(1..=MAX_CHANGES).contains(&limit) {
        return Err(HandlerError::invalid_argument(format!(
            "limit: {limit} is not 1 to {MAX_CHANGES}"
        )));
    }
    let found = services
        .policies
        .history(only.as_ref(), asked.before, limit);
    let found = found.await.map_err(CoordinationError::into_handler_error)?;
    Ok(Changes {
        changes: found.into_iter().map(Change::from).collect(),
    })
}
