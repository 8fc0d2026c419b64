//! Worker processes, and what their runs say in a file that all of them share.

use crate::support;
use crate::support::users;
use convoke::settings::{RedisUrl, Settings};
use convoke::{Context, HandlerError, Worker};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const SETTINGS: &str = "OWNED_WORKER_SETTINGS";
const DIR: &str = "OWNED_WORKER_DIR";
const KINDS: &str = "OWNED_WORKER_KINDS";
/// Subjects from there on do not fail.
pub(crate) const FIRM: u64 = 1_000_000;
/// Of this one all runs fail, as long as the file `fails` is there.
pub(crate) const FAILS: u64 = 7_000_000;

/// The body of the test `a_worker_process`.
pub(crate) fn process() {
    let Ok(settings) = std::env::var(SETTINGS) else {
        return;
    };
    let settings: Settings = serde_json::from_str(&settings).unwrap();
    tracing_subscriber::fmt()
        .with_env_filter("info")
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .init();
    let says = Arc::new(Says::of(Path::new(&std::env::var(DIR).unwrap())));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut worker = Worker::builder().settings(settings).state(says);
    for kind in std::env::var(KINDS).unwrap().split(' ') {
        worker = worker.handler(kind, step);
    }
    runtime.block_on(worker.build().unwrap().run()).unwrap();
    std::process::exit(0);
}

struct Says {
    history: File,
    fails: PathBuf,
}

impl Says {
    fn of(dir: &Path) -> Self {
        let history = OpenOptions::new().append(true).open(dir.join("history"));
        Self {
            history: history.unwrap(),
            fails: dir.join("fails"),
        }
    }
}

/// What a run says: that it began, and how it ended, even where it is dropped in the middle.
struct Run<'a> {
    says: &'a Says,
    worker: String,
    event: (u64, u64),
    ends: &'static str,
}

impl Run<'_> {
    fn say(&self, what: &str) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let (worker, (subject, number)) = (&self.worker, self.event);
        let line = format!("{} {worker} {what} {subject} {number}\n", now.as_micros());
        (&self.says.history).write_all(line.as_bytes()).unwrap();
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        self.say(self.ends);
    }
}

/// Says when it begins and ends; of 30 in a hundred the first try fails, unless its subject is a firm one.
async fn step(context: Context, (subject, number): (u64, u64)) -> Result<(), HandlerError> {
    let says = context.state::<Arc<Says>>()?;
    let mut run = Run {
        says,
        worker: context.instance().to_owned(),
        event: (subject, number),
        ends: "dropped",
    };
    run.say("began");
    tokio::time::sleep(Duration::from_millis(fastrand::u64(0..10))).await;
    run.ends = "failed";
    if subject == FAILS && says.fails.exists() {
        return Err(HandlerError::internal("for good"));
    }
    let odd = (subject * 31 + number * 17) % 100 < 30;
    if odd && subject < FIRM && context.event().attempt() == 1 {
        return Err(HandlerError::internal("once"));
    }
    run.ends = "ended";
    Ok(())
}

pub(crate) struct Process {
    pub(crate) id: String,
    pub(crate) child: Child,
}

impl Process {
    pub(crate) fn signal(&self, signal: &str) {
        support::signal(self.child.id(), signal);
    }

    /// Drains it, and waits until it is gone.
    pub(crate) async fn leave(&mut self) {
        self.signal("TERM");
        while self.child.try_wait().unwrap().is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Where worker processes are started.
pub(crate) struct Workers {
    settings: Settings,
    kinds: String,
    pub(crate) dir: PathBuf,
    started: usize,
}

impl Workers {
    /// For those domains, with those settings, each with an id of its own; `url_of` says how a user reaches the server.
    pub(crate) fn new(
        url_of: &dyn Fn(&str) -> String,
        domains: &[&str],
        settings: Settings,
    ) -> Self {
        let dir = support::new_directory("owned");
        File::create(dir.join("history")).unwrap();
        let redis_url = RedisUrl::new(url_of(users::WORKER));
        Self {
            settings: Settings {
                redis_url,
                ..settings
            },
            kinds: domains
                .iter()
                .map(|it| format!("{it}.step"))
                .collect::<Vec<_>>()
                .join(" "),
            dir,
            started: 0,
        }
    }

    pub(crate) fn spawn(&mut self) -> Process {
        self.started += 1;
        let id = format!("w-{}", self.started);
        let settings = Settings {
            id: id.clone(),
            ..self.settings.clone()
        };
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_worker_process", "--nocapture"])
            .env(SETTINGS, serde_json::to_string(&settings).unwrap())
            .env(DIR, &self.dir)
            .env(KINDS, &self.kinds)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(self.log(&id)).unwrap())
            .spawn();
        Process {
            id,
            child: child.unwrap(),
        }
    }

    fn log(&self, id: &str) -> PathBuf {
        self.dir.join(format!("{id}.log"))
    }

    pub(crate) fn history(&self) -> PathBuf {
        self.dir.join("history")
    }

    /// Those that stood still for longer than their lease by themselves, on a machine that is busy.
    pub(crate) fn that_lapsed(&self) -> Vec<String> {
        let ids = (1..=self.started).map(|n| format!("w-{n}"));
        let lapsed = |id: &String| {
            let log = std::fs::read_to_string(self.log(id)).unwrap();
            log.contains("was not renewed in time")
        };
        ids.filter(lapsed).collect()
    }
}

/// What all of them are set to.
pub(crate) fn settings(partitions: u16, ttl: Duration) -> Settings {
    Settings {
        partitions,
        concurrency: 64,
        heartbeat_ttl: ttl,
        claim_idle: ttl,
        backoff_base: Duration::from_millis(20),
        backoff_cap: Duration::from_millis(500),
        max_attempts: 1000,
        max_deliveries: 1000,
        stream_history: 10_000_000,
        ..Settings::default()
    }
}
