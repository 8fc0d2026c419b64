//! The delay queue as people see it: which events wait for their time, and what can be done about them.
//!
//! An event waits in one of two places only: in the queue, or in its stream. What publishes it at once, changes
//! it or drops it does so in one atomic step, and only if it still waits as it was seen; so each may be broken off
//! at any moment and run again. Each step tells on the broadcast what it did: `operator.replayed`,
//! `operator.changed`, `operator.dropped`.

use crate::connect::connector::Connector;
use crate::connect::error::BusError;
use crate::connect::script::{script, script_with};
use crate::operator::inspect;
use crate::operator::replay::{Operator, Step, edit};
use crate::protocol::event::{Entry, EntryId, payload_of};
use crate::protocol::keys::{Keys, StreamName};
use crate::streams::delay::{self, LOOK, MEMBER};
use crate::streams::made;
use redis::aio::ConnectionLike;
use redis::{Script, ScriptInvocation, Value};
use std::sync::LazyLock;

static RUN: LazyLock<Script> =
    LazyLock::new(|| script_with(&[MEMBER], include_str!("delayed_run.lua")));
static CHANGE: LazyLock<Script> = LazyLock::new(|| script(include_str!("delayed_change.lua")));
static DROP: LazyLock<Script> = LazyLock::new(|| script(include_str!("delayed_drop.lua")));

/// Members on a page.
const PAGE: usize = 250;

/// A delay queue, and the stream that its events enter.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub struct Queue {
    /// The stream.
    pub stream: StreamName,
    /// The queue's key.
    pub key: String,
}

impl Queue {
    /// The queue of a stream; `None` if it has none, as streams of dead letters.
    pub fn of(keys: &Keys, stream: &StreamName) -> Option<Self> {
        Some(Self {
            key: keys.delay_queue(stream)?,
            stream: stream.clone(),
        })
    }
}

/// The delay queues of the namespace, sorted by their streams. Walks all keys of the server, or of each node of the
/// cluster, in small steps.
///
/// # Errors
/// `Bus`.
pub async fn queues(connector: &Connector, keys: &Keys) -> Result<Vec<Queue>, BusError> {
    queues_within(&connector.nodes().await?, keys).await
}

/// The same of these nodes: of those of a cluster that answer, where not all do.
///
/// # Errors
/// `Bus`.
#[doc(hidden)]
pub async fn queues_within(nodes: &[Connector], keys: &Keys) -> Result<Vec<Queue>, BusError> {
    let queue = |key: &str| Queue::of(keys, &keys.fed_by(key)?);
    inspect::scan(nodes, keys, "zset", queue).await
}

/// How much waits in a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Depth {
    /// Events in it.
    pub count: u64,
    /// When the first of them is due (Unix ms, server clock).
    pub next_due_ms: Option<u64>,
}

/// How much waits in each of these queues, and when its first event is due.
///
/// # Errors
/// `Bus`.
pub async fn depths(
    connection: &mut impl ConnectionLike,
    queues: &[&Queue],
) -> Result<Vec<Depth>, BusError> {
    let mut ask = redis::pipe();
    for queue in queues {
        ask.cmd("ZCARD").arg(&queue.key);
    }
    // Somebody's key of another type stands in the way of its own queue only.
    ask.ignore_errors();
    let counts: Vec<Value> = match queues.is_empty() {
        true => Vec::new(),
        false => ask.query_async(connection).await?,
    };
    let mut depths = Vec::with_capacity(queues.len());
    for (queue, count) in queues.iter().zip(counts) {
        let count = match count {
            Value::Int(count) => u64::try_from(count).unwrap_or(0),
            _ => 0,
        };
        let first = match count {
            0 => None,
            _ => first(connection, queue).await?,
        };
        depths.push(Depth {
            count,
            next_due_ms: first,
        });
    }
    Ok(depths)
}

/// When the first of a queue is due; `None` also to a user who may not load the script that tells it, while
/// nobody else has.
async fn first(
    connection: &mut impl ConnectionLike,
    queue: &Queue,
) -> Result<Option<u64>, BusError> {
    match page(connection, &queue.key, &After::default(), 1, 1).await {
        Ok(shown) => Ok(shown.first().map(|(due, ..)| due_ms(*due))),
        Err(error) if error.code() == Some("NOPERM") => Ok(None),
        Err(error) => Err(error),
    }
}

/// An event that waits.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Waiting {
    /// When it is due (Unix ms, server clock).
    pub due_ms: u64,
    /// What tells it from equal ones: the entry id that it had, or one that its publisher made up; empty if
    /// the member is no event.
    pub token: String,
    /// Its bytes.
    pub bytes: u64,
    /// The event, without an id of an entry; `None` if the member is no event, or larger than any event is.
    pub event: Option<Entry>,
    member: Vec<u8>,
}

impl Waiting {
    /// The event's id: its own, or that of the entry that it was.
    pub fn id(&self) -> String {
        let own = self.event.as_ref().and_then(|event| event.get("id"));
        own.map_or_else(
            || self.token.clone(),
            |id| String::from_utf8_lossy(id).into_owned(),
        )
    }

    /// Whether it was shown whole, so that it can be changed.
    pub fn is_whole(&self) -> bool {
        self.member.len() as u64 == self.bytes
    }
}

fn due_ms(due: f64) -> u64 {
    due.max(0.0) as u64
}

type Shown = (f64, u64, Vec<u8>);

/// Where the next page begins: behind the last member that was shown whole, and what was cut behind it.
#[derive(Clone, Debug, Default)]
struct After {
    due: String,
    member: Vec<u8>,
    cut: usize,
}

async fn page(
    connection: &mut impl ConnectionLike,
    queue: &str,
    after: &After,
    count: usize,
    limit: usize,
) -> Result<Vec<Shown>, BusError> {
    let mut call = LOOK.prepare_invoke();
    call.key(queue);
    call.arg(after.due.as_str())
        .arg(after.member.as_slice())
        .arg(after.cut);
    let page = call.arg(count).arg(limit).invoke_async(connection).await?;
    Ok(page)
}

/// What waits in a queue, in the order in which it is due, in bounded memory.
#[derive(Debug)]
pub struct DelayedPages {
    queue: String,
    limit: usize,
    after: After,
    is_over: bool,
}

impl DelayedPages {
    /// Begins with what is due first from `due_ms` on (Unix ms). Of a member over `limit` bytes a part is held.
    pub fn of(queue: &Queue, due_ms: u64, limit: usize) -> Self {
        let from = After {
            due: match due_ms {
                0 => String::new(),
                due => due.to_string(),
            },
            ..After::default()
        };
        Self {
            queue: queue.key.clone(),
            limit,
            after: from,
            is_over: false,
        }
    }

    /// The next page; empty at the end.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn next(
        &mut self,
        connection: &mut impl ConnectionLike,
    ) -> Result<Vec<Waiting>, BusError> {
        if self.is_over {
            return Ok(Vec::new());
        }
        let after = &self.after;
        let shown = page(connection, &self.queue, after, PAGE, self.limit).await?;
        if shown.is_empty() {
            self.is_over = true;
            return Ok(Vec::new());
        }
        let whole = |(_, bytes, member): &Shown| member.len() as u64 == *bytes;
        match shown.iter().rposition(whole) {
            Some(at) => {
                self.after = After {
                    due: shown[at].0.to_string(),
                    member: shown[at].2.clone(),
                    cut: shown.len() - 1 - at,
                };
            }
            None => self.after.cut += shown.len(),
        }
        let limit = self.limit;
        Ok(shown.into_iter().map(|one| waiting(one, limit)).collect())
    }
}

fn waiting((due, bytes, member): Shown, limit: usize) -> Waiting {
    let event = delay::decode_member(&member, limit);
    let (token, event) = match event {
        Some((token, fields)) => (token, Some(Entry::new(EntryId::default(), fields))),
        None => (String::new(), None),
    };
    Waiting {
        due_ms: due_ms(due),
        token,
        bytes,
        event,
        member,
    }
}

/// What is to become of events that wait.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct DelayedChange {
    /// Their payload, MessagePack; `None` leaves it as it is.
    pub data: Option<Vec<u8>>,
    /// When they are due (Unix ms, server clock); `None` leaves it as it is.
    pub due_ms: Option<u64>,
}

impl DelayedChange {
    /// What changes nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// With that payload, MessagePack.
    pub fn data(mut self, data: Vec<u8>) -> Self {
        self.data = Some(data);
        self
    }

    /// Due at that time (Unix ms, server clock).
    pub fn due_ms(mut self, due_ms: u64) -> Self {
        self.due_ms = Some(due_ms.min(delay::MAX_DUE));
        self
    }

    /// Whether the event is so already.
    pub fn is_done(&self, waiting: &Waiting) -> bool {
        let same = |data: &Vec<u8>| {
            let held = waiting.event.as_ref().and_then(payload_of);
            held.is_some_and(|held| *held == **data)
        };
        self.due_ms.is_none_or(|due| due == waiting.due_ms) && self.data.as_ref().is_none_or(same)
    }

    /// The member that an event is once `by` has changed it.
    fn of(&self, waiting: &Waiting, by: &str) -> Vec<u8> {
        let (Some(event), Some(data)) = (&waiting.event, &self.data) else {
            return waiting.member.clone();
        };
        let mut words: Vec<Vec<u8>> = event.words().map(<[u8]>::to_vec).collect();
        edit(&mut words, data, by);
        delay::encode_member(&waiting.token, &words)
    }
}

impl Operator {
    /// Publishes at once what waits; for each its entry id, `None` for one that waited no more.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn run_delayed(
        &self,
        connection: &mut impl ConnectionLike,
        queue: &Queue,
        events: &[Waiting],
    ) -> Result<Step, BusError> {
        made::ensure_there(connection, self.keys(), &queue.stream.key).await?;
        let mut call = RUN.prepare_invoke();
        call.key(&queue.key).key(&queue.stream.key);
        let told = self.tell(&mut call, &queue.key);
        call.arg(self.run()).arg(self.by());
        for one in events {
            call.arg(one.member.as_slice());
        }
        let step = Step::read(call.invoke_async(connection).await?, events.len())?;
        if !told {
            let moved = events.iter().zip(&step.moved);
            let moved = moved.filter(|(_, to)| to.is_some());
            let tokens = moved.map(|(one, _)| one.token.clone()).collect();
            let fact = ("operator.replayed", Some("delayed"), queue.key.as_str());
            self.store(connection, fact, Some(&queue.stream.key), tokens)
                .await?;
        }
        Ok(step)
    }

    /// Changes what waits; says for each whether it still waited as it was seen.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn change_delayed(
        &self,
        connection: &mut impl ConnectionLike,
        queue: &Queue,
        events: &[Waiting],
        change: &DelayedChange,
    ) -> Result<Vec<bool>, BusError> {
        let mut call = CHANGE.prepare_invoke();
        call.key(&queue.key);
        self.marks(&mut call, queue, events);
        let told = self.tell(&mut call, &queue.key);
        let due = change.due_ms.map(|due| due.to_string());
        call.arg(self.run()).arg(self.by());
        call.arg(due.unwrap_or_default());
        for one in events {
            call.arg(one.token.as_str())
                .arg(one.member.as_slice())
                .arg(change.of(one, self.by()));
        }
        let fact = ("operator.changed", change.due_ms);
        self.settle_delayed(connection, call, told, queue, events, fact)
            .await
    }

    /// Takes out for good what waits; says for each whether it still waited as it was seen.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn drop_delayed(
        &self,
        connection: &mut impl ConnectionLike,
        queue: &Queue,
        events: &[Waiting],
    ) -> Result<Vec<bool>, BusError> {
        let mut call = DROP.prepare_invoke();
        call.key(&queue.key);
        self.marks(&mut call, queue, events);
        let told = self.tell(&mut call, &queue.key);
        call.arg(self.run()).arg(self.by());
        for one in events {
            call.arg(one.token.as_str()).arg(one.member.as_slice());
        }
        let fact = ("operator.dropped", None);
        self.settle_delayed(connection, call, told, queue, events, fact)
            .await
    }

    /// The keys that mark the events' ids within the deduplication window.
    fn marks(&self, call: &mut ScriptInvocation<'_>, queue: &Queue, events: &[Waiting]) {
        let stream = &queue.stream;
        for one in events {
            call.key(self.keys().dedup(&stream.part, stream.partition, &one.id()));
        }
    }

    async fn settle_delayed(
        &self,
        connection: &mut impl ConnectionLike,
        call: ScriptInvocation<'_>,
        told: bool,
        queue: &Queue,
        events: &[Waiting],
        (kind, due): (&str, Option<u64>),
    ) -> Result<Vec<bool>, BusError> {
        let done: Vec<bool> = call.invoke_async(connection).await?;
        if !told {
            let done = events.iter().zip(&done).filter(|(_, there)| **there);
            let tokens = done.map(|(one, _)| one.token.clone()).collect();
            let fact = (kind, Some("delayed"), queue.key.as_str());
            self.store_due(connection, fact, None, tokens, due).await?;
        }
        Ok(done)
    }
}
