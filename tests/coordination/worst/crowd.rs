//! Many instances: who is there, who can do what, pulses, observations.

use super::meter::Meter;
use super::seed::{FAR, KINDS, ROLES, Seed, Seeded, kind, role};
use crate::fleet::Fleet;
use convoke::connect::connector::Connector;
use convoke::coordination::catalog::Catalog;
use convoke::coordination::instances::gossip::{Observed, Opinion};
use convoke::coordination::instances::instance::{Beat, MAX_OBSERVED, Registering};
use convoke::coordination::instances::{SWEEP, Seal};
use convoke::coordination::metrics::{HandlerSums, MAX_HANDLERS, Report};
use convoke::coordination::view::View;
use convoke::protocol::histogram::{BUCKETS, Histogram};
use convoke::settings::RedisUrl;
use std::collections::BTreeSet;
use std::time::Duration;

const CROWD: usize = 10_000;
const OBSERVERS: usize = 32;

fn ids(what: &str, count: usize) -> impl Iterator<Item = String> {
    (0..count).map(move |n| format!("{what}-{n:05}"))
}

pub(super) async fn drive(fleet: &mut Fleet, meter: &mut Meter) {
    looks(fleet, meter).await;
    observes(fleet, meter).await;
    pulses(fleet, meter).await;
    clock_back(fleet, meter).await;
}

/// Looking, where half of very many have expired, and half of the rest are suspects.
async fn looks(fleet: &mut Fleet, meter: &mut Meter) {
    let keys = fleet.keys.clone();
    let mut seed = Seed::afresh(fleet).await;
    seed.scored(&keys.active(), FAR, ids("alive", CROWD)).await;
    seed.scored(&keys.active(), 1000, ids("late", CROWD)).await;
    for which in ["alive", "late"] {
        let score = if which == "alive" { FAR } else { 1000 };
        seed.scored(&keys.external(), score, ids(which, 500)).await;
        let members = ids(which, CROWD).map(|id| format!("{} {id}", kind(0)));
        seed.scored(&keys.capabilities(), 0, members).await;
        for group_of in [kind(0), kind(1)] {
            let readers = keys.readers("workers", &group_of);
            seed.scored(&readers, FAR, ids("late", CROWD)).await;
        }
    }
    for number in 1..KINDS {
        let members = ids("late", 10).map(|id| format!("{} {id}", kind(number)));
        seed.scored(&keys.capabilities(), 0, members).await;
    }
    seed.scored(&keys.suspects(), FAR, ids("alive", CROWD / 2))
        .await;
    seed.scored(&keys.lost(), 1000, ids("lost", CROWD)).await;
    seed.done().await;
    let instances = &fleet.instances;
    let connector = Connector::new(&RedisUrl::new(fleet.redis.url()), 4).unwrap();
    let view = View::new(connector.clone(), keys.clone());
    let catalog = Catalog::new(connector, keys);
    meter
        .of(&fleet.redis, async {
            instances.capable(&kind(0)).await.unwrap();
            let (this, besides) = (kind(0), kind(1));
            for besides in [None, Some(besides.as_str())] {
                let reader = instances.reader("workers", &this, besides, "nobody");
                reader.await.unwrap();
            }
            catalog.discover(None).await.unwrap();
            instances.watch_partition().await.unwrap();
            instances.census().await.unwrap();
            view.version().await.unwrap();
            instances.sweep(SWEEP).await.unwrap();
        })
        .await;
}

/// One that suspects as many as it may, each of whom as many observers have said something of.
async fn observes(fleet: &mut Fleet, meter: &mut Meter) {
    let keys = fleet.keys.clone();
    fleet.run("FLUSHALL").await;
    fleet.register("w-0", &["worker"]).await;
    let mut seed = Seed::more(fleet);
    seed.scored(&keys.active(), FAR, ids("seen", MAX_OBSERVED))
        .await;
    seed.scored(&keys.active(), FAR, ids("by", OBSERVERS)).await;
    for peer in ids("seen", MAX_OBSERVED) {
        let mut said = redis::cmd("HSET");
        said.arg(keys.reports(&peer));
        for observer in ids("by", OBSERVERS) {
            said.arg(observer).arg(format!("s{FAR}"));
        }
        seed.add(said).await;
    }
    seed.done().await;
    let observed: Observed = ids("seen", MAX_OBSERVED)
        .map(|peer| (peer, Opinion::Suspect))
        .collect();
    let lost = meter
        .of(
            &fleet.redis,
            fleet.instances.observe("w-0", None, &observed),
        )
        .await;
    assert_eq!(lost.unwrap().len(), MAX_OBSERVED);
}

/// All that a pulse may tell, where all that it adds to is as large as it may be.
async fn pulses(fleet: &mut Fleet, meter: &mut Meter) {
    fleet.run("FLUSHALL").await;
    let mut registering = Registering::new("w-0", (0..ROLES).map(role));
    registering.capabilities = (0..KINDS).map(kind).collect();
    let registered = fleet.instances.register(&registering).await.unwrap();
    let seal = Seal {
        digest: registered.seal,
        roles: registering.roles.into_iter().collect(),
        capabilities: registering
            .capabilities
            .into_iter()
            .collect::<BTreeSet<_>>(),
    };
    let mut report = Report {
        process: "process-0".into(),
        ..Report::default()
    };
    for number in 0..MAX_HANDLERS {
        report.handlers.insert(kind(number), HandlerSums::default());
    }
    // As many buckets of each handler fit into one report.
    const TOLD: u16 = 15;
    let mut pulse = async |first: u16, round: u64| {
        for sums in report.handlers.values_mut() {
            sums.calls += 1;
            let told = (0..TOLD).map(|n| ((first + n) % BUCKETS, round));
            sums.latency = Some(Histogram {
                counts: told.collect(),
                sum: round,
            });
        }
        report.sums.latency = report.handlers[&kind(0)].latency.clone().unwrap();
        let beat = Beat {
            metrics: Some(report.clone()),
            load: Some(1.0),
            seal: Some(seal.clone()),
            ..Beat::new("w-0", None)
        };
        assert!(fleet.instances.heartbeat(&beat).await.unwrap().alive);
        let (instances, incarnation) = (&fleet.instances, registered.incarnation);
        instances.contend("w-0", incarnation).await.unwrap();
    };
    for round in 0..BUCKETS / TOLD {
        pulse(round * TOLD, 1).await;
    }
    for round in 1..4 {
        meter
            .of(&fleet.redis, pulse(round * TOLD, 10 + u64::from(round)))
            .await;
    }
}

/// After the clock went back every expiry lies too far ahead.
async fn clock_back(fleet: &mut Fleet, meter: &mut Meter) {
    let mut seed = Seed::afresh(fleet).await;
    for id in ids("far", 500) {
        seed.instance(&Seeded {
            id: &id,
            roles: &[],
            kinds: &[],
            expires: FAR,
            assigned: 0,
            capacity: 0,
        })
        .await;
    }
    seed.done().await;
    let ttl = Duration::from_secs(30);
    let shortened = meter.of(&fleet.redis, fleet.instances.shorten(ttl)).await;
    assert!(shortened.unwrap() > 0);
}
