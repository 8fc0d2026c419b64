//! `convoke bench`: that every measurement runs, what it tells, and that it leaves nothing behind.
//! Never how fast anything is.

use super::rig::{lines, names, say};
use super::{Ended, convoke, end, run};
use crate::support::cluster::Cluster;
use crate::support::{self, Redis};
use convoke::protocol::pattern::Patterned;
use serde_json::Value;
use std::process::{Command, Stdio};

/// Little of it, as JSON.
fn bench(redis: &Redis, args: &[&str]) -> (Vec<Value>, Ended) {
    let mut command = convoke(redis, &["bench", "--format=json", "--quick"]);
    let ended = end(command.args(args)).done();
    (lines(&ended.out), ended)
}

/// The figures among the lines, by measurement and case.
fn figures(lines: &[Value]) -> Vec<(&str, &str, &Value)> {
    let figures = lines.iter().filter(|line| line["record"] == "figure");
    let named = figures.map(|figure| {
        let word = |name: &str| figure[name].as_str().unwrap();
        (word("measurement"), word("case"), figure)
    });
    named.collect()
}

fn is_empty(redis: &Redis) -> bool {
    say(redis, "DBSIZE") == redis::Value::Int(0)
}

#[test]
fn the_default_is_told_as_a_stable_contract_and_leaves_nothing_behind() {
    let redis = Redis::start();
    // What is not its own stays.
    say(&redis, "SET bench-x:kept 1");
    let (lines, _) = bench(&redis, &["--events=400", "--requests=5"]);
    assert_eq!(say(&redis, "DBSIZE"), redis::Value::Int(1));
    assert_eq!(
        names(&lines[0]),
        [
            "record",
            "version",
            "redis",
            "client_cores",
            "server_cores",
            "events",
            "requests",
            "rounds"
        ]
    );
    assert_eq!(
        (&lines[0]["record"], &lines[0]["events"]),
        (&"run".into(), &400.into())
    );
    assert!(lines[0]["client_cores"].is_string() && lines[0]["server_cores"].is_string());
    let figures = figures(&lines[1..]);
    let which: Vec<(&str, &str)> = figures.iter().map(|(m, c, _)| (*m, *c)).collect();
    assert_eq!(
        which,
        [
            ("drain", "with replies"),
            ("drain", "without replies"),
            ("publish", "one at a time"),
            ("publish", "pipelined"),
            ("request", "1 in flight"),
            ("request", "16 in flight"),
            ("request", "256 in flight"),
        ]
    );
    for (_, _, figure) in &figures {
        assert_eq!(
            names(figure),
            [
                "record",
                "measurement",
                "case",
                "unit",
                "events",
                "rounds",
                "sides",
                "checks"
            ]
        );
        assert_eq!(figure["rounds"], 1);
        let times = figure["unit"] == "us";
        assert!(times || figure["unit"] == "events/s", "{figure}");
        for side in figure["sides"].as_array().unwrap() {
            let mut expected = vec!["side", "median", "min", "max"];
            expected.extend(times.then_some("p99"));
            expected.extend(["client_cpu_s", "server_cpu_s", "commands", "rss_kib"]);
            expected.extend(["rss_growth_kib", "server_kib", "server_growth_kib"]);
            assert_eq!(names(side), expected, "{figure}");
            let number = |name: &str| side[name].as_f64().unwrap();
            assert!(
                number("min") > 0.0 && number("min") <= number("median"),
                "{side}"
            );
            assert!(number("median") <= number("max"), "{side}");
            assert!(number("rss_kib") > 0.0);
        }
        for check in figure["checks"].as_array().unwrap() {
            assert_eq!(
                names(check),
                ["what", "median", "min", "max", "goal", "reached"]
            );
            assert_eq!(check["goal"].is_null(), check["reached"].is_null());
        }
    }
    let sides = |index: usize| -> Vec<&str> {
        let sides = figures[index].2["sides"].as_array().unwrap().iter();
        sides.map(|side| side["side"].as_str().unwrap()).collect()
    };
    assert_eq!(sides(0), ["raw", "bare", "worker"]);
    assert_eq!(sides(2), ["bare", "client"]);
    assert_eq!(sides(3), ["raw", "bare", "client"]);
    assert_eq!(sides(4), ["bare", "worker", "client and worker"]);
    // A reply costs each of them one command: that no side leaves its work out.
    for side in figures[0].2["sides"].as_array().unwrap() {
        let commands = side["commands"].as_f64().unwrap();
        assert!((1.0..3.0).contains(&commands), "{side}");
    }
    let goal = &figures[0].2["checks"][0];
    assert_eq!(goal["what"], "speed, worker / bare");
    assert_eq!(goal["goal"]["at_least"], 0.95);
}

#[test]
fn heartbeats_of_many_rounds_stay_below_what_a_source_may_send() {
    // On a cluster it is refused: its loops read streams of two slots.
    let redis = Redis::with(&["--save", ""]);
    let args = ["mixed", "--rounds=3", "--requests=600", "--events=300"];
    let (lines, _) = bench(&redis, &args);
    assert_eq!(figures(&lines)[0].2["rounds"], 3);
    assert!(is_empty(&redis));
}

#[test]
fn handlers_that_take_their_time_are_held_against_the_same_work_without_a_bus() {
    let redis = Redis::start();
    let (lines, _) = bench(&redis, &["compute", "block", "wait", "batch"]);
    assert!(is_empty(&redis));
    let figures = figures(&lines);
    let sides: Vec<(&str, Vec<&str>)> = figures
        .iter()
        .map(|(measurement, _, figure)| {
            let sides = figure["sides"].as_array().unwrap().iter();
            let sides = sides.map(|side| side["side"].as_str().unwrap());
            (*measurement, sides.collect())
        })
        .collect();
    let expected = [
        ("compute", vec!["n x 1 thread", "n threads", "worker"]),
        ("block", vec!["ideal", "worker"]),
        ("wait", vec!["timer", "worker"]),
        (
            "batch",
            vec!["one at a time", "64 at a time", "500 an insert"],
        ),
    ];
    assert_eq!(sides, expected);
    for (_, _, figure) in &figures {
        assert!(
            figure["checks"][0]["median"].as_f64().unwrap() > 0.0,
            "{figure}"
        );
    }
}

#[test]
fn the_way_to_the_server_is_made_longer_for_each_side() {
    // On a cluster it is refused: nodes name others, to which the way is short.
    let redis = Redis::with(&["--save", ""]);
    let (lines, _) = bench(&redis, &["distance", "--events=2000"]);
    assert!(is_empty(&redis));
    let figures = figures(&lines);
    let which: Vec<(&str, &str)> = figures.iter().map(|(m, c, _)| (*m, *c)).collect();
    assert_eq!(
        which,
        ["0", "0.5", "1", "2", "5"]
            .map(|ms| format!("a round trip of {ms} ms"))
            .each_ref()
            .map(|case| ("distance", case.as_str()))
    );
    for (at, (_, _, figure)) in figures.iter().enumerate() {
        let sides = figure["sides"].as_array().unwrap();
        let named: Vec<&str> = sides.iter().map(|s| s["side"].as_str().unwrap()).collect();
        assert_eq!(named, ["raw", "bare", "worker"]);
        let checks = figure["checks"].as_array().unwrap();
        let whats: Vec<&str> = checks.iter().map(|c| c["what"].as_str().unwrap()).collect();
        let measured = "round trip as measured, ms";
        assert_eq!(
            whats,
            ["speed, worker / raw", "speed, worker / bare", measured]
        );
        assert_eq!(checks[0]["goal"].is_null(), at != 3);
        // It is no shorter than was asked for.
        let least = [0.0, 0.5, 1.0, 2.0, 5.0][at];
        assert!(checks[2]["min"].as_f64().unwrap() >= least, "{figure}");
    }
}

#[test]
fn programs_that_stay_are_held_against_one_for_each_event_and_the_raw_loop() {
    let redis = Redis::start();
    let (lines, _) = bench(&redis, &["pipe", "--events=300", "--requests=20"]);
    assert!(is_empty(&redis));
    let figures = figures(&lines);
    let [(_, _, speed), (_, _, latency)] = figures[..] else {
        panic!("{lines:?}");
    };
    for (figure, first, unit) in [(speed, "raw", "events/s"), (latency, "bare", "us")] {
        assert_eq!(
            (&figure["measurement"], &figure["unit"]),
            (&"pipe".into(), &unit.into())
        );
        let sides = figure["sides"].as_array().unwrap();
        let named: Vec<&str> = sides.iter().map(|s| s["side"].as_str().unwrap()).collect();
        assert_eq!(named, [first, "--exec", "--pipe, JSON", "--pipe, msgpack"]);
        for side in sides {
            assert!(side["median"].as_f64().unwrap() > 0.0, "{figure}");
            assert_eq!(side["p99"].is_object(), unit == "us", "{figure}");
        }
        let ratios = figure["checks"].as_array().unwrap().len();
        assert_eq!(ratios, if unit == "us" { 4 } else { 5 }, "{figure}");
    }
}

#[test]
fn every_other_measurement_runs_and_leaves_nothing_behind() {
    let redis = Redis::start();
    // Those two need one server.
    let goes = |name: &str| !(support::is_cluster() && ["mixed", "streams"].contains(&name));
    let mut args = vec!["mixed", "sizes", "replicas", "streams", "entries"];
    args.push("--events=200");
    args.retain(|name| goes(name));
    let (lines, _) = bench(&redis, &args);
    assert!(is_empty(&redis));
    let figures = figures(&lines);
    let which: Vec<(&str, &str)> = figures.iter().map(|(m, c, _)| (*m, *c)).collect();
    let mut expected = vec![
        ("mixed", "heartbeats under a flood"),
        ("sizes", "64 B"),
        ("sizes", "256 B"),
        ("sizes", "1 KiB"),
        ("sizes", "4 KiB"),
        ("sizes", "16 KiB"),
        ("sizes", "64 KiB"),
        ("replicas", "1 replica"),
        ("replicas", "2 replicas"),
        ("streams", "10 streams"),
        ("streams", "30 streams"),
        ("entries", "500 entries"),
        ("entries", "5,000 entries"),
    ];
    expected.retain(|(name, _)| goes(name));
    assert_eq!(which, expected);
    for (measurement, _, figure) in figures {
        let raw = &figure["sides"][0];
        assert_eq!(raw["side"] == "raw", measurement != "mixed", "{figure}");
        assert_eq!(figure["sides"][2]["side"], "worker");
    }
}

#[test]
fn patterns_are_compared_on_the_same_load_and_with_the_leader_killed() {
    let redis = Redis::start();
    let (lines, _) = bench(&redis, &["patterns", "--requests=100"]);
    let figures = figures(&lines);
    let which: Vec<(&str, &str)> = figures.iter().map(|(m, c, _)| (*m, *c)).collect();
    let of_size = |size: u32| {
        let (others, decide, all) = (size - 1, (size - 1) / 2 + 1, size + 1);
        [
            format!("what each of {others} instances keeps of its health every third of its ttl"),
            format!("a pulse, {size} instances that are busy"),
            format!("system.health, {size} instances"),
            format!("system.metrics, {size} instances"),
            format!("system.get_state, {size} instances"),
            format!("a task until it runs, {all} instances of which two work"),
            format!("a vote of {others} instances, of which {decide} decide"),
            format!("a batch of 200 items, fanned out, {all} instances of which two work"),
        ]
    };
    let killed =
        Patterned::ALL.map(|event| format!("{}, the leader of 3 killed, ttl 3s", event.kind()));
    let small = of_size(10);
    let cases = [&small[..], &killed].concat();
    let cases: Vec<_> = cases
        .iter()
        .map(|case| ("patterns", case.as_str()))
        .collect();
    assert_eq!(which, cases);
    for (at, sides, first) in [
        (1, 3, "centralized"),
        (2, 3, "centralized"),
        (3, 3, "centralized"),
        (4, 2, "centralized"),
        (5, 3, "centralized"),
        (6, 3, "centralized"),
        (7, 3, "centralized"),
    ] {
        let sides_of = figures[at].2["sides"].as_array().unwrap();
        assert_eq!(sides_of.len(), sides);
        assert_eq!(sides_of[0]["side"], first);
        let checks = figures[at].2["checks"].as_array().unwrap().iter();
        let hops = checks.filter(|check| check["what"].as_str().unwrap().starts_with("hops, "));
        assert_eq!(hops.count(), sides);
    }
    for (event, figure) in Patterned::ALL.iter().zip(&figures[small.len()..]) {
        let checks = figure.2["checks"].as_array().unwrap();
        for pattern in event.built() {
            let of = |check: &&Value| {
                check["what"]
                    .as_str()
                    .unwrap()
                    .starts_with(pattern.as_str())
            };
            assert!(checks.iter().filter(of).count() >= 4, "{checks:?}");
        }
        // One who votes and lives, and had no time for a pulse, is no elector of the next ballot: its vote is refused.
        let is_refused =
            |what: &str| what.ends_with("wrong or refused") && *event != Patterned::Quorum;
        let done = |check: &&Value| {
            let what = check["what"].as_str().unwrap();
            is_refused(what) || what.ends_with("never done")
        };
        // Of 60; who lives and had no time for a pulse is taken for dead, with what it holds.
        for check in checks.iter().filter(done) {
            assert!(check["max"].as_f64().unwrap() <= 15.0, "{check}");
        }
    }
    // It is asked and answered.
    let hops = &figures[2].2["checks"][0];
    assert_eq!(hops["what"], "hops, centralized");
    assert!(hops["median"].as_f64().unwrap() >= 2.0, "{hops}");
    assert!(is_empty(&redis));
}

#[test]
fn an_idle_worker_is_watched_and_ends() {
    let redis = Redis::start();
    let (lines, _) = bench(&redis, &["idle"]);
    assert!(is_empty(&redis));
    let (_, _, idle) = figures(&lines)[0];
    let memory = &idle["checks"][0];
    assert_eq!(memory["what"], "resident memory, MiB");
    assert!(memory["median"].as_f64().unwrap() > 1.0, "{idle}");
    // The one that asks.
    support::eventually("only this test is connected", || {
        let redis::Value::BulkString(clients) = say(&redis, "CLIENT LIST") else {
            return false;
        };
        String::from_utf8_lossy(&clients).lines().count() == support::size()
    });
}

#[test]
fn a_cluster_is_held_against_one_server() {
    let redis = Redis::with(&["--save", ""]);
    let cluster = Cluster::of_three();
    let hosts = cluster.nodes.iter().map(|node| node.port().to_string());
    let hosts: Vec<String> = hosts.map(|port| format!("127.0.0.1:{port}")).collect();
    let url = format!("redis+cluster://{}", hosts.join(","));
    let args = ["cluster", "--events=300", "--cluster", &url];
    let (lines, _) = bench(&redis, &args);
    assert!(is_empty(&redis) && cluster.nodes.iter().all(is_empty));
    let figures = figures(&lines);
    let which: Vec<&str> = figures.iter().map(|(_, case, _)| *case).collect();
    assert_eq!(
        which,
        [
            "what stays in its slot, 1 partition",
            "what stays in its slot, 3 partitions, one on each node",
            "each event publishes one into a slot of another node",
            "a worker with nothing to do, 1 partition",
            "a worker with nothing to do, 16 partitions",
        ]
    );
    for (at, sides) in [2, 2, 4].into_iter().enumerate() {
        assert_eq!(figures[at].2["sides"].as_array().unwrap().len(), sides);
    }
    for at in [3, 4] {
        let check = &figures[at].2["checks"][0];
        assert_eq!(check["what"], "connections");
        assert!(check["median"].as_f64().unwrap() > 0.0, "{check}");
    }
}

#[test]
fn a_soak_tells_the_memory_at_ten_points() {
    let redis = Redis::start();
    let ended = run(&redis, &["bench", "--soak=0.002", "--format=json"]).done();
    assert!(is_empty(&redis));
    let lines = lines(&ended.out);
    let points: Vec<&Value> = lines.iter().filter(|l| l["record"] == "point").collect();
    assert_eq!(points.len(), 10);
    assert_eq!(points[9]["events"], 2000);
    for name in ["rss_kib", "heap_kib", "server_kib", "events_per_s"] {
        assert!(points[0][name].as_f64().unwrap() > 0.0, "{name}");
    }
    let figure = figures(&lines)[0];
    assert_eq!(figure.0, "soak");
    assert!(figure.2["checks"][0]["goal"]["at_most"].is_number());
}

#[test]
fn people_get_bars_and_goals() {
    let redis = Redis::start();
    let args = ["bench", "drain", "--quick", "--events=100", "--rounds=2"];
    let text = run(&redis, &args).done().out;
    assert!(
        text.contains("drain: with replies, 100 events, 2 rounds\n"),
        "{text}"
    );
    assert!(text.contains("cores: client "), "{text}");
    assert!(text.contains("\nworker "), "{text}");
    assert!(text.contains('█'), "{text}");
    assert!(text.contains("goal at least 0.95: "), "{text}");
}

#[test]
fn interrupted_it_leaves_nothing_behind_and_says_so() {
    let redis = Redis::start();
    // By hand, with a worker in the process, with one of its own.
    let events = match support::is_cluster() {
        false => "*:events:bench0",
        true => "*:bench0:0}:events",
    };
    for (what, signal, at_work) in [
        ("drain", "INT", events),
        ("publish", "TERM", events),
        ("request", "INT", "*:reply:bench"),
        ("--soak=5", "INT", "*:reply:bench"),
        ("--soak=5", "TERM", "*:instance:bench-0"),
        ("idle", "INT", "*:instance:bench-idle"),
    ] {
        let mut command: Command = convoke(&redis, &["bench", what]);
        if !what.starts_with('-') {
            command.args(["--events=10000000", "--requests=10000000"]);
        }
        let child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        support::eventually("it is at work", || {
            let found = say(&redis, &format!("KEYS {at_work}"));
            found != redis::Value::Array(Vec::new())
        });
        support::signal(child.id(), signal);
        let output = child.wait_with_output().unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{what}: {err}");
        assert!(err.contains("interrupted"), "{what}: {err}");
        assert!(is_empty(&redis), "{what}");
    }
}

#[test]
fn what_can_not_be_measured_is_wrong_usage() {
    let redis = Redis::start();
    run(&redis, &["bench", "walk"]).failed(2, &["walk", "drain"]);
    run(&redis, &["bench", "--soak", "0"]).failed(2, &["--soak"]);
    run(&redis, &["bench", "--soak", "NaN"]).failed(2, &["--soak"]);
    run(&redis, &["bench", "drain", "--soak", "1"]).failed(2, &["--soak"]);
    run(&redis, &["bench", "cluster"]).failed(2, &["--cluster"]);
    run(&redis, &["bench", "--cluster", "redis://a:1"]).failed(2, &["redis+cluster://"]);
    let mut mixed = convoke(&redis, &["bench", "drain", "mixed"]);
    mixed.env("CONVOKE_REDIS_URL", "redis+cluster://127.0.0.1:1");
    end(&mut mixed).failed(2, &["mixed: ", "one server"]);
    run(&redis, &["bench", "--events", "0"]).failed(2, &["--events"]);
    assert!(is_empty(&redis));
}
