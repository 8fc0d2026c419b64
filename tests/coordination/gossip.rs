//! What instances say of each other, and what becomes of it.

use crate::fleet::{Fleet, random_histories};
use convoke::coordination::error::CoordinationError;
use convoke::coordination::instances::gossip::{Observed, Opinion, PING, WATCHED};
use convoke::coordination::instances::instance::{Beat, Registering};
use convoke::protocol::keys::Keys;
use proptest::prelude::*;
use serde_json::json;
use std::collections::BTreeSet;

use Opinion::{Healthy, Suspect};

impl Fleet {
    async fn with_instances(count: usize) -> Self {
        let fleet = Self::start().await;
        for number in 1..=count {
            fleet.register(&format!("w-{number}"), &["worker"]).await;
        }
        fleet
    }

    /// Who was lost by what it said.
    async fn say(&self, observer: &str, peer: &str, opinion: Opinion) -> Vec<String> {
        let observed: Observed = [(peer.to_owned(), opinion)].into();
        self.instances
            .observe(observer, None, &observed)
            .await
            .unwrap()
    }

    async fn pulse(&self, id: &str) -> Vec<String> {
        let beat = Beat::new(id, None);
        let pulse = self.instances.heartbeat(&beat).await.unwrap();
        pulse.watch.into_iter().map(|peer| peer.id).collect()
    }

    async fn suspects(&self) -> Vec<String> {
        let listed = self.instances.list().await.unwrap().into_iter();
        let mut ids: Vec<String> = listed.filter(|is| is.suspect).map(|is| is.id).collect();
        ids.sort();
        let census = self.instances.census().await.unwrap();
        assert_eq!(census.suspect, ids.len() as u64);
        ids
    }

    async fn losses(&mut self) -> Vec<String> {
        let facts = self.facts().await.into_iter();
        let lost = facts.filter(|(kind, _)| kind == "instance.lost");
        lost.map(|(_, data)| data["id"].as_str().unwrap().to_owned())
            .collect()
    }
}

const NONE: [&str; 0] = [];

#[tokio::test]
async fn one_report_makes_suspect_and_a_second_makes_lost_with_the_fact() {
    let mut fleet = Fleet::with_instances(4).await;
    assert_eq!(fleet.say("w-1", "w-4", Suspect).await, NONE);
    assert_eq!(fleet.suspects().await, ["w-4"]);
    // The same voice again is one voice.
    assert_eq!(fleet.say("w-1", "w-4", Suspect).await, NONE);
    assert_eq!(fleet.say("w-2", "w-4", Suspect).await, ["w-4"]);
    assert_eq!(fleet.losses().await, ["w-4"]);
    assert_eq!(fleet.suspects().await, NONE);
    assert_eq!(fleet.members("worker").await, ["w-1", "w-2", "w-3"]);
    let census = fleet.instances.census().await.unwrap();
    assert_eq!((census.active, census.recently_lost), (3, 1));
    assert_eq!(fleet.ask::<u32>("EXISTS cb:reports:w-4").await, 0);
    // It learns that it must register again, with a higher incarnation.
    let beat = Beat::new("w-4", None);
    assert!(!fleet.instances.heartbeat(&beat).await.unwrap().alive);
}

#[tokio::test]
async fn half_of_the_voices_are_no_majority() {
    let mut fleet = Fleet::with_instances(6).await;
    for healthy in ["w-1", "w-2"] {
        fleet.say(healthy, "w-6", Healthy).await;
    }
    for suspecting in ["w-3", "w-4"] {
        assert_eq!(fleet.say(suspecting, "w-6", Suspect).await, NONE);
    }
    assert_eq!(fleet.suspects().await, ["w-6"]);
    assert_eq!(fleet.say("w-5", "w-6", Suspect).await, ["w-6"]);
    assert_eq!(fleet.losses().await, ["w-6"]);
}

#[tokio::test]
async fn a_suspicion_ends_when_the_voice_is_taken_back_lapses_or_goes_away() {
    let mut fleet = Fleet::with_instances(4).await;
    fleet.say("w-1", "w-4", Suspect).await;
    fleet.say("w-2", "w-4", Healthy).await;
    assert_eq!(fleet.suspects().await, ["w-4"], "another one's word");
    fleet.say("w-1", "w-4", Healthy).await;
    assert_eq!(fleet.suspects().await, NONE);
    // Lapsed: nobody has to do anything about it.
    fleet.say("w-1", "w-4", Suspect).await;
    fleet.run("ZADD cb:instances:suspect 1000 w-4").await;
    assert_eq!(fleet.suspects().await, NONE);
    fleet.run("HSET cb:reports:w-4 w-1 s1000").await;
    assert_eq!(fleet.say("w-2", "w-4", Suspect).await, NONE, "one voice");
    // Who spoke is gone.
    assert!(
        fleet
            .instances
            .unregister("w-2", None)
            .await
            .unwrap()
            .unregistered
    );
    assert_eq!(fleet.say("w-3", "w-4", Suspect).await, NONE, "one voice");
    fleet.expire("w-3").await;
    assert_eq!(fleet.say("w-1", "w-4", Healthy).await, NONE);
    assert_eq!(fleet.suspects().await, NONE);
    assert!(fleet.losses().await.is_empty());
    assert!(fleet.ask::<i64>("PTTL cb:reports:w-4").await > 0);
}

#[tokio::test]
async fn a_pulse_takes_all_voices_back_and_so_does_registering_anew() {
    let fleet = Fleet::with_instances(4).await;
    fleet.say("w-1", "w-4", Suspect).await;
    fleet.pulse("w-4").await;
    assert_eq!(fleet.suspects().await, NONE);
    assert_eq!(fleet.say("w-2", "w-4", Suspect).await, NONE);
    fleet.instances.unregister("w-4", None).await.unwrap();
    fleet.register("w-4", &[]).await;
    assert_eq!(fleet.suspects().await, NONE);
    assert_eq!(fleet.say("w-3", "w-4", Suspect).await, NONE);
    assert_eq!(fleet.say("w-1", "w-4", Suspect).await, ["w-4"]);
}

#[tokio::test]
async fn what_strangers_say_and_what_is_said_of_strangers_or_of_oneself_is_ignored() {
    let mut fleet = Fleet::with_instances(4).await;
    let before = fleet.all_keys().await;
    fleet.say("w-9", "w-4", Suspect).await;
    fleet.say("w-1", "w-8", Suspect).await;
    fleet.say("w-1", "w-1", Suspect).await;
    fleet.expire("w-2").await;
    fleet.say("w-2", "w-4", Suspect).await;
    fleet.say("w-1", "w-2", Suspect).await;
    let observed: Observed = [("w-4".to_owned(), Suspect)].into();
    let lost = fleet.instances.observe("w-1", Some(1), &observed).await;
    assert!(lost.unwrap().is_empty(), "another incarnation");
    assert_eq!(fleet.all_keys().await, before);
    assert_eq!(fleet.suspects().await, NONE);
}

#[tokio::test]
async fn reports_are_bounded() {
    let mut fleet = Fleet::with_instances(0).await;
    for number in 0..40 {
        fleet.register(&format!("o-{number:02}"), &[]).await;
    }
    fleet.register("w-1", &[]).await;
    for number in 0..36 {
        fleet.say(&format!("o-{number:02}"), "w-1", Healthy).await;
    }
    assert_eq!(fleet.ask::<u32>("HLEN cb:reports:w-1").await, 32);
    // Those who are counted may change their mind; others have no voice until one of them is gone.
    fleet.say("o-39", "w-1", Suspect).await;
    assert_eq!(fleet.suspects().await, NONE);
    fleet.instances.unregister("o-00", None).await.unwrap();
    fleet.say("o-39", "w-1", Suspect).await;
    assert_eq!(fleet.suspects().await, ["w-1"]);
    let many: Observed = (0..65).map(|n| (format!("o-{n}"), Healthy)).collect();
    let error = fleet.instances.observe("w-1", None, &many).await;
    assert!(
        matches!(&error, Err(CoordinationError::Invalid(text)) if text.starts_with("observed: ")),
        "{error:?}"
    );
}

#[tokio::test]
async fn voices_count_while_the_memory_is_full_and_under_hash_tags() {
    let mut fleet = Fleet::with(Keys::tagged("cb", 4).unwrap()).await;
    for id in ["w-1", "w-2", "w-3"] {
        fleet.register(id, &["worker"]).await;
    }
    fleet.run("CONFIG SET maxmemory 1").await;
    fleet.say("w-1", "w-3", Suspect).await;
    assert_eq!(fleet.say("w-2", "w-3", Suspect).await, ["w-3"]);
    let keys = fleet.all_names().await;
    assert!(keys.iter().all(|key| key.starts_with("{cb}:")), "{keys:?}");
}

#[tokio::test]
async fn each_watches_the_next_ones_in_the_ring_and_is_watched_by_as_many() {
    let fleet = Fleet::start().await;
    let ids: Vec<String> = (0..7).map(|number| format!("w-{number}")).collect();
    for id in &ids {
        let mut registering = Registering::new(id, ["worker"]);
        registering.capabilities = vec![PING.into(), "system.pinged".into(), "a.b".into()];
        fleet.instances.register(&registering).await.unwrap();
    }
    // It answers no pings, so nobody watches it; it may watch.
    fleet.register("w-35", &[]).await;
    assert_eq!(fleet.pulse("w-35").await, ["w-4", "w-5", "w-6"]);
    assert_eq!(fleet.pulse("w-5").await, ["w-6", "w-0", "w-1"]);
    let mut watchers: Vec<usize> = vec![0; ids.len()];
    for id in &ids {
        for peer in fleet.pulse(id).await {
            watchers[ids.iter().position(|known| *known == peer).unwrap()] += 1;
        }
    }
    assert_eq!(watchers, [WATCHED; 7]);
    for id in &ids[2..] {
        fleet.instances.unregister(id, None).await.unwrap();
    }
    assert_eq!(fleet.pulse("w-0").await, ["w-1"]);
    let beat = Beat::new("w-0", None);
    let peer = &fleet.instances.heartbeat(&beat).await.unwrap().watch[0];
    let left = peer.left.as_millis();
    assert!((1..=30_000).contains(&left), "{left}");
}

#[tokio::test]
async fn partition_facts_alternate_with_hysteresis() {
    let mut fleet = Fleet::with_instances(10).await;
    let look = async |fleet: &Fleet| {
        let partition = fleet.instances.watch_partition().await.unwrap();
        let census = fleet.instances.census().await.unwrap();
        assert_eq!(census.is_partitioned(), partition.is);
        (partition.was, partition.is)
    };
    assert_eq!(look(&fleet).await, (false, false));
    for number in 1..=5 {
        fleet.expire(&format!("w-{number}")).await;
    }
    assert_eq!(look(&fleet).await, (false, false), "half");
    fleet.say("w-7", "w-6", Suspect).await;
    assert!(fleet.instances.sweep(0).await.unwrap().partition_turns);
    assert_eq!(look(&fleet).await, (false, true));
    assert!(!fleet.instances.sweep(0).await.unwrap().partition_turns);
    assert_eq!(look(&fleet).await, (true, true), "told once");
    fleet.instances.sweep(16).await.unwrap();
    assert_eq!(look(&fleet).await, (true, true), "lost or expired");
    fleet.pulse("w-6").await;
    fleet.register("w-1", &[]).await;
    fleet.register("w-2", &[]).await;
    assert_eq!(look(&fleet).await, (true, true), "70 %");
    fleet.register("w-3", &[]).await;
    assert!(fleet.instances.sweep(0).await.unwrap().partition_turns);
    assert_eq!(look(&fleet).await, (true, false), "80 %");
    assert_eq!(look(&fleet).await, (false, false), "told once");
    let facts = fleet.facts().await.into_iter();
    let told: Vec<_> = facts
        .filter(|(kind, _)| kind.starts_with("partition"))
        .collect();
    let expected = [
        (
            "partition.detected".into(),
            json!({"healthy": 4, "total": 10}),
        ),
        (
            "partition.healed".into(),
            json!({"healthy": 8, "total": 10}),
        ),
    ];
    assert_eq!(told, expected);
    // Who unregisters is not missed.
    for number in 1..=8 {
        let id = format!("w-{number}");
        fleet.instances.unregister(&id, None).await.unwrap();
    }
    let partition = fleet.instances.watch_partition().await.unwrap();
    assert_eq!((partition.healthy, partition.total), (2, 4));
    assert!(!partition.is);
}

#[derive(Clone, Debug)]
enum Step {
    Say(usize, usize, bool),
    Pulse(usize),
    Register(usize),
    Unregister(usize),
    Expire(usize),
    Sweep,
    Look,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let who = 0..5usize;
    let step = prop_oneof![
        8 => (who.clone(), who.clone(), prop::bool::weighted(0.6))
            .prop_map(|(a, b, healthy)| Step::Say(a, b, !healthy)),
        2 => who.clone().prop_map(Step::Pulse),
        2 => who.clone().prop_map(Step::Register),
        1 => who.clone().prop_map(Step::Unregister),
        1 => who.prop_map(Step::Expire),
        1 => Just(Step::Sweep),
        2 => Just(Step::Look),
    ];
    prop::collection::vec(step, 1..60)
}

/// Any history: one observer never ends a lease, and the facts of partitions alternate.
#[test]
fn one_observer_never_kills_and_partitions_begin_and_end_in_turn() {
    random_histories(steps(), history);
}

async fn history(fleet: &mut Fleet, steps: Vec<Step>) {
    let id = |who: usize| format!("w-{who}");
    // Who suspects whom, by the rule: the last word, until the peer pulses or starts again.
    let mut suspecting: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); 5];
    for step in steps {
        match step {
            Step::Say(who, peer, suspect) => {
                let opinion = if suspect { Suspect } else { Healthy };
                if suspect {
                    suspecting[peer].insert(who);
                } else {
                    suspecting[peer].remove(&who);
                }
                let lost = fleet.say(&id(who), &id(peer), opinion).await;
                assert!(lost.len() <= 1 && lost.iter().all(|lost| *lost == id(peer)));
                if !lost.is_empty() {
                    let count = suspecting[peer].len();
                    assert!(count >= 2, "{peer} lost by {count}");
                    suspecting[peer].clear();
                }
            }
            Step::Pulse(who) => {
                let beat = Beat::new(id(who), None);
                if fleet.instances.heartbeat(&beat).await.unwrap().alive {
                    suspecting[who].clear();
                }
            }
            Step::Register(who) => {
                if fleet.register(&id(who), &[]).await.new {
                    suspecting[who].clear();
                }
            }
            Step::Unregister(who) => {
                _ = fleet.instances.unregister(&id(who), None).await.unwrap();
            }
            Step::Expire(who) => fleet.expire(&id(who)).await,
            Step::Sweep => _ = fleet.instances.sweep(16).await.unwrap(),
            Step::Look => _ = fleet.instances.watch_partition().await.unwrap(),
        }
    }
    let facts = fleet.fact_names().await.into_iter();
    let told: Vec<String> = facts.filter(|kind| kind.starts_with("partition")).collect();
    for (at, kind) in told.iter().enumerate() {
        let expected = ["partition.detected", "partition.healed"][at % 2];
        assert_eq!(kind, expected, "{told:?}");
    }
}

/// Looking at each of very many would hold up the server.
#[tokio::test]
async fn of_very_many_suspects_the_first_tell_how_many_count() {
    let mut fleet = Fleet::start().await;
    let far = 4_000_000_000_000u64;
    let all = || 0..1000u64;
    let seed = async |fleet: &mut Fleet, key: &str, ids: Vec<u64>| {
        let members: Vec<String> = ids.iter().map(|n| format!("{} i-{n}", far + n)).collect();
        fleet
            .run(&format!("ZADD cb:instances:{key} {}", members.join(" ")))
            .await;
    };
    // A quarter is gone, another one external.
    seed(&mut fleet, "suspect", all().collect()).await;
    seed(&mut fleet, "active", all().filter(|n| n % 4 > 0).collect()).await;
    seed(
        &mut fleet,
        "external",
        all().filter(|n| n % 4 == 1).collect(),
    )
    .await;
    let census = fleet.instances.census().await.unwrap();
    assert_eq!(
        (census.suspect, census.active, census.external),
        (500, 500, 250)
    );
    let partition = fleet.instances.watch_partition().await.unwrap();
    assert_eq!(
        (partition.healthy, partition.total, partition.is),
        (0, 500, true)
    );
}
