//! `system.policy.*`: what operators ask of types, domains and subjects, while all goes on.

use crate::builtin::Services;
use crate::coordination::error::CoordinationError;
use crate::coordination::policies::{Document, Ends, PolicyPart, Scope};
use crate::handler::state::State;
use crate::{Context, HandlerError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Set {
    /// `type:TYPE`, `domain:DOMAIN` or `subject:DOMAIN:SUBJECT`.
    scope: String,
    /// What the scope names waits.
    pause: Option<Pause>,
    /// The version that this replaces; another one is refused. 0: there is no document.
    version: Option<u64>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Pause {
    /// The Unix millisecond on the server at which it ends by itself.
    until: Option<u64>,
    /// Milliseconds from now after which it ends by itself.
    for_ms: Option<u64>,
    /// Why: requesters are told.
    #[serde(default)]
    reason: String,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Clear {
    /// The scope.
    scope: String,
    /// Which parts, such as `pause`; without them all.
    #[serde(default)]
    parts: Vec<String>,
    /// The version that this replaces; another one is refused.
    version: Option<u64>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Changed {
    scope: String,
    /// Rises with each change of any document; 0: there was no document.
    version: u64,
}

#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct Get {
    /// The only scope that is wanted.
    scope: Option<String>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct All {
    policies: Vec<One>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct One {
    scope: String,
    version: u64,
    /// Who changed it last.
    by: String,
    /// When, in Unix milliseconds on the server.
    at: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pause: Option<Paused>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Paused {
    /// When it ends by itself, in Unix milliseconds on the server.
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<u64>,
    reason: String,
    /// Whether it lasts; else its time has passed.
    lasts: bool,
}

impl One {
    fn of(scope: &Scope, document: Document, now: u64) -> Self {
        Self {
            scope: scope.to_string(),
            version: document.version,
            by: document.by,
            at: document.at,
            pause: document.pause.map(|pause| Paused {
                lasts: pause.lasts(now),
                until: pause.until,
                reason: pause.reason,
            }),
        }
    }
}

fn scope(text: &str) -> Result<Scope, HandlerError> {
    Scope::parse(text).map_err(CoordinationError::into_handler_error)
}

pub(super) async fn set(
    context: Context,
    asked: Set,
    services: State<Services>,
) -> Result<Changed, HandlerError> {
    let scope = scope(&asked.scope)?;
    let Some(Pause {
        until,
        for_ms,
        reason,
    }) = asked.pause
    else {
        return Err(HandlerError::invalid_argument(
            "pause: missing; a policy says something",
        ));
    };
    let ends = match (until, for_ms) {
        (None, None) => Ends::Never,
        (Some(at), None) => Ends::At(at),
        (None, Some(ms)) => Ends::In(ms),
        (Some(_), Some(_)) => {
            return Err(HandlerError::invalid_argument(
                "pause: until and for_ms say the same: give one of them",
            ));
        }
    };
    let by = context.event().source().unwrap_or_default();
    let parts = [PolicyPart::Pause { ends, reason }];
    let set = services.policies.set(&scope, &parts, asked.version, by);
    Ok(Changed {
        version: set.await.map_err(CoordinationError::into_handler_error)?,
        scope: scope.to_string(),
    })
}

pub(super) async fn clear(
    context: Context,
    asked: Clear,
    services: State<Services>,
) -> Result<Changed, HandlerError> {
    let scope = scope(&asked.scope)?;
    let by = context.event().source().unwrap_or_default();
    let policies = &services.policies;
    let cleared = policies.clear(&scope, &asked.parts, asked.version, by);
    Ok(Changed {
        version: cleared
            .await
            .map_err(CoordinationError::into_handler_error)?,
        scope: scope.to_string(),
    })
}

pub(super) async fn get(
    _: Context,
    asked: Get,
    services: State<Services>,
) -> Result<All, HandlerError> {
    let only = asked.scope.as_deref().map(scope).transpose()?;
    let listed = services.policies.list().await;
    let (all, now) = listed.map_err(CoordinationError::into_handler_error)?;
    let all = all.into_iter();
    let those = all.filter(|(scope, _)| only.as_ref().is_none_or(|only| only == scope));
    Ok(All {
        policies: those
            .map(|(scope, document)| One::of(&scope, document, now))
            .collect(),
    })
}
