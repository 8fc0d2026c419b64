//! What a worker's process says of itself: to `convoke probe` and to systemd.

use super::{Ended, convoke, end};
use crate::support::{self, Redis, signal};
use serde_json::Value;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A worker as a process, and a directory for its sockets; both end with the test.
struct Rig {
    redis: Redis,
    place: PathBuf,
    workers: Vec<Child>,
}

impl Rig {
    fn new() -> Self {
        let place = format!(
            "convoke-probe-{}-{:x}",
            std::process::id(),
            fastrand::u64(..)
        );
        let place = std::env::temp_dir().join(place);
        Self {
            redis: Redis::start(),
            place,
            workers: Vec::new(),
        }
    }

    /// A signal to the server, or to all nodes.
    fn to_server(&self, what: &str) {
        for pid in self.redis.pids() {
            signal(pid, what);
        }
    }

    fn worker(&mut self, id: &str, more: impl FnOnce(&mut Command)) -> u32 {
        let mut command = convoke(&self.redis, &["worker", "--heartbeat-ttl=3s", "--id", id]);
        command.arg("--runtime-dir").arg(&self.place);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        more(&mut command);
        let worker = command.spawn().unwrap();
        let pid = worker.id();
        self.workers.push(worker);
        pid
    }

    fn probe(&self, words: &[&str]) -> Ended {
        let mut command = convoke(&self.redis, &["probe", "--timeout=30s"]);
        end(command.args(words).arg("--runtime-dir").arg(&self.place))
    }

    /// Waits until that probe ends so, and says that. Who waits for a core may not be ready for a moment.
    fn becomes(&self, words: &[&str], code: i32, says: &str) -> Ended {
        let mut ended = self.probe(words);
        support::eventually(&format!("probe {words:?} exits {code}: {says}"), || {
            let told = ended.code == code && (ended.out.contains(says) || ended.err.contains(says));
            if !told {
                ended = self.probe(words);
            }
            told
        });
        ended
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        for worker in &mut self.workers {
            worker.kill().ok();
            worker.wait().ok();
        }
        fs::remove_dir_all(&self.place).ok();
    }
}

#[test]
fn a_probe_tells_starting_working_and_draining_apart() {
    let mut rig = Rig::new();
    rig.probe(&["live"])
        .failed(1, &["no worker has a socket", "--runtime-dir"]);
    rig.to_server("STOP");
    let pid = rig.worker("w-1", |command| {
        command.args(["--exec=demo.wait=sleep 60", "--drain-timeout=1m"]);
    });
    rig.becomes(&["live"], 0, "");
    rig.probe(&["started"])
        .failed(1, &["w-1", "has not joined the bus yet"]);
    rig.probe(&["ready"])
        .failed(1, &["has not joined the bus yet"]);
    rig.to_server("CONT");
    let ended = rig.becomes(&["ready", "--format", "json"], 0, "");
    rig.probe(&["started", "--id", "w-1"]).done();
    let signs: Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!(
        (&signs["id"], &signs["stage"]),
        (&"w-1".into(), &"working".into())
    );
    assert_eq!(
        (&signs["pid"], signs["lanes"].as_array().unwrap().len()),
        (&pid.into(), 3)
    );

    // While the server is away the worker lives, and takes nothing.
    rig.to_server("STOP");
    rig.becomes(&["ready"], 1, "the server has not answered for");
    rig.probe(&["live"]).done();
    rig.to_server("CONT");
    rig.becomes(&["ready"], 0, "");

    end(convoke(&rig.redis, &["publish", "demo.wait"]).arg("--data=1")).done();
    support::eventually("the command runs", || {
        let signs = rig.probe(&["ready", "--format", "json"]).out;
        serde_json::from_str::<Value>(&signs).unwrap()["in_flight"] == 1
    });
    signal(pid, "TERM");
    rig.becomes(&["ready"], 1, "it drains");
    rig.probe(&["live"]).done();
    signal(pid, "TERM");
    support::eventually("its socket is gone", || {
        fs::read_dir(&rig.place).unwrap().count() == 0
    });
}

#[test]
fn several_workers_are_told_apart_and_the_dead_one_is_not_asked() {
    let mut rig = Rig::new();
    let first = rig.worker("w-1", |_| {});
    rig.worker("w-2", |_| {});
    rig.becomes(&["ready", "--id", "w-1"], 0, "");
    rig.becomes(&["ready", "--id", "w-2"], 0, "");
    rig.probe(&["live"]).failed(2, &["--id", "w-1", "w-2"]);
    signal(first, "KILL");
    rig.workers[0].wait().unwrap();
    rig.probe(&["live", "--id", "w-1"])
        .failed(1, &["no worker answers", "w-1.sock"]);
    let ended = rig.becomes(&["ready"], 0, "");
    assert!(ended.out.starts_with("w-2: working"), "{ended:?}");
    rig.worker("w-1", |_| {});
    rig.becomes(&["ready", "--id", "w-1"], 0, "");
}

/// What systemd hears next.
fn heard(socket: &UnixDatagram) -> String {
    let mut text = [0; 4096];
    let length = socket.recv(&mut text).unwrap();
    String::from_utf8(text[..length].to_vec()).unwrap()
}

fn hears(socket: &UnixDatagram, what: &str) -> String {
    loop {
        let said = heard(socket);
        if said.contains(what) {
            return said;
        }
    }
}

fn listens(place: &Path) -> UnixDatagram {
    fs::create_dir_all(place).unwrap();
    let socket = UnixDatagram::bind(place.join("notify")).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    socket
}

#[test]
fn systemd_hears_that_it_is_ready_that_it_lives_and_that_it_stops() {
    let mut rig = Rig::new();
    let place = rig.place.with_extension("systemd");
    let systemd = listens(&place);
    rig.to_server("STOP");
    let pid = rig.worker("w-1", |command| {
        command.env("NOTIFY_SOCKET", place.join("notify"));
        command.env("WATCHDOG_USEC", "2000000");
    });
    // It lives, and is not ready before it has joined the bus.
    for _ in 0..3 {
        let said = heard(&systemd);
        assert!(said.starts_with("WATCHDOG=1\nSTATUS=starting"), "{said}");
    }
    rig.to_server("CONT");
    hears(&systemd, "READY=1");
    hears(&systemd, "WATCHDOG=1\nSTATUS=working, 0 in flight");
    // Nor does an outage end it.
    rig.to_server("STOP");
    for _ in 0..12 {
        hears(&systemd, "WATCHDOG=1");
    }
    rig.to_server("CONT");
    signal(pid, "TERM");
    hears(&systemd, "STOPPING=1");
    assert!(rig.workers[0].wait().unwrap().success());
    fs::remove_dir_all(&place).unwrap();
}
