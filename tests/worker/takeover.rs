//! What is taken over is kept while it is read, however long that takes.

use crate::rig::Rig;
use crate::support::between::{between, slowly};
use crate::support::until;
use convoke::client::publish::Outgoing;
use convoke::settings::{RedisUrl, Settings};
use convoke::worker::builder::Builder;
use convoke::{Context, HandlerError, Worker};
use std::sync::{Arc, Mutex};
use std::time::Duration;

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
    let (port, runs) = (rig.redis.port(), Runs::default());
    let far = between(port, slowly).to_string();
    let far = rig.redis.url().replace(&port.to_string(), &far);
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
