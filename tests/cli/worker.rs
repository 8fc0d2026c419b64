//! `convoke worker` and the commands that need one.

use super::{Ended, File, bare, convoke, end, run};
use crate::support::{self, Redis};
use serde_json::Value;
use std::io::Read;
use std::process::{Child, Command, Stdio};

/// A worker that ends with its test.
pub struct Worker(Child);

impl Worker {
    /// Starts it and waits until it is registered.
    pub fn start(redis: &Redis, id: &str, command: &mut Command) -> Self {
        let command = command.stdout(Stdio::null()).stderr(Stdio::piped());
        let worker = Self(command.spawn().unwrap());
        support::eventually("the worker is registered", || {
            let out = run(redis, &["instances", "--format", "json"]).done().out;
            out.contains(&format!("\"id\":\"{id}\""))
        });
        worker
    }

    /// Ends it as a service manager does.
    pub fn stop(mut self) -> Ended {
        support::signal(self.0.id(), "TERM");
        let mut err = String::new();
        let mut stderr = self.0.stderr.take().unwrap();
        stderr.read_to_string(&mut err).unwrap();
        let code = self.0.wait().unwrap().code().expect("not killed");
        Ended {
            code,
            out: String::new(),
            err,
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn instance(redis: &Redis) -> Value {
    run(redis, &["instances", "--format", "json"]).done().json()
}

#[test]
fn a_command_handles_events_and_its_result_or_error_is_the_reply() {
    let redis = Redis::start();
    let mut command = convoke(&redis, &["worker", "--id=w-1", "--exec=demo.echo=cat"]);
    command.args(["--exec", "demo.fail=echo no such image >&2; exit 3"]);
    let worker = Worker::start(&redis, "w-1", &mut command);
    let data = r#"{"a":[1,"é"]}"#;
    let ended = run(&redis, &["request", "demo.echo", "--data", data]).done();
    assert_eq!(ended.out, format!("{data}\n"));
    let ended = run(&redis, &["request", "demo.fail"]).failed(1, &["no such image"]);
    assert!(ended.out.is_empty());
    let ended = run(&redis, &["request", "demo.fail", "--format", "json"]);
    let error: Value = serde_json::from_str(&ended.err).unwrap();
    assert_eq!(error["retryable"], false);
    assert_eq!(error["source"], "w-1");
    assert_eq!(instance(&redis)["id"], "w-1");
    let ended = worker.stop().done();
    assert!(ended.err.contains("w-1"), "{ended:?}");
    let left = run(&redis, &["instances"]).done();
    assert!(left.err.contains("no instances"), "{left:?}");
}

#[test]
fn health_is_an_exit_code() {
    let redis = Redis::start();
    let worker = Worker::start(&redis, "w-1", &mut convoke(&redis, &["worker", "--id=w-1"]));
    let text = run(&redis, &["health"]).done().out;
    assert!(
        text.starts_with("healthy; instances: 1 healthy, 0 suspect"),
        "{text}"
    );
    assert!(text.contains("\nredis"), "{text}");
    let json = run(&redis, &["health", "--format", "json"]).done().json();
    assert_eq!(json["status"], "healthy");
    worker.stop().done();
}

#[test]
fn a_worker_takes_its_settings_from_every_source() {
    let redis = Redis::start();
    let file = File::new(
        "worker.toml",
        "id = \"from-file\"\ncapacity = 3\nheartbeat_ttl = \"5s\"\n",
    );
    let mut command = convoke(&redis, &["worker", "--config", file.path()]);
    command.args(["--capacity", "4"]);
    command
        .env("CONVOKE_ID", "7")
        .env("CONVOKE_ROLE", "worker, gpu");
    let worker = Worker::start(&redis, "7", &mut command);
    let instance = instance(&redis);
    assert_eq!(instance["id"], "7");
    assert_eq!(instance["roles"], serde_json::json!(["gpu", "worker"]));
    assert_eq!(instance["capacity"], 4);
    assert_eq!(instance["ttl_ms"], 5000);
    worker.stop().done();
}

#[test]
fn logs_are_json_lines_on_request_and_never_show_the_password() {
    let redis = Redis::start();
    let mut locks = redis::cmd("CONFIG");
    locks.arg("SET").arg("requirepass").arg("s3cret");
    let _: () = locks.query(&mut redis.connect()).unwrap();
    let url = format!("redis://:s3cret@127.0.0.1:{}", redis.port());
    let mut command = bare();
    command.env("CONVOKE_REDIS_URL", &url);
    command.args(["worker", "--log-format=json", "--log=trace"]);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let worker = Worker(command.spawn().unwrap());
    let mut health = bare();
    health
        .env("CONVOKE_REDIS_URL", &url)
        .args(["health", "--timeout=60s"]);
    end(&mut health).done();
    let ended = worker.stop().done();
    assert!(!ended.err.contains("s3cret"));
    for line in ended.err.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        assert!(line["level"].is_string(), "{line}");
    }
    let mut refused = bare();
    let url = url.replace("s3cret", "wr0ng");
    refused
        .env("CONVOKE_REDIS_URL", &url)
        .args(["instances", "--log=trace"]);
    let ended = end(&mut refused);
    assert!(!format!("{ended:?}").contains("wr0ng"), "{ended:?}");
    assert_eq!(ended.code, 1, "{ended:?}");
}

#[test]
fn wrong_usage_of_a_worker_is_told_before_anything_starts() {
    let worker = |args: &[&str]| end(bare().arg("worker").args(args));
    worker(&["--exec", "cat"]).failed(2, &["--exec", "TYPE=CMD"]);
    worker(&["--exec", "nodot=cat"]).failed(2, &["nodot"]);
    worker(&["--exec", "a.b= "]).failed(2, &["no command for a.b"]);
    worker(&["--exec", "a.b=cat", "--exec", "a.b=true"]).failed(2, &["a.b has two commands"]);
    worker(&["--concurrency", "0"]).failed(2, &["--concurrency", "1 to 65536"]);
    worker(&["--heartbeat-ttl", "2h"]).failed(2, &["--heartbeat-ttl", "2h", "1h"]);
    worker(&["--backoff-base", "2m"]).failed(2, &["backoff_cap", "1m", "2m"]);
}

#[test]
fn every_setting_is_a_flag() {
    let help = end(bare().args(["worker", "-h"])).done().out;
    let settings = serde_json::to_value(convoke::config::Settings::default()).unwrap();
    for name in settings.as_object().unwrap().keys() {
        let flag = format!("--{} ", name.replace('_', "-"));
        assert!(help.contains(&flag), "{flag} is not in {help}");
    }
}
