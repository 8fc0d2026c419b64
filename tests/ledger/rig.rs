//! A Redis, a database and a filler for one test.

use crate::support::Redis;
use crate::support::keys;
pub(crate) use crate::support::store::Store;
use convoke::connect::connector::Connector;
use convoke::ledger::Database;
use convoke::ledger::fact::{Fact, Origin};
use convoke::ledger::fill::{Counts, Filler, GROUP, LedgerStream};
use convoke::ledger::history::Filter;
use convoke::protocol::json;
use convoke::settings::{RedisUrl, Settings};
use redis::aio::MultiplexedConnection;
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) const BROADCAST: &str = "cb:broadcast";
pub(crate) const DEAD: &str = "cb:dead:image";

pub(crate) struct Rig {
    pub(crate) redis: Redis,
    pub(crate) store: Store,
    pub(crate) connection: MultiplexedConnection,
}

/// A filler that runs; dropped, it is cut off as by a kill.
pub(crate) struct Running {
    counts: Arc<Counts>,
    drain: CancellationToken,
    /// One, or on a cluster one for each slot that something is read from.
    tasks: Vec<JoinHandle<()>>,
}

impl Running {
    pub(crate) async fn stop(mut self) {
        self.drain.cancel();
        for task in &mut self.tasks {
            task.await.unwrap();
        }
    }

    /// Waits until it has tried in vain so often from now on; it goes on.
    pub(crate) async fn until_in_vain(&self, attempts: u64) {
        let failures = || self.counts.failures.load(Ordering::Relaxed);
        let before = failures();
        crate::support::until("the database refuses", || async {
            failures() >= before + attempts
        })
        .await;
        assert!(self.tasks.iter().all(|task| !task.is_finished()));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Rig {
    pub(crate) async fn new(store: Store) -> Self {
        let redis = Redis::start();
        let connection = redis.connection().await;
        Self {
            redis,
            store,
            connection,
        }
    }

    pub(crate) fn settings(&self) -> Settings {
        Settings {
            redis_url: RedisUrl::new(self.redis.url()),
            database_url: self.store.url(),
            heartbeat_ttl: Duration::from_secs(1),
            claim_idle: Duration::from_secs(1),
            ..Settings::default()
        }
    }

    pub(crate) fn fill(&self, consumer: &str) -> Running {
        self.fill_into(consumer, self.store.database())
    }

    pub(crate) fn fill_into(&self, consumer: &str, database: Database) -> Running {
        let settings = self.settings();
        let sources = [(BROADCAST, Origin::Broadcast), (DEAD, Origin::Dead)];
        let sources = sources.map(|(stream, origin)| LedgerStream {
            stream: crate::support::name("image", stream),
            origin,
        });
        let drain = CancellationToken::new();
        let counts = Arc::<Counts>::default();
        let connector = Connector::new(&settings.redis_url, 2).unwrap();
        let streams: Vec<&str> = sources.iter().map(|source| &*source.stream).collect();
        let fillers = connector.ways_to(&streams).into_iter().map(|way| {
            let read: Vec<LedgerStream> =
                way.places.iter().map(|at| sources[*at].clone()).collect();
            let filler = Filler {
                connector: way.connector,
                keys: keys(),
                consumer: consumer.into(),
                database: database.clone(),
                // A sender that is gone changes nothing any more.
                sources: watch::channel(read).1,
                claim_idle: settings.claim_idle,
                max_payload: settings.max_payload,
                counts: Arc::clone(&counts),
                drain: drain.clone(),
            };
            tokio::spawn(filler.run())
        });
        Running {
            tasks: fillers.collect(),
            counts,
            drain,
        }
    }

    /// Adds a fact; its entry id.
    pub(crate) async fn tell(&self, kind: &str, data: &Value) -> String {
        self.add(
            BROADCAST,
            &[("type", kind.as_bytes()), ("data", &json::from_json(data))],
        )
        .await
    }

    pub(crate) async fn add(&self, stream: &str, fields: &[(&str, &[u8])]) -> String {
        let mut command = redis::cmd("XADD");
        command.arg(stream).arg("*");
        for (name, value) in fields {
            command.arg(*name).arg(*value);
        }
        command
            .query_async(&mut self.connection.clone())
            .await
            .unwrap()
    }

    /// Adds this many facts of a kind, numbered from `from` on.
    pub(crate) async fn tell_many(&self, kind: &str, from: u64, count: u64) {
        for chunk in (from..from + count).collect::<Vec<_>>().chunks(2000) {
            let mut pipe = redis::pipe();
            for n in chunk {
                let data =
                    json::from_json(&serde_json::json!({"task_id": format!("t-{n}"), "n": n}));
                pipe.cmd("XADD").arg(BROADCAST).arg("*");
                pipe.arg(&["type", kind, "source", "test", "data"])
                    .arg(data)
                    .ignore();
            }
            pipe.exec_async(&mut self.connection.clone()).await.unwrap();
        }
    }

    /// Entries of a stream that the group has not acknowledged.
    pub(crate) async fn backlog(&self, stream: &str) -> u64 {
        let mut pipe = redis::pipe();
        pipe.cmd("XPENDING").arg(stream).arg(GROUP);
        pipe.cmd("XINFO").arg("GROUPS").arg(stream);
        let answer: Result<
            (
                redis::Value,
                Vec<std::collections::HashMap<String, redis::Value>>,
            ),
            _,
        > = pipe.query_async(&mut self.connection.clone()).await;
        let Ok((redis::Value::Array(pending), groups)) = answer else {
            return u64::MAX;
        };
        let number = |value: &redis::Value| match value {
            redis::Value::Int(number) => *number as u64,
            _ => u64::MAX / 2,
        };
        let group = groups
            .iter()
            .find(|group| group.get("name") == Some(&redis::Value::BulkString(GROUP.into())));
        number(&pending[0]) + number(&group.unwrap()["lag"])
    }

    pub(crate) async fn until_written(&self) {
        crate::support::until("the ledger has caught up", || async {
            self.backlog(BROADCAST).await == 0 && self.backlog(DEAD).await == 0
        })
        .await;
    }

    pub(crate) async fn history(&self, filter: &Filter) -> Vec<Fact> {
        self.store
            .database()
            .history(filter, 1_000_000)
            .await
            .unwrap()
    }
}
