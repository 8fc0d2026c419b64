//! The bare loop: the best that one can write by hand with the same client library.
//!
//! It reads `COUNT` 1000, keeps three batches outstanding, or four where the server is far, pipelines its `XADD`s, of which the last of a
//! batch trims, and sends one variadic `XACK` a batch and stream. It decodes nothing, routes nothing and has no fence: what a
//! worker adds to it is what the worker costs. Only `bench` runs it.

use crate::bench::load::{Load, Race, payload, request_id};
use convoke::connect::connector::{BLOCK, Connector};
use convoke::connect::error::BusError;
use convoke::protocol::entry::EntryId;
use convoke::streams::read;
use redis::aio::MultiplexedConnection;
use redis::{Pipeline, RedisError, Value};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

/// Entries that one read asks for, of all streams together.
pub(crate) const COUNT: usize = 1000;
/// Batches that are read and not yet acknowledged, or published and not yet answered.
pub(crate) const OUTSTANDING: usize = 3;
/// Events that one pipeline publishes: as many as the client's.
pub(crate) const PIPELINE: u64 = 512;
/// A publisher's `time`; what it says does not matter here.
pub(crate) const TIME: &str = "1700000000000";

/// Ids of entries, by stream.
type Batch = Vec<(usize, Vec<EntryId>)>;
type Sent = AbortOnDropHandle<Result<(), BusError>>;

/// Consumes events until all of the race are taken, `most` batches outstanding, and replies to each if asked to.
///
/// # Errors
/// Whatever the server answers.
pub(crate) async fn consume(
    load: &Load,
    connector: &Connector,
    race: &Arc<Race>,
    consumer: &str,
    reply: bool,
    most: usize,
) -> Result<(), BusError> {
    let mut reader = connector.blocking(BLOCK).await?;
    let writer = connector.dedicated().await?;
    let (batches, mut arrived) = mpsc::channel(1);
    let replies_as = consumer;
    let (whole, consumer, taking) = (load.clone(), consumer.to_owned(), race.clone());
    // The next read is under way while a batch is answered.
    let reading = spawned(async move {
        while taking.taken() < taking.total {
            let batch = next(&whole, &mut reader, &consumer).await?;
            taking.take(size(&batch));
            batches.send(batch).await.ok();
        }
        Ok(())
    });
    let mut outstanding: VecDeque<Sent> = VecDeque::new();
    while let Some(batch) = arrived.recv().await {
        if batch.is_empty() {
            continue;
        }
        if outstanding.len() == most
            && let Some(oldest) = outstanding.pop_front()
        {
            ended(oldest).await?;
        }
        let pipe = answer(load, &batch, reply.then_some(replies_as));
        let (mut writer, race) = (writer.clone(), race.clone());
        outstanding.push_back(spawned(async move {
            send(&mut writer, &pipe).await?;
            race.settle(size(&batch));
            Ok(())
        }));
    }
    for sent in outstanding {
        ended(sent).await?;
    }
    ended(reading).await
}

/// Answers requests for as long as it is let.
///
/// # Errors
/// Whatever the server answers.
pub(crate) async fn answer_all(load: &Load, connector: &Connector) -> Result<(), BusError> {
    let mut connection = connector.blocking(BLOCK).await?;
    loop {
        let batch = next(load, &mut connection, "bare").await?;
        if !batch.is_empty() {
            send(&mut connection, &answer(load, &batch, Some("bare"))).await?;
        }
    }
}

/// Publishes requests to a load's first stream, which must be new, and awaits the replies.
#[derive(Debug)]
pub(crate) struct Requester {
    load: Load,
    connection: MultiplexedConnection,
    after: EntryId,
    /// When each one was sent.
    sent: Vec<Instant>,
}

impl Requester {
    /// A requester.
    ///
    /// # Errors
    /// Whatever the server answers.
    pub(crate) async fn new(load: &Load, connector: &Connector) -> Result<Self, BusError> {
        Ok(Self {
            load: load.clone(),
            connection: connector.blocking(BLOCK).await?,
            after: EntryId::default(),
            sent: Vec::new(),
        })
    }

    /// Makes this many requests, this many at a time; how long each took, as their replies came.
    ///
    /// # Errors
    /// Whatever the server answers.
    pub(crate) async fn ask(
        &mut self,
        requests: usize,
        in_flight: usize,
    ) -> Result<Vec<Duration>, BusError> {
        let mut times = Vec::with_capacity(requests);
        let first = self.sent.len();
        let data = payload(1, self.load.payload);
        while times.len() < requests {
            let sent = self.sent.len() - first;
            let more = (in_flight + times.len() - sent).min(requests - sent);
            if more > 0 {
                let mut pipe = Pipeline::with_capacity(more);
                for _ in 0..more {
                    self.sent.push(Instant::now());
                    // An id by which the reply tells which one it answers.
                    let id = request_id(self.sent.len() as u64);
                    pipe.cmd("XADD").arg(&self.load.routes[0].events);
                    pipe.arg(id.to_string());
                    pipe.arg("type").arg(&self.load.kinds[0]);
                    pipe.arg("data").arg(&data);
                    pipe.arg("replyto").arg(&self.load.reply_to);
                }
                send(&mut self.connection, &pipe).await?;
            }
            let streams = [(self.load.reply_to.as_str(), self.after)];
            let batches = read::read_after(&mut self.connection, &streams, COUNT, BLOCK).await?;
            let now = Instant::now();
            for entry in batches.iter().flat_map(|batch| &batch.entries) {
                const SHAPE: BusError = BusError::Reply { what: "a request" };
                self.after = entry.id;
                let answers = entry.get("correlationid").and_then(EntryId::parse);
                let asked = answers.and_then(|id| self.sent.get((id.seq as usize).checked_sub(1)?));
                times.push(now - *asked.ok_or(SHAPE)?);
            }
        }
        Ok(times)
    }
}

/// Publishes events one at a time; how long each took.
///
/// # Errors
/// Whatever the server answers.
pub(crate) async fn publish_one_by_one(
    load: &Load,
    connector: &Connector,
    events: u64,
) -> Result<Vec<Duration>, BusError> {
    let mut connection = connector.dedicated().await?;
    let mut times = Vec::with_capacity(events as usize);
    for n in 0..events {
        let began = Instant::now();
        send(&mut connection, &publications(load, n..n + 1)).await?;
        times.push(began.elapsed());
    }
    Ok(times)
}

/// Publishes events in pipelines, three of them outstanding.
///
/// # Errors
/// Whatever the server answers.
pub(crate) async fn publish(
    load: &Load,
    connector: &Connector,
    events: u64,
) -> Result<(), BusError> {
    let connection = connector.dedicated().await?;
    let mut outstanding: VecDeque<Sent> = VecDeque::new();
    let mut done = 0;
    while done < events {
        if outstanding.len() == OUTSTANDING
            && let Some(oldest) = outstanding.pop_front()
        {
            ended(oldest).await?;
        }
        let end = events.min(done + PIPELINE);
        let (pipe, mut connection) = (publications(load, done..end), connection.clone());
        outstanding.push_back(spawned(async move { send(&mut connection, &pipe).await }));
        done = end;
    }
    for sent in outstanding {
        ended(sent).await?;
    }
    Ok(())
}

fn publications(load: &Load, events: std::ops::Range<u64>) -> Pipeline {
    let mut pipe = Pipeline::with_capacity((events.end - events.start) as usize);
    for n in events {
        pipe.cmd("XADD").arg(&load.routes[0].events).arg("*");
        pipe.arg("type").arg(&load.kinds[0]);
        pipe.arg("data").arg(payload(n, load.payload));
        pipe.arg("time").arg(TIME);
    }
    pipe
}

/// The type of the reply to an event of that type.
pub(crate) fn reply_kind(kind: &str) -> String {
    format!("{kind}.result")
}

fn answer(load: &Load, batch: &Batch, replies_as: Option<&str>) -> Pipeline {
    let mut pipe = Pipeline::with_capacity(size(batch) as usize + batch.len());
    for (at, (stream, entries)) in batch.iter().enumerate() {
        if let Some(consumer) = replies_as {
            let kind = reply_kind(&load.kinds[*stream]);
            for (nth, entry) in entries.iter().enumerate() {
                pipe.cmd("XADD").arg(&load.reply_to);
                if at + 1 == batch.len() && nth + 1 == entries.len() {
                    pipe.arg("MAXLEN").arg("~").arg(load.history);
                }
                pipe.arg("*");
                pipe.arg("correlationid").arg(entry.to_string());
                pipe.arg("type").arg(&kind);
                pipe.arg("status").arg("ok").arg("source").arg(consumer);
                pipe.arg("time").arg(entry.ms);
                pipe.arg("data").arg(&[0xc0][..]);
            }
        }
        let acknowledge = pipe.cmd("XACK");
        acknowledge.arg(&load.routes[*stream].events);
        acknowledge.arg(&load.group);
        for entry in entries {
            acknowledge.arg(entry.to_string());
        }
    }
    pipe
}

fn size(batch: &Batch) -> u64 {
    batch.iter().map(|(_, ids)| ids.len() as u64).sum()
}

/// Sends a pipeline whose replies do not matter except for the last.
async fn send(connection: &mut MultiplexedConnection, pipe: &Pipeline) -> Result<(), BusError> {
    let last = pipe.len() - 1;
    let replies = connection.send_packed_commands(pipe, last, 1).await?;
    match replies.into_iter().next() {
        Some(Value::ServerError(error)) => Err(RedisError::from(error).into()),
        _ => Ok(()),
    }
}

/// The ids of the next new entries. The values are walked where the client library left them: that is
/// all that this loop needs of them.
async fn next(
    load: &Load,
    connection: &mut MultiplexedConnection,
    consumer: &str,
) -> Result<Batch, BusError> {
    const SHAPE: BusError = BusError::Reply { what: "XREADGROUP" };
    let mut command = redis::cmd("XREADGROUP");
    command.arg("GROUP").arg(&load.group).arg(consumer);
    command.arg("COUNT").arg((COUNT / load.routes.len()).max(1));
    command.arg("BLOCK").arg(BLOCK.as_millis() as u64);
    command.arg("STREAMS");
    for route in &load.routes {
        command.arg(&route.events);
    }
    for _ in &load.routes {
        command.arg(">");
    }
    let streams = match connection.send_packed_command(&command).await? {
        Value::Nil => return Ok(Vec::new()),
        Value::ServerError(error) => return Err(RedisError::from(error).into()),
        Value::Array(streams) => streams,
        _ => return Err(SHAPE),
    };
    // They come in the order in which they were asked for.
    let mut names = load.routes.iter().enumerate();
    let batches = streams.iter().map(|stream| {
        let Value::Array(pair) = stream else {
            return Err(SHAPE);
        };
        let [Value::BulkString(name), Value::Array(entries)] = &pair[..] else {
            return Err(SHAPE);
        };
        let found = names.find(|(_, route)| route.events.as_bytes() == name);
        let ids = entries.iter().map(|entry| match entry {
            Value::Array(pair) => match pair.first() {
                Some(Value::BulkString(id)) => EntryId::parse(id).ok_or(SHAPE),
                _ => Err(SHAPE),
            },
            _ => Err(SHAPE),
        });
        Ok((found.ok_or(SHAPE)?.0, ids.collect::<Result<Vec<_>, _>>()?))
    });
    batches.collect()
}

fn spawned(work: impl Future<Output = Result<(), BusError>> + Send + 'static) -> Sent {
    AbortOnDropHandle::new(tokio::spawn(work))
}

async fn ended(task: Sent) -> Result<(), BusError> {
    task.await
        .unwrap_or_else(|_| Err(BusError::Pool("the runtime is going down".into())))
}
