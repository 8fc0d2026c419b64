//! What operators see and put right on a cluster while a node is away whose place no other one takes.

use crate::operators::{convoke, ended};
use crate::rig::{self, builder, client, counted_in, left, settings, start};
use crate::support::cluster::{Cluster, node_with};
use crate::support::{eventually, signal, until};
use convoke::client::publish::Outgoing;
use convoke::settings::Settings;
use convoke::{Context, HandlerError};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

const PARTITIONS: u16 = 5;
/// The other nodes go on without it.
const GOES_ON: [&str; 6] = [
    "--save",
    "",
    "--appendonly",
    "no",
    "--cluster-require-full-coverage",
    "no",
];

async fn refuses(_: Context, _: i64) -> Result<i64, HandlerError> {
    Err(HandlerError::internal("never").permanent())
}

/// Each node tells its time all the while, as if it could be pulsed to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_lost_while_a_cluster_serves_nothing() {
    let node = |_| node_with(2000, &["--save", "", "--appendonly", "no"]);
    let cluster = Cluster::joined((0..3).map(node).collect(), 3);
    let ttl = Duration::from_secs(4);
    let start = |id: &str| {
        start(builder(&cluster, PARTITIONS).settings(Settings {
            id: id.into(),
            heartbeat_ttl: ttl,
            ..settings(&cluster, PARTITIONS)
        }))
    };
    let workers = ["w-1", "w-2"].map(start);
    let broadcast = "{cb}:broadcast";
    let count = |kind: &str| {
        let facts = rig::told(&cluster, broadcast, "type");
        facts.iter().filter(|fact| *fact == kind).count()
    };
    until("both are there", || async {
        count("instance.registered") == 2
    })
    .await;
    let control = cluster.owner(broadcast);
    let frozen = (0..3).find(|node| *node != control).unwrap();
    let frozen = cluster.nodes[frozen].pid();
    let mut control = cluster.nodes[control].connect();
    signal(frozen, "STOP");
    let mut serves = || {
        let there = redis::cmd("EXISTS")
            .arg(broadcast)
            .query::<u64>(&mut control);
        there.is_ok()
    };
    eventually("nothing is served", || !serves());
    tokio::time::sleep(2 * ttl).await;
    assert!(!serves());
    signal(frozen, "CONT");
    eventually("all is served again", &mut serves);
    // As long as one who is dead would be looked for.
    tokio::time::sleep(2 * ttl).await;
    assert_eq!(
        (count("instance.lost"), count("instance.registered")),
        (0, 2)
    );
    for worker in workers {
        worker.stop().await;
    }
}

fn key(partition: u16, kind: &str) -> String {
    format!("{{cb:math:{partition}}}:{kind}")
}

/// Kills a primary that has partitions of `math`: with the control plane, or without it. Which partitions it had, and
/// where it was.
fn kill(cluster: &Cluster, with_control: bool) -> (Vec<u16>, String) {
    let control = cluster.owner("{cb}:broadcast");
    let owner = |partition: &u16| cluster.owner(&key(*partition, "events"));
    let mut owners: Vec<usize> = (0..PARTITIONS).map(|n| owner(&n)).collect();
    owners.sort_unstable();
    owners.dedup();
    assert!(owners.len() > 1, "the partitions lie on several nodes");
    let of_domain = owners.into_iter().find(|node| *node != control);
    let victim = match with_control {
        true => control,
        false => of_domain.unwrap(),
    };
    let lost = (0..PARTITIONS).filter(|n| owner(n) == victim).collect();
    let node = &cluster.nodes[victim];
    signal(node.pid(), "KILL");
    eventually("it is gone", || {
        std::net::TcpStream::connect(("127.0.0.1", node.port())).is_err()
    });
    (lost, format!("127.0.0.1:{}", node.port()))
}

/// The lines of a command that could not tell all, and what it said of the rest on stderr.
#[track_caller]
fn told(cluster: &Cluster, words: &[&str]) -> (Vec<Value>, String) {
    let words = [words, &["--format", "json"]].concat();
    let mut told = ended(convoke(cluster, &words).output().unwrap());
    // All nodes that live stood still for half a second.
    while told.2.contains("no node tells") {
        told = ended(convoke(cluster, &words).output().unwrap());
    }
    let (code, out, err) = told;
    assert_eq!(code, 1, "{words:?}: {out}{err}");
    let lines = out.lines().map(|line| serde_json::from_str(line).unwrap());
    (lines.collect(), err)
}

/// The streams that lines name, each once.
fn streams_in(lines: &[Value]) -> Vec<&str> {
    let mut streams: Vec<&str> = lines
        .iter()
        .filter_map(|line| line["stream"].as_str())
        .collect();
    streams.sort_unstable();
    streams.dedup();
    streams
}

/// Dead letters and events for later in each partition.
async fn filled() -> Cluster {
    let cluster = Cluster::of(3, &GOES_ON);
    let worker = start(builder(&cluster, PARTITIONS).handler("math.never", refuses));
    let client = client(&cluster, PARTITIONS);
    for number in 0..80 {
        let id = format!("e-{number:02}");
        let event = Outgoing::new("math.never", &7).id(&id).subject(&id);
        client.publish(&event).await.unwrap();
        let id = format!("later-{number:02}");
        let event = Outgoing::new("math.never", &7)
            .id(&id)
            .subject(&id)
            .delay(Duration::from_secs(3600));
        client.publish(&event).await.unwrap();
    }
    until("all are dead letters", || async {
        left(&cluster, "math", PARTITIONS) == 0
            && counted_in(&cluster, "math", PARTITIONS, "dead", "id").len() == 80
    })
    .await;
    worker.stop().await;
    cluster
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_node_away_operators_see_the_rest_and_which_it_is() {
    let cluster = filled().await;
    let (lost, node) = kill(&cluster, false);
    let rest = |kind: &str| -> Vec<String> {
        let all = (0..PARTITIONS).filter(|n| !lost.contains(n));
        all.map(|n| key(n, kind)).collect()
    };
    for words in [
        &["streams", "dead:math"][..],
        &["dead", "list", "math", "--entries"],
        &["dead", "list", "math"],
    ] {
        let (lines, err) = told(&cluster, words);
        assert_eq!(streams_in(&lines), rest("dead"), "{words:?}");
        // On a busy machine a warning may come before it.
        let said = err.lines().find(|line| line.contains("unreachable"));
        let said: Value = serde_json::from_str(said.unwrap()).unwrap();
        let said = &said["unreachable"];
        assert_eq!(said["node"], node, "{words:?}: {err}");
        assert_eq!(said["streams"].as_array().unwrap().len(), lost.len());
        assert!(said["error"].as_str().unwrap().contains("refused"), "{err}");
    }
    for words in [
        &["streams"][..],
        &["group", "list"],
        &["pending"],
        &["delayed", "list", "--entries"],
    ] {
        let (lines, err) = told(&cluster, words);
        assert!(err.contains(&node), "{words:?}: {err}");
        let gone: Vec<String> = lost.iter().map(|n| format!("{{cb:math:{n}}}")).collect();
        let all = format!("{lines:?}");
        assert!(
            !gone.iter().any(|tag| all.contains(tag)),
            "{words:?}: {all}"
        );
    }
    for words in [
        &["tail", "dead:math", "--since", "0", "--no-follow"][..],
        &["tail", "*dead:math", "--since", "0", "--no-follow"],
    ] {
        let (lines, err) = told(&cluster, words);
        assert_eq!(streams_in(&lines), rest("dead"), "{words:?}");
        assert!(err.contains(&node), "{words:?}: {err}");
    }
    // Of what is left all is there.
    let shown = |words: &[&str]| told(&cluster, words).0;
    let events = shown(&["streams", "events:math"]);
    assert_eq!(streams_in(&events), rest("events"));
    assert_eq!(
        streams_in(&shown(&["group", "list", "math"])),
        rest("events")
    );
    assert!(shown(&["delayed", "list", "--entries"]).len() < 80);
    let said = ended(convoke(&cluster, &["streams"]).output().unwrap());
    assert!(
        said.2.contains(&format!("{node} cannot be asked")) && said.0 == 1,
        "{said:?}"
    );
    let partitions = shown(&["domain", "show", "math"]);
    let each = partitions[0]["each"].as_array().unwrap();
    assert_eq!(each.len(), usize::from(PARTITIONS));
    for partition in each {
        let number = partition["partition"].as_u64().unwrap() as u16;
        let away = partition["unreachable"] == true;
        assert_eq!(away, lost.contains(&number), "{partition}");
    }
    // Who asks for what lies elsewhere only is told all.
    let here = &rest("dead")[0];
    let alone = ended(convoke(&cluster, &["streams", here]).output().unwrap());
    assert_eq!(alone.0, 0, "{alone:?}");
    assert!(!alone.2.contains("cannot be asked"), "{alone:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_node_away_what_can_be_reached_is_replayed_and_dropped_and_the_rest_named() {
    let cluster = filled().await;
    let (lost, node) = kill(&cluster, false);
    let (before, _) = told(&cluster, &["dead", "list", "math", "--entries"]);
    let first = before[0]["entry"].as_str().unwrap();
    let (dropped, err) = told(&cluster, &["dead", "drop", "math", "--id", first, "--yes"]);
    assert!(dropped[0]["dropped"].as_u64().unwrap() >= 1, "{dropped:?}");
    assert!(err.contains(&node), "{err}");
    let (after, _) = told(&cluster, &["dead", "list", "math", "--entries"]);
    assert!(after.len() < before.len());
    let (_, err) = told(&cluster, &["replay", "dead", "math", "--yes"]);
    assert!(err.contains(&node), "{err}");
    let (left, _) = told(&cluster, &["dead", "list", "math", "--entries"]);
    assert!(left.is_empty(), "{left:?}");
    let (_, err) = told(&cluster, &["delayed", "drop", "math", "--all", "--yes"]);
    assert!(err.contains(&node), "{err}");
    let (left, _) = told(&cluster, &["delayed", "list"]);
    assert!(left.is_empty(), "{left:?}");
    for partition in lost {
        assert!(err.contains(&key(partition, "events")), "{err}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_node_away_events_on_the_others_are_cancelled_and_what_it_has_is_named() {
    for with_control in [false, true] {
        let cluster = filled().await;
        let keys = client(&cluster, PARTITIONS).keys().clone();
        let (lost, node) = kill(&cluster, with_control);
        let ids: Vec<String> = (0..80).map(|number| format!("later-{number:02}")).collect();
        let all = [
            &["cancel", "--yes", "--domain", "math"][..],
            &ids.iter().map(String::as_str).collect::<Vec<_>>(),
        ];
        let all = all.concat();
        let (lines, err) = told(&cluster, &all);
        assert_eq!(lines.len(), ids.len());
        let mut cancelled = 0;
        for line in &lines {
            let id = line["name"].as_str().unwrap();
            let away = lost.contains(&keys.partition_of("math", id));
            let stands = if away { "unknown" } else { "delayed" };
            assert_eq!(
                (&line["state"], &line["cancelled"]),
                (&json!(stands), &json!(!away)),
                "{line}"
            );
            cancelled += usize::from(!away);
        }
        assert!(err.contains(&node), "{err}");
        for partition in lost {
            assert!(err.contains(&key(partition, "events")), "{err}");
        }
        // Wherever they are: by then they are known to be cancelled.
        let (lines, err) = told(&cluster, &[&["cancel", "--yes"][..], &all[4..]].concat());
        let known = lines.iter().filter(|line| line["earlier"].is_object());
        assert_eq!(known.count(), cancelled, "{err}");
        if !with_control {
            let words = ["tail", "--since", "0", "--no-follow", "--format", "json"];
            let (code, facts, err) = ended(convoke(&cluster, &words).output().unwrap());
            assert_eq!(code, 0, "{err}");
            let facts = facts
                .lines()
                .map(|line| serde_json::from_str::<Value>(line).unwrap());
            let facts: Vec<Value> = facts.collect();
            let facts = facts
                .iter()
                .filter(|fact| fact["type"] == "event.cancelled");
            assert_eq!(facts.count(), cancelled);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_follows_streams_sees_what_comes_on_the_others_when_a_node_goes() {
    let cluster = filled().await;
    let mut tail = convoke(&cluster, &["tail", "events:math", "--format", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(tail.stdout.take().unwrap()).lines();
    let add = |number: u16, id: &str| {
        let added: String = cluster.at(
            &key(number, "events"),
            &[
                "XADD",
                &key(number, "events"),
                "*",
                "type",
                "math.never",
                "id",
                id,
            ],
        );
        added
    };
    // It follows when it shows one.
    let (sender, shown) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        while let Some(Ok(line)) = lines.next() {
            sender.send(line).ok();
        }
    });
    eventually("it follows", || {
        add(0, "before");
        shown.recv_timeout(Duration::from_millis(100)).is_ok()
    });
    let (lost, _) = kill(&cluster, false);
    let lives = (0..PARTITIONS).find(|n| !lost.contains(n)).unwrap();
    add(lives, "after");
    eventually("what comes later is shown", || {
        let line = shown.recv_timeout(Duration::from_millis(100));
        line.is_ok_and(|line| line.contains("after"))
    });
    tail.kill().unwrap();
    tail.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_control_plane_operators_see_what_lies_on_the_other_nodes() {
    let cluster = filled().await;
    let (lost, node) = kill(&cluster, true);
    let rest = usize::from(PARTITIONS) - lost.len();
    for words in [
        &["streams", "dead:math"][..],
        &["dead", "list", "math"],
        &["group", "list", "math"],
    ] {
        let (lines, err) = told(&cluster, words);
        assert_eq!(streams_in(&lines).len(), rest, "{words:?}: {lines:?}");
        assert!(
            err.contains(&node) && err.contains("who lives"),
            "{words:?}: {err}"
        );
    }
    told(&cluster, &["pending"]);
    told(&cluster, &["delayed", "list"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_name_a_node_that_is_away_and_tell_the_rest() {
    let cluster = filled().await;
    let worker = start(builder(&cluster, PARTITIONS).handler("math.never", refuses));
    let whole = |words: &[&str]| -> Option<Value> {
        let words = [words, &["--format", "json"]].concat();
        let (code, out, _) = ended(convoke(&cluster, &words).output().unwrap());
        (code == 0).then(|| serde_json::from_str(&out).unwrap())
    };
    until("it is healthy", || async {
        whole(&["health"]).is_some_and(|health| {
            health["status"] == "healthy" && health["services"]["redis"]["away"].is_null()
        })
    })
    .await;
    // A node that stands still for a second counts as away.
    until("its state is of all nodes", || async {
        whole(&["state"])
            .is_some_and(|state| state["redis"]["nodes"] == 3 && state["unreachable"].is_null())
    })
    .await;
    let (lost, node) = kill(&cluster, false);
    let is_lost = |name: &Value| {
        let name = name.as_str().unwrap_or_default();
        lost.iter().any(|n| name.starts_with(&key(*n, "")))
    };
    until(
        "its health names the node, and what flows elsewhere",
        || async {
            whole(&["health"]).is_some_and(|health| {
                let away = &health["services"]["redis"]["away"];
                health["status"] == "degraded"
                    && away[0]["node"] == *node
                    && health["flow"].is_array()
            })
        },
    )
    .await;
    until("its state does", || async {
        whole(&["state"]).is_some_and(|state| {
            let streams = state["streams"].as_array().unwrap();
            let here = |name: &str| streams.iter().any(|stream| stream["name"] == name);
            state["unreachable"][0]["node"] == *node
                && state["redis"]["nodes"] == 2
                && here(&key(0, "dead"))
                && !streams.iter().any(|stream| is_lost(&stream["name"]))
        })
    })
    .await;
    let top = whole(&["top", "--once", "--interval", "100ms"]).unwrap();
    assert_eq!(top["unreachable"][0]["node"], *node, "{top}");
    let dead = top["dead"].as_array().unwrap();
    assert_eq!(dead.len(), usize::from(PARTITIONS) - lost.len(), "{top}");
    assert!(
        !dead.iter().any(|stream| is_lost(&stream["stream"])),
        "{top}"
    );
    drop(worker);
}
