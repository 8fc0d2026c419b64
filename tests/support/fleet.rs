//! Worker processes that can be killed and stopped, and the load that they work on.
//!
//! A worker process is the test binary itself, started again: its test `a_worker_process` runs a
//! worker if the environment says so, and does nothing otherwise.

#![allow(dead_code)] // Each test binary uses a part.

use super::patterns::patterns;
use super::{Redis, users};
use convoke::client::publish::{Outgoing, PublishError};
use convoke::client::{Client, ClientOptions};
use convoke::connect::connector::Connector;
use convoke::protocol::event::{Entry, EntryId};
use convoke::protocol::keys::Keys;
use convoke::settings::{DatabaseUrl, RedisUrl, Settings};
use convoke::streams::read::entries_of;
use convoke::worker::builder::Builder;
use convoke::{Context, HandlerError, Worker};
use redis::aio::MultiplexedConnection;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const URL: &str = "TORTURE_REDIS";
const ID: &str = "TORTURE_ID";
/// Where the database of a worker process is, if it has one.
pub(crate) const DATABASE: &str = "TORTURE_DATABASE";
const CAPACITY: &str = "TORTURE_CAPACITY";
/// How long a worker process lives without a pulse, in ms.
const LIVES: &str = "TORTURE_LIVES_MS";

/// How long an instance lives without a pulse.
pub(crate) const TTL: Duration = Duration::from_secs(1);
/// How long an entry may be idle.
pub(crate) const CLAIM_IDLE: Duration = Duration::from_secs(2);

#[derive(Serialize, Deserialize, JsonSchema)]
pub(crate) struct Work {
    pub(crate) n: u64,
    /// How long it takes; 0 is ready at once.
    pub(crate) ms: u64,
}

pub(crate) async fn work(context: Context, work: Work) -> Result<u64, HandlerError> {
    if work.ms > 0 {
        tokio::time::sleep(Duration::from_millis(work.ms)).await;
    }
    context.publish("effect.made", &work.n)?;
    Ok(work.n)
}

/// The body of the test `a_worker_process`: a worker with those handlers.
pub(crate) fn worker_process(with: impl FnOnce(Builder) -> Builder) {
    let (Ok(url), Ok(id)) = (std::env::var(URL), std::env::var(ID)) else {
        return;
    };
    let database = std::env::var(DATABASE).unwrap_or_default();
    let number = |name| -> u64 { std::env::var(name).unwrap().parse().unwrap() };
    let capacity = number(CAPACITY);
    let settings = Settings {
        redis_url: RedisUrl::new(url),
        database_url: DatabaseUrl::new(&database),
        max_attempts: if database.is_empty() { 5 } else { 1000 },
        backoff_cap: Duration::from_secs(1),
        id,
        capacity: capacity as u32,
        heartbeat_ttl: Duration::from_millis(number(LIVES)),
        claim_idle: CLAIM_IDLE,
        backoff_base: Duration::from_millis(50),
        // What is tortured here is loss and repetition; poison has tests of its own.
        max_deliveries: 1000,
        stream_history: 10_000_000,
        patterns: patterns(),
        ..Settings::default()
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let worker = with(Worker::builder().settings(settings));
        worker.build().unwrap().run().await.unwrap();
    });
    std::process::exit(0);
}

/// Some worker processes.
pub(crate) struct Fleet {
    url: String,
    database: String,
    lives: Duration,
    workers: Vec<Process>,
    started: usize,
}

struct Process {
    id: String,
    capacity: u32,
    child: Child,
}

impl Fleet {
    pub(crate) fn start(redis: &Redis, size: usize) -> Self {
        Self::with(redis, &vec![10; size])
    }

    /// Workers that keep the ledger in that database.
    pub(crate) fn with_database(redis: &Redis, size: usize, database: &DatabaseUrl) -> Self {
        Self::of(redis, &vec![10; size], database)
    }

    /// Workers on what that URL names.
    pub(crate) fn at(url: &str, size: usize) -> Self {
        Self::on(
            url.to_owned(),
            &vec![10; size],
            &DatabaseUrl::default(),
            TTL,
        )
    }

    /// Workers that live so long without a pulse.
    pub(crate) fn that_live(redis: &Redis, size: usize, lives: Duration) -> Self {
        Self::on(redis.url(), &vec![10; size], &DatabaseUrl::default(), lives)
    }

    /// One worker of each capacity.
    pub(crate) fn with(redis: &Redis, capacities: &[u32]) -> Self {
        Self::of(redis, capacities, &DatabaseUrl::default())
    }

    fn of(redis: &Redis, capacities: &[u32], database: &DatabaseUrl) -> Self {
        Self::on(redis.url(), capacities, database, TTL)
    }

    fn on(url: String, capacities: &[u32], database: &DatabaseUrl, lives: Duration) -> Self {
        let mut fleet = Self {
            url,
            database: database.expose().to_owned(),
            lives,
            workers: Vec::new(),
            started: 0,
        };
        for &capacity in capacities {
            fleet.join(capacity);
        }
        fleet
    }

    /// One more worker.
    pub(crate) fn join(&mut self, capacity: u32) {
        let id = self.next_id();
        self.spawn(id, capacity);
    }

    fn next_id(&mut self) -> String {
        self.started += 1;
        format!("w-{}", self.started)
    }

    fn spawn(&mut self, id: String, capacity: u32) {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_worker_process", "--nocapture"])
            .env(URL, &self.url)
            .env(ID, &id)
            .env(CAPACITY, capacity.to_string())
            .env(LIVES, self.lives.as_millis().to_string())
            .env(DATABASE, &self.database)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        self.workers.push(Process {
            id,
            capacity,
            child,
        });
    }

    /// Ids and capacities.
    pub(crate) fn capacities(&self) -> HashMap<String, u32> {
        let workers = self.workers.iter();
        workers.map(|w| (w.id.clone(), w.capacity)).collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.workers.len()
    }

    /// `kill -9`, and another one in its place: under the same name, or under a new one.
    pub(crate) fn kill(&mut self, index: usize, same_name: bool) {
        let mut worker = self.workers.remove(index);
        worker.child.kill().unwrap();
        worker.child.wait().unwrap();
        let id = match same_name {
            true => worker.id,
            false => self.next_id(),
        };
        self.spawn(id, worker.capacity);
    }

    /// The index of the worker of that name.
    pub(crate) fn position(&self, id: &str) -> Option<usize> {
        self.workers.iter().position(|worker| worker.id == id)
    }

    pub(crate) fn id(&self, index: usize) -> &str {
        &self.workers[index].id
    }

    pub(crate) fn pid(&self, index: usize) -> u32 {
        self.workers[index].child.id()
    }

    /// Whether every one of them runs that was started and not killed.
    pub(crate) fn all_run(&mut self) -> bool {
        let mut workers = self.workers.iter_mut();
        workers.all(|worker| worker.child.try_wait().unwrap().is_none())
    }

    /// SIGTERM to all; each must exit with 0.
    pub(crate) fn drain(mut self) {
        for worker in &self.workers {
            super::signal(worker.child.id(), "TERM");
        }
        for mut worker in self.workers.drain(..) {
            let status = worker.child.wait().unwrap();
            assert!(status.success(), "{} ended with {status}", worker.id);
        }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for worker in &mut self.workers {
            worker.child.kill().ok();
            worker.child.wait().ok();
        }
    }
}

pub(crate) fn client(redis: &Redis) -> Client {
    let url = RedisUrl::new(redis.url_for(users::PUBLISHER));
    let connector = Connector::new(&url, 4).unwrap();
    let options = ClientOptions {
        patience: Duration::from_secs(30),
        ..ClientOptions::default()
    };
    Client::new(connector, Keys::new("cb").unwrap(), options).unwrap()
}

/// Event `n`: every third asks for a reply, most take a moment.
pub(crate) fn event(n: u64) -> Outgoing {
    let ms = if n.is_multiple_of(4) { 0 } else { n % 25 };
    let event = Outgoing::new("load.work", &Work { n, ms })
        .id(format!("e-{n}"))
        .dedup(true);
    if n.is_multiple_of(3) {
        event.reply_to("cb:reply:torture")
    } else {
        event
    }
}

/// Publishes until told to stop; the number of the first event that was not published.
pub(crate) async fn publish_until(
    client: Client,
    stop: tokio_util::sync::CancellationToken,
) -> (u64, u64) {
    let (mut n, mut unknown) = (0, 0);
    while !stop.is_cancelled() {
        match client.publish(&event(n)).await {
            Ok(_) => n += 1,
            // Again, with the same id: it is stored once.
            Err(PublishError::Unknown { .. }) => unknown += 1,
            Err(PublishError::Rejected { .. }) => {
                tokio::time::sleep(Duration::from_millis(20)).await
            }
        }
        if n.is_multiple_of(10) {
            tokio::time::sleep(Duration::from_millis(8)).await;
        }
    }
    (n, unknown)
}

async fn page(connection: &mut MultiplexedConnection, stream: &str, from: EntryId) -> Vec<Entry> {
    let reply = redis::cmd("XRANGE")
        .arg(stream)
        .arg(from.to_string())
        .arg("+")
        .arg("COUNT")
        .arg(5000)
        .query_async(connection)
        .await
        .unwrap();
    entries_of(reply).unwrap()
}

/// Goes through all entries of a stream.
pub(crate) async fn each_entry(redis: &Redis, stream: &str, mut look: impl FnMut(&Entry)) {
    let mut connection = redis.connection().await;
    let mut from = EntryId::default();
    loop {
        let entries = page(&mut connection, stream, from).await;
        let Some(last) = entries.last() else {
            return;
        };
        from = last.id.next();
        entries.iter().for_each(&mut look);
    }
}

/// How often each value of a field is on a stream.
pub(crate) async fn tally(redis: &Redis, stream: &str, field: &str) -> HashMap<Vec<u8>, u32> {
    let mut tally = HashMap::new();
    each_entry(redis, stream, |entry| {
        let value = entry.get(field).unwrap_or_default().to_vec();
        *tally.entry(value).or_default() += 1;
    })
    .await;
    tally
}

/// Checks that each of the events had its reply or result, and its effect, exactly once.
pub(crate) async fn check(redis: &Redis, events: u64) {
    let mut connection = redis.connection().await;
    super::until("all events are committed", || {
        let mut connection = connection.clone();
        async move {
            let done: u64 = redis::cmd("XLEN")
                .arg("cb:events:effect")
                .query_async(&mut connection)
                .await
                .unwrap_or(0);
            done >= events
        }
    })
    .await;
    let mut outcomes = tally(redis, "cb:results:load", "correlationid").await;
    let replies = tally(redis, "cb:reply:torture", "correlationid").await;
    assert_eq!(
        replies.len() as u64,
        events.div_ceil(3),
        "a reply for every third event"
    );
    outcomes.extend(replies);
    let missing = (0..events)
        .filter(|n| !outcomes.contains_key(format!("e-{n}").as_bytes()))
        .count();
    assert_eq!(missing, 0, "events without an outcome");
    let repeated: Vec<_> = outcomes.iter().filter(|(_, count)| **count != 1).collect();
    assert!(
        repeated.is_empty(),
        "outcomes that were committed more than once: {repeated:?}"
    );
    assert_eq!(outcomes.len() as u64, events);
    let effects = tally(redis, "cb:events:effect", "data").await;
    assert!(
        effects.values().all(|count| *count == 1),
        "an effect was published twice"
    );
    assert_eq!(effects.len() as u64, events);
    let dead: u64 = redis::cmd("XLEN")
        .arg("cb:dead:load")
        .query_async(&mut connection)
        .await
        .unwrap();
    assert_eq!(dead, 0, "dead letters");
}

pub(crate) async fn pending(redis: &Redis, stream: &str) -> i64 {
    let mut connection = redis.connection().await;
    let summary: redis::Value = redis::cmd("XPENDING")
        .arg(stream)
        .arg("workers")
        .query_async(&mut connection)
        .await
        .unwrap();
    match summary {
        redis::Value::Array(parts) => match parts.first() {
            Some(redis::Value::Int(count)) => *count,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}
