//! The commands that look at what instances share: `vote`, `state`, `discover`, `instances`.

use super::worker::Worker;
use super::{bare, convoke, end, run};
use crate::support::{self, Redis, eventually, name};
use convoke::connect::connector::Connector;
use convoke::coordination::instances::Instances;
use convoke::coordination::instances::instance::{Beat, Registering};
use convoke::settings::RedisUrl;
use serde_json::{Value, json};

fn lines(out: &str) -> Vec<Value> {
    let lines = out.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn instances(redis: &Redis) -> Instances {
    let connector = Connector::new(&RedisUrl::new(redis.url()), 1).unwrap();
    Instances::of_process(connector, support::keys(), "test")
}

async fn register(redis: &Redis, ids: &[&str], role: &str) {
    for id in ids {
        let registering = Registering::new(*id, [role]);
        instances(redis).register(&registering).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn votes_are_cast_and_ballots_shown() {
    let redis = Redis::start();
    run(&redis, &["vote", "list"])
        .done()
        .failed(0, &["no ballots"]);
    let worker = Worker::start(&redis, "w-1", &mut convoke(&redis, &["worker", "--id=w-1"]));
    register(&redis, &["v-1", "v-2", "v-3"], "voter").await;
    let cast = |voter: &str, value: &str, more: &[&str]| {
        let words = [
            "vote",
            "cast",
            "up-1",
            "--instance",
            voter,
            "--value",
            value,
        ];
        run(&redis, &[&words, more].concat())
    };
    let first = cast("v-1", "\"yes\"", &["--role", "voter", "--expires-in", "1h"]).done();
    assert_eq!(
        first.out,
        "counted; open (1 of 3 voted, 2 for one value decide)\n"
    );
    let open = run(&redis, &["vote", "list", "--format", "json"])
        .done()
        .json();
    assert_eq!(
        (&open["status"], &open["role"]),
        (&json!("open"), &json!("voter"))
    );
    assert_eq!(
        open["expires_at"].as_u64().unwrap() - open["opened_at"].as_u64().unwrap(),
        3_600_000
    );
    cast("v-1", "\"no\"", &[]).failed(1, &["already_exists", "v-1"]);
    cast("w-1", "\"yes\"", &[]).failed(1, &["failed_precondition", "electorate"]);
    cast("v-2", "yes", &[]).failed(2, &["--value", "'\"yes\"'"]);
    let voted = cast("v-2", "\"yes\"", &["--format", "json"]).done().json();
    let expected = json!({
        "voted": true, "quorum_reached": true, "final_decision": "yes", "vote_count": 2,
        "quorum": 2, "electorate": 3, "status": "decided"
    });
    assert_eq!(voted, expected);
    let late = cast("v-3", "\"no\"", &[]).done().out;
    assert!(
        late.starts_with("not counted; decided: \"yes\" (2 of 3"),
        "{late}"
    );

    let shown = run(&redis, &["vote", "show", "up-1"]).done().out;
    for part in [
        "up-1: decided: \"yes\"",
        "role voter",
        "2 for \"yes\"",
        "v-3",
    ] {
        assert!(shown.contains(part), "{part} is not in {shown}");
    }
    let shown = run(&redis, &["vote", "show", "up-1", "--format", "json"])
        .done()
        .json();
    let votes = json!([
        {"instance": "v-1", "value": "yes"}, {"instance": "v-2", "value": "yes"}, {"instance": "v-3"}
    ]);
    assert_eq!(shown["votes"], votes);
    assert_eq!(shown["final_decision"], "yes");
    assert!(shown["ended_at"].is_u64() && shown["kept_until"].is_u64());
    let list = run(&redis, &["vote", "list"]).done().out;
    assert!(
        list.contains("up-1") && list.contains("decided: \"yes\""),
        "{list}"
    );
    run(&redis, &["vote", "show", "other"]).failed(1, &["no ballot on other"]);
    worker.stop().done();
}

#[test]
fn wrong_usage_of_votes_ends_with_2() {
    end(bare().args(["vote"])).failed(2, &["Usage"]);
    end(bare().args(["vote", "show", "a b"])).failed(2, &["a b"]);
    end(bare().args(["vote", "cast", "d", "--value", "1"])).failed(2, &["--instance"]);
    end(bare().args(["vote", "list", "--limit", "0"])).failed(2, &["--limit"]);
    end(bare().args(["instances", "--sort", "height"])).failed(2, &["height", "load"]);
    end(bare().args(["state", "--recent", "101"])).failed(2, &["--recent"]);
}

#[test]
fn a_pattern_is_chosen_for_all_workers_and_taken_back() {
    let redis = Redis::start();
    let mut command = convoke(&redis, &["worker", "--id=w-1"]);
    let worker = Worker::start(&redis, "w-1", &mut command);
    let set = run(&redis, &["pattern", "set", "health", "hybrid"])
        .done()
        .out;
    assert_eq!(set, "health: hybrid, version 1\n");
    let listed = run(&redis, &["pattern", "list"]).done().out;
    for part in ["health", "hybrid", "bus", "centralized,distributed,hybrid"] {
        assert!(listed.contains(part), "{part} is not in {listed}");
    }
    // Who has set it is told like all others.
    eventually("its answers follow", || {
        let state = run(&redis, &["state"]).done().out;
        state.contains("health hybrid")
    });
    let top = run(&redis, &["top", "--once"]).done().out;
    assert!(top.contains("health hybrid"), "{top}");
    let json = ["instances", "--format", "json"];
    eventually("it says that it follows", || {
        let listed = run(&redis, &json).done().out;
        lines(&listed)[0]["patterns"]["health"] == "hybrid"
    });
    let listed = run(&redis, &["instances"]).done().out;
    assert!(listed.contains("health=hybrid"), "{listed}");
    run(&redis, &["health"]).done();
    let told = run(&redis, &["metrics", "--detailed"]).done().out;
    assert!(
        told.contains("PATTERN") && told.contains("AGE P99"),
        "{told}"
    );
    let late = ["pattern", "set", "health", "distributed", "--version", "7"];
    run(&redis, &late).failed(1, &["aborted", "version 1"]);
    let health = || run(&redis, &["health"]).done().out;
    eventually("it is put together", || {
        health().contains("from the reports of 1, up to")
    });
    for (event, says) in [
        ("state", "as the leader saw it "),
        ("metrics", "by the leader, "),
    ] {
        run(&redis, &["pattern", "set", event, "hybrid"]).done();
        eventually("it says how old it is", || {
            run(&redis, &[event]).done().out.contains(says)
        });
    }
    let cleared = ["pattern", "clear", "system.health", "--format=json"];
    let cleared = run(&redis, &cleared).done().json();
    assert_eq!(
        (&cleared["version"], &cleared["pattern"]),
        (&2.into(), &Value::Null)
    );
    worker.stop().done();
    end(bare().args(["pattern", "set", "discover", "hybrid"])).failed(2, &["health"]);
    end(bare().args(["pattern"])).failed(2, &["Usage"]);
}

#[test]
fn the_state_and_the_methods_are_told_to_people_and_programs() {
    let redis = Redis::start();
    let mut command = convoke(&redis, &["worker", "--id=w-1", "--exec=demo.echo=cat"]);
    let worker = Worker::start(&redis, "w-1", &mut command);
    let state = run(&redis, &["state"]).done().out;
    for part in [
        "instances: 1",
        "w-1",
        "no decisions",
        &name("system", "cb:events:system"),
        "instance.registered",
    ] {
        assert!(state.contains(part), "{part} is not in {state}");
    }
    let state = run(&redis, &["state", "--recent=1", "--format=json"])
        .done()
        .json();
    assert_eq!(state["instances"][0]["id"], "w-1");
    assert_eq!(state["recent_events"].as_array().unwrap().len(), 1);

    let found = run(&redis, &["discover"]).done().out;
    assert!(
        found.contains("demo.echo") && found.contains("1000 in 1m"),
        "{found}"
    );
    let found = run(&redis, &["discover", "demo", "--format", "json"])
        .done()
        .out;
    let methods = lines(&found);
    assert_eq!(methods.len(), 1);
    assert_eq!(
        (&methods[0]["type"], &methods[0]["instances"]),
        (&json!("demo.echo"), &json!(1))
    );
    run(&redis, &["discover", "none"])
        .done()
        .failed(0, &["nobody"]);
    run(&redis, &["discover", "a.b"]).failed(1, &["invalid_argument", "domain"]);
    worker.stop().done();
}

#[tokio::test]
async fn instances_are_filtered_sorted_and_shown_with_their_condition() {
    let redis = Redis::start();
    register(&redis, &["a", "b", "c"], "worker").await;
    register(&redis, &["g"], "gpu").await;
    for (id, load) in [("a", 1.0), ("b", 9.0), ("c", 5.0)] {
        let beat = Beat {
            load: Some(load),
            ..Beat::new(id, None)
        };
        instances(&redis).heartbeat(&beat).await.unwrap();
    }
    let mut connection = redis.connection().await;
    let mut expire = async |id: &str| {
        redis::cmd("ZADD")
            .arg(&["cb:instances:active", "XX", "1000", id])
            .exec_async(&mut connection)
            .await
            .unwrap();
    };
    expire("a").await;
    instances(&redis).sweep(9).await.unwrap();
    expire("c").await;
    let listed = |args: &[&str]| {
        let words = [&["instances", "--format", "json"], args].concat();
        let out = run(&redis, &words).done().out;
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        lines(&out)
            .iter()
            .map(|line| (text(&line["id"]), text(&line["status"])))
            .collect::<Vec<_>>()
    };
    let pairs = |pairs: &[(&str, &str)]| {
        let pairs = pairs.iter();
        pairs
            .map(|(a, b)| (a.to_string(), b.to_string()))
            .collect::<Vec<_>>()
    };
    let all = [
        ("a", "lost"),
        ("b", "healthy"),
        ("c", "suspect"),
        ("g", "healthy"),
    ];
    assert_eq!(listed(&[]), pairs(&all));
    assert_eq!(listed(&["--role", "gpu"]), pairs(&all[3..]));
    let busy = [all[1], all[2], all[0]];
    assert_eq!(listed(&["--role=worker", "--sort=load"]), pairs(&busy));
    run(&redis, &["instances", "--role", "none"])
        .done()
        .failed(0, &["no instances of role none"]);
}

#[tokio::test]
async fn a_slip_in_a_name_is_refused_before_anything_is_published() {
    let redis = Redis::start();
    for (args, named) in [
        (
            &[
                "task",
                "fail",
                "t-1",
                "--instance",
                "",
                "--fence",
                "1",
                "--error",
                "x",
            ][..],
            "instance",
        ),
        (
            &[
                "task",
                "complete",
                "t 1",
                "--instance",
                "w-1",
                "--fence",
                "1",
            ],
            "task",
        ),
        (&["task", "create", "a.b", "--role", ""], "role"),
        (&["task", "get", ""], "task"),
        (
            &["vote", "cast", "d", "--instance", "", "--value", "1"],
            "instance",
        ),
    ] {
        run(&redis, args).failed(2, &[named, "is not 1 to 128"]);
    }
    let keys: Vec<String> = redis::cmd("KEYS")
        .arg("*")
        .query(&mut redis.connect())
        .unwrap();
    assert_eq!(keys, Vec::<String>::new());
}
