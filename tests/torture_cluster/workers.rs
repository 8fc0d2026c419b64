//! Worker processes, and what happens to them.

use crate::faults::{Mix, Way};
use crate::support::fleet::{CLAIM_IDLE, TTL, Work};
use crate::support::{signal, torture};
use crate::{HISTORY, PARTITIONS};
use convoke::settings::{RedisUrl, Settings};
use convoke::{Context, HandlerError, Policy, Worker};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

const URL: &str = "TORTURE_CLUSTER_URL";
const ID: &str = "TORTURE_CLUSTER_ID";
/// The worker that alone runs the events whose order counts.
const ORDERED: &str = "ordered";

async fn work(context: Context, work: Work) -> Result<u64, HandlerError> {
    if work.ms > 0 {
        tokio::time::sleep(Duration::from_millis(work.ms)).await;
    }
    context.publish("effect.made", &work.n)?;
    Ok(work.n)
}

async fn step(_: Context, work: Work) -> Result<u64, HandlerError> {
    tokio::time::sleep(Duration::from_millis(work.ms)).await;
    Ok(work.n)
}

/// The body of the test `a_worker_process`.
pub(crate) fn process() {
    let (Ok(url), Ok(id)) = (std::env::var(URL), std::env::var(ID)) else {
        return;
    };
    tracing_subscriber::fmt()
        .with_env_filter("info")
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .init();
    let settings = Settings {
        redis_url: RedisUrl::new(url),
        id: id.clone(),
        partitions: PARTITIONS,
        heartbeat_ttl: TTL,
        claim_idle: CLAIM_IDLE,
        backoff_base: Duration::from_millis(50),
        backoff_cap: Duration::from_secs(1),
        // Poison has tests of its own.
        max_deliveries: 1000,
        stream_history: HISTORY,
        ..Settings::default()
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let worker = Worker::builder().settings(settings);
        let worker = match id == ORDERED {
            true => {
                let policy = Policy::new().ordered().concurrency(16);
                worker.handler_with("line.step", step, policy)
            }
            false => worker.handler("load.work", work),
        };
        worker.build().unwrap().run().await.unwrap();
    });
    std::process::exit(0);
}

pub(crate) struct Workers {
    url: String,
    dir: PathBuf,
    all: Vec<(String, Child)>,
    started: usize,
}

impl Workers {
    /// This many for the load, and one that runs subjects in order.
    pub(crate) fn start(url: &str, dir: &Path, count: usize) -> Self {
        let mut workers = Self {
            url: url.to_owned(),
            dir: dir.to_owned(),
            all: Vec::new(),
            started: 0,
        };
        workers.spawn(ORDERED.to_owned());
        for number in 1..=count {
            workers.spawn(format!("w-{number}"));
        }
        workers
    }

    fn spawn(&mut self, id: String) {
        self.started += 1;
        let log = File::create(self.dir.join(format!("log.{id}.{}", self.started))).unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_worker_process", "--nocapture"])
            .env(URL, &self.url)
            .env(ID, &id)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.all.push((id, child));
    }

    /// `kill -9`; another one comes under the same name, or under a new one.
    fn kill(&mut self, at: usize, same_name: bool) {
        let (id, mut child) = self.all.remove(at);
        child.kill().unwrap();
        child.wait().unwrap();
        let new = format!("w-new-{}", self.started);
        // A stranger begins with what is new before it takes over what the dead one held.
        let id = if same_name || id == ORDERED { id } else { new };
        self.spawn(id);
    }

    /// SIGTERM to all; each must exit with 0.
    pub(crate) fn drain(mut self) {
        for (_, child) in &self.all {
            signal(child.id(), "TERM");
        }
        for (id, mut child) in self.all.drain(..) {
            let status = child.wait().unwrap();
            assert!(status.success(), "{id} ended with {status}");
        }
    }

    /// Whether every one of them runs.
    fn all_run(&mut self) -> bool {
        let mut all = self.all.iter_mut();
        all.all(|(_, child)| child.try_wait().unwrap().is_none())
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for (_, child) in &mut self.all {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

/// Kills and stops workers as drawn.
pub(crate) async fn vex(mut workers: Workers, mix: Arc<Mix>) -> Workers {
    let mut dice = torture::dice("cluster workers");
    for way in mix.of_workers() {
        tokio::time::sleep(Duration::from_millis(dice.u64(300..10_000))).await;
        let at = dice.usize(..workers.all.len());
        match way {
            Way::StopWorker => {
                let pid = workers.all[at].1.id();
                signal(pid, "STOP");
                tokio::time::sleep(TTL.mul_f64(1.2 + 3.0 * dice.f64())).await;
                signal(pid, "CONT");
            }
            _ => workers.kill(at, dice.bool()),
        }
        assert!(workers.all_run(), "a worker ended by itself");
    }
    workers
}
