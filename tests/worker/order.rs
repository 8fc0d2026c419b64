//! The order of a subject, where one worker leaves and the next one comes.

use crate::rig::{Rig, text};
use crate::support::until;
use convoke::client::publish::Outgoing;
use convoke::protocol::event::Entry;
use convoke::settings::Settings;
use convoke::worker::builder::Builder;
use convoke::{Context, HandlerError, Policy, Worker};
use std::sync::{Arc, Mutex};
use tokio::sync::Semaphore;

const EVENTS: &str = "cb:events:line";

/// What began, and how many may end in the first worker.
#[derive(Clone)]
struct Log {
    began: Arc<Mutex<Vec<u64>>>,
    ends: Arc<Semaphore>,
}

impl Log {
    fn began(&self) -> Vec<u64> {
        self.began.lock().unwrap().clone()
    }
}

async fn step(context: Context, n: u64) -> Result<(), HandlerError> {
    let log = context.state::<Log>()?;
    log.began.lock().unwrap().push(n);
    if context.instance() == "first" {
        log.ends.acquire().await.unwrap().forget();
    }
    Ok(())
}

fn worker(rig: &Rig, id: &str, log: &Log) -> Builder {
    let settings = Settings {
        id: id.into(),
        concurrency: 2,
        ..rig.settings()
    };
    let builder = Worker::builder().settings(settings).state(log.clone());
    builder.handler_with("line.step", step, Policy::new().ordered())
}

async fn publish(rig: &Rig, n: u64, subject: Option<&str>) {
    let mut event = Outgoing::new("line.step", &n);
    if let Some(subject) = subject {
        event = event.subject(subject);
    }
    rig.client.publish(&event).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn none_of_a_subject_passes_another_where_its_worker_leaves_and_the_next_one_comes() {
    let rig = Rig::new().await;
    let log = Log {
        began: Arc::default(),
        ends: Arc::new(Semaphore::new(0)),
    };
    let subjects = [Some("s"), Some("s"), Some("t"), Some("s"), None];
    for (n, subject) in (1..).zip(subjects) {
        publish(&rig, n, subject).await;
    }
    let first = rig.start(worker(&rig, "first", &log));
    until(
        "two run, one is in line, and the others are read",
        async || log.began() == [1, 3] && rig.pending(EVENTS).await == 5,
    )
    .await;
    let ends = async { log.ends.add_permits(2) };
    tokio::join!(first.stop(), ends);
    let pending: Vec<(String, String, u64, u64)> = redis::cmd("XPENDING")
        .arg(&[EVENTS, "workers", "-", "+", "10"])
        .query_async(&mut rig.connection.clone())
        .await
        .unwrap();
    let entries = rig.entries(EVENTS).await;
    let held = |at: usize| {
        pending
            .iter()
            .any(|row| row.0 == entries[at].id.to_string())
    };
    // The one without a subject may be back as another entry by now.
    let held: Vec<bool> = (0..5).map(held).collect();
    assert_eq!(held, [false, true, false, true, false]);
    publish(&rig, 6, Some("s")).await;
    let second = rig.start(worker(&rig, "second", &log));
    let results = rig.wait_for("cb:results:line", 6).await;
    second.stop().await;
    let source = |result: &&Entry| text(result, "source") == "second";
    assert_eq!(results.iter().filter(source).count(), 4);
    let mut of_subject = log.began();
    of_subject.retain(|n| *n != 3 && *n != 5);
    assert_eq!(of_subject, [1, 2, 4, 6]);
    assert_eq!(rig.pending(EVENTS).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_takes_what_two_that_are_gone_hold_in_the_order_of_the_stream() {
    let rig = Rig::new().await;
    let log = Log {
        began: Arc::default(),
        ends: Arc::new(Semaphore::new(0)),
    };
    for n in 1..=4 {
        publish(&rig, n, Some("s")).await;
    }
    rig.run(&format!("XGROUP CREATE {EVENTS} workers 0")).await;
    // By name the one that does not hold the oldest comes first.
    for (gone, count) in [("z-gone", 1), ("a-gone", 2), ("z-gone", 1)] {
        let read = format!("XREADGROUP GROUP workers {gone} COUNT {count} STREAMS {EVENTS} >");
        rig.run(&read).await;
        rig.run(&format!("HSET cb:instance:{gone} status unregistered"))
            .await;
    }
    let next = rig.start(worker(&rig, "next", &log));
    until("all ran", async || log.began().len() == 4).await;
    assert_eq!(log.began(), [1, 2, 3, 4]);
    next.stop().await;
}
