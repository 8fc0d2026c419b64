//! Everything that was shown, and whether the secret is in it.

use crate::support::postgres::Postgres;
use crate::support::{Redis, new_directory};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// What every secret of these tests has in it.
pub(super) const CANARY: &str = "k4n4ry";

pub(super) const PASSWORD: &str = "k4n4ry-p4ss";

pub(super) const DATABASE: &str = "k4n4ry-d4t4";

pub(super) const TOKEN: &str = "k4n4ry-t0ken";

/// A directory of one test's own.
pub(super) struct Dir(PathBuf);

impl Dir {
    pub(super) fn new() -> Self {
        Self(new_directory("canary"))
    }

    pub(super) fn file(&self, name: &str) -> String {
        self.0.join(name).to_string_lossy().into_owned()
    }

    /// A file that holds a text, for its owner or for everyone.
    pub(super) fn write(&self, name: &str, text: &str, mode: u32) -> String {
        let path = self.file(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

/// What was seen, by where.
#[derive(Default)]
pub(super) struct Seen(pub(super) BTreeMap<String, Vec<u8>>);

impl Seen {
    pub(super) fn add(&mut self, place: impl Into<String>, bytes: impl AsRef<[u8]>) {
        let all = self.0.entry(place.into()).or_default();
        all.extend_from_slice(bytes.as_ref());
        all.push(b'\n');
    }

    /// The places where the canary is, each with the line.
    pub(super) fn hits(&self) -> Vec<String> {
        let mut hits = Vec::new();
        for (place, bytes) in &self.0 {
            for line in bytes.split(|byte| *byte == b'\n') {
                if holds(line, CANARY) {
                    hits.push(format!("{place}: {}", String::from_utf8_lossy(line)));
                }
            }
        }
        hits
    }

    #[track_caller]
    pub(super) fn must_be_clean(&self, least: usize) {
        assert!(self.0.len() >= least, "only {} places", self.0.len());
        let bytes: usize = self.0.values().map(Vec::len).sum();
        println!("{} places, {bytes} bytes", self.0.len());
        assert_eq!(self.hits(), Vec::<String>::new());
    }
}

pub(super) fn holds(bytes: &[u8], what: &str) -> bool {
    bytes
        .windows(what.len())
        .any(|window| window.eq_ignore_ascii_case(what.as_bytes()))
}

/// The command with nothing set but what the test sets.
pub(super) fn bare(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_convoke"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CONVOKE_") {
            command.env_remove(name);
        }
    }
    command.args(words).stdin(Stdio::null());
    command
}

/// Runs it to its end; both outputs are seen.
pub(super) fn look(seen: &mut Seen, command: &mut Command) -> i32 {
    let place = format!("{:?}", command.get_args().collect::<Vec<_>>());
    let ended = command.output().unwrap();
    seen.add(format!("stdout of {place}"), &ended.stdout);
    seen.add(format!("stderr of {place}"), &ended.stderr);
    ended.status.code().expect("not killed")
}

/// A process and all that descend from it, by pid.
pub(super) fn family(root: u32) -> Vec<u32> {
    let mut family = vec![root];
    let mut at = 0;
    while let Some(parent) = family.get(at) {
        let mut found: Vec<u32> = fs::read_dir(format!("/proc/{parent}/task"))
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
            .flat_map(|pids| {
                let pids = pids.split_whitespace().map(str::parse);
                pids.collect::<Result<Vec<u32>, _>>().unwrap()
            })
            .collect();
        found.retain(|pid| !family.contains(pid));
        family.extend(found);
        at += 1;
    }
    family
}

/// Everything that a server holds.
pub(super) fn dump(seen: &mut Seen, redis: &Redis) {
    let mut connection = redis.connect();
    let ask = |connection: &mut redis::Connection, words: &[&str]| -> String {
        let answer: redis::RedisResult<redis::Value> =
            redis::cmd(words[0]).arg(&words[1..]).query(connection);
        match answer {
            Ok(value) => readable(&value),
            Err(error) => error.to_string(),
        }
    };
    let keys: Vec<String> = redis::cmd("KEYS").arg("*").query(&mut connection).unwrap();
    assert!(keys.len() > 10, "{keys:?}");
    for key in keys {
        let kind: String = redis::cmd("TYPE").arg(&key).query(&mut connection).unwrap();
        let told = match kind.as_str() {
            "stream" => ask(&mut connection, &["XRANGE", &key, "-", "+"]),
            "hash" => ask(&mut connection, &["HGETALL", &key]),
            "set" => ask(&mut connection, &["SMEMBERS", &key]),
            "zset" => ask(&mut connection, &["ZRANGE", &key, "0", "-1"]),
            _ => ask(&mut connection, &["GET", &key]),
        };
        seen.add(format!("key {key}"), told);
    }
    seen.add("CLIENT LIST", ask(&mut connection, &["CLIENT", "LIST"]));
    seen.add("SLOWLOG", ask(&mut connection, &["SLOWLOG", "GET", "-1"]));
}

/// A value with all its bytes as text.
pub(super) fn readable(value: &redis::Value) -> String {
    match value {
        redis::Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        redis::Value::Array(parts) => parts.iter().map(readable).collect::<Vec<_>>().join("\n"),
        other => format!("{other:?}"),
    }
}

/// Every row of every table, as text.
pub(super) fn rows(seen: &mut Seen, postgres: &Postgres) {
    let tables = postgres
        .sql("select string_agg(tablename, ' ') from pg_tables where tablename like 'convoke_%'");
    let tables: Vec<String> = tables.split_whitespace().map(str::to_owned).collect();
    assert!(tables.contains(&"convoke_facts".to_owned()), "{tables:?}");
    for table in tables {
        let rows = postgres.sql(&format!("select t::text from {table} t"));
        seen.add(format!("table {table}"), rows);
    }
}
