//! A worker stands still past its lease while events wait in its hands, unstarted: when it goes on it
//! neither starts nor settles what another one took meanwhile.

use crate::history;
use crate::outcomes;
use crate::support::fleet::tally;
use crate::support::{Redis, torture, until};
use crate::worker::note;
use crate::world::{World, settings};
use convoke::client::publish::Outgoing;
use convoke::worker::builder::Builder;
use convoke::{Context, HandlerError, Policy};
use std::collections::HashSet;
use std::time::Duration;

/// What each type's events wait for: a permit, their turn, the rate, their type's share of the slots.
const KINDS: [&str; 4] = ["held.permit", "held.turn", "held.rate", "held.share"];
/// Events of each type that wait; one more runs, except for the share.
const WAITING: u64 = 8;
/// Slots of a lane; not all of the last type's events have one.
const SLOTS: usize = 8;

/// Who has an event first holds it until it is told that it is not its own any more.
async fn hold(context: Context, (): ()) -> Result<(), HandlerError> {
    note(&context, "invoke")?;
    if context.deliveries() == 1 && !context.event().id().starts_with("last") {
        context.cancellation().cancelled().await;
    }
    note(&context, "ok")
}

pub(crate) fn handlers(builder: Builder) -> Builder {
    let policy = || Policy::new().no_timeout();
    builder
        .handler_with("held.permit", hold, policy().concurrency(1))
        .handler_with("held.turn", hold, policy().ordered())
        .handler_with(
            "held.rate",
            hold,
            policy().rate_limit(1, Duration::from_millis(250)),
        )
        .handler_with("held.share", hold, policy())
}

async fn publish(world: &World, name: &str, kinds: &[&str], count: u64) -> HashSet<String> {
    let (client, _wire) = world.client().await;
    let mut ids = HashSet::new();
    for kind in kinds {
        for n in 0..count {
            let id = format!("{name}-{kind}-{n}");
            let event = Outgoing::new(*kind, &()).subject("s").id(&id);
            client.publish(&event).await.unwrap();
            ids.insert(id);
        }
    }
    ids
}

/// The events that were begun by that worker.
fn begun(world: &World, worker: &str) -> HashSet<String> {
    let records = history::all(&world.dir).into_iter();
    let of_worker = format!("{worker}/");
    let runs = records.filter(|record| record.op == "run" && record.phase == "invoke");
    let runs = runs.filter(|record| record.process.starts_with(&of_worker));
    runs.map(|record| record.id).collect()
}

async fn results(world: &World) -> u64 {
    let results = tally(&world.redis, "cb:results:held", "correlationid").await;
    results.values().map(|count| u64::from(*count)).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn held_events_of_a_worker_that_stood_still_are_left_to_who_took_them() {
    let mut settings = settings();
    settings.concurrency = SLOTS;
    let mut world = World::begin("held", Redis::start(), 0, settings).await;
    world.start_with_handlers(1).await;
    let events = publish(&world, "first", &KINDS, WAITING + 1).await;
    let mut connection = world.redis.connection().await;
    until("all are in its hands, and some run", || {
        let mut connection = connection.clone();
        let runs = begun(&world, "w-1");
        let runs = KINDS.map(|kind| runs.iter().any(|id| id.contains(kind)));
        async move {
            let group = redis::cmd("XPENDING")
                .arg(&["cb:events:held", "workers"])
                .query_async::<(u64, redis::Value, redis::Value, redis::Value)>(&mut connection)
                .await;
            let pending = group.map_or(0, |group| group.0);
            pending == KINDS.len() as u64 * (WAITING + 1) && !runs.contains(&false)
        }
    })
    .await;
    world.workers[0].signal("STOP");
    until("it stands still", || async {
        world.workers[0].stands_still()
    })
    .await;
    let before = begun(&world, "w-1");
    world.start_another("w-2").await;
    let all = events.len() as u64;
    until("another one has done them all", || async {
        results(&world).await == all
    })
    .await;
    world.workers[1].signal("TERM");
    world.workers[1].ended().await;
    let last = publish(&world, "last", &KINDS, 1).await;
    world.workers[0].signal("CONT");
    let done = all + last.len() as u64;
    // They stand behind what waited in the same queues.
    until("it has done what came after", || async {
        results(&world).await == done
    })
    .await;
    outcomes::settled_in(&world, "held").await;
    let mut after = begun(&world, "w-1");
    after.retain(|id| !before.contains(id));
    assert_eq!(after, last, "it started what another one had done");
    let results = tally(&world.redis, "cb:results:held", "correlationid").await;
    assert!(results.values().all(|count| *count == 1), "{results:?}");
    assert_eq!(results.len() as u64, done);
    let dead: u64 = redis::cmd("EXISTS")
        .arg("cb:dead:held")
        .query_async(&mut connection)
        .await
        .unwrap();
    assert_eq!(dead, 0);
    world.workers.pop();
    world.drain().await;
    torture::Report::default()
        .fault(1, "stop of a worker in whose hands events waited")
        .event(all - before.len() as u64, "of them left to who took them")
        .tell("held");
}
