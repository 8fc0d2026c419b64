//! Fields of a plain `XADD`: when the event is to run, and that its payload is JSON; and types that nobody needs
//! to handle.

use crate::rig::{Rig, text};
use crate::support::keys;
use crate::support::until;
use convoke::connect::connector::Connector;
use convoke::coordination::instances::Instances;
use convoke::settings::{RedisUrl, Settings};
use convoke::{Context, HandlerError, Policy, Worker};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::sync::Semaphore;

async fn add(rig: &Rig, fields: &[(&str, &str)]) {
    let mut command = redis::cmd("XADD");
    command.arg("cb:events:image").arg("*");
    for (name, value) in fields {
        command.arg(name).arg(value);
    }
    let mut connection = rig.connection.clone();
    command.exec_async(&mut connection).await.unwrap();
}

async fn now(rig: &Rig) -> u64 {
    let connector = Connector::new(&RedisUrl::new(rig.redis.url()), 1).unwrap();
    let instances = Instances::of_process(connector, keys(), "test");
    instances.server_time().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_does_not_run_before_the_time_that_its_field_names_and_spends_no_attempt() {
    let rig = Rig::new().await;
    let ran =
        |context: Context, (): ()| async move { Ok::<_, HandlerError>(context.event().attempt()) };
    let worker = rig.start(rig.builder().handler("image.made", ran));
    rig.ask("image.made", &()).await.unwrap();
    let at = now(&rig).await + 2000;
    let soon = at.to_string();
    // More fields than an event may have, once the bus has added its own.
    let names: Vec<String> = (0..30).map(|n| format!("f{n}")).collect();
    let mut full = vec![("type", "image.made"), ("notbefore", &soon)];
    full.extend(names.iter().map(|name| (name.as_str(), "v")));
    add(&rig, &full).await;
    add(&rig, &[("type", "image.made"), ("notbefore", &soon)]).await;
    add(
        &rig,
        &[("type", "image.made"), ("notbefore", "1"), ("id", "past")],
    )
    .await;
    let results = rig.wait_for("cb:results:image", 3).await;
    assert_eq!(text(&results[0], "correlationid"), "past");
    for result in &results[1..] {
        // The clock may have been set back by a little.
        assert!(result.id.ms + 20 >= at, "{} is before {at}", result.id);
    }
    for result in &results {
        assert_eq!(
            rmp_serde::from_slice::<u32>(result.get("data").unwrap()).unwrap(),
            1
        );
    }
    assert!(!rig.exists("cb:dead:image").await);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payload_that_is_called_json_is_read_as_json_and_answered_in_kind() {
    let rig = Rig::new().await;
    static TRIES: AtomicU32 = AtomicU32::new(0);
    async fn double(_: Context, job: Value) -> Result<Value, HandlerError> {
        match job["n"].as_i64() {
            // The retry has the same payload.
            Some(7) if TRIES.fetch_add(1, Ordering::Relaxed) == 0 => {
                Err(HandlerError::unavailable("once more"))
            }
            Some(n) => Ok(json!({ "twice": 2 * n })),
            None => Err(HandlerError::not_found("n")),
        }
    }
    let worker = rig.start(
        rig.builder()
            .handler_with("image.double", double, Policy::new()),
    );
    let ask = async |name: &str, data: &str, kind: &str| {
        let to = format!("cb:reply:{name}");
        let fields = [
            ("type", "image.double"),
            ("data", data),
            ("datacontenttype", kind),
            ("replyto", &to),
        ];
        add(&rig, &fields).await;
        let reply = rig.wait_for(&to, 1).await.remove(0);
        let data = reply.get("data").unwrap().to_vec();
        (
            text(&reply, "status"),
            reply.get("datacontenttype").map(<[u8]>::to_vec),
            data,
        )
    };
    let json = Some(b"application/json".to_vec());
    for n in [3, 7] {
        let (status, kind, data) = ask(
            &format!("n{n}"),
            &format!("{{\"n\": {n}}}"),
            "application/json",
        )
        .await;
        assert_eq!((status.as_str(), &kind), ("ok", &json));
        assert_eq!(data, format!("{{\"twice\":{}}}", 2 * n).as_bytes());
    }
    for (name, text, code) in [
        ("none", "{}", "not_found"),
        ("bad", "{\"n\": 3", "invalid_argument"),
    ] {
        let (status, kind, data) = ask(name, text, "application/json").await;
        assert_eq!((status.as_str(), &kind), (code, &json));
        let error: Value = serde_json::from_slice(&data).unwrap();
        assert_eq!(error["code"], code);
    }
    let (status, kind, data) = ask("text", "{}", "text/plain").await;
    assert_eq!((status.as_str(), kind), ("invalid_argument", None));
    assert!(String::from_utf8_lossy(&data).contains("datacontenttype"));
    let (status, kind, _) = ask("packed", "\u{1}", "application/msgpack").await;
    assert_eq!((status.as_str(), kind), ("not_found", None));
    // Without anybody who asked, it stays MessagePack.
    add(
        &rig,
        &[
            ("type", "image.double"),
            ("data", "{\"n\": 1}"),
            ("datacontenttype", "application/json"),
        ],
    )
    .await;
    let result = rig.wait_for("cb:results:image", 1).await.remove(0);
    assert_eq!(result.get("datacontenttype"), None);
    let data: Value = rmp_serde::from_slice(result.get("data").unwrap()).unwrap();
    assert_eq!(data["twice"], 2);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_needs_to_handle_is_acknowledged_unless_somebody_asked() {
    let rig = Rig::new().await;
    let settings = Settings {
        ignore: vec!["image.made".into()],
        ..rig.settings()
    };
    async fn echo(_: Context, (): ()) -> Result<(), HandlerError> {
        Ok(())
    }
    let builder = Worker::builder().ignore("sound.*").settings(settings);
    let worker = rig.start(builder.handler("image.resize", echo));
    add(&rig, &[("type", "image.made")]).await;
    // A domain that the worker has no handler for.
    rig.run("XADD cb:events:sound * type sound.made").await;
    add(&rig, &[("type", "image.lost"), ("id", "lost")]).await;
    add(&rig, &[("type", "image.made"), ("replyto", "cb:reply:me")]).await;
    add(&rig, &[("type", "image.resize")]).await;
    let dead = rig.wait_for("cb:dead:image", 1).await;
    assert_eq!(text(&dead[0], "id"), "lost");
    let reply = rig.wait_for("cb:reply:me", 1).await.remove(0);
    assert_eq!(text(&reply, "status"), "unimplemented");
    rig.wait_for("cb:results:image", 1).await;
    until("all are acknowledged", || async {
        let groups = rig.run("XINFO GROUPS cb:events:sound").await;
        let groups: Vec<HashMap<String, redis::Value>> = redis::from_redis_value(groups).unwrap();
        let read = groups.first().is_some_and(|group| {
            group["last-delivered-id"] != redis::Value::BulkString(b"0-0".to_vec())
        });
        let pending = [
            rig.pending("cb:events:image").await,
            rig.pending("cb:events:sound").await,
        ];
        read && pending == [0, 0]
    })
    .await;
    worker.stop().await;
    assert_eq!(rig.entries("cb:dead:image").await.len(), 1);
    assert!(!rig.exists("cb:dead:sound").await);
    assert!(!rig.exists("cb:results:sound").await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_given_back_before_anybody_looked_at_it_keeps_its_time() {
    let rig = Rig::new().await;
    let (begun, open) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let (begins, opens) = (begun.clone(), open.clone());
    let hold = move |_: Context, (): ()| {
        let (begins, opens) = (begins.clone(), opens.clone());
        async move {
            begins.add_permits(1);
            opens.acquire().await?.forget();
            Ok::<_, HandlerError>(())
        }
    };
    let settings = Settings {
        concurrency: 1,
        ..rig.settings()
    };
    let at = now(&rig).await + 3_600_000;
    add(&rig, &[("type", "image.hold"), ("id", "first")]).await;
    let soon = at.to_string();
    add(&rig, &[("type", "image.hold"), ("notbefore", &soon)]).await;
    let builder = Worker::builder().settings(settings);
    let worker = rig.start(builder.handler("image.hold", hold));
    begun.acquire().await.unwrap().forget();
    until("both are read", || async {
        rig.pending("cb:events:image").await == 2
    })
    .await;
    let open = async {
        tokio::task::yield_now().await;
        open.add_permits(1);
    };
    tokio::join!(worker.stop(), open);
    let queued = rig.run("ZRANGE cb:delayed:image 0 -1 WITHSCORES").await;
    let queued: Vec<(Vec<u8>, f64)> = redis::from_redis_value(queued).unwrap();
    assert_eq!(queued.len(), 1);
    assert!(
        (queued[0].1 - at as f64).abs() < 60_000.0,
        "{} is not {at}",
        queued[0].1
    );
}
