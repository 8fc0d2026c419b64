//! The partitions that a worker owns share its slots.

use super::*;

const SLOTS: usize = 8;

fn has_slots(redis: &Redis, log: &Log) -> Running {
    let settings = Settings {
        concurrency: SLOTS,
        ..settings(redis, "w-1")
    };
    let builder = Worker::builder().settings(settings);
    start(builder.state(log.clone()).handler("line.step", step))
}

/// Runs that were under way at a time, at the most.
fn most_at_a_time(said: &[Said]) -> usize {
    let (mut runs, mut most) = (0_usize, 0);
    for one in said {
        match one.what {
            What::Began => runs += 1,
            What::Failed | What::Ended => runs -= 1,
        }
        most = most.max(runs);
    }
    most
}

/// Subjects of one partition.
fn beside_each_other(client: &Client) -> impl Iterator<Item = u64> {
    let keys = client.keys().clone();
    (1..).filter(move |subject| keys.partition_of("line", &format!("s-{subject}")) == 0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_of_one_partition_may_have_all_slots_and_there_are_never_more_of_them() {
    let (redis, log) = (Redis::start(), Log::default());
    order(&redis, DomainOrder::Subject).await;
    let running = has_slots(&redis, &log);
    until_shared(&redis, 1).await;
    let client = client(&redis);
    log.held.store(true, Ordering::Relaxed);
    let beside: Vec<u64> = beside_each_other(&client).take(SLOTS).collect();
    for subject in &beside {
        publish(&client, *subject, 0).await;
    }
    // As many partitions as slots: each had one of its own, and seven of them nothing to do with it.
    until("all of them run", async || log.all().len() == SLOTS).await;
    for subject in 10_000..10_040 {
        publish(&client, subject, 0).await;
    }
    until("some of them are read", async || {
        pending(&redis) > SLOTS as u64
    })
    .await;
    assert_eq!(log.all().len(), SLOTS);
    log.held.store(false, Ordering::Relaxed);
    until("all are run", async || log.ended() == SLOTS + 40).await;
    assert!(most_at_a_time(&log.all()) <= SLOTS);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_has_always_more_to_run_leaves_slots_to_others() {
    const NUMBERS: u64 = 30;
    let (redis, log) = (Redis::start(), Log::default());
    order(&redis, DomainOrder::Subject).await;
    let running = has_slots(&redis, &log);
    let client = client(&redis);
    let keys = client.keys();
    let beside: Vec<u64> = beside_each_other(&client).take(50).collect();
    let elsewhere = |subject: &u64| keys.partition_of("line", &format!("s-{subject}")) == 1;
    let other = (1..).find(elsewhere).unwrap();
    log.held.store(true, Ordering::Relaxed);
    for number in 0..NUMBERS {
        for subject in &beside {
            publish(&client, *subject, number).await;
        }
    }
    until("it has all slots", async || log.all().len() == SLOTS).await;
    publish(&client, other, 0).await;
    until("the other one is read", async || {
        let stream = keys.events("line", 1);
        let mut ask = redis::cmd("XPENDING");
        let ask = ask.arg(stream).arg("workers");
        let (count, ..): (u64, redis::Value, redis::Value, redis::Value) =
            ask.query(&mut redis.connect()).unwrap();
        count == 1
    })
    .await;
    log.held.store(false, Ordering::Relaxed);
    until("all are run", async || {
        log.ended() as u64 == 50 * NUMBERS + 1
    })
    .await;
    let ended = log.all().into_iter().filter(|it| it.what == What::Ended);
    let place = ended.map(|it| it.subject).position(|it| it == other);
    assert!(place.unwrap() < 750, "{place:?} ran before it");
    running.stop().await;
}
