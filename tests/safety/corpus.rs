//! Bad input and bad servers, each through a real stream to a real worker, three times. After each
//! group the worker answers a good event, nothing is pending, its log and its memory are bounded.

mod inputs;

use crate::support::{Redis, eventually, users};
use inputs::{damaged, good, strange};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How often each is tried.
pub(crate) const ROUNDS: usize = 3;
const REPLY: &str = "cb:reply:corpus";

/// A worker process, its server, and what the two may not do.
pub(crate) struct Subject {
    pub(crate) redis: Redis,
    worker: Child,
    log: String,
    lines: usize,
    serial: usize,
}

impl Subject {
    pub(crate) fn start() -> Self {
        let redis = Redis::with(&["--save", "", "--maxmemory-policy", "noeviction"]);
        let log = std::env::temp_dir().join(format!("convoke-corpus-{}", redis.port()));
        let log = log.to_string_lossy().into_owned();
        let mut command = Command::new(env!("CARGO_BIN_EXE_convoke"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("CONVOKE_") {
                command.env_remove(name);
            }
        }
        command
            .args(["worker", "--id=w-1", "--exec=job.do=cat"])
            .args(["--heartbeat-ttl=2s", "--claim-idle=2s"])
            .args(["--backoff-base=10ms", "--backoff-cap=20ms"])
            .env("CONVOKE_REDIS_URL", redis.url())
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log).unwrap());
        let mut subject = Self {
            redis,
            worker: command.spawn().unwrap(),
            log,
            lines: 0,
            serial: 0,
        };
        subject.works("the start", usize::MAX);
        subject
    }

    pub(crate) fn say(&self, words: &[&str]) -> redis::RedisResult<redis::Value> {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        command.query(&mut self.redis.connect())
    }

    /// Whether a good event is answered, by the same process, with this many more lines of log.
    #[track_caller]
    pub(crate) fn works(&mut self, after: &str, lines: usize) {
        eventually(after, || {
            assert!(
                self.worker.try_wait().unwrap().is_none(),
                "the worker ended after {after}: {}",
                fs::read_to_string(&self.log).unwrap()
            );
            self.serial += 1;
            let data = self.serial.to_string();
            let ended = Command::new(env!("CARGO_BIN_EXE_convoke"))
                .args(["request", "job.do", "--timeout=2s", "--data", &data])
                .env("CONVOKE_REDIS_URL", self.redis.url_for(users::PUBLISHER))
                .output()
                .unwrap();
            ended.stdout == format!("{data}\n").as_bytes()
        });
        let told = fs::read_to_string(&self.log).unwrap().lines().count();
        let new = told - std::mem::replace(&mut self.lines, told);
        assert!(new <= lines, "{new} lines of log after {after}");
        assert!(
            !fs::read_to_string(&self.log).unwrap().contains("panicked"),
            "{after}"
        );
    }

    /// Resident memory, in MiB.
    pub(crate) fn memory(&self) -> u64 {
        let status = format!("/proc/{}/status", self.worker.id());
        let status = fs::read_to_string(status).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib: u64 = line
            .unwrap()
            .trim()
            .trim_end_matches(" kB")
            .parse()
            .unwrap();
        kib / 1024
    }

    fn pending(&self, stream: &str) -> i64 {
        match self.say(&["XPENDING", stream, "workers"]) {
            Ok(redis::Value::Array(parts)) => match parts.first() {
                Some(redis::Value::Int(count)) => *count,
                other => panic!("{other:?}"),
            },
            _ => 0,
        }
    }

    /// Publishes each as a request of that type: how often each status was answered. Each has exactly
    /// one answer, and nothing stays pending.
    #[track_caller]
    pub(crate) fn ask_all(&mut self, kind: &str, payloads: &[Vec<u8>]) -> BTreeMap<String, usize> {
        self.say(&["DEL", REPLY]).unwrap();
        let stream = format!("cb:events:{}", kind.split('.').next().unwrap());
        let mut connection = self.redis.connect();
        for (n, payload) in payloads.iter().enumerate() {
            self.serial += 1;
            redis::cmd("XADD")
                .arg(&[&stream, "*", "type", kind, "replyto", REPLY])
                .arg(&["id", &format!("c-{}-{n}", self.serial)])
                .arg("data")
                .arg(payload)
                .exec(&mut connection)
                .unwrap();
        }
        let what = format!("{} answers to {kind}", payloads.len());
        eventually(&what, || {
            let length: usize = redis::cmd("XLEN")
                .arg(REPLY)
                .query(&mut connection)
                .unwrap();
            length >= payloads.len() && self.pending(&stream) == 0
        });
        let entries =
            convoke::streams::read::entries_of(self.say(&["XRANGE", REPLY, "-", "+"]).unwrap())
                .unwrap();
        let mut ids = BTreeMap::new();
        let mut statuses = BTreeMap::new();
        for entry in &entries {
            let text = |name| String::from_utf8_lossy(entry.get(name).unwrap()).into_owned();
            *ids.entry(text("correlationid")).or_insert(0) += 1;
            *statuses.entry(text("status")).or_insert(0) += 1;
        }
        assert_eq!(ids.len(), payloads.len(), "{kind}");
        assert!(ids.values().all(|count| *count == 1), "{kind}: {ids:?}");
        statuses
    }
}

impl Subject {
    fn last_answer(&self) -> Value {
        let entries = self.say(&["XREVRANGE", REPLY, "+", "-", "COUNT", "1"]);
        let entries = convoke::streams::read::entries_of(entries.unwrap()).unwrap();
        rmp_serde::from_slice(entries[0].get("data").unwrap()).unwrap()
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        self.worker.kill().ok();
        self.worker.wait().ok();
        if std::thread::panicking() {
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(30).collect();
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        }
        fs::remove_file(&self.log).ok();
    }
}

#[test]
fn bytes_that_no_event_should_hold_are_answered_once_each_whatever_they_were_meant_for() {
    let mut subject = Subject::start();
    let strange = strange();
    let mut asked = 0;
    let mut first = 0;
    for round in 0..ROUNDS {
        for (kind, _) in good() {
            let statuses = subject.ask_all(kind, &strange);
            assert!(statuses["invalid_argument"] > 100, "{kind}: {statuses:?}");
            assert!(!statuses.contains_key("internal"), "{kind}: {statuses:?}");
            asked += strange.len();
            subject.works(kind, 50);
        }
        if round == 0 {
            first = subject.memory();
        }
    }
    let last = subject.memory();
    println!("bytes: {asked} events, {first} MiB after one round, {last} after {ROUNDS}");
    assert!(last < 300 && last < first + 100, "{first} MiB, then {last}");
}

#[test]
fn fields_that_are_damaged_are_answered_once_each() {
    let mut subject = Subject::start();
    let (mut asked, mut first) = (0, 0);
    let mut total: BTreeMap<String, usize> = BTreeMap::new();
    for round in 0..ROUNDS {
        for (kind, payload) in good() {
            // A batch that is made again waits for its items: what is damaged elsewhere is enough.
            let damaged = damaged(&payload);
            for (status, count) in subject.ask_all(kind, &damaged) {
                assert_ne!(
                    (status.as_str(), kind == "job.do"),
                    ("internal", false),
                    "{kind}"
                );
                *total.entry(status).or_default() += count;
            }
            asked += damaged.len();
            subject.works(kind, 200);
        }
        if round == 0 {
            first = subject.memory();
        }
    }
    let last = subject.memory();
    println!("fields: {asked} events, {total:?}, {first} MiB, then {last}");
    assert!(last < 300 && last < first + 100, "{first} MiB, then {last}");
}

/// Run by scripts/fuzz.
#[test]
#[ignore = "writes the seeds of the fuzzers into the directory CONVOKE_SEEDS"]
fn the_fuzzers_begin_with_this_corpus() {
    let dir = std::path::PathBuf::from(std::env::var_os("CONVOKE_SEEDS").unwrap());
    let payloads = good().into_iter().flat_map(|(_, good)| damaged(&good));
    for (n, payload) in strange().into_iter().chain(payloads).enumerate() {
        // As each target reads its bytes: a field's name and length before it, a status.
        let length = u16::try_from(payload.len())
            .unwrap_or(u16::MAX)
            .to_be_bytes();
        let field = [&[1][..], &length, &payload].concat();
        let event = [&[0, 0, 12][..], b"image.resize", &field].concat();
        let answer = format!("${}\r\n", payload.len());
        for (target, seed) in [
            ("payload", payload.clone()),
            ("reply", [&[0][..], &payload].concat()),
            ("event", event.clone()),
            (
                "fact",
                if n.is_multiple_of(2) {
                    event
                } else {
                    payload.clone()
                },
            ),
            ("delayed", payload.clone()),
            ("record", payload.clone()),
            ("wire", [answer.as_bytes(), &payload, b"\r\n"].concat()),
        ] {
            let corpus = dir.join(target);
            fs::create_dir_all(&corpus).unwrap();
            fs::write(corpus.join(format!("seed-{n}")), seed).unwrap();
        }
    }
}

/// What the protocol does not allow, with the code that says so.
#[test]
fn what_the_protocol_does_not_allow_is_refused_by_its_code() {
    let mut subject = Subject::start();
    for round in 0..ROUNDS {
        let id = |name: &str| format!("{name}-{round}");
        let (t, x, b, d) = (id("t"), id("x"), id("b"), id("d"));
        let steps = [
            (
                "system.heartbeat",
                json!({"instance_id": x, "load": 0}),
                "ok",
            ),
            (
                "system.register",
                json!({"id": x, "roles": ["worker"], "capacity": 0}),
                "ok",
            ),
            (
                "system.register",
                json!({"id": x, "roles": ["worker"], "capacity": 0}),
                "ok",
            ),
            (
                "system.register",
                json!({"id": x, "roles": ["worker"], "capacity": -1}),
                "invalid_argument",
            ),
            (
                "system.register",
                json!({"id": x, "roles": ["worker"], "capacity": 1_u64 << 63}),
                "invalid_argument",
            ),
            (
                "system.register",
                json!({"id": "a b", "roles": ["worker"]}),
                "invalid_argument",
            ),
            (
                "system.register",
                json!({"id": "*", "roles": []}),
                "invalid_argument",
            ),
            (
                "task.create",
                json!({"task_id": t, "kind": "no.body", "payload": 1}),
                "ok",
            ),
            (
                "task.create",
                json!({"task_id": t, "kind": "no.body", "payload": 1}),
                "ok",
            ),
            (
                "task.create",
                json!({"task_id": t, "kind": "no.body", "payload": 2}),
                "already_exists",
            ),
            (
                "task.create",
                json!({"task_id": id("p"), "kind": "no.body", "priority": -1}),
                "invalid_argument",
            ),
            (
                "task.create",
                json!({"task_id": id("p"), "kind": "no body"}),
                "invalid_argument",
            ),
            (
                "task.complete",
                json!({"task_id": t, "instance_id": x, "fence": 1, "result": 1}),
                "aborted",
            ),
            (
                "task.complete",
                json!({"task_id": id("none"), "instance_id": x, "fence": 1}),
                "not_found",
            ),
            (
                "task.fail",
                json!({"task_id": id("none"), "instance_id": x, "fence": 1, "error": "e"}),
                "not_found",
            ),
            ("task.get", json!({"task_id": id("none")}), "not_found"),
            (
                "system.batch.process",
                json!({"batch_id": b, "item_type": "job.do", "items": [1], "lease_ms": 0}),
                "invalid_argument",
            ),
            (
                "system.batch.process",
                json!({"batch_id": b, "item_type": "job.do", "items": [1], "lease_ms": 1_000_000_000_000_u64}),
                "invalid_argument",
            ),
            (
                "system.batch.process",
                json!({"batch_id": b, "item_type": "job.do", "items": [1]}),
                "ok",
            ),
            (
                "system.batch.process",
                json!({"batch_id": b, "item_type": "job.do", "items": [2]}),
                "already_exists",
            ),
            (
                "system.quorum.vote",
                json!({"decision": d, "instance_id": "stranger", "value": 1}),
                "failed_precondition",
            ),
            (
                "system.quorum.vote",
                json!({"decision": d, "instance_id": "w-1", "value": 1, "role": "nobody"}),
                "failed_precondition",
            ),
            (
                "system.quorum.vote",
                json!({"decision": d, "instance_id": "w-1", "value": 1, "expires_in_ms": 0}),
                "invalid_argument",
            ),
            (
                "system.quorum.vote",
                json!({"decision": d, "instance_id": "w-1", "value": "x".repeat(2000)}),
                "invalid_argument",
            ),
            ("system.unregister", json!({"instance_id": x}), "ok"),
            (
                "system.heartbeat",
                json!({"instance_id": x, "load": 0}),
                "ok",
            ),
        ];
        for (kind, payload, code) in steps {
            let data = rmp_serde::to_vec_named(&payload).unwrap();
            let answered = subject.ask_all(kind, &[data]);
            let got = answered.keys().next().unwrap();
            assert_eq!(got, code, "{kind} {payload}");
            if kind == "system.heartbeat" {
                assert_eq!(subject.last_answer()["alive"], false);
            }
        }
        subject.works("the protocol", 100);
    }
}

/// What may happen to a server or be done to it, and what mends it.
#[test]
fn whatever_happens_to_the_server_the_worker_goes_on_when_it_is_well_again() {
    let mut subject = Subject::start();
    let long = Duration::from_millis(300);
    let faults: [(&str, &[&str], &[&str]); 20] = [
        ("flush", &["FLUSHALL"], &[]),
        ("no stream", &["DEL cb:events:job"], &[]),
        ("no group", &["XGROUP DESTROY cb:events:job workers"], &[]),
        ("group at 0", &["XGROUP SETID cb:events:job workers 0"], &[]),
        ("group at $", &["XGROUP SETID cb:events:job workers $"], &[]),
        (
            "no consumer",
            &["XGROUP DELCONSUMER cb:events:job workers w-1"],
            &[],
        ),
        ("trimmed", &["XTRIM cb:events:job MAXLEN 0"], &[]),
        (
            "a string",
            &["DEL cb:events:job", "SET cb:events:job x"],
            &["DEL cb:events:job"],
        ),
        (
            "the last id",
            &["XADD cb:events:job 18446744073709551615-18446744073709551615 type job.do"],
            &["DEL cb:events:job"],
        ),
        ("killed connections", &["CLIENT KILL TYPE normal"], &[]),
        ("a pause", &["CLIENT PAUSE 2000"], &[]),
        ("asleep", &["DEBUG SLEEP 2"], &[]),
        ("no scripts", &["SCRIPT FLUSH"], &[]),
        ("no functions", &["FUNCTION FLUSH"], &[]),
        (
            "a replica",
            &["REPLICAOF 127.0.0.1 1"],
            &["REPLICAOF NO ONE"],
        ),
        (
            "full",
            &["CONFIG SET maxmemory 1"],
            &["CONFIG SET maxmemory 0"],
        ),
        (
            "a user that is off",
            &[
                "ACL SETUSER convoke-worker off",
                "CLIENT KILL USER convoke-worker",
            ],
            &["ACL SETUSER convoke-worker on"],
        ),
        (
            "no instance",
            &["DEL cb:instance:w-1 cb:instances:active"],
            &[],
        ),
        ("no claims", &["DEL cb:claims:w-1"], &[]),
        (
            "the leader is a list",
            &["DEL cb:leader", "RPUSH cb:leader x"],
            &["DEL cb:leader"],
        ),
    ];
    for round in 0..ROUNDS {
        for (fault, harm, mend) in faults {
            for commands in [harm, mend] {
                for command in commands {
                    let words: Vec<&str> = command.split(' ').collect();
                    // The connection may be among those that are killed, or its stream be gone.
                    subject.say(&words).ok();
                }
                std::thread::sleep(if mend.is_empty() {
                    Duration::ZERO
                } else {
                    long
                });
            }
            subject.works(&format!("{fault} (round {round})"), 100);
        }
        subject.say(&["SHUTDOWN", "NOSAVE"]).ok();
        subject.redis.restart();
        subject.works("a restart with empty data", 100);
    }
    let memory = subject.memory();
    println!("faults: {} x {ROUNDS}, {memory} MiB", faults.len() + 1);
    assert!(memory < 200, "{memory} MiB");
    subject.redis.expect_refusals();
}
