//! `system.schedule.*`: events that are published at times.

use crate::builtin::{Services, encoded};
use crate::coordination::error::CoordinationError;
use crate::coordination::schedules::{Listed, Missed, Put, ScheduleDraft, Stored, When};
use crate::handler::state::State;
use crate::{Context, HandlerError};
use rmpv::Value;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct PutSchedule {
    /// Unique in the namespace.
    name: String,
    /// A cron expression: five fields, or six with seconds first.
    cron: Option<String>,
    /// At each multiple of this many milliseconds since 1970.
    every_ms: Option<u64>,
    /// Once, at that Unix millisecond.
    at: Option<u64>,
    /// The IANA name of the zone of the cron expression.
    #[serde(default = "utc")]
    time_zone: String,
    /// The type of its events. With nothing but `name` and `paused`, a schedule that is there is paused or goes on.
    #[serde(rename = "type")]
    kind: Option<String>,
    /// The payload of its events.
    #[serde(default, deserialize_with = "given")]
    #[schemars(with = "Option<serde_json::Value>")]
    payload: Option<Value>,
    /// The subject of its events.
    subject: Option<String>,
    /// What becomes of missed ticks: `once` (the last of them, the default), `skip` or `all`.
    #[serde(default = "once")]
    missed: String,
    /// Each event is stored up to this much later than its tick, always equally much for the same tick.
    #[serde(default)]
    jitter_ms: u64,
    /// Whether it does not tick for now.
    #[serde(default)]
    paused: bool,
    /// The version that this replaces; another one is refused.
    version: Option<u64>,
}

fn utc() -> String {
    "UTC".into()
}

fn once() -> String {
    "once".into()
}

/// A payload that is nil is one, too.
fn given<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(from).map(Some)
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct PutDone {
    name: String,
    /// Rises with each change.
    version: u64,
    /// The next ticks, in Unix milliseconds.
    next: Vec<u64>,
}

#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct Named {
    name: String,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Deleted {
    name: String,
    deleted: bool,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Ran {
    name: String,
    /// The id of the event that is published.
    id: String,
}

#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct Nothing {}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct All {
    schedules: Vec<One>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct One {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    cron: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    every_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<u64>,
    time_zone: String,
    #[serde(rename = "type")]
    kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<String>,
    payload_bytes: u64,
    missed: &'static str,
    jitter_ms: u64,
    paused: bool,
    version: u64,
    /// Who changed it last.
    by: String,
    /// When, in Unix milliseconds on the server.
    changed_at: u64,
    /// The next ticks, in Unix milliseconds.
    next: Vec<u64>,
    /// The last event that was stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    last: Option<Last>,
    /// Events that were stored so far.
    stored: u64,
    /// Ticks that were missed, and that no event was stored for.
    left_out: u64,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Last {
    /// In Unix milliseconds.
    tick: u64,
    stream: String,
    /// Left out where an outbox moves the event to the stream's slot: its entry there is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    entry: Option<String>,
    /// When it was stored, in Unix milliseconds on the server.
    at: u64,
}

impl From<Stored> for Last {
    fn from(stored: Stored) -> Self {
        Self {
            tick: stored.tick,
            stream: stored.stream,
            entry: stored.entry,
            at: stored.at,
        }
    }
}

impl From<Listed> for One {
    fn from(listed: Listed) -> Self {
        let (definition, standing) = (listed.definition, listed.standing);
        Self {
            name: listed.name,
            cron: definition.when.cron,
            every_ms: definition.when.every_ms,
            at: definition.when.at,
            time_zone: definition.when.time_zone,
            kind: definition.kind,
            subject: definition.subject,
            payload_bytes: definition.payload_bytes,
            missed: definition.missed.as_str(),
            jitter_ms: definition.jitter_ms,
            paused: definition.paused,
            version: standing.version,
            by: standing.by,
            changed_at: standing.changed,
            next: listed.next,
            last: standing.last.map(Last::from),
            stored: standing.stored,
            left_out: standing.left_out,
        }
    }
}

pub(super) async fn put(
    context: Context,
    asked: PutSchedule,
    services: State<Services>,
) -> Result<PutDone, HandlerError> {
    let (by, name) = (
        context.event().source().unwrap_or_default(),
        asked.name.clone(),
    );
    let is_whole = asked.kind.is_some()
        || asked.cron.is_some()
        || asked.every_ms.is_some()
        || asked.at.is_some();
    let done = match is_whole {
        true => {
            let version = asked.version;
            services.schedules.put(&asked.wanted()?, version, by).await
        }
        false => {
            let pausing = services
                .schedules
                .pause(&name, asked.paused, asked.version, by);
            pausing.await
        }
    };
    let Put { version, next } = done.map_err(CoordinationError::into_handler_error)?;
    Ok(PutDone {
        name,
        version,
        next,
    })
}

impl PutSchedule {
    fn wanted(self) -> Result<ScheduleDraft, HandlerError> {
        let missing = || HandlerError::invalid_argument("type: missing; the type of its events");
        let missed = Missed::named(&self.missed)
            .ok_or_else(|| HandlerError::invalid_argument("missed: is skip, once or all"))?;
        Ok(ScheduleDraft {
            name: self.name,
            when: When {
                cron: self.cron,
                every_ms: self.every_ms,
                at: self.at,
                time_zone: self.time_zone,
            },
            kind: self.kind.ok_or_else(missing)?,
            payload: self.payload.as_ref().map(encoded),
            subject: self.subject,
            missed,
            jitter_ms: self.jitter_ms,
            paused: self.paused,
        })
    }
}

pub(super) async fn delete(
    context: Context,
    asked: Named,
    services: State<Services>,
) -> Result<Deleted, HandlerError> {
    let by = context.event().source().unwrap_or_default();
    let deleted = services.schedules.delete(&asked.name, by).await;
    Ok(Deleted {
        deleted: deleted.map_err(CoordinationError::into_handler_error)?,
        name: asked.name,
    })
}

pub(super) async fn list(
    _: Context,
    _: Nothing,
    services: State<Services>,
) -> Result<All, HandlerError> {
    let listed = services.schedules.list().await;
    let listed = listed.map_err(CoordinationError::into_handler_error)?;
    Ok(All {
        schedules: listed.into_iter().map(One::from).collect(),
    })
}

/// What it publishes is stored with the commit: once, however often this runs.
pub(super) async fn run(
    context: Context,
    asked: Named,
    services: State<Services>,
) -> Result<Ran, HandlerError> {
    let by = context.event().source().unwrap_or_default();
    let ran = services.schedules.run(&asked.name, by, context.instance());
    let (id, published) = ran.await.map_err(CoordinationError::into_handler_error)?;
    for publication in published {
        context.publish_raw(publication)?;
    }
    Ok(Ran {
        name: asked.name,
        id,
    })
}
