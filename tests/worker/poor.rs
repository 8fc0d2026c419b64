//! Servers that leave out what is asked for information only, as some do that one can rent.

use crate::rig::{Rig, text};
use crate::support::between::{between_all, empty_sections};
use crate::support::{Redis, keys, users};
use convoke::client::publish::{Doubt, Outgoing, PublishError};
use convoke::connect::connector::Connector;
use convoke::coordination::instances::Instances;
use convoke::coordination::instances::instance::Registering;
use convoke::settings::{RedisUrl, Settings};
use convoke::{Context, HandlerError};
use serde_json::json;
use std::time::Duration;

/// Everything that is sent, or could be, only to be told something.
const INFORMATION: [&str; 11] = [
    "ROLE", "INFO", "TIME", "CONFIG", "ACL", "CLIENT", "COMMAND", "LATENCY", "SLOWLOG", "MEMORY",
    "WAIT",
];

fn without(commands: &[&str]) -> Redis {
    let mut options = vec!["--save", "", "--appendonly", "no"];
    for command in commands {
        options.extend(["--rename-command", command, ""]);
    }
    Redis::bus(&options)
}

/// A server that has them, and lets none of our users run them.
fn forbidding(commands: &[&str]) -> Redis {
    let mut redis = Redis::start();
    redis.expect_refusals();
    for user in users::ALL {
        let mut command = redis::cmd("ACL");
        command.arg(&["SETUSER", user]);
        for name in commands {
            command.arg(format!("-{}", name.to_lowercase()));
        }
        command.exec(&mut redis.connect()).unwrap();
    }
    redis
}

async fn double(_: Context, n: u64) -> Result<u64, HandlerError> {
    Ok(2 * n)
}

async fn once(_: Context, (): ()) -> Result<(), HandlerError> {
    Ok(())
}

/// A worker starts, answers, runs what is due, takes over what a dead one held, keeps its leases, and goes.
async fn scenario(redis: Redis, missing: &[&str]) {
    let rig = Rig::on(redis).await;
    let url = RedisUrl::new(rig.redis.url());
    plays(&rig, url, missing).await;
}

/// The same, by a worker that reaches the server there.
async fn plays(rig: &Rig, url: RedisUrl, missing: &[&str]) {
    // One that dies while it holds an event.
    let instances = Instances::new(
        Connector::new(&RedisUrl::new(rig.redis.url()), 2).unwrap(),
        keys(),
    );
    let mut dies = Registering::new("dies", ["worker"]);
    dies.ttl_ms = 1000;
    instances.register(&dies).await.unwrap();
    let taken = Outgoing::new("work.taken", &());
    rig.client.publish(&taken).await.unwrap();
    for command in [
        "XGROUP CREATE cb:events:work workers 0",
        "XREADGROUP GROUP workers dies STREAMS cb:events:work >",
    ] {
        let mut words = command.split(' ');
        let mut command = redis::cmd(words.next().unwrap());
        command.arg(words.collect::<Vec<_>>());
        let mut connection = rig.connection.clone();
        command.exec_async(&mut connection).await.unwrap();
    }

    let settings = Settings {
        redis_url: url,
        ..rig.settings()
    };
    let worker = rig.start(
        rig.builder()
            .settings(settings)
            .handler("work.double", double)
            .handler("work.taken", once),
    );
    let reply = rig.ask("work.double", &21).await.unwrap();
    assert_eq!(reply.decode::<u64>().unwrap(), 42, "without {missing:?}");
    let later = Outgoing::new("work.double", &4)
        .id("later")
        .dedup(true)
        .delay(Duration::from_millis(50));
    rig.client.publish(&later).await.unwrap();
    let task = json!({"task_id": "t-1", "kind": "work.double", "payload": 1});
    rig.ask("task.create", &task).await.unwrap();
    rig.wait_for_fact("task.completed", 1).await;
    let state = rig.ask("system.get_state", &json!({})).await.unwrap();
    let state: serde_json::Value = state.decode().unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let off = state["at"]
        .as_u64()
        .unwrap()
        .abs_diff(now.unwrap().as_millis() as u64);
    assert!(off < 60_000, "{off} ms off without {missing:?}");
    rig.ask("system.metrics", &json!({"detailed": true}))
        .await
        .unwrap();
    let vote = json!({"decision": "d", "instance_id": rig.settings().id, "value": 1});
    assert!(
        rig.ask("system.quorum.vote", &vote).await.is_err(),
        "a stranger's vote"
    );
    // The dead one's event, and the one that was put off.
    let results = rig.wait_for("cb:results:work", 2).await;
    let kinds: Vec<String> = results.iter().map(|entry| text(entry, "type")).collect();
    assert!(
        kinds.contains(&"work.taken.result".to_owned()),
        "{kinds:?} without {missing:?}"
    );
    assert_eq!(rig.pending("cb:events:work").await, 0);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_is_asked_for_information_is_needed() {
    // A poor server has less already, so that nothing can be taken away.
    if users::skip_without("ROLE") {
        return;
    }
    let mut all: Vec<Vec<&str>> = INFORMATION.iter().map(|&command| vec![command]).collect();
    all.push(INFORMATION.to_vec());
    let unknown = all
        .iter()
        .map(|missing| (without as fn(&[&str]) -> Redis, missing));
    // What a worker sends itself, and all together.
    let sent = all.iter().filter(|missing| {
        missing.len() > 1 || ["ROLE", "INFO", "TIME", "WAIT"].contains(&missing[0])
    });
    let forbidden = sent.map(|missing| (forbidding as fn(&[&str]) -> Redis, missing));
    let each = unknown
        .chain(forbidden)
        .map(|(server, missing)| async move { scenario(server(missing), missing).await });
    // A few at a time: two cores are soon busy.
    let mut running =
        futures_util::StreamExt::buffer_unordered(futures_util::stream::iter(each), 4);
    while futures_util::StreamExt::next(&mut running).await.is_some() {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sections_of_info_that_tell_nothing_are_no_obstacle() {
    let rig = Rig::on(Redis::start()).await;
    let url = RedisUrl::new(between_all(&rig.redis, users::WORKER, empty_sections));
    let told = Connector::new(&url, 1).unwrap();
    told.pooled().await.unwrap();
    assert!(told.lacks().epoch, "INFO tells which history this is");
    plays(&rig, url, &["what INFO says"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publish_that_can_not_be_confirmed_says_so() {
    if users::skip_without("WAIT") {
        return;
    }
    let rig = Rig::on(without(&["WAIT"])).await;
    let confirmed = Outgoing::new("work.double", &1).confirm(1, Duration::from_secs(1));
    match rig.client.publish(&confirmed).await {
        Err(PublishError::Unknown {
            source: source @ Doubt::NoConfirmation { .. },
            ..
        }) => assert!(source.to_string().contains("WAIT"), "{source}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(rig.entries("cb:events:work").await.len(), 1, "it is stored");
}
