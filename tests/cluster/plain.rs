//! A plain URL of one node: the server says that it is a cluster, and all goes on as with `redis+cluster://`.

use crate::rig::{double, settings, start};
use crate::support::cluster::{Cluster, node_with, serves};
use crate::support::{Redis, eventually, new_directory, until, url_at, users};
use convoke::client::publish::Outgoing;
use convoke::client::{Client, PublishError};
use convoke::settings::{ConnectError, RedisUrl, Settings};
use convoke::worker::RunError;
use convoke::{CancellationToken, Worker};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);
const PARTITIONS: u16 = 4;
const EVENTS: u32 = 40;

fn url(node: &Redis, user: &str) -> String {
    url_at(node.port(), user) + "/0"
}

/// Settings of who knows one node, and not that it is one.
fn plain(node: &Redis, user: &str) -> Settings {
    Settings {
        redis_url: RedisUrl::new(url(node, user)),
        partitions: PARTITIONS,
        ..Settings::default()
    }
}

fn convoke(url: &str, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_convoke"));
    command.env("CONVOKE_REDIS_URL", url);
    command.args(words).stdin(Stdio::null());
    command
}

/// What a command prints; it must succeed, or have found something.
async fn told(node: &Redis, words: &[&str]) -> String {
    let user = users::of_command(words).unwrap_or(users::OPERATOR);
    let mut command = convoke(&url(node, user), words);
    let done = tokio::task::spawn_blocking(move || command.output().unwrap());
    let Output {
        status,
        stdout,
        stderr,
    } = done.await.unwrap();
    let (out, err) = (text(stdout), text(stderr));
    let found = words[0] == "doctor" && status.code() == Some(1);
    assert!(status.success() || found, "{words:?}: {out}{err}");
    out
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

async fn one_url_is_enough(cluster: Cluster) {
    let node = &cluster.nodes[0];
    let worker = Worker::builder()
        .settings(Settings {
            redis_url: RedisUrl::new(url(node, users::WORKER)),
            ..settings(&cluster, PARTITIONS)
        })
        .handler("math.double", double);
    let worker = start(worker);
    // Who uses a domain first says how many partitions it has.
    until("the worker has said it", || async {
        let said = ["HEXISTS", "{cb}:domains", "math"];
        cluster.at::<bool>("{cb}:domains", &said)
    })
    .await;
    // A client whose settings are the default ones, one of other settings, and one that names the cluster.
    let first = Client::connect(url(node, users::PUBLISHER)).await.unwrap();
    let found = plain(node, users::PUBLISHER).found().await.unwrap();
    let second = Client::of(&found).unwrap();
    let third = crate::rig::client(&cluster, PARTITIONS);
    for (at, client) in [&first, &second, &third].into_iter().enumerate() {
        for number in 0..12 {
            let asked = Outgoing::new("math.double", &number).subject(format!("{at}-{number}"));
            let reply = client.request(asked, SOON).await.unwrap();
            assert_eq!(reply.decode::<i64>().unwrap(), 2 * number);
        }
        client.close().await;
    }
    let lengths = (0..PARTITIONS).map(|n| format!("{{cb:math:{n}}}:events"));
    let lengths: Vec<u64> = lengths
        .map(|key| cluster.at(&key, &["XLEN", &key]))
        .collect();
    assert!(lengths.iter().all(|length| *length > 0), "{lengths:?}");

    let asked = ["request", "math.double", "--data", "21", "--timeout", "60s"];
    assert!(told(node, &asked).await.contains("42"));
    told(
        node,
        &["publish", "math.double", "--data", "1", "--id", "e-1"],
    )
    .await;
    let streams = told(node, &["streams", "events:math", "--format", "json"]).await;
    assert_eq!(
        streams.lines().count(),
        usize::from(PARTITIONS),
        "{streams}"
    );
    let domains = told(node, &["domain", "list"]).await;
    assert!(domains.contains("math"), "{domains}");
    // A node that stands still for a second counts as away.
    until("it is healthy", || async {
        let health = told(node, &["health", "--timeout", "60s"]).await;
        health.contains("healthy") && !health.contains("unhealthy")
    })
    .await;
    let doctor = told(node, &["doctor", "--all"]).await;
    let nodes = cluster.nodes.len();
    assert_eq!(
        doctor.matches("cluster-coverage").count(),
        nodes,
        "{doctor}"
    );
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_clients_and_commands_find_three_nodes_by_the_plain_url_of_one() {
    one_url_is_enough(Cluster::of_three()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_clients_and_commands_find_a_cluster_of_one_node_by_its_plain_url() {
    one_url_is_enough(Cluster::alone()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_waits_for_its_server_and_then_finds_out_that_it_is_a_cluster() {
    let mut cluster = Cluster::alone();
    // Its URL stands in a file, as that of the command.
    let dir = new_directory("plain");
    let file = dir.join("url");
    std::fs::write(&file, url(&cluster.nodes[0], users::WORKER)).unwrap();
    cluster.nodes[0].kill();
    let log = dir.join("log");
    let mut worker = Command::new(env!("CARGO_BIN_EXE_convoke"))
        .args(["worker", "--id=w-1", "--exec", "math.double=cat"])
        .env("CONVOKE_REDIS_URL_FILE", &file)
        .stderr(std::fs::File::create(&log).unwrap())
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let said = |what: &str| std::fs::read_to_string(&log).unwrap().contains(what);
    eventually("it waits", || said("cannot be joined yet"));
    cluster.nodes[0].restart();
    eventually("it serves its slots", || serves(&cluster.nodes[0]));
    let client = Client::connect(url(&cluster.nodes[0], users::PUBLISHER));
    let client = client.await.unwrap();
    let reply = client.request(Outgoing::new("math.double", &7), SOON).await;
    assert_eq!(reply.unwrap().decode::<i64>().unwrap(), 7);
    client.close().await;
    assert!(said("is a node of a cluster"));
    crate::support::signal(worker.id(), "TERM");
    assert!(worker.wait().unwrap().success());
    std::fs::remove_dir_all(dir).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_database_than_the_one_that_a_cluster_has_is_refused() {
    let cluster = Cluster::alone();
    let other = |user| url_at(cluster.nodes[0].port(), user) + "/1";
    let is_told = |said: String| assert!(said.contains("one database, 0"), "{said}");
    match Client::connect(other(users::PUBLISHER)).await {
        Err(ConnectError::Bus(error)) => is_told(error.to_string()),
        other => panic!("{other:?}"),
    }
    let worker = Worker::builder()
        .redis(other(users::WORKER))
        .build()
        .unwrap();
    match worker.run_until(CancellationToken::new()).await {
        Err(RunError::Bus(error)) => is_told(error.to_string()),
        other => panic!("{other:?}"),
    }
    let command = convoke(&other(users::MONITOR), &["streams"])
        .output()
        .unwrap();
    assert_eq!(command.status.code(), Some(1));
    is_told(text(command.stderr));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_leads_to_its_cluster_too() {
    let node = || node_with(15_000, &["--save", "", "--appendonly", "no"]);
    let cluster = Cluster::joined(vec![node(), node()], 1);
    let client = Client::connect(url(&cluster.nodes[1], users::PUBLISHER)).await;
    let client = client.unwrap();
    client
        .publish(Outgoing::new("math.double", &1))
        .await
        .unwrap();
    let key = "{cb:math:0}:events";
    assert_eq!(cluster.at::<u64>(key, &["XLEN", key]), 1);
    client.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_did_not_ask_publishes_nothing_under_names_that_nobody_reads() {
    let cluster = Cluster::alone();
    let client = Client::of(&plain(&cluster.nodes[0], users::PUBLISHER)).unwrap();
    let event = Outgoing::new("math.double", &1);
    let one = client.publish(&event).await;
    let many = client.publish_many(&[event]).await.remove(0);
    for refused in [one, many] {
        match refused {
            Err(PublishError::Rejected { reason, .. }) => {
                assert!(reason.contains("Settings::found"), "{reason}");
            }
            other => panic!("{other:?}"),
        }
    }
    let keys: u64 = cluster.at("cb", &["DBSIZE"]);
    assert_eq!(keys, 0);
}

/// How often a server was asked whether it is a cluster.
fn asked(node: &Redis) -> Option<String> {
    let mut ask = redis::cmd("INFO");
    let info: String = ask.arg("commandstats").query(&mut node.connect()).unwrap();
    let lines = info
        .lines()
        .find(|line| line.starts_with("cmdstat_cluster"));
    lines.map(str::to_owned)
}

/// Takes commands away from the users.
fn forbid(node: &Redis, commands: &[&str]) {
    for user in users::ALL {
        let mut forbid = redis::cmd("ACL");
        forbid.arg(&["SETUSER", user]);
        for command in commands {
            forbid.arg(format!("-{command}"));
        }
        forbid.exec(&mut node.connect()).unwrap();
    }
}

async fn works(node: &Redis) {
    let worker = Worker::builder().redis(url(node, users::WORKER));
    let worker = start(worker.handler("math.double", double));
    let client = Client::connect(url(node, users::PUBLISHER)).await.unwrap();
    for number in 0..EVENTS {
        let asked = Outgoing::new("math.double", &number);
        let reply = client.request(asked, SOON).await.unwrap();
        assert_eq!(reply.decode::<i64>().unwrap(), 2 * i64::from(number));
    }
    client.close().await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_says_what_it_is_is_asked_nothing_more() {
    let options = ["--save", "", "--appendonly", "no"];
    let redis = Redis::with(&options);
    if users::lack("INFO") {
        return;
    }
    works(&redis).await;
    assert_eq!(asked(&redis), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_info_tells_nothing_it_is_asked_once_and_who_may_ask_nothing_works_too() {
    let mut redis = Redis::with(&["--save", "", "--appendonly", "no"]);
    redis.expect_refusals();
    forbid(&redis, &["info"]);
    works(&redis).await;
    let told = asked(&redis).unwrap_or_default();
    let calls = told.strip_prefix("cmdstat_cluster|info:calls=");
    let calls = calls.and_then(|calls| calls.split(',').next()?.parse::<u32>().ok());
    // Those that connect first, not more for more events.
    assert!(
        calls.is_some_and(|calls| (1..=20).contains(&calls)),
        "{told}"
    );

    let mut redis = Redis::with(&["--save", "", "--appendonly", "no"]);
    redis.expect_refusals();
    forbid(&redis, &["info", "cluster", "role"]);
    works(&redis).await;

    // A node of a cluster says it to them by CLUSTER INFO.
    let mut cluster = Cluster::alone();
    cluster.nodes[0].expect_refusals();
    forbid(&cluster.nodes[0], &["info", "role"]);
    let node = &cluster.nodes[0];
    let found = plain(node, users::PUBLISHER).found().await.unwrap();
    assert!(found.redis_url.is_cluster());
    works(node).await;
    let key = "{cb:math:0}:events";
    until("the events lie under the names of a cluster", || async {
        cluster.at::<u64>(key, &["XLEN", key]) == u64::from(EVENTS)
    })
    .await;
}
