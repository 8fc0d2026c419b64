//! A domain with an order, on a cluster.

use crate::rig::{builder, client, settings, start};
use crate::support::cluster::Cluster;
use crate::support::{until, users};
use convoke::client::Client;
use convoke::client::publish::Outgoing;
use convoke::connect::connector::Connector;
use convoke::protocol::domain::DomainOrder;
use convoke::protocol::keys::Keys;
use convoke::settings::{RedisUrl, Settings};
use convoke::streams::domains::Domains;
use convoke::streams::read::entries_of;
use convoke::worker::builder::Builder;
use convoke::{Context, HandlerError};
use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::time::Duration;

const PARTITIONS: u16 = 6;
const SUBJECTS: u64 = 12;
const NUMBERS: u64 = 40;

async fn step(context: Context, (subject, number): (u64, u64)) -> Result<u64, HandlerError> {
    tokio::time::sleep(Duration::from_millis(fastrand::u64(0..5))).await;
    let odd = (subject * 31 + number * 17) % 100 < 30;
    match odd && context.event().attempt() == 1 {
        true => Err(HandlerError::internal("once")),
        false => Ok(number),
    }
}

fn worker(cluster: &Cluster, id: &str) -> Builder {
    let settings = Settings {
        id: id.into(),
        heartbeat_ttl: Duration::from_secs(10),
        claim_idle: Duration::from_secs(10),
        concurrency: 16,
        max_attempts: 1000,
        max_deliveries: 100,
        ..settings(cluster, PARTITIONS)
    };
    convoke::Worker::builder()
        .settings(settings)
        .handler("line.step", step)
}

/// Who owns partitions.
fn owners(cluster: &Cluster) -> BTreeSet<String> {
    let owner = |partition| {
        let key = format!("{{cb:line:{partition}}}:owner:workers");
        let told = cluster.try_at(&key, &["HGET", &key, "instance"]);
        told.ok().flatten()
    };
    (0..PARTITIONS).filter_map(owner).collect()
}

/// How many results there are; each subject has each once, and in order.
fn results(cluster: &Cluster) -> u64 {
    let mut next: HashMap<u64, u64> = HashMap::new();
    for partition in 0..PARTITIONS {
        let stream = format!("{{cb:line:{partition}}}:results");
        let Ok(said) = cluster.try_at(&stream, &["XRANGE", &stream, "-", "+"]) else {
            continue;
        };
        for entry in entries_of(said).unwrap() {
            let id = String::from_utf8(entry.get("correlationid").unwrap().to_vec()).unwrap();
            let (subject, number) = id.split_once('-').unwrap();
            let next = next.entry(subject.parse().unwrap()).or_default();
            assert_eq!(number.parse::<u64>().unwrap(), *next, "subject {subject}");
            *next += 1;
        }
    }
    next.values().sum()
}

/// Publishes these numbers of each subject, each stored by that many replicas.
async fn publishes(client: Client, numbers: Range<u64>, replicas: u32) {
    for number in numbers {
        for subject in 0..SUBJECTS {
            let event = Outgoing::new("line.step", &(subject, number));
            let event = event.subject(format!("s-{subject}"));
            let mut event = event.id(format!("{subject}-{number}")).dedup(true);
            if replicas > 0 {
                event = event.confirm(replicas, Duration::from_secs(5));
            }
            // Its node may be away: the same again, which is stored once.
            while client.publish(&event).await.is_err() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subjects_keep_their_order_over_workers_that_come_and_leave_and_a_primary_that_is_killed() {
    let cluster = Cluster::with_replicas();
    let operator = Settings {
        redis_url: RedisUrl::new(cluster.url_for(users::OPERATOR)),
        partitions: PARTITIONS,
        ..Settings::default()
    };
    let keys: Keys = operator.keys().unwrap();
    let domains = Domains::new(Connector::of(&operator, 2).unwrap(), keys);
    let subject = Some(DomainOrder::Subject);
    let is = domains.change("line", Some(PARTITIONS), subject, None, "ann");
    assert_eq!(is.await.unwrap().partitions, PARTITIONS);
    let mut workers = vec![
        start(worker(&cluster, "w-1")),
        start(worker(&cluster, "w-2")),
    ];
    let client = client(&cluster, PARTITIONS);
    // A failover may lose what no replica has; afterwards a part of them has none.
    let publishing = tokio::spawn(publishes(client.clone(), 0..NUMBERS / 2, 1));
    until("both own some", async || owners(&cluster).len() == 2).await;
    until("some are run", async || results(&cluster) > 40).await;
    workers.push(start(worker(&cluster, "w-3")));
    until("all own some", async || owners(&cluster).len() == 3).await;
    workers.remove(0).stop().await;
    publishing.await.unwrap();
    cluster.kill_primary_of("{cb:line:0}:events");
    publishes(client, NUMBERS / 2..NUMBERS, 0).await;
    until("all are run", async || {
        results(&cluster) == SUBJECTS * NUMBERS
    })
    .await;
    for worker in workers {
        worker.stop().await;
    }
    assert_eq!(owners(&cluster), BTreeSet::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_domain_without_an_order_has_no_owners() {
    let cluster = Cluster::of_three();
    let running = start(builder(&cluster, PARTITIONS).handler("line.step", step));
    let client = client(&cluster, PARTITIONS);
    let asked = Outgoing::new("line.step", &(1_u64, 3_u64));
    let reply = client.request(asked, Duration::from_secs(30)).await;
    assert_eq!(reply.unwrap().decode::<u64>().unwrap(), 3);
    assert_eq!(owners(&cluster), BTreeSet::new());
    running.stop().await;
}
