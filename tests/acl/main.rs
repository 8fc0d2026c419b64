//! The users of `deploy/users.acl` may do what convoke does with them, and little else.

#![allow(clippy::expect_used)]

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
use convoke::streams::delay;
use convoke::worker::RunError;
use convoke::{Context, HandlerError, Worker};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use support::store::Store;
use support::{Redis, users};
use tokio::task::JoinHandle;
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

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_can_publish_and_ask_in_every_way() {
    for keys in [Keys::new("cb"), Keys::tagged("cb", 2)] {
        let keys = keys.expect("a namespace");
        let guarded = Guarded::start();
        let client = client(&guarded, "convoke-publisher", keys.clone());
        let event = || Outgoing::new("image.resize", &7);
        client.publish(&event()).await.expect("stored");
        for _ in 0..2 {
            let once = event().id("once").dedup(true);
            client.publish(&once).await.expect("stored once");
        }
        let later = event().delay(Duration::from_secs(60));
        client.publish(&later).await.expect("stored for later");
        let later = event().id("later").dedup(true).at(4_000_000_000_000);
        client.publish(&later).await.expect("stored for later");
        for stored in client.publish_many(&[event(), event()]).await {
            stored.expect("stored");
        }
        let confirmed = event().confirm(1, Duration::from_millis(1));
        let doubt = client.publish(&confirmed).await.expect_err("no replica");
        assert!(doubt.to_string().contains("replica"), "{doubt}");

        let asked = Outgoing::new("system.health", &()).id("asked");
        let (reply, ()) = tokio::join!(
            client.request(asked, Duration::from_secs(30)),
            answer(&guarded, &keys)
        );
        assert_eq!(reply.expect("a reply").correlation_id, "asked");
        client.close().await;
        assert_eq!(guarded.redis.refused(), Vec::<String>::new());
    }
}

/// Answers the one request for `system.health`, as the server's owner.
async fn answer(guarded: &Guarded, keys: &Keys) {
    let mut connection = guarded.redis.connection().await;
    let events = keys.events("system", 0);
    support::until("the request arrives", || {
        let mut connection = connection.clone();
        let events = &events;
        async move {
            let length: i64 = redis::cmd("XLEN")
                .arg(events)
                .query_async(&mut connection)
                .await
                .expect("a length");
            length == 1
        }
    })
    .await;
    redis::cmd("XADD")
        .arg(keys.reply("system", 0, "shop"))
        .arg("*")
        .arg(&["correlationid", "asked", "type", "system.health.result"])
        .arg(&["status", "ok", "data"])
        .arg(b"\xc0")
        .exec_async(&mut connection)
        .await
        .expect("answered");
}

#[test]
fn a_publisher_can_neither_read_events_nor_settle_them_nor_look_around() {
    let guarded = Guarded::start();
    guarded.must_refuse(
        "convoke-publisher",
        &[
            "XREAD STREAMS cb:events:image 0",
            "XRANGE cb:events:image - +",
            "XREADGROUP GROUP workers me STREAMS cb:events:image >",
            "XACK cb:events:image workers 1-1",
            "XDEL cb:events:image 1-1",
            "XTRIM cb:events:image MAXLEN 0",
            "XGROUP CREATE cb:events:image other 0 MKSTREAM",
            "XADD cb:broadcast * type instance.lost",
            "XADD cb:results:image * status ok",
            "XADD cbx:events:image * type image.resize",
            "XADD {cbx}:events:image * type image.resize",
            "ZADD cb:instances:active 1 w-1",
            "UNLINK cb:events:image",
            "DEL cb:events:image",
            "DEL cb:delayed:image",
            "DEL {cb:image:0}:events",
            "SET cb:events:image junk",
            "SET cb:events:system junk",
            "SET cb:delayed:image junk",
            "PEXPIRE cb:events:image 1",
            "PEXPIRE cb:delayed:image 1",
            "PEXPIRE {cb:image:0}:delayed 1",
            "ZADD cb:events:image 1 m",
            "ZADD cb:inbox_delayed:w-1 1 m",
            "ZADD {cb}:inbox_delayed:w-1 1 m",
            "XADD cb:delayed:image * type image.whole",
            "XADD cb:dedup:image:1 * type image.whole",
            "SCRIPT LOAD x",
            "SCRIPT FLUSH",
            "SCRIPT KILL",
            "DEL cb:instance:w-1",
            "EVAL return 0",
            "KEYS *",
            "SCAN 0",
            "FLUSHALL",
            "CONFIG GET *",
            "CLIENT LIST",
            "CLIENT KILL ID 1",
            "ACL WHOAMI",
            "DEBUG SLEEP 0",
            "SHUTDOWN NOSAVE",
        ],
    );
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

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_puts_nothing_into_the_inbox_of_a_worker() {
    let guarded = Guarded::start();
    // Where earlier versions kept the delay queue of an inbox, and a publisher's pattern fits.
    let forged = delay::encode_member("1", &["type", "image.whole", "data", "\x07"]);
    let mut publisher = guarded.redis.connection_for(users::PUBLISHER).await;
    redis::cmd("ZADD")
        .arg(&["cb:delayed:inbox:w-1", "1"])
        .arg(forged)
        .exec_async(&mut publisher)
        .await
        .expect("that is its to write");
    let settings = Settings {
        redis_url: guarded.url(users::WORKER),
        id: "w-1".into(),
        ..Settings::default()
    };
    let worker = Worker::builder()
        .settings(settings)
        .handler("image.whole", whole);
    let drain = CancellationToken::new();
    let worker = worker.build().expect("a worker");
    let running = tokio::spawn(worker.run_until(drain.clone()));
    let keys = Keys::new("cb").expect("a namespace");
    let client = client(&guarded, users::PUBLISHER, keys);
    // What is due after the worker's first look at the delay queues has run at its second.
    let ran = ["cb:results:image".to_owned()];
    for round in 1..=2 {
        let later = Outgoing::new("image.whole", &7).delay(Duration::from_millis(1));
        client.publish(&later).await.expect("stored for later");
        support::until("it ran", || async { length(&guarded, &ran).await == round }).await;
    }
    let mut connection = guarded.redis.connection().await;
    let left = redis::cmd("ZCARD").arg("cb:delayed:inbox:w-1").to_owned();
    let left: u64 = left.query_async(&mut connection).await.expect("a number");
    assert_eq!(left, 1);
    assert_eq!(length(&guarded, &["cb:inbox:w-1".to_owned()]).await, 0);
    client.close().await;
    drain.cancel();
    running.await.expect("no panic").expect("drained");
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
    ghost.ttl_ms = 1000;
    instances.register(&ghost).await.expect("registered");
    let tasks = Tasks::new(connector.clone(), keys.clone());
    let mut task = NewTask::new("ghostly", "image.whole");
    task.max_attempts = 1;
    let created = tasks.create(&task).await.expect("created");
    assert_eq!(created.assigned_to.as_deref(), Some("ghost"));
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

#[test]
fn an_operator_can_look_at_everything_and_change_little() {
    let guarded = Guarded::start();
    for command in [
        "INFO server",
        "SCAN 0",
        "CONFIG GET maxmemory*",
        "ACL WHOAMI",
        "XRANGE cb:events:image - +",
        "XRANGE {cb:image:0}:events - +",
        "HGETALL cb:instance:w-1",
        "XADD cb:events:image * type image.whole",
        "XADD cb:reply:me * status ok",
        "XDEL cb:dead:image 1-1",
        "XACK cb:events:image workers 1-1",
        "INCR cb:claims:w-1",
        "SET {cb:image:0}:replayed:1-1 run",
        "XADD cb:broadcast * type operator.replayed",
        "ACL DRYRUN convoke-operator FLUSHALL",
    ] {
        let words: Vec<&str> = command.split(' ').collect();
        let done = guarded.try_as("convoke-operator", &words);
        assert_eq!(done, Ok(()), "{command}");
    }
    guarded.must_refuse(
        "convoke-operator",
        &[
            "GET session:1",
            "DEL cb:events:image",
            "SET cb:events:system junk",
            "PEXPIRE cb:delayed:image 1",
            "DEL cb:dead:image",
            "SET cb:broadcast junk",
            "XDEL cb:events:image 1-1",
            "XTRIM cb:events:image MAXLEN 0",
            "XACK cb:inbox:w-1 workers 1-1",
            "XGROUP DELCONSUMER cb:events:image workers w-1",
            "XCLAIM cb:events:image workers me 0 1-1",
            "HSET cb:instance:w-1 status active",
            "SET cb:claims:w-1 9",
            "INCR cb:leader",
            "SET cb:leader me",
            "ACL GETUSER default",
            "CONFIG SET maxmemory 1",
            "ACL SETUSER me on",
            "EVAL return 0",
            "FLUSHALL",
            "SHUTDOWN NOSAVE",
        ],
    );
}

#[test]
fn a_monitor_can_look_at_everything_and_change_nothing() {
    let guarded = Guarded::start();
    for command in [
        "INFO server",
        "SCAN 0",
        "CONFIG GET maxmemory*",
        "ACL WHOAMI",
        "ACL DRYRUN convoke-monitor FLUSHALL",
        "XRANGE cb:events:image - +",
        "XRANGE {cb:image:0}:events - +",
        "HGETALL cb:instance:w-1",
        "ZRANGE {cb}:instances:active 0 -1",
    ] {
        let words: Vec<&str> = command.split(' ').collect();
        let done = guarded.try_as(users::MONITOR, &words);
        assert_eq!(done, Ok(()), "{command}");
    }
    guarded.must_refuse(
        users::MONITOR,
        &[
            "GET session:1",
            "XADD cb:events:image * type image.whole",
            "XADD cb:reply:me * status ok",
            "XADD cb:broadcast * type operator.replayed",
            "XADD {cb:image:0}:events * type image.whole",
            "XDEL cb:dead:image 1-1",
            "XACK cb:events:image workers 1-1",
            "XREADGROUP GROUP workers me STREAMS cb:events:image >",
            "XGROUP CREATE cb:events:image other 0 MKSTREAM",
            "XCLAIM cb:events:image workers me 0 1-1",
            "XTRIM cb:events:image MAXLEN 0",
            "HSET cb:instance:w-1 status active",
            "SET cb:leader me",
            "INCR cb:claims:w-1",
            "PEXPIRE cb:instance:w-1 1",
            "DEL cb:instance:w-1",
            "UNLINK cb:instance:w-1",
            "PUBLISH cb:events:image x",
            "ACL GETUSER default",
            "ACL SETUSER me on",
            "CONFIG SET maxmemory 1",
            "CLIENT LIST",
            "CLIENT KILL ID 1",
            "EVAL return 0",
            "SCRIPT LOAD x",
            "SCRIPT KILL",
            "KEYS *",
            "FLUSHALL",
            "DEBUG SLEEP 0",
            "SHUTDOWN NOSAVE",
        ],
    );
    // A script lends no rights.
    let writes = redis::Script::new("return redis.call('SET', KEYS[1], '1')");
    writes.load(&mut guarded.redis.connect()).expect("loaded");
    let mut connection = redis::Client::open(guarded.redis.url_for(users::MONITOR))
        .and_then(|client| client.get_connection())
        .expect("a connection");
    let refused = writes.key("cb:leader").invoke::<()>(&mut connection);
    let message = refused.expect_err("a write").to_string();
    assert!(message.contains("can't run this command"), "{message}");
    assert!(!guarded.redis.refused().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_monitor_can_run_what_only_looks_and_is_told_what_it_may_not() {
    for partitions in [0, 1] {
        let (guarded, keys, worker) = with_work_and_a_worker(partitions).await;
        let client = client(&guarded, users::PUBLISHER, keys.clone());
        let batch =
            serde_json::json!({"batch_id": "b-1", "item_type": "image.whole", "items": [1]});
        ask(&client, "system.batch.process", &batch).await;
        let vote = serde_json::json!({"decision": "d", "instance_id": "w-1", "value": 1});
        ask(&client, "system.quorum.vote", &vote).await;
        for words in [
            &["streams"][..],
            &["pending"],
            &["pending", "--where", "x", "--consumer", "w-1"],
            &["instances"],
            &["top", "--once"],
            &["tail", "*:image", "--since", "1h", "--no-follow"],
            &["dead", "list"],
            &["dead", "list", "image", "--entries"],
            &["dead", "show", "1-1", "image"],
            &["batch", "list"],
            &["batch", "show", "b-1"],
            &["vote", "list"],
            &["vote", "show", "d"],
            &["doctor", "--all"],
        ] {
            let (code, out, said) = as_user(&guarded, users::MONITOR, partitions, words).await;
            // The harness keeps the default user, which is dangerous.
            assert!(code == 0 || words[0] == "doctor", "{words:?}: {said}");
            assert!(!out.contains("not seen"), "{out}");
            if words[0] == "doctor" {
                assert!(out.contains(" 0 not checked"), "{out}");
            }
        }
        assert_eq!(guarded.redis.refused(), Vec::<String>::new());
        for words in [
            &["publish", "image.whole"][..],
            &["health"],
            &["state"],
            &["metrics"],
            &["replay", "dead", "--yes"],
            &["dead", "drop", "--id", "2-1", "--yes"],
        ] {
            let (code, _, said) = as_user(&guarded, users::MONITOR, partitions, words).await;
            assert_eq!(code, 1, "{words:?}: {said}");
            let says_why = said.contains("permission") || said.contains("can't run this");
            assert!(says_why, "{words:?}: {said}");
        }
        assert_eq!(length(&guarded, &[keys.dead("image", 0)]).await, 2);
        guarded.redis.refused();
        client.close().await;
        worker.drained().await;
    }
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

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_can_run_the_commands() {
    for partitions in [0, 1] {
        run_the_commands(partitions).await;
    }
}

async fn run_the_commands(partitions: u16) {
    let (guarded, keys, worker) = with_work_and_a_worker(partitions).await;
    for words in [
        &[
            "publish",
            "image.whole",
            "--data",
            "7",
            "--id",
            "1",
            "--dedup",
        ][..],
        &["request", "image.whole", "--data", "7"],
        &["health"],
        &["metrics", "--detailed"],
        &["metrics", "--format", "prometheus"],
        &["instances"],
        &["streams"],
        &["top", "--once"],
        &["pending"],
        &["pending", "--where", "x", "--consumer", "w-1"],
        &["tail", "*:image", "--since", "1h", "--no-follow"],
        &["dead", "list"],
        &["dead", "list", "image", "--entries"],
        &["dead", "show", "1-1", "image"],
        &["replay", "dead", "--id", "1-1", "--yes"],
        &["dead", "drop", "--id", "2-1", "--yes"],
        &["replay", "range", "image", "--yes"],
        &["replay", "pending", "left", "--force", "--yes"],
        &["doctor"],
        &[
            "batch",
            "run",
            "image.whole",
            "--items",
            "[1, 2]",
            "--id",
            "b-1",
        ],
        &["batch", "show", "b-1"],
        &["batch", "list"],
        &["state"],
        &["discover"],
        &[
            "vote",
            "cast",
            "d",
            "--instance=w-1",
            "--value=1",
            "--role=worker",
        ],
        &["vote", "cast", "e", "--instance=w-1", "--value=1"],
        &["vote", "show", "d"],
        &["vote", "list"],
    ] {
        let mut words = words.to_vec();
        if words[0] == "doctor" {
            // The harness keeps the default user to look on, which is dangerous.
            words.push("--all");
        }
        let (code, out, said) = as_user(&guarded, users::OPERATOR, partitions, &words).await;
        let examined = words[0] == "doctor" && code == 1;
        assert!(code == 0 || examined, "{words:?}: {said}");
        assert!(!out.contains("not seen"), "{out}");
        if words[0] == "doctor" {
            assert!(out.contains(" 0 not checked"), "{out}");
        }
    }
    // The dead letters are gone, and the pending entry has a copy.
    assert_eq!(length(&guarded, &[keys.dead("image", 0)]).await, 0);
    assert_eq!(length(&guarded, &[keys.events("left", 0)]).await, 2);
    worker.drained().await;
    assert_eq!(guarded.redis.refused(), Vec::<String>::new());
}

/// A worker that runs.
struct Running {
    drain: CancellationToken,
    task: JoinHandle<Result<(), RunError>>,
}

impl Running {
    async fn drained(self) {
        self.drain.cancel();
        self.task.await.expect("no panic").expect("drained");
    }
}

/// A server with what an operator finds, and a worker on it.
async fn with_work_and_a_worker(partitions: u16) -> (Guarded, Keys, Running) {
    let guarded = Guarded::start();
    let settings = Settings {
        redis_url: guarded.url(users::WORKER),
        partitions,
        id: "w-1".into(),
        ..Settings::default()
    };
    let keys = settings.keys().expect("a namespace");
    leave_work_for_an_operator(&guarded, &keys).await;
    let worker = Worker::builder()
        .settings(settings)
        .handler("image.whole", whole);
    let drain = CancellationToken::new();
    let task = tokio::spawn(worker.build().expect("a worker").run_until(drain.clone()));
    (guarded, keys, Running { drain, task })
}

/// Two dead letters, and an entry that is pending with nobody.
async fn leave_work_for_an_operator(guarded: &Guarded, keys: &Keys) {
    let mut connection = guarded.redis.connection().await;
    let dead = keys.dead("image", 0);
    for id in ["1-1", "2-1"] {
        redis::cmd("XADD")
            .arg(&[&dead, id, "type", "image.whole", "data", "\x07"])
            .arg(&["deadreason", "internal"])
            .exec_async(&mut connection)
            .await
            .expect("a dead letter");
    }
    let left = keys.events("left", 0);
    for words in [
        vec!["XGROUP", "CREATE", &left, "workers", "0", "MKSTREAM"],
        vec!["XADD", &left, "1-1", "type", "left.over"],
        vec![
            "XREADGROUP",
            "GROUP",
            "workers",
            "w-9",
            "STREAMS",
            &left,
            ">",
        ],
    ] {
        redis::cmd(words[0])
            .arg(&words[1..])
            .exec_async(&mut connection)
            .await
            .expect("pending");
    }
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
        let is_operators = is_in("cli") || is_in("operator") || is_looked_at;
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
