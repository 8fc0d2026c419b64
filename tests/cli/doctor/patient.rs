//! A server that is healthy until a test makes it ill, and what the doctor finds on it.

use super::super::rig::lines;
use super::super::{bare, end};
use crate::support::between::between;
use crate::support::{self, Redis};
use serde_json::Value;

pub(super) const HEALTHY: [&str; 12] = [
    "--save",
    "",
    "--appendonly",
    "yes",
    "--maxmemory",
    "100mb",
    "--maxmemory-policy",
    "noeviction",
    "--proto-max-bulk-len",
    "4mb",
    "--busy-reply-threshold",
    "500",
];

/// A server on which nothing is wrong, and its user.
pub(super) struct Patient {
    pub(super) redis: Redis,
    pub(super) url: String,
}

/// The findings by the names of their checks.
pub(super) struct Findings {
    pub(super) code: i32,
    pub(super) all: Vec<Value>,
}

impl Findings {
    #[track_caller]
    pub(super) fn of(&self, check: &str) -> &Value {
        let found = self.all.iter().find(|finding| finding["check"] == check);
        found.unwrap_or_else(|| panic!("{check} is not in {:?}", self.all))
    }

    /// The checks that are not fine.
    pub(super) fn bad(&self) -> Vec<String> {
        let bad = self
            .all
            .iter()
            .filter(|finding| finding["status"] != "fine");
        bad.map(|f| {
            format!(
                "{} {}",
                f["status"].as_str().unwrap(),
                f["check"].as_str().unwrap()
            )
        })
        .collect()
    }
}

impl Patient {
    pub(super) fn healthy() -> Self {
        let redis = Redis::with(&HEALTHY);
        let url = format!("redis://op:test@127.0.0.1:{}", redis.port());
        let patient = Self { redis, url };
        let mut connection = patient.redis.connect();
        for words in [
            &[
                "ACL",
                "SETUSER",
                "op",
                "on",
                ">test",
                "~*",
                "+@all",
                "-flushall",
            ][..],
            // Reset, or protected mode goes by its missing password.
            &["ACL", "SETUSER", "default", "resetpass", "off"],
        ] {
            redis::cmd(words[0])
                .arg(&words[1..])
                .exec(&mut connection)
                .unwrap();
        }
        patient
    }

    pub(super) fn say(&self, words: &[&str]) {
        let mut connection = redis::Client::open(self.url.as_str())
            .unwrap()
            .get_connection()
            .unwrap();
        redis::cmd(words[0])
            .arg(&words[1..])
            .exec(&mut connection)
            .unwrap();
    }

    pub(super) fn set(&self, name: &str, value: &str) {
        self.say(&["CONFIG", "SET", name, value]);
    }

    pub(super) fn examined(&self) -> Findings {
        examined(&self.url)
    }

    /// What is wrong after that was done to it, and nothing else is.
    #[track_caller]
    pub(super) fn must_suffer(self, from: &[&str]) {
        let findings = self.examined();
        assert_eq!(findings.bad(), from);
        let dangerous = from.iter().any(|finding| finding.starts_with("danger"));
        assert_eq!(findings.code, i32::from(dangerous));
        for finding in findings.all.iter().filter(|f| f["status"] != "fine") {
            for part in ["what", "why", "fix"] {
                assert!(
                    finding[part].as_str().is_some_and(|text| text.len() > 10),
                    "{finding}"
                );
            }
        }
    }
}

pub(super) fn examined(url: &str) -> Findings {
    let mut command = bare();
    command
        .env("CONVOKE_REDIS_URL", url)
        .env("CONVOKE_CLAIM_IDLE", "100ms");
    let ended = end(command.args(["doctor", "--format", "json"]));
    assert!(
        matches!(ended.code, 0 | 1) && ended.err.is_empty(),
        "{ended:?}"
    );
    Findings {
        code: ended.code,
        all: lines(&ended.out),
    }
}

/// Goes between, and changes what the server says.
pub(super) fn liar(port: u16, lie: fn(&mut [u8])) -> String {
    format!("redis://op:test@127.0.0.1:{}", between(port, lie))
}

pub(super) fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// A replica of it, which logs in.
pub(super) fn replica(patient: &Patient) -> Redis {
    let port = patient.redis.port().to_string();
    let replica = Redis::with(&[
        "--save",
        "",
        "--replicaof",
        "127.0.0.1",
        &port,
        "--masteruser",
        "op",
        "--masterauth",
        "test",
    ]);
    let mut connection = redis::Client::open(patient.url.as_str())
        .unwrap()
        .get_connection()
        .unwrap();
    support::eventually("the replica follows", || {
        let info: String = redis::cmd("INFO")
            .arg("replication")
            .query(&mut connection)
            .unwrap();
        info.contains("state=online")
    });
    replica
}
