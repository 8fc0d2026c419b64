//! The users of `deploy/users.acl` may do what convoke does with them, and little else.

#![allow(clippy::expect_used)]

mod operator;
mod publisher;
mod scripts;
#[path = "../support/mod.rs"]
mod support;
mod table;

use convoke::client::publish::Outgoing;
use convoke::client::{Client, ClientOptions};
use convoke::connect::connector::Connector;
use convoke::coordination::instances::Instances;
use convoke::coordination::instances::instance::Registering;
use convoke::coordination::tasks::Tasks;
use convoke::coordination::tasks::task::NewTask;
use convoke::ledger::history::Filter;
use convoke::protocol::keys::Keys;
use convoke::settings::{RedisUrl, Settings};
use convoke::{Context, HandlerError, Worker};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use support::store::Store;
use support::{Redis, users};
use tokio_util::sync::CancellationToken;

/// A server, and the users of the file.
struct Guarded {
    redis: Redis,
}

impl Guarded {
    fn start() -> Self {
        Self {
            redis: Redis::with(&["--save", ""]),
        }
    }

    fn url(&self, user: &str) -> RedisUrl {
        RedisUrl::new(self.redis.url_for(user))
    }

    /// Runs a command as that user; the error's code if there was one.
    fn try_as(&self, user: &str, words: &[&str]) -> Result<(), String> {
        let mut connection = redis::Client::open(self.url(user).expose())
            .and_then(|client| client.get_connection())
            .expect("a connection");
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        command
            .exec(&mut connection)
            .map_err(|error| error.code().unwrap_or("?").to_owned())
    }

    #[track_caller]
    fn must_refuse(&self, user: &str, commands: &[&str]) {
        for command in commands {
            let words: Vec<&str> = command.split(' ').collect();
            let refused = self.try_as(user, &words);
            assert_eq!(refused, Err("NOPERM".into()), "{user}: {command}");
        }
        assert!(!self.redis.refused().is_empty());
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn client(guarded: &Guarded, user: &str, keys: Keys) -> Client {
    let connector = Connector::new(&guarded.url(user), 2).expect("a url");
    let options = ClientOptions {
        name: Some("shop".into()),
        ..ClientOptions::default()
    };
    Client::new(connector, keys, options).expect("a name")
}

#[test]
fn the_file_loads_and_lets_nobody_in_before_passwords_are_set() {
    let users = users::deployed();
    assert!(users.lines().any(|line| line == "user default off"));
    for line in users.lines().filter(|line| *line != "user default off") {
        assert!(line.contains(&"0".repeat(64)), "{line}");
        assert!(!line.contains("nopass") && !line.contains('>'), "{line}");
    }
    // Only the default user is opened, so that the harness can see the server start.
    let copy = std::env::temp_dir().join(format!("convoke-users-{}.acl", std::process::id()));
    let open = users.replace("user default off", "user default on nopass ~* &* +@all");
    fs::write(&copy, open).expect("a copy");
    let redis = Redis::with(&["--save", "", "--aclfile", &copy.to_string_lossy()]);
    for user in users::ALL {
        let url = redis.url_for(user);
        let refused = redis::Client::open(url).and_then(|client| client.get_connection());
        assert!(refused.is_err(), "{user}");
    }
    fs::remove_file(&copy).ok();
}

async fn whole(_: Context, size: u32) -> Result<u32, HandlerError> {
    Ok(size)
}

/// Fails once, and publishes.
async fn flaky(context: Context, size: u32) -> Result<u32, HandlerError> {
    if context.event().attempt() == 1 {
        return Err(HandlerError::unavailable("not yet"));
    }
    context.publish("image.whole", &size)?;
    Ok(size)
}

async fn broken(_: Context, _: u32) -> Result<u32, HandlerError> {
    Err(HandlerError::internal("broken").permanent())
}

/// One stream's length, over its partitions.
async fn length(guarded: &Guarded, names: &[String]) -> u64 {
    let mut connection = guarded.redis.connection().await;
    let mut sum = 0;
    for name in names {
        let command = redis::cmd("XLEN").arg(name).clone();
        sum += command
            .query_async::<u64>(&mut connection)
            .await
            .expect("a length");
    }
    sum
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_can_do_all_that_it_does() {
    for partitions in [0, 2] {
        let guarded = Guarded::start();
        let store = Store::file();
        let settings = Settings {
            redis_url: guarded.url("convoke-worker"),
            database_url: store.url(),
            id: "w-1".into(),
            partitions,
            heartbeat_ttl: Duration::from_secs(2),
            claim_idle: Duration::from_secs(3),
            backoff_base: Duration::from_millis(20),
            stream_history: 5,
            ..Settings::default()
        };
        let keys = settings.keys().expect("a namespace");
        let parts = 0..keys.partitions("image");
        let results: Vec<_> = parts.clone().map(|n| keys.results("image", n)).collect();
        let dead: Vec<_> = parts.clone().map(|n| keys.dead("image", n)).collect();
        leave_a_ghost(&guarded, &keys).await;

        let worker = Worker::builder()
            .settings(settings)
            .handler("image.whole", whole)
            .handler("image.flaky", flaky)
            .handler("image.broken", broken)
            .build()
            .expect("a worker");
        let drain = CancellationToken::new();
        let running = tokio::spawn(worker.run_until(drain.clone()));
        let client = client(&guarded, "convoke-publisher", keys.clone());
        let asked = Outgoing::new("image.whole", &7);
        let reply = client.request(asked, Duration::from_secs(30)).await;
        reply.expect("a reply");
        for kind in ["image.flaky", "image.broken", "image.nobodys"] {
            client
                .publish(&Outgoing::new(kind, &7))
                .await
                .expect("stored");
        }
        // The flaky one's, what it published, the ghost's; the two that failed are results too.
        support::until("results", || async {
            length(&guarded, &results).await >= 3
        })
        .await;
        support::until("dead letters", || async {
            length(&guarded, &dead).await == 2
        })
        .await;
        for (kind, status) in [("image.whole", "completed"), ("image.broken", "failed")] {
            let task = serde_json::json!({"task_id": kind, "kind": kind, "payload": 7});
            ask(&client, "task.create", &task).await;
            support::until("the task ends", || async {
                ask(&client, "task.get", &task).await["status"] == status
            })
            .await;
        }
        let waits = serde_json::json!({"task_id": "waits", "kind": "image.nobodys"});
        assert_eq!(
            ask(&client, "task.create", &waits).await["status"],
            "pending"
        );
        // That of the ghost, which had one attempt, is there too.
        support::until("the ghost's task has failed", || async {
            let failed = serde_json::json!({"status": "failed"});
            let listed = ask(&client, "task.list", &failed).await;
            listed["tasks"].as_array().map(Vec::len) == Some(2)
        })
        .await;
        for (id, mode) in [("b-1", "exclusive"), ("b-2", "fan_out")] {
            let batch = serde_json::json!({"batch_id": id, "item_type": "image.whole", "mode": mode, "items": [1, 2, 3]});
            let asked = Outgoing::new("system.batch.process", &batch);
            let reply = client.request(asked, Duration::from_secs(30)).await;
            let result: serde_json::Value = reply.expect("a reply").decode().expect("a map");
            assert_eq!(result["items_processed"], 3, "{result}");
        }
        let letters = Filter {
            dead: true,
            ..Filter::default()
        };
        support::until("the ledger has the dead letters", || async {
            let written = store.database().history(&letters, 10).await;
            written.is_ok_and(|letters| letters.len() == 2)
        })
        .await;
        client.close().await;
        drain.cancel();
        running.await.expect("no panic").expect("drained");
        assert_eq!(guarded.redis.refused(), Vec::<String>::new());
    }
}

/// The result of a request.
async fn ask(client: &Client, kind: &str, payload: &serde_json::Value) -> serde_json::Value {
    let event = Outgoing::new(kind, payload);
    let reply = client.request(event, Duration::from_secs(30)).await;
    reply.expect("a reply").decode().expect("a value")
}

/// An instance that took an event and a task and died: its work is to be taken over.
async fn leave_a_ghost(guarded: &Guarded, keys: &Keys) {
    let owner = RedisUrl::new(guarded.redis.admin_url());
    let connector = Connector::new(&owner, 2).expect("a url");
    let instances = Instances::of_process(connector.clone(), keys.clone(), "test");
    let mut ghost = Registering::new("ghost", ["worker"]);
    instances.register(&ghost).await.expect("registered");
    let tasks = Tasks::new(connector.clone(), keys.clone());
    let mut task = NewTask::new("ghostly", "image.whole");
    task.max_attempts = 1;
    let created = tasks.create(&task).await.expect("created");
    assert_eq!(created.assigned_to.as_deref(), Some("ghost"));
    // It lives for long enough to be given the task, and for no longer.
    ghost.ttl_ms = 1000;
    let again = instances.register_again(&ghost).await;
    again.expect("registered").expect("nobody else is");
    let publisher = Client::new(connector, keys.clone(), ClientOptions::default()).expect("a name");
    let stored = publisher.publish(&Outgoing::new("image.whole", &1)).await;
    stored.expect("stored");
    let mut connection = guarded.redis.connection().await;
    for partition in 0..keys.partitions("image") {
        let stream = keys.events("image", partition);
        redis::cmd("XGROUP")
            .arg(&["CREATE", &stream, "workers", "0", "MKSTREAM"])
            .exec_async(&mut connection)
            .await
            .expect("a group");
        redis::cmd("XREADGROUP")
            .arg(&["GROUP", "workers", "ghost", "STREAMS", &stream, ">"])
            .exec_async(&mut connection)
            .await
            .expect("taken");
    }
}

#[test]
fn a_worker_can_not_touch_what_is_not_its_own() {
    let guarded = Guarded::start();
    guarded.must_refuse(
        "convoke-worker",
        &[
            "GET session:1",
            "XADD other:events:image * type image.resize",
            "XADD cbx:events:image * type image.resize",
            "XADD {cbx}:events:image * type image.resize",
            "XGROUP DESTROY cb:events:image workers",
            "XGROUP SETID cb:events:image workers $",
            "EVAL return 0",
            "SCRIPT FLUSH",
            "FUNCTION FLUSH",
            "KEYS *",
            "SCAN 0",
            "FLUSHALL",
            "RENAME cb:events:image cb:gone",
            "CONFIG GET *",
            "CLIENT LIST",
            "CLIENT KILL ID 1",
            "ACL LIST",
            "DEBUG SLEEP 0",
            "REPLICAOF NO ONE",
            "SHUTDOWN NOSAVE",
        ],
    );
}

/// Runs a command as that user: its exit code, and what it said on both outputs.
async fn as_user(
    guarded: &Guarded,
    user: &str,
    partitions: u16,
    words: &[&str],
) -> (i32, String, String) {
    let done = tokio::process::Command::new(env!("CARGO_BIN_EXE_convoke"))
        .args(words)
        .env("CONVOKE_PARTITIONS", partitions.to_string())
        .env("CONVOKE_REDIS_URL", guarded.redis.url_for(user))
        .output()
        .await
        .expect("convoke runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let code = done.status.code().expect("not killed");
    (code, text(&done.stdout), text(&done.stderr))
}

/// Commands in calls such as `cmd("XADD")` and `redis.call('XADD', …)`.
fn commands_in(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (before, quote) in [("cmd(\"", '"'), ("call('", '\'')] {
        for (at, _) in text.match_indices(before) {
            let rest = &text[at + before.len()..];
            let word = rest.split(quote).next().unwrap_or_default();
            if !word.is_empty() && word.bytes().all(|b| b.is_ascii_uppercase() || b == b'_') {
                found.insert(word.to_ascii_lowercase());
            }
        }
    }
    found
}

fn sources(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        match path.extension().and_then(|extension| extension.to_str()) {
            _ if path.is_dir() => sources(&path, into),
            Some("rs" | "lua") => into.push(path),
            _ => {}
        }
    }
}

#[test]
fn every_command_in_the_sources_is_granted() {
    let users = users::deployed();
    let granted = |user: &str, command: &str| {
        // What the category +@connection stands for.
        if matches!(command, "auth" | "client" | "echo" | "hello" | "ping") {
            return true;
        }
        let line = users
            .lines()
            .find(|line| line.split(' ').nth(1) == Some(user));
        line.expect(user).split([' ', '(', ')']).any(|rule| {
            rule.strip_prefix('+')
                .is_some_and(|rule| rule.split('|').next() == Some(command))
        })
    };
    let mut files = Vec::new();
    sources(&root().join("src"), &mut files);
    let mut missing = BTreeSet::new();
    for file in files {
        let text = fs::read_to_string(&file).expect("a source");
        let product = text.split("#[cfg(test)]").next().unwrap_or_default();
        let is_in = |room: &str| file.starts_with(root().join("src").join(room));
        // A worker only loads this script, for monitors, who may not; operators and monitors call it.
        let is_looked_at = is_in("streams/delay/delayed_look.lua");
        // The steps of a repair are a worker's, whoever asked for it.
        let is_step = is_in("operator/replay/repair_step.lua");
        let is_operators = is_in("cli") || is_in("operator") && !is_step || is_looked_at;
        let user = ["convoke-worker", "convoke-operator"][usize::from(is_operators)];
        // What measures a server is no part of the bus: whoever runs it has the server for himself.
        if is_in("bench") {
            continue;
        }
        for command in commands_in(product) {
            if !granted(user, &command) {
                missing.insert(format!("{user} lacks +{command} ({})", file.display()));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}
