//! How far a run is, as whoever asked for the reply sees it.

use crate::rig::{Rig, text};
use crate::support::{name, until};
use convoke::client::publish::Outgoing;
use convoke::protocol::event::Entry;
use convoke::settings::Settings;
use convoke::{Context, HandlerError, Progress};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

const MINUTE: Duration = Duration::from_secs(60);

/// Reports each of that many rows, as fast as it can; now and then it waits.
async fn count(context: Context, (rows, waits): (u64, bool)) -> Result<u64, HandlerError> {
    for done in 1..=rows {
        context.progress(Progress::new(done).of(rows).note("rows"));
        if waits && done % 100 == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    Ok(rows)
}

fn done(entry: &Entry) -> u64 {
    let data = entry.get("data").unwrap();
    rmp_serde::from_slice::<Progress>(data).unwrap().done
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_newest_comes_before_the_reply_and_few_of_many_are_sent() {
    let rig = Rig::new().await;
    let worker = rig.start(rig.builder().handler("row.count", count));
    let stream = format!("cb:reply:{}", rig.client.name());
    let mut seen = 0;
    for (id, waits) in [("ready at once", false), ("waits", true)] {
        let (rows, mut heard) = (10_000, Vec::new());
        let event = Outgoing::new("row.count", &(rows, waits)).id(id);
        let began = Instant::now();
        let hear = |progress: Progress| heard.push(progress);
        let reply = rig.client.request_with_progress(event, MINUTE, hear).await;
        let took = began.elapsed().as_millis();
        assert_eq!(reply.unwrap().decode::<u64>().unwrap(), rows);
        let entries = rig.entries(&stream).await.split_off(seen);
        seen += entries.len();
        let (reply, told) = entries.split_last().unwrap();
        assert_eq!(text(reply, "type"), "row.count.result");
        for entry in told {
            assert_eq!(text(entry, "type"), "row.count.progress");
            assert_eq!(text(entry, "correlationid"), id);
            assert_eq!(text(entry, "source"), text(reply, "source"));
            assert!(text(entry, "time").parse::<u64>().unwrap() > 1_000_000_000_000);
        }
        let numbers: Vec<u64> = told.iter().map(done).collect();
        assert!(numbers.is_sorted(), "{numbers:?}");
        assert_eq!(numbers.last(), Some(&rows));
        // At the beginning, five times a second, and at the end.
        assert!(
            told.len() as u128 <= took / 200 + 2,
            "{} in {took} ms",
            told.len()
        );
        let heard_numbers: Vec<u64> = heard.iter().map(|progress| progress.done).collect();
        assert_eq!(heard_numbers, numbers);
        assert_eq!(heard[0].total, Some(rows));
        assert_eq!(heard[0].note.as_deref(), Some("rows"));
    }
    // Who does not ask for it gets the reply alone.
    let reply = rig.ask("row.count", &(3, true)).await.unwrap();
    assert_eq!(reply.decode::<u64>().unwrap(), 3);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_holds_its_thread_is_heard_while_it_runs() {
    let rig = Rig::new().await;
    let (lets_go, held) = mpsc::channel::<()>();
    let held = Arc::new(Mutex::new(held));
    let holds = move |context: Context, (): ()| {
        let held = held.clone();
        async move {
            context.progress(Progress::new(1));
            held.lock().unwrap().recv().ok();
            Ok::<_, HandlerError>(())
        }
    };
    let worker = rig.start(rig.builder().handler("row.hold", holds));
    let asked = rig.client.ask::<()>("row.hold", &()).within(MINUTE);
    let mut heard = 0;
    asked
        .progress(|progress| {
            heard += progress.done;
            lets_go.send(()).ok();
        })
        .await
        .unwrap();
    assert_eq!(heard, 1);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_nobody_asked_nothing_is_sent_and_to_a_stranger_neither() {
    let rig = Rig::new().await;
    let runs = Arc::new(AtomicU32::new(0));
    let counted = runs.clone();
    let counts = move |context: Context, rows: (u64, bool)| {
        counted.fetch_add(1, Ordering::Relaxed);
        count(context, rows)
    };
    let worker = rig.start(rig.builder().handler("row.count", counts));
    let event = Outgoing::new("row.count", &(3, true));
    rig.client.publish(&event).await.unwrap();
    let results = rig.wait_for("cb:results:row", 1).await;
    assert_eq!(text(&results[0], "type"), "row.count.result");

    rig.run("XADD cb:events:row * type row.count replyto other:reply:me")
        .await;
    rig.wait_for("cb:dead:row", 1).await;
    // An inbox that is not there is made by nobody. On a cluster it is in another slot, and no event may name it.
    let inbox = !rig.redis.is_cluster();
    let data = rmp_serde::to_vec_named(&(3, true)).unwrap();
    let mut add = redis::cmd("XADD");
    add.arg(&["cb:events:row", "*", "type", "row.count", "replyto"]);
    add.arg("cb:inbox:ghost").arg("data").arg(&data);
    let mut connection = rig.connection.clone();
    add.exec_async(&mut connection).await.unwrap();
    match inbox {
        true => until("both ran", async || runs.load(Ordering::Relaxed) == 2).await,
        false => _ = rig.wait_for("cb:dead:row", 2).await,
    }
    worker.stop().await;
    assert_eq!(rig.entries("cb:results:row").await.len(), 1);
    for key in ["other:reply:me", "cb:inbox:ghost"] {
        assert!(!rig.exists(key).await, "{key}");
    }
    assert_eq!(rig.pending("cb:events:row").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_written_is_dropped_and_the_run_is_committed() {
    let rig = Rig::new().await;
    let odd = name("row", "cb:reply:odd");
    rig.run(&format!("SET {odd} x")).await;
    let publishes = async |context: Context, (): ()| {
        context.progress(Progress::new(1));
        context.publish("row.counted", &1)
    };
    let worker = rig.start(rig.builder().handler("row.count", publishes));
    rig.run("XADD cb:events:row * type row.count replyto cb:reply:odd")
        .await;
    // The two that it has: what it published, and itself.
    rig.wait_for("cb:events:row", 2).await;
    worker.stop().await;
    let kept: String = redis::cmd("GET")
        .arg("cb:reply:odd")
        .query_async(&mut rig.connection.clone())
        .await
        .unwrap();
    assert_eq!(kept, "x");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_is_repeated_tells_again() {
    let rig = Rig::new().await;
    let crash = Arc::new(AtomicBool::new(true));
    let crashes = crash.clone();
    let counts = move |context: Context, (): ()| {
        let hangs = crashes.load(Ordering::Relaxed);
        async move {
            context.progress(Progress::new(1));
            if hangs {
                std::future::pending::<()>().await;
            }
            context.progress(Progress::new(2));
            Ok::<_, HandlerError>(context.instance().to_owned())
        }
    };
    let settings = |id: &str| Settings {
        id: id.into(),
        ..rig.settings()
    };
    let first = rig.builder().settings(settings("w-1"));
    let first = first.handler("row.count", counts.clone()).build().unwrap();
    let first = tokio::spawn(first.run());
    let told = Arc::new(Mutex::new(Vec::new()));
    let hears = told.clone();
    let asked = rig.client.ask::<String>("row.count", &()).within(MINUTE);
    let asked = asked.progress(move |progress| hears.lock().unwrap().push(progress.done));
    let goes_on = async {
        until("the first tells", async || !told.lock().unwrap().is_empty()).await;
        crash.store(false, Ordering::Relaxed);
        first.abort();
        rig.start(
            rig.builder()
                .settings(settings("w-2"))
                .handler("row.count", counts),
        )
    };
    let (by, second) = tokio::join!(asked.into_future(), goes_on);
    assert_eq!(by.unwrap(), "w-2");
    let told = told.lock().unwrap().clone();
    // The second one's first may be overtaken by its last.
    assert!([&[1, 1, 2][..], &[1, 2]].contains(&&told[..]), "{told:?}");
    let stream = format!("cb:reply:{}", rig.client.name());
    let entries = rig.entries(&stream).await;
    assert_eq!(text(&entries[0], "source"), "w-1");
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_lost_its_event_tells_nothing_more() {
    let rig = Rig::new().await;
    let (first, told) = (Arc::new(AtomicBool::new(true)), Arc::new(Notify::new()));
    let tells = told.clone();
    let outlives = move |context: Context, (): ()| {
        let (is_first, tells) = (first.swap(false, Ordering::Relaxed), tells.clone());
        async move {
            if is_first {
                context.progress(Progress::new(1));
                context.cancellation().cancelled().await;
                context.progress(Progress::new(2));
                tells.notify_one();
            }
            Ok::<_, HandlerError>(())
        }
    };
    let worker = rig.start(rig.builder().handler("row.count", outlives));
    rig.run("XADD cb:events:row 7-1 type row.count replyto cb:reply:me")
        .await;
    rig.wait_for("cb:reply:me", 1).await;
    rig.run("XCLAIM cb:events:row workers thief 0 7-1").await;
    told.notified().await;
    worker.stop().await;
    let entries = rig.entries("cb:reply:me").await.into_iter();
    let told: Vec<u64> = entries
        .filter(|entry| text(entry, "type") == "row.count.progress")
        .map(|entry| done(&entry))
        .collect();
    assert_eq!(told, [1]);
}
