//! A subject that fails for good, for ten seconds, has nothing of any other subject wait for it.

use crate::bus::{Bus, assert_in_order, connector, keys};
use crate::history::{self, Said};
use crate::support::{Redis, torture, users};
use crate::workers::{self, FAILS, FIRM, Process, Workers};
use crate::{TTL, WORKERS, until_settled};
use convoke::client::publish::Outgoing;
use convoke::client::{Client, ClientOptions};
use std::fs::File;
use std::time::{Duration, Instant};

const PARTITIONS: u16 = 4;
const FOR: Duration = Duration::from_secs(10);

async fn publish(client: &Client, subject: u64, number: u64) {
    let event = Outgoing::new("line.step", &(subject, number));
    let event = event.subject(format!("s-{subject}"));
    let id = format!("{subject}-{number}");
    client.publish(event.id(id)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes half a minute: scripts/torture owned"]
async fn a_subject_that_fails_for_ten_seconds_delays_nobody_else() {
    let others = torture::size("TORTURE_OWNED_SUBJECTS", 50, 1000);
    let redis = Redis::start();
    let url_of = |user: &str| redis.url_for(user);
    let bus = Bus::with_order(&url_of, &["line"], PARTITIONS).await;
    let mut workers = Workers::new(&url_of, &["line"], workers::settings(PARTITIONS, TTL));
    let fails = workers.dir.join("fails");
    File::create(&fails).unwrap();
    let running: Vec<Process> = (0..WORKERS).map(|_| workers.spawn()).collect();
    let publisher = connector(url_of(users::PUBLISHER));
    let client = Client::new(publisher, keys(PARTITIONS), ClientOptions::default()).unwrap();
    let tries = |said: &[Said]| {
        let failed = |it: &&Said| it.subject == FAILS && it.what == "failed";
        said.iter().filter(failed).count()
    };
    let since = Instant::now();
    let (mut numbers, mut tried) = (0, 0);
    // Each round is published while it fails, and is over before it ends.
    while since.elapsed() < FOR || tried < 5 {
        publish(&client, FAILS, numbers).await;
        for subject in FIRM..FIRM + others {
            publish(&client, subject, numbers).await;
        }
        numbers += 1;
        until_settled(&bus, others * numbers).await;
        tried = tries(&history::read(&workers.history()));
        assert!(since.elapsed() < 30 * FOR, "it was tried {tried} times");
    }
    let said = history::read(&workers.history());
    let first = |it: &&Said| it.subject == FAILS && it.what != "failed" && it.number > 0;
    assert!(!said.iter().any(|it| first(&it)), "one behind it has begun");
    std::fs::remove_file(&fails).unwrap();
    until_settled(&bus, (others + 1) * numbers).await;
    let outcomes = bus.outcomes().await;
    for subject in (FIRM..FIRM + others).chain([FAILS]) {
        assert_in_order(subject, &outcomes[&subject], numbers, false);
    }
    drop(running);
    torture::Report::default()
        .event(
            others * numbers,
            "events of others while a subject failed for 10 s",
        )
        .note(format!("it was tried {tried} times meanwhile"))
        .tell("failing");
    std::fs::remove_dir_all(&workers.dir).ok();
}
