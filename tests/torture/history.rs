//! What was done and what became of it, a line for each end of each operation.
//!
//! Tab-separated: ns since the rig began, process, operation, `invoke` / `ok` / `fail` / `unknown`, id,
//! key, value. Each line is one append, so it outlives its process.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

/// A history that is being written.
pub(crate) struct History {
    file: File,
    process: String,
    began: SystemTime,
    /// The wall clock is read once, so that time does not go back.
    opened: (Duration, Instant),
}

/// A line.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) ns: u64,
    pub(crate) process: String,
    pub(crate) op: String,
    pub(crate) phase: String,
    pub(crate) id: String,
    pub(crate) key: String,
    pub(crate) value: String,
}

impl History {
    /// One process's history of a rig that began then.
    pub(crate) fn open(path: &Path, process: String, began: SystemTime) -> Self {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .unwrap();
        let since = began.elapsed().unwrap_or_default();
        Self {
            file,
            process,
            began,
            opened: (since, Instant::now()),
        }
    }

    /// The rig's own; its first line names seed and commit.
    pub(crate) fn begin(path: &Path, scenario: &str, seed: u64) -> Self {
        let history = Self::open(path, "rig".into(), SystemTime::now());
        let line = format!("# {scenario} seed {seed} commit {}\n", commit());
        (&history.file).write_all(line.as_bytes()).unwrap();
        history
    }

    pub(crate) fn began(&self) -> SystemTime {
        self.began
    }

    /// Nanoseconds since the rig began.
    pub(crate) fn now(&self) -> u64 {
        (self.opened.0 + self.opened.1.elapsed()).as_nanos() as u64
    }

    pub(crate) fn note(&self, op: &str, phase: &str, id: &str, key: &str, value: &str) {
        let (now, process) = (self.now(), &self.process);
        let line = format!("{now}\t{process}\t{op}\t{phase}\t{id}\t{key}\t{value}\n");
        (&self.file).write_all(line.as_bytes()).unwrap();
    }
}

/// The commit that is tested, as git tells it.
fn commit() -> String {
    let git = Command::new("git")
        .args(["-C", env!("CARGO_MANIFEST_DIR"), "rev-parse", "HEAD"])
        .output();
    let text = git.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    text.unwrap_or_default()
}

/// The histories of a directory: the rig's and those of its workers.
pub(crate) fn all(dir: &Path) -> Vec<Record> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(dir)
        .unwrap()
        .map(|file| file.unwrap().path())
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("history")
        })
        .collect();
    paths.sort();
    paths.iter().flat_map(|path| read(path)).collect()
}

fn read(path: &Path) -> Vec<Record> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().filter_map(parse).collect()
}

fn parse(line: &str) -> Option<Record> {
    let mut fields = line.split('\t');
    let mut next = || fields.next().map(str::to_owned);
    Some(Record {
        ns: next()?.parse().ok()?,
        process: next()?,
        op: next()?,
        phase: next()?,
        id: next()?,
        key: next()?,
        value: next()?,
    })
}

/// When the last run of that history began.
pub(crate) fn last_run(path: &Path) -> Option<u64> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(4096)))
        .ok()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let mut records = text.lines().rev().filter_map(parse);
    let run = records.find(|record| record.op == "run" && record.phase == "invoke")?;
    Some(run.ns)
}
