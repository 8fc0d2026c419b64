//! More partitions while all runs, on a cluster.

use crate::rig::{builder, client, counted_in, double, start};
use crate::support::cluster::Cluster;
use crate::support::{until, users};
use convoke::client::publish::Outgoing;
use convoke::connect::connector::Connector;
use convoke::protocol::keys::Keys;
use convoke::settings::{RedisUrl, Settings};
use convoke::streams::domains::{Domains, Use};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_domain_gets_more_partitions_while_all_publish_and_work() {
    let cluster = Cluster::of_three();
    let workers = [1, 6]
        .map(|partitions| start(builder(&cluster, partitions).handler("math.double", double)));
    let over = Arc::new(AtomicBool::new(false));
    let publishing = [1, 16].map(|partitions| {
        let (client, over) = (client(&cluster, partitions), over.clone());
        tokio::spawn(async move {
            let mut number = 0_i64;
            while !over.load(Ordering::Relaxed) {
                let event = Outgoing::new("math.double", &number);
                let event = event.id(format!("c-{partitions}-{number}"));
                client.publish(&event).await.unwrap();
                number += 1;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            number as usize
        })
    });
    let settings = Settings {
        redis_url: RedisUrl::new(cluster.url_for(users::OPERATOR)),
        ..Settings::default()
    };
    let keys: Keys = settings.keys().unwrap();
    let domains = Domains::new(Connector::of(&settings, 2).unwrap(), keys.clone());
    until("somebody used it", async || {
        domains.learn(&["math"], Use::Looks).await.unwrap();
        keys.domain("math").is_some()
    })
    .await;
    let grown = keys.partitions("math") * 3;
    domains.set("math", grown, None, "ann").await.unwrap();
    until("all are read", async || {
        let mut open = true;
        for partition in 0..grown {
            open &= domains.is_open("math", partition, "workers").await.unwrap();
        }
        open
    })
    .await;
    over.store(true, Ordering::Relaxed);
    let mut published = 0;
    for one in publishing {
        published += one.await.unwrap();
    }
    until("all is done", async || {
        counted_in(&cluster, "math", grown, "results", "correlationid").len() == published
    })
    .await;
    let results = counted_in(&cluster, "math", grown, "results", "correlationid");
    assert!(results.values().all(|count| *count == 1), "doubled");
    let asked = Outgoing::new("math.double", &21);
    let reply = client(&cluster, 5)
        .request(asked, Duration::from_secs(30))
        .await;
    assert_eq!(reply.unwrap().decode::<i64>().unwrap(), 42);
    for worker in workers {
        worker.stop().await;
    }
}
