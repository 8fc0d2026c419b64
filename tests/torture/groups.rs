//! The consumer group goes, or everything does: what is published meanwhile is not missed.

use crate::load;
use crate::outcomes::{self, Stored};
use crate::support::{Redis, torture, until};
use crate::world::{World, settings};
use convoke::client::Client;
use std::ops::Range;

async fn publish(world: &World, client: &Client, numbers: Range<u64>) {
    for n in numbers {
        load::publish(client, &world.history, n).await;
    }
}

/// Waits until each of them has an outcome, or more than one: nobody knows any more what was done.
async fn each_is_done(world: &World, numbers: Range<u64>) {
    outcomes::settled(world).await;
    until("each is done", || async {
        let stored = Stored::read(world).await;
        numbers.clone().all(|n| {
            let id = load::id(n);
            stored.results.contains_key(&id) || stored.dead.contains_key(&id)
        })
    })
    .await;
}

/// Runs a command while the workers stand still, and publishes before they go on.
async fn while_they_stand(world: &World, client: &Client, words: &[&str], numbers: Range<u64>) {
    for process in &world.workers {
        process.signal("STOP");
    }
    let mut connection = world.redis.connection().await;
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    command.exec_async(&mut connection).await.unwrap();
    publish(world, client, numbers).await;
    for process in &world.workers {
        process.signal("CONT");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_that_are_destroyed_miss_nothing_that_is_published_meanwhile() {
    let mut world = World::begin("groups", Redis::start(), 2, settings()).await;
    let (client, _wire) = world.client().await;
    publish(&world, &client, 0..100).await;
    each_is_done(&world, 0..100).await;
    let destroy = ["XGROUP", "DESTROY", "cb:events:load", "workers"];
    while_they_stand(&world, &client, &destroy, 100..150).await;
    each_is_done(&world, 100..150).await;
    while_they_stand(&world, &client, &["FLUSHALL"], 150..200).await;
    each_is_done(&world, 150..200).await;
    world.until_alive(2).await;
    world.drain().await;
    torture::Report::default()
        .fault(1, "groups destroyed")
        .fault(1, "databases flushed")
        .tell("groups");
}
