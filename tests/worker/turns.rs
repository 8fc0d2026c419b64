//! Items of a batch and tasks wait for their turn before a handler that may not run yet, as events do.

use crate::batches::{batch, batches, process, started};
use crate::rig::{Rig, text};
use crate::support::until;
use convoke::client::publish::Outgoing;
use convoke::client::request::RequestError;
use convoke::coordination::batches::batch::BatchStatus;
use convoke::protocol::error::Code;
use convoke::settings::Settings;
use convoke::worker::builder::Builder;
use convoke::{Context, HandlerError, Policy, Worker};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::Semaphore;

/// What ran, where and in which order; and what lets it end.
#[derive(Clone)]
struct Runs {
    begun: Arc<Mutex<Vec<(String, u64)>>>,
    open: Arc<Semaphore>,
}

impl Runs {
    fn new(open: usize) -> Self {
        Self {
            begun: Arc::default(),
            open: Arc::new(Semaphore::new(open)),
        }
    }

    fn begun(&self) -> Vec<(String, u64)> {
        self.begun.lock().unwrap().clone()
    }

    fn numbers(&self) -> Vec<u64> {
        self.begun().into_iter().map(|(_, n)| n).collect()
    }
}

/// A worker whose handler of `number.add` has that policy and ends when it is let go; 13 breaks.
fn worker(rig: &Rig, id: &str, runs: &Runs, policy: Policy) -> Builder {
    let settings = Settings {
        id: id.into(),
        concurrency: 8,
        drain_timeout: Duration::from_secs(60),
        ..rig.settings()
    };
    let runs = runs.clone();
    let add = move |context: Context, n: u64| {
        let runs = runs.clone();
        async move {
            let run = (context.instance().to_owned(), n);
            runs.begun.lock().unwrap().push(run);
            runs.open.acquire().await.unwrap().forget();
            match n {
                13 => Err(HandlerError::internal("broken").permanent()),
                n => Ok(n),
            }
        }
    };
    Worker::builder()
        .settings(settings)
        .handler_with("number.add", add, policy.no_timeout())
}

async fn publish(rig: &Rig, n: u64) {
    let event = Outgoing::new("number.add", &n);
    rig.client.publish(&event).await.unwrap();
}

async fn request(rig: &Rig, wanted: &Value) {
    let event = Outgoing::new("system.batch.process", wanted);
    rig.client.publish(&event).await.unwrap();
}

async fn until_held(rig: &Rig, id: &str) {
    let batches = batches(rig);
    until("it is held", || async {
        batches.find(id).await.unwrap().is_some()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn items_take_turns_with_the_events_of_their_source_that_are_over_the_rate() {
    let rig = Rig::new().await;
    let runs = Runs::new(1000);
    let policy = Policy::new().rate_limit(1, Duration::from_millis(400));
    let running = started(&rig, worker(&rig, "w-1", &runs, policy)).await;
    publish(&rig, 100).await;
    publish(&rig, 101).await;
    request(&rig, &batch("b-1", "exclusive", 0..4)).await;
    for n in 102..112 {
        publish(&rig, n).await;
    }
    until("all of them", || async { runs.begun().len() == 16 }).await;
    let order = runs.numbers();
    // Between two items the next event had its turn; a few come before they are in line.
    for item in 0..4 {
        let before = order.iter().take_while(|run| **run != item);
        let later = before.filter(|run| **run >= 102).count() as u64;
        assert!(later <= item + 4, "item {item}: {order:?}");
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_waits_for_an_open_circuit_and_no_longer_than_its_deadline() {
    let rig = Rig::new().await;
    let runs = Runs::new(1000);
    let policy = Policy::new().circuit(1, Duration::from_secs(3600));
    let running = started(&rig, worker(&rig, "w-1", &runs, policy)).await;
    let wanted = batch("b-1", "exclusive", [13, 1]);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let deadline = now.as_millis() as u64 + 4000;
    let event = Outgoing::new("system.batch.process", &wanted).deadline(deadline);
    let asked = rig.client.request(event, Duration::from_secs(20)).await;
    match asked {
        Err(RequestError::Remote(error)) => assert_eq!(error.code, Code::DeadlineExceeded),
        other => panic!("{other:?}"),
    }
    // What ran is committed, and the batch is free for the next one.
    let batch = batches(&rig).find("b-1").await.unwrap().unwrap();
    assert_eq!(
        (batch.status, batch.processed, batch.failed),
        (BatchStatus::Running, 0, 1)
    );
    running.stop().await;
    let policy = Policy::new().circuit(1, Duration::from_secs(3600));
    let other = started(&rig, worker(&rig, "w-2", &runs, policy)).await;
    let result = process(&rig, &wanted).await;
    assert_eq!(
        (&result["items_processed"], &result["items_failed"]),
        (&json!(1), &json!(1))
    );
    assert_eq!(runs.numbers(), [13, 1]);
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_waits_for_its_turn_keeps_its_lease_and_is_given_back_by_who_drains() {
    let rig = Rig::new().await;
    let (runs, others) = (Runs::new(0), Runs::new(1000));
    let policy = || Policy::new().concurrency(1);
    let first = started(&rig, worker(&rig, "w-1", &runs, policy())).await;
    publish(&rig, 100).await;
    until("it runs", || async { runs.begun().len() == 1 }).await;
    let mut wanted = batch("b-1", "exclusive", 0..3);
    wanted["lease_ms"] = json!(2000);
    request(&rig, &wanted).await;
    until_held(&rig, "b-1").await;
    let second = started(&rig, worker(&rig, "w-2", &others, policy())).await;
    let found = batches(&rig).find("b-1").await.unwrap().unwrap();
    let fence = found.fence;
    // Longer than the lease: whoever asks is told who has it.
    for _ in 0..25 {
        let told = process(&rig, &wanted).await;
        assert_eq!(
            (&told["processor_id"], &told["fence"]),
            (&json!("w-1"), &json!(fence))
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(runs.numbers(), [100]);
    let stops = tokio::spawn(first.stop());
    until("the other one ran it", || async {
        let found = batches(&rig).find("b-1").await.unwrap();
        found.is_some_and(|batch| batch.status == BatchStatus::Completed)
    })
    .await;
    assert!(!stops.is_finished(), "what ran before runs on");
    runs.open.add_permits(1000);
    stops.await.unwrap();
    assert_eq!(runs.numbers(), [100]);
    assert_eq!(others.numbers(), [0, 1, 2]);
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_waits_for_its_turn_goes_to_another_instance_when_its_own_drains() {
    let rig = Rig::new().await;
    let (runs, others) = (Runs::new(0), Runs::new(1000));
    let policy = || Policy::new().concurrency(1);
    let first = started(&rig, worker(&rig, "w-1", &runs, policy())).await;
    publish(&rig, 100).await;
    until("it runs", || async { runs.begun().len() == 1 }).await;
    for n in 0..2 {
        let task = json!({
            "task_id": format!("t-{n}"), "kind": "number.add", "payload": n, "max_attempts": 1
        });
        rig.ask("task.create", &task).await.unwrap();
    }
    until("both wait", || async {
        rig.pending("cb:inbox:w-1").await == 2
    })
    .await;
    let second = started(&rig, worker(&rig, "w-2", &others, policy())).await;
    let stops = tokio::spawn(first.stop());
    until("they do not wait there any more", || async {
        rig.pending("cb:inbox:w-1").await == 0
    })
    .await;
    runs.open.add_permits(1000);
    stops.await.unwrap();
    assert_eq!(runs.numbers(), [100], "nothing is begun by who drains");
    let done = rig.wait_for_fact("task.completed", 2).await;
    assert!(done.iter().all(|fact| {
        let data: Value = rmp_serde::from_slice(fact.get("data").unwrap()).unwrap();
        data["instance_id"] == "w-2" && data["attempt"] == 1
    }));
    assert_eq!(text(&done[0], "type"), "task.completed");
    second.stop().await;
}
