//! The field `dedup` of a plain `XADD`: an event takes effect once, whatever happens to whoever holds it, and
//! nothing is lost by that.

mod ended;
mod judged;

use crate::rig::{Rig, text};
use crate::support::{left, until};
use convoke::client::publish::Outgoing;
use convoke::protocol::event::Entry;
use convoke::settings::Settings;
use convoke::worker::builder::Builder;
use convoke::{Context, HandlerError, Policy, Worker};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Semaphore;

const EVENTS: &str = "cb:events:image";

async fn add(rig: &Rig, fields: &[(&str, &str)]) -> String {
    let mut command = redis::cmd("XADD");
    command.arg(EVENTS).arg("*");
    for (name, value) in fields {
        command.arg(name).arg(value);
    }
    let mut connection = rig.connection.clone();
    command.query_async(&mut connection).await.unwrap()
}

/// An event that takes effect once.
async fn once(rig: &Rig, id: &str, besides: &[(&str, &str)]) -> String {
    let fields = [("type", "image.once"), ("id", id), ("dedup", "1")];
    add(rig, &[&fields, besides].concat()).await
}

/// What ran, in order, and what is held until it may go on.
#[derive(Clone)]
struct Log {
    runs: Arc<Mutex<Vec<String>>>,
    open: Arc<Semaphore>,
    /// Running now, and what was seen beside a suspect.
    running: Arc<Mutex<(usize, usize)>>,
}

impl Log {
    fn new() -> Self {
        Self {
            runs: Arc::default(),
            open: Arc::new(Semaphore::new(0)),
            running: Arc::default(),
        }
    }

    fn runs(&self) -> Vec<String> {
        self.runs.lock().unwrap().clone()
    }

    fn runs_of(&self, id: &str) -> usize {
        self.runs().iter().filter(|run| *run == id).count()
    }
}

/// Notes its id; `slow` waits until it may end, `again` fails on its first try, `bad` fails for good.
async fn run(context: Context, _: Value) -> Result<Value, HandlerError> {
    let log = context.state::<Log>()?.clone();
    let id = context.event().id();
    log.runs.lock().unwrap().push(id.clone());
    let kind = id.split('-').next().unwrap_or_default();
    match kind {
        "slow" => log.open.acquire().await?.forget(),
        "again" if context.event().attempt() == 1 => {
            return Err(HandlerError::unavailable("once more"));
        }
        "bad" => return Err(HandlerError::not_found("nothing there")),
        "long" => return Ok("x".repeat(20_000).into()),
        "suspect" | "beside" => {
            log.running.lock().unwrap().0 += 1;
            tokio::time::sleep(Duration::from_millis(30)).await;
            let mut running = log.running.lock().unwrap();
            if kind == "suspect" {
                running.1 += running.0 - 1;
            }
            running.0 -= 1;
        }
        _ => tokio::task::yield_now().await,
    }
    context.publish("effect.made", &id)?;
    Ok(json!({ "id": id }))
}

fn with(settings: Settings, log: &Log) -> Builder {
    let builder = Worker::builder().settings(settings).state(log.clone());
    builder.handler_with("image.once", run, Policy::new())
}

/// The effects of each id.
async fn effects(rig: &Rig) -> HashMap<String, usize> {
    let mut effects = HashMap::new();
    for effect in rig.entries("cb:events:effect").await {
        let id: String = rmp_serde::from_slice(effect.get("data").unwrap()).unwrap();
        *effects.entry(id).or_default() += 1;
    }
    effects
}

/// Waits until nothing is added, pending or delayed, all at once.
async fn settled(rig: &Rig) {
    until("all is settled", || async {
        let mut connection = rig.connection.clone();
        left(&mut connection, "image").await == (0, 0, 0)
    })
    .await;
}

fn data(reply: &Entry) -> Value {
    let data = reply.get("data").unwrap();
    match reply.get("datacontenttype") {
        Some(_) => serde_json::from_slice(data).unwrap(),
        None => rmp_serde::from_slice(data).unwrap(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_takes_effect_once_however_often_it_is_added_and_whoever_reads_it() {
    let (rig, log) = (Rig::new().await, Log::new());
    let workers = [1, 2].map(|_| rig.start(with(rig.settings(), &log)));
    let ids: Vec<String> = (0..30)
        .map(|n| match n % 3 {
            0 => format!("again-{n}"),
            _ => format!("e-{n}"),
        })
        .collect();
    let mut adds: Vec<&String> = ids.iter().flat_map(|id| [id, id, id]).collect();
    fastrand::shuffle(&mut adds);
    for id in adds {
        once(&rig, id, &[]).await;
    }
    settled(&rig).await;
    let effects = effects(&rig).await;
    assert_eq!(effects.len(), ids.len());
    for id in &ids {
        assert_eq!(effects[id], 1, "{id}");
        let runs = if id.starts_with("again") { 2 } else { 1 };
        assert_eq!(log.runs_of(id), runs, "{id}");
    }
    assert_eq!(rig.entries("cb:results:image").await.len(), ids.len());
    assert!(!rig.exists("cb:dead:image").await);
    for key in rig.keys("cb:*:image:*").await {
        let ttl = rig.run(&format!("PTTL {key}")).await;
        assert!(
            matches!(ttl, redis::Value::Int(1..=3_600_000)),
            "{key}: {ttl:?}"
        );
    }
    for worker in workers {
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_again_gets_the_first_ones_reply_in_kind_or_is_told_that_it_came_before() {
    let (rig, log) = (Rig::new().await, Log::new());
    let worker = rig.start(with(rig.settings(), &log));
    let ask = async |id: &str, to: &str, besides: &[(&str, &str)]| {
        let before = rig.entries(to).await.len();
        once(&rig, id, &[besides, &[("replyto", to)]].concat()).await;
        rig.wait_for(to, before + 1).await.pop().unwrap()
    };
    for (id, status) in [("e", "ok"), ("again", "ok"), ("bad", "not_found")] {
        let first = ask(id, &format!("cb:reply:{id}"), &[]).await;
        assert_eq!(text(&first, "status"), status);
        // Elsewhere, and once more at the same place.
        for to in ["cb:reply:other", &format!("cb:reply:{id}")] {
            let second = ask(id, to, &[]).await;
            for field in ["status", "correlationid", "type", "data"] {
                assert_eq!(first.get(field), second.get(field), "{id}: {field}");
            }
        }
        let as_json = [("datacontenttype", "application/json")];
        let third = ask(id, "cb:reply:json", &as_json).await;
        assert_eq!(text(&third, "datacontenttype"), "application/json");
        assert_eq!(data(&third), data(&first));
    }
    let as_json = [("datacontenttype", "application/json"), ("data", "{}")];
    let first = ask("j", "cb:reply:j", &as_json).await;
    let second = ask("j", "cb:reply:k", &[]).await;
    assert_eq!(
        (data(&first), text(&second, "status")),
        (data(&second), "ok".into())
    );
    assert_eq!(second.get("datacontenttype"), None);
    // One that nobody asked for, and one whose reply is too long to be kept.
    once(&rig, "quiet", &[]).await;
    rig.wait_for("cb:results:image", 1).await;
    let quiet = ask("quiet", "cb:reply:q", &[]).await;
    assert_eq!(text(&quiet, "status"), "already_exists");
    let long = ask("long", "cb:reply:long", &[]).await;
    assert_eq!(text(&long, "status"), "ok");
    for to in ["cb:reply:other", "cb:reply:long"] {
        let again = ask("long", to, &[]).await;
        assert_eq!(text(&again, "status"), "already_exists");
    }
    // While the first runs, its reply serves whoever asks at the same place.
    let first = once(&rig, "slow", &[("replyto", "cb:reply:slow")]).await;
    until("it runs", || async { log.runs_of("slow") == 1 }).await;
    once(&rig, "slow", &[("replyto", "cb:reply:slow")]).await;
    let early = ask("slow", "cb:reply:elsewhere", &[]).await;
    assert_eq!(text(&early, "status"), "already_exists");
    assert!(data(&early)["message"].as_str().unwrap().contains(&first));
    until("they are settled", || async {
        rig.pending(EVENTS).await == 1
    })
    .await;
    // A failover may forget the mark; the effect brings it.
    rig.run("DEL cb:dedup:image:slow").await;
    log.open.add_permits(1);
    rig.wait_for("cb:reply:slow", 1).await;
    once(&rig, "slow", &[]).await;
    settled(&rig).await;
    assert_eq!(rig.entries("cb:reply:slow").await.len(), 1);
    for (bad, fields) in [
        ("needs an id", vec![("dedup", "1")]),
        ("is not 1", vec![("dedup", "yes"), ("id", "x")]),
    ] {
        let fields = [
            &[("type", "image.once"), ("replyto", "cb:reply:bad-field")],
            &fields[..],
        ];
        add(&rig, &fields.concat()).await;
        let refused = rig.wait_for("cb:reply:bad-field", 1).await.remove(0);
        rig.run("DEL cb:reply:bad-field").await;
        assert_eq!(text(&refused, "status"), "invalid_argument");
        assert!(data(&refused)["message"].as_str().unwrap().contains(bad));
    }
    assert_eq!(
        log.runs_of("slow") + log.runs_of("e") + log.runs_of("bad"),
        3
    );
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_forges_the_name_of_an_event_says_nothing_to_those_of_another_id() {
    let (rig, log) = (Rig::new().await, Log::new());
    let worker = rig.start(with(rig.settings(), &log));
    let victim = once(&rig, "slow", &[("replyto", "cb:reply:victim")]).await;
    until("it runs", || async { log.runs_of("slow") == 1 }).await;
    // Of another id, as that entry; it ends.
    let to = "cb:reply:forger";
    let forged = [("type", "image.once"), ("id", "forged"), ("replyto", to)];
    add(&rig, &[&forged[..], &[("dedup", &victim)]].concat()).await;
    let reply = rig.wait_for(to, 1).await.remove(0);
    assert_eq!(text(&reply, "status"), "ok");
    once(&rig, "slow", &[("replyto", "cb:reply:again")]).await;
    let again = rig.wait_for("cb:reply:again", 1).await.remove(0);
    assert_eq!(text(&again, "status"), "already_exists");
    log.open.add_permits(1);
    let first = rig.wait_for("cb:reply:victim", 1).await.remove(0);
    // A mark of one's own id that names the entry finds nothing either.
    rig.run(&format!("SET cb:dedup:image:spy {victim} PX 60000"))
        .await;
    once(&rig, "spy", &[("replyto", "cb:reply:spy")]).await;
    let spied = rig.wait_for("cb:reply:spy", 1).await.remove(0);
    assert_eq!(text(&spied, "status"), "already_exists");
    once(&rig, "slow", &[("replyto", "cb:reply:again")]).await;
    let again = rig.wait_for("cb:reply:again", 2).await.remove(1);
    assert_eq!(data(&again), data(&first));
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_field_and_the_publisher_that_deduplicates_agree() {
    let (rig, log) = (Rig::new().await, Log::new());
    let event = |id: &str| Outgoing::new("image.once", &()).id(id).dedup(true);
    rig.client.publish(&event("stored")).await.unwrap();
    let later = event("later").delay(Duration::from_secs(3600));
    rig.client.publish(&later).await.unwrap();
    let ttl = async |id: &str| -> u64 {
        redis::from_redis_value(rig.run(&format!("PTTL cb:dedup:image:{id}")).await).unwrap()
    };
    let before = ttl("later").await;
    assert!(before > 7_000_000, "{before}");
    for id in ["stored", "later"] {
        once(&rig, id, &[("replyto", &format!("cb:reply:{id}"))]).await;
    }
    let added = once(&rig, "added", &[]).await;
    // What names no place is no mark.
    for (id, junk) in [("junk", "order-7"), ("huge", &"9".repeat(100))] {
        rig.run(&format!("SET cb:dedup:image:{id} {junk}")).await;
        once(&rig, id, &[]).await;
    }
    rig.run("RPUSH cb:dedup:image:list 7-1").await;
    once(&rig, "list", &[]).await;
    let worker = rig.start(with(rig.settings(), &log));
    for id in ["stored", "later"] {
        let reply = rig.wait_for(&format!("cb:reply:{id}"), 1).await.remove(0);
        assert_eq!(text(&reply, "status"), "already_exists");
    }
    until("all else ran", || async { effects(&rig).await.len() == 5 }).await;
    assert!(ttl("later").await > 7_000_000, "its window got shorter");
    let told = rig.client.publish(&event("added")).await.unwrap();
    assert!(told.is_duplicate(), "{told:?}");
    assert!(format!("{told:?}").contains(added.split('-').next().unwrap()));
    // An operator's replay runs.
    once(&rig, "added", &[("replays", "1")]).await;
    until("it ran again", || async { log.runs_of("added") == 2 }).await;
    let counted = effects(&rig).await;
    for id in ["stored", "junk", "huge", "list"] {
        assert_eq!(counted[id], 1, "{id}");
    }
    worker.stop().await;
}
