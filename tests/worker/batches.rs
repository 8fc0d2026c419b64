//! Batches over the bus, by real workers.

mod fanned_out;

use crate::rig::{Rig, Running, text};
use crate::support::{name, until};
use convoke::client::publish::Outgoing;
use convoke::client::request::RequestError;
use convoke::coordination::batches::Batches;
use convoke::coordination::batches::batch::{Batch, BatchStatus};
use convoke::handler::policy::RetryPolicy;
use convoke::protocol::error::Code;
use convoke::worker::builder::Builder;
use convoke::{Context, HandlerError, Policy, Worker};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The runs of items: instance, event id, attempt.
pub(crate) type Runs = Arc<Mutex<Vec<(String, String, u32)>>>;

fn note(runs: &Runs, context: &Context) {
    let event = context.event();
    let run = (context.instance().to_owned(), event.id(), event.attempt());
    runs.lock().unwrap().push(run);
}

pub(crate) fn ids(runs: &Runs) -> Vec<String> {
    runs.lock()
        .unwrap()
        .iter()
        .map(|run| run.1.clone())
        .collect()
}

/// A worker whose handler of `number.add` takes so long, notes its runs and publishes its number;
/// 13 is not found.
pub(crate) fn adding(rig: &Rig, id: &str, ms: u64, runs: &Runs) -> Builder {
    let mut settings = rig.settings();
    settings.id = id.into();
    settings.concurrency = 8;
    let runs = runs.clone();
    let add = move |context: Context, n: u64| {
        let runs = runs.clone();
        async move {
            if ms > 0 {
                tokio::time::sleep(Duration::from_millis(ms)).await;
            }
            note(&runs, &context);
            if n == 13 {
                return Err(HandlerError::not_found("no 13"));
            }
            context.publish("effect.made", &n)?;
            Ok(n)
        }
    };
    Worker::builder()
        .settings(settings)
        .handler("number.add", add)
}

pub(crate) fn batch(id: &str, mode: &str, items: impl IntoIterator<Item = u64>) -> Value {
    let items: Vec<u64> = items.into_iter().collect();
    json!({"batch_id": id, "item_type": "number.add", "mode": mode, "items": items})
}

pub(crate) async fn process(rig: &Rig, batch: &Value) -> Value {
    let reply = rig.ask("system.batch.process", batch).await.unwrap();
    reply.decode().unwrap()
}

pub(crate) fn batches(rig: &Rig) -> Batches {
    use convoke::connect::connector::Connector;
    use convoke::settings::RedisUrl;
    let connector = Connector::new(&RedisUrl::new(rig.redis.url()), 2).unwrap();
    Batches::new(connector, rig.client.keys().clone())
}

pub(crate) async fn until_done(rig: &Rig, id: &str, items: u64) -> Batch {
    let batches = batches(rig);
    until("items are committed", || async {
        let found = batches.find(id).await.unwrap();
        found.is_some_and(|batch| batch.processed + batch.failed >= items)
    })
    .await;
    batches.find(id).await.unwrap().unwrap()
}

pub(crate) async fn started(rig: &Rig, builder: Builder) -> Running {
    let running = rig.start(builder);
    rig.ask("system.health", &json!({})).await.unwrap();
    running
}

/// The facts about batches: type and data.
async fn facts(rig: &Rig) -> Vec<(String, Value)> {
    let entries = rig.entries("cb:broadcast").await;
    let facts = entries.iter().map(|entry| {
        let data = rmp_serde::from_slice(entry.get("data").unwrap()).unwrap();
        (text(entry, "type"), data)
    });
    facts
        .filter(|(kind, _)| kind.starts_with("batch."))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_item_is_run_in_order_and_a_finished_batch_answers_again() {
    let rig = Rig::new().await;
    let runs = Runs::default();
    let worker = started(&rig, adding(&rig, "w-1", 0, &runs)).await;
    let wanted = batch("b-1", "exclusive", 0..100);
    let mut result = process(&rig, &wanted).await;
    assert_eq!(
        result["failures"],
        json!([{"index": 13, "code": "not_found", "message": "no 13"}])
    );
    assert!(result["fence"].as_u64().unwrap() > 1_700_000_000_000_000);
    let ordered: Vec<String> = (0..100).map(|n| format!("b-1/{n}")).collect();
    assert_eq!(ids(&runs), ordered);
    let effects = rig.wait_for("cb:events:effect", 99).await;
    assert_eq!(effects.len(), 99);
    assert_eq!(text(&effects[0], "source"), "w-1");
    assert_eq!(process(&rig, &wanted).await, result, "again");
    assert_eq!(runs.lock().unwrap().len(), 100);
    let facts = facts(&rig).await;
    assert_eq!(facts.first().unwrap().0, "batch.started");
    let completed: Vec<&Value> = facts
        .iter()
        .filter(|(kind, _)| kind == "batch.completed")
        .map(|(_, data)| data)
        .collect();
    let fact = json!({"batch_id": "b-1", "processor_id": "w-1", "items_processed": 99,
        "items_failed": 1, "total": 100, "fence": result["fence"],
        "failures": [{"index": 13, "code": "not_found", "message": "no 13"}]});
    assert_eq!(completed, [&fact]);
    let rest = result.as_object_mut().unwrap();
    rest.remove("failures");
    let expected = json!({"processed": true, "processor_id": "w-1", "items_processed": 99,
        "items_failed": 1, "total": 100, "fence": fact["fence"], "status": "completed"});
    assert_eq!(result, expected);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_batch_is_refused_with_the_fields_name() {
    let rig = Rig::new().await;
    let worker = started(&rig, adding(&rig, "w-1", 0, &Runs::default())).await;
    let with = |field: &str, value: Value| {
        let mut batch = batch("b-1", "exclusive", [1, 2]);
        batch[field] = value;
        batch
    };
    process(&rig, &batch("b-1", "exclusive", [1])).await;
    for (field, value, code) in [
        ("batch_id", json!("a b"), Code::InvalidArgument),
        ("item_type", json!("Number"), Code::InvalidArgument),
        (
            "item_type",
            json!("system.batch.process"),
            Code::InvalidArgument,
        ),
        ("items", json!("many"), Code::InvalidArgument),
        ("mode", json!("all"), Code::InvalidArgument),
        ("lease_ms", json!(99), Code::InvalidArgument),
        ("batch_id", json!("b-1"), Code::AlreadyExists),
    ] {
        let error = rig
            .refused("system.batch.process", &with(field, value))
            .await;
        assert_eq!(error.code, code, "{error}");
        assert!(error.message.contains(field), "{error}");
    }
    for mode in ["exclusive", "fan_out"] {
        let mut unknown = batch("b-2", mode, [1]);
        unknown["item_type"] = json!("number.divide");
        let error = rig.refused("system.batch.process", &unknown).await;
        assert_eq!(error.code, Code::Unimplemented);
        assert!(error.message.contains("number.divide"), "{error}");
    }
    assert_eq!(batches(&rig).find("b-2").await.unwrap(), None);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_asks_meanwhile_is_told_who_is_at_it() {
    let rig = Rig::new().await;
    let runs = Runs::default();
    let open = tokio_util::sync::CancellationToken::new();
    let worker = |id: &str| {
        let (noted, gate) = (runs.clone(), open.clone());
        let add = move |context: Context, n: u64| {
            let (noted, gate) = (noted.clone(), gate.clone());
            async move {
                if n >= 3 {
                    gate.cancelled().await;
                }
                note(&noted, &context);
                Ok::<_, HandlerError>(n)
            }
        };
        let mut settings = rig.settings();
        settings.id = id.into();
        let policy = Policy::new().no_timeout();
        Worker::builder()
            .settings(settings)
            .handler_with("number.add", add, policy)
    };
    let first = started(&rig, worker("w-1")).await;
    let wanted = batch("b-1", "exclusive", 0..40);
    let event = Outgoing::new("system.batch.process", &wanted);
    rig.client.publish(&event).await.unwrap();
    until_done(&rig, "b-1", 3).await;
    let second = started(&rig, worker("w-2")).await;
    let told = process(&rig, &wanted).await;
    assert_eq!(told["processed"], false);
    assert_eq!(told["status"], "running");
    assert_eq!(told["processor_id"], "w-1");
    assert!(told["items_processed"].as_u64().unwrap() >= 3);
    open.cancel();
    until_done(&rig, "b-1", 40).await;
    assert_eq!(runs.lock().unwrap().len(), 40);
    first.stop().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_whose_item_hangs_is_cancelled_and_whoever_asked_is_told() {
    for mode in ["exclusive", "fan_out"] {
        let rig = Rig::new().await;
        let hangs = Arc::new(Mutex::new(None));
        let hung = hangs.clone();
        let handler = move |context: Context, n: u64| {
            let hung = hung.clone();
            async move {
                if n == 0 {
                    *hung.lock().unwrap() = Some(context.cancellation().clone());
                    std::future::pending::<()>().await;
                }
                Ok::<_, HandlerError>(n)
            }
        };
        let mut settings = rig.settings();
        settings.id = format!("w-{}", mode.replace('_', "-"));
        // Nobody finds it out by the lease.
        settings.batch_lease = Duration::from_secs(600);
        let policy = Policy::new().no_timeout();
        let builder = Worker::builder().settings(settings);
        let worker = started(&rig, builder.handler_with("number.add", handler, policy)).await;
        rig.until_heard(1).await;
        let asking = {
            let (client, wanted) = (rig.client.clone(), batch(mode, mode, 0..4));
            tokio::spawn(async move {
                let event = Outgoing::new("system.batch.process", &wanted);
                client.request(event, Duration::from_secs(60)).await
            })
        };
        until("an item hangs", || async {
            hangs.lock().unwrap().is_some()
        })
        .await;
        let cancel = json!({"batch_id": mode, "reason": "it hangs"});
        let event = Outgoing::new("system.batch.cancel", &cancel).source("ann");
        let told = rig.client.request(event, Duration::from_secs(20)).await;
        let told: Value = told.unwrap().decode().unwrap();
        assert_eq!(
            (&told["status"], &told["by"]),
            (&json!("cancelled"), &json!("ann"))
        );
        match asking.await.unwrap() {
            Err(RequestError::Remote(error)) => {
                assert_eq!(error.code, Code::Cancelled);
                assert!(error.message.contains("ann: it hangs"), "{}", error.message);
            }
            other => panic!("{mode}: {other:?}"),
        }
        if mode == "exclusive" {
            let token = hangs.lock().unwrap().clone().unwrap();
            until("the item is told", || async { token.is_cancelled() }).await;
        }
        // Asked for again it does not begin again.
        let again = rig
            .refused("system.batch.process", &batch(mode, mode, 0..4))
            .await;
        assert_eq!(again.code, Code::Cancelled);
        let facts = facts(&rig).await;
        let told = facts.iter().filter(|fact| fact.0 == "batch.cancelled");
        assert_eq!(told.count(), 1);
        // What was given out hangs on, and would hold up the end of its worker.
        drop(worker);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_is_retried_and_timed_out_by_its_own_handlers_policy() {
    let rig = Rig::new().await;
    let runs = Runs::default();
    let noted = runs.clone();
    let flaky = move |context: Context, n: u64| {
        let noted = noted.clone();
        async move {
            note(&noted, &context);
            match n {
                1 if context.event().attempt() < 3 => Err(HandlerError::unavailable("not yet")),
                2 => Err(HandlerError::unavailable("never")),
                3 => panic!("three"),
                4 => std::future::pending().await,
                5 => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    Ok(n)
                }
                n => Ok(n),
            }
        }
    };
    let retry = RetryPolicy {
        max_attempts: 3,
        base: Duration::from_millis(10),
        ..RetryPolicy::default()
    };
    let policy = Policy::new()
        .retry(retry)
        .timeout(Duration::from_millis(1200));
    let mut settings = rig.settings();
    // The batch as a whole takes longer than any handler may.
    settings.handler_timeout = Duration::from_millis(1200);
    let builder = Worker::builder().settings(settings);
    let worker = started(&rig, builder.handler_with("number.add", flaky, policy)).await;
    let result = process(&rig, &batch("b-1", "exclusive", 0..6)).await;
    assert_eq!(
        (&result["items_processed"], &result["items_failed"]),
        (&json!(3), &json!(3))
    );
    let codes: Vec<&str> = result["failures"]
        .as_array()
        .unwrap()
        .iter()
        .map(|failure| failure["code"].as_str().unwrap())
        .collect();
    assert_eq!(codes, ["unavailable", "internal", "deadline_exceeded"]);
    let tries = |n: u32| {
        let id = format!("b-1/{n}");
        ids(&runs).iter().filter(|run| **run == id).count()
    };
    assert_eq!([0, 1, 2, 3, 4, 5].map(tries), [1, 3, 3, 3, 3, 1]);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_goes_to_an_instance_that_has_the_handler_of_its_items() {
    let rig = Rig::new().await;
    let runs = Runs::default();
    let able = started(&rig, adding(&rig, "able", 0, &runs)).await;
    let mut settings = rig.settings();
    settings.id = "unable".into();
    let unable = started(&rig, Worker::builder().settings(settings)).await;
    for n in 0..10 {
        let result = process(&rig, &batch(&format!("b-{n}"), "exclusive", [n])).await;
        assert_eq!(result["processor_id"], "able");
    }
    able.stop().await;
    unable.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_number_of_long_batches_delays_no_heartbeat() {
    let rig = Rig::new().await;
    let open = tokio_util::sync::CancellationToken::new();
    let gate = open.clone();
    let wait = move |_: Context, n: u64| {
        let gate = gate.clone();
        async move {
            gate.cancelled().await;
            Ok::<_, HandlerError>(n)
        }
    };
    let mut settings = rig.settings();
    settings.concurrency = 1;
    let builder = Worker::builder().settings(settings);
    let policy = Policy::new().no_timeout();
    let worker = started(&rig, builder.handler_with("number.add", wait, policy)).await;
    for n in 0..60 {
        let wanted = batch(&format!("b-{n}"), "exclusive", [n]);
        let event = Outgoing::new("system.batch.process", &wanted);
        rig.client.publish(&event).await.unwrap();
    }
    let batches = batches(&rig);
    until("as many as there are places for", || async {
        batches.list(100).await.unwrap().len() == 16
    })
    .await;
    for _ in 0..20 {
        let beat = json!({"instance_id": "nobody"});
        rig.ask("system.heartbeat", &beat).await.unwrap();
    }
    let listed = batches.list(100).await.unwrap();
    assert!(
        listed.len() == 16
            && listed
                .iter()
                .all(|batch| batch.status == BatchStatus::Running)
    );
    open.cancel();
    until("all of them", || async {
        let listed = batches.list(100).await.unwrap();
        listed
            .iter()
            .filter(|batch| batch.status == BatchStatus::Completed)
            .count()
            == 60
    })
    .await;
    assert_eq!(rig.entries("cb:dead:system").await.len(), 0);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_is_stored_twice_gets_the_result_both_times() {
    let rig = Rig::new().await;
    let runs = Runs::default();
    let worker = started(&rig, adding(&rig, "w-1", 20, &runs)).await;
    for _ in 0..2 {
        let wanted = batch("b-1", "exclusive", 0..30);
        let event = Outgoing::new("system.batch.process", &wanted).id("same");
        let event = event.reply_to(name("system", "cb:reply:twice"));
        rig.client.publish(&event).await.unwrap();
    }
    for reply in rig.wait_for("cb:reply:twice", 2).await {
        assert_eq!(text(&reply, "status"), "ok");
        let result: Value = rmp_serde::from_slice(reply.get("data").unwrap()).unwrap();
        assert_eq!(
            (&result["processed"], &result["items_processed"]),
            (&json!(true), &json!(29))
        );
    }
    assert_eq!(runs.lock().unwrap().len(), 30);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_knows_only_the_protocol_has_a_batch_processed() {
    let rig = Rig::new().await;
    let worker = started(&rig, adding(&rig, "w-1", 0, &Runs::default())).await;
    let mut connection = rig.connection.clone();
    // {"batch_id": "raw", "item_type": "number.add", "items": [1, 2, 13]}
    let mut data = b"\x83\xa8batch_id\xa3raw\xa9item_type\xaanumber.add\xa5items\x93".to_vec();
    data.extend([1, 2, 13]);
    let id: String = redis::cmd("XADD")
        .arg(&[
            "cb:events:system",
            "*",
            "type",
            "system.batch.process",
            "data",
        ])
        .arg(data)
        .arg(&["replyto", "cb:reply:raw"])
        .query_async(&mut connection)
        .await
        .unwrap();
    let reply = rig.wait_for("cb:reply:raw", 1).await.remove(0);
    assert_eq!(text(&reply, "correlationid"), id);
    assert_eq!(text(&reply, "type"), "system.batch.process.result");
    assert_eq!(text(&reply, "status"), "ok");
    let data = reply.get("data").unwrap();
    let has = |bytes: &[u8]| data.windows(bytes.len()).any(|window| window == bytes);
    assert!(has(b"\xa9processed\xc3"), "true");
    assert!(has(b"\xafitems_processed\x02"));
    assert!(has(b"\xacitems_failed\x01"));
    assert!(has(b"\xa6status\xa9completed"));
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn items_that_publish_much_are_committed_in_steps_that_are_bounded() {
    let rig = Rig::new().await;
    let fill = async |context: Context, n: u64| {
        for event in 0..150 {
            context.publish("effect.made", &event)?;
        }
        Ok::<_, HandlerError>(n)
    };
    let worker = started(&rig, rig.builder().handler("number.add", fill)).await;
    let done = process(&rig, &batch("b-1", "exclusive", 0..8)).await;
    assert_eq!(
        (&done["status"], &done["items_processed"]),
        (&json!("completed"), &json!(8))
    );
    assert_eq!(
        rig.wait_for("cb:events:effect", 8 * 150).await.len(),
        8 * 150
    );
    worker.stop().await;
}
