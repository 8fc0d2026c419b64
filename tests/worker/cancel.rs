//! `system.cancel`: whatever an event is doing, it is finished or cancelled.

use crate::rig::{Rig, text};
use crate::support::{left, until};
use convoke::client::publish::Outgoing;
use convoke::client::request::RequestError;
use convoke::protocol::error::Code;
use convoke::settings::Settings;
use convoke::worker::builder::Builder;
use convoke::worker::vital::probe;
use convoke::{Context, HandlerError, Policy, Worker};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const RESULTS: &str = "cb:results:job";

/// What began, and what it was told.
#[derive(Clone, Default)]
struct Log {
    began: Arc<Mutex<Vec<String>>>,
    told: Arc<Mutex<BTreeMap<String, Option<String>>>>,
}

impl Log {
    fn begin(&self, context: &Context) {
        self.began.lock().unwrap().push(context.event().id());
    }

    fn tell(&self, context: &Context) {
        let why = context.cancel_reason().map(str::to_owned);
        self.told.lock().unwrap().insert(context.event().id(), why);
    }

    async fn until_began(&self, id: &str) {
        until("it runs", async || {
            self.began.lock().unwrap().iter().any(|one| one == id)
        })
        .await;
    }

    async fn until_told(&self, id: &str) -> Option<String> {
        until("it is told", async || {
            self.told.lock().unwrap().contains_key(id)
        })
        .await;
        self.told.lock().unwrap()[id].clone()
    }
}

/// Runs until it is cancelled, and publishes something all the same.
async fn listen(context: Context, (): ()) -> Result<(), HandlerError> {
    let log = context.state::<Log>()?.clone();
    context.publish("effect.made", &1)?;
    log.begin(&context);
    context.cancellation().cancelled().await;
    log.tell(&context);
    Ok(())
}

/// Does not listen.
async fn ignore(context: Context, (): ()) -> Result<(), HandlerError> {
    context.state::<Log>()?.begin(&context);
    std::future::pending().await
}

async fn block(context: Context, (): ()) -> Result<(), HandlerError> {
    let log = context.state::<Log>()?.clone();
    log.begin(&context);
    while !context.cancellation().is_cancelled() {
        std::thread::sleep(Duration::from_millis(1));
    }
    log.tell(&context);
    Ok(())
}

async fn fail(context: Context, (): ()) -> Result<(), HandlerError> {
    context.state::<Log>()?.begin(&context);
    let mut failed = HandlerError::unavailable("not yet");
    failed.retry_after = Some(Duration::from_secs(3600));
    Err(failed)
}

async fn quick(context: Context, (): ()) -> Result<(), HandlerError> {
    context.state::<Log>()?.begin(&context);
    Ok(())
}

fn settings(rig: &Rig) -> Settings {
    Settings {
        id: "w-1".into(),
        // One at a time: who keeps its slot is noticed.
        concurrency: 1,
        handler_timeout: Duration::from_secs(600),
        // What is told is told by the fact, and not by a lease that is looked at.
        claim_idle: Duration::from_secs(600),
        ..rig.settings()
    }
}

fn worker(rig: &Rig, log: &Log) -> Builder {
    Worker::builder()
        .settings(settings(rig))
        .state(log.clone())
        .handler("job.listen", listen)
        .handler("job.ignore", ignore)
        .handler_with("job.block", block, Policy::new().blocking())
        .handler("job.fail", fail)
        .handler("job.quick", quick)
}

async fn publish(rig: &Rig, kind: &str, id: &str) -> String {
    let event = Outgoing::new(kind, &()).id(id);
    rig.client.publish(&event).await.unwrap();
    id.to_owned()
}

async fn cancel(rig: &Rig, asked: Value) -> Value {
    let mut asked = asked;
    asked["domain"] = "job".into();
    let event = Outgoing::new("system.cancel", &asked).source("ann");
    let reply = rig.client.request(event, Duration::from_secs(60)).await;
    reply.unwrap().decode().unwrap()
}

/// A request for an event, which is answered once it is cancelled.
fn request(
    rig: &Rig,
    kind: &'static str,
    id: &'static str,
) -> tokio::task::JoinHandle<RequestError> {
    let client = rig.client.clone();
    tokio::spawn(async move {
        let event = Outgoing::new(kind, &()).id(id);
        let answer = client.request(event, Duration::from_secs(60)).await;
        answer.expect_err("it is cancelled")
    })
}

async fn is_told(request: tokio::task::JoinHandle<RequestError>) {
    match request.await.unwrap() {
        RequestError::Remote(error) => {
            assert_eq!(error.code, Code::Cancelled);
            assert_eq!(error.message, "cancelled by ann: enough");
            assert!(!error.retryable);
        }
        other => panic!("{other:?}"),
    }
}

/// The next event runs, and has its result.
async fn goes_on(rig: &Rig, id: &str, results: usize) {
    publish(rig, "job.quick", id).await;
    let all = rig.wait_for(RESULTS, results).await;
    let ids: Vec<String> = all.iter().map(|one| text(one, "correlationid")).collect();
    assert!(ids.iter().any(|one| one == id), "{ids:?}");
    assert_eq!(all.len(), results, "{ids:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_is_told_though_its_worker_lost_the_broadcast_when_the_fact_came() {
    let rig = Rig::new().await;
    let log = Log::default();
    let running = rig.start(worker(&rig, &log));
    rig.until_heard(1).await;
    publish(&rig, "job.listen", "one").await;
    log.until_began("one").await;
    rig.deafen().await;
    cancel(&rig, json!({"id": "one", "reason": "enough"})).await;
    assert!(log.until_told("one").await.is_some());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_runs_is_told_why_and_nothing_of_it_is_committed() {
    let rig = Rig::new().await;
    let log = Log::default();
    let running = rig.start(worker(&rig, &log));
    rig.until_heard(1).await;
    let asked = request(&rig, "job.listen", "one");
    log.until_began("one").await;
    let said = cancel(&rig, json!({"id": "one", "reason": "enough"})).await;
    assert_eq!(
        (&said["state"], &said["cancelled"]),
        (&json!("running"), &json!(true))
    );
    assert_eq!(
        (&said["instance"], &said["told"]),
        (&json!("w-1"), &json!(true))
    );
    is_told(asked).await;
    let why = log.until_told("one").await;
    assert_eq!(why.as_deref(), Some("cancelled by ann: enough"));
    // By its entry, and while nobody waits for it.
    publish(&rig, "job.listen", "two").await;
    log.until_began("two").await;
    let entry = rig.entries("cb:events:job").await[0].id.to_string();
    let said = cancel(&rig, json!({"entry": entry, "reason": "enough"})).await;
    assert_eq!(said["id"], "two");
    log.until_told("two").await;
    goes_on(&rig, "three", 1).await;
    assert!(
        !rig.exists("cb:events:effect").await,
        "nothing was published"
    );
    assert!(rig.entries("cb:dead:job").await.is_empty());
    let again = cancel(&rig, json!({"id": "one"})).await;
    assert_eq!(
        (&again["state"], &again["cancelled"]),
        (&json!("finished"), &json!(true))
    );
    assert_eq!(again["earlier"]["reason"], "enough");
    let said = cancel(&rig, json!({"id": "three"})).await;
    assert_eq!(
        (&said["state"], &said["cancelled"]),
        (&json!("finished"), &json!(false))
    );
    let said = cancel(&rig, json!({"id": "nobody"})).await;
    assert_eq!(
        (&said["state"], &said["cancelled"]),
        (&json!("unknown"), &json!(false))
    );
    assert_eq!(rig.wait_for_fact("event.cancelled", 2).await.len(), 2);
    until("they are counted", async || {
        let told = rig.ask("system.metrics", &json!({})).await.unwrap();
        told.decode::<Value>().unwrap()["events_cancelled"] == 2
    })
    .await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_does_not_listen_is_dropped_and_its_slot_is_free() {
    let rig = Rig::new().await;
    let log = Log::default();
    let place = std::env::temp_dir().join(format!("convoke-cancel-{:x}", fastrand::u64(..)));
    let probed = Settings {
        runtime_dir: place.display().to_string(),
        ..settings(&rig)
    };
    let running = rig.start(worker(&rig, &log).settings(probed));
    rig.until_heard(1).await;
    let asked = request(&rig, "job.ignore", "deaf");
    log.until_began("deaf").await;
    // It is in hand, and has not begun.
    publish(&rig, "job.listen", "behind").await;
    // What is on its way to the worker when the fact comes would begin.
    let socket = probe::socket(&place, "w-1");
    until("it is read", async || {
        let signs = probe::ask(&socket, Duration::from_secs(30));
        signs.is_ok_and(|signs| signs.in_flight == 2)
    })
    .await;
    let said = cancel(
        &rig,
        json!({"id": "behind", "reason": "enough", "keep": true}),
    )
    .await;
    assert_eq!(
        (&said["state"], &said["cancelled"]),
        (&json!("running"), &json!(true))
    );
    let letters = rig.wait_for("cb:dead:job", 1).await;
    assert_eq!(text(&letters[0], "deadreason"), "cancelled");
    cancel(&rig, json!({"id": "deaf", "reason": "enough"})).await;
    is_told(asked).await;
    goes_on(&rig, "next", 1).await;
    running.stop().await;
    let began = log.began.lock().unwrap().clone();
    assert_eq!(began, ["deaf", "next"], "what is cancelled does not begin");
    std::fs::remove_dir(&place).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_blocks_its_thread_is_told() {
    let rig = Rig::new().await;
    let log = Log::default();
    let running = rig.start(worker(&rig, &log));
    rig.until_heard(1).await;
    publish(&rig, "job.block", "blocks").await;
    log.until_began("blocks").await;
    let said = cancel(&rig, json!({"id": "blocks", "reason": "enough"})).await;
    assert_eq!(said["state"], "running");
    log.until_told("blocks").await;
    goes_on(&rig, "next", 1).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_tried_again_or_published_for_later_or_paused_does_not_run() {
    let rig = Rig::new().await;
    let log = Log::default();
    let running = rig.start(worker(&rig, &log));
    rig.until_heard(1).await;
    publish(&rig, "job.fail", "retry").await;
    log.until_began("retry").await;
    until("it waits for its next try", async || {
        said_state(&rig, "retry").await == "delayed"
    })
    .await;
    let later = Outgoing::new("job.quick", &()).id("later");
    let later = later.delay(Duration::from_secs(3600));
    rig.client.publish(&later).await.unwrap();
    let pause = json!({"scope": "type:job.quick", "pause": {"reason": "a test"}});
    rig.ask("system.policy.set", &pause).await.unwrap();
    until("it is parked", async || {
        publish(&rig, "job.quick", "paused").await;
        until("it is judged", async || {
            let (unread, pending, _) = left(&mut rig.connection.clone(), "job").await;
            (unread, pending) == (0, 0)
        })
        .await;
        rig.exists("cb:parked:job:job.quick").await
    })
    .await;
    for (id, state) in [("later", "delayed"), ("paused", "waiting")] {
        let said = cancel(&rig, json!({"id": id, "reason": "enough"})).await;
        assert_eq!(
            (&said["state"], &said["cancelled"]),
            (&json!(state), &json!(true)),
            "{id}"
        );
    }
    assert!(!rig.exists("cb:parked:job:job.quick").await);
    assert!(!rig.exists("cb:delayed:job").await);
    running.stop().await;
}

/// Cancels it, if it is delayed; how it stood.
async fn said_state(rig: &Rig, id: &str) -> String {
    let held = rig.run("ZCARD cb:delayed:job").await;
    if held == redis::Value::Int(0) {
        return "not yet".into();
    }
    let said = cancel(rig, json!({"id": id, "reason": "enough"})).await;
    assert_eq!(said["cancelled"], true);
    said["state"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_reads_is_taken_out_of_its_stream_and_what_cannot_be_is_refused() {
    let rig = Rig::new().await;
    let log = Log::default();
    let running = rig.start(worker(&rig, &log));
    rig.until_heard(1).await;
    let event = Outgoing::new("idle.one", &()).id("idle");
    rig.client.publish(&event).await.unwrap();
    let said = rig
        .ask("system.cancel", &json!({"domain": "idle", "id": "idle"}))
        .await
        .unwrap();
    let said: Value = said.decode().unwrap();
    assert_eq!(
        (&said["state"], &said["cancelled"]),
        (&json!("waiting"), &json!(true))
    );
    assert!(rig.entries("cb:events:idle").await.is_empty());
    for (asked, says) in [
        (
            json!({"domain": "system", "id": "x"}),
            "cannot be cancelled",
        ),
        (json!({"domain": "task", "id": "x"}), "task.cancel"),
        (json!({"domain": "inbox", "id": "x"}), "no domain"),
        (json!({"domain": "job"}), "one of them"),
        (
            json!({"domain": "job", "id": "x", "entry": "1-1"}),
            "one of them",
        ),
        (json!({"domain": "job", "entry": "x"}), "entry:"),
    ] {
        let error = rig.refused("system.cancel", &asked).await;
        assert_eq!(error.code, Code::InvalidArgument, "{asked}");
        assert!(error.message.contains(says), "{}", error.message);
    }
    running.stop().await;
}

/// Fails once it is cancelled.
async fn break_off(context: Context, (): ()) -> Result<(), HandlerError> {
    let log = context.state::<Log>()?.clone();
    log.begin(&context);
    context.cancellation().cancelled().await;
    Err(HandlerError::internal("broken off"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_fails_because_it_is_cancelled_does_not_count_for_its_circuit() {
    let rig = Rig::new().await;
    let log = Log::default();
    let policy = Policy::new().circuit(1, Duration::from_secs(600));
    let worker = worker(&rig, &log).handler_with("job.break", break_off, policy);
    let running = rig.start(worker);
    rig.until_heard(1).await;
    for id in ["one", "two"] {
        publish(&rig, "job.break", id).await;
        log.until_began(id).await;
        let said = cancel(&rig, json!({"id": id, "reason": "enough"})).await;
        assert_eq!(said["state"], "running");
    }
    goes_on(&rig, "next", 1).await;
    running.stop().await;
}
