//! Who lives by what its neighbours find.

use crate::fleet::Fleet;
use convoke::coordination::instances::gossip::PING;
use convoke::coordination::instances::instance::{Beat, Registering};
use std::time::Duration;

const TTL: u64 = 30_000;

impl Fleet {
    async fn in_the_ring(&self, id: &str) -> u64 {
        let mut registering = Registering::new(id, ["worker"]);
        registering.capabilities = vec![PING.to_owned()];
        let registered = self.instances.register(&registering).await;
        registered.unwrap().incarnation
    }

    /// How long it lives after its last own pulse.
    async fn lasts(&mut self, id: &str) -> u64 {
        let expires: f64 = self.ask(&format!("ZSCORE cb:instances:active {id}")).await;
        let seen: u64 = self.ask(&format!("HGET cb:instance:{id} last_seen")).await;
        expires as u64 - seen
    }
}

fn lasting(id: &str) -> Beat {
    Beat {
        lasting: true,
        ..Beat::new(id, None)
    }
}

#[tokio::test]
async fn a_pulse_lasts_for_three_ttls_where_neighbours_ask_and_for_one_after_the_next_that_does_not()
 {
    let mut fleet = Fleet::start().await;
    fleet.in_the_ring("w-1").await;
    assert_eq!(fleet.lasts("w-1").await, TTL);
    let pulse = fleet.instances.heartbeat(&lasting("w-1")).await.unwrap();
    assert_eq!((pulse.alive, pulse.ttl_ms), (true, 3 * TTL));
    assert_eq!(fleet.lasts("w-1").await, 3 * TTL);
    let left = fleet.instances.look_around("w-1").await.unwrap().left;
    assert!(left > Some(Duration::from_millis(2 * TTL)), "{left:?}");
    // An event has no neighbours that ask.
    let external = Registering::new("x-1", ["worker"]);
    fleet.asked().register(&external).await.unwrap();
    fleet.asked().heartbeat(&lasting("x-1")).await.unwrap();
    assert_eq!(fleet.lasts("x-1").await, TTL);
    // The clock went back: no pulse reaches further than that.
    let shorten = Duration::from_millis(TTL);
    fleet.run("ZINCRBY cb:instances:active -5000 w-1").await;
    assert_eq!(fleet.instances.shorten(shorten).await.unwrap(), 0);
    fleet.run("ZINCRBY cb:instances:active 3600000 w-1").await;
    assert_eq!(fleet.instances.shorten(shorten).await.unwrap(), 1);
    let left = fleet.instances.look_around("w-1").await.unwrap().left;
    let three = Duration::from_millis(3 * TTL);
    let most = three + Duration::from_secs(5);
    assert!(left > Some(three / 2) && left <= Some(most), "{left:?}");
    let beat = Beat::new("w-1", None);
    fleet.instances.heartbeat(&beat).await.unwrap();
    assert_eq!(fleet.lasts("w-1").await, TTL);
}

#[tokio::test]
async fn neighbours_are_the_next_three_in_the_ring_and_the_silent_are_told_from_those_who_pulse() {
    let mut fleet = Fleet::start().await;
    for id in ["w-1", "w-2", "w-3", "w-4", "w-5"] {
        fleet.in_the_ring(id).await;
    }
    // It answers nobody.
    fleet.register("w-9", &["worker"]).await;
    let near = async |id: &str| fleet.instances.look_around(id).await.unwrap().neighbours;
    assert_eq!(near("w-1").await, ["w-2", "w-3", "w-4"]);
    assert_eq!(near("w-4").await, ["w-5", "w-1", "w-2"]);
    assert_eq!(near("w-9").await, ["w-1", "w-2", "w-3"]);
    let other = Fleet::seen_from(&fleet.redis, &fleet.keys);
    let seen = other.look_around("w-1").await.unwrap();
    assert_eq!(seen.left, None, "the lease is another process's");
    fleet.run("HINCRBY cb:instance:w-2 last_seen -20000").await;
    let ids = ["w-1", "w-2", "nobody"].map(str::to_owned);
    let silent = fleet.instances.silent(&ids).await.unwrap();
    let [Some(first), Some(second), None] = silent[..] else {
        panic!("{silent:?}");
    };
    let ttl = Duration::from_millis(TTL);
    assert_eq!((first.ttl, second.ttl), (ttl, ttl));
    assert!(first.time < second.time, "{silent:?}");
    assert!(second.time >= Duration::from_secs(20), "{silent:?}");
    // Whoever is warned finds itself suspect, until it pulses.
    let warned = [("w-2".to_owned(), ttl)];
    fleet.instances.warn(&warned).await.unwrap();
    let around = fleet.instances.look_around("w-2").await.unwrap();
    assert!(around.suspect && around.left.is_some());
    fleet.instances.heartbeat(&lasting("w-2")).await.unwrap();
    assert!(!fleet.instances.look_around("w-2").await.unwrap().suspect);
    assert!(!fleet.instances.look_around("w-1").await.unwrap().suspect);
}
