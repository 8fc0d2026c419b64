//! Handlers that block their threads, where their policy says so.

use crate::rig::{Rig, text};
use crate::support::until;
use convoke::client::publish::Outgoing;
use convoke::protocol::error::Code;
use convoke::settings::Settings;
use convoke::worker::builder::Builder;
use convoke::{Context, HandlerError, Policy, Worker};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

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

async fn echo(_: Context, text: String) -> Result<String, HandlerError> {
    Ok(text)
}

fn worker(rig: &Rig, id: &str, door: &Door) -> Builder {
    let settings = Settings {
        id: id.into(),
        handler_timeout: Duration::from_secs(60),
        concurrency: 16,
        ..rig.settings()
    };
    let builder = Worker::builder().settings(settings).state(door.clone());
    let soon = Policy::new()
        .timeout(Duration::from_millis(300))
        .attempts(1);
    builder
        .handler_with("file.block", block, Policy::new().blocking())
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
