//! The server of a scenario: it keeps what it acknowledged, and its clock stands still.

use crate::support::{Redis, users};
use convoke::connect::connector::Connector;
use convoke::protocol::event::{Entry, EntryId};
use convoke::protocol::keys::Keys;
use convoke::settings::RedisUrl;
use convoke::streams::read::entries_of;
use redis::aio::MultiplexedConnection;
use std::time::Duration;

/// In ms.
pub(crate) const SECOND: i64 = 1000;
pub(crate) const MINUTE: i64 = 60 * SECOND;
pub(crate) const HOUR: i64 = 60 * MINUTE;
pub(crate) const DAY: i64 = 24 * HOUR;

/// When each case begins, in Unix ms.
pub(crate) const BEGIN: u64 = 1_800_000_000_000;

pub(crate) struct World {
    redis: Redis,
    pub(crate) keys: Keys,
    pub(crate) connector: Connector,
    /// The test's own, for looking.
    pub(crate) admin: MultiplexedConnection,
    /// What the server's clock says, in Unix ms.
    pub(crate) now: u64,
    /// How often the server was started again.
    pub(crate) restarts: u64,
    moves: u64,
}

impl World {
    /// `None` where the clock cannot be stopped: Valkey adds what its monotonic one counts.
    pub(crate) async fn start() -> Option<Self> {
        // What it acknowledged is in the file, which outlives the process.
        let options = ["--save", "", "--appendonly", "yes", "--appendfsync", "no"];
        let rewritten = ["--auto-aof-rewrite-min-size", "16mb"];
        let redis = Redis::with(&[&options[..], &rewritten].concat()).clocked();
        redis.stop_clock(1000 * BEGIN);
        let connector = Connector::new(&RedisUrl::new(redis.url()), 4).unwrap();
        let mut world = Self {
            admin: redis.connection().await,
            redis,
            keys: Keys::new("cb").unwrap(),
            connector,
            now: BEGIN,
            restarts: 0,
            moves: 0,
        };
        let begin: (u64, u64) = (BEGIN / 1000, 0);
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_millis(2)).await;
            let shown: (u64, u64) = world.time().await;
            if shown != begin {
                eprintln!("skipped: this server's clock cannot be stopped");
                return None;
            }
        }
        world.expire_by_looks().await;
        Some(world)
    }

    async fn time(&mut self) -> (u64, u64) {
        let time = redis::cmd("TIME");
        time.query_async(&mut self.admin).await.unwrap()
    }

    /// What has expired goes when somebody looks at it, and not by itself: so the model knows.
    async fn expire_by_looks(&mut self) {
        let mut off = redis::cmd("DEBUG");
        off.arg(&["SET-ACTIVE-EXPIRE", "0"]);
        off.exec_async(&mut self.admin).await.unwrap();
    }

    /// Begins a case.
    pub(crate) async fn clear(&mut self) {
        self.set_clock(BEGIN).await;
        let flush = redis::cmd("FLUSHALL");
        flush.exec_async(&mut self.admin).await.unwrap();
        if users::lack("TIME") {
            let clock = users::make_clock("cb");
            clock.exec_async(&mut self.admin).await.unwrap();
        }
    }

    async fn set_clock(&mut self, ms: u64) {
        self.now = ms;
        // No two moments have the same microseconds, wherever the clock goes.
        self.moves += 1;
        let micros = 1000 * ms + self.moves % 1000;
        self.redis.stop_clock(micros);
        let shown = (micros / 1_000_000, micros % 1_000_000);
        assert_eq!(self.time().await, shown);
    }

    /// Moves the clock by this many ms.
    pub(crate) async fn move_clock(&mut self, ms: i64) {
        self.set_clock(self.now.saturating_add_signed(ms)).await;
    }

    pub(crate) async fn forget_scripts(&mut self) {
        let mut flush = redis::cmd("SCRIPT");
        flush
            .arg("FLUSH")
            .exec_async(&mut self.admin)
            .await
            .unwrap();
    }

    /// `kill -9`, and again from the file.
    pub(crate) async fn restart(&mut self) {
        self.redis.restart_without_scripts();
        self.restarts += 1;
        self.admin = self.redis.connection().await;
        self.expire_by_looks().await;
    }

    /// Runs commands of the test's own.
    pub(crate) async fn look<T: redis::FromRedisValue>(&mut self, commands: &redis::Pipeline) -> T {
        commands.query_async(&mut self.admin).await.unwrap()
    }
}

/// A stream as far as it was read.
#[derive(Default)]
pub(crate) struct Tail(Option<EntryId>);

impl Tail {
    /// Adds the question for what is new.
    pub(crate) fn ask(&self, pipe: &mut redis::Pipeline, stream: &str) {
        let from = self.0.map_or("-".to_owned(), |id| format!("({id}"));
        pipe.cmd("XRANGE").arg(stream).arg(from).arg("+");
    }

    /// What is new, from the answer.
    pub(crate) fn read(&mut self, answer: redis::Value) -> Vec<Entry> {
        let entries = entries_of(answer).unwrap();
        self.0 = entries.last().map(|entry| entry.id).or(self.0);
        entries
    }
}

/// A fact: its type and data.
pub(crate) fn fact(entry: &Entry) -> (String, serde_json::Value) {
    let kind = String::from_utf8(entry.get("type").unwrap().to_vec()).unwrap();
    (
        kind,
        rmp_serde::from_slice(entry.get("data").unwrap()).unwrap(),
    )
}
