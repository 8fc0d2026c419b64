//! What operators see and put right on a cluster: streams of several nodes, as one.

use crate::rig::{builder, client, counted, counted_in, double, left, settings, start};
use crate::support::cluster::Cluster;
use crate::support::{new_directory, until, users};
use convoke::client::publish::Outgoing;
use convoke::ledger::Database;
use convoke::settings::{DatabaseUrl, Settings};
use convoke::{Context, HandlerError, Progress, Worker};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

const PARTITIONS: u16 = 5;

async fn refuses(_: Context, _: i64) -> Result<i64, HandlerError> {
    Err(HandlerError::internal("never").permanent())
}

pub(crate) fn convoke(cluster: &Cluster, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_convoke"));
    let user = users::of_command(words).unwrap_or(users::OPERATOR);
    command.env("CONVOKE_REDIS_URL", cluster.url_for(user));
    command.env("CONVOKE_PARTITIONS", PARTITIONS.to_string());
    command.args(words).stdin(Stdio::null());
    command
}

pub(crate) fn ended(output: Output) -> (i32, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let code = output.status.code().unwrap();
    (code, text(output.stdout), text(output.stderr))
}

/// What a command prints, line by line.
#[track_caller]
fn lines(cluster: &Cluster, words: &[&str]) -> Vec<Value> {
    let words = [words, &["--format", "json"]].concat();
    let (code, out, err) = ended(convoke(cluster, &words).output().unwrap());
    assert_eq!(code, 0, "{words:?}: {out}{err}");
    let lines = out.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn texts(lines: &[Value], name: &str) -> Vec<String> {
    let mut texts: Vec<String> = lines
        .iter()
        .map(|line| line[name].as_str().unwrap_or_default().to_owned())
        .collect();
    texts.sort();
    texts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operators_look_at_all_nodes_as_one_and_put_right_what_lies_on_them() {
    let cluster = Cluster::of_three();
    let worker = start(builder(&cluster, PARTITIONS).handler("math.never", refuses));
    let client = client(&cluster, PARTITIONS);
    let all: Vec<String> = (0..40).map(|number| format!("e-{number:02}")).collect();
    for id in &all {
        let event = Outgoing::new("math.never", &7)
            .id(id)
            .subject(id)
            .source("shop");
        client.publish(&event).await.unwrap();
    }
    let letters = || counted_in(&cluster, "math", PARTITIONS, "dead", "id");
    until("all are dead letters", || async {
        left(&cluster, "math", PARTITIONS) == 0 && letters().len() == all.len()
    })
    .await;
    let held = (0..PARTITIONS).filter(|n| {
        let dead = format!("{{cb:math:{n}}}:dead");
        !counted(&cluster, &dead, "id").is_empty()
    });
    assert!(held.count() > 2, "the letters lie in several slots");

    let streams = lines(&cluster, &["streams", "events:math", "dead:math"]);
    assert_eq!(streams.len(), 2 * usize::from(PARTITIONS), "{streams:?}");
    let all_streams = texts(&lines(&cluster, &["streams"]), "stream");
    for stream in ["{cb}:broadcast", "{cb:math:0}:events", "{cb:math:4}:dead"] {
        assert!(
            all_streams.iter().any(|seen| seen == stream),
            "{stream}: {all_streams:?}"
        );
    }
    let dead = lines(&cluster, &["dead", "list", "--entries"]);
    assert_eq!(texts(&dead, "id"), all);
    let groups = lines(&cluster, &["group", "list", "events:math"]);
    assert_eq!(groups.len(), usize::from(PARTITIONS), "{groups:?}");
    let story = lines(&cluster, &["trace", "e-07"]);
    assert!(
        story.iter().any(|step| step.to_string().contains("never")),
        "{story:?}"
    );
    let told = lines(
        &cluster,
        &["tail", "dead:math", "--since", "0", "--no-follow"],
    );
    assert_eq!(told.len(), all.len());
    until("top sees all nodes and letters", || async {
        let seen = lines(&cluster, &["top", "--once", "--interval=100ms"]);
        seen[0]["redis"]["nodes"] == 3 && seen[0]["dead_letters"] == all.len()
    })
    .await;
    let found = ended(convoke(&cluster, &["doctor", "--all"]).output().unwrap()).1;
    assert!(found.contains("cluster-replicas"), "{found}");
    assert_eq!(found.matches("cluster-coverage").count(), 3, "{found}");

    worker.stop().await;
    let worker = start(builder(&cluster, PARTITIONS).handler("math.never", double));
    let replayed = convoke(&cluster, &["replay", "dead", "math", "--yes"]).output();
    let (code, out, err) = ended(replayed.unwrap());
    assert_eq!(code, 0, "{out}{err}");
    until("all are done", || async {
        letters().is_empty()
            && left(&cluster, "math", PARTITIONS) == 0
            && counted_in(&cluster, "math", PARTITIONS, "results", "correlationid").len() == 40
    })
    .await;
    let results = counted_in(&cluster, "math", PARTITIONS, "results", "correlationid");
    assert!(results.values().all(|count| *count == 1), "{results:?}");
    let facts = lines(
        &cluster,
        &["tail", "broadcast", "--since", "0", "--no-follow"],
    );
    let replayed = facts
        .iter()
        .filter(|fact| fact["type"] == "operator.replayed");
    let entries: u64 = replayed
        .map(|fact| fact["data"]["count"].as_u64().unwrap())
        .sum();
    assert_eq!(entries, 40);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_its_time_is_seen_and_run_on_each_node() {
    let cluster = Cluster::of_three();
    let worker = start(builder(&cluster, PARTITIONS).handler("math.double", double));
    let client = client(&cluster, PARTITIONS);
    for number in 0..20 {
        let event = Outgoing::new("math.double", &number)
            .id(format!("e-{number:02}"))
            .delay(Duration::from_secs(3600));
        client.publish(&event).await.unwrap();
    }
    let listed = lines(&cluster, &["delayed", "list", "--entries"]);
    assert_eq!(listed.len(), 20, "{listed:?}");
    let dropped = convoke(&cluster, &["delayed", "drop", "--id", "e-00,e-01", "--yes"]);
    let (code, out, err) = ended({ dropped }.output().unwrap());
    assert_eq!(code, 0, "{out}{err}");
    let ran = convoke(&cluster, &["delayed", "run-now", "--all", "--yes"]);
    let (code, out, err) = ended({ ran }.output().unwrap());
    assert_eq!(code, 0, "{out}{err}");
    until("the rest ran", || async {
        counted_in(&cluster, "math", PARTITIONS, "results", "correlationid").len() == 18
            && left(&cluster, "math", PARTITIONS) == 0
    })
    .await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_runs_is_seen_as_pending_wherever_it_lies() {
    async fn stands_still(context: Context, number: i64) -> Result<(), HandlerError> {
        context.progress(Progress::new(number as u64).of(100).note("rows"));
        context.cancellation().cancelled().await;
        Ok(())
    }
    let cluster = Cluster::of_three();
    let worker = start(builder(&cluster, PARTITIONS).handler("math.still", stands_still));
    let client = client(&cluster, PARTITIONS);
    for number in 0..12 {
        let id = format!("e-{number:02}");
        let event = Outgoing::new("math.still", &number).id(&id).subject(&id);
        client.publish(&event).await.unwrap();
    }
    until("all are being run", || async {
        lines(&cluster, &["pending"]).len() == 12
    })
    .await;
    let pending = lines(&cluster, &["pending", "--where", "source", "--limit", "3"]);
    assert!(pending.len() <= 3);
    // How far they are is known though nobody asked for it: of some of them.
    until("top has their progress, and looks at all nodes", || async {
        let look = lines(&cluster, &["top", "--once", "--interval", "100ms"]).remove(0);
        let runs = look["runs"].as_array().unwrap();
        let progress = |run: &&Value| {
            let told = &run["progress"];
            run["type"] == "math.still" && told["total"] == 100 && told["note"] == "rows"
        };
        runs.len() == 12
            && runs.iter().filter(progress).count() == 8
            && look["redis"]["nodes"] == 3
            && look["unreachable"] == json!([])
    })
    .await;
    drop(worker);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_owns_a_partition_and_which_subjects_are_held_up_is_seen_on_every_node() {
    let cluster = Cluster::of_three();
    let set = [
        "domain",
        "set",
        "math",
        "--order",
        "subject",
        "--partitions",
        "5",
    ];
    let (code, out, err) = ended(convoke(&cluster, &set).output().unwrap());
    assert_eq!(code, 0, "{out}{err}");
    let settings = Settings {
        id: "w-1".into(),
        max_attempts: 1000,
        // A lane that begins again notes also those that wait behind.
        heartbeat_ttl: Duration::from_secs(60),
        claim_idle: Duration::from_secs(60),
        ..settings(&cluster, PARTITIONS)
    };
    let worker = Worker::builder().settings(settings);
    let worker = start(
        worker.handler("math.odd", |_: Context, number: i64| async move {
            match number {
                7 => Err(HandlerError::internal("odd")),
                number => Ok(number),
            }
        }),
    );
    let client = client(&cluster, PARTITIONS);
    let held: Vec<String> = (0..10).map(|number| format!("s-{number}")).collect();
    for subject in &held {
        for number in [7, 8] {
            let event = Outgoing::new("math.odd", &number).subject(subject);
            client.publish(&event).await.unwrap();
        }
    }
    let show = || lines(&cluster, &["domain", "show", "math", "--held"]);
    until("all of them are held up", || async {
        let shown = show();
        texts(&shown, "subject") == held && shown.iter().all(|one| one["attempt"] != 1)
    })
    .await;
    let shown = show();
    let partitions: BTreeSet<u64> = shown
        .iter()
        .map(|one| one["partition"].as_u64().unwrap())
        .collect();
    assert!(partitions.len() > 1, "{shown:?}");
    for one in &shown {
        assert_eq!(
            (&one["code"], &one["message"]),
            (&json!("internal"), &json!("odd"))
        );
        assert_eq!(
            (&one["data"], &one["type"]),
            (&json!(7), &json!("math.odd"))
        );
        assert!(one["due_at"].as_u64().unwrap() > 1_000_000_000_000, "{one}");
    }
    for stream in lines(&cluster, &["streams", "events:math"]) {
        let group = &stream["groups"][0];
        assert_eq!(group["owner"]["instance"], "w-1", "{stream}");
        let number = stream["stream"].as_str().unwrap();
        let here = |one: &&Value| one["stream"] == number;
        assert_eq!(group["held"], shown.iter().filter(here).count(), "{stream}");
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ledger_is_filled_from_every_slot() {
    let cluster = Cluster::of_three();
    let dir = new_directory("ledger");
    let url = format!("sqlite:{}", dir.join("ledger.db").display());
    let database_url = DatabaseUrl::new(url.as_str());
    Database::new(&database_url)
        .unwrap()
        .migrate()
        .await
        .unwrap();
    let settings = Settings {
        database_url,
        ..settings(&cluster, PARTITIONS)
    };
    let worker = Worker::builder().settings(settings);
    let worker = start(worker.handler("math.never", refuses));
    let client = client(&cluster, PARTITIONS);
    let all: Vec<String> = (0..20).map(|number| format!("e-{number:02}")).collect();
    for id in &all {
        let event = Outgoing::new("math.never", &7).id(id).subject(id);
        client.publish(&event).await.unwrap();
    }
    let kept = || {
        let words = ["history", "--dead", "--database-url", &url];
        let facts = lines(&cluster, &words);
        let events = facts
            .iter()
            .map(|fact| fact["fields"]["id"].as_str().unwrap_or_default());
        events.map(str::to_owned).collect::<BTreeSet<_>>()
    };
    let wanted: BTreeSet<String> = all.into_iter().collect();
    until("all dead letters are in the ledger", || async {
        kept() == wanted
    })
    .await;
    worker.stop().await;
    std::fs::remove_dir_all(dir).unwrap();
}

async fn holds(context: Context, _: i64) -> Result<i64, HandlerError> {
    context.cancellation().cancelled().await;
    Err(HandlerError::aborted("told"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_of_each_node_are_cancelled_however_they_stand() {
    let cluster = Cluster::of_three();
    let worker = start(
        builder(&cluster, PARTITIONS)
            .handler("math.hold", holds)
            .handler("math.double", double),
    );
    let client = client(&cluster, PARTITIONS);
    let ids =
        |stands: &str| -> Vec<String> { (0..12).map(|n| format!("{stands}-{n:02}")).collect() };
    let (runs, later, done) = (ids("runs"), ids("later"), ids("done"));
    let event = |kind: &str, id: &String| Outgoing::new(kind, &7).id(id).subject(id);
    for id in &done {
        client.publish(&event("math.double", id)).await.unwrap();
    }
    until("some have ended", || async {
        counted_in(&cluster, "math", PARTITIONS, "results", "correlationid").len() == done.len()
    })
    .await;
    for id in &later {
        let delayed = event("math.double", id).delay(Duration::from_secs(3600));
        client.publish(&delayed).await.unwrap();
    }
    for id in &runs {
        client.publish(&event("math.hold", id)).await.unwrap();
    }
    let cancel = |ids: &[String]| {
        let ids = ids.iter().map(String::as_str);
        let words: Vec<&str> = ["cancel", "--yes", "--format", "json"]
            .into_iter()
            .chain(ids)
            .collect();
        let (_, out, err) = ended(convoke(&cluster, &words).output().unwrap());
        let lines: Vec<Value> = out
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines.len(), words.len() - 4, "{out}{err}");
        lines
    };
    let is = |line: &Value, state: &str, cancelled: bool| {
        line["state"] == state && line["cancelled"] == cancelled
    };
    until("those that hold run", || async {
        let looked = lines(&cluster, &["pending", "--stream", "events:math"]);
        looked.len() == runs.len()
    })
    .await;
    let told = cancel(&runs);
    assert!(
        told.iter().all(|line| is(line, "running", true)),
        "{told:?}"
    );
    let told = cancel(&later);
    assert!(
        told.iter().all(|line| is(line, "delayed", true)),
        "{told:?}"
    );
    let told = cancel(&done);
    assert!(
        told.iter().all(|line| is(line, "finished", false)),
        "{told:?}"
    );
    let told = cancel(&[runs.clone(), later.clone()].concat());
    assert!(
        told.iter().all(|line| line["cancelled"] == true),
        "again: {told:?}"
    );
    until("nothing of them is left", || async {
        left(&cluster, "math", PARTITIONS) == 0
            && lines(&cluster, &["delayed", "list"]).is_empty()
            && lines(&cluster, &["pending", "--stream", "events:math"]).is_empty()
    })
    .await;
    let results = counted_in(&cluster, "math", PARTITIONS, "results", "correlationid");
    assert_eq!(results.len(), done.len(), "{results:?}");
    let facts = lines(
        &cluster,
        &["tail", "broadcast", "--since", "0", "--no-follow"],
    );
    let cancelled = facts
        .iter()
        .filter(|fact| fact["type"] == "event.cancelled");
    assert_eq!(cancelled.count(), runs.len() + later.len());
    worker.stop().await;
}
