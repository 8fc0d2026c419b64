//! A worker lives in its future, and ends with it.

use crate::rig::Rig;
use crate::support::until;
use convoke::client::publish::Outgoing;
use convoke::settings::Settings;
use convoke::{Context, HandlerError, Worker};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// What runs began, and how many go on; by instance.
#[derive(Clone, Default)]
struct Seen(Arc<[AtomicUsize; 2]>);

/// Goes on for as long as it lives.
struct Runs(Seen);

impl Drop for Runs {
    fn drop(&mut self) {
        self.0.0[1].fetch_sub(1, Ordering::SeqCst);
    }
}

async fn count(context: Context, hold: bool) -> Result<String, HandlerError> {
    let seen = context.state::<Seen>()?.clone();
    seen.0[0].fetch_add(1, Ordering::SeqCst);
    seen.0[1].fetch_add(1, Ordering::SeqCst);
    let _runs = Runs(seen);
    // Whoever takes it over is done at once.
    if hold && context.deliveries() == 1 {
        std::future::pending::<()>().await;
    }
    Ok(context.instance().to_owned())
}

fn keepers() -> usize {
    let threads = std::fs::read_dir("/proc/self/task").unwrap();
    let names = threads.filter_map(|thread| {
        let name = thread.ok()?.path().join("comm");
        std::fs::read_to_string(name).ok()
    });
    names.filter(|name| name.trim() == "keeper").count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_ends_with_the_future_that_runs_it() {
    let rig = Rig::new().await;
    let seen = Seen::default();
    let settings = |id: &str| Settings {
        id: id.to_owned(),
        // Nothing here is to wait for it, nor to be ended by it.
        handler_timeout: Duration::from_secs(600),
        heartbeat_ttl: Duration::from_secs(60),
        claim_idle: Duration::from_secs(60),
        ..rig.settings()
    };
    let begun = |n: usize| {
        let seen = seen.clone();
        async move { seen.0[0].load(Ordering::SeqCst) == n }
    };
    let worker = Worker::builder()
        .settings(settings("gone"))
        .state(seen.clone())
        .handler("count.up", count)
        .build()
        .unwrap();
    let running = tokio::spawn(worker.run_until(CancellationToken::new()));
    for n in 0..10 {
        let event = Outgoing::new("count.up", &true).id(format!("held-{n}"));
        rig.client.publish(&event).await.unwrap();
    }
    until("they run", || begun(10)).await;
    running.abort();
    assert!(running.await.unwrap_err().is_cancelled());
    until("nothing of them goes on", || async {
        seen.0[1].load(Ordering::SeqCst) == 0
    })
    .await;
    until("its thread has ended", || async { keepers() == 0 }).await;
    rig.wait_for_fact("instance.unregistered", 1).await;
    for n in 0..20 {
        let event = Outgoing::new("count.up", &false).id(format!("after-{n}"));
        rig.client.publish(&event).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(begun(10).await, "something is handled afterwards");
    let builder = Worker::builder().settings(settings("next"));
    let next = rig.start(builder.state(seen.clone()).handler("count.up", count));
    let results = rig.wait_for("cb:results:count", 30).await;
    assert_eq!(results.len(), 30);
    for result in &results {
        assert_eq!(result.get("source"), Some(&b"next"[..]));
    }
    next.stop().await;
}
