//! What a policy or a layer holds back waits without a slot, and what waits for it may be late or lost.

use super::{Gate, MINUTES, answers, echo, hang, publish};
use crate::rig::{Rig, text};
use crate::support::{name, until};
use convoke::client::publish::Outgoing;
use convoke::handler::function::{Encoded, Run};
use convoke::handler::policy::RetryPolicy;
use convoke::worker::builder::Builder;
use convoke::{Context, HandlerError, Policy, Worker};
use std::task::{self, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tower::{Layer, Service};

/// A layer that is never ready.
#[derive(Clone)]
struct Never;

impl<S> Layer<S> for Never {
    type Service = Never;
    fn layer(&self, _: S) -> Never {
        Never
    }
}

impl Service<Context> for Never {
    type Response = Encoded;
    type Error = HandlerError;
    type Future = Run;

    fn poll_ready(&mut self, _: &mut task::Context<'_>) -> Poll<Result<(), HandlerError>> {
        Poll::Pending
    }

    fn call(&mut self, _: Context) -> Run {
        unreachable!("it is never ready")
    }
}

fn policed(rig: &Rig, gate: &Gate, policy: Policy) -> Builder {
    let mut settings = rig.settings();
    settings.concurrency = 8;
    Worker::builder()
        .settings(settings)
        .state(gate.clone())
        .handler_with("image.hang", hang, policy.timeout(MINUTES))
        .handler("image.echo", echo)
}

async fn publish_of(rig: &Rig, subject: &str, count: usize) {
    for _ in 0..count {
        let event = Outgoing::new("image.hang", &()).subject(subject);
        rig.client.publish(&event).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_its_turn_or_a_permit_or_a_layer_holds_no_slot() {
    for (policy, begins) in [
        (Policy::new().ordered(), 1),
        (Policy::new().concurrency(3), 3),
        (Policy::new().ordered().concurrency(3), 1),
        (Policy::new().layer(Never), 0),
        (Policy::new().cache(MINUTES), 1),
        (Policy::new().rate_limit(2, MINUTES), 2),
    ] {
        let named = format!("{policy:?}");
        let rig = Rig::new().await;
        let gate = Gate::new();
        publish_of(&rig, "s", 40).await;
        let running = rig.start(policed(&rig, &gate, policy));
        answers(&rig, "image.echo").await;
        until("as many run as may", || async { gate.begun() == begins }).await;
        answers(&rig, "image.echo").await;
        assert_eq!(gate.begun(), begins, "{named}");
        if named.contains("ordered: true") {
            publish_of(&rig, "t", 1).await;
            until("another subject runs", || async { gate.begun() == 2 }).await;
        }
        let delayed = async || rig.keys("cb:delayed:*").await;
        assert_eq!(delayed().await, Vec::<String>::new(), "{named}");
        // What only waited is not started by a worker that drains.
        let begun = gate.begun();
        let stops = tokio::spawn(running.stop());
        if let Some(draining) = gate.draining.get() {
            draining.cancelled().await;
        }
        gate.open.add_permits(1000);
        stops.await.unwrap();
        assert_eq!(gate.begun(), begun, "{named}");
        assert!(rig.entries("cb:dead:image").await.is_empty(), "{named}");
        // What has an order is not given back either.
        if named.contains("ordered: true") {
            assert_eq!(delayed().await, Vec::<String>::new(), "{named}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_time_out_covers_the_readiness_of_layers_and_a_thread_that_was_held() {
    let rig = Rig::new().await;
    let brief = || {
        Policy::new()
            .timeout(Duration::from_millis(50))
            .retry(RetryPolicy {
                max_attempts: 1,
                ..RetryPolicy::default()
            })
    };
    let blocks = async |_: Context, (): ()| {
        std::thread::sleep(Duration::from_millis(200));
        Ok(())
    };
    let blocks_later = async |_: Context, (): ()| {
        tokio::task::yield_now().await;
        std::thread::sleep(Duration::from_millis(200));
        Ok(())
    };
    let builder = rig
        .builder()
        .state(Gate::new())
        .handler_with("late.ready", hang, brief().layer(Never))
        .handler_with("late.first", blocks, brief())
        .handler_with("late.later", blocks_later, brief())
        .handler_with("late.gated", blocks, brief().ordered());
    let running = rig.start(builder);
    let kinds = ["late.ready", "late.first", "late.later", "late.gated"];
    for kind in kinds {
        publish(&rig, kind, 1).await;
    }
    let dead = rig.wait_for("cb:dead:late", kinds.len()).await;
    for letter in dead {
        let said = text(&letter, "deadmessage");
        assert!(
            said.contains("took longer than its timeout of 50ms"),
            "{said}"
        );
    }
    running.stop().await;
    assert!(rig.entries("cb:results:late").await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_that_passes_while_an_event_waits_is_told_then_and_it_does_not_run() {
    for policy in [
        Policy::new().concurrency(6),
        Policy::new().ordered(),
        // Its type's share.
        Policy::new(),
    ] {
        let named = format!("{policy:?}");
        let rig = Rig::new().await;
        let gate = Gate::new();
        let running = rig.start(policed(&rig, &gate, policy));
        publish_of(&rig, "s", 6).await;
        let begins = if named.contains("ordered: true") {
            1
        } else {
            6
        };
        until("they run", || async { gate.begun() == begins }).await;
        let soon = SystemTime::now() + Duration::from_millis(300);
        let soon = soon.duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
        let event = Outgoing::new("image.hang", &()).subject("s");
        let event = event
            .deadline(soon)
            .reply_to(name("image", "cb:reply:late"));
        rig.client.publish(&event).await.unwrap();
        let replies = rig.wait_for("cb:reply:late", 1).await;
        assert_eq!(text(&replies[0], "status"), "deadline_exceeded", "{named}");
        assert_eq!(gate.begun(), begins, "{named}");
        gate.open.add_permits(1000);
        rig.wait_for("cb:results:image", 6).await;
        running.stop().await;
        assert_eq!(gate.begun(), 6, "{named}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_took_while_it_waited_is_not_started() {
    let rig = Rig::new().await;
    let gate = Gate::new();
    let running = rig.start(policed(&rig, &gate, Policy::new().concurrency(1)));
    publish(&rig, "image.hang", 11).await;
    until("one runs", || async { gate.begun() == 1 }).await;
    until("the others wait", || async {
        rig.pending("cb:events:image").await == 11
    })
    .await;
    let entries = rig.entries("cb:events:image").await;
    let mut claim = redis::cmd("XCLAIM");
    claim
        .arg("cb:events:image")
        .arg("workers")
        .arg("human")
        .arg(0);
    for entry in &entries[1..] {
        claim.arg(entry.id.to_string());
    }
    claim.arg("JUSTID");
    // One renewal answers for all leases: the first one's, and that the others are lost.
    let idle = async || -> u64 {
        let mut connection = rig.connection.clone();
        let first = entries[0].id.to_string();
        let mut pending = redis::cmd("XPENDING");
        pending.arg(&["cb:events:image", "workers", &first, &first, "1"]);
        let told: Vec<(String, String, u64, u64)> =
            pending.query_async(&mut connection).await.unwrap();
        told[0].2
    };
    for _ in 0..2 {
        let before = std::cell::Cell::new(0);
        until("the lease is renewed", || async {
            // Again and again: what nobody renews is taken from whoever has it.
            let mut connection = rig.connection.clone();
            claim.exec_async(&mut connection).await.unwrap();
            let now = idle().await;
            now < before.replace(now)
        })
        .await;
    }
    gate.open.add_permits(1000);
    rig.wait_for("cb:results:image", 1).await;
    running.stop().await;
    assert_eq!(gate.begun(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn equal_runs_at_once_are_one_where_a_cache_keeps_the_result() {
    let rig = Rig::new().await;
    let gate = Gate::new();
    let running = rig.start(policed(&rig, &gate, Policy::new().cache(MINUTES)));
    publish(&rig, "image.hang", 100).await;
    until("the first runs", || async { gate.begun() == 1 }).await;
    gate.open.add_permits(1);
    rig.wait_for("cb:results:image", 100).await;
    assert_eq!(gate.begun(), 1);
    running.stop().await;
}

async fn fail(_: Context, (): ()) -> Result<(), HandlerError> {
    Err(HandlerError::invalid_argument(
        "no result that a cache could keep",
    ))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn equal_runs_that_leave_no_result_do_not_wait_for_each_other_in_a_rates_line() {
    let rig = Rig::new().await;
    let policy = Policy::new()
        .cache(MINUTES)
        .rate_limit(2, Duration::from_millis(20));
    let builder = Worker::builder().settings(rig.settings());
    let running = rig.start(builder.handler_with("image.fail", fail, policy));
    publish(&rig, "image.fail", 200).await;
    rig.wait_for("cb:dead:image", 200).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_asks_for_its_share_of_a_rate_when_the_worker_drains_is_not_started() {
    let rig = Rig::new().await;
    let gate = Gate::new();
    let policy = || Policy::new().concurrency(1).rate_limit(100, MINUTES);
    let running = rig.start(policed(&rig, &gate, policy()));
    publish(&rig, "image.hang", 2).await;
    until("one runs, one waits", || async {
        gate.begun() == 1 && rig.pending("cb:events:image").await == 2
    })
    .await;
    // The answer comes late.
    let draining = gate.draining.get().unwrap().clone();
    rig.redis.signal("STOP");
    gate.open.add_permits(1);
    tokio::time::sleep(Duration::from_millis(200)).await;
    let stops = tokio::spawn(running.stop());
    draining.cancelled().await;
    rig.redis.signal("CONT");
    stops.await.unwrap();
    assert_eq!(gate.begun(), 1);
    let mut other = rig.settings();
    other.id = "other".into();
    let other = policed(&rig, &gate, policy()).settings(other);
    let other = rig.start(other);
    gate.open.add_permits(1);
    rig.wait_for("cb:results:image", 2).await;
    other.stop().await;
    assert_eq!(gate.begun(), 2);
}
