//! What a red run tells: what each node says of itself and of all, who is connected to it, how far the streams are, and what
//! the workers said last.

use super::Nodes;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Logs of workers: those that were written last.
const LOGS: usize = 8;
/// Lines of each.
const LINES: usize = 20;

impl Nodes {
    /// Where the logs of the workers are.
    pub(crate) fn hear(&mut self, workers: &Path) {
        self.workers = Some(workers.to_owned());
    }

    pub(crate) fn told(&self) -> String {
        let mut told = String::new();
        for (number, node) in self.cluster.nodes.iter().enumerate() {
            let port = node.port();
            write!(told, "\n--- node {number}, port {port}").expect("a string");
            let problem = self.node_told(number, &mut told);
            if let Err(problem) = problem {
                write!(told, "\nit does not tell: {problem}").expect("a string");
            }
        }
        if let Some(dir) = &self.workers {
            told += &said(dir);
        }
        told
    }

    fn node_told(&self, number: usize, told: &mut String) -> redis::RedisResult<()> {
        let client = redis::Client::open(self.cluster.nodes[number].admin_url())?;
        let limit = Duration::from_secs(3);
        let mut connection = client.get_connection_with_timeout(limit)?;
        connection.set_read_timeout(Some(limit))?;
        let mut ask = |words: &[&str]| -> redis::RedisResult<String> {
            redis::cmd(words[0]).arg(&words[1..]).query(&mut connection)
        };
        let of = |info: String, fields: &[&str]| -> String {
            let lines = info.lines().filter(|line| {
                let field = line.split(':').next().unwrap_or_default();
                fields.contains(&field)
            });
            lines.collect::<Vec<_>>().join(" ")
        };
        let info = of(
            ask(&["CLUSTER", "INFO"])?,
            &["cluster_state", "cluster_current_epoch", "cluster_my_epoch"],
        );
        let fields = [
            "role",
            "master_port",
            "master_link_status",
            "master_repl_offset",
            "slave_repl_offset",
            "slave0",
        ];
        let replication = of(ask(&["INFO", "replication"])?, &fields);
        write!(told, "\n{info} {replication}").expect("a string");
        for line in ask(&["CLUSTER", "NODES"])?.lines() {
            // Its id says nothing to whom knows the ports.
            let (_, line) = line.split_once(' ').unwrap_or_default();
            write!(told, "\n  {line}").expect("a string");
        }
        // Who is connected, what it did last, and how many s ago.
        let mut clients: BTreeMap<(String, String), (u32, u64)> = BTreeMap::new();
        for line in ask(&["CLIENT", "LIST"])?.lines() {
            let field = |name: &str| -> String {
                let mut words = line.split(' ');
                let found = words.find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
                found.unwrap_or_default().to_owned()
            };
            let idle = field("idle").parse().unwrap_or(0);
            let who = clients.entry((field("user"), field("cmd")));
            let who = who.or_insert((0, u64::MAX));
            *who = (who.0 + 1, who.1.min(idle));
        }
        for ((user, command), (count, idle)) in clients {
            let line = format!("\n  {count} of {user}: {command}, {idle} s ago");
            told.push_str(&line);
        }
        for stream in &self.keys {
            let groups: redis::RedisResult<Vec<BTreeMap<String, redis::Value>>> =
                redis::cmd("XINFO")
                    .arg(&["GROUPS", stream])
                    .query(&mut connection);
            for group in groups.unwrap_or_default() {
                let of = |name: &str| match group.get(name) {
                    Some(redis::Value::Int(number)) => number.to_string(),
                    Some(redis::Value::BulkString(text)) => {
                        String::from_utf8_lossy(text).into_owned()
                    }
                    _ => "?".to_owned(),
                };
                let (pending, lag, last) = (of("pending"), of("lag"), of("last-delivered-id"));
                let line = format!("\n  {stream}: {pending} pending, {lag} behind {last}");
                told.push_str(&line);
            }
        }
        Ok(())
    }
}

/// What workers said last.
fn said(dir: &Path) -> String {
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut logs: Vec<(std::time::SystemTime, PathBuf)> = files
        .filter_map(|file| Some((file.metadata().ok()?.modified().ok()?, file.path())))
        .filter(|(_, path)| path.to_string_lossy().contains("log"))
        .collect();
    logs.sort_unstable();
    let mut told = String::new();
    for (_, path) in logs.iter().rev().take(LOGS) {
        let text = std::fs::read(path).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let last = &lines[lines.len().saturating_sub(LINES)..];
        let part = format!("\n--- {}\n{}", path.display(), last.join("\n"));
        told.push_str(&part);
    }
    told
}
