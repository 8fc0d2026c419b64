//! Domains that are split over partitions, on one server, and get more of them while all runs.

use crate::support::{Redis, until, users};
use convoke::client::publish::Outgoing;
use convoke::client::{Client, ClientOptions};
use convoke::connect::connector::Connector;
use convoke::protocol::domain::SETTLES_MS;
use convoke::protocol::keys::Keys;
use convoke::settings::{RedisUrl, Settings};
use convoke::streams::domains::{Domains, Use};
use convoke::streams::read::entries_of;
use convoke::worker::builder::Builder;
use convoke::{Context, HandlerError, Policy, Worker};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const SUBJECTS: u64 = 40;

/// What began: the subject and the number of each event; and whether the runs are held up.
#[derive(Clone, Default)]
struct Log {
    began: Arc<Mutex<Vec<(u64, u64)>>>,
    held: Arc<AtomicBool>,
}

impl Log {
    fn all(&self) -> Vec<(u64, u64)> {
        self.began.lock().unwrap().clone()
    }

    fn len(&self) -> usize {
        self.began.lock().unwrap().len()
    }

    fn hold(&self, held: bool) {
        self.held.store(held, Ordering::Relaxed);
    }
}

async fn step(context: Context, event: (u64, u64)) -> Result<(), HandlerError> {
    let log = context.state::<Log>()?;
    log.began.lock().unwrap().push(event);
    tokio::time::sleep(Duration::from_millis(1)).await;
    while log.held.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

fn settings(redis: &Redis, id: &str, partitions: u16) -> Settings {
    Settings {
        redis_url: RedisUrl::new(redis.url()),
        id: id.into(),
        partitions,
        concurrency: 4,
        heartbeat_ttl: Duration::from_secs(6),
        claim_idle: Duration::from_secs(12),
        drain_timeout: Duration::from_secs(20),
        stream_history: 1_000_000,
        ..Settings::default()
    }
}

fn worker(redis: &Redis, id: &str, partitions: u16, log: &Log) -> Builder {
    let settings = settings(redis, id, partitions);
    let builder = Worker::builder().settings(settings).state(log.clone());
    builder.handler_with("line.step", step, Policy::new().ordered())
}

struct Running(CancellationToken, JoinHandle<()>);

impl Running {
    async fn stop(self) {
        self.0.cancel();
        self.1.await.unwrap();
    }

    /// Ends it in the middle of its work; others take over what it held.
    fn kill(self) {
        self.1.abort();
    }
}

fn start(builder: Builder) -> Running {
    let worker = builder.build().unwrap();
    let drain = CancellationToken::new();
    let until = drain.clone();
    let task = tokio::spawn(async move { worker.run_until(until).await.unwrap() });
    Running(drain, task)
}

fn client(redis: &Redis, partitions: u16) -> Client {
    let connector = Connector::new(&RedisUrl::new(redis.url_for(users::PUBLISHER)), 2).unwrap();
    let keys = Keys::tagged("cb", partitions).unwrap();
    Client::new(connector, keys, ClientOptions::default()).unwrap()
}

fn operator(redis: &Redis) -> (Domains, Keys) {
    let connector = Connector::new(&RedisUrl::new(redis.url_for(users::OPERATOR)), 2).unwrap();
    let keys = Keys::tagged("cb", 1).unwrap();
    (Domains::new(connector, keys.clone()), keys)
}

fn event(subject: u64, number: u64) -> Outgoing {
    let event = Outgoing::new("line.step", &(subject, number));
    event
        .subject(format!("s-{subject}"))
        .id(format!("{subject}-{number}"))
}

/// Events that wait at the most: more are published when some of them have begun.
const AHEAD: u64 = 2000;

/// Publishes the numbers of all subjects in turn until it is told to end; how many of each.
fn publishes(client: &Client, over: &Arc<AtomicBool>, log: &Log) -> JoinHandle<u64> {
    let (client, over, log) = (client.clone(), over.clone(), log.clone());
    tokio::spawn(async move {
        for number in 0.. {
            if over.load(Ordering::Relaxed) {
                return number;
            }
            for subject in 0..SUBJECTS {
                client.publish(event(subject, number)).await.unwrap();
            }
            let published = SUBJECTS * (number + 1);
            while published > log.len() as u64 + AHEAD && !over.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        0
    })
}

/// Whether all partitions of the domain are read: who is asked looks by the bus alone.
async fn all_are_open(domains: &Domains, keys: &Keys, partitions: u16) -> bool {
    domains.learn(&["line"], Use::Looks).await.unwrap();
    assert_eq!(keys.partitions("line"), partitions);
    for partition in 0..partitions {
        if !domains.is_open("line", partition, "workers").await.unwrap() {
            return false;
        }
    }
    true
}

/// The server's time, in Unix ms.
fn now(redis: &Redis) -> u64 {
    let time: (u64, u64) = redis::cmd("TIME").query(&mut redis.connect()).unwrap();
    time.0 * 1000 + time.1 / 1000
}

fn streams(redis: &Redis) -> usize {
    let mut keys = redis::cmd("KEYS");
    let found: Vec<String> = keys
        .arg("{cb:line:*}:events")
        .query(&mut redis.connect())
        .unwrap();
    found.len()
}

/// How many results there are.
fn results(redis: &Redis) -> u64 {
    let mut connection = redis.connect();
    let mut keys = redis::cmd("KEYS");
    let found: Vec<String> = keys
        .arg("{cb:line:*}:results")
        .query(&mut connection)
        .unwrap();
    let length = |stream: &String| -> u64 {
        let mut length = redis::cmd("XLEN");
        length.arg(stream).query(&mut redis.connect()).unwrap()
    };
    found.iter().map(length).sum()
}

/// How often each event was committed.
fn committed(redis: &Redis) -> HashMap<String, usize> {
    let mut keys = redis::cmd("KEYS");
    let mut connection = redis.connect();
    let found: Vec<String> = keys
        .arg("{cb:line:*}:results")
        .query(&mut connection)
        .unwrap();
    let mut counted = HashMap::new();
    for stream in found {
        let said = redis::cmd("XRANGE")
            .arg(&[&stream, "-", "+"])
            .query(&mut connection);
        for entry in entries_of(said.unwrap()).unwrap() {
            let id = String::from_utf8(entry.get("correlationid").unwrap().to_vec()).unwrap();
            *counted.entry(id).or_default() += 1;
        }
    }
    counted
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_reads_the_partitions_that_the_bus_says_whatever_it_is_set_to() {
    let redis = Redis::start();
    let (client, log) = (client(&redis, 3), Log::default());
    for subject in 0..SUBJECTS {
        client.publish(event(subject, 0)).await.unwrap();
    }
    assert_eq!(streams(&redis), 3);
    let running = start(worker(&redis, "w-1", 7, &log));
    until("all are run", async || log.len() == SUBJECTS as usize).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subject_keeps_its_order_within_a_worker_while_its_domain_gets_more_partitions() {
    let redis = Redis::start();
    let log = Log::default();
    let running = start(worker(&redis, "w-1", 2, &log));
    let (client, over) = (client(&redis, 2), Arc::default());
    let publishing = publishes(&client, &over, &log);
    until("some are run", async || log.len() > 200).await;
    let (domains, keys) = operator(&redis);
    // What is there from before waits, and nothing in the new ones may pass it, however long that takes.
    log.hold(true);
    let is = domains.set("line", 8, None, "ann").await.unwrap();
    until("the new ones are written to", async || streams(&redis) == 8).await;
    until("all must have looked", async || {
        now(&redis) > is.at + SETTLES_MS + 500
    })
    .await;
    log.hold(false);
    until("all are read", async || {
        all_are_open(&domains, &keys, 8).await
    })
    .await;
    let before = log.len();
    until("it goes on", async || log.len() > before + 400).await;
    over.store(true, Ordering::Relaxed);
    let numbers = publishing.await.unwrap();
    assert_eq!(streams(&redis), 8);
    until("all are run", async || {
        log.len() as u64 == SUBJECTS * numbers
    })
    .await;
    running.stop().await;
    let mut last = HashMap::new();
    for (subject, number) in log.all() {
        let next = last.insert(subject, number).map_or(0, |last| last + 1);
        assert_eq!(number, next, "subject {subject}");
    }
}

/// How often the number of partitions is doubled: `TORTURE_PARTITIONS`.
fn turns() -> u64 {
    let set = std::env::var("TORTURE_PARTITIONS").ok();
    set.map_or(2, |turns| turns.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_doubled_while_workers_come_and_go_and_partitions_are_added() {
    let redis = Redis::start();
    let log = Log::default();
    let mut workers = vec![
        start(worker(&redis, "w-1", 1, &log)),
        start(worker(&redis, "w-2", 4, &log)),
    ];
    let clients = [client(&redis, 1), client(&redis, 32)];
    let over = Arc::default();
    let publishing = publishes(&clients[0], &over, &log);
    until("some are run", async || log.len() > 100).await;
    let (domains, keys) = operator(&redis);
    domains.learn(&["line"], Use::Looks).await.unwrap();
    let first = keys.partitions("line");
    for turn in 0..turns() {
        let more = first << (turn + 1);
        let is = domains.set("line", more, None, "ann").await.unwrap();
        workers.push(start(worker(&redis, &format!("w-{}", turn + 3), 9, &log)));
        let other = Outgoing::new("line.step", &(1000_u64, turn)).id(format!("o-{turn}"));
        clients[1].publish(other).await.unwrap();
        let goes = workers.remove(0);
        match turn % 2 {
            0 => goes.kill(),
            _ => goes.stop().await,
        }
        until("all are read", async || {
            all_are_open(&domains, &keys, is.partitions).await
        })
        .await;
    }
    over.store(true, Ordering::Relaxed);
    let numbers = publishing.await.unwrap();
    let published = SUBJECTS * numbers + turns();
    until("all are committed", async || results(&redis) >= published).await;
    for worker in workers {
        worker.stop().await;
    }
    let results = committed(&redis);
    assert_eq!(results.len() as u64, published, "lost");
    assert!(results.values().all(|count| *count == 1), "doubled");
    println!(
        "{published} events, {} doublings of the partitions",
        turns()
    );
}

async fn spreads(context: Context, item: u64) -> Result<u64, HandlerError> {
    let log = context.state::<Log>()?;
    log.began.lock().unwrap().push((0, item));
    while log.held.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    context.publish("effect.made", &item)?;
    Ok(item)
}

/// What was published of each number, how often.
fn effects(redis: &Redis) -> HashMap<u64, usize> {
    let mut connection = redis.connect();
    let mut keys = redis::cmd("KEYS");
    let found: Vec<String> = keys
        .arg("{cb:effect:*}:events")
        .query(&mut connection)
        .unwrap();
    let mut counted = HashMap::new();
    for stream in found {
        let said = redis::cmd("XRANGE")
            .arg(&[&stream, "-", "+"])
            .query(&mut connection);
        for entry in entries_of(said.unwrap()).unwrap() {
            let number = rmp_serde::from_slice(entry.get("data").unwrap()).unwrap();
            *counted.entry(number).or_default() += 1;
        }
    }
    counted
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_another_worker_goes_on_with_has_each_item_once_where_its_domain_got_more_partitions()
 {
    const ITEMS: u64 = 60;
    let redis = Redis::start();
    let log = Log::default();
    let one = |id: &str| {
        let builder = Worker::builder().settings(settings(&redis, id, 2));
        start(builder.state(log.clone()).handler("line.spread", spreads))
    };
    log.hold(true);
    let workers = [one("w-1"), one("w-2")];
    let client = client(&redis, 2);
    let asking = tokio::spawn({
        let client = client.clone();
        async move {
            let items: Vec<u64> = (0..ITEMS).collect();
            let batch = json!({
                "batch_id": "b-1", "item_type": "line.spread", "items": items, "mode": "fan_out",
            });
            let asked = Outgoing::new("system.batch.process", &batch);
            client.request(asked, Duration::from_secs(170)).await
        }
    });
    until("some items are begun", async || log.len() >= 4).await;
    let (domains, keys) = operator(&redis);
    let is = domains.set("line", 8, None, "ann").await.unwrap();
    assert_eq!((is.partitions, keys.partitions("line")), (8, 8));
    for worker in workers {
        worker.kill();
    }
    log.hold(false);
    let last = one("w-3");
    let done = asking.await.unwrap().unwrap();
    let done: Value = done.decode().unwrap();
    assert_eq!(done["items_processed"], ITEMS, "{done}");
    let effects = effects(&redis);
    assert_eq!(effects.len() as u64, ITEMS, "lost");
    assert!(
        effects.values().all(|count| *count == 1),
        "doubled: {effects:?}"
    );
    last.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_in_a_foreign_partition_runs_and_is_counted() {
    let redis = Redis::start();
    let (client, log) = (client(&redis, 2), Log::default());
    let running = start(worker(&redis, "w-1", 2, &log));
    client.publish(event(1, 0)).await.unwrap();
    until("it is run", async || log.len() == 1).await;
    let keys = client.keys();
    let subject = "s-1";
    let foreign = 1 - keys.partition_of("line", subject);
    let data = rmp_serde::to_vec(&(1_u64, 1_u64)).unwrap();
    let mut add = redis::cmd("XADD");
    add.arg(keys.events("line", foreign)).arg("*");
    add.arg("type").arg("line.step").arg("subject").arg(subject);
    add.arg("data").arg(data);
    add.exec(&mut redis.connect()).unwrap();
    until("it is run", async || log.len() == 2).await;
    until("it is counted", async || {
        let asked = Outgoing::new("system.metrics", &json!({}));
        let told = client.request(asked, Duration::from_secs(20)).await;
        let told: Value = told.unwrap().decode().unwrap();
        told["events_misplaced"] == 1
    })
    .await;
    running.stop().await;
}

async fn fails_once(context: Context, event: (u64, u64)) -> Result<(), HandlerError> {
    match context.event().attempt() {
        1 => Err(HandlerError::internal("once")),
        _ => {
            context.state::<Log>()?.began.lock().unwrap().push(event);
            Ok(())
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_belongs_anywhere_is_in_its_place_when_it_is_tried_again() {
    let redis = Redis::start();
    let (client, log) = (client(&redis, 4), Log::default());
    let settings = Settings {
        backoff_base: Duration::from_millis(20),
        backoff_cap: Duration::from_millis(100),
        ..settings(&redis, "w-1", 4)
    };
    let builder = Worker::builder().settings(settings).state(log.clone());
    let running = start(builder.handler("line.once", fails_once));
    for number in 0..20_u64 {
        let event = Outgoing::new("line.once", &(1_u64, number));
        client.publish(event).await.unwrap();
    }
    until("all are run", async || log.len() == 20).await;
    let told = async || -> Value {
        let asked = Outgoing::new("system.metrics", &json!({}));
        let told = client.request(asked, Duration::from_secs(20)).await;
        told.unwrap().decode().unwrap()
    };
    until("they are counted", async || {
        told().await["events_processed"].as_u64() >= Some(40)
    })
    .await;
    assert_eq!(told().await["events_misplaced"], 0);
    running.stop().await;
}
