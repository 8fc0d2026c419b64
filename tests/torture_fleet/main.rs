//! Workers that are killed and stopped: who is lost, when, and who leads then.

#[path = "../support/mod.rs"]
mod support;

mod ballots;
mod patterns;
mod pulses;

use convoke::connect::connector::Connector;
use convoke::coordination::instances::Instances;
use convoke::protocol::event::Entry;
use convoke::protocol::keys::Keys;
use convoke::settings::RedisUrl;
use convoke::streams::read::entries_of;
use serde_json::Value;
use std::time::{Duration, Instant};
use support::fleet::{self, Fleet, TTL};
use support::{Redis, signal, until};

#[test]
fn a_worker_process() {
    fleet::worker_process(|worker| worker.handler("load.work", fleet::work));
}

/// A fact: when, its type, its data.
type Fact = (u64, String, Value);

struct Look {
    redis: Redis,
    instances: Instances,
}

impl Look {
    fn new() -> Self {
        let redis = Redis::start();
        let connector = Connector::new(&RedisUrl::new(redis.url()), 4).unwrap();
        let instances = Instances::of_process(connector, Keys::new("cb").unwrap(), "test");
        Self { redis, instances }
    }

    fn connector(&self) -> Connector {
        Connector::new(&RedisUrl::new(self.redis.url()), 4).unwrap()
    }

    fn keys(&self) -> Keys {
        Keys::new("cb").unwrap()
    }

    async fn facts(&self) -> Vec<Fact> {
        let mut connection = self.redis.connection().await;
        let mut range = redis::cmd("XRANGE");
        range.arg(&["cb:broadcast", "-", "+"]);
        let reply = range.query_async(&mut connection).await.unwrap();
        let fact = |entry: Entry| {
            let kind = String::from_utf8(entry.get("type").unwrap().to_vec()).unwrap();
            let data = rmp_serde::from_slice(entry.get("data").unwrap()).unwrap();
            (entry.id.ms, kind, data)
        };
        entries_of(reply).unwrap().into_iter().map(fact).collect()
    }

    /// Waits for a fact that came after that moment; gives it.
    async fn fact(&self, kind: &str, after: u64, wanted: impl Fn(&Value) -> bool) -> Fact {
        let began = Instant::now();
        loop {
            let facts = self.facts().await.into_iter();
            let mut found =
                facts.filter(|fact| fact.0 >= after && fact.1 == kind && wanted(&fact.2));
            if let Some(fact) = found.next() {
                return fact;
            }
            assert!(began.elapsed() < Duration::from_secs(60), "no {kind}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn now(&self) -> u64 {
        self.instances.census().await.unwrap().at
    }

    async fn all_are_there(&self, count: usize) {
        until("all are there", || async {
            self.instances.list().await.unwrap().len() == count
        })
        .await;
    }

    /// The position of the leader in the fleet, and the term. One who got no time at its start leads no more.
    async fn leader(&self) -> (usize, u64) {
        self.fact("leader.elected", 0, |_| true).await;
        let facts = self.facts().await.into_iter();
        let mut elected = facts.filter(|fact| fact.1 == "leader.elected");
        let (_, _, data) = elected.next_back().unwrap();
        let id = data["id"].as_str().unwrap();
        let place: usize = id.strip_prefix("w-").unwrap().parse().unwrap();
        (place - 1, data["term"].as_u64().unwrap())
    }
}

/// How long a slow machine may take beyond the bound that is promised to a fast one.
const SLACK: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_leader_is_lost_within_its_ttl_and_another_leads_with_a_higher_term() {
    let look = Look::new();
    let mut fleet = Fleet::start(&look.redis, 4);
    look.all_are_there(4).await;
    let (place, term) = look.leader().await;
    let id = format!("w-{}", place + 1);
    let killed = look.now().await;
    fleet.kill(place, false);
    let (lost, _, data) = look
        .fact("instance.lost", killed, |data| data["id"] == *id)
        .await;
    let last_seen = data["last_seen"].as_u64().unwrap();
    let after_pulse = Duration::from_millis(lost - last_seen);
    let after_kill = Duration::from_millis(lost.saturating_sub(killed));
    let bound = TTL + Duration::from_secs(1) + SLACK;
    assert!(
        after_pulse < bound,
        "lost {after_pulse:?} after its last pulse"
    );
    let (elected, _, data) = look.fact("leader.elected", killed, |_| true).await;
    assert!(data["term"].as_u64().unwrap() > term);
    assert_ne!(data["id"], *id);
    println!(
        "ttl {TTL:?}: lost {after_kill:?} after the kill, {after_pulse:?} after its last pulse; \
         another one led {} ms after the kill",
        elected.saturating_sub(killed)
    );
    fleet.drain();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_leader_finds_another_one_when_it_goes_on_and_registers_anew() {
    let look = Look::new();
    let fleet = Fleet::start(&look.redis, 3);
    look.all_are_there(3).await;
    let (place, term) = look.leader().await;
    let id = format!("w-{}", place + 1);
    let registered = |data: &Value| data["id"] == *id;
    let (_, _, first) = look.fact("instance.registered", 0, registered).await;
    let stopped = look.now().await;
    signal(fleet.pid(place), "STOP");
    look.fact("instance.lost", stopped, registered).await;
    let (_, _, next) = look.fact("leader.elected", stopped, |_| true).await;
    assert_ne!(next["id"], *id);
    assert!(next["term"].as_u64().unwrap() > term);
    let goes_on = look.now().await;
    signal(fleet.pid(place), "CONT");
    let (_, _, again) = look.fact("instance.registered", goes_on, registered).await;
    assert!(again["incarnation"].as_u64() > first["incarnation"].as_u64());
    // It leads no more, and what it does as one of the others it does.
    let (_, _, still) = look.fact("leader.elected", stopped, |_| true).await;
    assert_eq!(still, next);
    look.all_are_there(3).await;
    let elected = look.facts().await.into_iter();
    let terms: Vec<u64> = elected
        .filter(|fact| fact.1 == "leader.elected")
        .map(|fact| fact.2["term"].as_u64().unwrap())
        .collect();
    assert!(terms.is_sorted_by(|a, b| a < b), "{terms:?}");
    fleet.drain();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn most_instances_gone_is_a_partition_until_they_are_back() {
    let look = Look::new();
    let fleet = Fleet::start(&look.redis, 5);
    look.all_are_there(5).await;
    let stopped = look.now().await;
    for place in 0..3 {
        signal(fleet.pid(place), "STOP");
    }
    let (_, _, data) = look.fact("partition.detected", stopped, |_| true).await;
    assert!(2 * data["healthy"].as_u64().unwrap() < data["total"].as_u64().unwrap());
    assert!(look.instances.census().await.unwrap().is_partitioned());
    let goes_on = look.now().await;
    for place in 0..3 {
        signal(fleet.pid(place), "CONT");
    }
    let (_, _, data) = look.fact("partition.healed", goes_on, |_| true).await;
    assert!(10 * data["healthy"].as_u64().unwrap() > 7 * data["total"].as_u64().unwrap());
    let told = look.facts().await.into_iter();
    let told: Vec<String> = told
        .map(|fact| fact.1)
        .filter(|kind| kind.starts_with("partition"))
        .collect();
    for (at, kind) in told.iter().enumerate() {
        assert_eq!(kind, ["partition.detected", "partition.healed"][at % 2]);
    }
    fleet.drain();
}

/// The kill is noticed by the peers, who get no answer to their pings.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_is_silent_in_both_ways_is_suspect_before_it_is_lost() {
    let look = Look::new();
    let fleet = Fleet::start(&look.redis, 5);
    look.all_are_there(5).await;
    let (mut suspected, mut lost_early, rounds) = (0, 0, 5);
    for _ in 0..rounds {
        let stopped = look.now().await;
        signal(fleet.pid(0), "STOP");
        let mut suspect = false;
        let began = Instant::now();
        let lost = loop {
            let listed = look.instances.list().await.unwrap();
            suspect |= listed.iter().any(|is| is.suspect && is.id == "w-1");
            let facts = look.facts().await.into_iter();
            let mut lost = facts.filter(|fact| fact.0 >= stopped && fact.1 == "instance.lost");
            if let Some(lost) = lost.find(|fact| fact.2["id"] == "w-1") {
                break lost;
            }
            assert!(began.elapsed() < Duration::from_secs(60));
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        suspected += u32::from(suspect);
        let silent = lost.0 - lost.2["last_seen"].as_u64().unwrap();
        lost_early += u32::from(silent < TTL.as_millis() as u64);
        let goes_on = look.now().await;
        signal(fleet.pid(0), "CONT");
        look.fact("instance.registered", goes_on, |data| data["id"] == "w-1")
            .await;
        look.all_are_there(5).await;
    }
    println!(
        "{rounds} stops: suspect first {suspected} times, lost before its lease ended {lost_early} times"
    );
    assert!(suspected + lost_early > 0, "nobody noticed");
    fleet.drain();
}
