//! `system.pattern.*`: in which pattern system events are answered.

use crate::builtin::Services;
use crate::coordination::error::CoordinationError;
use crate::coordination::patterns::Chosen;
use crate::handler::state::State;
use crate::protocol::pattern::{Pattern, Patterned};
use crate::{Context, HandlerError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct Set {
    /// A system event with more than one pattern, such as `health`.
    event: String,
    /// `centralized`, `distributed` or `hybrid`.
    pattern: String,
    /// The version that this replaces; another one is refused.
    version: Option<u64>,
}

#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct Clear {
    /// The event.
    event: String,
    /// The version that this takes back; another one is refused.
    version: Option<u64>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Chose {
    event: &'static str,
    /// In which pattern it is answered now; null: each instance's setting says.
    pattern: Option<&'static str>,
    /// Rises with each change.
    version: u64,
}

#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct Nothing {}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct All {
    patterns: Vec<One>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct One {
    event: &'static str,
    /// In which pattern the one who answers this answers that.
    pattern: &'static str,
    /// Who says so: `bus`, for all instances, or the `setting` of this one.
    from: &'static str,
    /// Of the choice on the bus; 0: there never was one.
    version: u64,
    /// Who chose last.
    #[serde(skip_serializing_if = "Option::is_none")]
    by: Option<String>,
    /// When, in Unix milliseconds on the server.
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<u64>,
    /// All patterns that there are for it.
    built: Vec<&'static str>,
}

impl From<Chosen> for One {
    fn from(chosen: Chosen) -> Self {
        let built = chosen.event.built().iter();
        let choice = chosen.choice.as_ref();
        Self {
            event: chosen.event.as_str(),
            pattern: chosen.pattern.as_str(),
            from: if chosen.is_chosen() { "bus" } else { "setting" },
            version: choice.map_or(0, |choice| choice.version),
            by: choice.map(|choice| choice.by.clone()),
            at: choice.map(|choice| choice.at),
            built: built.map(|pattern| pattern.as_str()).collect(),
        }
    }
}

fn event(name: &str) -> Result<Patterned, HandlerError> {
    let refused = |problem| HandlerError::invalid_argument(format!("event: {problem}"));
    Patterned::named(name).map_err(refused)
}

pub(super) async fn set(
    context: Context,
    asked: Set,
    services: State<Services>,
) -> Result<Chose, HandlerError> {
    let event = event(&asked.event)?;
    let refused = |problem| HandlerError::invalid_argument(format!("pattern: {problem}"));
    let pattern = event.pattern(&asked.pattern).map_err(refused)?;
    choose(&context, event, Some(pattern), asked.version, &services).await
}

pub(super) async fn clear(
    context: Context,
    asked: Clear,
    services: State<Services>,
) -> Result<Chose, HandlerError> {
    let event = event(&asked.event)?;
    choose(&context, event, None, asked.version, &services).await
}

async fn choose(
    context: &Context,
    event: Patterned,
    pattern: Option<Pattern>,
    version: Option<u64>,
    services: &Services,
) -> Result<Chose, HandlerError> {
    let by = context.event().source().unwrap_or_default();
    let version = services
        .patterns
        .choose(event, pattern, version, by)
        .await
        .map_err(CoordinationError::into_handler_error)?;
    Ok(Chose {
        event: event.as_str(),
        pattern: pattern.map(Pattern::as_str),
        version,
    })
}

pub(super) async fn get(
    _: Context,
    _: Nothing,
    services: State<Services>,
) -> Result<All, HandlerError> {
    let chosen = services.patterns.list().await;
    let chosen = chosen.map_err(CoordinationError::into_handler_error)?;
    Ok(All {
        patterns: chosen.into_iter().map(One::from).collect(),
    })
}
