//! A server, a stream with a group, and a look at what is on it.

use crate::support::{Redis, keys, name, users};
use convoke::connect::connector::Connector;
use convoke::connect::resp::wire::Wire;
use convoke::protocol::event::{Entry, EntryId};
use convoke::protocol::keys::{Keys, StreamKeys};
use convoke::settings::RedisUrl;
use convoke::streams::claim::{self, Pending};
use convoke::streams::commit::{Claims, ReplyEntry};
use convoke::streams::commit::{
    Committer, CommitterOptions, Disposition, Publication, Receipt, Settlement,
};
use convoke::streams::read::{ensure_group, read_group};
use redis::Value;
use redis::aio::MultiplexedConnection;
use std::collections::HashMap;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

pub(crate) const GROUP: &str = "workers";
pub(crate) const REPLY: &str = "cb:reply:me";
pub(crate) const NEXT: &str = "cb:reply:next";

/// A server with the stream of one domain and its group.
pub(crate) struct Bus {
    pub(crate) redis: Redis,
    pub(crate) keys: Keys,
    pub(crate) route: StreamKeys,
    /// A worker's.
    pub(crate) connection: MultiplexedConnection,
    /// The test's own, for seeding and looking.
    admin: MultiplexedConnection,
}

impl Bus {
    pub(crate) async fn start() -> Self {
        Self::with(keys()).await
    }

    pub(crate) async fn with(keys: Keys) -> Self {
        Self::on(Redis::start(), keys).await
    }

    pub(crate) async fn on(redis: Redis, keys: Keys) -> Self {
        let mut admin = redis.connection().await;
        let mut connection = redis.connection_for(users::WORKER).await;
        if users::lack("TIME") {
            for partition in 0..keys.partitions("image").max(1) {
                let key = keys.events("image", partition);
                if let Some((tag, _)) = key.split_once('}') {
                    let clock = users::make_clock(&format!("{tag}}}"));
                    clock.exec_async(&mut admin).await.unwrap();
                }
            }
        }
        let route = keys.route("image", 0);
        ensure_group(&mut connection, &route.events, GROUP)
            .await
            .unwrap();
        Self {
            redis,
            keys,
            route,
            connection,
            admin,
        }
    }

    /// Connects again, after the server was gone.
    pub(crate) async fn connect(&mut self) {
        self.admin = self.redis.connection().await;
        self.connection = self.redis.connection_for(users::WORKER).await;
    }

    pub(crate) fn committer(&self, consumer: &str) -> Committer {
        self.committer_at(&self.redis.url(), consumer)
    }

    pub(crate) fn committer_at(&self, url: &str, consumer: &str) -> Committer {
        Committer::new(self.options(url, consumer))
    }

    pub(crate) fn options(&self, url: &str, consumer: &str) -> CommitterOptions {
        CommitterOptions {
            connector: connector(url).toward(&self.route.events),
            routes: [self.route.clone()].into(),
            claims: vec![self.claims(consumer)],
            group: GROUP.into(),
            consumer: consumer.into(),
            reply_ttl: Duration::from_secs(600),
            reply_history: 1000,
            stop: CancellationToken::new(),
        }
    }

    pub(crate) fn claims(&self, consumer: &str) -> String {
        self.keys.claims("image", 0, consumer)
    }

    /// A worker's connection to where the stream is.
    async fn wire(&self) -> Wire {
        let connector = connector(&self.redis.url()).toward(&self.route.events);
        connector.wire().await.unwrap()
    }

    /// Adds this many events; their ids are `e0`, `e1`, …
    pub(crate) async fn add(&mut self, count: usize) -> Vec<EntryId> {
        let mut ids = Vec::new();
        for number in 0..count {
            let id: String = self
                .ask(&format!(
                    "XADD {} * type image.made id e{number}",
                    self.route.events
                ))
                .await;
            ids.push(id.parse().unwrap());
        }
        ids
    }

    /// Delivers new entries to a consumer whose committer knows these claims.
    pub(crate) async fn deliver(
        &mut self,
        consumer: &str,
        claims: &Claims,
        count: usize,
    ) -> Vec<Held> {
        let claims = claims.known(0);
        let block = Duration::from_millis(1);
        let streams = [self.route.events.as_str()];
        let mut wire = self.wire().await;
        let read = read_group(&mut wire, GROUP, consumer, &streams, count, block, 1 << 21);
        let batches = read.await.unwrap();
        let entries = batches.into_iter().flat_map(|batch| batch.entries);
        entries.map(|entry| Held::new(entry, 1, claims)).collect()
    }

    pub(crate) async fn pending(&mut self) -> Vec<Pending> {
        let from = EntryId::default();
        let stream = self.route.events.clone();
        claim::pending(&mut self.connection, &stream, GROUP, from, 10_000, None)
            .await
            .unwrap()
    }

    /// Takes over, for `me`, all that is pending with `owner`.
    pub(crate) async fn take_all(&mut self, me: &str, owner: &str) -> Vec<claim::Taken> {
        let mut wanted = self.pending().await;
        wanted.retain(|entry| entry.consumer == owner);
        self.take(me, &wanted).await
    }

    pub(crate) async fn take(&mut self, me: &str, wanted: &[Pending]) -> Vec<claim::Taken> {
        let stream = self.route.events.clone();
        let keys = self.keys.clone();
        let claims = |owner: &str| keys.claims("image", 0, owner);
        let connection = &mut self.connection;
        let mut taken = claim::take(
            connection,
            &stream,
            GROUP,
            me,
            Duration::ZERO,
            wanted,
            claims,
        )
        .await
        .unwrap();
        let mut wire = self.wire().await;
        claim::fields(&mut wire, &stream, &mut taken, 1 << 21)
            .await
            .unwrap();
        taken
    }

    /// Makes a pending entry another consumer's, with the delivery count that it has (1).
    pub(crate) async fn hand_on(&mut self, id: EntryId, to: &str) {
        let stream = &self.route.events;
        let command = format!("XCLAIM {stream} {GROUP} {to} 0 {id} RETRYCOUNT 1 JUSTID");
        self.run(&command).await;
    }

    /// Runs a command given as words.
    pub(crate) async fn ask<T: redis::FromRedisValue>(&mut self, command: &str) -> T {
        let mut words = command.split(' ');
        let mut cmd = redis::cmd(words.next().unwrap());
        words.for_each(|word| {
            cmd.arg(word);
        });
        cmd.query_async(&mut self.admin)
            .await
            .unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    pub(crate) async fn run(&mut self, command: &str) {
        self.ask::<Value>(command).await;
    }

    /// The entries of a stream, each as a map.
    pub(crate) async fn entries(&mut self, stream: &str) -> Vec<HashMap<String, Vec<u8>>> {
        let reply: Value = self.ask(&format!("XRANGE {stream} - +")).await;
        let entries = convoke::streams::read::entries_of(reply).unwrap();
        entries.iter().map(fields).collect()
    }

    /// The ids of the events that have a reply on `REPLY`, in order.
    pub(crate) async fn replied(&mut self) -> Vec<String> {
        let replies = self.entries(REPLY).await;
        replies.iter().map(|r| text(r, "correlationid")).collect()
    }

    /// How often the server ran a command.
    pub(crate) async fn calls(&mut self, command: &str) -> u64 {
        let info: String = self.ask("INFO commandstats").await;
        let prefix = format!("cmdstat_{command}:calls=");
        info.lines()
            .find_map(|line| line.strip_prefix(&prefix)?.split(',').next()?.parse().ok())
            .unwrap_or(0)
    }
}

impl Bus {
    /// Waits until the server ran a command so often.
    pub(crate) async fn until_called(&mut self, command: &str, times: u64) {
        let start = Instant::now();
        while self.calls(command).await < times {
            assert!(start.elapsed() < Duration::from_secs(60), "no {command}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

pub(crate) fn connector(url: &str) -> Connector {
    Connector::new(&RedisUrl::new(url), 4).unwrap()
}

pub(crate) fn fields(entry: &Entry) -> HashMap<String, Vec<u8>> {
    let pairs = entry.pairs();
    pairs
        .map(|(name, value)| (String::from_utf8_lossy(name).into_owned(), value.to_vec()))
        .collect()
}

pub(crate) fn text(entry: &HashMap<String, Vec<u8>>, field: &str) -> String {
    match entry.get(field) {
        Some(value) => String::from_utf8_lossy(value).into_owned(),
        None => panic!("no {field} in {entry:?}"),
    }
}

/// An entry in a worker's hands.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) entry: Entry,
    pub(crate) receipt: Receipt,
}

impl Held {
    pub(crate) fn new(entry: Entry, deliveries: u32, claims: u64) -> Self {
        let receipt = Receipt {
            stream: 0,
            entry: entry.id,
            deliveries,
            claims,
            since: Instant::now(),
        };
        Self { entry, receipt }
    }

    /// The event's own id.
    pub(crate) fn id(&self) -> String {
        String::from_utf8(self.entry.get("id").unwrap().to_vec()).unwrap()
    }

    /// Done, with a reply and a publication that name the event.
    pub(crate) fn done(&self) -> Settlement {
        Settlement {
            receipt: self.receipt,
            reply: Some(ReplyEntry {
                to: Some(name("image", REPLY)),
                correlation_id: self.id(),
                kind: "image.made.result".into(),
                status: "ok",
                data: vec![0xc0],
                content: None,
            }),
            publications: vec![Publication {
                stream: name("image", NEXT),
                fields: ["type", "next.step", "id", &self.id()]
                    .map(Vec::from)
                    .into(),
            }],
            disposition: Disposition::Done,
            epoch: None,
            notes: Vec::new(),
        }
    }

    pub(crate) fn ending(&self, disposition: Disposition) -> Settlement {
        Settlement {
            disposition,
            ..self.done()
        }
    }
}
