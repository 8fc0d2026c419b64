//! Streams that were made, and are not there: nothing is made in their place.

use crate::operators::{convoke, ended};
use crate::rig::{builder, client, counted_in, double, left, start};
use crate::support::cluster::Cluster;
use crate::support::{until, users};
use convoke::client::Client;
use convoke::client::publish::{Outgoing, PublishError};
use std::process::{Command, Output};
use std::time::Duration;

const PARTITIONS: u16 = 5;

fn events(partition: u16) -> String {
    format!("{{cb:math:{partition}}}:events")
}

/// A subject of each partition.
fn subjects(client: &Client) -> Vec<String> {
    let of = |partition| {
        let mut all = (0..).map(|number| format!("s-{number}"));
        let found = all.find(|it| client.keys().partition_of("math", it) == partition);
        found.unwrap()
    };
    (0..PARTITIONS).map(of).collect()
}

fn event(id: &str, subject: &str) -> Outgoing {
    Outgoing::new("math.double", &7).id(id).subject(subject)
}

fn exists(cluster: &Cluster, key: &str) -> bool {
    cluster.at(key, &["EXISTS", key])
}

fn is_marked(cluster: &Cluster, partition: u16) -> bool {
    let mark = partition.to_string();
    cluster
        .try_at("{cb}:made:math", &["GETBIT", "{cb}:made:math", &mark])
        .unwrap_or(false)
}

/// Publishes until all of it is stored: ids with that beginning, one for each subject.
async fn publish_all(client: &Client, begin: &str, subjects: &[String]) {
    for (number, subject) in subjects.iter().enumerate() {
        let event = event(&format!("{begin}-{number}"), subject).dedup(true);
        until("an event is stored", || async {
            client.publish(&event).await.is_ok()
        })
        .await;
    }
}

/// Publishing is refused in all of its ways, and says why.
async fn refuses(client: &Client, subject: &str) {
    let plain = event("refused-1", subject);
    let once = event("refused-2", subject).dedup(true);
    for event in [&plain, &once] {
        let refused = client.publish(event).await.unwrap_err();
        let PublishError::Rejected {
            reason,
            code,
            lasting,
        } = refused
        else {
            panic!("{refused}");
        };
        assert_eq!((code.as_deref(), lasting), (Some("NOSTREAM"), false));
        assert!(reason.contains("redis-cli --cluster fix"), "{reason}");
    }
    for refused in client.publish_many(&[plain, once]).await {
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains("though it was made once"), "{refused}");
    }
}

fn doctor(cluster: &Cluster) -> String {
    let (_, out, err) = ended(convoke(cluster, &["doctor", "--all"]).output().unwrap());
    out + &err
}

/// What a worker of its own process wrote until then, that is told to end.
fn logs_of(mut worker: std::process::Child) -> String {
    crate::support::signal(worker.id(), "TERM");
    let mut out = String::new();
    let mut pipe = worker.stderr.take().unwrap();
    std::io::Read::read_to_string(&mut pipe, &mut out).unwrap();
    worker.wait().unwrap();
    out
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_was_made_is_made_again_only_by_an_operator() {
    let cluster = Cluster::alone();
    let client = client(&cluster, PARTITIONS);
    let subjects = subjects(&client);
    // Before any worker was there anyone may publish.
    publish_all(&client, "before", &subjects).await;
    let worker = start(builder(&cluster, PARTITIONS).handler("math.double", double));
    let results = || counted_in(&cluster, "math", PARTITIONS, "results", "correlationid");
    until("all are done", || async {
        results().len() == 5 && left(&cluster, "math", PARTITIONS) == 0
    })
    .await;
    until("all are marked", || async {
        (0..PARTITIONS).all(|partition| is_marked(&cluster, partition))
    })
    .await;
    let lost = events(3);
    cluster.run(0, &["DEL", &lost]);
    until("the publisher knows the marks", || async {
        client.keys().is_made("math", 3) || client.publish(event("x", &subjects[0])).await.is_err()
    })
    .await;
    refuses(&client, &subjects[3]).await;
    // A worker that starts now reads the others, and makes nothing.
    worker.stop().await;
    let worker = start(builder(&cluster, PARTITIONS).handler("math.double", double));
    let others: Vec<String> = subjects.iter().take(3).cloned().collect();
    publish_all(&client, "others", &others).await;
    let claims = "{cb:math:3}:claims:*";
    until("it would read the partition, and read others", || async {
        let claims: Vec<String> = cluster.at(claims, &["KEYS", claims]);
        let results = results();
        !claims.is_empty() && (0..3).all(|n| results.contains_key(&format!("others-{n}")))
    })
    .await;
    let found = doctor(&cluster);
    assert!(
        found.contains(&format!("not there, though made once: {lost}")),
        "{found}"
    );
    assert!(found.contains("convoke domain remake math 3"), "{found}");
    assert!(!exists(&cluster, &lost));
    let there = convoke(&cluster, &["domain", "remake", "math", "2", "--yes"]).output();
    assert_eq!(ended(there.unwrap()).0, 1, "that one is there");
    let remade = convoke(&cluster, &["domain", "remake", "math", "3", "--yes"]).output();
    let (code, out, err) = ended(remade.unwrap());
    assert_eq!(code, 0, "{out}{err}");
    publish_all(&client, "after", &subjects).await;
    until("all are done again", || async {
        let results = results();
        (0..5).all(|n| results.contains_key(&format!("after-{n}"))) && is_marked(&cluster, 3)
    })
    .await;
    // Marks that the server lost are put back; where all is lost, all is as new.
    cluster.run(0, &["DEL", "{cb}:made:math"]);
    until("the marks are there again", || async {
        (0..PARTITIONS).all(|partition| is_marked(&cluster, partition))
    })
    .await;
    cluster.run(0, &["FLUSHALL"]);
    publish_all(&client, "new", &subjects).await;
    until("all are done as if nothing had been there", || async {
        let results = results();
        (0..5).all(|n| results.contains_key(&format!("new-{n}")))
    })
    .await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "whom it asks may be the node that takes the dead one for the owner until the fix"]
async fn a_failover_while_a_slot_moves_hides_nothing_that_a_fix_does_not_bring_back() {
    let cluster = Cluster::with_replicas();
    let client = client(&cluster, PARTITIONS);
    let subjects = subjects(&client);
    for number in 0..6 {
        let whole = ["CONFIG", "SET", "cluster-require-full-coverage", "no"];
        cluster.run(number, &whole);
    }
    // The control plane's node has no part in it. The one that the slot goes to never learns of the promoted one.
    let control = cluster.owner("{cb}:broadcast");
    let lost = (0..PARTITIONS).find(|n| cluster.owner(&events(*n)) != control);
    let lost = lost.unwrap();
    let stream = events(lost);
    let worker = start(builder(&cluster, PARTITIONS).handler("math.double", double));
    publish_all(&client, "before", &subjects).await;
    let results = || counted_in(&cluster, "math", PARTITIONS, "results", "correlationid");
    until("all are done", || async {
        results().len() == 5 && left(&cluster, "math", PARTITIONS) == 0
    })
    .await;
    worker.stop().await;
    // Acknowledged by a primary and its replica, and read by nobody.
    for number in 0..20 {
        let event = event(&format!("waits-{number}"), &subjects[usize::from(lost)]);
        let event = event.confirm(1, Duration::from_secs(5));
        client.publish(&event).await.unwrap();
    }
    let from = cluster.owner(&stream);
    let to = (0..3).find(|node| ![from, control].contains(node)).unwrap();
    let slot = cluster.slot_of(&stream).to_string();
    let id = |number: usize| cluster.id(number);
    cluster.run(to, &["CLUSTER", "SETSLOT", &slot, "IMPORTING", &id(from)]);
    cluster.run(from, &["CLUSTER", "SETSLOT", &slot, "MIGRATING", &id(to)]);
    let port = cluster.nodes[to].port().to_string();
    cluster.run(from, &["MIGRATE", "127.0.0.1", &port, &stream, "0", "5000"]);
    let replica = cluster.replica_of(&stream);
    until("its replica knows that the stream left", || async {
        let mut connection = replica.connect();
        let mut look = redis::pipe();
        look.cmd("READONLY").ignore().cmd("EXISTS").arg(&stream);
        let (there,): (bool,) = look.query(&mut connection).unwrap();
        !there
    })
    .await;
    crate::support::signal(cluster.nodes[from].pid(), "KILL");
    let promoted = |words: &[&str]| -> redis::RedisResult<i64> {
        let mut connection = replica.connect();
        redis::cmd(words[0]).arg(&words[1..]).query(&mut connection)
    };
    until("the replica has its place", || async {
        promoted(&["XLEN", &stream]) == Ok(0)
    })
    .await;

    refuses_when_known(&client, &subjects[usize::from(lost)]).await;
    let words = ["worker", "--id", "fresh", "--exec", "math.double=cat"];
    let mut fresh = convoke(&cluster, &words);
    let fresh = fresh
        .env("CONVOKE_REDIS_URL", cluster.url_for(users::WORKER))
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let other = (0..PARTITIONS).find(|n| cluster.owner(&events(*n)) == control);
    let other = other.unwrap();
    let other = subjects[usize::from(other)].clone();
    publish_all(&client, "other", &[other]).await;
    let claims = format!("{{cb:math:{lost}}}:claims:fresh");
    until(
        "a new worker would read the partition, and reads others",
        || async {
            let claimed = cluster.try_at(&claims, &["EXISTS", &claims]);
            claimed.unwrap_or(false) && results().contains_key("other-0")
        },
    )
    .await;
    let named = format!("not there, though made once: {stream}");
    until("doctor names it", || async {
        doctor(&cluster).contains(&named)
    })
    .await;
    let said = logs_of(fresh);
    assert!(
        said.contains("redis-cli --cluster fix") && said.contains(&slot),
        "{said}"
    );
    let made = promoted(&["EXISTS", &stream]);
    assert_eq!(made, Ok(0), "somebody made it again");

    let alive = cluster.nodes[control].port();
    let at = format!("127.0.0.1:{alive}");
    // The old primary stays away.
    let away = "--cluster-fix-with-unreachable-masters";
    let fix = ["--cluster", "fix", &at, "--cluster-yes", away];
    until("the stream is back", || async {
        // It ends early where a node does not agree with the others yet.
        let fixed: Output = Command::new("redis-cli").args(fix).output().unwrap();
        let told = String::from_utf8_lossy(&fixed.stdout).into_owned();
        assert!(!told.contains("Target key exists"), "{told}");
        promoted(&["EXISTS", &stream]) == Ok(1) || exists(&cluster, &stream)
    })
    .await;
    let worker = start(builder(&cluster, PARTITIONS).handler("math.double", double));
    publish_all(&client, "after", &subjects).await;
    until("all are done", || async {
        left(&cluster, "math", PARTITIONS) == 0 && results().len() == 5 + 20 + 1 + 5
    })
    .await;
    assert!(results().values().all(|count| *count == 1));
    worker.stop().await;
}

/// The same once the promoted node is known, and the marks are.
async fn refuses_when_known(client: &Client, subject: &str) {
    until("publishing is refused since nothing is there", || async {
        let refused = client.publish(event("refused-0", subject)).await;
        refused.is_err_and(|error| error.to_string().contains("though it was made once"))
    })
    .await;
    refuses(client, subject).await;
}
