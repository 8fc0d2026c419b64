//! What a worker keeps of each partition while nothing comes.

use crate::rig::{client, double, settings, start};
use crate::support::cluster::Cluster;
use crate::support::until;
use convoke::Worker;
use convoke::client::publish::Outgoing;
use convoke::settings::Settings;
use std::time::Duration;

const PARTITIONS: u16 = 32;
/// What a worker has besides, however many partitions it reads.
const BESIDES: u64 = 40;

/// How many clients all nodes have.
fn connections(cluster: &Cluster) -> u64 {
    let of = |node: &crate::support::Redis| {
        let mut ask = redis::cmd("INFO");
        let info: String = ask.arg("clients").query(&mut node.connect()).unwrap();
        let mut lines = info.lines();
        let line = lines.find_map(|line| line.strip_prefix("connected_clients:"));
        line.and_then(|count| count.trim().parse::<u64>().ok())
            .unwrap()
    };
    cluster.nodes.iter().map(of).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "connections are let go after a while: scripts/torture runs it"]
async fn a_partition_with_nothing_to_do_keeps_the_connection_that_reads_and_nothing_is_lost_by_it()
{
    let cluster = Cluster::of_three();
    let before = connections(&cluster);
    // What is looked at once a ttl is looked at by the connections that a worker has anyway.
    let settings = Settings {
        heartbeat_ttl: Duration::from_secs(4),
        ..settings(&cluster, PARTITIONS)
    };
    let builder = Worker::builder().settings(settings);
    let worker = start(builder.handler("math.double", double));
    let all = 3 * u64::from(PARTITIONS);
    until("each has some", || async {
        connections(&cluster) >= before + all
    })
    .await;
    let most = before + u64::from(PARTITIONS) + BESIDES;
    for round in 0..2 {
        until("one of each partition is left", || async {
            connections(&cluster) <= most
        })
        .await;
        let client = client(&cluster, PARTITIONS);
        for number in 0..100_i64 {
            let asked = Outgoing::new("math.double", &number).subject(format!("{round}-{number}"));
            let reply = client
                .request(asked, Duration::from_secs(60))
                .await
                .unwrap();
            assert_eq!(reply.decode::<i64>().unwrap(), 2 * number);
        }
        client.close().await;
    }
    worker.stop().await;
}
