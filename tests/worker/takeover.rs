//! What is taken over is kept while it is read, however long that takes; and nothing is taken from whoever came
//! back.

use crate::rig::{Rig, text};
use crate::support::between::{between_all, slowly};
use crate::support::{until, users};
use convoke::client::publish::Outgoing;
use convoke::settings::{RedisUrl, Settings};
use convoke::worker::builder::Builder;
use convoke::{Context, HandlerError, Worker};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Semaphore;

/// Entries, and bytes of each: together they take seconds on the slow way, several times a claim time.
const ENTRIES: usize = 8;
const BYTES: usize = 900_000;

type Runs = Arc<Mutex<Vec<(String, u32)>>>;

fn worker(rig: &Rig, id: &str, url: String, runs: &Runs) -> Builder {
    let settings = Settings {
        id: id.into(),
        redis_url: RedisUrl::new(url),
        claim_idle: Duration::from_secs(2),
        ..rig.settings()
    };
    let runs = runs.clone();
    let keep = move |context: Context, text: String| {
        let runs = runs.clone();
        async move {
            assert_eq!(text.len(), BYTES);
            let run = (context.instance().to_owned(), context.deliveries());
            runs.lock().unwrap().push(run);
            Ok::<_, HandlerError>(())
        }
    };
    Worker::builder()
        .settings(settings)
        .handler("film.keep", keep)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_taken_over_and_read_for_long_is_nobody_elses_meanwhile() {
    let rig = Rig::new().await;
    rig.run("XGROUP CREATE cb:events:film workers 0 MKSTREAM")
        .await;
    let text = "x".repeat(BYTES);
    for _ in 0..ENTRIES {
        let event = Outgoing::new("film.keep", &text);
        rig.client.publish(&event).await.unwrap();
    }
    // One that was never registered: what it holds is taken once it is stale.
    rig.run("XREADGROUP GROUP workers gone STREAMS cb:events:film >")
        .await;
    let runs = Runs::default();
    let far = between_all(&rig.redis, users::WORKER, slowly);
    let first = rig.start(worker(&rig, "w-1", far, &runs));
    let held_by = async |id: &str| {
        let look = format!("XPENDING cb:events:film workers - + 100 {id}");
        match rig.run(&look).await {
            redis::Value::Array(held) => held.len(),
            other => panic!("{other:?}"),
        }
    };
    until("it took all", || async { held_by("w-1").await == ENTRIES }).await;
    assert!(runs.lock().unwrap().is_empty(), "it has read them already");
    let near = rig.redis.url();
    let second = rig.start(worker(&rig, "w-2", near, &runs));
    rig.wait_for("cb:results:film", ENTRIES).await;
    let ran = runs.lock().unwrap().clone();
    assert_eq!(ran, vec![("w-1".to_owned(), 2); ENTRIES]);
    first.stop().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_comes_back_while_its_entries_are_taken_over_keeps_what_it_reads_from_then_on() {
    let rig = Rig::new().await;
    let add = async |count: usize| {
        for _ in 0..count {
            rig.client
                .publish(&Outgoing::new("film.cut", &()))
                .await
                .unwrap();
        }
    };
    rig.run("XGROUP CREATE cb:events:film workers 0 MKSTREAM")
        .await;
    add(40).await;
    rig.run("XREADGROUP GROUP workers gone STREAMS cb:events:film >")
        .await;
    rig.run("HSET cb:instance:gone status lost").await;
    let (begun, open) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let (begins, opens) = (begun.clone(), open.clone());
    let cut = move |_: Context, (): ()| {
        let (begins, opens) = (begins.clone(), opens.clone());
        async move {
            begins.add_permits(1);
            opens.acquire().await?.forget();
            Ok::<_, HandlerError>(())
        }
    };
    let settings = Settings {
        id: "w-1".into(),
        // Few at a time, so that there is a middle.
        concurrency: 2,
        claim_idle: Duration::from_secs(600),
        ..rig.settings()
    };
    let worker = Worker::builder().settings(settings);
    let worker = rig.start(worker.handler("film.cut", cut));
    begun.acquire().await.unwrap().forget();
    // It is back, and has read on; nobody else could have read that.
    let mut back = redis::pipe();
    back.atomic()
        .cmd("HSET")
        .arg("cb:instance:gone")
        .arg(&["status", "active"]);
    for _ in 0..5 {
        let fields = ["*", "type", "film.cut", "id", "fresh"];
        back.cmd("XADD").arg("cb:events:film").arg(&fields);
    }
    let read = ["GROUP", "workers", "gone", "STREAMS", "cb:events:film", ">"];
    back.cmd("XREADGROUP").arg(&read);
    let mut connection = rig.connection.clone();
    back.exec_async(&mut connection).await.unwrap();
    open.add_permits(1000);
    // What is new waits until nothing is taken over any more.
    let last = Outgoing::new("film.cut", &()).id("last");
    rig.client.publish(&last).await.unwrap();
    let mut done = Vec::new();
    until("the last one is done", || async {
        let results = rig.entries("cb:results:film").await;
        results
            .iter()
            .any(|result| text(result, "correlationid") == "last")
    })
    .await;
    for result in rig.entries("cb:results:film").await {
        done.push(text(&result, "correlationid"));
    }
    assert!(!done.contains(&"fresh".to_owned()), "{done:?}");
    assert!(
        done.len() < 41,
        "some of it was not taken yet: {}",
        done.len()
    );
    worker.stop().await;
}
