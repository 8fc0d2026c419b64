//! Servers on which guarantees are weaker: worker and doctor say so.

use super::rig::lines;
use super::worker::Worker;
use super::{convoke, end};
use crate::support::between::{between, empty_sections};
use crate::support::{self, Redis, users};
use serde_json::Value;
use std::process::Command;

fn without(commands: &[&str]) -> Redis {
    let mut options = vec!["--save", "", "--appendonly", "no"];
    for command in commands {
        options.extend(["--rename-command", command, ""]);
    }
    Redis::with(&options)
}

/// A server that has them, and does not let those who look run them.
fn forbidding(commands: &[&str]) -> Redis {
    let redis = Redis::start();
    let mut command = redis::cmd("ACL");
    command.arg(&["SETUSER", users::MONITOR]);
    for name in commands {
        command.arg(format!("-{}", name.to_lowercase()));
    }
    command.exec(&mut redis.connect()).unwrap();
    redis
}

/// The checks of guarantees that are not fine, with how bad that is.
fn weaker(redis: &Redis) -> Vec<(String, String)> {
    weaker_by(&mut convoke(redis, &["doctor", "--format", "json"]))
}

fn weaker_by(doctor: &mut Command) -> Vec<(String, String)> {
    const GUARANTEES: [&str; 5] = [
        "cluster",
        "primary-told",
        "one-history",
        "server-time",
        "confirm",
    ];
    let ended = end(doctor);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let findings = lines(&ended.out).into_iter().filter(|finding| {
        GUARANTEES.contains(&&*text(&finding["check"])) && finding["status"] != "fine"
    });
    let mut each: Vec<(String, String)> = findings
        .map(|finding| {
            let told = finding["status"] == "unknown"
                || finding["why"].is_string() && finding["fix"].is_string();
            assert!(told, "{finding}");
            (text(&finding["check"]), text(&finding["status"]))
        })
        .collect();
    // On a cluster each node has its own.
    each.sort();
    each.dedup();
    each
}

fn names(found: &[(String, String)]) -> Vec<(&str, &str)> {
    found
        .iter()
        .map(|(c, s)| (c.as_str(), s.as_str()))
        .collect()
}

#[test]
fn each_guarantee_that_is_weaker_is_named() {
    const WARNING: &str = "warning";
    let all = [
        "ROLE", "INFO", "TIME", "WAIT", "CONFIG", "ACL", "CLIENT", "COMMAND", "LATENCY", "SLOWLOG",
        "MEMORY",
    ];
    for (missing, expected) in [
        (&[][..], &[][..]),
        // INFO tells it too.
        (&["ROLE"], &[]),
        (
            &["INFO"],
            &[("cluster", "unknown"), ("one-history", WARNING)],
        ),
        (&["TIME"], &[("server-time", WARNING)]),
        (&["WAIT"], &[("confirm", WARNING)]),
        // Nothing that is promised depends on these.
        (&["CONFIG"], &[]),
        (&["ACL"], &[]),
        (&["CLIENT"], &[]),
        (&["COMMAND"], &[]),
        (&["LATENCY"], &[]),
        (&["SLOWLOG"], &[]),
        (&["MEMORY"], &[]),
        (
            &all,
            &[
                ("cluster", "unknown"),
                ("primary-told", WARNING),
                ("one-history", WARNING),
                ("server-time", WARNING),
                ("confirm", WARNING),
            ],
        ),
    ] {
        for (mut redis, is_there) in [(without(missing), false), (forbidding(missing), true)] {
            // A monitor may not make the key that tells the time, and no worker was there.
            redis.expect_refusals();
            let found = weaker(&redis);
            let mut found = names(&found);
            let mut expected = expected.to_vec();
            // Only of one server is it asked whether it is a node.
            expected
                .retain(|(check, _)| *check != "cluster" || !(is_there && support::is_cluster()));
            // Others may run it.
            for (check, status) in &mut expected {
                if is_there && *check == "confirm" {
                    *status = "unknown";
                }
            }
            found.sort_unstable();
            expected.sort_unstable();
            assert_eq!(found, expected, "without {missing:?}, {is_there}");
        }
    }
    // INFO is there, and its sections tell nothing: as if it were not.
    let redis = Redis::with(&["--save", ""]);
    let port = between(redis.port(), empty_sections).to_string();
    let url = redis.url_for(users::MONITOR);
    let url = url.replace(&redis.port().to_string(), &port);
    let mut doctor = convoke(&redis, &["doctor", "--format", "json"]);
    let found = weaker_by(doctor.env("CONVOKE_REDIS_URL", url));
    let mut found = names(&found);
    found.sort_unstable();
    assert_eq!(found, [("cluster", "unknown"), ("one-history", WARNING)]);
}

#[test]
fn a_worker_says_once_what_the_server_does_not_tell() {
    for (missing, told) in [(&[][..], false), (&["INFO", "TIME"], true)] {
        let redis = without(missing);
        let mut command = convoke(&redis, &["worker", "--id=w-1"]);
        let worker = Worker::start(&redis, "w-1", &mut command);
        let said = worker.stop().done().err;
        let times = said.matches("does not tell").count();
        assert_eq!(times, usize::from(told), "{said}");
        if told {
            assert!(said.contains("history") && said.contains("TIME"), "{said}");
            assert!(said.contains("convoke doctor"), "{said}");
        }
    }
}
