//! `convoke top`.

use super::rig::{add, bury, deliver, names, register, say};
use super::{bare, end, run};
use crate::support::{self, Redis, name, users};
use serde_json::json;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

/// How it calls the events of a domain.
fn events_of(domain: &str) -> String {
    let key = name(domain, &format!("cb:events:{domain}"));
    key.strip_prefix("cb:").unwrap_or(&key).to_owned()
}

/// An entry that is pending, one that was not delivered, one without a group, a dead letter.
async fn busy() -> Redis {
    let redis = Redis::start();
    let key = "cb:events:image";
    add(&redis, key, "1-1", "image.resize", &json!(7), "");
    deliver(&redis, "w-1");
    add(&redis, key, "2-1", "image.resize", &json!(8), "");
    say(&redis, "XADD cb:events:audit 5-1 type audit.log");
    bury(&redis, "5-1", "image.crop", "poison", &json!(9), "");
    register(&redis, "w-1").await;
    redis
}

#[tokio::test]
async fn one_look_is_printed_as_text_without_a_worker() {
    let redis = busy().await;
    let out = run(&redis, &["top", "--once", "--interval", "100ms"])
        .done()
        .out;
    let dead = name("image", "cb:dead:image");
    let dead = dead.strip_prefix("cb:").unwrap_or(&dead);
    for part in [
        "convoke top cb  1 healthy",
        "3 waiting",
        "1 dead",
        "Streams 3",
        &events_of("image"),
        "Instances 1",
        "w-1",
        "no handlers",
        "no batches",
        "no ballots",
        dead,
    ] {
        assert!(out.contains(part), "{part} is not in\n{out}");
    }
    assert!(!out.contains('\x1b'));
    // A pipe has no width, so every column is there.
    for column in ["LENGTH", "BYTES", "CAPACITY", "RESTARTS", "NEWEST"] {
        assert!(out.contains(column), "{column} is not in\n{out}");
    }
    let mut narrow = bare();
    narrow
        .env("CONVOKE_REDIS_URL", redis.url_for(users::MONITOR))
        .env("COLUMNS", "60");
    let narrow = end(narrow.args(["top", "--once", "--interval", "100ms"]));
    let narrow = narrow.done().out;
    let width = narrow.lines().map(|line| line.chars().count()).max();
    assert!((50..=60).contains(&width.unwrap()), "{narrow}");
}

#[tokio::test]
async fn one_look_is_printed_as_an_object() {
    let redis = busy().await;
    let args = ["top", "--once", "--interval=100ms", "--format=json"];
    let look = run(&redis, &args).done().json();
    assert_eq!(
        names(&look),
        [
            "namespace",
            "at",
            "interval_ms",
            "leader",
            "partition",
            "healthy",
            "suspect",
            "lost",
            "in_per_s",
            "out_per_s",
            "waiting",
            "dead_letters",
            "in_flight",
            "memory_bytes",
            "redis",
            "unreachable",
            "events_processed",
            "events_failed",
            "tasks",
            "instances",
            "streams",
            "streams_found",
            "handlers",
            "runs",
            "batches",
            "ballots",
            "dead",
            "problems",
        ]
    );
    // One pending, one not delivered, one that nobody reads.
    assert_eq!(
        (&look["waiting"], &look["dead_letters"]),
        (&json!(3), &json!(1))
    );
    assert_eq!(
        (&look["in_per_s"], &look["problems"]),
        (&json!(0.0), &json!([]))
    );
    assert!(look["interval_ms"].as_u64().unwrap() >= 100);
    let instance = &look["instances"][0];
    assert_eq!(
        (&instance["id"], &instance["status"]),
        (&json!("w-1"), &json!("healthy"))
    );
    let streams = look["streams"].as_array().unwrap();
    let key = name("image", "cb:events:image");
    let image = streams.iter().find(|s| s["stream"] == key);
    let image = image.unwrap();
    assert_eq!(
        names(image),
        ["stream", "kind", "length", "bytes", "in_per_s", "groups"]
    );
    let group = &image["groups"][0];
    assert_eq!(
        names(group),
        [
            "group",
            "out_per_s",
            "lag",
            "pending",
            "waiting",
            "oldest_ms"
        ]
    );
    assert_eq!((&group["lag"], &group["pending"]), (&json!(1), &json!(1)));
    assert_eq!(group["out_per_s"], 0.0);
    let dead = &look["dead"][0];
    assert_eq!(
        names(dead),
        ["stream", "length", "bytes", "in_per_s", "oldest_ms"]
    );
    assert!(dead["bytes"].as_u64().unwrap() > 100, "{dead}");
    assert!(look["redis"]["used_bytes"].as_u64().unwrap() > 100_000);
}

#[test]
fn more_streams_than_are_shown_are_counted_all_the_same() {
    let redis = Redis::start();
    let mut adds = redis::pipe();
    for number in 0..700 {
        adds.cmd("XADD").arg(format!("cb:dead:d{number}"));
        adds.arg(&["*", "type", "a.b"]);
        adds.cmd("XADD").arg(format!("cb:events:d{number}"));
        adds.arg(&["*", "type", "a.b"]);
    }
    // The ones with the most are shown.
    for _ in 0..2 {
        adds.cmd("XADD").arg("cb:events:d699");
        adds.arg(&["*", "type", "a.b"]);
    }
    adds.exec(&mut redis.connect()).unwrap();
    let args = ["top", "--once", "--interval=100ms", "--format=json"];
    let look = run(&redis, &args).done().json();
    assert_eq!(look["waiting"], 702);
    assert_eq!(look["dead_letters"], 700);
    assert_eq!(look["streams_found"], 1400);
    let shown = |part: &str| look[part].as_array().unwrap().len();
    assert_eq!((shown("streams"), shown("dead")), (250, 250));
    let most = look["streams"].as_array().unwrap().iter();
    let fullest = name("d699", "cb:events:d699");
    assert!(most.clone().any(|s| s["stream"] == fullest));
    let text = run(&redis, &args[..3]).done().out;
    for part in [
        "702 waiting",
        "700 dead",
        "250 of 700",
        "250 of 700 streams",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    let mut top = OnTerminal::start(&redis);
    top.wait_for(&events_of("d0"));
    assert!(!top.said().contains(&events_of("d573")));
    top.type_in("/d573\r");
    top.wait_for(&events_of("d573"));
    top.type_in("q");
    top.gave_back(0);
}

#[test]
fn without_a_terminal_it_says_how_to_look_once() {
    let redis = Redis::start();
    run(&redis, &["top"]).failed(2, &["top --once"]);
    run(&redis, &["top", "--format=json"]).failed(2, &["top --once"]);
    run(&redis, &["top", "--once", "--interval=1ms"]).failed(2, &["--interval", "100ms"]);
    let url = format!("redis://127.0.0.1:{}", support::free_port());
    end(bare().args(["top", "--once", "--redis-url", &url])).failed(1, &["onnect"]);
}

/// The command on a terminal of its own.
struct OnTerminal {
    child: Child,
    said: Arc<Mutex<String>>,
}

const ENTERED: &str = "\x1b[?1049h";
const LEFT: &str = "\x1b[?1049l";

impl OnTerminal {
    fn start(redis: &Redis) -> Self {
        Self::with(redis, 24, &[])
    }

    fn with(redis: &Redis, rows: u16, set: &[(&str, &str)]) -> Self {
        // The terminal's settings before and after, and the pid for a signal.
        let line = format!(
            "stty rows {rows} cols 80; stty -a | sed 's/^/before /'; \
             sh -c 'echo own $$; exec {} top --interval 100ms'; echo ended $?; \
             stty -a | sed 's/^/after /'; echo over",
            env!("CARGO_BIN_EXE_convoke")
        );
        let mut command = Command::new("script");
        let mut child = command
            .args(["-qec", &line, "/dev/null"])
            .env("CONVOKE_REDIS_URL", redis.url_for(users::MONITOR))
            .env("TERM", "xterm")
            .env("SHELL", "/bin/sh")
            .envs(set.iter().copied())
            .env_remove("NO_COLOR")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("script runs");
        let said = Arc::new(Mutex::new(String::new()));
        let mut out = child.stdout.take().unwrap();
        let heard = Arc::clone(&said);
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(n @ 1..) = out.read(&mut bytes) {
                let text = String::from_utf8_lossy(&bytes[..n]);
                heard.lock().unwrap().push_str(&text);
            }
        });
        Self { child, said }
    }

    fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    fn wait_for(&self, text: &str) {
        support::eventually(text, || self.said().contains(text));
    }

    fn type_in(&mut self, keys: &str) {
        let stdin = self.child.stdin.as_mut().unwrap();
        stdin.write_all(keys.as_bytes()).unwrap();
        stdin.flush().unwrap();
    }

    fn pid(&self) -> String {
        let said = self.said();
        let line = said.lines().find_map(|line| line.strip_prefix("own "));
        line.unwrap().trim().to_owned()
    }

    /// It ended with that code, and the terminal is as it was.
    fn gave_back(mut self, code: i32) {
        self.wait_for("over\r\n");
        self.child.wait().unwrap();
        let said = self.said();
        assert!(said.contains(&format!("ended {code}\r\n")), "{said:?}");
        let left = said.rfind(LEFT).expect("it leaves the other screen");
        assert!(said.rfind(ENTERED).unwrap() < left, "{said:?}");
        assert!(said[left..].contains("\x1b[?25h"), "no cursor: {said:?}");
        let settings = |when: &str| -> Vec<String> {
            let lines = said.lines().filter_map(|line| line.strip_prefix(when));
            lines.map(str::to_owned).collect()
        };
        assert_eq!(settings("before "), settings("after "));
        assert!(!settings("before ").is_empty(), "{said:?}");
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        self.child.kill().ok();
    }
}

#[tokio::test]
async fn it_gives_the_terminal_back_as_it_was() {
    let redis = busy().await;
    for keys in ["q", "\x03"] {
        let mut top = OnTerminal::start(&redis);
        top.wait_for(&events_of("image"));
        // Only cells that change are written: a word where nothing was comes whole.
        top.type_in("?");
        top.wait_for("quiet");
        top.type_in(keys);
        top.gave_back(0);
    }
    let top = OnTerminal::start(&redis);
    top.wait_for(&events_of("image"));
    let kill = Command::new("kill").arg(top.pid()).status().unwrap();
    assert!(kill.success());
    top.gave_back(0);
}

#[tokio::test]
async fn it_outlives_the_server_and_says_so() {
    let redis = busy().await;
    let mut top = OnTerminal::start(&redis);
    top.wait_for(&events_of("image"));
    drop(redis);
    top.wait_for("NOT");
    top.type_in("\x1b\x1b");
    top.type_in("q");
    top.gave_back(0);
}

#[test]
fn who_opens_the_row_of_a_partition_sees_its_owner_what_is_held_and_what_is_parked() {
    let redis = Redis::start();
    let key = "{cb:image:0}:events";
    add(&redis, key, "1-1", "image.resize", &json!(7), "subject s-1");
    say(&redis, &format!("XGROUP CREATE {key} workers 0"));
    let (since, till) = (1_700_000_000_000_u64, 4_000_000_000_000_u64);
    let owner = format!("instance w-owns process p ttl 90000 since {since} till {till}");
    say(
        &redis,
        &format!("HSET {{cb:image:0}}:owner:workers {owner}"),
    );
    say(&redis, "HSET {cb:image:0}:held:workers 1-1 x 1-2 x");
    let mut top = OnTerminal::with(&redis, 60, &[("CONVOKE_PARTITIONS", "1")]);
    top.wait_for(key);
    top.type_in("\r");
    // Words: what is blank between them is not written.
    top.wait_for("w-owns");
    top.wait_for("held:");
    top.type_in("\x1b\x1b");
    top.type_in("q");
    top.gave_back(0);
}
