//! `system.get_state`, in two patterns ([`pattern`](crate::protocol::pattern)).

mod hybrid;

use crate::builtin::Services;
use crate::builtin::system::quorum_vote::{StatusName, decoded};
use crate::builtin::task::Shown;
use crate::connect::memory::Together;
use crate::connect::reach::Away;
use crate::coordination::ballots::ballot::Ballot;
use crate::coordination::batches::batch::Batch;
use crate::coordination::error::CoordinationError;
use crate::coordination::instances::instance::Instance;
use crate::coordination::instances::roster::{Condition, Detail};
use crate::coordination::view::{self, MAX_RECENT, StreamSize};
use crate::handler::state;
use crate::protocol::event::Entry;
use crate::protocol::pattern::{Pattern, Patterned};
use crate::{Context, HandlerError};
use rmpv::Value;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

pub(crate) use hybrid::put_together;

/// Instances in one answer.
const MAX_INSTANCES: usize = 1000;
/// Batches in one answer.
const MAX_BATCHES: usize = 100;
/// Tasks in one answer.
const MAX_TASKS: usize = 100;
/// Decisions in one answer.
const MAX_DECISIONS: usize = 100;
/// How long each node of a cluster has to answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// Nodes that are named of those that do not answer.
const AWAY: usize = 16;

#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct GetState {
    /// How many of the latest facts; at most 100.
    #[serde(default = "ten")]
    recent: usize,
}

fn ten() -> usize {
    10
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(super) struct Snapshot {
    /// Of the instances, the leader, tasks, batches and decisions: it rises with each change of what is told
    /// of them, `last_seen` aside, and never falls. The answer is of this version or a later one.
    version: u64,
    /// The version of the worker that answers.
    worker_version: Cow<'static, str>,
    /// When, in Unix milliseconds on the server.
    at: u64,
    /// How long ago the leader put this together, in ms, where it does so.
    #[serde(skip_serializing_if = "Option::is_none")]
    merged_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    leader: Option<String>,
    /// By id; at most 1000, the healthy ones being left out first.
    instances: Vec<Seen>,
    /// How many instances are known, listed or not.
    instances_total: u64,
    /// The batches that went on last; at most 100.
    batches: Vec<BatchState>,
    tasks: TasksSeen,
    /// The latest ballots; at most 100.
    decisions: Vec<Decision>,
    /// The streams that workers of now or lately read or write; at most 1000.
    streams: Vec<Stream>,
    /// The latest facts, the last one first.
    recent_events: Vec<Fact>,
    /// What the server uses of its memory, or all nodes of a cluster together; nil if it does not tell.
    redis: Option<Memory>,
    /// Nodes of a cluster that do not answer: their streams and their memory are missing. At most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    unreachable: Vec<Unreachable>,
    /// In which pattern the one who answers answers system events of which there are several.
    patterns: BTreeMap<Cow<'static, str>, Cow<'static, str>>,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Memory {
    used_bytes: u64,
    /// Nil: no limit.
    limit_bytes: Option<u64>,
    /// How many nodes it is of, where there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nodes: Option<u64>,
    /// Which part of its limit the fullest node uses, and where that is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fullest: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fullest_node: Option<String>,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Unreachable {
    node: String,
    error: String,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct TasksSeen {
    pending: u64,
    assigned: u64,
    /// Since ever.
    completed: u64,
    /// Since ever.
    failed: u64,
    /// Since ever.
    cancelled: u64,
    /// The assigned, the waiting and the finished, at the moment of the counts; at most 100.
    items: Vec<Shown>,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Seen {
    id: String,
    status: Health,
    roles: Vec<String>,
    capacity: u32,
    load: f64,
    incarnation: u64,
    registered_at: u64,
    last_seen: u64,
    ttl_ms: u64,
    /// When its process began.
    started_at: u64,
    /// How many other processes had the id before this one.
    restarts: u64,
    /// Whether an event registered it, and not its own process.
    external: bool,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Health {
    Healthy,
    Suspect,
    Lost,
}

impl Seen {
    fn of((condition, instance): (Condition, Instance)) -> Self {
        Self {
            status: match condition {
                Condition::Healthy => Health::Healthy,
                Condition::Suspect => Health::Suspect,
                Condition::Lost => Health::Lost,
            },
            id: instance.id,
            roles: instance.roles,
            capacity: instance.capacity,
            load: instance.load,
            incarnation: instance.incarnation,
            registered_at: instance.registered_at,
            last_seen: instance.last_seen,
            ttl_ms: instance.ttl_ms,
            started_at: instance.started_at,
            restarts: instance.restarts,
            external: !instance.sealed,
        }
    }
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct BatchState {
    batch_id: String,
    item_type: String,
    /// `exclusive` or `fan_out`.
    mode: Cow<'static, str>,
    /// `running` or `completed`.
    status: Cow<'static, str>,
    /// Who holds it, or held it last.
    processor_id: String,
    items_processed: u64,
    items_failed: u64,
    total: u64,
    fence: u64,
    started_at: u64,
    updated_at: u64,
}

impl Memory {
    fn of(told: Together) -> Self {
        let (fullest_node, fullest) = told.fullest.unzip();
        Self {
            used_bytes: told.memory.used,
            limit_bytes: Some(told.memory.limit).filter(|limit| *limit > 0),
            nodes: (told.nodes > 1).then_some(told.nodes as u64),
            fullest,
            fullest_node,
        }
    }
}

impl Unreachable {
    fn of(away: &Away) -> Self {
        Self {
            node: away.node.clone(),
            error: away.error.clone(),
        }
    }
}

impl From<Batch> for BatchState {
    fn from(batch: Batch) -> Self {
        Self {
            batch_id: batch.id,
            item_type: batch.item_type,
            mode: batch.mode.as_str().into(),
            status: batch.status.as_str().into(),
            processor_id: batch.processor_id,
            items_processed: batch.processed,
            items_failed: batch.failed,
            total: batch.total,
            fence: batch.fence,
            started_at: batch.started_at,
            updated_at: batch.updated_at,
        }
    }
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Decision {
    decision: String,
    status: StatusName,
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<String>,
    #[serde(
        default,
        deserialize_with = "there",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "serde_json::Value")]
    final_decision: Option<Value>,
    vote_count: u64,
    /// Votes for the value that has most of them.
    leading: u64,
    quorum: u64,
    electorate: u64,
    opened_at: u64,
    expires_at: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    ended_at: Option<u64>,
}

/// What is there may be nil.
fn there<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(value).map(Some)
}

impl Decision {
    fn of(ballot: Ballot) -> Result<Self, HandlerError> {
        Ok(Self {
            final_decision: ballot.value.as_deref().map(decoded).transpose()?,
            decision: ballot.decision,
            status: ballot.status.into(),
            role: ballot.role,
            vote_count: ballot.vote_count,
            leading: ballot.leading,
            quorum: ballot.quorum,
            electorate: ballot.electorate,
            opened_at: ballot.opened_at,
            expires_at: ballot.expires_at,
            ended_at: ballot.ended_at,
        })
    }
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Stream {
    name: String,
    length: u64,
    /// Entries that are delivered and not acknowledged, in all groups together.
    pending: u64,
    /// Entries that the group furthest behind has yet to read; nil without a group, or if the
    /// server cannot tell.
    lag: Option<u64>,
}

impl From<StreamSize> for Stream {
    fn from(size: StreamSize) -> Self {
        Self {
            name: size.name,
            length: size.length,
            pending: size.pending,
            lag: size.lag,
        }
    }
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Fact {
    id: String,
    r#type: String,
    /// Unix milliseconds on the server.
    time: u64,
    /// Nil if it is no MessagePack value, or over 64 KiB.
    #[schemars(with = "serde_json::Value")]
    data: Value,
}

impl Fact {
    fn of(entry: &Entry) -> Self {
        let text = |name| String::from_utf8_lossy(entry.get(name).unwrap_or_default());
        Self {
            id: entry.id.to_string(),
            r#type: text("type").into_owned(),
            time: text("time").parse().unwrap_or(entry.id.ms),
            data: view::payload(entry).unwrap_or(Value::Nil),
        }
    }
}

pub(super) async fn get_state(
    _: Context,
    event: GetState,
    services: state::State<Services>,
) -> Result<Snapshot, HandlerError> {
    if event.recent > MAX_RECENT {
        let recent = event.recent;
        return Err(HandlerError::invalid_argument(format!(
            "recent: {recent} is more than {MAX_RECENT}"
        )));
    }
    let began = Instant::now();
    let pattern = services.patterns.of(Patterned::State);
    let kept = match pattern {
        Pattern::Hybrid => hybrid::answer(&services, event.recent).await.ok().flatten(),
        _ => None,
    };
    let answer = match kept {
        Some(kept) => Ok(kept),
        // Where nobody keeps one, whoever is asked looks.
        None => Box::pin(look(&services, event.recent)).await,
    };
    let of = (Patterned::State, pattern);
    services.patterns.answered(of, began, &answer, |state| {
        Some(Duration::from_millis(state.merged_ms.unwrap_or(0)))
    });
    answer
}

/// Looks now; tells that many of the latest facts.
async fn look(services: &Services, recent: usize) -> Result<Snapshot, HandlerError> {
    let view = &services.view;
    // First: what changes meanwhile is of a later version.
    let version = view.version().await;
    let version = version.map_err(CoordinationError::into_handler_error)?;
    let reach = view.reach(PATIENCE).await;
    let reach = reach.map_err(CoordinationError::into_handler_error)?;
    let instances = &services.instances;
    let batches = &services.batches;
    let ballots = &services.ballots;
    let tasks = &services.tasks;
    let (leader, known, (counts, items), batches, decisions, streams, facts, memory) =
        tokio::try_join!(
            instances.leader(),
            instances.known(Detail::Brief, MAX_INSTANCES),
            tasks.snapshot(None, MAX_TASKS),
            batches.list(MAX_BATCHES),
            ballots.list(MAX_DECISIONS),
            view.streams(&reach),
            view.recent(recent),
            view.memory(&reach),
        )
        .map_err(CoordinationError::into_handler_error)?;
    let decisions: Result<Vec<_>, _> = decisions.into_iter().map(Decision::of).collect();
    Ok(Snapshot {
        version,
        worker_version: env!("CARGO_PKG_VERSION").into(),
        at: known.at,
        merged_ms: None,
        leader,
        instances: known.listed.into_iter().map(Seen::of).collect(),
        instances_total: known.total,
        batches: batches.into_iter().map(BatchState::from).collect(),
        tasks: TasksSeen {
            pending: counts.pending,
            assigned: counts.assigned,
            completed: counts.completed,
            failed: counts.failed,
            cancelled: counts.cancelled,
            items: items.into_iter().map(Shown::from).collect(),
        },
        decisions: decisions?,
        streams: streams.into_iter().map(Stream::from).collect(),
        recent_events: facts.iter().map(Fact::of).collect(),
        redis: memory.map(Memory::of),
        unreachable: reach.away().take(AWAY).map(Unreachable::of).collect(),
        patterns: patterns_of(services),
    })
}

/// In which pattern this worker answers what.
fn patterns_of(services: &Services) -> BTreeMap<Cow<'static, str>, Cow<'static, str>> {
    let of = |event: Patterned| {
        (
            event.as_str().into(),
            services.patterns.of(event).as_str().into(),
        )
    };
    Patterned::ALL.map(of).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decision_is_kept_as_it_was_seen_whatever_was_decided() {
        for value in [None, Some(Value::Nil), Some(true.into())] {
            let seen = Decision {
                decision: "d".into(),
                status: StatusName::Decided,
                role: None,
                final_decision: value.clone(),
                vote_count: 2,
                leading: 2,
                quorum: 2,
                electorate: 3,
                opened_at: 1,
                expires_at: 2,
                ended_at: None,
            };
            let bytes = rmp_serde::to_vec_named(&seen).unwrap();
            let kept: Decision = rmp_serde::from_slice(&bytes).unwrap();
            assert_eq!(kept.final_decision, value);
        }
    }
}
