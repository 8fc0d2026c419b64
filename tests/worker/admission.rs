//! What may not run yet waits before it runs, and keeps nobody else from running.

mod policed;

use crate::rig::Rig;
use crate::support::{room, until};
use convoke::client::publish::Outgoing;
use convoke::handler::policy::RetryPolicy;
use convoke::settings::Settings;
use convoke::worker::builder::Builder;
use convoke::{Context, HandlerError, Policy, Worker};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

const MINUTES: Duration = Duration::from_secs(600);

/// Runs that hang until they are let go.
#[derive(Clone)]
struct Gate {
    open: Arc<Semaphore>,
    begun: Arc<AtomicUsize>,
    draining: Arc<OnceLock<CancellationToken>>,
}

impl Gate {
    fn new() -> Self {
        Self {
            open: Arc::new(Semaphore::new(0)),
            begun: Arc::default(),
            draining: Arc::default(),
        }
    }

    fn begun(&self) -> usize {
        self.begun.load(Ordering::SeqCst)
    }
}

async fn hang(context: Context, (): ()) -> Result<(), HandlerError> {
    let gate = context.state::<Gate>()?;
    gate.draining.get_or_init(|| context.draining());
    gate.begun.fetch_add(1, Ordering::SeqCst);
    gate.open.acquire().await.unwrap().forget();
    Ok(())
}

async fn echo(_: Context, n: u32) -> Result<u32, HandlerError> {
    Ok(n)
}

fn worker(rig: &Rig, gate: &Gate, change: impl Fn(&mut Settings)) -> Builder {
    let mut settings = Settings {
        concurrency: room(8, 2),
        ..rig.settings()
    };
    change(&mut settings);
    Worker::builder()
        .settings(settings)
        .state(gate.clone())
        .handler("image.hang", hang)
        .handler("image.stick", hang)
        .handler("image.echo", echo)
        .handler("text.echo", echo)
}

async fn publish(rig: &Rig, kind: &str, count: usize) {
    let events: Vec<_> = (0..count).map(|_| Outgoing::new(kind, &())).collect();
    for event in &events {
        rig.client.publish(event).await.unwrap();
    }
}

async fn answers(rig: &Rig, kind: &str) {
    let answer = rig.ask(kind, &7).await.unwrap();
    assert_eq!(answer.decode::<u32>().unwrap(), 7);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn types_that_hang_starve_no_other_even_behind_them_in_their_stream() {
    let rig = Rig::new().await;
    let gate = Gate::new();
    // All of it is read at once, the answer's event last.
    publish(&rig, "image.hang", 40).await;
    publish(&rig, "image.stick", 10).await;
    let running = rig.start(worker(&rig, &gate, |_| {}));
    answers(&rig, "image.echo").await;
    until("each type has its share", || async {
        gate.begun() == 6 + 1
    })
    .await;
    answers(&rig, "image.echo").await;
    assert_eq!(gate.begun(), 6 + 1);
    gate.open.add_permits(1000);
    rig.wait_for("cb:results:image", 50).await;
    running.stop().await;
    assert_eq!(gate.begun(), 50);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_its_share_is_bounded_and_given_back_when_the_worker_drains() {
    let rig = Rig::new().await;
    let gate = Gate::new();
    let running = rig.start(worker(&rig, &gate, |_| {}));
    // As many as wait at the most.
    let most = 64;
    // Who is idle asks for more at a time.
    publish(&rig, "image.hang", 20).await;
    until("its share runs", || async { gate.begun() == 6 }).await;
    publish(&rig, "image.hang", 380).await;
    until("enough wait", || async {
        rig.pending("cb:events:image").await >= 6 + most
    })
    .await;
    // The stream is not read any more; others are.
    answers(&rig, "text.echo").await;
    let pending = rig.pending("cb:events:image").await;
    assert!(pending < 6 + most + 3 * 8, "{pending}");
    gate.open.add_permits(6);
    until("others take the places of those that ended", || async {
        gate.begun() == 12
    })
    .await;
    let stops = tokio::spawn(running.stop());
    let draining = gate.draining.get().unwrap().clone();
    draining.cancelled().await;
    gate.open.add_permits(1000);
    stops.await.unwrap();
    assert_eq!(gate.begun(), 12, "what only waited is not started");
    let other = rig.start(worker(&rig, &gate, |settings| settings.id = "other".into()));
    rig.wait_for("cb:results:image", 400).await;
    other.stop().await;
    assert_eq!(gate.begun(), 400);
    assert!(rig.entries("cb:dead:image").await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_without_neighbours_has_every_slot_and_so_has_who_is_given_all() {
    let rig = Rig::new().await;
    let gate = Gate::new();
    let settings = Settings {
        concurrency: 8,
        ..rig.settings()
    };
    let alone = Worker::builder().settings(settings).state(gate.clone());
    let alone = rig.start(alone.handler("image.hang", hang));
    publish(&rig, "image.hang", 20).await;
    until("all slots are taken", || async { gate.begun() == 8 }).await;
    gate.open.add_permits(20);
    rig.wait_for("cb:results:image", 20).await;
    alone.stop().await;
    let all = rig.start(worker(&rig, &gate, |settings| settings.type_share = 100));
    publish(&rig, "image.hang", 8).await;
    until("all slots are taken", || async { gate.begun() == 28 }).await;
    gate.open.add_permits(8);
    all.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_dead_held_runs_before_what_is_newer() {
    let rig = Rig::new().await;
    let gate = Gate::new();
    let started = Arc::new(Mutex::new(Vec::new()));
    let log = started.clone();
    let note = move |_: Context, n: u32| {
        log.lock().unwrap().push(n);
        async { Ok::<_, HandlerError>(()) }
    };
    let ghost = serde_json::json!({"id": "ghost", "roles": ["worker"], "ttl_ms": 60_000});
    let mut settings = rig.settings();
    settings.concurrency = 4;
    settings.type_share = 100;
    let builder = Worker::builder()
        .settings(settings)
        .state(gate.clone())
        .handler("text.note", note)
        .handler("text.hang", hang);
    let running = rig.start(builder);
    rig.ask("system.register", &ghost).await.unwrap();
    publish(&rig, "text.hang", 4).await;
    until("every slot is taken", || async { gate.begun() == 4 }).await;
    let mut connection = rig.connection.clone();
    for n in 0..3 {
        rig.client
            .publish(&Outgoing::new("text.note", &n))
            .await
            .unwrap();
    }
    until("they are in hand", || async {
        rig.pending("cb:events:text").await == 7
    })
    .await;
    let entries = rig.entries("cb:events:text").await;
    let mut claim = redis::cmd("XCLAIM");
    claim
        .arg("cb:events:text")
        .arg("workers")
        .arg("ghost")
        .arg(0);
    for entry in &entries[4..5] {
        claim.arg(entry.id.to_string());
    }
    let _: redis::Value = claim.query_async(&mut connection).await.unwrap();
    let gone = serde_json::json!({"instance_id": "ghost"});
    rig.ask("system.unregister", &gone).await.unwrap();
    until("what it held is taken over", || async {
        let mut pending = redis::cmd("XPENDING");
        pending.arg(&["cb:events:text", "workers", "-", "+", "10", "ghost"]);
        let mut connection = rig.connection.clone();
        let told: Vec<redis::Value> = pending.query_async(&mut connection).await.unwrap();
        told.is_empty()
    })
    .await;
    gate.open.add_permits(1000);
    rig.wait_for("cb:results:text", 7).await;
    running.stop().await;
    assert!(started.lock().unwrap().is_sorted(), "{started:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_backoff_is_as_short_as_it_says() {
    let rig = Rig::new().await;
    let policy = Policy::new().retry(RetryPolicy {
        max_attempts: 100,
        base: Duration::from_millis(1),
        cap: Duration::from_millis(1),
        ..RetryPolicy::default()
    });
    let fails = async |_: Context, (): ()| -> Result<(), HandlerError> {
        Err(HandlerError::unavailable("not yet"))
    };
    let builder = rig
        .builder()
        .handler_with("late.fail", fails, policy)
        .handler("late.echo", echo);
    let running = rig.start(builder);
    answers(&rig, "late.echo").await;
    publish(&rig, "late.fail", 1).await;
    let after = Outgoing::new("late.echo", &7_u32).delay(Duration::from_secs(10));
    rig.client.publish(&after).await.unwrap();
    rig.wait_for("cb:dead:late", 1).await;
    let results = rig.entries("cb:results:late").await;
    assert!(
        results.is_empty(),
        "99 waits of a ms took more than ten seconds"
    );
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rate_is_checked_while_handlers_hold_every_connection() {
    let rig = Rig::new().await;
    let gate = Gate::new();
    let limited = Gate::new();
    let counted = limited.begun.clone();
    let count = move |_: Context, (): ()| {
        counted.fetch_add(1, Ordering::SeqCst);
        async { Ok::<_, HandlerError>(()) }
    };
    async fn hold(context: Context, (): ()) -> Result<(), HandlerError> {
        let _held = context.redis().await?;
        hang(context, ()).await
    }
    let policy = Policy::new().rate_limit(2, MINUTES);
    let builder = worker(&rig, &gate, |settings| settings.concurrency = room(64, 3))
        // Nothing but the test ends them.
        .handler_with("load.hold", hold, Policy::new().no_timeout())
        .handler_with("load.count", count, policy);
    let running = rig.start(builder);
    publish(&rig, "load.hold", 16).await;
    until("every connection is held", || async { gate.begun() == 16 }).await;
    publish(&rig, "load.count", 10).await;
    until("as many ran as may", || async { limited.begun() == 2 }).await;
    answers(&rig, "image.echo").await;
    assert_eq!(limited.begun(), 2);
    gate.open.add_permits(1000);
    running.stop().await;
    assert_eq!(limited.begun(), 2);
}
