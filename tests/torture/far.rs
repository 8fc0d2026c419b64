//! Workers a long way off, each with several commits under way: they are killed and stopped, and nothing is lost,
//! nothing is done twice, nothing of a subject is done before what comes before it.

use crate::kills::{live, schedule};
use crate::load::Load;
use crate::support::proxy::Mode;
use crate::support::{self, Redis, torture};
use crate::worker::{BESIDES, note};
use crate::world::{LEASE, World, settings};
use crate::{facts, hygiene, outcomes};
use convoke::protocol::json;
use convoke::worker::builder::Builder;
use convoke::{Context, HandlerError, Policy};
use redis::aio::MultiplexedConnection;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// A way of 2 to 4 ms to the server and back.
const FAR: Mode = Mode::Far(1);
/// Subjects of which all steps keep their order.
const SUBJECTS: u64 = 20;
/// Lanes of a worker, with one connection each for commits beside the server.
const LANES: usize = 3;

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Step {
    n: u64,
    ms: u64,
}

pub(crate) fn handlers(builder: Builder) -> Builder {
    let policy = Policy::new().ordered().concurrency(64);
    builder.handler_with("far.step", step, policy)
}

async fn step(context: Context, step: Step) -> Result<u64, HandlerError> {
    note(&context, "invoke")?;
    if step.ms > 0 {
        tokio::time::sleep(Duration::from_millis(step.ms)).await;
    }
    context.publish("effect.stepped", &step.n)?;
    note(&context, "ok")?;
    Ok(step.n)
}

/// Connections that committed last, of those that the server has: their last command reads the claim counters.
async fn committing(connection: &MultiplexedConnection) -> usize {
    let mut connection = connection.clone();
    let mut list = redis::cmd("CLIENT");
    let clients = list.arg("LIST").query_async(&mut connection).await;
    let clients: String = clients.unwrap_or_default();
    let reads = clients.lines().filter(|line| line.contains(" cmd=mget "));
    reads.count()
}

/// Until there are more of them than a worker beside its server has.
async fn until_several(world: &World, workers: usize) {
    let connection = world.redis.connection().await;
    support::until("several commits are under way at a time", || {
        let connection = connection.clone();
        async move { committing(&connection).await > LANES * workers }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_a_long_way_off_lose_nothing_and_zombies_commit_nothing_twice() {
    let kills = torture::size("TORTURE_FAR_KILLS", 20, 400);
    let stops = torture::size("TORTURE_FAR_ZOMBIES", 12, 120);
    let rate = torture::size("TORTURE_RATE", 500, 1000);
    let mut world = World::begin("far", Redis::start(), 0, settings()).await;
    for number in 1..=4 {
        let mut process = world.process(format!("w-{number}")).await;
        process.proxy.set(FAR);
        process.start();
        world.workers.push(process);
    }
    world.until_alive(4).await;
    let (client, _wire) = world.client().await;
    let load = Load::start(client, world.history.clone(), rate);
    until_several(&world, 4).await;
    let mut lives = Vec::new();
    for (number, process) in std::mem::take(&mut world.workers).into_iter().enumerate() {
        let share = |all: u64| all / 4 + u64::from((number as u64) < all % 4);
        let acts = schedule(&format!("far {number}"), share(kills), share(stops));
        lives.push(tokio::spawn(live(process, acts, world.history.clone())));
    }
    for life in lives {
        world.workers.push(life.await.unwrap());
    }
    let events = load.stop().await;
    let counts = outcomes::check(&world, &events).await;
    facts::rise(&world).await;
    let left = hygiene::check(&world).await;
    world.drain().await;
    counts
        .tell(torture::Report::default())
        .fault(kills, "kills of workers far from their server")
        .fault(stops, "zombies far from it")
        .note(format!("{} lines of log in 10 s at most", left.lines))
        .tell("far");
}

/// Publishes steps, those of each subject in order, until told to stop; how many.
async fn publish(mut connection: MultiplexedConnection, stop: CancellationToken) -> u64 {
    let mut dice = torture::dice("far steps");
    let mut n = 0;
    while !stop.is_cancelled() {
        let mut pipe = redis::pipe();
        for _ in 0..10 {
            let ms = if dice.bool() { 0 } else { dice.u64(0..4) };
            let data = json::from_json(&serde_json::json!({"n": n, "ms": ms}));
            pipe.cmd("XADD").arg("cb:events:far").arg("*");
            pipe.arg("type").arg("far.step").arg("data").arg(data);
            pipe.arg("subject").arg(format!("s-{}", n % SUBJECTS));
            n += 1;
        }
        pipe.exec_async(&mut connection).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    n
}

/// What was done of each subject, in the order in which it was.
async fn stepped(redis: &Redis) -> HashMap<u64, Vec<u64>> {
    let mut connection = redis.connection().await;
    let range = redis::cmd("XRANGE")
        .arg(&["cb:events:effect", "-", "+"])
        .to_owned();
    let entries = range.query_async(&mut connection).await.unwrap();
    let mut of_each: HashMap<u64, Vec<u64>> = HashMap::new();
    for entry in convoke::streams::read::entries_of(entries).unwrap() {
        let n: u64 = rmp_serde::from_slice(entry.get("data").unwrap()).unwrap();
        of_each.entry(n % SUBJECTS).or_default().push(n);
    }
    of_each
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_done_of_a_subject_a_long_way_off_is_done_in_its_order_however_often_its_worker_dies()
 {
    let kills = torture::size("TORTURE_FAR_ORDERED_KILLS", 12, 200);
    let mut world = World::begin("far", Redis::start(), 0, settings()).await;
    let mut process = world.process("w-1".to_owned()).await;
    process.environment = vec![(BESIDES, "far".to_owned())];
    process.proxy.set(FAR);
    process.start();
    world.workers.push(process);
    world.until_alive(1).await;
    let (stop, connection) = (CancellationToken::new(), world.redis.connection().await);
    let publishing = tokio::spawn(publish(connection, stop.clone()));
    let mut dice = torture::dice("far kills");
    for kill in 0..kills {
        until_several(&world, 1).await;
        tokio::time::sleep(Duration::from_millis(dice.u64(50..500))).await;
        let process = &mut world.workers[0];
        if kill % 3 == 2 {
            process.signal("STOP");
            tokio::time::sleep(LEASE.mul_f64(0.3 + 2.0 * dice.f64())).await;
            process.signal("CONT");
        } else {
            process.kill();
            // The same name: it takes its own back before it reads anything new.
            process.start();
        }
    }
    stop.cancel();
    let published = publishing.await.unwrap();
    outcomes::settled_in(&world, "far").await;
    let stepped = stepped(&world.redis).await;
    let done: usize = stepped.values().map(Vec::len).sum();
    let mut inversions = Vec::new();
    for (subject, steps) in &stepped {
        let expected: Vec<u64> = (*subject..published).step_by(SUBJECTS as usize).collect();
        let wrong = steps.windows(2).filter(|two| two[0] >= two[1]);
        inversions.extend(wrong.map(<[u64]>::to_vec));
        let mut sorted = steps.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, expected, "each step of s-{subject} once");
    }
    assert!(inversions.is_empty(), "{inversions:?}");
    assert_eq!(done as u64, published);
    world.drain().await;
    torture::Report::default()
        .fault(
            kills,
            "kills and stops of an ordered worker far from its server",
        )
        .event(published, "steps of subjects, each once and in order")
        .event(0, "inversions")
        .tell("far");
}
