//! Who owns a partition, and the fence that each change of owner raises.

use crate::support::{Redis, keys};
use convoke::connect::clock::ClockSource;
use convoke::streams::own::{self, Looked, OwnKeys, Owner, Taking};
use redis::aio::MultiplexedConnection;
use std::time::Duration;

const TTL: Duration = Duration::from_secs(60);
const ANY: u64 = 1 << 53;

struct World {
    /// Ends the server.
    redis: Redis,
    connection: MultiplexedConnection,
    keys: OwnKeys,
}

impl World {
    async fn new() -> Self {
        let redis = Redis::start();
        let connection = redis.connection().await;
        let keys = OwnKeys::of(&keys(), "image", 0, "workers");
        Self {
            redis,
            connection,
            keys,
        }
    }

    async fn take(&mut self, taking: Taking<'_>) -> Option<u64> {
        let taken = own::take(&mut self.connection, &self.keys, taking).await;
        taken.unwrap()
    }

    async fn look(&mut self) -> Looked {
        let keys = [self.keys.clone()];
        let looked = own::look(&mut self.connection, ClockSource::Time, &keys).await;
        looked.unwrap()
    }

    async fn owner(&mut self) -> Option<Owner> {
        self.look().await.owners.remove(0).unwrap()
    }

    async fn renew(&mut self, process: &str, fence: u64) -> bool {
        let lease = [(self.keys.clone(), fence)];
        let renewed = own::renew(&mut self.connection, process, TTL, &lease).await;
        renewed.unwrap()[0]
    }

    async fn leave(&mut self, process: &str, fence: u64) -> bool {
        let left = own::leave(&mut self.connection, &self.keys, process, fence).await;
        left.unwrap()
    }

    async fn run<T: redis::FromRedisValue>(&mut self, words: &[&str]) -> T {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        command.query_async(&mut self.connection).await.unwrap()
    }
}

/// By the first process of an instance.
fn of(instance: &str) -> Taking<'_> {
    Taking {
        instance,
        process: instance,
        ttl: TTL,
        ended: None,
        until: ANY,
        replaces: false,
    }
}

#[tokio::test]
async fn a_partition_that_nobody_owns_is_taken_by_one_and_each_owner_has_a_higher_fence() {
    let mut world = World::new().await;
    assert_eq!(world.owner().await, None);
    let first = world.take(of("a")).await.unwrap();
    assert_eq!(world.take(of("b")).await, None);
    let owner = world.owner().await.unwrap();
    assert_eq!(
        (&*owner.instance, &*owner.process, owner.ttl),
        ("a", "a", TTL)
    );
    // Again, as the answer was lost.
    let again = world.take(of("a")).await.unwrap();
    assert!(again > first, "{again} {first}");
    assert!(!world.leave("b", again).await && !world.leave("a", first).await);
    assert!(world.owner().await.is_some());
    assert!(world.leave("a", again).await && !world.leave("a", again).await);
    assert_eq!(world.owner().await, None);
    let next = world.take(of("b")).await.unwrap();
    assert!(next > again, "{next} {again}");
}

#[tokio::test]
async fn another_one_takes_it_only_where_it_saw_the_lease_that_is_there_end() {
    let mut world = World::new().await;
    let first = world.take(of("a")).await.unwrap();
    let seen = world.owner().await.unwrap();
    world
        .run::<()>(&["HSET", &world.keys.owner.clone(), "till", "7"])
        .await;
    let with = |ended| Taking { ended, ..of("b") };
    assert_eq!(world.take(with(Some(&seen))).await, None, "it was renewed");
    let seen = world.owner().await.unwrap();
    let late = Taking {
        until: 7,
        ..with(Some(&seen))
    };
    assert_eq!(world.take(late).await, None, "the call is too old");
    let next = world.take(with(Some(&seen))).await.unwrap();
    assert!(next > first);
    assert!(!world.renew("a", first).await);
    assert!(world.renew("b", next).await);
    assert!(!world.renew("b", first).await);
}

#[tokio::test]
async fn a_process_takes_the_place_of_another_one_of_its_instance_where_it_says_so() {
    let mut world = World::new().await;
    let first = world.take(of("a")).await.unwrap();
    let new = |replaces| Taking {
        process: "a-2",
        replaces,
        ..of("a")
    };
    assert_eq!(world.take(new(false)).await, None);
    assert!(world.take(new(true)).await.unwrap() > first);
    assert!(!world.renew("a", first).await);
}

#[tokio::test]
async fn a_renewal_lasts_for_a_ttl_from_then_on_and_both_keys_lapse_where_nobody_renews_them() {
    let mut world = World::new().await;
    let fence = world.take(of("a")).await.unwrap();
    let key = world.keys.owner.clone();
    world.run::<()>(&["HSET", &key, "till", "7"]).await;
    assert!(world.renew("a", fence).await);
    let looked = world.look().await;
    let owner = looked.owners[0].clone().unwrap().unwrap();
    let left = owner.left(looked.now);
    assert!(left > TTL / 2 && left <= TTL, "{left:?}");
    for key in [world.keys.owner.clone(), world.keys.fence.clone()] {
        let lives: i64 = world.run(&["PTTL", &key]).await;
        assert!(lives > 6 * 24 * 3_600_000, "{key}: {lives}");
    }
}

#[tokio::test]
async fn a_fence_rises_though_the_server_forgot_it() {
    let mut world = World::new().await;
    let first = world.take(of("a")).await.unwrap();
    // Its clock may be set back a little just then.
    let mut next = 0;
    while next <= first {
        world.run::<()>(&["FLUSHALL"]).await;
        assert!(!world.renew("a", first).await);
        next = world.take(of("b")).await.unwrap();
    }
    // And though its clock went back.
    let high = (1_u64 << 52).to_string();
    world
        .run::<()>(&["SET", &world.keys.fence.clone(), &high])
        .await;
    world.run::<()>(&["DEL", &world.keys.owner.clone()]).await;
    assert_eq!(world.take(of("a")).await, Some((1 << 52) + 1));
}

#[tokio::test]
async fn what_is_no_owner_is_told_and_hides_no_other_one() {
    let mut world = World::new().await;
    let other = OwnKeys::of(&keys(), "image", 0, "others");
    own::take(&mut world.connection, &other, of("a"))
        .await
        .unwrap();
    world
        .run::<()>(&["SET", &world.keys.owner.clone(), "x"])
        .await;
    let keys = [world.keys.clone(), other];
    let looked = own::look(&mut world.connection, ClockSource::Time, &keys).await;
    let owners = looked.unwrap().owners;
    assert!(
        owners[0].as_ref().unwrap_err().contains("WRONGTYPE"),
        "{owners:?}"
    );
    assert!(owners[1].as_ref().unwrap().is_some(), "{owners:?}");
    drop(world.redis);
}
