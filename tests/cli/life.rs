//! A worker as a process: what its stderr, its signals and its limits may do to it.

use super::{convoke, run};
use crate::support::{self, Redis};
use std::fs::OpenOptions;
use std::process::{Child, Command, Stdio};

/// A process that ends with its test.
struct Life(Child);

impl Life {
    /// Starts it and waits until an instance of that id is registered.
    fn start(redis: &Redis, id: &str, command: &mut Command) -> Self {
        let life = Self(command.stdout(Stdio::null()).spawn().unwrap());
        support::eventually("the worker is registered", || {
            let out = run(redis, &["instances", "--format", "json"]).done().out;
            out.contains(&format!("\"id\":\"{id}\""))
        });
        life
    }

    fn end(mut self, signal: &str) -> Option<i32> {
        support::signal(self.0.id(), signal);
        self.0.wait().unwrap().code()
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

const ECHO: [&str; 4] = ["worker", "--id=w-1", "--log=trace", "--exec=demo.echo=cat"];

#[test]
fn a_worker_works_and_drains_whatever_becomes_of_its_stderr() {
    for stderr in ["full", "closed pipe", "closed", "nobody reads it"] {
        let redis = Redis::start();
        let mut command = convoke(&redis, &ECHO);
        match stderr {
            "full" => {
                let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
                command.stderr(full);
            }
            "closed" => {
                let mut shell = Command::new("sh");
                shell.args(["-c", "exec \"$0\" \"$@\" 2>&-"]);
                shell.arg(env!("CARGO_BIN_EXE_convoke")).args(ECHO);
                shell.env("CONVOKE_REDIS_URL", redis.url());
                command = shell;
            }
            _ => {
                command.stderr(Stdio::piped());
            }
        }
        let mut worker = Life::start(&redis, "w-1", &mut command);
        // Nobody reads the other pipe, which is full soon.
        if stderr == "closed pipe" {
            drop(worker.0.stderr.take());
        }
        for _ in 0..50 {
            let ended = run(&redis, &["request", "demo.echo", "--data", "7"]).done();
            assert_eq!(ended.out, "7\n", "stderr: {stderr}");
        }
        assert_eq!(worker.end("TERM"), Some(0), "stderr: {stderr}");
        let left = run(&redis, &["instances"]).done();
        assert!(left.err.contains("no instances"), "stderr: {stderr}");
    }
}

#[test]
fn a_terminal_that_goes_away_drains_the_worker_unless_it_was_told_to_ignore_that() {
    let redis = Redis::start();
    let mut command = convoke(&redis, &ECHO);
    let worker = Life::start(&redis, "w-1", command.stderr(Stdio::null()));
    assert_eq!(worker.end("HUP"), Some(0));
    let left = run(&redis, &["instances"]).done();
    assert!(left.err.contains("no instances"), "{left:?}");

    let mut command = Command::new("sh");
    command.args(["-c", "trap '' HUP; exec \"$0\" \"$@\""]);
    command.arg(env!("CARGO_BIN_EXE_convoke")).args(ECHO);
    command.env("CONVOKE_REDIS_URL", redis.url());
    let worker = Life::start(&redis, "w-1", command.stderr(Stdio::null()));
    support::signal(worker.0.id(), "HUP");
    run(&redis, &["request", "demo.echo", "--data", "7"]).done();
    assert_eq!(worker.end("TERM"), Some(0));
}

/// The state and the parent of a process.
fn state_of(process: u32) -> Option<(String, u32)> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    Some((fields.next()?.to_owned(), fields.next()?.parse().ok()?))
}

fn children_of(parent: u32) -> Vec<(u32, String)> {
    let processes = std::fs::read_dir("/proc").unwrap();
    let ids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    ids.filter_map(|process: u32| {
        let (state, of) = state_of(process)?;
        (of == parent).then_some((process, state))
    })
    .collect()
}

#[test]
fn as_the_first_process_it_leaves_no_zombie_and_takes_no_status_of_its_commands() {
    let unshare = ["--pid", "--fork", "--mount-proc", "--kill-child"];
    let may = Command::new("unshare").args(unshare).arg("true").output();
    if !may.is_ok_and(|tried| tried.status.success()) {
        eprintln!("skipped: this system gives the test no process namespace (unshare --pid)");
        return;
    }
    let redis = Redis::start();
    let mut command = Command::new("unshare");
    command
        .args(unshare)
        .arg(env!("CARGO_BIN_EXE_convoke"))
        .args(ECHO);
    // Its grandchildren outlive it, with no pipe of its own open. Each is dead for two seconds at least before it is
    // reaped, and they die one after the other: they are seen even by who gets no time for a while.
    let orphans = "demo.orphan=for n in 0.2 1 2; do sleep $n >/dev/null 2>&1 & done; echo 1";
    command.args(["--exec", orphans, "--exec", "demo.slow=sleep 6; echo 2"]);
    command.env("CONVOKE_REDIS_URL", redis.url());
    let mut outside = Life::start(&redis, "w-1", command.stderr(Stdio::null()));
    let worker = children_of(outside.0.id())[0].0;
    let mut slow = convoke(&redis, &["request", "demo.slow", "--timeout=60s"]);
    let slow = slow.stdout(Stdio::piped()).spawn().unwrap();
    for _ in 0..4 {
        run(&redis, &["request", "demo.orphan"]).done();
    }
    let zombies = || {
        let children = children_of(worker).into_iter();
        children.filter(|(_, state)| state == "Z").count()
    };
    support::eventually("the grandchildren are dead", || zombies() > 0);
    support::eventually("nothing of them is left", || zombies() == 0);
    for _ in 0..5 {
        run(&redis, &["request", "demo.echo", "--data", "7"]).done();
    }
    let slow = slow.wait_with_output().unwrap();
    assert_eq!(slow.stdout, b"2\n", "its exit status was taken");
    support::eventually("nothing of them is left", || zombies() == 0);
    support::signal(worker, "TERM");
    assert_eq!(outside.0.wait().unwrap().code(), Some(0));
}

#[test]
fn what_can_not_be_started_for_want_of_descriptors_waits_and_spends_no_attempt() {
    let redis = Redis::start();
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 70; exec \"$0\" \"$@\""]);
    command.arg(env!("CARGO_BIN_EXE_convoke"));
    command.args(["worker", "--id=w-1", "--heartbeat-ttl=3s"]);
    command.args(["--exec", "demo.try=sleep 0.1; echo $CONVOKE_EVENT_ATTEMPT"]);
    command.env("CONVOKE_REDIS_URL", redis.url());
    let mut worker = Life::start(&redis, "w-1", command.stderr(Stdio::piped()));
    let lines: String = (0..200).map(|n| format!("{{\"n\":{n}}}\n")).collect();
    let publish = ["publish", "demo.try", "--data", "-", "--lines"];
    super::run_with_input(&redis, &publish, lines.as_bytes()).done();
    let mut connection = redis.connect();
    let mut length = |stream: &str| -> usize {
        redis::cmd("XLEN")
            .arg(stream)
            .query(&mut connection)
            .unwrap()
    };
    support::eventually("all are run", || length("cb:results:demo") == 200);
    assert_eq!(length("cb:dead:demo"), 0);
    let results: redis::Value = redis::cmd("XRANGE")
        .arg(&["cb:results:demo", "-", "+"])
        .query(&mut redis.connect())
        .unwrap();
    let entries = convoke::streams::read::entries_of(results).unwrap();
    for entry in entries {
        // MessagePack for 1.
        assert_eq!(entry.get("data"), Some(&[1][..]), "{entry:?}");
    }
    support::signal(worker.0.id(), "TERM");
    let mut log = String::new();
    std::io::Read::read_to_string(&mut worker.0.stderr.take().unwrap(), &mut log).unwrap();
    assert!(worker.0.wait().unwrap().success(), "{log}");
    let told = log.matches("commands cannot be started now").count();
    assert_eq!(told, 1, "{log}");
    assert!(log.contains("Too many open files"), "{log}");
    assert!(!log.contains("was declared lost"), "{log}");
}
