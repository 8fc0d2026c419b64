//! Handlers that take many events at once: each event ends as its outcome says.

use crate::rig::{Rig, text};
use crate::support::until;
use convoke::client::publish::Outgoing;
use convoke::handler::RetryPolicy;
use convoke::worker::builder::Builder;
use convoke::{Batch, Batches, Context, HandlerError, Policy};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::Semaphore;

const EVENTS: &str = "cb:events:row";
const RESULTS: &str = "cb:results:row";
const DEAD: &str = "cb:dead:row";

/// What each batch had, as it began, and how many may go on where they wait.
#[derive(Clone)]
struct Log {
    batches: Arc<Mutex<Vec<Vec<i64>>>>,
    ended: Arc<Mutex<Vec<Vec<i64>>>>,
    go: Arc<Semaphore>,
}

impl Log {
    fn new(go: usize) -> Self {
        Self {
            batches: Arc::default(),
            ended: Arc::default(),
            go: Arc::new(Semaphore::new(go)),
        }
    }

    fn batches(&self) -> Vec<Vec<i64>> {
        self.batches.lock().unwrap().clone()
    }

    fn ended(&self) -> Vec<Vec<i64>> {
        self.ended.lock().unwrap().clone()
    }

    fn sizes(&self) -> Vec<usize> {
        self.batches().iter().map(Vec::len).collect()
    }
}

type Outcomes = Result<Vec<Result<i64, HandlerError>>, HandlerError>;

/// Numbers from 0 are well; -1 fails for good, -2 at first, -3 panics at first, -4 is told no outcome at first, -5 takes
/// too long.
async fn insert(batch: Batch, rows: Vec<i64>) -> Outcomes {
    let log = batch.state::<Log>()?.clone();
    log.batches.lock().unwrap().push(rows.clone());
    log.go.acquire().await.unwrap().forget();
    assert_eq!(batch.events().len(), rows.len());
    let first = |at: usize| batch.events()[at].event().attempt() == 1;
    let mut outcomes = Vec::new();
    for (at, row) in rows.iter().enumerate() {
        batch.events()[at].publish("row.inserted", row)?;
        match row {
            -1 => outcomes.push(Err(HandlerError::not_found("no such table"))),
            -2 if first(at) => outcomes.push(Err(HandlerError::unavailable("not yet"))),
            -3 if first(at) => panic!("a row that cannot be"),
            -4 if first(at) => {}
            -5 => std::future::pending().await,
            row => outcomes.push(Ok(*row)),
        }
    }
    log.ended.lock().unwrap().push(rows);
    Ok(outcomes)
}

fn worker(rig: &Rig, log: &Log, batches: Batches, policy: Policy) -> Builder {
    let retry = RetryPolicy {
        base: Duration::from_millis(1),
        cap: Duration::from_millis(20),
        ..RetryPolicy::default()
    };
    let builder = rig.builder().state(log.clone()).ignore("row.inserted");
    builder.batch_handler_with("row.insert", insert, batches, policy.retry(retry))
}

async fn publish(rig: &Rig, rows: &[i64]) {
    let events: Vec<Outgoing> = rows
        .iter()
        .map(|row| Outgoing::new("row.insert", row))
        .collect();
    for published in rig.client.publish_many(&events).await {
        published.unwrap();
    }
}

/// The rows of results or letters.
async fn rows(rig: &Rig, stream: &str) -> Vec<i64> {
    let entries = rig.entries(stream).await.into_iter();
    let rows = entries.filter_map(|entry| rmp_serde::from_slice(entry.get("data")?).ok());
    let mut rows: Vec<i64> = rows.collect();
    rows.sort_unstable();
    rows
}

/// The rows of the events that the runs published.
async fn published(rig: &Rig) -> Vec<i64> {
    let entries = rig.entries(EVENTS).await.into_iter();
    let entries = entries.filter(|entry| text(entry, "type") == "row.inserted");
    let rows = entries.map(|entry| rmp_serde::from_slice(entry.get("data").unwrap()).unwrap());
    let mut rows: Vec<i64> = rows.collect();
    rows.sort_unstable();
    rows
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_event_of_a_batch_ends_as_its_own_outcome_says() {
    let rig = Rig::new().await;
    let log = Log::new(1000);
    publish(&rig, &[0, 1, 2, -1, -2, 3, 4]).await;
    // A payload that the handler cannot take fails alone.
    let bad = Outgoing::new("row.insert", &json!({"row": 1}));
    rig.client.publish(&bad).await.unwrap();
    publish(&rig, &[5, 6]).await;
    let batches = Batches::of(20).within(Duration::from_secs(1));
    let running = rig.start(worker(&rig, &log, batches, Policy::new()));
    rig.wait_for(RESULTS, 8).await;
    let asked = rig.ask("row.insert", &7).await.unwrap();
    assert_eq!(asked.decode::<i64>().unwrap(), 7);
    let refused = rig.refused("row.insert", &-1).await;
    assert!(refused.message.contains("no such table"), "{refused}");
    rig.wait_for(DEAD, 2).await;
    running.stop().await;
    assert_eq!(rows(&rig, RESULTS).await, [-2, 0, 1, 2, 3, 4, 5, 6]);
    assert_eq!(rows(&rig, DEAD).await, [-1]);
    assert_eq!(log.batches()[0], [0, 1, 2, -1, -2, 3, 4, 5, 6]);
    // What a failed one published is dropped.
    assert_eq!(published(&rig).await, [-2, 0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(rig.pending(EVENTS).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_a_wrong_number_of_outcomes_and_a_time_out_fail_each_event_and_its_retry_alone() {
    let rig = Rig::new().await;
    for (row, code) in [
        (-3, "internal"),
        (-4, "internal"),
        (-5, "deadline_exceeded"),
    ] {
        let log = Log::new(1000);
        publish(&rig, &[0, 1, row]).await;
        let policy = Policy::new().timeout(Duration::from_millis(400));
        let batches = Batches::of(3).within(Duration::from_secs(20));
        let before = rig.entries(RESULTS).await.len();
        // The one that never ends is a dead letter; the others of its batch succeed alone.
        let running = rig.start(worker(&rig, &log, batches, policy.attempts(2)));
        match row {
            -5 => {
                rig.wait_for(DEAD, 1).await;
                rig.wait_for(RESULTS, before + 2).await;
            }
            _ => drop(rig.wait_for(RESULTS, before + 3).await),
        }
        running.stop().await;
        assert_eq!(log.sizes(), [3, 1, 1, 1], "{row}");
        for letter in rig.entries(DEAD).await {
            assert_eq!(text(&letter, "deadreason"), code);
            assert_eq!(text(&letter, "attempt"), "2");
        }
        assert_eq!(rig.pending(EVENTS).await, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_batch_waits_for_nothing_and_one_that_is_not_for_its_time_only() {
    let rig = Rig::new().await;
    let log = Log::new(1000);
    let hour = Batches::of(3).within(Duration::from_secs(3600));
    let running = rig.start(worker(&rig, &log, hour, Policy::new()));
    publish(&rig, &[0, 1, 2, 3, 4, 5, 6]).await;
    rig.wait_for(RESULTS, 6).await;
    assert_eq!(log.sizes(), [3, 3]);
    // The seventh waits unstarted, and whoever comes next has it.
    running.stop().await;
    assert_eq!(rig.pending(EVENTS).await, 0);
    let soon = Batches::of(100).within(Duration::from_millis(20));
    let heir = rig.start(worker(&rig, &log, soon, Policy::new()));
    rig.wait_for(RESULTS, 7).await;
    heir.stop().await;
    assert_eq!(log.batches()[2], [6]);
    assert!(!rig.exists(DEAD).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_of_subjects_have_one_each_in_order_and_none_beside_another_of_its_subject() {
    let rig = Rig::new().await;
    let log = Log::new(0);
    let subjects = ["a", "b", "c"];
    for row in 0..30 {
        let subject = subjects[row as usize % 3];
        let event = Outgoing::new("row.insert", &row).subject(subject);
        rig.client.publish(&event).await.unwrap();
    }
    let batches = Batches::of(4).by_subject();
    let policy = Policy::new().concurrency(8);
    let running = rig.start(worker(&rig, &log, batches, policy));
    until("a batch of each runs", async || log.batches().len() == 3).await;
    log.go.add_permits(1000);
    rig.wait_for(RESULTS, 30).await;
    running.stop().await;
    let mut of_subject: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
    for (began, batch) in log.batches().iter().enumerate() {
        let subject = batch[0] % 3;
        assert!(batch.len() <= 4);
        assert!(batch.iter().all(|row| row % 3 == subject), "{batch:?}");
        assert!(began >= 3 || batch.len() == 4, "{batch:?}");
        of_subject.entry(subject).or_default().extend(batch);
    }
    assert_eq!(log.ended().len(), log.batches().len());
    for (subject, rows) in of_subject {
        let sent: Vec<i64> = (0..10).map(|n| n * 3 + subject).collect();
        assert_eq!(rows, sent);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_of_a_subject_keeps_its_place_while_it_is_judged() {
    let rig = Rig::new().await;
    let log = Log::new(1000);
    for row in 0..40 {
        let event = Outgoing::new("row.insert", &row).subject("a");
        let event = match row % 4 {
            0 => event.id(format!("e-{row}")).field("dedup", "1"),
            _ => event,
        };
        rig.client.publish(&event).await.unwrap();
    }
    let batches = Batches::of(5).by_subject();
    let running = rig.start(worker(&rig, &log, batches, Policy::new()));
    rig.wait_for(RESULTS, 40).await;
    running.stop().await;
    let sent: Vec<i64> = (0..40).collect();
    assert_eq!(log.batches().concat(), sent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subject_of_which_there_is_always_a_full_batch_does_not_hold_up_an_older_one() {
    let rig = Rig::new().await;
    let log = Log::new(1000);
    for row in 0..20 {
        let subject = if row == 0 { "quiet" } else { "busy" };
        let event = Outgoing::new("row.insert", &row).subject(subject);
        rig.client.publish(&event).await.unwrap();
    }
    let batches = Batches::of(2).by_subject();
    let policy = Policy::new().concurrency(1);
    let running = rig.start(worker(&rig, &log, batches, policy));
    rig.wait_for(RESULTS, 20).await;
    running.stop().await;
    assert_eq!(log.batches()[0], [0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_is_due_does_not_wait_for_the_end_of_a_backlog() {
    let rig = Rig::new().await;
    let done = Arc::new(AtomicUsize::new(0));
    let (counted, seen) = (done.clone(), Arc::new(AtomicUsize::new(0)));
    let busy = move |_: Context, (): ()| {
        let began = Instant::now();
        while began.elapsed() < Duration::from_micros(100) {
            std::hint::spin_loop();
        }
        counted.fetch_add(1, Ordering::SeqCst);
        async { Ok::<_, HandlerError>(()) }
    };
    let at = seen.clone();
    let insert = move |_: Batch, rows: Vec<i64>| {
        at.store(done.load(Ordering::SeqCst), Ordering::SeqCst);
        async { Ok::<_, HandlerError>(rows.into_iter().map(Ok).collect::<Vec<_>>()) }
    };
    let work = |count| (0..count).map(|_| Outgoing::new("row.compute", &()));
    let mut events: Vec<Outgoing> = work(100).collect();
    events.push(Outgoing::new("row.insert", &7));
    events.extend(work(3000));
    for published in rig.client.publish_many(&events).await {
        published.unwrap();
    }
    let builder = rig.builder().handler("row.compute", busy);
    let running = rig.start(builder.batch_handler("row.insert", insert, Batches::of(100)));
    rig.wait_for(RESULTS, events.len()).await;
    running.stop().await;
    let before = seen.load(Ordering::SeqCst);
    assert!(before < 1500, "{before} others went before it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_waits_for_no_more_where_a_deadline_comes() {
    let rig = Rig::new().await;
    let log = Log::new(1000);
    let hour = Batches::of(3).within(Duration::from_secs(3600));
    let running = rig.start(worker(&rig, &log, hour, Policy::new()));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let soon = now.unwrap().as_millis() as u64 + 6000;
    publish(&rig, &[0]).await;
    let event = Outgoing::new("row.insert", &1).deadline(soon);
    rig.client.publish(&event).await.unwrap();
    until("they run", async || log.batches() == [[0, 1]]).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_longest_time_is_one_that_a_batch_may_wait() {
    let rig = Rig::new().await;
    let log = Log::new(1000);
    let for_ever = Batches::of(3).within(Duration::MAX);
    let running = rig.start(worker(&rig, &log, for_ever, Policy::new()));
    publish(&rig, &[0, 1]).await;
    until("they wait", async || rig.pending(EVENTS).await == 2).await;
    publish(&rig, &[2]).await;
    rig.wait_for(RESULTS, 3).await;
    running.stop().await;
    assert_eq!(log.sizes(), [3]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_most_four_batches_of_a_type_run_and_other_types_are_not_held_up() {
    let rig = Rig::new().await;
    let log = Log::new(0);
    let echo = async |_: Context, text: String| Ok::<_, HandlerError>(text);
    let builder = worker(&rig, &log, Batches::of(10), Policy::new());
    let running = rig.start(builder.handler("text.echo", echo));
    let all: Vec<i64> = (0..200).collect();
    publish(&rig, &all).await;
    until("four run", async || log.batches().len() == 4).await;
    let reply = rig.ask("text.echo", &"hello").await.unwrap();
    assert_eq!(reply.decode::<String>().unwrap(), "hello");
    assert_eq!(log.batches().len(), 4);
    log.go.add_permits(1000);
    rig.wait_for(RESULTS, 200).await;
    running.stop().await;
    assert_eq!(rows(&rig, RESULTS).await, all);
    assert!(log.sizes().iter().all(|size| *size <= 10));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_batch_handler_cannot_have_is_refused() {
    let rig = Rig::new().await;
    let log = Log::new(0);
    let minute = Duration::from_secs(60);
    for (part, batches, policy) in [
        ("batches", Batches::of(0), Policy::new()),
        ("batches", Batches::of(usize::MAX), Policy::new()),
        (
            "rate_limit",
            Batches::of(5),
            Policy::new().rate_limit(1, minute),
        ),
        ("circuit", Batches::of(5), Policy::new().circuit(1, minute)),
        ("cache", Batches::of(5), Policy::new().cache(minute)),
    ] {
        let built = worker(&rig, &log, batches, policy).build();
        let said = built.expect_err(part).to_string();
        assert!(said.contains(&format!("row.insert: {part}: ")), "{said}");
    }
}
