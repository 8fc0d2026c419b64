//! Handlers that block their threads, where their policy says so.

use crate::rig::{Rig, text};
use crate::support::{room, until};
use convoke::client::publish::Outgoing;
use convoke::handler::function::{Encoded, Run};
use convoke::handler::policy::Stack;
use convoke::protocol::error::Code;
use convoke::settings::Settings;
use convoke::worker::builder::Builder;
use convoke::{Batch, Batches, Context, HandlerError, Policy, Worker};
use serde_json::json;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tower::layer::layer_fn;
use tower::{Service, ServiceExt, service_fn};

const EVENTS: &str = "cb:events:file";
const RESULTS: &str = "cb:results:file";

/// What began, and which runs may go on.
#[derive(Clone, Default)]
struct Door(Arc<(Mutex<State>, Condvar)>);

#[derive(Default)]
struct State {
    began: Vec<String>,
    open: bool,
    /// Runs that went on, and what came of publishing then.
    published: Vec<bool>,
}

impl Door {
    fn began(&self) -> Vec<String> {
        let mut began = self.0.0.lock().unwrap().began.clone();
        began.sort();
        began
    }

    fn open(&self, open: bool) {
        self.0.0.lock().unwrap().open = open;
        self.0.1.notify_all();
    }

    fn published(&self) -> Vec<bool> {
        self.0.0.lock().unwrap().published.clone()
    }
}

/// Blocks its thread while the door is shut.
async fn block(context: Context, name: String) -> Result<String, HandlerError> {
    let door = context.state::<Door>()?.clone();
    let mut state = door.0.0.lock().unwrap();
    state.began.push(name.clone());
    while !state.open {
        state = door.0.1.wait(state).unwrap();
    }
    let published = context.publish("file.blocked", &name).is_ok();
    state.published.push(published);
    Ok(name)
}

/// Blocks its thread until it is told that its time is over.
async fn watch(context: Context, name: String) -> Result<String, HandlerError> {
    let door = context.state::<Door>()?.clone();
    door.0.0.lock().unwrap().began.push(name.clone());
    while !context.cancellation().is_cancelled() {
        std::thread::sleep(Duration::from_millis(1));
    }
    door.0.0.lock().unwrap().published.push(false);
    Ok(name)
}

/// Returns at once when it is called first, and blocks when it is called again.
async fn twice(context: Context, name: String) -> Result<String, HandlerError> {
    let door = context.state::<Door>()?.clone();
    if door.began().contains(&name) {
        return block(context, name).await;
    }
    door.0.0.lock().unwrap().began.push(name.clone());
    Ok(name)
}

async fn watch_all(
    batch: Batch,
    names: Vec<String>,
) -> Result<Vec<Result<String, HandlerError>>, HandlerError> {
    let last = batch.events().last().cloned().unwrap();
    watch(last, names.concat()).await?;
    Ok(names.into_iter().map(Ok).collect())
}

async fn echo(_: Context, text: String) -> Result<String, HandlerError> {
    Ok(text)
}

fn calls_twice(
    inner: Stack,
) -> impl Service<Context, Response = Encoded, Error = HandlerError, Future = Run> + Clone + Sync {
    service_fn(move |context: Context| -> Run {
        let inner = inner.clone();
        Box::pin(async move {
            inner.clone().oneshot(context.clone()).await?;
            inner.oneshot(context).await
        })
    })
}

fn worker(rig: &Rig, id: &str, door: &Door) -> Builder {
    let settings = Settings {
        id: id.into(),
        handler_timeout: Duration::from_secs(60),
        concurrency: room(16, 2),
        ..rig.settings()
    };
    let builder = Worker::builder().settings(settings).state(door.clone());
    let soon = Policy::new()
        .timeout(Duration::from_millis(600))
        .attempts(1);
    builder
        .handler_with("file.block", block, Policy::new().blocking())
        .handler_with("file.watch", watch, Policy::new().blocking())
        .handler_with("file.glance", watch, soon.clone().blocking())
        .batch_handler_with(
            "file.glances",
            watch_all,
            Batches::of(2).within(Duration::from_secs(60)),
            soon.clone().blocking(),
        )
        .handler_with(
            "file.twice",
            twice,
            soon.clone()
                .blocking()
                .ordered()
                .layer(layer_fn(calls_twice)),
        )
        .handler_with("file.soon", block, soon.blocking().ordered())
        .handler("text.echo", echo)
        .ignore("file.blocked")
}

async fn publish(rig: &Rig, kind: &str, name: &str, subject: &str) {
    let event = Outgoing::new(kind, &name).subject(subject);
    rig.client.publish(&event).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn as_many_block_at_once_as_a_type_has_slots_and_hold_up_nobody() {
    let rig = Rig::new().await;
    let door = Door::default();
    let running = rig.start(worker(&rig, "w-1", &door));
    for n in 0..20 {
        publish(&rig, "file.block", &format!("{n:02}"), "s").await;
    }
    // Three quarters of the slots are one type's.
    until("twelve block", async || door.began().len() == 12).await;
    let reply = rig.ask("text.echo", &"hello").await.unwrap();
    assert_eq!(reply.decode::<String>().unwrap(), "hello");
    assert_eq!(door.began().len(), 12);
    door.open(true);
    rig.wait_for(RESULTS, 20).await;
    running.stop().await;
    assert_eq!(rig.pending(EVENTS).await, 0);
    assert_eq!(door.published(), [true; 20]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_blocks_beyond_its_time_has_failed_and_none_of_its_subject_passes_it() {
    let rig = Rig::new().await;
    let door = Door::default();
    let running = rig.start(worker(&rig, "w-1", &door));
    let event = Outgoing::new("file.soon", &"a").subject("s");
    let refused = rig.client.request(event, Duration::from_secs(20)).await;
    let Err(convoke::client::request::RequestError::Remote(refused)) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(refused.code, Code::DeadlineExceeded);
    publish(&rig, "file.soon", "b", "s").await;
    publish(&rig, "file.soon", "c", "t").await;
    until("that of another subject runs", async || {
        door.began() == ["a", "c"]
    })
    .await;
    // It is over as well.
    rig.wait_for("cb:dead:file", 1).await;
    assert_eq!(door.began(), ["a", "c"]);
    door.open(true);
    rig.wait_for(RESULTS, 1).await;
    assert_eq!(door.began(), ["a", "b", "c"]);
    running.stop().await;
    assert_eq!(door.published().iter().filter(|told| **told).count(), 1);
    let of_b = rig.entries(RESULTS).await;
    assert_eq!(of_b.len(), 1, "what is late is void");
    assert_eq!(rig.pending(EVENTS).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_blocks_learns_that_its_time_is_over_and_that_its_worker_is_dropped() {
    let rig = Rig::new().await;
    let door = Door::default();
    let first = worker(&rig, "first", &door).build().unwrap();
    let first = tokio::spawn(async move { first.run_until(CancellationToken::new()).await });
    let told = async |count: usize| {
        until("its thread is free", async || {
            door.published().len() == count
        })
        .await;
    };
    publish(&rig, "file.glance", "a", "s").await;
    told(1).await;
    for name in ["b", "c"] {
        publish(&rig, "file.glances", name, "s").await;
    }
    told(2).await;
    assert_eq!(door.began(), ["a", "bc"]);
    rig.wait_for("cb:dead:file", 3).await;
    publish(&rig, "file.watch", "d", "s").await;
    until("it blocks", async || door.began().len() == 3).await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    told(3).await;
    assert_eq!(rig.entries(RESULTS).await.len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thread_of_a_second_call_is_waited_for_too() {
    let rig = Rig::new().await;
    let door = Door::default();
    let running = rig.start(worker(&rig, "w-1", &door));
    publish(&rig, "file.twice", "a", "s").await;
    publish(&rig, "file.twice", "b", "s").await;
    rig.wait_for("cb:dead:file", 1).await;
    publish(&rig, "file.soon", "c", "t").await;
    rig.wait_for("cb:dead:file", 2).await;
    assert_eq!(door.began(), ["a", "a", "c"]);
    door.open(true);
    rig.wait_for(RESULTS, 1).await;
    assert_eq!(door.began(), ["a", "a", "b", "b", "c"]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_that_blocks_beyond_its_time_has_its_run_begin_no_other() {
    let rig = Rig::new().await;
    let door = Door::default();
    let running = rig.start(worker(&rig, "w-1", &door));
    let all = json!({
        "batch_id": "b", "item_type": "file.soon", "mode": "exclusive", "items": ["x", "y"]
    });
    let asks = rig.ask("system.batch.process", &all);
    let opens = async {
        until("an item blocks", async || door.began() == ["x"]).await;
        for (n, name) in ["a", "b", "c"].into_iter().enumerate() {
            publish(&rig, "file.soon", name, name).await;
            rig.wait_for("cb:dead:file", n + 1).await;
        }
        // Its time is over, as that of those after it.
        assert_eq!(door.began(), ["a", "b", "c", "x"]);
        door.open(true);
    };
    let (reply, ()) = tokio::join!(asks, opens);
    reply.unwrap();
    assert!(door.began().contains(&"y".to_owned()));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_drains_waits_for_what_blocks_and_one_that_is_dropped_commits_none_of_it() {
    let rig = Rig::new().await;
    let door = Door::default();
    let first = worker(&rig, "first", &door).build().unwrap();
    let first = tokio::spawn(async move { first.run_until(CancellationToken::new()).await });
    for name in ["a", "b"] {
        publish(&rig, "file.block", name, "s").await;
    }
    until("both block", async || door.began() == ["a", "b"]).await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    door.open(true);
    until("both are through", async || door.published().len() == 2).await;
    assert_eq!(rig.entries(RESULTS).await.len(), 0);
    door.open(false);
    let second = rig.start(worker(&rig, "second", &door));
    until("both block again", async || door.began().len() == 4).await;
    let opens = async { door.open(true) };
    tokio::join!(second.stop(), opens);
    let results = rig.entries(RESULTS).await;
    let of_second = results.iter().filter(|one| text(one, "source") == "second");
    assert_eq!((results.len(), of_second.count()), (2, 2));
    assert_eq!(rig.pending(EVENTS).await, 0);
}
