//! Inside a partition that one worker owns: one event of a subject at a time, in the order of their entries, through
//! failures, through what a former owner's read still brings, and over a change of owner.

use crate::support::{Redis, until, users};
use convoke::client::publish::Outgoing;
use convoke::client::{Client, ClientOptions};
use convoke::connect::connector::Connector;
use convoke::protocol::domain::{Domain, DomainOrder};
use convoke::protocol::error::HandlerError;
use convoke::protocol::keys::Keys;
use convoke::settings::{RedisUrl, Settings};
use convoke::streams::hold::Held;
use convoke::{Context, Worker};
use redis::Value;
use redis::aio::MultiplexedConnection;
use serde_json::json;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const EVENTS: &str = "{cb:line:0}:events";
const RESULTS: &str = "{cb:line:0}:results";
const DEAD: &str = "{cb:line:0}:dead";
const DELAYED: &str = "{cb:line:0}:delayed";
const GROUP: &str = "workers";

/// What a handler is to do with an event: how often it fails before it succeeds, and whether it waits to be let go.
#[derive(Clone, Copy, Default)]
struct Plan {
    fails: u32,
    waits: bool,
    /// Whether it publishes something, after so long that its outcome is written by itself.
    publishes: bool,
    /// The next try is that much later at the least.
    later: Duration,
}

/// A run that began: who ran it, which number it is, which try, and whether it has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Begun {
    by: String,
    number: u64,
    attempt: u32,
    ended: bool,
}

#[derive(Clone, Default)]
struct Log {
    plans: Arc<Mutex<HashMap<u64, Plan>>>,
    runs: Arc<Mutex<Vec<Begun>>>,
    goes_on: CancellationToken,
}

impl Log {
    fn plan(&self, number: u64, plan: Plan) {
        self.plans.lock().unwrap().insert(number, plan);
    }

    fn runs(&self) -> Vec<Begun> {
        self.runs.lock().unwrap().clone()
    }

    /// Number and try of the runs that began, in their order.
    fn tries(&self) -> Vec<(u64, u32)> {
        let runs = self.runs();
        runs.iter().map(|run| (run.number, run.attempt)).collect()
    }

    fn numbers(&self) -> Vec<u64> {
        self.runs().iter().map(|run| run.number).collect()
    }
}

async fn step(context: Context, number: u64) -> Result<(), HandlerError> {
    let log = context.state::<Log>()?.clone();
    let attempt = context.event().attempt();
    let plan = log.plans.lock().unwrap().get(&number).copied();
    let plan = plan.unwrap_or_default();
    let at = {
        let mut runs = log.runs.lock().unwrap();
        runs.push(Begun {
            by: context.instance().to_owned(),
            number,
            attempt,
            ended: false,
        });
        runs.len() - 1
    };
    if plan.waits {
        tokio::select! {
            () = log.goes_on.cancelled() => {}
            () = context.cancellation().cancelled() => {}
        }
    }
    tokio::time::sleep(Duration::from_millis(2)).await;
    log.runs.lock().unwrap()[at].ended = true;
    if attempt <= plan.fails {
        let mut error = HandlerError::internal(format!("{number} fails"));
        error.retry_after = Some(plan.later);
        return Err(error);
    }
    if plan.publishes {
        tokio::time::sleep(Duration::from_millis(1200)).await;
        context.publish("next.step", &number)?;
    }
    Ok(())
}

/// A server with an ordered domain of one partition.
struct Rig {
    redis: Redis,
    client: Client,
    keys: Keys,
    connection: MultiplexedConnection,
    log: Log,
}

struct Running(CancellationToken, JoinHandle<()>);

impl Running {
    async fn stop(self) {
        self.0.cancel();
        self.1.await.unwrap();
    }

    /// Ends it in the middle of its work.
    async fn kill(self) {
        self.1.abort();
        self.1.await.unwrap_err();
    }
}

impl Rig {
    async fn new() -> Self {
        Self::on(Redis::start()).await
    }

    async fn on(redis: Redis) -> Self {
        let keys = Keys::tagged("cb", 1).unwrap();
        let url = RedisUrl::new(redis.url_for(users::PUBLISHER));
        let connector = Connector::new(&url, 2).unwrap();
        let client = Client::new(connector, keys.clone(), ClientOptions::default()).unwrap();
        let mut connection = redis.connection().await;
        let ordered = Domain {
            order: DomainOrder::Subject,
            ..Domain::first(1)
        };
        redis::cmd("HSET")
            .arg(keys.domains())
            .arg("line")
            .arg(ordered.encode())
            .exec_async(&mut connection)
            .await
            .unwrap();
        Self {
            redis,
            client,
            keys,
            connection,
            log: Log::default(),
        }
    }

    fn settings(&self, id: &str) -> Settings {
        Settings {
            redis_url: RedisUrl::new(self.redis.url()),
            id: id.into(),
            partitions: 1,
            concurrency: 8,
            heartbeat_ttl: Duration::from_secs(12),
            claim_idle: Duration::from_secs(20),
            backoff_base: Duration::from_millis(50),
            backoff_cap: Duration::from_millis(400),
            drain_timeout: Duration::from_secs(20),
            ..Settings::default()
        }
    }

    fn start(&self, id: &str) -> Running {
        self.start_with(self.settings(id))
    }

    fn start_with(&self, settings: Settings) -> Running {
        let builder = Worker::builder().settings(settings).state(self.log.clone());
        let builder = builder.handler("line.step", step);
        let worker = builder.handler("line.other", step).build().unwrap();
        let drain = CancellationToken::new();
        let until = drain.clone();
        let task = tokio::spawn(async move { worker.run_until(until).await.unwrap() });
        Running(drain, task)
    }

    async fn publish(&self, number: u64, subject: &str) {
        let event = Outgoing::new("line.step", &number).subject(subject);
        self.client.publish(&event).await.unwrap();
    }

    async fn request(&self, kind: &str, payload: &serde_json::Value) {
        let event = Outgoing::new(kind, payload);
        let asked = self.client.request(event, Duration::from_secs(40));
        asked.await.unwrap();
    }

    async fn ask<T: redis::FromRedisValue>(&self, line: &str) -> T {
        let mut words = line.split_whitespace();
        let mut command = redis::cmd(words.next().unwrap());
        command.arg(words.collect::<Vec<_>>());
        let mut connection = self.connection.clone();
        let told = command.query_async(&mut connection).await;
        told.unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    async fn length(&self, stream: &str) -> u64 {
        self.ask(&format!("XLEN {stream}")).await
    }

    async fn are_done(&self, count: u64) {
        until("all is committed", async || {
            self.length(RESULTS).await == count
        })
        .await;
    }

    /// Waits until the worker's lane waits for new entries, and nothing is pending.
    async fn reads(&self) {
        until("it reads", async || {
            let listed: String = self.ask("CLIENT LIST").await;
            let waits = |line: &str| line.contains("cmd=xreadgroup") && line.contains("flags=b");
            // The lanes of the control plane, of tasks, and of the partition.
            listed.lines().filter(|line| waits(line)).count() >= 3
        })
        .await;
    }

    /// Has that many events be pending as two owners left them that were killed.
    async fn was_with_killed_owners(&self, count: usize) {
        let made = format!("XGROUP CREATE {EVENTS} {GROUP} 0");
        // A worker may have been there.
        let words: Vec<&str> = made.split(' ').collect();
        let mut create = redis::cmd(words[0]);
        let mut connection = self.connection.clone();
        create
            .arg(&words[1..])
            .exec_async(&mut connection)
            .await
            .ok();
        let read = format!("XREADGROUP GROUP {GROUP} gone COUNT {count} STREAMS {EVENTS} >");
        self.ask::<Value>(&read).await;
        let listed = format!("XPENDING {EVENTS} {GROUP} - + 10");
        let pending: Vec<(String, String, u64, u64)> = self.ask(&listed).await;
        assert_eq!(pending.len(), count);
        for (id, ..) in &pending {
            let claim = format!("XCLAIM {EVENTS} {GROUP} gone 0 {id} RETRYCOUNT 2 JUSTID");
            self.ask::<Value>(&claim).await;
        }
    }

    /// What is noted of what waits in its place.
    async fn noted(&self) -> Vec<Held> {
        let key = self.keys.held("line", 0, GROUP);
        let notes: Vec<Vec<u8>> = self.ask(&format!("HVALS {key}")).await;
        notes
            .iter()
            .map(|note| Held::decode(note).unwrap())
            .collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_a_subject_runs_at_a_time_in_the_order_of_the_entries_and_others_run_beside_it() {
    let rig = Rig::new().await;
    rig.log.plan(
        1,
        Plan {
            waits: true,
            ..Plan::default()
        },
    );
    for n in 1..=40 {
        rig.publish(n, ["s", "t"][(n as usize + 1) % 2]).await;
    }
    let worker = rig.start("w-1");
    rig.are_done(20).await;
    // All of the other subject ran beside the first one.
    let odd = |numbers: Vec<u64>| numbers.into_iter().filter(|n| n % 2 == 1).count();
    assert_eq!(odd(rig.log.numbers()), 1);
    rig.log.goes_on.cancel();
    rig.are_done(40).await;
    for part in [0, 1] {
        let of = rig.log.numbers().into_iter().filter(|n| n % 2 == part);
        assert!(of.is_sorted());
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_failed_is_tried_again_in_its_place_while_other_subjects_go_on() {
    let rig = Rig::new().await;
    let fails = Plan {
        fails: u32::MAX,
        ..Plan::default()
    };
    rig.log.plan(1, fails);
    for n in 1..=3 {
        rig.publish(n, "s").await;
    }
    for n in 11..=13 {
        rig.publish(n, "t").await;
    }
    let worker = rig.start_with(Settings {
        max_attempts: 1000,
        ..rig.settings("w-1")
    });
    let of = |subject: fn(u64) -> bool| -> Vec<(u64, u32)> {
        let tries = rig.log.tries().into_iter();
        tries.filter(|(n, _)| subject(*n)).collect()
    };
    // Nobody else waits for it.
    rig.are_done(3).await;
    assert_eq!(of(|n| n > 10), [(11, 1), (12, 1), (13, 1)]);
    until("it is tried again", async || of(|n| n < 10).len() > 3).await;
    until("it waits in its place", async || {
        let noted = rig.noted().await;
        noted
            .iter()
            .any(|held| held.attempt > 3 && held.code == "internal")
    })
    .await;
    rig.log.plan(1, Plan::default());
    rig.are_done(6).await;
    let tries = of(|n| n < 10);
    let of_the_first = tries.len() - 2;
    let numbered = (1..).zip(&tries[..of_the_first]);
    assert!(
        numbered.clone().all(|(attempt, it)| *it == (1, attempt)),
        "{tries:?}"
    );
    assert_eq!(tries[of_the_first..], [(2, 1), (3, 1)]);
    // No copy of it was made, and none waits elsewhere.
    assert_eq!(rig.length(EVENTS).await, 6);
    assert_eq!(rig.ask::<u64>(&format!("ZCARD {DELAYED}")).await, 0);
    assert!(rig.noted().await.is_empty());
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_lets_the_next_one_pass_and_so_does_what_nobody_has_a_handler_for() {
    let rig = Rig::new().await;
    let fails = Plan {
        fails: u32::MAX,
        ..Plan::default()
    };
    rig.log.plan(1, fails);
    rig.publish(1, "s").await;
    let unknown = Outgoing::new("line.unknown", &2).subject("s");
    rig.client.publish(&unknown).await.unwrap();
    rig.publish(3, "s").await;
    let worker = rig.start_with(Settings {
        max_attempts: 2,
        ..rig.settings("w-1")
    });
    rig.are_done(1).await;
    assert_eq!(rig.log.tries(), [(1, 1), (1, 2), (3, 1)]);
    let letters: Vec<(String, HashMap<String, Vec<u8>>)> =
        rig.ask(&format!("XRANGE {DEAD} - +")).await;
    let reasons: Vec<String> = letters
        .iter()
        .map(|(_, letter)| String::from_utf8_lossy(&letter["deadreason"]).into_owned())
        .collect();
    assert_eq!(reasons, ["internal", "unimplemented"]);
    assert!(rig.noted().await.is_empty());
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subject_is_held_up_until_its_event_is_committed_and_not_only_run() {
    let rig = Rig::new().await;
    let publishes = Plan {
        publishes: true,
        ..Plan::default()
    };
    rig.log.plan(1, publishes);
    // What it publishes cannot be written for now: into its stream, or on a cluster into the outbox.
    let to = match rig.redis.is_cluster() {
        true => "{cb:line:0}:outbox",
        false => "{cb:next:0}:events",
    };
    rig.ask::<Value>(&format!("SET {to} text")).await;
    for n in 1..=2 {
        rig.publish(n, "s").await;
    }
    rig.publish(3, "t").await;
    let worker = rig.start_with(Settings {
        claim_idle: Duration::from_secs(3),
        max_deliveries: 100,
        ..rig.settings("w-1")
    });
    until("it was tried again", async || {
        let ones = rig.log.numbers().into_iter().filter(|n| *n == 1);
        ones.count() >= 2
    })
    .await;
    assert!(!rig.log.numbers().contains(&2));
    rig.are_done(1).await;
    rig.ask::<Value>(&format!("DEL {to}")).await;
    rig.are_done(3).await;
    let of_subject: Vec<u64> = rig.log.numbers().into_iter().filter(|n| *n < 3).collect();
    assert_eq!(of_subject.last(), Some(&2));
    assert_eq!(of_subject.iter().filter(|n| **n == 2).count(), 1);
    worker.stop().await;
}

/// An event whose first of its subject another consumer read just before the owner read the second one.
async fn older_is_with(rig: &Rig, consumer: &str) {
    let data = |n: u64| rmp_serde::to_vec(&n).unwrap();
    let mut both = redis::pipe();
    both.atomic();
    for n in [1, 2] {
        let fields: [(&str, &[u8]); 3] = [
            ("type", b"line.step"),
            ("subject", b"s"),
            ("data", &data(n)),
        ];
        both.cmd("XADD").arg(EVENTS).arg("*").arg(&fields).ignore();
        if n == 1 {
            let read = [
                "GROUP", GROUP, consumer, "COUNT", "1", "STREAMS", EVENTS, ">",
            ];
            both.cmd("XREADGROUP").arg(&read).ignore();
        }
    }
    both.exec_async(&mut rig.connection.clone()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_former_owners_read_still_brought_runs_before_all_that_is_newer() {
    let rig = Rig::new().await;
    let worker = rig.start("w-1");
    rig.reads().await;
    older_is_with(&rig, "former").await;
    rig.are_done(2).await;
    assert_eq!(rig.log.numbers(), [1, 2]);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_does_what_an_earlier_read_of_its_own_brought() {
    let rig = Rig::new().await;
    let worker = rig.start("w-1");
    rig.reads().await;
    older_is_with(&rig, "w-1").await;
    rig.are_done(2).await;
    assert_eq!(rig.log.numbers(), [1, 2]);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_pending_before_it_was_the_owner_runs_first_whoever_it_was_with() {
    let rig = Rig::new().await;
    for n in 1..=6 {
        rig.publish(n, "s").await;
    }
    rig.ask::<Value>(&format!("XGROUP CREATE {EVENTS} {GROUP} 0"))
        .await;
    for consumer in ["z-gone", "w-1", "a-lives", "w-1"] {
        let read = format!("XREADGROUP GROUP {GROUP} {consumer} COUNT 1 STREAMS {EVENTS} >");
        rig.ask::<Value>(&read).await;
    }
    let worker = rig.start("w-1");
    rig.are_done(6).await;
    assert_eq!(rig.log.numbers(), [1, 2, 3, 4, 5, 6]);
    worker.stop().await;
}

/// An event that waits for its second try, and the one behind it, as the first owner leaves them.
async fn waits_with_its_first_owner(rig: &Rig) -> Running {
    let fails = Plan {
        fails: 1,
        later: Duration::from_secs(8),
        ..Plan::default()
    };
    rig.log.plan(1, fails);
    for n in 1..=2 {
        rig.publish(n, "s").await;
    }
    let first = rig.start("first");
    until("it waits in its place", async || {
        !rig.noted().await.is_empty()
    })
    .await;
    first
}

async fn goes_on_with_the_next_one(rig: &Rig) {
    let noted = rig.noted().await;
    assert_eq!(noted[0].attempt, 2);
    let next = rig.start("next");
    rig.are_done(2).await;
    let runs = rig.log.runs();
    let by: Vec<(&str, u64, u32)> = runs
        .iter()
        .map(|run| (run.by.as_str(), run.number, run.attempt))
        .collect();
    assert_eq!(by, [("first", 1, 1), ("next", 1, 2), ("next", 2, 1)]);
    // By the server's clock; it is not tried before its time, whoever has it.
    let time: (u64, u64) = rig.ask("TIME").await;
    // A clock that was set back a little meanwhile is no fault of the worker's.
    assert!(time.0 * 1000 + time.1 / 1000 + 1000 >= noted[0].due);
    assert!(rig.noted().await.is_empty());
    next.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_in_its_place_waits_on_with_the_next_owner() {
    let rig = Rig::new().await;
    waits_with_its_first_owner(&rig).await.stop().await;
    goes_on_with_the_next_one(&rig).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_it_does_where_its_owner_was_killed() {
    let rig = Rig::new().await;
    waits_with_its_first_owner(&rig).await.kill().await;
    goes_on_with_the_next_one(&rig).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_behind_others_is_no_poison_however_often_its_owners_are_killed() {
    let rig = Rig::new().await;
    let waits = Plan {
        waits: true,
        ..Plan::default()
    };
    rig.log.plan(1, waits);
    for n in 1..=3 {
        rig.publish(n, "s").await;
    }
    rig.was_with_killed_owners(3).await;
    let with = |id: &str| Settings {
        max_deliveries: 3,
        ..rig.settings(id)
    };
    let first = rig.start_with(with("first"));
    until("the others wait behind it", async || {
        rig.log.numbers() == [1] && rig.noted().await.len() == 2
    })
    .await;
    first.kill().await;
    let next = rig.start_with(with("next"));
    rig.are_done(2).await;
    assert_eq!(rig.log.numbers(), [1, 2, 3]);
    assert_eq!(
        rig.length(DEAD).await,
        1,
        "the one that ran when its owners died"
    );
    assert!(rig.noted().await.is_empty());
    next.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_paused_waits_in_its_place_whatever_its_type() {
    let rig = Rig::new().await;
    // Known to whoever begins after that.
    let first = rig.start("first");
    let pause = json!({"scope": "type:line.step", "pause": {"reason": "a test"}});
    rig.request("system.policy.set", &pause).await;
    first.stop().await;
    rig.publish(1, "s").await;
    for (n, subject) in [(2, "s"), (3, "t")] {
        let other = Outgoing::new("line.other", &n).subject(subject);
        rig.client.publish(&other).await.unwrap();
    }
    let worker = rig.start("w-1");
    rig.are_done(1).await;
    assert_eq!(rig.log.numbers(), [3], "others go on");
    let resume = json!({"scope": "type:line.step"});
    rig.request("system.policy.clear", &resume).await;
    rig.are_done(3).await;
    assert_eq!(rig.log.numbers(), [3, 1, 2]);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_paused_and_never_began_is_no_poison_however_often_its_owners_are_killed() {
    let rig = Rig::new().await;
    let first = rig.start("first");
    let pause = json!({"scope": "type:line.step", "pause": {"reason": "a test"}});
    rig.request("system.policy.set", &pause).await;
    first.stop().await;
    rig.publish(1, "s").await;
    rig.was_with_killed_owners(1).await;
    let with = |id: &str| Settings {
        max_deliveries: 3,
        ..rig.settings(id)
    };
    let second = rig.start_with(with("second"));
    until("it waits in its place", async || {
        rig.noted().await.len() == 1
    })
    .await;
    second.kill().await;
    let next = rig.start_with(with("next"));
    let resume = json!({"scope": "type:line.step"});
    rig.request("system.policy.clear", &resume).await;
    rig.are_done(1).await;
    assert_eq!(rig.length(DEAD).await, 0);
    assert!(rig.noted().await.is_empty());
    next.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_the_server_forgot_what_was_committed_all_behind_it_runs_again_in_order() {
    // It does not say which history of the data it has.
    if users::skip_without("INFO") {
        return;
    }
    let mut rig = Rig::on(Redis::durable()).await;
    let waits = Plan {
        waits: true,
        ..Plan::default()
    };
    rig.log.plan(2, waits);
    rig.publish(1, "s").await;
    rig.publish(2, "s").await;
    let worker = rig.start("w-1");
    until("the second one runs", async || rig.log.numbers() == [1, 2]).await;
    let entries: Vec<(String, HashMap<String, Vec<u8>>)> =
        rig.ask(&format!("XRANGE {EVENTS} - +")).await;
    // A server that comes back, and knows nothing of the commit of the first one. Where the worker sees it before, it waits.
    let forgotten = &entries[0].0;
    let claim = format!("XCLAIM {EVENTS} {GROUP} w-1 0 {forgotten} FORCE JUSTID");
    rig.ask::<Value>(&claim).await;
    rig.redis.restart();
    rig.connection = rig.redis.connection().await;
    rig.log.goes_on.cancel();
    rig.are_done(3).await;
    let numbers = rig.log.numbers();
    assert_eq!(numbers[numbers.len() - 2..], [1, 2], "{numbers:?}");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_whose_fence_was_raised_commits_nothing_and_what_it_ran_runs_again() {
    let rig = Rig::new().await;
    let waits = Plan {
        waits: true,
        ..Plan::default()
    };
    rig.log.plan(1, waits);
    for n in 1..=2 {
        rig.publish(n, "s").await;
    }
    let worker = rig.start("w-1");
    until("it runs", async || !rig.log.runs().is_empty()).await;
    let fence = rig.keys.fence("line", 0, GROUP);
    rig.ask::<Value>(&format!("INCR {fence}")).await;
    rig.log.goes_on.cancel();
    until("it ran, and is pending", async || {
        rig.log.runs()[0].ended || rig.log.runs().len() > 1
    })
    .await;
    rig.are_done(2).await;
    // The outcome of the first run has no effect: it ran again, before the other one.
    assert_eq!(rig.log.numbers(), [1, 1, 2]);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_behind_a_subject_is_left_in_order_where_its_worker_leaves() {
    let rig = Rig::new().await;
    let waits = Plan {
        waits: true,
        ..Plan::default()
    };
    rig.log.plan(1, waits);
    for n in 1..=5 {
        rig.publish(n, "s").await;
    }
    let first = rig.start("first");
    until("it runs", async || rig.log.numbers() == [1]).await;
    let ends = async {
        rig.log.goes_on.cancel();
    };
    tokio::join!(first.stop(), ends);
    let done = rig.length(RESULTS).await;
    assert!((1..5).contains(&done), "{done}");
    let pending: Vec<(String, String, u64, u64)> =
        rig.ask(&format!("XPENDING {EVENTS} {GROUP} - + 10")).await;
    assert!(pending.iter().all(|row| row.3 == 0), "{pending:?}");
    let next = rig.start("next");
    rig.are_done(5).await;
    assert_eq!(rig.log.numbers(), [1, 2, 3, 4, 5]);
    next.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_takes_no_more_in_hand_than_may_wait_however_much_was_pending() {
    const ALL: u64 = 1500;
    let rig = Rig::new().await;
    let waits = Plan {
        waits: true,
        ..Plan::default()
    };
    rig.log.plan(1, waits);
    let mut publish = redis::pipe();
    for number in 1..=ALL {
        let data = rmp_serde::to_vec(&number).unwrap();
        let add = publish.cmd("XADD").arg(EVENTS).arg("*");
        add.arg(&["type", "line.step", "subject", "s"]);
        add.arg("data").arg(data);
    }
    let mut connection = rig.connection.clone();
    publish.exec_async(&mut connection).await.unwrap();
    let created = format!("XGROUP CREATE {EVENTS} {GROUP} 0");
    rig.ask::<Value>(&created).await;
    let read = format!("XREADGROUP GROUP {GROUP} gone COUNT {ALL} STREAMS {EVENTS} >");
    rig.ask::<Value>(&read).await;
    let worker = rig.start("w-1");
    let in_hand = async || -> u64 {
        let all: Vec<Vec<Value>> = rig.ask(&format!("XINFO CONSUMERS {EVENTS} {GROUP}")).await;
        let of = |fields: &Vec<Value>| -> (String, u64) {
            let named: std::collections::HashMap<String, Value> =
                redis::from_redis_value(Value::Array(fields.clone())).unwrap();
            let name = redis::from_redis_value(named["name"].clone()).unwrap();
            (
                name,
                redis::from_redis_value(named["pending"].clone()).unwrap(),
            )
        };
        let all: Vec<(String, u64)> = all.iter().map(of).collect();
        all.iter().find(|it| it.0 == "w-1").map_or(0, |it| it.1)
    };
    let most = std::cell::Cell::new(0);
    until("it has its fill", async || {
        most.set(in_hand().await.max(most.get()));
        most.get() >= 1024
    })
    .await;
    rig.log.goes_on.cancel();
    until("all is committed", async || {
        most.set(in_hand().await.max(most.get()));
        rig.length(RESULTS).await == ALL
    })
    .await;
    assert!(most.get() < 1400, "{} in hand", most.get());
    let all: Vec<u64> = (1..=ALL).collect();
    assert_eq!(rig.log.numbers(), all);
    worker.stop().await;
}
