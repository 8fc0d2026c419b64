//! An operator and a monitor: they look at everything; the one changes little, the other nothing.

use super::{Guarded, as_user, ask, client, length, whole};
use crate::support::users;
use convoke::Worker;
use convoke::protocol::keys::Keys;
use convoke::settings::Settings;
use convoke::worker::RunError;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

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
        "XDEL cb:events:image 1-1",
        "XADD cb:dead:image * type image.whole",
        "ZREM cb:parked:image:image.whole m",
        "HDEL {cb:image:0}:parked image.whole",
        "SET cb:cancelled:image:1 it",
        "XACK cb:events:image workers 1-1",
        "INCR cb:claims:w-1",
        "SET {cb:image:0}:replayed:1-1 run",
        "XADD cb:broadcast * type operator.replayed",
        "HSET {cb}:repairs:states r x",
        "HINCRBY {cb:image:0}:repair:image:r replayed 1",
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
            "XTRIM cb:events:image MAXLEN 0",
            "DEL cb:parked:image",
            "DEL cb:repairs",
            "DEL cb:repair:image:r",
            "ZADD cb:parked:image:image.whole 0 m",
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
