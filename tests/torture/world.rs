//! The supervisor: one server, worker processes each behind a wire of its own, and what they left.

use crate::history::{self, History};
use crate::support;
use crate::support::proxy::Proxy;
use crate::support::{Redis, torture, users};
use crate::worker;
use convoke::client::{Client, ClientOptions};
use convoke::connect::connector::Connector;
use convoke::protocol::keys::Keys;
use convoke::settings::{RedisUrl, Settings};
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// What all workers of a scenario have.
pub(crate) fn settings() -> Settings {
    Settings {
        heartbeat_ttl: LEASE,
        claim_idle: 2 * LEASE,
        backoff_base: Duration::from_millis(50),
        backoff_cap: Duration::from_secs(1),
        // Where it is not poison that is asked for, dying is not the event's fault.
        max_deliveries: 1000,
        stream_history: 10_000_000,
        patterns: support::patterns::patterns(),
        ..Settings::default()
    }
}

/// How long an instance lives without a pulse.
pub(crate) const LEASE: Duration = Duration::from_secs(1);

/// A scenario's server, workers, directory and history.
pub(crate) struct World {
    pub(crate) redis: Redis,
    pub(crate) history: Arc<History>,
    pub(crate) dir: PathBuf,
    pub(crate) workers: Vec<Process>,
    scenario: &'static str,
    launch: Arc<Launch>,
}

/// How a worker process is started.
struct Launch {
    settings: Settings,
    server: String,
    threads: usize,
    dir: PathBuf,
    began: SystemTime,
    history: Arc<History>,
}

/// A worker process and its wire.
pub(crate) struct Process {
    pub(crate) id: String,
    pub(crate) proxy: Proxy,
    /// What its environment has besides.
    pub(crate) environment: Vec<(&'static str, String)>,
    /// Goes to the server by itself, not by its wire.
    pub(crate) direct: bool,
    launch: Arc<Launch>,
    child: Option<Child>,
    /// Processes that were started here.
    pub(crate) started: u32,
}

impl World {
    /// A world whose workers all have these settings.
    pub(crate) async fn begin(
        scenario: &'static str,
        redis: Redis,
        workers: usize,
        settings: Settings,
    ) -> Self {
        Self::with_threads(scenario, redis, workers, settings, 2).await
    }

    /// The same with this many threads in each worker's runtime.
    pub(crate) async fn with_threads(
        scenario: &'static str,
        redis: Redis,
        workers: usize,
        settings: Settings,
        threads: usize,
    ) -> Self {
        let dir = support::new_directory(&format!("torture-{scenario}"));
        let seed = torture::seed();
        let history = Arc::new(History::begin(&dir.join("history"), scenario, seed));
        let launch = Arc::new(Launch {
            settings,
            server: redis.url_for(users::WORKER),
            threads,
            dir: dir.clone(),
            began: history.began(),
            history: history.clone(),
        });
        let mut world = Self {
            redis,
            history,
            dir,
            workers: Vec::new(),
            scenario,
            launch,
        };
        for number in 1..=workers {
            let mut process = world.process(format!("w-{number}")).await;
            process.start();
            world.workers.push(process);
        }
        world
    }

    /// Starts this many workers, which have the handlers of this world's scenario besides.
    pub(crate) async fn start_with_handlers(&mut self, workers: usize) {
        for number in 1..=workers {
            self.start_another(&format!("w-{number}")).await;
        }
        self.until_alive(workers).await;
    }

    /// Starts one more of them.
    pub(crate) async fn start_another(&mut self, id: &str) {
        let mut process = self.process(id.to_owned()).await;
        process.environment = vec![(worker::BESIDES, self.scenario.to_owned())];
        process.start();
        self.workers.push(process);
    }

    /// A worker that is not started yet.
    pub(crate) async fn process(&self, id: String) -> Process {
        Process {
            id,
            proxy: Proxy::to(self.redis.port()).await,
            environment: Vec::new(),
            direct: false,
            launch: self.launch.clone(),
            child: None,
            started: 0,
        }
    }

    /// A publisher behind a wire of its own.
    pub(crate) async fn client(&self) -> (Client, Proxy) {
        let proxy = Proxy::to(self.redis.port()).await;
        let connector = Connector::new(&RedisUrl::new(proxy.url_for(users::PUBLISHER)), 4).unwrap();
        let options = ClientOptions {
            patience: Duration::from_secs(30),
            ..ClientOptions::default()
        };
        let client = Client::new(connector, Keys::new("cb").unwrap(), options).unwrap();
        (client, proxy)
    }

    /// Waits until this many instances are alive.
    pub(crate) async fn until_alive(&self, count: usize) {
        let mut connection = self.redis.connection().await;
        support::until("the workers are there", || {
            let mut connection = connection.clone();
            async move {
                let alive: redis::RedisResult<usize> = redis::cmd("ZCARD")
                    .arg("cb:instances:active")
                    .query_async(&mut connection)
                    .await;
                alive == Ok(count)
            }
        })
        .await;
        redis::cmd("PING").exec_async(&mut connection).await.ok();
    }

    /// SIGTERM to all; each must exit with 0.
    pub(crate) async fn drain(&mut self) {
        for process in &self.workers {
            process.signal("TERM");
        }
        for process in &mut self.workers {
            let status = process.ended().await;
            assert!(status.success(), "{} ended with {status}", process.id);
        }
    }

    /// The files of the workers that begin so.
    pub(crate) fn files(&self, prefix: &str) -> Vec<PathBuf> {
        let files = fs::read_dir(&self.dir).unwrap();
        let paths = files.map(|file| file.unwrap().path());
        let named = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default();
            name.to_string_lossy().starts_with(prefix)
        };
        paths.filter(named).collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.workers.clear();
        if std::thread::panicking() {
            eprintln!(
                "red: histories and logs are kept in {}; the same schedule again: TORTURE_SEED={} scripts/torture {}",
                self.dir.display(),
                torture::seed(),
                self.scenario
            );
        } else {
            fs::remove_dir_all(&self.dir).ok();
        }
    }
}

impl Process {
    /// Starts it. It must not run.
    pub(crate) fn start(&mut self) {
        assert!(self.child.is_none(), "{} runs", self.id);
        self.started += 1;
        let launch = &self.launch;
        let url = match self.direct {
            true => launch.server.clone(),
            false => self.proxy.url_for(users::WORKER),
        };
        let settings = Settings {
            redis_url: RedisUrl::new(url),
            id: self.id.clone(),
            ..launch.settings.clone()
        };
        let log = format!("log.{}.{}", self.id, self.started);
        let log = File::create(launch.dir.join(log)).unwrap();
        let began = launch.began.duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_worker_process", "--nocapture"])
            .env(worker::SETTINGS, serde_json::to_string(&settings).unwrap())
            .env(worker::THREADS, launch.threads.to_string())
            .env(worker::DIR, &launch.dir)
            .env(worker::BEGAN, began.as_nanos().to_string())
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let pid = child.id().to_string();
        launch.history.note("start", "ok", &self.id, &pid, "");
        self.child = Some(child);
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// Where its process writes its history.
    pub(crate) fn history(&self) -> PathBuf {
        let name = format!("history.{}.{}", self.id, self.pid());
        self.launch.dir.join(name)
    }

    /// Whether all its threads are stopped.
    pub(crate) fn stands_still(&self) -> bool {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
        tasks.flatten().all(|task| {
            let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            // The name, which may hold anything, is in parentheses.
            stat.rsplit_once(") ")
                .is_some_and(|(_, rest)| rest.starts_with('T'))
        })
    }

    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.pid();
        self.note(signal);
        support::signal(pid, signal);
    }

    fn note(&self, fault: &str) {
        let pid = self.pid().to_string();
        self.launch
            .history
            .note("fault", "ok", &self.id, &pid, fault);
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        self.note("KILL");
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
    }

    /// How it ended, if it did; then it can be started again.
    pub(crate) fn has_ended(&mut self) -> Option<ExitStatus> {
        let status = self.child.as_mut()?.try_wait().unwrap()?;
        self.note(&status.to_string());
        self.child = None;
        Some(status)
    }

    /// Waits until it ended by itself.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let began = Instant::now();
        loop {
            if let Some(status) = self.has_ended() {
                return status;
            }
            assert!(
                began.elapsed() < Duration::from_secs(60),
                "{} does not end",
                self.id
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until its process runs an event that it began after that moment; how long that took.
    pub(crate) async fn consumes_after(&self, ns: u64, limit: Duration) -> Option<Duration> {
        let began = Instant::now();
        while began.elapsed() < limit {
            if history::last_run(&self.history()).is_some_and(|last| last > ns) {
                return Some(began.elapsed());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        None
    }

    /// Resident memory of its process, in KiB.
    pub(crate) fn resident(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).ok()?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.trim().strip_suffix(" kB")?.trim().parse().ok()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            child.kill().ok();
            child.wait().ok();
        }
    }
}
