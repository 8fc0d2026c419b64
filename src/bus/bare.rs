//! The bare loop: the best that one can write by hand with the same client library.
//!
//! It reads `COUNT` 1000, keeps three batches outstanding, pipelines its `XADD`s and sends one
//! variadic `XACK` a batch. It decodes nothing, routes nothing and has no fence: what a worker adds
//! to it is what the worker costs. Only `bench` runs it.

use super::connect::{BLOCK, Connector};
use super::entry::EntryId;
use super::error::BusError;
use super::keys::Route;
use super::read;
use redis::aio::MultiplexedConnection;
use redis::{Pipeline, RedisError, Value};
use std::collections::VecDeque;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Entries that one read asks for.
const COUNT: usize = 1000;
/// Batches that are read and not yet acknowledged.
const OUTSTANDING: usize = 3;
/// Events that one pipeline publishes.
const FILL: u64 = 1000;

/// What the bare loop works on.
#[derive(Clone, Debug)]
pub struct Bare {
    /// The keys.
    pub route: Route,
    /// The stream that gets replies.
    pub reply_to: String,
    /// The consumer group.
    pub group: String,
    /// The type of the events.
    pub kind: String,
    /// About how many replies are kept.
    pub history: u64,
}

impl Bare {
    /// Publishes events for a loop or a worker to consume; with `replyto`, if they are requests.
    ///
    /// # Errors
    /// Whatever the server answers.
    pub async fn fill(
        &self,
        connector: &Connector,
        events: u64,
        request: bool,
    ) -> Result<(), BusError> {
        let mut connection = connector.dedicated().await?;
        read::ensure_group(&mut connection, &self.route.events, &self.group).await?;
        let mut left = events;
        while left > 0 {
            let mut pipe = Pipeline::new();
            for _ in 0..left.min(FILL) {
                let data = payload(left);
                left -= 1;
                let add = pipe.cmd("XADD").arg(&self.route.events).arg("*");
                add.arg("type").arg(&self.kind).arg("data").arg(&data);
                if request {
                    pipe.arg("replyto").arg(&self.reply_to);
                }
            }
            connection
                .send_packed_commands(&pipe, 0, pipe.len())
                .await?;
        }
        Ok(())
    }

    /// Consumes that many events; the time is from the first batch to the last acknowledgement.
    ///
    /// # Errors
    /// Whatever the server answers.
    pub async fn consume(
        &self,
        connector: &Connector,
        events: u64,
        reply: bool,
    ) -> Result<Duration, BusError> {
        let mut reader = connector.blocking(BLOCK).await?;
        let writer = connector.dedicated().await?;
        let (batches, mut read) = mpsc::channel(1);
        let (stream, group) = (self.route.events.clone(), self.group.clone());
        // The next read is under way while a batch is answered.
        let reading = tokio::spawn(async move {
            let mut seen = 0;
            while seen < events {
                let batch = next(&mut reader, &stream, &group).await?;
                seen += batch.len() as u64;
                batches.send(batch).await.ok();
            }
            Ok::<(), BusError>(())
        });
        let mut outstanding: VecDeque<JoinHandle<Result<(), BusError>>> = VecDeque::new();
        let mut began = None;
        while let Some(batch) = read.recv().await {
            if batch.is_empty() {
                continue;
            }
            began.get_or_insert_with(Instant::now);
            if outstanding.len() == OUTSTANDING {
                settle(outstanding.pop_front()).await?;
            }
            let pipe = self.answer(&batch, reply);
            let mut writer = writer.clone();
            outstanding.push_back(tokio::spawn(async move {
                let length = pipe.len();
                writer.send_packed_commands(&pipe, length - 1, 1).await?;
                Ok(())
            }));
        }
        settle(Some(reading)).await?;
        while let Some(batch) = outstanding.pop_front() {
            settle(Some(batch)).await?;
        }
        Ok(began.map_or(Duration::ZERO, |began| began.elapsed()))
    }

    /// Answers requests one at a time until so many were answered.
    ///
    /// # Errors
    /// Whatever the server answers.
    pub async fn answer_one_by_one(
        &self,
        connector: &Connector,
        requests: u64,
    ) -> Result<(), BusError> {
        let mut connection = connector.blocking(BLOCK).await?;
        read::ensure_group(&mut connection, &self.route.events, &self.group).await?;
        let mut seen = 0;
        while seen < requests {
            let batch = next(&mut connection, &self.route.events, &self.group).await?;
            if batch.is_empty() {
                continue;
            }
            seen += batch.len() as u64;
            let pipe = self.answer(&batch, true);
            let length = pipe.len();
            connection
                .send_packed_commands(&pipe, length - 1, 1)
                .await?;
        }
        Ok(())
    }

    /// Publishes requests one at a time and awaits each reply; the times of all.
    ///
    /// # Errors
    /// Whatever the server answers.
    pub async fn request_one_by_one(
        &self,
        connector: &Connector,
        requests: u64,
    ) -> Result<Vec<Duration>, BusError> {
        let mut connection = connector.blocking(BLOCK).await?;
        let mut after = EntryId::default();
        let mut times = Vec::with_capacity(requests as usize);
        let data = payload(1);
        while (times.len() as u64) < requests {
            let began = Instant::now();
            let mut add = redis::cmd("XADD");
            add.arg(&self.route.events).arg("*");
            add.arg("type").arg(&self.kind).arg("data").arg(&data);
            add.arg("replyto").arg(&self.reply_to);
            connection.send_packed_command(&add).await?;
            after = self.next_reply(&mut connection, after).await?;
            times.push(began.elapsed());
        }
        Ok(times)
    }

    async fn next_reply(
        &self,
        connection: &mut MultiplexedConnection,
        after: EntryId,
    ) -> Result<EntryId, BusError> {
        loop {
            let streams = [(self.reply_to.as_str(), after)];
            let batches = read::read_after(connection, &streams, 1, BLOCK).await?;
            if let Some(entry) = batches.first().and_then(|batch| batch.entries.last()) {
                return Ok(entry.id);
            }
        }
    }

    fn answer(&self, entries: &[EntryId], reply: bool) -> Pipeline {
        let mut pipe = Pipeline::with_capacity(entries.len() + 1);
        if reply {
            for entry in entries {
                pipe.cmd("XADD").arg(&self.reply_to).arg("MAXLEN").arg("~");
                pipe.arg(self.history).arg("*");
                pipe.arg("correlationid").arg(entry.to_string());
                pipe.arg("type").arg("bench.reply.result");
                pipe.arg("status").arg("ok").arg("source").arg("bare");
                pipe.arg("time").arg(entry.ms);
                pipe.arg("data").arg(&[0xc0][..]);
            }
        }
        let acknowledge = pipe.cmd("XACK").arg(&self.route.events).arg(&self.group);
        for entry in entries {
            acknowledge.arg(entry.to_string());
        }
        pipe
    }
}

/// The ids of the next new entries. The values are walked where the client library left them: that is
/// all that this loop needs of them.
async fn next(
    connection: &mut MultiplexedConnection,
    stream: &str,
    group: &str,
) -> Result<Vec<EntryId>, BusError> {
    const SHAPE: BusError = BusError::Reply { what: "XREADGROUP" };
    let mut command = redis::cmd("XREADGROUP");
    command.arg("GROUP").arg(group).arg("bare");
    command.arg("COUNT").arg(COUNT);
    command.arg("BLOCK").arg(BLOCK.as_millis() as u64);
    command.arg("STREAMS").arg(stream).arg(">");
    let entries = match connection.send_packed_command(&command).await? {
        Value::Nil => return Ok(Vec::new()),
        Value::ServerError(error) => return Err(RedisError::from(error).into()),
        Value::Array(mut streams) => match streams.pop() {
            Some(Value::Array(mut pair)) => pair.pop(),
            _ => None,
        },
        _ => None,
    };
    let Some(Value::Array(entries)) = entries else {
        return Err(SHAPE);
    };
    let ids = entries.iter().map(|entry| match entry {
        Value::Array(pair) => match pair.first() {
            Some(Value::BulkString(id)) => EntryId::parse(id).ok_or(SHAPE),
            _ => Err(SHAPE),
        },
        _ => Err(SHAPE),
    });
    ids.collect()
}

async fn settle(batch: Option<JoinHandle<Result<(), BusError>>>) -> Result<(), BusError> {
    match batch {
        Some(batch) => batch
            .await
            .unwrap_or(Err(BusError::Pool("the runtime is going down".into()))),
        None => Ok(()),
    }
}

/// The MessagePack of `{n, text}`.
fn payload(n: u64) -> Vec<u8> {
    let mut data = vec![0x82, 0xa1, b'n', 0xcf];
    data.extend_from_slice(&n.to_be_bytes());
    data.extend_from_slice(&[0xa4, b't', b'e', b'x', b't', 0xb0]);
    data.extend_from_slice(b"sixteen letters.");
    data
}
