//! Many tasks over workers of different capacity that are killed, stopped and joined.

#[path = "../support/mod.rs"]
mod support;

use convoke::connect::connector::Connector;
use convoke::coordination::instances::Instances;
use convoke::coordination::instances::instance::Registering;
use convoke::coordination::tasks::task::NewTask;
use convoke::coordination::tasks::{Assignment, Tasks};
use convoke::protocol::keys::Keys;
use convoke::settings::RedisUrl;
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};
use support::fleet::{self, Fleet, TTL, each_entry, tally};
use support::{Redis, signal, torture, until};
use tokio_util::sync::CancellationToken;

/// Of the first ten workers.
const CAPACITIES: [u32; 10] = [2, 4, 6, 8, 10, 12, 14, 16, 18, 20];
/// What a task takes.
const TASK_MS: u64 = 150;

#[test]
fn a_worker_process() {
    fleet::worker_process(|worker| worker.handler("load.work", fleet::work));
}

fn rules(redis: &Redis) -> (Instances, Tasks) {
    let connector = Connector::new(&RedisUrl::new(redis.url()), 4).unwrap();
    let keys = Keys::new("cb").unwrap();
    let tasks = Tasks::new(connector.clone(), keys.clone());
    (Instances::of_process(connector, keys, "test"), tasks)
}

/// How many tasks each instance holds.
async fn held(redis: &Redis) -> HashMap<String, u32> {
    let mut connection = redis.connection().await;
    held_by(&mut connection).await
}

async fn held_by(connection: &mut redis::aio::MultiplexedConnection) -> HashMap<String, u32> {
    let members: Vec<String> = redis::cmd("ZRANGE")
        .arg(&["cb:tasks:held", "0", "-1"])
        .query_async(connection)
        .await
        .unwrap();
    let mut held = HashMap::new();
    for member in members {
        let (instance, _) = member.split_once(' ').unwrap();
        *held.entry(instance.to_owned()).or_default() += 1;
    }
    held
}

/// Instances of these capacities, times 20, without processes.
async fn members(redis: &Redis) -> Tasks {
    let (instances, tasks) = rules(redis);
    for (number, capacity) in CAPACITIES.iter().enumerate() {
        let mut registering = Registering::new(format!("w-{number}"), ["worker"]);
        registering.capacity = 20 * capacity;
        registering.ttl_ms = 600_000;
        instances.register(&registering).await.unwrap();
    }
    tasks
}

/// Between the lowest load and the highest.
fn spread(loads: &[f64]) -> f64 {
    let least = loads.iter().copied().fold(f64::INFINITY, f64::min);
    loads.iter().copied().fold(0.0, f64::max) - least
}

#[tokio::test]
async fn load_stays_in_proportion_to_capacity() {
    let redis = Redis::start();
    let tasks = members(&redis).await;
    let total: u32 = CAPACITIES.iter().map(|capacity| 20 * capacity).sum();
    let smallest = f64::from(20 * CAPACITIES[0]);
    // No two loads may differ by more than one task of the smallest instance.
    let loads = async || -> Vec<f64> {
        let held = held(&redis).await;
        let each = CAPACITIES.iter().enumerate().map(|(number, capacity)| {
            let holds = held.get(&format!("w-{number}")).copied().unwrap_or(0);
            f64::from(holds) / f64::from(20 * capacity)
        });
        each.collect()
    };
    let mut apart = 0f64;
    for count in 1..=total / 2 {
        let task = NewTask::new(format!("t-{count}"), "load.work");
        tasks.create(&task).await.unwrap();
        if count % 20 == 0 {
            apart = apart.max(spread(&loads().await));
        }
    }
    // As many end at random as come.
    fastrand::seed(torture::seed());
    let mut held: Vec<String> = (1..=total / 2).map(|count| format!("t-{count}")).collect();
    for round in 0..30 {
        let burst = fastrand::usize(1..150);
        for _ in 0..burst {
            let id = held.swap_remove(fastrand::usize(..held.len()));
            let task = tasks.get(&id).await.unwrap().unwrap().task;
            let assignment = Assignment {
                task: id,
                instance: task.instance.unwrap(),
                fence: task.fence.unwrap(),
            };
            tasks.complete(&assignment, &[0xc0], &[]).await.unwrap();
        }
        for count in 0..burst {
            let id = format!("u-{round}-{count}");
            tasks.create(&NewTask::new(&id, "load.work")).await.unwrap();
            held.push(id);
        }
        apart = apart.max(spread(&loads().await));
    }
    println!(
        "10 instances of capacity 40 to 400: loads at most {:.2} % of the capacity apart",
        100.0 * apart
    );
    assert!(apart <= 1.0 / smallest + 1e-9, "{apart} apart");
}

/// Looks again and again whether anyone holds more than it may; how often it looked, and how full the
/// five that are left alone were while others waited.
async fn watch(
    mut redis: redis::aio::MultiplexedConnection,
    capacity: tokio::sync::watch::Receiver<HashMap<String, u32>>,
    stop: CancellationToken,
) -> (u64, f64) {
    let (mut looks, mut held_sum, mut room_sum) = (0, 0, 0);
    while !stop.is_cancelled() {
        let held = held_by(&mut redis).await;
        let waiting: u64 = redis::cmd("ZCARD")
            .arg("cb:tasks:queue")
            .query_async(&mut redis)
            .await
            .unwrap();
        let capacity = capacity.borrow().clone();
        for (id, count) in &held {
            let most = capacity.get(id);
            assert!(
                most.is_none_or(|most| count <= most),
                "{id} holds {count} of {most:?}"
            );
        }
        // From when all of them are there.
        if waiting > 0 && held.len() >= CAPACITIES.len() {
            held_sum += (1..=5)
                .filter_map(|n| held.get(&format!("w-{n}")))
                .sum::<u32>();
            room_sum += CAPACITIES[..5].iter().sum::<u32>();
        }
        looks += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    (looks, f64::from(held_sum) / f64::from(room_sum.max(1)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_task_is_completed_once_however_workers_die_stand_still_and_join() {
    let count = torture::size("TORTURE_TASKS", 4000, 10_000);
    let kills = torture::size("TORTURE_TASK_KILLS", 10, 40);
    let stops = torture::size("TORTURE_TASK_STOPS", 4, 20);
    fastrand::seed(torture::seed());
    let redis = Redis::start();
    let (_, tasks) = rules(&redis);
    for number in 0..count {
        let mut task = NewTask::new(format!("t-{number}"), "load.work");
        task.payload = rmp_serde::to_vec_named(&json!({"n": number, "ms": TASK_MS})).unwrap();
        task.priority = (number % 3 * 50) as u8;
        task.max_attempts = 50;
        tasks.create(&task).await.unwrap();
    }
    let began = Instant::now();
    let mut fleet = Fleet::with(&redis, &CAPACITIES);
    let mut known = fleet.capacities();
    let (tell, capacity) = tokio::sync::watch::channel(known.clone());
    let stop = CancellationToken::new();
    let watching = tokio::spawn(watch(redis.connection().await, capacity, stop.clone()));

    until("work has begun", || async {
        tasks.counts().await.unwrap().completed > 100
    })
    .await;

    let (mut killed, mut stopped, mut joined) = (0, 0, 0);
    let mut disturbed = HashSet::new();
    while killed < kills || stopped < stops {
        // The first half of the workers stay as they are.
        let index = 5 + fastrand::usize(..fleet.len() - 5);
        if stopped < stops {
            let pid = fleet.pid(index);
            signal(pid, "STOP");
            tokio::time::sleep(TTL + Duration::from_millis(fastrand::u64(200..800))).await;
            signal(pid, "CONT");
            stopped += 1;
        }
        if killed < kills {
            fleet.kill(index, fastrand::bool());
            killed += 1;
        }
        if killed % 7 == 0 {
            fleet.join(fastrand::u32(1..20));
            joined += 1;
        }
        for (id, capacity) in fleet.capacities() {
            known.insert(id.clone(), capacity);
            disturbed.insert(id);
        }
        tell.send(known.clone()).unwrap();
        tokio::time::sleep(Duration::from_millis(fastrand::u64(100..500))).await;
    }
    let among = tasks.counts().await.unwrap().completed;
    let start = Instant::now();
    while tasks.counts().await.unwrap().completed < count {
        assert!(
            start.elapsed() < Duration::from_secs(300),
            "{:?}",
            tasks.counts().await
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let took = began.elapsed();
    stop.cancel();
    let (looks, full) = watching.await.unwrap();
    let counts = tasks.counts().await.unwrap();
    assert_eq!((counts.pending, counts.assigned, counts.failed), (0, 0, 0));

    let effects = tally(&redis, "cb:events:effect", "data").await;
    assert_eq!(effects.len() as u64, count, "tasks without an effect");
    assert!(
        effects.values().all(|n| *n == 1),
        "an effect was stored twice"
    );
    let mut completed: HashMap<String, u32> = HashMap::new();
    each_entry(&redis, "cb:broadcast", |fact| {
        if fact.get("type") == Some(&b"task.completed"[..]) {
            let told: Value = rmp_serde::from_slice(fact.get("data").unwrap()).unwrap();
            let task = told["task_id"].as_str().unwrap();
            *completed.entry(task.to_owned()).or_default() += 1;
        }
    })
    .await;
    assert_eq!(completed.len() as u64, count);
    assert!(
        completed.values().all(|n| *n == 1),
        "a completion was told twice"
    );
    let mut fences = HashSet::new();
    for id in known.keys() {
        // Pings arrive there as well.
        for (data, times) in tally(&redis, &format!("cb:inbox:{id}"), "data").await {
            let assigned = rmp_serde::from_slice::<Value>(&data).unwrap_or_default();
            if let Some(fence) = assigned["fence"].as_u64() {
                assert!(
                    times == 1 && fences.insert(fence),
                    "{fence} was given twice"
                );
            }
        }
    }
    let given = fences.len() as u64;
    assert!(given >= count);

    fleet.drain();
    torture::Report::default()
        .fault(kills, "kills of workers with tasks")
        .fault(stops, "stops of workers with tasks")
        .event(count, "tasks completed once each")
        .event(among, "of them among the faults")
        .event(given, "assignments")
        .note(format!(
            "tasks took {:.1} s; {joined} workers joined; nobody above capacity at {looks} looks, the five left alone {:.1} % full while tasks waited",
            took.as_secs_f64(),
            100.0 * full
        ))
        .tell("tasks");
}
