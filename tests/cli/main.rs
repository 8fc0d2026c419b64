//! The command line, as people and scripts use it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../support/mod.rs"]
mod support;

mod batch;
mod bench;
mod cancel;
mod coordination;
mod dead;
mod delayed;
mod doctor;
mod domain;
mod group;
mod guarantees;
mod large;
mod life;
mod metrics;
mod pipe;
mod policies;
mod probe;
mod publish;
mod raw;
mod readme;
mod refusals;
mod replay;
mod rig;
mod secrets;
mod settings;
mod shell;
mod streams;
mod tail;
mod top;
mod trace;
mod worker;

use serde_json::{Value, json};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use support::{Redis, name};

/// The command with nothing set but what the test sets.
fn bare() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_convoke"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CONVOKE_") {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// The command for that server.
fn convoke(redis: &Redis, args: &[&str]) -> Command {
    let mut command = bare();
    let url = redis.url_for_command(args);
    command.env("CONVOKE_REDIS_URL", url).args(args);
    command
}

/// How a command ended.
#[derive(Debug)]
struct Ended {
    code: i32,
    out: String,
    err: String,
}

impl Ended {
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    #[track_caller]
    fn done(self) -> Self {
        assert_eq!(self.code, 0, "{self:?}");
        self
    }

    #[track_caller]
    fn failed(self, code: i32, says: &[&str]) -> Self {
        assert_eq!(self.code, code, "{self:?}");
        for part in says {
            assert!(self.err.contains(part), "{part:?} is not in {self:?}");
        }
        self
    }
}

fn end(command: &mut Command) -> Ended {
    let output = command.output().expect("convoke runs");
    Ended {
        code: output.status.code().expect("not killed"),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// What is asked of a worker, and waited for five seconds unless that is said: little where all wait for a core.
const ASKED: [&str; 8] = [
    "discover", "health", "metrics", "pattern", "pause", "policy", "resume", "state",
];

fn run(redis: &Redis, args: &[&str]) -> Ended {
    let mut command = convoke(redis, args);
    let is_said = args.iter().any(|arg| arg.starts_with("--timeout"));
    let by_workers = args.starts_with(&["replay", "cancel"]) || args.contains(&"--detach");
    if (ASKED.contains(&args[0]) || by_workers) && !is_said {
        command.arg("--timeout=30s");
    }
    end(&mut command)
}

fn run_with_input(redis: &Redis, args: &[&str], input: &[u8]) -> Ended {
    let mut child = convoke(redis, args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().ok();
    Ended {
        code: output.status.code().expect("not killed"),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A file of one test's own, gone with it.
struct File(PathBuf);

impl File {
    fn new(name: &str, text: &str) -> Self {
        // A process id is given again: what an earlier process left is not this test's.
        let (process, number) = (std::process::id(), fastrand::u32(..));
        let path = std::env::temp_dir().join(format!("convoke-cli-{process}-{number:08x}-{name}"));
        std::fs::write(&path, text).unwrap();
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).ok();
    }
}

#[test]
fn help_teaches_by_examples_and_wrong_usage_ends_with_2() {
    let help = |args: &[&str]| end(bare().args(args)).done().out;
    assert!(help(&["-h"]).contains("Examples:"));
    assert!(help(&["--help"]).contains("Examples:"));
    for command in [
        "worker",
        "publish",
        "request",
        "tail",
        "health",
        "history",
        "instances",
        "streams",
        "top",
        "pending",
        "dead",
        "dead list",
        "dead show",
        "dead drop",
        "delayed",
        "delayed list",
        "delayed show",
        "delayed run-now",
        "delayed edit",
        "delayed drop",
        "group",
        "group list",
        "group drop",
        "group reset",
        "trace",
        "replay",
        "replay dead",
        "replay pending",
        "replay range",
        "doctor",
        "completions",
        "docs",
        "man",
        "ledger",
        "state",
        "discover",
        "vote",
        "task",
        "task create",
        "task update",
        "task assign",
        "task unassign",
        "task claim",
        "pattern",
        "schedule",
        "schedule put",
        "domain",
        "drain",
        "quiet",
        "scale",
        "batch",
        "metrics",
        "bench",
    ] {
        let words: Vec<&str> = command.split(' ').chain(["-h"]).collect();
        let out = help(&words);
        assert!(out.contains(&format!("  convoke {command}")), "{out}");
        // An example is there to be copied: no terminal may break it up.
        for line in out.lines().filter(|line| line.starts_with("  convoke")) {
            assert!(line.chars().count() < 80, "{line}");
        }
    }
    assert!(help(&["--version"]).starts_with("convoke "));
    end(&mut bare()).failed(2, &["Usage"]);
    end(bare().arg("unheard-of")).failed(2, &["unheard-of"]);
    end(bare().args(["publish", "nodot"])).failed(2, &["nodot", "domain.action"]);
    end(bare().args(["publish", "a.b", "--dedup"])).failed(2, &["--id"]);
    end(bare().args(["tail", "nonsense"])).failed(2, &["nonsense", "broadcast"]);
    end(bare().args(["tail", "--log", "a=b=c"])).failed(2, &["--log"]);
}

#[test]
fn without_a_server_a_command_fails_with_1() {
    let port = support::free_port();
    let url = format!("redis://127.0.0.1:{port}");
    for args in [
        &["publish", "a.b"][..],
        &["request", "a.b"],
        &["tail"],
        &["instances"],
        &["health"],
        &["streams"],
        &["pending"],
        &["dead", "list"],
        &["replay", "dead"],
        &["state"],
        &["discover"],
        &["vote", "list"],
        &["bench", "--quick"],
    ] {
        let ended = end(bare().args(args).args(["--redis-url", &url]));
        assert!(ended.failed(1, &[]).err.contains("onnect"), "{args:?}");
    }
}

#[test]
fn without_a_worker_a_request_times_out_and_health_fails() {
    let redis = Redis::start();
    // On a slow machine the time may be over before the event is stored.
    let says = |words: &[&str], parts: &[&str]| {
        support::eventually(parts[0], || {
            let said = run(&redis, words).failed(1, &[]).err;
            parts.iter().all(|part| said.contains(part))
        });
    };
    let nobody = format!("nobody reads {}", name("a", "cb:events:a"));
    let unread = ["no reply in time to a.b", nobody.as_str()];
    says(&["request", "a.b", "--timeout", "100ms"], &unread);
    says(&["health", "--timeout", "100ms"], &["no reply in time"]);
    let json = ["request", "a.b", "--timeout=100ms", "--format=json"];
    support::eventually("it is told as JSON", || {
        let said = run(&redis, &json).failed(1, &[]).err;
        let error: Value = serde_json::from_str(&said).unwrap();
        error["error"] == "timeout"
    });
}

#[test]
fn an_error_reply_is_told_on_stderr_and_escaped() {
    let redis = Redis::start();
    for (format, says) in [
        ("text", "not_found: no such \\u{1b}[2Jimage\n"),
        (
            "json",
            r#"{"code":"not_found","message":"no such \u001b[2Jimage","retryable":false,"source":"w-1"}"#,
        ),
    ] {
        let answer = r#"{"code":"not_found","message":"no such \u001b[2Jimage","retryable":false}"#;
        let child = convoke(
            &redis,
            &["request", "image.resize", "--id", "r-1", "--format", format],
        )
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
        reply(&redis, "not_found", answer);
        let output = child.wait_with_output().unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{err}");
        assert!(err.contains(says), "{err}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn a_result_is_printed_as_json_on_one_line() {
    let redis = Redis::start();
    let child = convoke(&redis, &["request", "image.resize", "--data", "[1]"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    reply(&redis, "ok", r#"{"width":80,"big":18446744073709551615}"#);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let out = String::from_utf8(output.stdout).unwrap();
    assert_eq!(out, "{\"width\":80,\"big\":18446744073709551615}\n");
}

/// Answers the next request on `image` by hand.
fn reply(redis: &Redis, status: &str, data: &str) {
    let data: Value = serde_json::from_str(data).unwrap();
    answer(redis, &[("result", Some(status), data)]);
}

/// Adds these to the reply stream of the next request on `image`: what their types end with, status, data.
fn answer(redis: &Redis, entries: &[(&str, Option<&str>, Value)]) {
    let mut connection = redis.connect();
    let mut asked = None;
    support::eventually("the request is published", || {
        let entries: redis::Value = redis::cmd("XRANGE")
            .arg("cb:events:image")
            .arg("-")
            .arg("+")
            .query(&mut connection)
            .unwrap();
        let entries = convoke::streams::read::entries_of(entries).unwrap();
        asked = entries.into_iter().next();
        asked.is_some()
    });
    let asked = asked.unwrap();
    let reply_to = std::str::from_utf8(asked.get("replyto").unwrap()).unwrap();
    let reply_to = name("image", reply_to);
    for (suffix, status, data) in entries {
        let mut add = redis::cmd("XADD");
        add.arg(&reply_to).arg("*");
        add.arg("correlationid").arg(asked.get("id").unwrap());
        add.arg("type").arg(format!("image.resize.{suffix}"));
        if let Some(status) = status {
            add.arg("status").arg(status);
        }
        add.arg("source").arg("w-1");
        add.arg("data").arg(rmp_serde::to_vec_named(data).unwrap());
        add.exec(&mut connection).unwrap();
    }
    let _: i64 = redis::cmd("DEL")
        .arg("cb:events:image")
        .query(&mut connection)
        .unwrap();
}

#[test]
fn progress_goes_to_stderr_where_it_is_asked_for() {
    let redis = Redis::start();
    for (flags, says) in [
        (&["--progress"][..], "3\n5 of 8 half \\u{1b}[2Jway\n"),
        (
            &["--progress", "--format=json"],
            "{\"progress\":{\"done\":3}}\n\
             {\"progress\":{\"done\":5,\"total\":8,\"note\":\"half \\u001b[2Jway\"}}\n",
        ),
        (&[], ""),
    ] {
        let child = convoke(&redis, &["request", "image.resize"])
            .args(flags)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let half = json!({"done": 5, "total": 8, "note": "half \u{1b}[2Jway"});
        let entries = [
            ("progress", None, json!({"done": 3})),
            ("progress", None, half),
            ("result", Some("ok"), json!(7)),
        ];
        answer(&redis, &entries);
        let output = child.wait_with_output().unwrap();
        assert_eq!(String::from_utf8(output.stderr).unwrap(), says);
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "7\n");
    }
}

#[tokio::test]
async fn instances_are_listed_without_a_worker() {
    use convoke::connect::connector::Connector;
    use convoke::coordination::instances::Instances;
    use convoke::coordination::instances::instance::Registering;
    use convoke::settings::RedisUrl;
    let redis = Redis::start();
    run(&redis, &["instances"])
        .done()
        .failed(0, &["no instances"]);
    let connector = Connector::new(&RedisUrl::new(redis.url()), 1).unwrap();
    let instances = Instances::of_process(connector, support::keys(), "test");
    let mut registering = Registering::new("w-1", ["worker", "gpu"]);
    registering.capabilities = vec!["image.resize".into()];
    let registered = instances.register(&registering).await.unwrap();
    let text = run(&redis, &["instances"]).done().out;
    let row: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(
        row[..5],
        ["w-1", "healthy", "gpu,worker", "10", "0"],
        "{text}"
    );
    let json = run(&redis, &["instances", "--format", "json"])
        .done()
        .json();
    assert_eq!(json["id"], "w-1");
    assert_eq!(json["incarnation"], registered.incarnation);
    assert_eq!(json["capabilities"][0], "image.resize");
}

#[test]
fn a_server_that_is_not_there_is_named_once_with_its_address() {
    let port = support::free_port();
    let url = format!("redis://127.0.0.1:{port}");
    for args in [
        &["streams"][..],
        &["health"],
        &["publish", "a.b"],
        &["doctor"],
        &["top", "--once"],
    ] {
        let ended = end(bare().args(args).env("CONVOKE_REDIS_URL", &url));
        let ended = ended.failed(1, &[&format!("127.0.0.1:{port}")]);
        assert_eq!(
            ended.err.matches("refused").count(),
            1,
            "{args:?}: {}",
            ended.err
        );
    }
}
