//! A server, a client and workers for one test.

use crate::support::patterns::patterns;
use crate::support::{Redis, keys, until, users};
use convoke::Worker;
use convoke::client::publish::Outgoing;
use convoke::client::request::RequestError;
use convoke::client::{Client, ClientOptions};
use convoke::connect::connector::Connector;
use convoke::protocol::event::{Entry, Limits};
use convoke::protocol::reply::{RemoteError, Reply};
use convoke::settings::{RedisUrl, Settings};
use convoke::streams::read::entries_of;
use convoke::worker::builder::Builder;
use redis::aio::MultiplexedConnection;
use serde::Serialize;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) struct Rig {
    pub(crate) redis: Redis,
    pub(crate) client: Client,
    pub(crate) connection: MultiplexedConnection,
}

/// A worker that runs; dropped, it drains.
pub(crate) struct Running {
    drain: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    /// Waits until it is gone by itself.
    pub(crate) async fn ended(self) {
        self.task.await.unwrap();
    }

    /// Ends it without draining: what it held is pending with it, and its keeper tells that it has left.
    pub(crate) async fn kill(self) {
        self.task.abort();
        self.task.await.unwrap_err();
    }

    /// Drains it and waits until it is gone.
    pub(crate) async fn stop(self) {
        self.drain.cancel();
        self.task.await.unwrap();
    }
}

impl Rig {
    pub(crate) async fn new() -> Self {
        Self::on(Redis::start()).await
    }

    pub(crate) async fn on(redis: Redis) -> Self {
        let url = RedisUrl::new(redis.url_for(users::PUBLISHER));
        let connector = Connector::new(&url, 4).unwrap();
        let keys = keys();
        let client = Client::new(connector, keys, ClientOptions::default()).unwrap();
        let connection = redis.connection().await;
        Self {
            redis,
            client,
            connection,
        }
    }

    /// Quick settings: retries and takeovers within a test's patience.
    pub(crate) fn settings(&self) -> Settings {
        Settings {
            redis_url: RedisUrl::new(self.redis.url()),
            heartbeat_ttl: Duration::from_secs(2),
            claim_idle: Duration::from_secs(3),
            backoff_base: Duration::from_millis(20),
            backoff_cap: Duration::from_millis(200),
            drain_timeout: Duration::from_secs(5),
            patterns: patterns(),
            ..Settings::default()
        }
    }

    pub(crate) fn builder(&self) -> Builder {
        Worker::builder().settings(self.settings())
    }

    pub(crate) fn start(&self, builder: Builder) -> Running {
        let worker = builder.build().unwrap();
        let drain = CancellationToken::new();
        let until = drain.clone();
        let task = tokio::spawn(async move { worker.run_until(until).await.unwrap() });
        Running { drain, task }
    }

    pub(crate) async fn ask<P: Serialize>(
        &self,
        kind: &str,
        payload: &P,
    ) -> Result<Reply, RequestError> {
        let event = Outgoing::new(kind, payload);
        self.client.request(event, Duration::from_secs(20)).await
    }

    pub(crate) async fn refused<P: Serialize>(&self, kind: &str, payload: &P) -> RemoteError {
        match self.ask(kind, payload).await {
            Err(RequestError::Remote(error)) => error,
            other => panic!("{kind}: not an error reply: {other:?}"),
        }
    }

    /// All entries of a stream.
    pub(crate) async fn entries(&self, stream: &str) -> Vec<Entry> {
        let mut connection = self.connection.clone();
        let reply = redis::cmd("XRANGE")
            .arg(stream)
            .arg("-")
            .arg("+")
            .query_async(&mut connection)
            .await
            .unwrap();
        entries_of(reply).unwrap()
    }

    /// Waits until a stream has that many entries, and gives them.
    pub(crate) async fn wait_for(&self, stream: &str, count: usize) -> Vec<Entry> {
        let start = std::time::Instant::now();
        loop {
            let mut length = redis::cmd("XLEN");
            let mut connection = self.connection.clone();
            let length: usize = length
                .arg(stream)
                .query_async(&mut connection)
                .await
                .unwrap();
            if length >= count {
                return self.entries(stream).await;
            }
            assert!(
                start.elapsed() < Duration::from_secs(60),
                "{stream}: {length} of {count} entries"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Runs one command, its words apart.
    pub(crate) async fn run(&self, line: &str) -> redis::Value {
        let mut words = line.split_whitespace();
        let mut command = redis::cmd(words.next().unwrap());
        command.arg(words.collect::<Vec<_>>());
        let mut connection = self.connection.clone();
        command.query_async(&mut connection).await.unwrap()
    }

    pub(crate) async fn exists(&self, key: &str) -> bool {
        let mut connection = self.connection.clone();
        let mut exists = redis::cmd("EXISTS");
        exists.arg(key);
        exists.query_async(&mut connection).await.unwrap()
    }

    /// A field of a hash.
    pub(crate) async fn hash(&self, key: &str, field: &str) -> String {
        let mut connection = self.connection.clone();
        let mut read = redis::cmd("HGET");
        read.arg(&[key, field]);
        read.query_async(&mut connection).await.unwrap()
    }

    pub(crate) async fn keys(&self, pattern: &str) -> Vec<String> {
        let mut connection = self.connection.clone();
        let mut keys = redis::cmd("KEYS");
        keys.arg(pattern);
        keys.query_async(&mut connection).await.unwrap()
    }

    /// Waits until that many facts of a type were told, and gives them.
    pub(crate) async fn wait_for_fact(&self, kind: &str, count: usize) -> Vec<Entry> {
        let start = std::time::Instant::now();
        loop {
            let facts = self.entries("cb:broadcast").await.into_iter();
            let told: Vec<Entry> = facts
                .filter(|fact| fact.get("type") == Some(kind.as_bytes()))
                .collect();
            if told.len() >= count {
                return told;
            }
            assert!(
                start.elapsed() < Duration::from_secs(60),
                "{kind}: {} of {count} facts",
                told.len()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until that many workers hear what is broadcast: they do so a moment after they are registered.
    pub(crate) async fn until_heard(&self, workers: usize) {
        until("the broadcast is heard", || async {
            self.hear().await.len() >= workers
        })
        .await;
    }

    /// The connections on which workers wait for facts.
    async fn hear(&self) -> Vec<String> {
        let mut connection = self.connection.clone();
        let mut list = redis::cmd("CLIENT");
        list.arg("LIST");
        let listed: String = list.query_async(&mut connection).await.unwrap();
        let user = format!("user={}", users::WORKER);
        let hears = |words: &Vec<&str>| {
            let says = |word: &str| words.contains(&word);
            says("cmd=xread") && says("flags=b") && says(&user)
        };
        let all = listed.lines().map(|line| line.split(' ').collect());
        let ids = all.filter(hears).map(|words| words[0].replace("id=", ""));
        ids.collect()
    }

    /// Ends the connections on which workers wait for facts. They connect again after 50 ms at the earliest.
    pub(crate) async fn deafen(&self) {
        until("a connection was ended", async || {
            let ids = self.hear().await;
            for id in &ids {
                self.run(&format!("CLIENT KILL ID {id}")).await;
            }
            !ids.is_empty()
        })
        .await;
    }

    /// What is pending; nothing where the group is not there yet.
    pub(crate) async fn pending(&self, stream: &str) -> u64 {
        let mut connection = self.connection.clone();
        let summary = redis::cmd("XPENDING")
            .arg(stream)
            .arg("workers")
            .query_async::<redis::Value>(&mut connection)
            .await;
        let summary = match summary {
            // A worker is registered before its groups are there.
            Err(error) if error.code() == Some("NOGROUP") => return 0,
            summary => summary.unwrap(),
        };
        match summary {
            redis::Value::Array(parts) => match parts.first() {
                Some(redis::Value::Int(count)) => *count as u64,
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }
}

pub(crate) fn text(entry: &Entry, field: &str) -> String {
    let value = entry.get(field);
    let value = value.unwrap_or_else(|| panic!("no field {field} in {entry:?}"));
    String::from_utf8_lossy(value).into_owned()
}

#[allow(dead_code)]
pub(crate) fn limits() -> Limits {
    Limits::default()
}
