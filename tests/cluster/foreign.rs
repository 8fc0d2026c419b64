//! A client in another language, that was written from the protocol page alone.

use crate::rig::{builder, counted, double, left, start};
use crate::support::cluster::Cluster;
use crate::support::{until, url_at, users};
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const PARTITIONS: u16 = 16;

/// The program, which has looked where the slots are and waits for a line.
fn looked(cluster: &Cluster, requests: u32) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut client = Command::new("/usr/bin/python3")
        .arg(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/cluster/replies.py"
        ))
        .arg(url_at(cluster.nodes[0].port(), users::PUBLISHER))
        .args(["math", &PARTITIONS.to_string(), &requests.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(client.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "looked\n");
    (client, out)
}

/// The client asks, while slots of partitions go round the nodes until it has ended, or once.
async fn each_request_has_one_reply(requests: u32, keeps_moving: bool) {
    let cluster = Cluster::of_three();
    let workers =
        [(); 2].map(|()| start(builder(&cluster, PARTITIONS).handler("math.double", double)));
    until("a worker reads all partitions", || async {
        let streams = (0..PARTITIONS).map(|n| format!("{{cb:math:{n}}}:events"));
        { streams }.all(|stream| cluster.at(&stream, &["EXISTS", &stream]))
    })
    .await;
    let (mut client, out) = looked(&cluster, requests);
    // What it knows of this one is wrong from now on.
    let key = |partition: u16| format!("{{cb:math:{partition}}}:events");
    let next = |partition| (cluster.owner(&key(partition)) + 1) % 3;
    cluster.move_slot(&key(0), next(0), Duration::ZERO);
    client.stdin.take().unwrap().write_all(b"\n").unwrap();
    let mut partition = 0;
    while keeps_moving && client.try_wait().unwrap().is_none() {
        // Each stands still for as long as its slot is open: the others have time to go on.
        tokio::time::sleep(Duration::from_millis(250)).await;
        partition = (partition + 1) % PARTITIONS;
        cluster.move_slot(&key(partition), next(partition), Duration::from_millis(20));
    }
    let done = client.wait().unwrap();
    let last = out.lines().last().unwrap().unwrap();
    eprintln!("{last}");
    assert!(done.success());
    let told: Value = serde_json::from_str(&last).unwrap();
    assert_eq!(told["replies"], requests);
    assert_eq!(told["partitions"], PARTITIONS);
    assert!(told["moved"].as_u64().unwrap() > 0, "{last}");
    until("nothing is left", || async {
        left(&cluster, "math", PARTITIONS) == 0
    })
    .await;
    let name = told["client"].as_str().unwrap();
    let mut replies = 0;
    for partition in 0..PARTITIONS {
        let stream = format!("{{cb:math:{partition}}}:reply:{name}");
        let each = counted(&cluster, &stream, "correlationid");
        assert!(each.values().all(|count| *count == 1), "{stream}: {each:?}");
        replies += each.len();
    }
    assert_eq!(replies, requests as usize);
    for worker in workers {
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_knows_the_page_alone_has_each_reply_once_from_all_partitions() {
    each_request_has_one_reply(500, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "asks for long, while slots move: scripts/torture runs it"]
async fn a_program_that_knows_the_page_alone_has_10_000_replies_while_slots_move() {
    each_request_has_one_reply(10_000, true).await;
}
