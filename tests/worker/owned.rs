//! Domains with an order: each partition has one owner, and the events of a subject run one at a time, in their order,
//! whichever workers there are.

use crate::support::{Redis, until, users};
use convoke::client::publish::Outgoing;
use convoke::client::{Client, ClientOptions};
use convoke::connect::connector::Connector;
use convoke::protocol::domain::DomainOrder;
use convoke::protocol::json;
use convoke::protocol::keys::Keys;
use convoke::settings::{RedisUrl, Settings};
use convoke::streams::domains::Domains;
use convoke::streams::read::entries_of;
use convoke::worker::builder::Builder;
use convoke::{Batch, Batches, Context, HandlerError, Worker};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

mod slots;

const PARTITIONS: u16 = 8;
const TTL: Duration = Duration::from_secs(10);

/// A run: whose, of which event, and how far it is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Said {
    worker: String,
    subject: u64,
    number: u64,
    what: What,
    attempt: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Began,
    Failed,
    Ended,
}

/// What the runs say, in the order in which they say it.
#[derive(Clone, Default)]
struct Log {
    said: Arc<Mutex<Vec<Said>>>,
    /// In how many runs of a hundred the first try fails.
    fails: Arc<AtomicU64>,
    /// Runs of this subject fail for as long as it is set; 0: of none.
    fails_all: Arc<AtomicU64>,
    /// Runs are held up.
    held: Arc<AtomicBool>,
}

impl Log {
    fn all(&self) -> Vec<Said> {
        self.said.lock().unwrap().clone()
    }

    fn ended(&self) -> usize {
        self.said
            .lock()
            .unwrap()
            .iter()
            .filter(|it| it.what == What::Ended)
            .count()
    }

    fn say(&self, context: &Context, (subject, number): (u64, u64), what: What) {
        self.said.lock().unwrap().push(Said {
            worker: context.instance().to_owned(),
            subject,
            number,
            what,
            attempt: context.event().attempt(),
        });
    }
}

async fn step(context: Context, event: (u64, u64)) -> Result<(), HandlerError> {
    let log = context.state::<Log>()?;
    log.say(&context, event, What::Began);
    let (subject, number) = event;
    tokio::time::sleep(Duration::from_millis(fastrand::u64(0..4))).await;
    while log.held.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    if log.fails_all.load(Ordering::Relaxed) == subject && subject > 0 {
        log.say(&context, event, What::Failed);
        return Err(HandlerError::internal("for long"));
    }
    let odd = (subject * 31 + number * 17) % 100 < log.fails.load(Ordering::Relaxed);
    if odd && context.event().attempt() == 1 {
        log.say(&context, event, What::Failed);
        return Err(HandlerError::internal("once"));
    }
    log.say(&context, event, What::Ended);
    Ok(())
}

fn settings(redis: &Redis, id: &str) -> Settings {
    Settings {
        redis_url: RedisUrl::new(redis.url()),
        id: id.into(),
        partitions: PARTITIONS,
        concurrency: 32,
        heartbeat_ttl: TTL,
        claim_idle: TTL,
        backoff_base: Duration::from_millis(20),
        backoff_cap: Duration::from_millis(200),
        drain_timeout: Duration::from_secs(20),
        stream_history: 1_000_000,
        max_deliveries: 100,
        max_attempts: 1000,
        ..Settings::default()
    }
}

fn worker(redis: &Redis, id: &str, log: &Log) -> Builder {
    let builder = Worker::builder().settings(settings(redis, id));
    builder.state(log.clone()).handler("line.step", step)
}

struct Running(CancellationToken, JoinHandle<()>);

impl Running {
    async fn stop(self) {
        self.0.cancel();
        self.1.await.unwrap();
    }

    /// Ends it in the middle of its work: it lets nothing go.
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

fn client(redis: &Redis) -> Client {
    let connector = Connector::new(&RedisUrl::new(redis.url_for(users::PUBLISHER)), 2).unwrap();
    let keys = Keys::tagged("cb", PARTITIONS).unwrap();
    Client::new(connector, keys, ClientOptions::default()).unwrap()
}

async fn order(redis: &Redis, order: DomainOrder) {
    let connector = Connector::new(&RedisUrl::new(redis.url_for(users::OPERATOR)), 2).unwrap();
    let domains = Domains::new(connector, Keys::tagged("cb", PARTITIONS).unwrap());
    let is = domains.change("line", None, Some(order), None, "ann").await;
    assert_eq!(is.unwrap().order, order);
}

async fn publish(client: &Client, subject: u64, number: u64) {
    let event = Outgoing::new("line.step", &(subject, number));
    let event = event.subject(format!("s-{subject}"));
    let event = event.id(format!("{subject}-{number}"));
    client.publish(event).await.unwrap();
}

/// Publishes the numbers of all subjects in turn until it is told to end; how many of each.
fn publishes(client: &Client, subjects: u64, over: &Arc<AtomicBool>, log: &Log) -> JoinHandle<u64> {
    let (client, over, log) = (client.clone(), over.clone(), log.clone());
    tokio::spawn(async move {
        for number in 0.. {
            if over.load(Ordering::Relaxed) {
                return number;
            }
            for subject in 1..=subjects {
                publish(&client, subject, number).await;
            }
            let published = subjects * (number + 1);
            while published > log.ended() as u64 + 400 && !over.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        0
    })
}

fn find(redis: &Redis, pattern: &str) -> Vec<String> {
    let mut keys = redis::cmd("KEYS");
    keys.arg(pattern).query(&mut redis.connect()).unwrap()
}

/// Who owns each partition, as the server says.
fn owners(redis: &Redis) -> BTreeMap<String, String> {
    let owner = |key: String| {
        let mut get = redis::cmd("HGET");
        get.arg(&key).arg("instance");
        let owner: Option<String> = get.query(&mut redis.connect()).unwrap();
        Some((key, owner?))
    };
    let keys = find(redis, "{cb:line:*}:owner:workers").into_iter();
    keys.filter_map(owner).collect()
}

/// How many partitions each owns.
fn shares(redis: &Redis) -> BTreeMap<String, usize> {
    let mut shares = BTreeMap::new();
    for owner in owners(redis).into_values() {
        *shares.entry(owner).or_default() += 1;
    }
    shares
}

async fn until_shared(redis: &Redis, workers: usize) {
    until("all partitions are shared out", async || {
        let shares = shares(redis);
        let all: usize = shares.values().sum();
        let even = usize::from(PARTITIONS).div_ceil(workers);
        let fair = |has: &usize| *has == even || *has == usize::from(PARTITIONS) / workers;
        shares.len() == workers && all == usize::from(PARTITIONS) && shares.values().all(fair)
    })
    .await;
}

/// The events that have a result, each stream's in its order: those of later partitions come later, as more partitions do.
fn results(redis: &Redis) -> Vec<(u64, u64)> {
    let mut all = Vec::new();
    let mut streams = find(redis, "{cb:line:*}:results");
    streams.sort_by_key(|stream| (stream.len(), stream.clone()));
    for stream in streams {
        let mut range = redis::cmd("XRANGE");
        let said = range.arg(&[&stream, "-", "+"]).query(&mut redis.connect());
        for entry in entries_of(said.unwrap()).unwrap() {
            let id = String::from_utf8(entry.get("correlationid").unwrap().to_vec()).unwrap();
            let (subject, number) = id.split_once('-').unwrap();
            all.push((subject.parse().unwrap(), number.parse().unwrap()));
        }
    }
    all
}

fn pending(redis: &Redis) -> u64 {
    let streams = find(redis, "{cb:line:*}:events");
    let pending = streams.iter().map(|stream| {
        let mut pending = redis::cmd("XPENDING");
        pending.arg(stream).arg("workers");
        let told: Result<(u64, redis::Value, redis::Value, redis::Value), _> =
            pending.query(&mut redis.connect());
        told.map_or(0, |told| told.0)
    });
    pending.sum()
}

/// Each subject has each result once, and in their order.
fn assert_in_order(results: &[(u64, u64)], subjects: u64, numbers: u64) {
    let mut next: HashMap<u64, u64> = HashMap::new();
    for (subject, number) in results {
        let next = next.entry(*subject).or_default();
        assert_eq!(number, next, "subject {subject}");
        *next += 1;
    }
    for subject in 1..=subjects {
        assert_eq!(next.get(&subject), Some(&numbers), "subject {subject}");
    }
}

/// No run of a subject begins before all earlier ones of it have ended well. One that began twice since its worker was
/// ended in the middle of it counts once.
fn assert_one_at_a_time(said: &[Said], killed: &HashSet<String>) {
    let mut ended: HashMap<u64, u64> = HashMap::new();
    let mut runs: HashMap<u64, (String, u64)> = HashMap::new();
    for one in said {
        let ended = ended.entry(one.subject).or_default();
        if one.what == What::Failed {
            runs.remove(&one.subject);
            continue;
        }
        if one.what == What::Ended {
            assert!(one.number <= *ended, "{one:?} ended, and {ended} was next");
            *ended = (*ended).max(one.number + 1);
            runs.remove(&one.subject);
            continue;
        }
        // What ended and was not committed runs again.
        let again = one.number + 1 == *ended;
        assert!(
            one.number == *ended || again,
            "{one:?} began, and {ended} was next"
        );
        if let Some((worker, number)) = runs.insert(one.subject, (one.worker.clone(), one.number)) {
            let failed = worker == one.worker && number == one.number;
            assert!(
                failed || killed.contains(&worker),
                "{one:?} began beside {number} of {worker}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everyone_is_told_who_took_a_partition_with_its_fence() {
    let redis = Redis::start();
    order(&redis, DomainOrder::Subject).await;
    let log = Log::default();
    let first = start(worker(&redis, "w-1", &log));
    until_shared(&redis, 1).await;
    let second = start(worker(&redis, "w-2", &log));
    until_shared(&redis, 2).await;
    let owned = || {
        let mut owned = BTreeMap::new();
        for (key, owner) in owners(&redis) {
            let mut get = redis::cmd("GET");
            get.arg(key.replace("}:owner:", "}:fence:"));
            let fence: u64 = get.query(&mut redis.connect()).unwrap();
            let partition = key.trim_start_matches("{cb:line:");
            let partition = partition.split('}').next().unwrap().parse().unwrap();
            owned.insert(partition, (owner, fence));
        }
        owned
    };
    until("what is told is so", async || {
        let mut told: BTreeMap<u64, (String, u64)> = BTreeMap::new();
        let mut range = redis::cmd("XRANGE");
        range.arg(&["{cb}:broadcast", "-", "+"]);
        for fact in entries_of(range.query(&mut redis.connect()).unwrap()).unwrap() {
            let data = json::to_json(fact.get("data").unwrap()).unwrap();
            if fact.get("type") == Some(b"partition.owned") && data["domain"] == "line" {
                let (id, fence) = (data["id"].as_str().unwrap(), data["fence"].as_u64());
                let one = (id.to_owned(), fence.unwrap());
                let told = told.entry(data["partition"].as_u64().unwrap());
                let told = told.or_insert_with(|| one.clone());
                // One may be told late.
                *told = if told.1 > one.1 { told.clone() } else { one };
            }
        }
        told.len() == usize::from(PARTITIONS) && told == owned()
    })
    .await;
    first.stop().await;
    second.stop().await;
}

type Subjects = Arc<Mutex<Vec<Vec<u64>>>>;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_has_one_event_of_each_subject_and_one_of_a_subject_waits_for_no_second_one() {
    let redis = Redis::start();
    order(&redis, DomainOrder::Subject).await;
    let client = client(&redis);
    for number in 0..3 {
        for subject in 1..=4 {
            publish(&client, subject, number).await;
            let event = Outgoing::new("line.put", &(subject, number));
            let event = event.subject(format!("s-{subject}"));
            client.publish(event).await.unwrap();
        }
    }
    let (any, of_one) = (Subjects::default(), Subjects::default());
    let notes = |batches: &Subjects| {
        let batches = batches.clone();
        move |_: Batch, rows: Vec<(u64, u64)>| {
            let subjects = rows.iter().map(|row| row.0).collect();
            batches.lock().unwrap().push(subjects);
            async move {
                Ok(rows
                    .iter()
                    .map(|_| Ok(()))
                    .collect::<Vec<Result<(), HandlerError>>>())
            }
        }
    };
    // Nobody waits for an hour.
    let hour = Batches::of(100).within(Duration::from_secs(3600));
    let builder = Worker::builder().settings(settings(&redis, "w-1"));
    let builder = builder
        .batch_handler("line.step", notes(&any), Batches::of(100))
        .batch_handler("line.put", notes(&of_one), hour.by_subject());
    let running = start(builder);
    let count = |batches: &Subjects| batches.lock().unwrap().iter().flatten().count();
    until("all ran", async || {
        count(&any) == 12 && count(&of_one) == 12
    })
    .await;
    running.stop().await;
    for batch in any.lock().unwrap().iter() {
        let subjects: HashSet<&u64> = batch.iter().collect();
        assert_eq!(subjects.len(), batch.len(), "{batch:?}");
    }
    assert_eq!(of_one.lock().unwrap().len(), 12);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subjects_keep_their_order_while_workers_come_leave_and_die_and_runs_fail() {
    const SUBJECTS: u64 = 30;
    let (redis, log) = (Redis::start(), Log::default());
    log.fails.store(30, Ordering::Relaxed);
    order(&redis, DomainOrder::Subject).await;
    let mut workers = Vec::new();
    for n in 1..=4 {
        workers.push((
            format!("w-{n}"),
            start(worker(&redis, &format!("w-{n}"), &log)),
        ));
    }
    let (client, over) = (client(&redis), Arc::default());
    let publishing = publishes(&client, SUBJECTS, &over, &log);
    let mut killed = HashSet::new();
    for n in 5..9 {
        let before = log.ended();
        until("some are run", async || log.ended() > before + 200).await;
        let (id, goes) = workers.remove(0);
        if n % 2 == 0 {
            goes.stop().await;
        } else {
            killed.insert(id);
            goes.kill();
        }
        workers.push((
            format!("w-{n}"),
            start(worker(&redis, &format!("w-{n}"), &log)),
        ));
    }
    let before = log.ended();
    until("it goes on", async || log.ended() > before + 200).await;
    over.store(true, Ordering::Relaxed);
    let numbers = publishing.await.unwrap();
    until("all are settled", async || {
        results(&redis).len() as u64 >= SUBJECTS * numbers && pending(&redis) == 0
    })
    .await;
    assert_in_order(&results(&redis), SUBJECTS, numbers);
    assert_one_at_a_time(&log.all(), &killed);
    let failed = log
        .all()
        .iter()
        .filter(|it| it.attempt > 1 && it.what == What::Ended)
        .count();
    assert!(failed > 20, "{failed} of them were tried again");
    assert_eq!(
        find(&redis, "{cb:line:*}:delayed"),
        [""; 0],
        "a copy was put off"
    );
    assert_eq!(find(&redis, "{cb:line:*}:held:workers"), [""; 0]);
    for (_, worker) in workers {
        worker.stop().await;
    }
    assert_eq!(shares(&redis), BTreeMap::new(), "who leaves lets all go");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subject_that_fails_for_long_delays_no_other_one_of_its_partition() {
    let (redis, log) = (Redis::start(), Log::default());
    order(&redis, DomainOrder::Subject).await;
    let running = start(worker(&redis, "w-1", &log));
    let client = client(&redis);
    log.fails_all.store(1, Ordering::Relaxed);
    let keys = client.keys();
    publish(&client, 1, 0).await;
    publish(&client, 1, 1).await;
    let place = keys.partition_of("line", "s-1");
    let beside = |subject: &u64| keys.partition_of("line", &format!("s-{subject}")) == place;
    let beside: Vec<u64> = (2..2000).filter(beside).take(10).collect();
    until("it is tried again and again", async || {
        log.all()
            .iter()
            .any(|it| it.subject == 1 && it.attempt >= 4)
    })
    .await;
    for number in 0..20 {
        for subject in &beside {
            publish(&client, *subject, number).await;
        }
    }
    until("all others are run", async || log.ended() == 200).await;
    assert!(log.all().iter().all(|it| (it.subject, it.number) != (1, 1)));
    log.fails_all.store(0, Ordering::Relaxed);
    until("it is run", async || results(&redis).len() == 202).await;
    let of_first: Vec<_> = results(&redis).into_iter().filter(|it| it.0 == 1).collect();
    assert_eq!(of_first, [(1, 0), (1, 1)]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_are_shared_out_evenly_and_few_move_when_a_worker_comes_or_leaves() {
    let (redis, log) = (Redis::start(), Log::default());
    order(&redis, DomainOrder::Subject).await;
    let mut workers = Vec::new();
    for n in 1..=3 {
        workers.push(start(worker(&redis, &format!("w-{n}"), &log)));
    }
    until_shared(&redis, 3).await;
    let three = owners(&redis);
    workers.push(start(worker(&redis, "w-4", &log)));
    until_shared(&redis, 4).await;
    let four = owners(&redis);
    let moved = |from: &BTreeMap<String, String>, to: &BTreeMap<String, String>| {
        from.iter()
            .filter(|(key, owner)| to[*key] != **owner)
            .count()
    };
    // Who hears of it a moment later may take what is meant for the new one first.
    let few = usize::from(PARTITIONS) / 4..=usize::from(PARTITIONS) / 4 + 1;
    assert!(few.contains(&moved(&three, &four)));
    workers.pop().unwrap().stop().await;
    until_shared(&redis, 3).await;
    assert!(few.contains(&moved(&four, &owners(&redis))));
    for worker in workers {
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_former_owner_sends_changes_nothing() {
    let (redis, log) = (Redis::start(), Log::default());
    order(&redis, DomainOrder::Subject).await;
    let running = start(worker(&redis, "w-1", &log));
    let client = client(&redis);
    log.held.store(true, Ordering::Relaxed);
    publish(&client, 1, 0).await;
    until("it runs", async || log.all().len() == 1).await;
    // Another one takes the partition, and is gone.
    let partition = client.keys().partition_of("line", "s-1");
    let fence = client.keys().fence("line", partition, "workers");
    let raised: u64 = redis::cmd("INCR")
        .arg(&fence)
        .query(&mut redis.connect())
        .unwrap();
    log.held.store(false, Ordering::Relaxed);
    until("it was run again, and has a result", async || {
        results(&redis).len() == 1
    })
    .await;
    let began = log.all().iter().filter(|it| it.what == What::Began).count();
    assert!(began >= 2, "the first outcome counted: {:?}", log.all());
    let now: u64 = redis::cmd("GET")
        .arg(&fence)
        .query(&mut redis.connect())
        .unwrap();
    assert!(now > raised, "it was taken again");
    publish(&client, 1, 1).await;
    until("it goes on", async || results(&redis).len() == 2).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_former_owner_read_after_it_lost_the_partition_runs_in_its_place() {
    let (redis, log) = (Redis::start(), Log::default());
    order(&redis, DomainOrder::Subject).await;
    let running = start(worker(&redis, "w-1", &log));
    let client = client(&redis);
    publish(&client, 1, 0).await;
    until("it is run", async || results(&redis).len() == 1).await;
    // Its read was on its way, and the server runs it before the owner's.
    let partition = client.keys().partition_of("line", "s-1");
    let stream = client.keys().events("line", partition);
    log.held.store(true, Ordering::Relaxed);
    let mut steal = redis::pipe();
    for number in 1..3 {
        let data = rmp_serde::to_vec(&(1_u64, number as u64)).unwrap();
        let add = steal.atomic().cmd("XADD").arg(&stream).arg("*");
        add.arg(&["type", "line.step", "subject", "s-1", "id"]);
        add.arg(format!("1-{number}")).arg("data").arg(data);
        if number == 1 {
            let read = steal.cmd("XREADGROUP").arg(&["GROUP", "workers", "former"]);
            read.arg(&["STREAMS", &stream, ">"]);
        }
    }
    steal.exec(&mut redis.connect()).unwrap();
    log.held.store(false, Ordering::Relaxed);
    until("both are run", async || results(&redis).len() == 3).await;
    assert_in_order(&results(&redis), 1, 3);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_is_given_and_taken_while_all_runs() {
    const SUBJECTS: u64 = 20;
    let (redis, log) = (Redis::start(), Log::default());
    let workers = ["w-1", "w-2"].map(|id| start(worker(&redis, id, &log)));
    let (client, over) = (client(&redis), Arc::default());
    let publishing = publishes(&client, SUBJECTS, &over, &log);
    until("some are run", async || log.ended() > 100).await;
    let latest = || log.all().iter().map(|it| it.number).max().unwrap_or(0);
    let mut since = 0;
    for turn in 0..2 {
        order(&redis, DomainOrder::Subject).await;
        until_shared(&redis, 2).await;
        // None of these was read before.
        since = latest() + 25;
        until("it goes on", async || latest() > since + 5).await;
        if turn == 0 {
            order(&redis, DomainOrder::None).await;
            until("nobody owns anything", async || shares(&redis).is_empty()).await;
            let before = log.ended();
            until("it goes on", async || log.ended() > before + 200).await;
        }
    }
    over.store(true, Ordering::Relaxed);
    let numbers = publishing.await.unwrap();
    until("all are settled", async || {
        results(&redis).len() as u64 >= SUBJECTS * numbers && pending(&redis) == 0
    })
    .await;
    let results = results(&redis);
    let once: HashSet<_> = results.iter().collect();
    assert_eq!(once.len() as u64, SUBJECTS * numbers, "lost");
    assert_eq!(results.len(), once.len(), "doubled");
    let mut next = HashMap::new();
    for (subject, number) in results.iter().filter(|it| it.1 >= since) {
        let next = next.entry(subject).or_insert(since);
        assert_eq!(number, next, "subject {subject}");
        *next += 1;
    }
    assert_eq!(next.len() as u64, SUBJECTS);
    for worker in workers {
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subjects_keep_their_order_over_workers_while_there_come_more_partitions() {
    const SUBJECTS: u64 = 30;
    let (redis, log) = (Redis::start(), Log::default());
    log.fails.store(30, Ordering::Relaxed);
    order(&redis, DomainOrder::Subject).await;
    let workers = ["w-1", "w-2"].map(|id| start(worker(&redis, id, &log)));
    let (client, over) = (client(&redis), Arc::default());
    let publishing = publishes(&client, SUBJECTS, &over, &log);
    until("some are run", async || log.ended() > 100).await;
    let connector = Connector::new(&RedisUrl::new(redis.url_for(users::OPERATOR)), 2).unwrap();
    let domains = Domains::new(connector, Keys::tagged("cb", PARTITIONS).unwrap());
    let is = domains
        .set("line", 2 * PARTITIONS, None, "ann")
        .await
        .unwrap();
    assert_eq!(is.order, DomainOrder::Subject);
    until("all partitions are owned", async || {
        owners(&redis).len() == usize::from(is.partitions)
    })
    .await;
    let before = log.ended();
    until("it goes on", async || log.ended() > before + 300).await;
    over.store(true, Ordering::Relaxed);
    let numbers = publishing.await.unwrap();
    until("all are settled", async || {
        results(&redis).len() as u64 >= SUBJECTS * numbers && pending(&redis) == 0
    })
    .await;
    assert_in_order(&results(&redis), SUBJECTS, numbers);
    assert_one_at_a_time(&log.all(), &HashSet::new());
    for worker in workers {
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_is_followed_at_once() {
    let (redis, log) = (Redis::start(), Log::default());
    order(&redis, DomainOrder::Subject).await;
    // None of its leases ends within the time that is waited here.
    let long = |id: &str| {
        let settings = Settings {
            heartbeat_ttl: Duration::from_secs(300),
            claim_idle: Duration::from_secs(300),
            ..settings(&redis, id)
        };
        let builder = Worker::builder().settings(settings);
        start(builder.state(log.clone()).handler("line.step", step))
    };
    let first = long("w-1");
    until_shared(&redis, 1).await;
    let second = long("w-2");
    until_shared(&redis, 2).await;
    let began = Instant::now();
    first.stop().await;
    until_shared(&redis, 1).await;
    println!("moved within {:?}", began.elapsed());
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_and_is_not_done_yet_has_told_what_others_may_take() {
    let (redis, log) = (Redis::start(), Log::default());
    order(&redis, DomainOrder::Subject).await;
    // Nobody looks by itself within the time that is waited here, and no lease ends.
    let hour = |id: &str| {
        let hour = Duration::from_secs(3600);
        let settings = Settings {
            heartbeat_ttl: hour,
            claim_idle: hour,
            drain_timeout: hour,
            ..settings(&redis, id)
        };
        let builder = Worker::builder().settings(settings);
        start(builder.state(log.clone()).handler("line.step", step))
    };
    let first = hour("w-1");
    until_shared(&redis, 1).await;
    log.held.store(true, Ordering::Relaxed);
    let client = client(&redis);
    publish(&client, 1, 0).await;
    until("it runs", async || !log.all().is_empty()).await;
    let Running(drain, first) = first;
    let second = hour("w-2");
    let others = BTreeMap::from([("w-1".into(), 4), ("w-2".into(), 4)]);
    until("each has its share", async || shares(&redis) == others).await;
    drain.cancel();
    let but_one = BTreeMap::from([("w-1".into(), 1), ("w-2".into(), 7)]);
    until(
        "all but that of the run are let go, and taken",
        async || shares(&redis) == but_one,
    )
    .await;
    log.held.store(false, Ordering::Relaxed);
    first.await.unwrap();
    until_shared(&redis, 1).await;
    second.stop().await;
    assert_in_order(&results(&redis), 1, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_the_server_forgets_all_the_partitions_are_owned_again() {
    let (redis, log) = (Redis::start(), Log::default());
    order(&redis, DomainOrder::Subject).await;
    let running = start(worker(&redis, "w-1", &log));
    until_shared(&redis, 1).await;
    let keys = [
        find(&redis, "{cb:line:*}:owner:*"),
        find(&redis, "{cb:line:*}:fence:*"),
    ]
    .concat();
    redis::cmd("DEL")
        .arg(keys)
        .exec(&mut redis.connect())
        .unwrap();
    until_shared(&redis, 1).await;
    let client = client(&redis);
    for subject in 1..=10 {
        publish(&client, subject, 0).await;
    }
    until("all are run", async || results(&redis).len() == 10).await;
    running.stop().await;
}
