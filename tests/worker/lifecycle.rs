//! Registration, system events, repair.

use crate::rig::Rig;
use crate::support::proxy::{Cut, Proxy};
use crate::support::{is_cluster, name, until, users};
use convoke::client::publish::Outgoing;
use convoke::protocol::error::Code;
use convoke::protocol::event::Entry;
use convoke::settings::{RedisUrl, Settings};
use convoke::{Context, HandlerError, Policy, Worker};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

type Steps = Arc<Mutex<Vec<(String, u64)>>>;

async fn echo(_: Context, value: String) -> Result<String, HandlerError> {
    Ok(value)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn system_events_work_over_the_bus() {
    let rig = Rig::new().await;
    let mut settings = rig.settings();
    settings.id = "w-1".into();
    let builder = Worker::builder().settings(settings);
    let worker = rig.start(builder.handler("text.echo", echo));
    rig.wait_for_fact("leader.elected", 1).await;
    let ask = async |kind: &str, payload: Value| -> Value {
        rig.ask(kind, &payload).await.unwrap().decode().unwrap()
    };
    let registered = ask(
        "system.register",
        json!({"id": "mine", "roles": ["worker", "printer"], "metadata": {"zone": 7}}),
    )
    .await;
    assert_eq!(registered["registered"], true);
    assert_eq!(registered["ttl_ms"], 30_000);
    assert_eq!(registered["assigned"], json!([]));
    assert_eq!(registered["leader"], "w-1");
    let incarnation = registered["incarnation"].clone();
    let beat = ask("system.heartbeat", json!({"instance_id": "mine", "incarnation": incarnation, "load": 0.5, "observed": {"x": "suspect"}, "metrics": {"a": 1}})).await;
    assert_eq!(
        (&beat["alive"], &beat["ttl_ms"], &beat["leader"]),
        (&json!(true), &json!(30_000), &json!("w-1"))
    );
    assert_eq!(beat["watch"][0]["id"], "w-1");
    let stranger = ask("system.heartbeat", json!({"instance_id": "nobody"})).await;
    assert_eq!(stranger["alive"], false);
    let health = ask("system.health", json!({})).await;
    assert_eq!(health["status"], "healthy");
    assert_eq!(health["services"]["redis"]["status"], "up");
    assert_eq!(health["services"]["postgres"]["status"], "disabled");
    assert_eq!(
        health["instances"],
        json!({"healthy": 1, "suspect": 0, "lost": 0, "external": 1})
    );
    assert_eq!(health["partition"], false);
    assert_eq!(health["flow"], json!([]));
    let mut connection = rig.connection.clone();
    let mut make = redis::pipe();
    make.cmd("XADD")
        .arg(&["cb:events:text", "1-1", "type", "text.other"]);
    make.cmd("XGROUP")
        .arg(&["CREATE", "cb:events:text", "audit", "0"]);
    make.exec_async(&mut connection).await.unwrap();
    let health = ask("system.health", json!({})).await;
    assert_eq!(health["status"], "healthy", "the flow changes no status");
    let flow = &health["flow"][0];
    assert_eq!(
        (&flow["check"], &flow["severe"]),
        (&json!("no-consumer"), &json!(false))
    );
    for part in ["what", "why", "mend"] {
        assert!(flow[part].as_str().unwrap().len() > 10, "{flow}");
    }
    let gone = ask("system.unregister", json!({"instance_id": "mine"})).await;
    assert_eq!(gone, json!({"unregistered": true, "tasks_reassigned": 0}));
    let missing = rig.refused("system.register", &json!({"roles": []})).await;
    assert_eq!(missing.code, Code::InvalidArgument);
    assert!(missing.message.contains("`id`"), "{missing}");
    let wrong = rig
        .refused("system.register", &json!({"id": "a b", "roles": []}))
        .await;
    assert!(wrong.message.starts_with("id: "), "{wrong}");
    let opinion = rig
        .refused(
            "system.heartbeat",
            &json!({"instance_id": "mine", "observed": {"x": "dead"}}),
        )
        .await;
    assert_eq!(opinion.code, Code::InvalidArgument);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heartbeats_are_limited_per_source() {
    let rig = Rig::new().await;
    let worker = rig.start(rig.builder());
    rig.ask("system.health", &json!({})).await.unwrap();
    let beats: Vec<Outgoing> = (0..1100)
        .map(|n| {
            Outgoing::new("system.heartbeat", &json!({"instance_id": "x"}))
                .id(format!("b-{n}"))
                .source("flood")
                .reply_to(name("system", "cb:reply:flood"))
        })
        .collect();
    let began = Instant::now();
    for result in rig.client.publish_many(&beats).await {
        result.unwrap();
    }
    let replies = rig.wait_for("cb:reply:flood", 1100).await;
    let refilled = began.elapsed().as_millis() as usize * 1000 / 60_000 + 1;
    let refused = replies
        .iter()
        .filter(|reply| reply.get("status") == Some(b"resource_exhausted"))
        .count();
    // The bucket fills up again while they run: a thousand in a minute.
    let least = 100_usize.saturating_sub(refilled).max(1);
    assert!(
        (least..=100).contains(&refused),
        "{refused} refused, {refilled} refilled"
    );
    let other = rig
        .ask("system.heartbeat", &json!({"instance_id": "x"}))
        .await;
    assert!(other.is_ok(), "another source has a bucket of its own");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_repairs_what_was_flushed_destroyed_or_killed() {
    let rig = Rig::new().await;
    let worker = rig.start(rig.builder().handler("text.echo", echo));
    let mut connection = rig.connection.clone();
    let disturbances: [&[&str]; 6] = [
        &["SCRIPT", "FLUSH"],
        &["XGROUP", "DESTROY", "cb:events:text", "workers"],
        &["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"],
        &["FLUSHALL"],
        &["DEL", "cb:events:text"],
        &["CLIENT", "PAUSE", "300", "ALL"],
    ];
    assert!(rig.ask("text.echo", &"hello").await.is_ok());
    for words in disturbances {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        command.exec_async(&mut connection).await.unwrap();
        if is_cluster() && words[0] == "DEL" {
            // What was made there is made again on the word of an operator: `convoke domain remake`.
            let mut remake = redis::cmd("DEL");
            remake.arg("{cb}:made:text");
            remake.exec_async(&mut connection).await.unwrap();
        }
        until("it answers again", || async {
            let event = Outgoing::new("text.echo", &"again");
            rig.client
                .request(event, Duration::from_secs(3))
                .await
                .is_ok()
        })
        .await;
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_no_stream_does_not_stop_the_other_streams() {
    let rig = Rig::new().await;
    let mut connection = rig.connection.clone();
    redis::cmd("SET")
        .arg("cb:events:mail")
        .arg("x")
        .exec_async(&mut connection)
        .await
        .unwrap();
    let worker = rig.start(
        rig.builder()
            .handler("text.echo", echo)
            .handler("mail.send", echo),
    );
    assert!(rig.ask("text.echo", &"hello").await.is_ok());
    redis::cmd("DEL")
        .arg("cb:events:mail")
        .exec_async(&mut connection)
        .await
        .unwrap();
    until("the stream is read again", || async {
        let event = Outgoing::new("mail.send", &"again");
        rig.client
            .request(event, Duration::from_secs(3))
            .await
            .is_ok()
    })
    .await;
    redis::cmd("SET")
        .arg("cb:events:mail")
        .arg("x")
        .exec_async(&mut connection)
        .await
        .unwrap();
    assert!(rig.ask("text.echo", &"hello").await.is_ok());
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_run_is_never_taken_from_a_live_worker() {
    let rig = Rig::new().await;
    let runs = Arc::new(Mutex::new(0u32));
    async fn long(context: Context, (): ()) -> Result<(), HandlerError> {
        let runs = context.state::<Arc<Mutex<u32>>>()?.clone();
        *runs.lock().unwrap() += 1;
        // Blocks its thread for longer than the claim time, as careless handlers do.
        std::thread::sleep(Duration::from_millis(2500));
        tokio::time::sleep(Duration::from_millis(2000)).await;
        Ok(())
    }
    let mut settings = rig.settings();
    // So long that where all stands still for a part of it, it is not the holder's silence.
    settings.claim_idle = Duration::from_millis(1500);
    let start = |id: &str| {
        let mut settings = settings.clone();
        settings.id = id.into();
        rig.start(
            Worker::builder()
                .settings(settings)
                .state(runs.clone())
                .handler("text.long", long),
        )
    };
    let (one, two) = (start("one"), start("two"));
    rig.ask("text.long", &()).await.unwrap();
    assert_eq!(*runs.lock().unwrap(), 1);
    one.stop().await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_of_one_subject_run_in_order_where_the_handler_asks_for_it() {
    let rig = Rig::new().await;
    let log = Steps::default();
    async fn step(context: Context, n: u64) -> Result<(), HandlerError> {
        tokio::time::sleep(Duration::from_millis(7 - n % 7)).await;
        let subject = context.event().subject().unwrap_or_default().to_owned();
        context.state::<Steps>()?.lock().unwrap().push((subject, n));
        Ok(())
    }
    let worker = rig.start(rig.builder().state(log.clone()).handler_with(
        "text.step",
        step,
        Policy::new().ordered(),
    ));
    for n in 0..90u64 {
        let event = Outgoing::new("text.step", &n).subject(format!("s-{}", n % 3));
        rig.client.publish(&event).await.unwrap();
    }
    rig.wait_for("cb:results:text", 90).await;
    for subject in 0..3 {
        let log = log.lock().unwrap();
        let order: Vec<u64> = log
            .iter()
            .filter(|(s, _)| *s == format!("s-{subject}"))
            .map(|(_, n)| *n)
            .collect();
        assert!(order.is_sorted(), "{order:?}");
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_handler_publishes_carries_the_trace_on_and_names_its_cause() {
    let rig = Rig::new().await;
    async fn fan(context: Context, (): ()) -> Result<(), HandlerError> {
        context.publish("other.thing", &1)
    }
    let worker = rig.start(rig.builder().handler("text.fan", fan));
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let event = Outgoing::new("text.fan", &())
        .traceparent(parent)
        .id("e-1")
        .subject("s");
    rig.client.publish(&event).await.unwrap();
    let made = rig.wait_for("cb:events:other", 1).await;
    let carried = crate::rig::text(&made[0], "traceparent");
    assert_eq!(carried[..36], parent[..36]);
    assert_ne!(carried, parent);
    assert_eq!(crate::rig::text(&made[0], "causationid"), "e-1");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_lives_while_what_it_asks_between_registration_and_work_hangs() {
    let rig = Rig::new().await;
    // The silent wire is waited for longer.
    let settings = Settings {
        heartbeat_ttl: Duration::from_secs(3),
        ..rig.settings()
    };
    let named = |id: &str| Settings {
        id: id.into(),
        ..settings.clone()
    };
    // Who would declare the other one lost; what it began makes the streams.
    let builder = Worker::builder().settings(named("w-judge"));
    let judge = rig.start(builder.handler("text.echo", echo));
    rig.ask("text.echo", &"a").await.unwrap();
    let proxy = Proxy::before(&rig.redis).await;
    proxy.cut(Cut::Silent, Some("XPENDING"), 1);
    let settings = Settings {
        redis_url: RedisUrl::new(proxy.url_of(&rig.redis, users::WORKER)),
        ..named("w-slow")
    };
    let builder = Worker::builder().settings(settings);
    let worker = rig.start(builder.handler("text.slow", echo));
    until("the wire is silent", async || proxy.has_cut()).await;
    rig.ask("text.slow", &"a").await.unwrap();
    let facts = rig.entries("cb:broadcast").await;
    let lost = |fact: &Entry| crate::rig::text(fact, "type") == "instance.lost";
    assert_eq!(facts.iter().filter(|fact| lost(fact)).count(), 0);
    worker.stop().await;
    judge.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_redis_does_not_answer_while_it_starts_tries_again() {
    let rig = Rig::new().await;
    for command in ["EVALSHA", "WATCH"] {
        let proxy = Proxy::before(&rig.redis).await;
        proxy.cut(Cut::Before, Some(command), 5);
        let mut settings = rig.settings();
        settings.redis_url = RedisUrl::new(proxy.url_of(&rig.redis, users::WORKER));
        let builder = Worker::builder().settings(settings);
        let worker = rig.start(builder.handler("text.echo", echo));
        assert_eq!(
            rig.ask("text.echo", &"a")
                .await
                .unwrap()
                .decode::<String>()
                .unwrap(),
            "a"
        );
        assert!(proxy.has_cut());
        worker.stop().await;
    }
}
