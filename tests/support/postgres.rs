//! A PostgreSQL server of one test's own. It refuses to run as root; then it runs as `postgres`.

#![allow(dead_code)] // Each test binary uses a part.

use super::{eventually, free_port, new_directory, signal};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

pub(crate) struct Postgres {
    port: u16,
    dir: PathBuf,
    child: Option<Child>,
}

impl Postgres {
    /// A new server with an empty database.
    pub(crate) fn start() -> Self {
        let dir = new_directory("postgres");
        give(&dir);
        let mut permissions = fs::metadata(&dir).expect("the directory").permissions();
        permissions.set_mode(0o700);
        fs::set_permissions(&dir, permissions).expect("chmod");
        copy(&template(), &dir.join("data"));
        let mut postgres = Self {
            port: free_port(),
            dir,
            child: None,
        };
        postgres.restart();
        postgres
    }

    /// `postgres://…`
    pub(crate) fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Starts it again on the same port and data.
    pub(crate) fn restart(&mut self) {
        self.kill();
        let port = self.port;
        // After a kill the shared memory is in use until the last of its processes has noticed.
        eventually("PostgreSQL answers", || {
            let ended = match &mut self.child {
                Some(child) => child.try_wait().expect("its state").is_some(),
                None => true,
            };
            if ended {
                self.child = Some(self.spawn());
            }
            let ready = command("pg_isready", &self.dir)
                .args(["-q", "-h", "127.0.0.1", "-p", &port.to_string()])
                .status();
            ready.expect("pg_isready runs").success()
        });
    }

    fn spawn(&self) -> Child {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.join("log"))
            .expect("a log file");
        command("postgres", &self.dir)
            .arg("-D")
            .arg(self.dir.join("data"))
            .args(["-p", &self.port.to_string(), "-h", "127.0.0.1", "-k"])
            .arg(&self.dir)
            // Processes are killed here, not machines.
            .args(["-F", "-c", "max_connections=50"])
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .expect("postgres starts")
    }

    /// `kill -9` of the postmaster; its other processes end by themselves.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
    }

    /// The server and all its processes stop where they are, or go on.
    pub(crate) fn freeze(&self, freeze: bool) {
        let name = if freeze { "STOP" } else { "CONT" };
        let pid = self.child.as_ref().expect("the server runs").id();
        if freeze {
            signal(pid, name);
        }
        let path = format!("/proc/{pid}/task/{pid}/children");
        let children = fs::read_to_string(path).expect("its children");
        for child in children.split_whitespace() {
            // One may have ended meanwhile.
            Command::new("kill")
                .args([&format!("-{name}"), child])
                .stderr(Stdio::null())
                .status()
                .expect("kill runs");
        }
        if !freeze {
            signal(pid, name);
        }
    }

    /// Runs SQL on it, as its owner.
    pub(crate) fn sql(&self, sql: &str) -> String {
        let done = command("psql", &self.dir)
            .args(["-X", "-q", "-t", "-A", "-v", "ON_ERROR_STOP=1", "-c", sql])
            .arg(self.url())
            .output()
            .expect("psql runs");
        assert!(done.status.success(), "{sql}: {done:?}");
        String::from_utf8(done.stdout)
            .expect("text")
            .trim()
            .to_owned()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let immediately = ["-QUIT", &child.id().to_string()];
            Command::new("kill").args(immediately).status().ok();
            Command::new("kill")
                .args(["-CONT", &child.id().to_string()])
                .status()
                .ok();
            child.wait().ok();
        }
        if std::thread::panicking()
            && let Ok(log) = fs::read_to_string(self.dir.join("log"))
        {
            let tail: Vec<&str> = log.lines().rev().take(40).collect();
            eprintln!("--- postgres on port {} ---", self.port);
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        }
        fs::remove_dir_all(&self.dir).ok();
    }
}

/// An empty database, made once and copied: making one takes seconds.
fn template() -> PathBuf {
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("postgres");
    if place.exists() {
        return place;
    }
    let work = new_directory("initdb");
    give(&work);
    let made = command("initdb", &work)
        .args(["-A", "trust", "-U", "postgres", "-E", "UTF8"])
        .args([
            "--no-locale",
            "--no-sync",
            "--no-instructions",
            "-D",
            "data",
        ])
        .output()
        .expect("initdb runs (scripts/test installs it)");
    assert!(made.status.success(), "{made:?}");
    // A process id is given again, and a copy may be left of one that was killed.
    let (process, number) = (std::process::id(), fastrand::u32(..));
    let mine = place.with_file_name(format!("postgres-{process}-{number:08x}"));
    copy(&work.join("data"), &mine);
    fs::remove_dir_all(&work).ok();
    // Another test may have been first: theirs is as good.
    if fs::rename(&mine, &place).is_err() {
        fs::remove_dir_all(&mine).ok();
    }
    place
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(copied.expect("cp runs").success(), "{}", from.display());
}

/// Makes a directory the server's.
fn give(dir: &Path) {
    if let Some((user, group)) = other_user() {
        std::os::unix::fs::chown(dir, Some(user), Some(group)).expect("chown");
    }
}

/// A program of the installation, run in the directory and not as root.
fn command(program: &str, dir: &Path) -> Command {
    let mut command = Command::new(binary(program));
    command.current_dir(dir).stdin(Stdio::null());
    if let Some((user, group)) = other_user() {
        command.uid(user).gid(group);
    }
    command
}

/// Debian keeps the server's programs out of PATH.
fn binary(program: &str) -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql");
    let mut found: Vec<PathBuf> = versions
        .into_iter()
        .flatten()
        .filter_map(|version| Some(version.ok()?.path().join("bin").join(program)))
        .filter(|path| path.exists())
        .collect();
    found.sort();
    found.pop().unwrap_or_else(|| program.into())
}

/// The user and group `postgres`, if this is root.
fn other_user() -> Option<(u32, u32)> {
    use std::os::unix::fs::MetadataExt;
    if fs::metadata("/proc/self").expect("/proc").uid() != 0 {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").expect("the users");
    let line = users.lines().find(|line| line.starts_with("postgres:"));
    let mut fields = line.expect("a user postgres").split(':').skip(2);
    let mut number = || fields.next()?.parse().ok();
    Some((number()?, number()?))
}
