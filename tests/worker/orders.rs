//! Orders to workers: leave, be quiet, run another number of handlers at a time.

use crate::rig::Rig;
use crate::support::until;
use convoke::client::publish::Outgoing;
use convoke::protocol::error::Code;
use convoke::worker::builder::Builder;
use convoke::{Context, HandlerError, Worker};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;

/// Runs that end when they are let go.
#[derive(Clone)]
struct Runs {
    now: Arc<AtomicUsize>,
    go: Arc<Semaphore>,
}

impl Runs {
    fn new() -> Self {
        Self {
            now: Arc::default(),
            go: Arc::new(Semaphore::new(0)),
        }
    }

    fn builder(&self, rig: &Rig, id: &str) -> Builder {
        let runs = self.clone();
        let handler = move |_: Context, (): ()| {
            let runs = runs.clone();
            async move {
                runs.now.fetch_add(1, Ordering::SeqCst);
                runs.go.acquire().await.unwrap().forget();
                runs.now.fetch_sub(1, Ordering::SeqCst);
                Ok::<_, HandlerError>(())
            }
        };
        let mut settings = rig.settings();
        settings.id = id.into();
        settings.concurrency = 2;
        // Learned by the fact, not by a look.
        settings.heartbeat_ttl = Duration::from_secs(600);
        Worker::builder()
            .settings(settings)
            .handler("load.hold", handler)
    }

    async fn until(&self, count: usize) {
        let what = format!("{count} run");
        until(&what, || async { self.now.load(Ordering::SeqCst) == count }).await;
    }
}

async fn ask(rig: &Rig, kind: &str, data: Value) -> Value {
    let event = Outgoing::new(kind, &data).source("ann");
    let reply = rig.client.request(event, Duration::from_secs(20)).await;
    reply.unwrap().decode().unwrap()
}

async fn publish(rig: &Rig, count: usize) {
    for _ in 0..count {
        rig.client
            .publish(&Outgoing::new("load.hold", &()))
            .await
            .unwrap();
    }
}

async fn field(rig: &Rig, id: &str, name: &str) -> Option<Vec<u8>> {
    let mut connection = rig.connection.clone();
    let mut get = redis::cmd("HGET");
    get.arg(format!("cb:instance:{id}")).arg(name);
    get.query_async(&mut connection).await.unwrap()
}

async fn until_mode(rig: &Rig, id: &str, name: &str, value: Value) {
    until("the worker says so", || async {
        let mode = field(rig, id, "mode").await;
        let mode: Option<Value> = mode.map(|mode| rmp_serde::from_slice(&mode).unwrap());
        mode.is_some_and(|mode| mode[name] == value)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_worker_finishes_what_it_runs_and_leaves_and_the_others_stay() {
    let rig = Rig::new().await;
    let runs = Runs::new();
    let leaves = rig.start(runs.builder(&rig, "w-1"));
    rig.wait_for_fact("instance.registered", 1).await;
    publish(&rig, 1).await;
    runs.until(1).await;
    let stays = rig.start(runs.builder(&rig, "w-2"));
    rig.wait_for_fact("instance.registered", 2).await;
    let drained = ask(&rig, "system.drain", json!({"instance_id": "w-1"})).await;
    assert_eq!(drained, json!({"instances": ["w-1"]}));
    until_mode(&rig, "w-1", "draining", json!(true)).await;
    // It runs on, and its outcome counts.
    runs.go.add_permits(1);
    leaves.ended().await;
    rig.wait_for("cb:results:load", 1).await;
    let told = rig.wait_for_fact("instance.ordered", 1).await;
    let told: Value = rmp_serde::from_slice(told[0].get("data").unwrap()).unwrap();
    assert_eq!(told, json!({"id": "w-1", "order": "drain", "by": "ann"}));
    rig.wait_for_fact("instance.unregistered", 1).await;
    // Whoever has the id next is not meant.
    let next = rig.start(runs.builder(&rig, "w-1"));
    until_mode(&rig, "w-1", "draining", json!(false)).await;
    publish(&rig, 3).await;
    runs.go.add_permits(3);
    rig.wait_for("cb:results:load", 4).await;
    // All of a role.
    let drained = ask(&rig, "system.drain", json!({"role": "worker"})).await;
    assert_eq!(drained, json!({"instances": ["w-1", "w-2"]}));
    next.ended().await;
    stays.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quiet_worker_reads_nothing_more_until_it_is_scaled() {
    let rig = Rig::new().await;
    let runs = Runs::new();
    let worker = rig.start(runs.builder(&rig, "w-1"));
    rig.wait_for_fact("instance.registered", 1).await;
    until_mode(&rig, "w-1", "concurrency", json!(2)).await;
    publish(&rig, 1).await;
    runs.until(1).await;
    let version = env!("CARGO_PKG_VERSION");
    let quiet = json!({"version": version, "quiet": true});
    assert_eq!(
        ask(&rig, "system.drain", quiet).await["instances"],
        json!(["w-1"])
    );
    until_mode(&rig, "w-1", "quiet", json!(true)).await;
    runs.go.add_permits(1);
    // A read that was under way may bring what comes within its two seconds.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    publish(&rig, 3).await;
    tokio::time::sleep(Duration::from_millis(1000)).await;
    assert_eq!(runs.now.load(Ordering::SeqCst), 0);
    let none = json!({"kind": "load.hold"});
    let task = ask(&rig, "task.create", none).await;
    assert_eq!(task["status"], "pending", "it gets no tasks");
    // It is told to run one at a time, then three.
    let scaled = ask(
        &rig,
        "system.scale",
        json!({"instance_id": "w-1", "concurrency": 1}),
    )
    .await;
    assert_eq!(scaled, json!({"instance_id": "w-1", "concurrency": 1}));
    until_mode(&rig, "w-1", "quiet", json!(false)).await;
    until("the task is given", || async {
        let mut connection = rig.connection.clone();
        let length = redis::cmd("XLEN")
            .arg("cb:inbox:w-1")
            .query_async(&mut connection)
            .await;
        length == Ok(1)
    })
    .await;
    // One of the events, and the task.
    runs.until(2).await;
    ask(
        &rig,
        "system.scale",
        json!({"instance_id": "w-1", "concurrency": 3}),
    )
    .await;
    runs.until(4).await;
    runs.go.add_permits(10);
    rig.wait_for("cb:results:load", 4).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_missed_the_fact_finds_the_order() {
    let rig = Rig::new().await;
    let worker = rig.start(rig.builder());
    let id = rig.wait_for_fact("instance.registered", 1).await;
    let id: Value = rmp_serde::from_slice(id[0].get("data").unwrap()).unwrap();
    let id = id["id"].as_str().unwrap().to_owned();
    let process = field(&rig, &id, "process").await.unwrap();
    let process = String::from_utf8(process).unwrap();
    let mut set = redis::cmd("HSET");
    let order = json!({"process": process, "drain": true, "quiet": false, "by": "ann", "at": 1});
    set.arg(format!("cb:instance:{id}")).arg("order");
    set.arg(rmp_serde::to_vec_named(&order).unwrap());
    set.exec_async(&mut rig.connection.clone()).await.unwrap();
    worker.ended().await;
}

#[tokio::test]
async fn what_nobody_can_follow_is_refused() {
    let rig = Rig::new().await;
    let worker = rig.start(rig.builder());
    let outside = json!({"id": "x-1", "roles": ["outside"]});
    ask(&rig, "system.register", outside).await;
    for (kind, data, code, says) in [
        (
            "system.drain",
            json!({}),
            Code::InvalidArgument,
            "instance_id, role, version: ",
        ),
        (
            "system.drain",
            json!({"instance_id": "w-1", "role": "worker"}),
            Code::InvalidArgument,
            "instance_id, role, version: ",
        ),
        (
            "system.drain",
            json!({"instance_id": "w-0"}),
            Code::NotFound,
            "w-0",
        ),
        (
            "system.drain",
            json!({"instance_id": "a b"}),
            Code::InvalidArgument,
            "instance_id",
        ),
        (
            "system.drain",
            json!({"instance_id": "x-1"}),
            Code::FailedPrecondition,
            "external",
        ),
        (
            "system.scale",
            json!({"instance_id": "x-1", "concurrency": 0}),
            Code::InvalidArgument,
            "concurrency: ",
        ),
    ] {
        let refused = rig.refused(kind, &data).await;
        assert_eq!(refused.code, code, "{data}: {}", refused.message);
        assert!(refused.message.contains(says), "{}", refused.message);
    }
    let nobody = ask(&rig, "system.drain", json!({"role": "outside"})).await;
    assert_eq!(nobody, json!({"instances": []}));
    worker.stop().await;
}
