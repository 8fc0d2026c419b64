//! The leader: one at a time, terms that only rise.

use crate::fleet::{Fleet, random_histories};
use crate::support::Redis;
use crate::support::keys;
use convoke::coordination::instances::instance::Beat;
use convoke::coordination::leader::Contest;
use convoke::protocol::keys::Keys;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;

impl Fleet {
    async fn contend(&self, id: &str, incarnation: u64) -> Contest {
        self.instances.contend(id, incarnation).await.unwrap()
    }

    /// The term that it leads with.
    async fn leads(&self, id: &str, incarnation: u64) -> Option<u64> {
        self.contend(id, incarnation)
            .await
            .lead
            .map(|lead| lead.term)
    }

    async fn elections(&mut self) -> Vec<Value> {
        let facts = self.facts().await.into_iter();
        let elected = facts.filter(|(kind, _)| kind == "leader.elected");
        elected.map(|(_, data)| data).collect()
    }
}

#[tokio::test]
async fn the_first_who_contends_leads_and_everyone_is_told() {
    let mut fleet = Fleet::start().await;
    let one = fleet.register("w-1", &["worker"]).await.incarnation;
    let two = fleet.register("w-2", &["worker"]).await.incarnation;
    let term = fleet.leads("w-1", one).await.unwrap();
    assert_eq!(
        fleet.elections().await,
        [json!({"id": "w-1", "term": term})]
    );
    let contest = fleet.contend("w-2", two).await;
    assert_eq!(
        (contest.lead, contest.leader.as_deref()),
        (None, Some("w-1"))
    );
    // Again: the same term, no new fact.
    let again = fleet.contend("w-1", one).await;
    assert!(again.lead.unwrap().is_current());
    assert_eq!(again.lead.unwrap().term, term);
    assert_eq!(fleet.elections().await.len(), 1);
    assert_eq!(fleet.instances.term().await.unwrap(), term);
    // Registering and pulsing name it.
    let beat = Beat::new("w-2", Some(two));
    let pulse = fleet.instances.heartbeat(&beat).await.unwrap();
    assert_eq!(pulse.leader.as_deref(), Some("w-1"));
    let three = fleet.register("w-3", &[]).await;
    assert_eq!(three.leader.as_deref(), Some("w-1"));
    let swept = fleet.instances.sweep(16).await.unwrap();
    assert_eq!(swept.leader.as_deref(), Some("w-1"));
}

#[tokio::test]
async fn only_a_live_instance_in_its_present_incarnation_can_lead() {
    let mut fleet = Fleet::start().await;
    assert_eq!(fleet.leads("w-1", 1).await, None, "never registered");
    let first = fleet.register("w-1", &[]).await.incarnation;
    assert_eq!(fleet.leads("w-1", first - 1).await, None);
    fleet.expire("w-1").await;
    assert_eq!(fleet.leads("w-1", first).await, None, "expired");
    fleet.instances.sweep(16).await.unwrap();
    assert_eq!(fleet.leads("w-1", first).await, None, "lost");
    let second = fleet.register("w-1", &[]).await.incarnation;
    assert_eq!(fleet.leads("w-1", first).await, None);
    fleet.instances.unregister("w-1", None).await.unwrap();
    assert_eq!(fleet.leads("w-1", second).await, None, "unregistered");
    assert!(fleet.elections().await.is_empty());
    assert_eq!(fleet.ask::<u32>("EXISTS cb:leader").await, 0);
}

#[tokio::test]
async fn the_seat_is_vacant_when_the_leader_is_expired_lost_or_unregistered_or_registers_anew() {
    let mut fleet = Fleet::start().await;
    let other = fleet.register("w-2", &[]).await.incarnation;
    let mut last = 0;
    for end in ["expired", "lost", "unregistered", "lapsed", "again"] {
        let me = fleet.register("w-1", &[]).await.incarnation;
        let term = fleet.leads("w-1", me).await.unwrap();
        assert!(term > last, "{end}");
        match end {
            "expired" => fleet.expire("w-1").await,
            "lost" => {
                fleet.expire("w-1").await;
                fleet.instances.sweep(16).await.unwrap();
            }
            "lapsed" => fleet.run("HSET cb:leader until 1000").await,
            _ => {
                fleet.instances.unregister("w-1", None).await.unwrap();
            }
        }
        if end == "again" {
            // Within the old lead, under the old name: the new incarnation does not inherit it.
            let again = fleet.register("w-1", &[]).await.incarnation;
            assert_eq!(fleet.leads("w-1", me).await, None);
            last = fleet.leads("w-1", again).await.unwrap();
            assert!(last > term);
            continue;
        }
        let beat = Beat::new("w-2", Some(other));
        let pulse = fleet.instances.heartbeat(&beat).await.unwrap();
        assert_eq!(pulse.leader, None, "{end}");
        assert_eq!(fleet.instances.sweep(0).await.unwrap().leader, None);
        let named = fleet.register("w-3", &[]).await.leader;
        assert_eq!(named, None, "{end}");
        last = fleet.leads("w-2", other).await.unwrap();
        assert!(last > term, "{end}");
        // The one before learns it at its next call, whether it is alive or not.
        if end == "lapsed" {
            let contest = fleet.contend("w-1", me).await;
            assert_eq!(
                (contest.lead, contest.leader.as_deref()),
                (None, Some("w-2"))
            );
        }
        fleet.run("HSET cb:leader until 1000").await;
    }
    assert_eq!(fleet.elections().await.len(), 10);
}

#[tokio::test]
async fn a_lead_lasts_no_longer_than_the_pulse_that_it_was_renewed_with() {
    let mut fleet = Fleet::start().await;
    let me = fleet.register("w-1", &[]).await.incarnation;
    let term = fleet.leads("w-1", me).await.unwrap();
    let until = async |fleet: &mut Fleet| -> (u64, f64) {
        let until = fleet.ask("HGET cb:leader until").await;
        (until, fleet.ask("ZSCORE cb:instances:active w-1").await)
    };
    let (first, expiry) = until(&mut fleet).await;
    assert_eq!(first as f64, expiry);
    fleet
        .run("ZADD cb:instances:active XX 9000000000000 w-1")
        .await;
    assert_eq!(fleet.leads("w-1", me).await, Some(term));
    assert_eq!(until(&mut fleet).await.0, 9_000_000_000_000);
}

#[tokio::test]
async fn the_term_rises_after_a_flush_and_above_one_from_the_future() {
    let mut fleet = Fleet::with(Keys::tagged("cb", 4).unwrap()).await;
    let me = fleet.register("w-1", &[]).await.incarnation;
    let first = fleet.leads("w-1", me).await.unwrap();
    fleet.run("FLUSHALL").await;
    let me = fleet.register("w-1", &[]).await.incarnation;
    let second = fleet.leads("w-1", me).await.unwrap();
    assert!(second > first);
    let future = 4_000_000_000_000_000u64;
    fleet
        .run(&format!("HSET {{cb}}:leader until 0 term {future}"))
        .await;
    assert_eq!(fleet.leads("w-1", me).await, Some(future + 1));
    let keys = fleet.all_names().await;
    assert!(keys.iter().all(|key| key.starts_with("{cb}:")), "{keys:?}");
}

#[tokio::test]
async fn what_a_process_was_rises_though_the_data_is_lost_and_the_clock_steps_back() {
    let mut fleet = Fleet::on(Redis::with_a_clock(), keys()).await;
    let mut last = (0, 0);
    for step in [0, -3600] {
        fleet.redis.step_clock(step).await;
        fleet.run("FLUSHALL").await;
        let me = fleet.register("w-1", &[]).await.incarnation;
        let term = fleet.leads("w-1", me).await.unwrap();
        assert!(me > last.0 && term > last.1, "{step} s: {:?}", (me, term));
        last = (me, term);
    }
}

#[tokio::test]
async fn an_election_passes_while_the_memory_is_full() {
    let mut fleet = Fleet::start().await;
    let me = fleet.register("w-1", &[]).await.incarnation;
    fleet.run("CONFIG SET maxmemory 1").await;
    assert!(fleet.leads("w-1", me).await.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_all_who_contend_at_once_one_leads() {
    let mut fleet = Fleet::start().await;
    for round in 1..=10 {
        let mut contenders = Vec::new();
        for number in 0..8 {
            let id = format!("w-{round}-{number}");
            let incarnation = fleet.register(&id, &[]).await.incarnation;
            let instances = Fleet::seen_from(&fleet.redis, &fleet.keys);
            contenders.push(tokio::spawn(async move {
                instances.contend(&id, incarnation).await.unwrap()
            }));
        }
        let mut leads = 0;
        for contender in contenders {
            leads += usize::from(contender.await.unwrap().lead.is_some());
        }
        assert_eq!(leads, 1);
        assert_eq!(fleet.elections().await.len(), round);
        fleet.run("HSET cb:leader until 0").await;
    }
}

#[derive(Clone, Debug)]
enum Step {
    Register(usize),
    Unregister(usize),
    Pulse(usize),
    Expire(usize),
    Sweep,
    /// With the incarnation that it knew at first, or the present one.
    Contend(usize, bool),
    Lapse,
    Flush,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let who = 0..3usize;
    let step = prop_oneof![
        3 => who.clone().prop_map(Step::Register),
        1 => who.clone().prop_map(Step::Unregister),
        2 => who.clone().prop_map(Step::Pulse),
        2 => who.clone().prop_map(Step::Expire),
        1 => Just(Step::Sweep),
        6 => (who, prop::bool::weighted(0.2)).prop_map(|(who, old)| Step::Contend(who, old)),
        1 => Just(Step::Lapse),
        1 => Just(Step::Flush),
    ];
    prop::collection::vec(step, 1..60)
}

#[test]
fn terms_only_rise_and_each_has_one_leader() {
    random_histories(steps(), history);
}

async fn history(fleet: &mut Fleet, steps: Vec<Step>) {
    let mut first = [0; 3];
    let mut now = [0; 3];
    // Who had which term, and the highest so far.
    let mut leaders: BTreeMap<u64, (usize, u64)> = BTreeMap::new();
    for step in steps {
        match step {
            Step::Register(who) => {
                now[who] = fleet.register(&format!("w-{who}"), &[]).await.incarnation;
                if first[who] == 0 {
                    first[who] = now[who];
                }
            }
            Step::Unregister(who) => {
                let id = format!("w-{who}");
                fleet.instances.unregister(&id, None).await.unwrap();
            }
            Step::Pulse(who) => {
                let beat = Beat::new(format!("w-{who}"), Some(now[who]));
                fleet.instances.heartbeat(&beat).await.unwrap();
            }
            Step::Expire(who) => fleet.expire(&format!("w-{who}")).await,
            Step::Sweep => _ = fleet.instances.sweep(16).await.unwrap(),
            Step::Lapse => fleet.run("HSET cb:leader until 0").await,
            Step::Flush => fleet.run("FLUSHALL").await,
            Step::Contend(who, old) => {
                let incarnation = if old { first[who] } else { now[who] };
                if let Some(term) = fleet.leads(&format!("w-{who}"), incarnation).await {
                    let highest = leaders.keys().next_back().copied().unwrap_or(0);
                    assert!(term >= highest, "term {term} after {highest}");
                    let lead = leaders.entry(term).or_insert((who, incarnation));
                    assert_eq!(*lead, (who, incarnation), "two leaders at term {term}");
                }
            }
        }
    }
    let terms: Vec<u64> = fleet
        .elections()
        .await
        .iter()
        .map(|fact| fact["term"].as_u64().unwrap())
        .collect();
    assert!(terms.is_sorted_by(|a, b| a < b), "{terms:?}");
}
