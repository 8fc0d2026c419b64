//! Who is lost while workers are killed and stopped, in each pattern of `system.heartbeat`.

use super::patterns::choose;
use super::{Look, SLACK};
use crate::support::fleet::{self, Fleet};
use crate::support::signal;
use crate::support::torture::{Report, dice, size};
use convoke::coordination::instances::neighbours::LASTS;
use convoke::protocol::pattern::{Pattern, Patterned};
use std::collections::BTreeMap;
use std::time::Duration;

const WORKERS: usize = 5;
/// Long enough that one who gets no time for a moment is not taken for dead.
const LIVES: Duration = Duration::from_secs(4);

/// From when to when a worker was dead or stood still, by the server's clock.
type Away = (u64, u64);

/// Waits until all follow, and pulse as is chosen.
async fn all_follow(look: &Look, pattern: Pattern) {
    crate::support::until("all follow", || async {
        let listed = look.instances.list().await.unwrap();
        let follows = |is: &convoke::coordination::instances::instance::Instance| {
            is.mode.patterns.get("heartbeat").map(String::as_str) == Some(pattern.as_str())
        };
        listed.len() == WORKERS && listed.iter().all(follows)
    })
    .await;
}

/// Within how many ttls neighbours find one that died, where nothing else is wrong.
const FOUND: u32 = 2;

/// Stops one whose pulse lasts, for much less than what ends a lease: nobody is lost for it. Whether it did; the leader's
/// pulses do not last, nor does that of one that has just begun.
async fn pause(look: &Look, fleet: &Fleet, place: usize) -> bool {
    let mut connection = look.redis.connection().await;
    let mut expiry = redis::cmd("ZSCORE");
    expiry.arg(&["cb:instances:active", fleet.id(place)]);
    let expires: Option<f64> = expiry.query_async(&mut connection).await.unwrap();
    let left = expires.unwrap_or_default() as u64;
    let left = Duration::from_millis(left.saturating_sub(look.now().await));
    let lasts = left > LIVES * 3 / 2;
    if lasts {
        signal(fleet.pid(place), "STOP");
    }
    tokio::time::sleep(LIVES / 4).await;
    if lasts {
        signal(fleet.pid(place), "CONT");
    }
    lasts
}

/// Has the lease of one that is dead last for an hour more: it is not what finds it.
async fn prolong(look: &Look, id: &str) {
    let mut connection = look.redis.connection().await;
    let mut prolong = redis::cmd("ZADD");
    prolong.arg(&["cb:instances:active", "XX", "INCR", "3600000", id]);
    prolong.exec_async(&mut connection).await.unwrap();
}

/// Kills and stops workers, in that pattern, or in another one after each fault: the dead are lost, once and in time, and
/// nobody else is. Where neighbours ask, they are what finds the dead.
async fn only_the_dead_are_lost(pattern: Option<Pattern>) {
    let kills = size("TORTURE_PATTERN_KILLS", 3, 50);
    let stops = size("TORTURE_PATTERN_STOPS", 2, 20);
    let look = Look::new();
    let mut fleet = Fleet::that_live(&look.redis, WORKERS, LIVES);
    look.all_are_there(WORKERS).await;
    let client = fleet::client(&look.redis);
    let mut away: BTreeMap<String, Vec<Away>> = BTreeMap::new();
    let (mut found, mut pauses) = (Vec::new(), 0);
    let mut dice = dice("pulses");
    // One that lasts is written in the second round, and the next one six rounds later.
    let chosen = pattern.unwrap_or_default();
    choose(&client, Patterned::Heartbeat, chosen).await;
    all_follow(&look, chosen).await;
    for fault in 0..kills + stops {
        if pattern.is_none() {
            let next = Pattern::ALL[fault as usize % Pattern::ALL.len()];
            choose(&client, Patterned::Heartbeat, next).await;
        }
        tokio::time::sleep(LIVES.mul_f64(dice.f64())).await;
        pauses += u64::from(pause(&look, &fleet, dice.usize(..fleet.len())).await);
        // The leader as often as anybody.
        let place = match look.instances.leader().await.unwrap() {
            Some(leader) if dice.bool() => fleet.position(&leader),
            _ => None,
        };
        let place = place.unwrap_or_else(|| dice.usize(..fleet.len()));
        let id = fleet.id(place).to_owned();
        let since = look.now().await;
        let stops = fault >= kills;
        match stops {
            false => fleet.kill(place, false),
            true => signal(fleet.pid(place), "STOP"),
        }
        let neighbours = pattern == Some(Pattern::Distributed);
        if neighbours {
            prolong(&look, &id).await;
        }
        let lost = look.fact("instance.lost", since, |data| data["id"] == *id);
        let (lost, _, _) = lost.await;
        let after = Duration::from_millis(lost.saturating_sub(since));
        let ttls = if neighbours { FOUND } else { LASTS };
        let bound = LIVES * ttls + Duration::from_secs(1) + SLACK;
        assert!(after < bound, "{id} was lost {after:?} after it died");
        found.push(after);
        let mut over = u64::MAX;
        if stops {
            signal(fleet.pid(place), "CONT");
            over = look.now().await;
            let registered = |data: &serde_json::Value| data["id"] == *id;
            look.fact("instance.registered", lost, registered).await;
        }
        away.entry(id).or_default().push((since, over));
        look.all_are_there(WORKERS).await;
    }
    let mut told: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for (at, kind, data) in look.facts().await {
        if kind == "instance.lost" {
            let id = data["id"].as_str().unwrap().to_owned();
            told.entry(id).or_default().push(at);
        }
    }
    for (id, losses) in &told {
        let away = away.get(id).map(Vec::as_slice).unwrap_or_default();
        assert_eq!(
            losses.len(),
            away.len(),
            "{id}: lost {losses:?}, away {away:?}"
        );
        let in_turn = losses.iter().zip(away);
        for (lost, (since, over)) in in_turn {
            assert!(since <= lost && lost <= over, "{id}: {losses:?}, {away:?}");
        }
    }
    assert_eq!(told.len(), away.len(), "{told:?}, away {away:?}");
    found.sort();
    Report::default()
        .fault(kills, "workers killed")
        .fault(stops, "workers stopped until they were lost")
        .fault(pauses, "workers stopped for less than that")
        .event(found.len() as u64, "of them lost, each once; nobody else")
        .note(format!(
            "found {:?} at the median and {:?} at most after they died, at a ttl of {LIVES:?}",
            found[found.len() / 2],
            found[found.len() - 1]
        ))
        .tell(match pattern {
            Some(Pattern::Distributed) => "losses where neighbours ask",
            Some(Pattern::Hybrid) => "losses where one collects",
            Some(Pattern::Centralized) => "losses where each pulses",
            None => "losses while the pattern changes",
        });
    fleet.drain();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_dead_are_lost_where_neighbours_ask_each_other() {
    only_the_dead_are_lost(Some(Pattern::Distributed)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_dead_are_lost_while_the_pattern_changes() {
    only_the_dead_are_lost(None).await;
}
