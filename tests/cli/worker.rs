//! `convoke worker` and the commands that need one.

use super::{Ended, File, bare, convoke, end, run};
use crate::support::{self, Redis, name, users};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

/// A worker that ends with its test.
pub(crate) struct Worker(Child);

impl Worker {
    /// Starts it and waits until it is registered.
    pub(crate) fn start(redis: &Redis, id: &str, command: &mut Command) -> Self {
        let command = command.stdout(Stdio::null()).stderr(Stdio::piped());
        let worker = Self(command.spawn().unwrap());
        support::eventually("the worker is registered", || {
            let out = run(redis, &["instances", "--format", "json"]).done().out;
            out.contains(&format!("\"id\":\"{id}\""))
        });
        worker
    }

    /// The process.
    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Ends it as a service manager does.
    pub(crate) fn stop(mut self) -> Ended {
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
    command.args(["--exec", "demo.fail=echo no such image >&2; exit 65"]);
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
    let login = format!("{}:{}@", users::WORKER, users::PASSWORD);
    let url = redis.url().replace(&login, ":s3cret@");
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
    let settings = serde_json::to_value(convoke::settings::Settings::default()).unwrap();
    for name in settings.as_object().unwrap().keys() {
        let flag = match name.as_str() {
            // Each of them is given by itself.
            "patterns" => "--pattern ".to_owned(),
            name => format!("--{} ", name.replace('_', "-")),
        };
        assert!(help.contains(&flag), "{flag} is not in {help}");
    }
}

#[test]
fn tasks_are_created_waited_for_and_looked_at() {
    let redis = Redis::start();
    let upper = "text.upper=tr '[:lower:]' '[:upper:]'";
    let mut command = convoke(&redis, &["worker", "--id=w-1", "--exec", upper]);
    command.args(["--exec", "text.fail=echo no such text >&2; exit 65"]);
    let worker = Worker::start(&redis, "w-1", &mut command);
    let create = ["task", "create", "text.upper", "--data", r#""é x""#];
    let with = |more: &[&str]| run(&redis, &[&create[..], more].concat());
    assert_eq!(with(&["--wait"]).done().out, "\"é X\"\n");
    assert_eq!(
        with(&["--id", "t-1", "--priority", "90"]).done().out,
        "t-1 assigned to w-1\n"
    );
    let again = with(&[
        "--id",
        "t-1",
        "--priority",
        "90",
        "--wait",
        "--format",
        "json",
    ]);
    let task = again.done().json();
    assert_eq!(
        (&task["status"], &task["result"]),
        (&"completed".into(), &"é X".into())
    );
    with(&["--id", "t-1"]).failed(1, &["already_exists", "t-1"]);
    run(
        &redis,
        &["task", "create", "text.fail", "--id", "t-2", "--wait"],
    )
    .failed(1, &["t-2 failed", "no such text"]);
    let waits = ["task", "create", "no.body", "--id", "t-3"];
    // A reply that is late is told otherwise.
    support::eventually("it is said that it waits", || {
        let waited = run(&redis, &[&waits[..], &["--wait", "--timeout=1s"]].concat());
        waited.failed(1, &[]).err.contains("t-3 is still pending")
    });
    let listed = run(&redis, &["task", "list"]).done().out;
    let lines: Vec<&str> = listed.lines().collect();
    assert!(
        lines[0].starts_with("ID ") && lines[1].starts_with("t-3 "),
        "{listed}"
    );
    assert_eq!(lines.len(), 5);
    let failed = run(
        &redis,
        &["task", "list", "--status", "failed", "--format", "json"],
    )
    .done();
    assert_eq!(failed.json()["task_id"], "t-2");
    let shown = run(&redis, &["task", "get", "t-1"]).done().out;
    assert!(
        shown.contains("payload:      \"é x\"\nresult:       \"é X\"\n"),
        "{shown}"
    );
    run(&redis, &["task", "get", "t-9"]).failed(1, &["not_found", "t-9"]);
    for report in ["complete", "fail"] {
        let mut words = vec!["task", report, "t-1", "--instance", "w-1", "--fence", "1"];
        if report == "fail" {
            words.extend(["--error", "x"]);
        }
        run(&redis, &words).failed(1, &["aborted", "t-1"]);
    }
    assert_eq!(run(&redis, &waits).done().out, "t-3 pending\n");
    let told = run(&redis, &["task", "get", "t-3"]).done();
    let why = "it waits: 1 instance of role worker, and none with a handler for no.body";
    assert!(told.err.contains(why), "{}", told.err);
    let told = run(&redis, &["task", "get", "t-3", "--format=json"]).done();
    assert!(told.json()["why_it_waits"].is_string(), "{}", told.out);
    let told = run(&redis, &["task", "get", "t-1", "--format=json"]).done();
    assert!(told.json()["why_it_waits"].is_null(), "{}", told.out);
    let cancel = ["task", "cancel", "t-3", "--reason", "ordered twice"];
    for _ in 0..2 {
        assert_eq!(run(&redis, &cancel).done().out, "cancelled\n");
    }
    let shown = run(&redis, &["task", "get", "t-3"]).done().out;
    assert!(shown.contains("ordered twice"), "{shown}");
    run(&redis, &[&waits[..], &["--wait"]].concat())
        .failed(1, &["t-3 was cancelled: ordered twice"]);
    let listed = run(&redis, &["task", "list", "--status", "cancelled"])
        .done()
        .out;
    assert!(
        listed.contains("t-3") && !listed.contains("t-1"),
        "{listed}"
    );
    run(&redis, &["task", "cancel", "t-1"]).failed(1, &["failed_precondition", "completed"]);
    run(&redis, &["task", "create"]).failed(2, &["KIND"]);
    run(&redis, &["task", "create", "resize"]).failed(2, &["resize"]);
    worker.stop().done();
}

#[test]
fn a_task_is_changed_moved_and_claimed() {
    let redis = Redis::start();
    let worker = Worker::start(&redis, "w-1", &mut convoke(&redis, &["worker", "--id=w-1"]));
    let says = |words: &[&str]| run(&redis, &[&["task"], words].concat()).done().out;
    for id in ["t-1", "t-2"] {
        let created = says(&["create", "by.hand", "--role", "hand", "--id", id]);
        assert_eq!(created, format!("{id} pending\n"));
    }
    let updated = says(&[
        "update",
        "t-2",
        "--priority",
        "90",
        "--metadata",
        r#"{"n": 4}"#,
    ]);
    assert_eq!(updated, "t-2 pending\n");
    let shown = says(&["get", "t-2"]);
    assert!(
        shown.contains("priority:     90\n") && shown.contains(r#"metadata:     {"n":4}"#),
        "{shown}"
    );
    let register = r#"{"id": "mine", "roles": ["hand"], "capacity": 1}"#;
    run(&redis, &["request", "system.register", "--data", register]).done();
    let other = r#"{"id": "other", "roles": ["hand"], "capacity": 1}"#;
    run(&redis, &["request", "system.register", "--data", other]).done();
    let claim = ["claim", "--instance", "mine", "--limit", "5", "--id", "c-1"];
    let claimed = says(&claim);
    assert!(
        claimed.contains("t-2") && claimed.contains("FENCE"),
        "{claimed}"
    );
    assert_eq!(says(&claim), claimed, "the same claim");
    let lines = run(
        &redis,
        &[&["task"], &claim[..], &["--format", "json"]].concat(),
    )
    .done();
    assert_eq!(lines.json()["task_id"], "t-2");
    let none = run(&redis, &["task", "claim", "--instance", "mine"]).done();
    assert!(
        none.out.is_empty() && none.err.contains("nothing waits"),
        "{}",
        none.err
    );
    let refused = ["task", "assign", "t-1", "--to", "mine"];
    run(&redis, &refused).failed(1, &["failed_precondition", "no room"]);
    assert_eq!(says(&["unassign", "t-1"]), "t-1 pending\n");
    assert_eq!(
        says(&["assign", "t-1", "--to", "other"]),
        "t-1 assigned to other\n"
    );
    run(&redis, &["task", "update", "t-1", "--priority", "1"])
        .failed(1, &["failed_precondition", "other holds t-1"]);
    run(&redis, &["task", "update", "t-1"]).failed(2, &["--priority", "--metadata"]);
    run(&redis, &["task", "claim", "--instance", "w-1"]).failed(1, &["permission_denied"]);
    run(
        &redis,
        &["task", "claim", "--instance", "mine", "--limit", "51"],
    )
    .failed(2, &["51"]);
    run(&redis, &["task", "assign", "t-1"]).failed(2, &["--to"]);
    worker.stop().done();
}

#[test]
fn a_task_is_completed_or_failed_in_the_place_of_its_holder() {
    let redis = Redis::start();
    let worker = Worker::start(&redis, "w-1", &mut convoke(&redis, &["worker", "--id=w-1"]));
    let data = r#"{"id": "mine", "roles": ["hand"]}"#;
    run(&redis, &["request", "system.register", "--data", data]).done();
    for id in ["t-1", "t-2"] {
        run(
            &redis,
            &["task", "create", "by.hand", "--role", "hand", "--id", id],
        )
        .done();
    }
    let fence = |id: &str| {
        let task = run(&redis, &["task", "get", id, "--format", "json"])
            .done()
            .json();
        task["fence"].to_string()
    };
    let report = |words: &[&str], id: &str| {
        let held = ["--instance", "mine", "--fence", &fence(id)];
        run(&redis, &[&["task"], words, &held].concat()).done()
    };
    let done = report(&["complete", "t-1", "--data", "7"], "t-1");
    assert_eq!(done.out, "completed\n");
    let failed = report(&["fail", "t-2", "--error", "jam"], "t-2");
    assert_eq!(failed.out, "assigned\n");
    let last = [
        "fail",
        "t-2",
        "--error",
        "jam",
        "--permanent",
        "--format",
        "json",
    ];
    assert_eq!(report(&last, "t-2").json()["status"], "failed");
    worker.stop().done();
}

/// The processes whose command line is `sleep` with that argument.
pub(crate) fn sleepers(seconds: u32) -> usize {
    let found = Command::new("pgrep")
        .args(["-f", &format!("^sleep {seconds}")])
        .output();
    found.unwrap().stdout.split(|b| *b == b'\n').count() - 1
}

#[test]
fn commands_die_with_their_worker() {
    let redis = Redis::start();
    let seconds = 300_000 + redis.port() as u32;
    // One stays, one leaves the process group.
    let hold = format!("job.hold=setsid sleep {seconds} & sleep {seconds}; true");
    let mut command = convoke(&redis, &["worker", "--id=w-1", "--exec", &hold]);
    let worker = Worker::start(&redis, "w-1", &mut command);
    run(&redis, &["publish", "job.hold"]).done();
    support::eventually("the command runs", || sleepers(seconds) == 2);
    // SIGKILL, so that the worker cannot do anything about it.
    drop(worker);
    support::eventually("the command has ended", || sleepers(seconds) == 0);
}

#[test]
fn a_command_is_told_exactly_what_was_published_and_answers_exactly() {
    let redis = Redis::start();
    let mut command = convoke(&redis, &["worker", "--id=w-1", "--exec=demo.echo=cat"]);
    command.args(["--exec", "demo.large=echo 18446744073709551616"]);
    command.args(["--exec", "demo.noise=echo Processing; echo 1"]);
    command.args(["--exec", "demo.killed=sh -c 'kill -9 $$'"]);
    command.args(["--max-attempts=1"]);
    let worker = Worker::start(&redis, "w-1", &mut command);
    for data in [
        r#"{"$bin":"00ff"}"#,
        r#"{"$float":"nan"}"#,
        r#"{"$map":[[1,"a"],["1","b"]]}"#,
        r#"[18446744073709551615,-9223372036854775808,1.0,2e-7]"#,
    ] {
        let ended = run(&redis, &["request", "demo.echo", "--data", data]).done();
        assert_eq!(ended.out, format!("{data}\n"));
    }
    for (data, said) in [
        ("18446744073709551616", "beyond 64 bits"),
        (r#"{"a": 1, "a": 2}"#, "stands twice"),
        (r#"{"$bin": "x"}"#, "hexadecimal"),
        ("{", "not JSON"),
    ] {
        run(&redis, &["request", "demo.echo", "--data", data]).failed(2, &["--data", said]);
    }
    run(&redis, &["request", "demo.large"]).failed(1, &["18446744073709551616 at byte 0"]);
    run(&redis, &["request", "demo.noise"]).failed(1, &["begins with", "Processing"]);
    let killed = run(&redis, &["request", "demo.killed", "--format", "json"]);
    let error: Value = serde_json::from_str(&killed.err).unwrap();
    assert_eq!(
        (&error["code"], &error["retryable"]),
        (&"internal".into(), &true.into())
    );
    assert!(
        error["message"].as_str().unwrap().contains("signal: 9"),
        "{error}"
    );
    worker.stop().done();
}

#[test]
fn the_log_names_a_field_that_was_most_likely_meant_as_another() {
    let redis = Redis::start();
    let mut command = convoke(&redis, &["worker", "--id=w-1", "--exec=demo.echo=cat"]);
    let worker = Worker::start(&redis, "w-1", &mut command);
    let (events, fields) = ("cb:events:demo", "tenant a reply_to cb:reply:me");
    super::rig::add(&redis, events, "*", "demo.echo", &Value::Null, fields);
    // Who is answered came after it.
    run(&redis, &["request", "demo.echo", "--data", "1"]).done();
    let said = worker.stop().done().err;
    assert!(said.contains("was replyto meant?"), "{said}");
    assert!(said.contains("reply_to"), "{said}");
    assert!(!said.contains("tenant"), "{said}");
}

#[test]
fn the_log_sums_up_the_dead_letters_that_there_are() {
    let redis = Redis::start();
    let mut command = convoke(&redis, &["worker", "--id=w-1", "--exec=demo.fail=exit 65"]);
    let mut worker = Worker::start(&redis, "w-1", &mut command);
    for _ in 0..3 {
        run(&redis, &["publish", "demo.fail"]).done();
    }
    // Those of whom nobody can be told are dead letters, too.
    let odd = name("demo", "cb:reply:odd");
    super::rig::say(&redis, &format!("SET {odd} text"));
    for _ in 0..2 {
        let (events, told) = ("cb:events:demo", format!("replyto {odd}"));
        super::rig::add(&redis, events, "*", "demo.fail", &Value::Null, &told);
    }
    let stderr = worker.0.stderr.take().unwrap();
    let (mut summed, mut lines) = (0, BufReader::new(stderr).lines());
    // Each sum is of the time since the last one.
    while summed < 5 {
        let line = lines.next().expect("a sum of all five").unwrap();
        if line.contains("events failed") {
            let told = line.split("dead_letters").nth(1).unwrap();
            let told = told.trim_start_matches(|c: char| !c.is_ascii_digit());
            let told = told.split(|c: char| !c.is_ascii_digit()).next().unwrap();
            summed += told.parse::<u32>().unwrap();
        }
    }
    assert_eq!(summed, 5);
    assert_eq!(super::rig::entries(&redis, "cb:dead:demo").len(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_and_programs_are_limited_by_flag_variable_and_file() {
    let redis = Redis::start();
    let file = File::new(
        "limits.toml",
        "limit = [\"a.quick=attempts:1,timeout:200ms\"]\n",
    );
    let args = [
        "worker",
        "--config",
        file.path(),
        "--exec=a.quick=sleep 30",
        "--exec=a.once=exit 1",
        "--pipe=a.rated=sh tests/examples/piped.sh",
    ];
    let worker = Worker::start(&redis, "w-1", convoke(&redis, &args).arg("--id=w-1"));
    run(&redis, &["request", "a.quick"]).failed(1, &["timeout of 200ms"]);
    worker.stop();
    let mut limited = convoke(&redis, &args);
    limited.env("CONVOKE_LIMIT", "a.once=attempts:1,a.rated=rate:1/h");
    let worker = Worker::start(&redis, "w-2", limited.arg("--id=w-2"));
    run(&redis, &["request", "a.once"]).failed(1, &["internal"]);
    run(&redis, &["request", "a.rated", "--data", "\"x\""]).done();
    run(&redis, &["request", "a.rated", "--data", "\"x\""])
        .failed(1, &["resource_exhausted", "1 a.rated in 1h"]);
    worker.stop();
    let mut flags = args.to_vec();
    flags.extend(["--id=w-3", "--limit=a.rated=rate:2/h,a.once=1"]);
    let worker = Worker::start(&redis, "w-3", &mut convoke(&redis, &flags));
    run(&redis, &["request", "a.rated", "--data", "\"x\""]).done();
    run(&redis, &["request", "a.rated", "--data", "\"x\""]).failed(1, &["2 a.rated in 1h"]);
    drop(worker);
    for (limit, why) in [
        ("b.c=4", "--limit: no --exec and no --pipe for b.c"),
        ("a.once=fast", "\"fast\" is not a whole number"),
        (
            "a.once=rate:1",
            "--limit: a.once: rate: write it as RUNS/PERIOD",
        ),
        ("rate:1/s", "of no type"),
    ] {
        run(
            &redis,
            &["worker", "--exec=a.once=exit 1", "--limit", limit],
        )
        .failed(2, &[why]);
    }
}
