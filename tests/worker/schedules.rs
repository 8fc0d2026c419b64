//! Schedules as events, with workers that fire them.

use crate::rig::Rig;
use crate::support::{is_cluster, name, until};
use convoke::client::publish::Outgoing;
use convoke::protocol::error::Code;
use convoke::protocol::event::Entry;
use convoke::{Context, HandlerError};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

async fn ask(rig: &Rig, kind: &str, data: Value) -> Value {
    let event = Outgoing::new(kind, &data).source("ann");
    let reply = rig.client.request(event, Duration::from_secs(20)).await;
    reply.unwrap().decode().unwrap()
}

fn id(entry: &Entry) -> String {
    String::from_utf8_lossy(entry.get("id").unwrap()).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_tick_runs_once_with_several_workers_of_which_one_leaves() {
    let rig = Rig::new().await;
    let ran = Arc::new(Mutex::new(Vec::new()));
    let builder = |name: &str| {
        let ran = ran.clone();
        let handler = move |context: Context, payload: Value| {
            let ran = ran.clone();
            async move {
                let event = context.event();
                let one = (event.id(), event.subject().map(str::to_owned), payload);
                ran.lock().unwrap().push(one);
                Ok::<_, HandlerError>(())
            }
        };
        let mut settings = rig.settings();
        settings.id = name.into();
        convoke::Worker::builder()
            .settings(settings)
            .handler("report.make", handler)
    };
    let mut workers: Vec<_> = ["w-1", "w-2", "w-3"]
        .map(|name| rig.start(builder(name)))
        .into();
    rig.wait_for_fact("instance.registered", 3).await;
    let put = json!({
        "name": "beat", "cron": "* * * * * *", "time_zone": "Europe/Berlin", "type": "report.make",
        "payload": {"n": 7}, "subject": "cat", "missed": "all",
    });
    let done = ask(&rig, "system.schedule.put", put).await;
    assert_eq!(
        (&done["version"], done["next"].as_array().unwrap().len()),
        (&json!(1), 5)
    );
    rig.wait_for("cb:events:report", 2).await;
    workers.remove(0).stop().await;
    rig.wait_for("cb:events:report", 4).await;
    // Paused, it stays as it is.
    let paused = json!({"name": "beat", "paused": true});
    let paused = ask(&rig, "system.schedule.put", paused).await;
    assert_eq!(
        (&paused["version"], &paused["next"]),
        (&json!(2), &json!([]))
    );
    let listed = ask(&rig, "system.schedule.list", json!({})).await;
    let listed = &listed["schedules"][0];
    let stored = listed["stored"].as_u64().unwrap() as usize;
    for (field, value) in [
        ("name", json!("beat")),
        ("cron", json!("* * * * * *")),
        ("time_zone", json!("Europe/Berlin")),
        ("type", json!("report.make")),
        ("missed", json!("all")),
        ("paused", json!(true)),
        ("by", json!("ann")),
        ("left_out", json!(0)),
    ] {
        assert_eq!(listed[field], value, "{field}");
    }
    until("all of them ran", || async {
        ran.lock().unwrap().len() >= stored
    })
    .await;
    for worker in workers {
        worker.stop().await;
    }
    let entries = rig.entries("cb:events:report").await;
    let ids: BTreeSet<String> = entries.iter().map(id).collect();
    let ran = ran.lock().unwrap();
    assert_eq!(
        (entries.len(), ids.len(), ran.len()),
        (stored, stored, stored)
    );
    assert_eq!(
        ran.iter().map(|one| one.0.clone()).collect::<BTreeSet<_>>(),
        ids
    );
    assert!(
        ran.iter()
            .all(|one| one.1.as_deref() == Some("cat") && one.2 == json!({"n": 7}))
    );
    let last = entries.last().unwrap();
    match is_cluster() {
        // Of another slot, where an outbox moved it.
        true => assert_eq!(listed["last"]["entry"], Value::Null),
        false => assert_eq!(listed["last"]["entry"], last.id.to_string()),
    }
    assert_eq!(listed["last"]["stream"], name("report", "cb:events:report"));
}

#[tokio::test]
async fn now_is_besides_the_ticks_and_told() {
    let rig = Rig::new().await;
    let handler = async |_: Context, (): ()| Ok::<_, HandlerError>(());
    let worker = rig.start(rig.builder().handler("report.make", handler));
    let put = json!({"name": "nightly", "cron": "30 2 * * *", "type": "report.make"});
    let next = ask(&rig, "system.schedule.put", put).await["next"].clone();
    let ran = ask(&rig, "system.schedule.run", json!({"name": "nightly"})).await;
    let entries = rig.wait_for("cb:events:report", 1).await;
    assert_eq!(ran["id"], id(&entries[0]));
    rig.wait_for("cb:results:report", 1).await;
    let listed = ask(&rig, "system.schedule.list", json!({})).await;
    assert_eq!(listed["schedules"][0]["next"], next);
    let told = rig.wait_for_fact("schedule.changed", 2).await;
    let told: Vec<Value> = told
        .iter()
        .map(|fact| rmp_serde::from_slice(fact.get("data").unwrap()).unwrap())
        .collect();
    assert_eq!(
        (&told[0]["change"], &told[0]["by"]),
        (&json!("put"), &json!("ann"))
    );
    assert_eq!(
        (&told[1]["change"], &told[1]["id"]),
        (&json!("run"), &ran["id"])
    );
    let gone = ask(&rig, "system.schedule.delete", json!({"name": "nightly"})).await;
    assert_eq!(gone["deleted"], true);
    let gone = rig
        .refused("system.schedule.run", &json!({"name": "nightly"}))
        .await;
    assert_eq!(gone.code, Code::NotFound);
    worker.stop().await;
}

#[tokio::test]
async fn what_is_wrong_is_refused_with_the_field() {
    let rig = Rig::new().await;
    let worker = rig.start(rig.builder());
    for (data, code, says) in [
        (json!({"name": "a"}), Code::NotFound, "\"a\""),
        (
            json!({"name": "a", "every_ms": 5000}),
            Code::InvalidArgument,
            "type: ",
        ),
        (
            json!({"name": "a", "type": "b.c"}),
            Code::InvalidArgument,
            "cron, every_ms, at: ",
        ),
        (
            json!({"name": "a b", "type": "b.c", "every_ms": 5000}),
            Code::InvalidArgument,
            "name: ",
        ),
        (
            json!({"name": "a", "type": "b.c", "cron": "x"}),
            Code::InvalidArgument,
            "cron: ",
        ),
        (
            json!({"name": "a", "type": "b.c", "every_ms": 5000, "missed": "some"}),
            Code::InvalidArgument,
            "missed: ",
        ),
        (
            json!({"name": "a", "type": "b.c", "every_ms": 5000, "version": 3}),
            Code::Aborted,
            "version: ",
        ),
    ] {
        let refused = rig.refused("system.schedule.put", &data).await;
        assert_eq!(refused.code, code, "{data}: {}", refused.message);
        assert!(refused.message.contains(says), "{}", refused.message);
    }
    worker.stop().await;
}
