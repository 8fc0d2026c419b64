//! `system.repair.*`: bulk replays that workers do.

use crate::builtin::{Services, encoded};
use crate::coordination::error::CoordinationError;
use crate::coordination::repairs::{RepairDraft, RepairState};
use crate::handler::state::State;
use crate::operator::replay::repair::{Plan, Progress};
use crate::{Context, HandlerError};
use rmpv::Value;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Start {
    /// Its name; the facts of what it replays have it as their `run`.
    name: String,
    /// What is to be done: `stretches`, and what else the protocol page says.
    #[schemars(with = "BTreeMap<String, serde_json::Value>")]
    plan: Value,
    /// Why.
    #[serde(default)]
    why: String,
    /// Entries that it is about, if they were counted.
    total: Option<u64>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Cancel {
    /// The repair.
    name: String,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Started {
    name: String,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Cancelled {
    name: String,
    /// Entries that were replayed.
    replayed: u64,
    /// Entries that it left alone.
    left: u64,
}

#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct List {
    /// The only one that is wanted.
    name: Option<String>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct All {
    repairs: Vec<One>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct One {
    name: String,
    /// `running`, `finished` or `cancelled`.
    state: String,
    /// Who asked for it.
    by: String,
    why: String,
    /// When, in Unix milliseconds on the server.
    at: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    total: Option<u64>,
    /// Entries that were replayed.
    replayed: u64,
    /// Entries that were gone when their turn was.
    gone: u64,
    /// Entries that it left alone.
    left: u64,
    /// The worker that does it.
    #[serde(skip_serializing_if = "Option::is_none")]
    holder: Option<String>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    ended: Option<u64>,
    /// What holds it up.
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
    /// A terminal does it, no worker.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    terminal: bool,
}

impl One {
    fn of(name: String, state: RepairState, done: &Progress) -> Self {
        Self {
            name,
            state: state.state,
            by: state.by,
            why: state.why,
            at: state.at,
            total: state.total,
            replayed: done.replayed,
            gone: done.gone,
            left: done.left,
            holder: state.holder,
            ended: state.ended,
            note: state.note,
            terminal: state.terminal,
        }
    }
}

pub(super) async fn start(
    context: Context,
    asked: Start,
    services: State<Services>,
) -> Result<Started, HandlerError> {
    let plan: Plan = rmp_serde::from_slice(&encoded(&asked.plan))
        .map_err(|error| HandlerError::invalid_argument(format!("plan: {error}")))?;
    if plan.program {
        let why = "plan: program: only the terminal that runs it begins such a replay";
        return Err(HandlerError::invalid_argument(why));
    }
    let by = context.event().source().unwrap_or_default();
    let draft = RepairDraft {
        name: asked.name,
        plan,
        why: asked.why,
        total: asked.total,
    };
    let started = services.repairs.start(&draft, by).await;
    started.map_err(CoordinationError::into_handler_error)?;
    Ok(Started { name: draft.name })
}

pub(super) async fn cancel(
    context: Context,
    asked: Cancel,
    services: State<Services>,
) -> Result<Cancelled, HandlerError> {
    let by = context.event().source().unwrap_or_default();
    let cancelled = services.repairs.cancel(&asked.name, by).await;
    let done = cancelled.map_err(CoordinationError::into_handler_error)?;
    Ok(Cancelled {
        name: asked.name,
        replayed: done.replayed,
        left: done.left,
    })
}

pub(super) async fn list(
    _: Context,
    asked: List,
    services: State<Services>,
) -> Result<All, HandlerError> {
    let repairs = &services.repairs;
    let all = repairs.list().await;
    let all = all.map_err(CoordinationError::into_handler_error)?;
    let mut listed = Vec::new();
    for (name, state) in all {
        if asked.name.as_ref().is_some_and(|only| *only != name) {
            continue;
        }
        // One whose plan only a later version reads is listed all the same.
        let done = match repairs.read(&name).await {
            Ok((plan, _)) => repairs.progress(&state.noted(&name), &plan).await,
            Err(CoordinationError::Bus(error)) => Err(error.into()),
            Err(_) => Ok(Progress::default()),
        };
        let done = done.map_err(CoordinationError::into_handler_error)?;
        listed.push(One::of(name, state, &done));
    }
    Ok(All { repairs: listed })
}
