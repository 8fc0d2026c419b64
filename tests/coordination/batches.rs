//! Batches: every branch of the scripts.

mod lease;
mod shared;

use crate::fleet::Fleet;
use crate::support::{Redis, beside_control, keys, users};
use convoke::connect::connector::Connector;
use convoke::connect::error::BusError;
use convoke::coordination::batches::batch::{BatchPlan, BatchStatus, MAX_FAILURES, Mode};
use convoke::coordination::batches::{
    Acquired, Advanced, Asker, BatchProgress, Batches, FinishedItem, LISTED,
};
use convoke::coordination::error::CoordinationError;
use convoke::protocol::keys::Keys;
use convoke::settings::RedisUrl;
use convoke::streams::commit::Publication;
use redis::AsyncCommands;
use serde_json::json;
use std::time::Duration;

pub(crate) const LEASE: Duration = Duration::from_secs(30);

pub(crate) fn batches(fleet: &Fleet) -> Batches {
    let connector = Connector::new(&RedisUrl::new(fleet.redis.url()), 4).unwrap();
    Batches::new(connector, fleet.keys.clone())
}

pub(crate) fn wanted(id: &str, total: usize) -> BatchPlan {
    let items: Vec<Vec<u8>> = (0..total).map(|n| vec![n as u8]).collect();
    BatchPlan::new(id, "number.add", Mode::Exclusive, &items, 30_000).unwrap()
}

/// An asker whose run, entry and event all have that name.
pub(crate) fn asker<'a>(instance: &'a str, name: &'a str) -> Asker<'a> {
    Asker {
        instance,
        run: name,
        entry: name,
        deliveries: 1,
        event: name,
        may_hold: true,
    }
}

pub(crate) fn ok(indexes: impl IntoIterator<Item = usize>) -> Vec<FinishedItem> {
    let outcomes = indexes.into_iter().map(|index| FinishedItem {
        index,
        failure: None,
    });
    outcomes.collect()
}

pub(crate) fn failed(index: usize, message: &str) -> FinishedItem {
    FinishedItem {
        index,
        failure: Some(("not_found", message.to_owned())),
    }
}

async fn hold(batches: &Batches, wanted: &BatchPlan, asker: Asker<'_>) -> (BatchProgress, Vec<u8>) {
    match batches.acquire(wanted, asker).await.unwrap() {
        Acquired::Held(progress, finished) => (progress, finished),
        other => panic!("not held: {other:?}"),
    }
}

async fn running(
    batches: &Batches,
    wanted: &BatchPlan,
    fence: u64,
    done: &[FinishedItem],
) -> BatchProgress {
    match batches.progress(wanted, fence, done, &[]).await.unwrap() {
        Advanced::Running(progress) => progress,
        other => panic!("not running: {other:?}"),
    }
}

#[tokio::test]
async fn the_step_that_commits_the_last_item_completes_the_batch_and_says_so() {
    let mut fleet = Fleet::start().await;
    let batches = batches(&fleet);
    let wanted = wanted("b-1", 3);
    let (held, _) = hold(&batches, &wanted, asker("w-1", "e-1")).await;
    running(&batches, &wanted, held.fence, &ok([2])).await;
    let last = [failed(0, "no such number"), ok([1]).remove(0)];
    let done = batches
        .progress(&wanted, held.fence, &last, &[])
        .await
        .unwrap();
    let Advanced::Completed(progress) = done.clone() else {
        panic!("{done:?}");
    };
    assert_eq!((progress.processed, progress.failed), (2, 1));
    let again = batches
        .progress(&wanted, held.fence, &last, &[])
        .await
        .unwrap();
    assert_eq!(again, done, "the same call again");
    assert!(batches.renew("b-1", held.fence, LEASE).await.unwrap());
    // Whoever asks gets the result.
    let asked = batches.acquire(&wanted, asker("w-2", "e-2")).await.unwrap();
    assert_eq!(asked, Acquired::Completed(progress));
    let facts = fleet.facts().await;
    let fact = json!({"batch_id": "b-1", "processor_id": "w-1", "items_processed": 2,
        "items_failed": 1, "total": 3, "fence": held.fence,
        "failures": [{"index": 0, "code": "not_found", "message": "no such number"}]});
    assert_eq!(facts.last().unwrap(), &("batch.completed".into(), fact));
    assert_eq!(
        facts
            .iter()
            .filter(|(kind, _)| kind == "batch.completed")
            .count(),
        1
    );
    assert_eq!(fleet.ask::<u64>("EXISTS cb:batch:b-1:finished").await, 0);
    let ttl: i64 = fleet.ask("PTTL cb:batch:b-1").await;
    assert!((86_000_000..=86_400_000).contains(&ttl), "{ttl}");
    let found = batches.find("b-1").await.unwrap().unwrap();
    assert_eq!(
        (found.status, found.processed, found.failed),
        (BatchStatus::Completed, 2, 1)
    );
    assert_eq!(
        (found.mode, found.item_type.as_str()),
        (Mode::Exclusive, "number.add")
    );
    assert_eq!(found.failures[0].message, "no such number");
    assert_eq!(
        (found.failures[0].index, found.failures[0].code.as_str()),
        (0, "not_found")
    );
}

#[tokio::test]
async fn a_cancelled_batch_is_nobodys_any_more_and_keeps_what_was_finished() {
    let mut fleet = Fleet::start().await;
    let batches = batches(&fleet);
    let unknown = batches.cancel("b-1", "ann", "").await.unwrap_err();
    assert!(
        matches!(unknown, CoordinationError::NotFound(_)),
        "{unknown}"
    );
    let refused = batches.cancel("b 1", "ann", "").await.unwrap_err();
    assert!(
        matches!(refused, CoordinationError::Invalid(_)),
        "{refused}"
    );
    let wanted = wanted("b-1", 3);
    let (held, _) = hold(&batches, &wanted, asker("w-1", "e-1")).await;
    running(&batches, &wanted, held.fence, &ok([2])).await;
    let version: u64 = fleet.ask("HGET cb:state version").await;
    let cancelled = batches.cancel("b-1", "ann", "it hangs").await.unwrap();
    assert_eq!(cancelled.status, BatchStatus::Cancelled);
    assert_eq!(
        (cancelled.progress.processed, cancelled.progress.total),
        (1, 3)
    );
    assert!(fleet.ask::<u64>("HGET cb:state version").await > version);
    // Whoever held it commits nothing more, and nobody goes on: neither its own entry nor another's.
    let late = batches
        .progress(&wanted, held.fence, &ok([0, 1]), &[])
        .await;
    assert!(matches!(late.unwrap(), Advanced::Lost(_)));
    assert!(!batches.renew("b-1", held.fence, LEASE).await.unwrap());
    for asked in [asker("w-1", "e-1"), asker("w-2", "e-2")] {
        let told = batches.acquire(&wanted, asked).await.unwrap();
        assert_eq!(told, Acquired::Cancelled("ann: it hangs".into()));
    }
    // Again it says by whom.
    let again = batches.cancel("b-1", "bob", "me too").await.unwrap();
    assert_eq!(again, cancelled);
    assert_eq!(
        (again.by.as_str(), again.reason.as_str()),
        ("ann", "it hangs")
    );
    let found = batches.find("b-1").await.unwrap().unwrap();
    assert_eq!((found.status, found.processed), (BatchStatus::Cancelled, 1));
    assert_eq!(found.cancelled, Some(("ann".into(), "it hangs".into())));
    let facts = fleet.facts().await;
    let told: Vec<_> = facts
        .iter()
        .filter(|(kind, _)| kind == "batch.cancelled")
        .collect();
    let fact = json!({"batch_id": "b-1", "processor_id": "w-1", "items_processed": 1, "items_failed": 0,
        "total": 3, "fence": found.fence, "by": "ann", "reason": "it hangs"});
    assert_eq!(told, [&("batch.cancelled".to_owned(), fact)]);
    for key in ["cb:batch:b-1", "cb:batch:b-1:finished"] {
        let ttl: i64 = fleet.ask(&format!("PTTL {key}")).await;
        assert!((86_000_000..=86_400_000).contains(&ttl), "{key}: {ttl}");
    }
    // One that is completed stays so.
    let whole = BatchPlan::new("b-2", "number.add", Mode::Exclusive, &[], 30_000).unwrap();
    batches.acquire(&whole, asker("w-1", "e-3")).await.unwrap();
    let late = batches.cancel("b-2", "ann", "").await.unwrap();
    assert_eq!(
        (late.status, late.by.as_str()),
        (BatchStatus::Completed, "")
    );
}

#[tokio::test]
async fn an_empty_batch_is_completed_when_it_is_asked_for() {
    let mut fleet = Fleet::start().await;
    let batches = batches(&fleet);
    let done = batches
        .acquire(&wanted("b-1", 0), asker("w-1", "e-1"))
        .await
        .unwrap();
    assert!(matches!(done, Acquired::Completed(progress) if progress.total == 0));
    assert_eq!(
        fleet.fact_names().await,
        ["batch.started", "batch.completed"]
    );
}

#[tokio::test]
async fn the_same_id_with_another_content_is_refused() {
    let mut fleet = Fleet::start().await;
    let batches = batches(&fleet);
    let (held, _) = hold(&batches, &wanted("b-1", 1), asker("w-1", "e-1")).await;
    let differs = async || match batches
        .acquire(&wanted("b-1", 2), asker("w-2", "e-2"))
        .await
    {
        Err(CoordinationError::AlreadyExists(message)) => message,
        other => panic!("{other:?}"),
    };
    assert!(differs().await.starts_with("batch_id: b-1 "));
    fleet.run("HSET cb:batch:b-1 expires 0").await;
    differs().await;
    batches
        .progress(&wanted("b-1", 1), held.fence, &ok([0]), &[])
        .await
        .unwrap();
    differs().await;
}

#[tokio::test]
async fn an_item_counts_once_and_what_it_published_is_stored_once_with_it() {
    let mut fleet = Fleet::start().await;
    let batches = batches(&fleet);
    let wanted = wanted("b-1", 5);
    let (held, _) = hold(&batches, &wanted, asker("w-1", "e-1")).await;
    let effect = |stream: &str, n: u8| Publication {
        stream: stream.into(),
        fields: vec![
            b"type".to_vec(),
            b"effect.made".to_vec(),
            b"data".to_vec(),
            vec![n],
        ],
    };
    let names = ["effect", "other", "broken"].map(|it| beside_control(&format!("cb:events:{it}")));
    let [made, other, broken] = &names;
    let effects = [effect(made, 0), effect(other, 1), effect(made, 2)];
    for _ in 0..2 {
        let done = batches
            .progress(&wanted, held.fence, &ok([0, 1, 2]), &effects)
            .await;
        assert!(matches!(done.unwrap(), Advanced::Running(p) if p.processed == 3));
    }
    let length = async |fleet: &mut Fleet, stream: &str| -> u64 {
        fleet.ask(&format!("XLEN {stream}")).await
    };
    assert_eq!(length(&mut fleet, made).await, 2);
    assert_eq!(length(&mut fleet, other).await, 1);
    // No stream: nothing is changed.
    fleet.run(&format!("SET {broken} 1")).await;
    let unwritable = [effect(made, 3), effect(broken, 3)];
    match batches
        .progress(&wanted, held.fence, &ok([3]), &unwritable)
        .await
    {
        Err(CoordinationError::FailedPrecondition(message)) => {
            assert!(message.contains(broken), "{message}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(length(&mut fleet, made).await, 2);
    assert_eq!(batches.find("b-1").await.unwrap().unwrap().processed, 3);
    // Out of its bounds.
    let beyond = batches.progress(&wanted, held.fence, &ok([5]), &[]).await;
    assert!(matches!(beyond, Err(CoordinationError::Invalid(_))));
}

#[tokio::test]
async fn failures_are_all_counted_and_the_first_hundred_recorded() {
    let fleet = Fleet::start().await;
    let batches = batches(&fleet);
    let wanted = wanted("b-1", 200);
    let (held, _) = hold(&batches, &wanted, asker("w-1", "e-1")).await;
    let long = "é".repeat(300);
    let outcomes: Vec<FinishedItem> = (0..150).map(|n| failed(n, &long)).collect();
    let progress = running(&batches, &wanted, held.fence, &outcomes).await;
    assert_eq!((progress.processed, progress.failed), (0, 150));
    let failures = batches.failures("b-1").await.unwrap();
    assert_eq!(failures.len(), MAX_FAILURES);
    assert!(
        failures
            .iter()
            .enumerate()
            .all(|(n, failure)| failure.index == n)
    );
    assert_eq!(failures[0].message.len(), 256);
}

#[tokio::test]
async fn progress_is_told_at_most_a_few_times_a_second() {
    let mut fleet = Fleet::start().await;
    let batches = batches(&fleet);
    let wanted = wanted("b-1", 200);
    let now = async |fleet: &mut Fleet| {
        let (seconds, micros): (u64, u64) = fleet.ask("TIME").await;
        seconds * 1000 + micros / 1000
    };
    let begun = now(&mut fleet).await;
    let (held, _) = hold(&batches, &wanted, asker("w-1", "e-1")).await;
    for n in 0..100 {
        running(&batches, &wanted, held.fence, &ok([n])).await;
    }
    let elapsed = now(&mut fleet).await - begun;
    let told = fleet.facts().await.len() as u64;
    assert!(told <= 1 + elapsed / 250, "{told} in {elapsed} ms");
    fleet.run("HSET cb:batch:b-1 told 1000").await;
    running(&batches, &wanted, held.fence, &ok([100])).await;
    let (kind, data) = fleet.facts().await.pop().unwrap();
    assert_eq!(
        (kind.as_str(), &data["items_processed"]),
        ("batch.progress", &json!(101))
    );
}

#[tokio::test]
async fn what_is_known_of_the_items_ends_with_the_batch_and_never_counts_for_the_next_of_its_id() {
    let mut fleet = Fleet::start().await;
    let batches = batches(&fleet);
    let wanted = wanted("b-1", 3);
    let (held, _) = hold(&batches, &wanted, asker("w-1", "e-1")).await;
    running(&batches, &wanted, held.fence, &ok([0, 2])).await;
    let (batch, finished) = (fleet.keys.batch("b-1"), fleet.keys.batch_finished("b-1"));
    let left = |key: &str| redis::cmd("PTTL").arg(key).to_owned();
    let of_batch: i64 = left(&batch)
        .query_async(&mut fleet.connection)
        .await
        .unwrap();
    let of_items: i64 = left(&finished)
        .query_async(&mut fleet.connection)
        .await
        .unwrap();
    assert!(of_items > 0 && of_items <= of_batch, "{of_items}");
    // As at its expiry, if the other key were still there.
    let mut gone = redis::cmd("DEL");
    gone.arg(&batch)
        .exec_async(&mut fleet.connection)
        .await
        .unwrap();
    let (next, finished) = hold(&batches, &wanted, asker("w-2", "e-2")).await;
    assert_eq!((next.processed, finished), (0, Vec::new()));
    let progress = running(&batches, &wanted, next.fence, &ok([0])).await;
    assert_eq!(progress.processed, 1);
}

#[tokio::test]
async fn running_and_recent_batches_are_listed_up_to_a_limit() {
    let mut fleet = Fleet::with(Keys::tagged("cb", 4).unwrap()).await;
    let batches = batches(&fleet);
    for n in 0..5 {
        let id = format!("b-{n}");
        hold(&batches, &wanted(&id, 2), asker("w-1", &id)).await;
        // Apart, wherever the clock steps.
        fleet
            .run(&format!("ZADD {{cb}}:batches {} {id}", n + 1))
            .await;
    }
    let ids = async |limit| {
        let listed = batches.list(limit).await.unwrap();
        listed.into_iter().map(|batch| batch.id).collect::<Vec<_>>()
    };
    assert_eq!(ids(3).await, ["b-4", "b-3", "b-2"]);
    assert_eq!(ids(0).await, Vec::<String>::new());
    fleet.run("DEL {cb}:batch:b-3").await;
    assert_eq!(ids(usize::MAX).await, ["b-4", "b-2", "b-1", "b-0"]);
    assert_eq!(batches.find("b-3").await.unwrap(), None);
    assert!(matches!(
        batches.find("a b").await,
        Err(CoordinationError::Invalid(_))
    ));
    // Full: the one that changed least recently goes.
    for n in 0..LISTED {
        fleet
            .run(&format!("ZADD {{cb}}:batches 9000000000000 old-{n}"))
            .await;
    }
    fleet.run("ZADD {cb}:batches 1000 oldest").await;
    hold(&batches, &wanted("b-9", 1), asker("w-1", "b-9")).await;
    assert_eq!(fleet.ask::<usize>("ZCARD {cb}:batches").await, LISTED);
    assert_eq!(
        fleet.ask::<Option<f64>>("ZSCORE {cb}:batches oldest").await,
        None
    );
}

/// What one call of the script costs the server, in µs.
async fn cost(fleet: &mut Fleet, calls: u64) -> f64 {
    let info: String = fleet.ask("INFO commandstats").await;
    let line = info
        .lines()
        .find(|line| line.starts_with("cmdstat_evalsha:"));
    let usec = line.unwrap().split("usec=").nth(1).unwrap();
    let usec: f64 = usec.split(',').next().unwrap().parse().unwrap();
    fleet.run("CONFIG RESETSTAT").await;
    usec / calls as f64
}

#[tokio::test]
#[ignore = "measures: run it alone, with --no-capture"]
async fn what_the_script_costs_does_not_grow_with_the_number_of_batches() {
    const CALLS: u64 = 1000;
    let mut costs = Vec::new();
    println!(
        "other batches | acquire | progress, 1 item | progress, 32 items | progress, the last item | µs a call"
    );
    for others in [10, 100, 1000] {
        let mut fleet = Fleet::start().await;
        let batches = batches(&fleet);
        for n in 0..others {
            let id = format!("other-{n}");
            let (held, _) = hold(&batches, &wanted(&id, 100), asker("w-1", &id)).await;
            running(&batches, &wanted(&id, 100), held.fence, &ok(0..50)).await;
        }
        fleet.run("CONFIG RESETSTAT").await;
        let mut held = Vec::new();
        for n in 0..CALLS {
            let wanted = wanted(&format!("b-{n}"), 65);
            let (progress, _) = hold(&batches, &wanted, asker("w-1", "e-1")).await;
            held.push((wanted, progress.fence));
        }
        let acquire = cost(&mut fleet, CALLS).await;
        let mut row = vec![acquire];
        for items in [0..1, 1..33, 33..65] {
            for (wanted, fence) in &held {
                batches
                    .progress(wanted, *fence, &ok(items.clone()), &[])
                    .await
                    .unwrap();
            }
            row.push(cost(&mut fleet, CALLS).await);
        }
        let figures: Vec<String> = row.iter().map(|cost| format!("{cost:.1}")).collect();
        println!("{others} | {}", figures.join(" | "));
        costs.push(row);
    }
    for (few, many) in costs[0].iter().zip(&costs[2]) {
        assert!(*many < 3.0 * few, "{few} µs became {many} µs");
    }
}

#[tokio::test]
async fn replies_are_removed_only_where_the_batch_was_completed() {
    if users::skip_without("INFO") {
        return;
    }
    let mut redis = Redis::durable();
    let keys = keys();
    let connector = Connector::new(&RedisUrl::new(redis.url()), 4).unwrap();
    let batches = Batches::new(connector.clone(), keys.clone());
    let streams = [1, 2].map(|n| keys.reply("load", 0, &format!("batch-{n}")));
    for stream in &streams {
        let mut add = redis::cmd("XADD");
        add.arg(stream).arg("*").arg("status").arg("ok");
        add.exec_async(&mut redis.connection().await).await.unwrap();
    }
    let left = async |redis: &Redis| -> usize {
        let mut connection = redis.connection().await;
        connection.exists(&streams[..]).await.unwrap()
    };
    assert_eq!(batches.find("b-1").await.unwrap(), None);
    let epoch = connector.epoch();
    redis.restart();
    let refused = batches.within(epoch).forget_replies(&streams).await;
    let other = CoordinationError::Bus(BusError::OtherEpoch);
    assert_eq!(refused.unwrap_err().to_string(), other.to_string());
    assert_eq!(left(&redis).await, 2);
    let now = connector.epoch();
    assert!(batches.check_epoch(epoch).is_err() && batches.check_epoch(now).is_ok());
    batches.within(now).forget_replies(&streams).await.unwrap();
    assert_eq!(left(&redis).await, 0);
}

#[tokio::test]
async fn the_items_of_a_batch_go_to_as_many_partitions_as_when_it_began_whoever_goes_on_with_it() {
    let fleet = Fleet::start().await;
    let batches = batches(&fleet);
    let plan = wanted("b-1", 1);
    let acquired = batches.acquire(&plan, asker("w-1", "r-1")).await;
    assert!(matches!(acquired.unwrap(), Acquired::Held(..)));
    assert_eq!(batches.partitions("b-1", 2).await.unwrap(), 2);
    assert_eq!(batches.partitions("b-1", 8).await.unwrap(), 2);
}
