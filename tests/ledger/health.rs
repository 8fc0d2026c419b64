//! `system.health` tells the truth about PostgreSQL and MCP, in time.

use crate::rig::{Rig, Store};
use crate::support::{self, keys, mcp, new_directory, signal};
use convoke::Worker;
use convoke::client::publish::Outgoing;
use convoke::client::{Client, ClientOptions};
use convoke::connect::connector::Connector;
use convoke::protocol::json;
use convoke::settings::{DatabaseUrl, Settings};
use serde_json::Value;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Where a server notes its process id.
struct Note(PathBuf);

impl Note {
    fn new(name: &str) -> Self {
        Self(new_directory("mcp").join(name))
    }

    /// Notes the process and becomes the server.
    fn command(&self, server: &str) -> String {
        format!("echo $$ > '{}'; {server}", self.0.display())
    }

    fn pid(&self) -> u32 {
        std::fs::read_to_string(&self.0)
            .unwrap()
            .trim()
            .parse()
            .unwrap()
    }
}

impl Drop for Note {
    fn drop(&mut self) {
        std::fs::remove_dir_all(self.0.parent().unwrap()).ok();
    }
}

struct Asking {
    client: Client,
    drain: CancellationToken,
    worker: tokio::task::JoinHandle<()>,
}

impl Asking {
    fn start(rig: &Rig, change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = Settings {
            database_url: DatabaseUrl::default(),
            heartbeat_ttl: Duration::from_secs(30),
            ..rig.settings()
        };
        change(&mut settings);
        let connector = Connector::new(&settings.redis_url, 2).unwrap();
        let client = Client::new(connector, keys(), ClientOptions::default());
        let worker = Worker::builder().settings(settings).build().unwrap();
        let drain = CancellationToken::new();
        let until = drain.clone();
        Self {
            client: client.unwrap(),
            drain,
            worker: tokio::spawn(async move { worker.run_until(until).await.unwrap() }),
        }
    }

    async fn health(&self) -> Value {
        let began = Instant::now();
        let asked = Outgoing::new("system.health", &serde_json::Map::new());
        let reply = self
            .client
            .request(asked, Duration::from_secs(30))
            .await
            .unwrap();
        // A check is given up after 2 s; the rest is for a machine that is busy.
        assert!(
            began.elapsed() < Duration::from_secs(20),
            "{:?}",
            began.elapsed()
        );
        json::to_json(&reply.data).unwrap()
    }

    /// Asks until the service is so; the whole answer.
    async fn until(&self, service: &str, status: &str) -> Value {
        let deadline = Instant::now() + Duration::from_secs(90);
        loop {
            let health = self.health().await;
            if health["services"][service]["status"] == status {
                return health;
            }
            assert!(
                Instant::now() < deadline,
                "{service} is not {status}: {health}"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn stop(self) {
        self.client.close().await;
        self.drain.cancel();
        self.worker.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_configured_is_disabled() {
    let rig = Rig::new(Store::file()).await;
    let asking = Asking::start(&rig, |_| {});
    let health = asking.health().await;
    assert_eq!(health["status"], "healthy");
    for service in ["postgres", "mcp"] {
        assert_eq!(
            health["services"][service],
            serde_json::json!({"status": "disabled"})
        );
    }
    asking.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_is_up_frozen_down_read_only_and_up_again() {
    let mut rig = Rig::new(Store::server()).await;
    let url = rig.store.url();
    let asking = Asking::start(&rig, |settings| settings.database_url = url);
    let health = asking.until("postgres", "up").await;
    assert_eq!(health["status"], "healthy");
    assert!(
        health["services"]["postgres"]["latency_ms"]
            .as_f64()
            .unwrap()
            > 0.0
    );
    for _ in 0..2 {
        let Store::Server(server) = &mut rig.store else {
            unreachable!()
        };
        server.freeze(true);
        let health = asking.until("postgres", "down").await;
        assert_eq!(health["status"], "degraded");
        assert!(
            health["services"]["postgres"]["error"].is_string(),
            "{health}"
        );
        server.freeze(false);
        asking.until("postgres", "up").await;
        server.kill();
        asking.until("postgres", "down").await;
        server.restart();
        asking.until("postgres", "up").await;
    }
    let Store::Server(server) = &mut rig.store else {
        unreachable!()
    };
    server.sql("ALTER SYSTEM SET default_transaction_read_only = on");
    server.sql("SELECT pg_reload_conf()");
    asking.until("postgres", "down").await;
    server.sql("ALTER SYSTEM RESET default_transaction_read_only");
    server.sql("SELECT pg_reload_conf()");
    asking.until("postgres", "up").await;
    asking.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mcp_is_up_frozen_killed_and_up_again_and_ends_with_the_worker() {
    let Some(server) = tokio::task::spawn_blocking(mcp::server).await.unwrap() else {
        eprintln!(
            "SKIPPED: the Python package index, where the MCP server comes from, cannot be reached"
        );
        return;
    };
    let rig = Rig::new(Store::file()).await;
    let note = Note::new("server");
    let command = note.command(&server);
    let asking = Asking::start(&rig, |settings| settings.mcp_server = command.into());
    let health = asking.until("mcp", "up").await;
    assert_eq!(health["status"], "healthy");
    assert!(health["services"]["mcp"]["latency_ms"].as_f64().unwrap() > 0.0);
    let first = note.pid();
    asking.health().await;
    assert_eq!(note.pid(), first, "it is kept between checks");

    signal(first, "STOP");
    let health = asking.until("mcp", "down").await;
    assert_eq!(health["status"], "degraded");
    assert!(health["services"]["mcp"]["error"].is_string(), "{health}");
    signal(first, "CONT");
    asking.until("mcp", "up").await;
    assert_eq!(
        note.pid(),
        first,
        "a short pause is no reason to start it again"
    );

    let mut last = first;
    for _ in 0..2 {
        signal(last, "KILL");
        let health = asking.until("mcp", "down").await;
        assert_eq!(health["status"], "degraded");
        asking.until("mcp", "up").await;
        assert_ne!(note.pid(), last);
        last = note.pid();
    }

    signal(last, "STOP");
    asking.until("mcp", "down").await;
    asking.until("mcp", "up").await;
    assert_ne!(note.pid(), last, "one that hangs for good is replaced");
    last = note.pid();
    asking.stop().await;
    support::eventually("the server ends with the worker", || {
        !std::path::Path::new(&format!("/proc/{last}")).exists()
            || std::fs::read_to_string(format!("/proc/{last}/stat"))
                .is_ok_and(|s| s.contains(") Z "))
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_is_no_mcp_server_is_down_and_started_ever_less_often() {
    let rig = Rig::new(Store::file()).await;
    let note = Note::new("count");
    let command = format!("echo x >> '{}'; exit 1", note.0.display());
    let asking = Asking::start(&rig, |settings| settings.mcp_server = command.into());
    let health = asking.until("mcp", "down").await;
    assert!(health["services"]["mcp"]["error"].is_string(), "{health}");
    let began = Instant::now();
    let mut checks = 0;
    while began.elapsed() < Duration::from_secs(5) {
        assert_eq!(asking.health().await["services"]["mcp"]["status"], "down");
        checks += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let starts = std::fs::read_to_string(&note.0).unwrap().lines().count();
    assert!(
        starts < 10 && checks > starts,
        "{starts} starts in {checks} checks"
    );
    asking.stop().await;
}

/// As the command does it.
#[test]
fn a_worker_with_a_server_as_its_database_is_built_before_there_is_a_runtime() {
    let settings = convoke::settings::Settings {
        database_url: convoke::settings::DatabaseUrl::new("postgres://127.0.0.1:1/none"),
        ..Default::default()
    };
    assert!(Worker::builder().settings(settings).build().is_ok());
}
