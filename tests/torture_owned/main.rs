//! Workers of a domain with an order are killed, stopped past their lease, and come and leave: no subject has an outcome
//! before an earlier one, twice, or not at all, and no two runs of one subject are under way at a time.

#[path = "../support/mod.rs"]
mod support;

use convoke::client::publish::Outgoing;
use convoke::client::{Client, ClientOptions};
use convoke::connect::connector::Connector;
use convoke::protocol::domain::DomainOrder;
use convoke::protocol::keys::Keys;
use convoke::settings::{RedisUrl, Settings};
use convoke::streams::domains::Domains;
use convoke::streams::read::entries_of;
use convoke::{Context, HandlerError, Worker};
use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use support::{Redis, torture, until, users};

const SETTINGS: &str = "OWNED_WORKER_SETTINGS";
const HISTORY: &str = "OWNED_WORKER_HISTORY";
const PARTITIONS: u16 = 16;
const WORKERS: usize = 4;
const TTL: Duration = Duration::from_secs(4);

/// A worker process: the test binary, started again.
#[test]
fn a_worker_process() {
    let Ok(settings) = std::env::var(SETTINGS) else {
        return;
    };
    let settings: Settings = serde_json::from_str(&settings).unwrap();
    tracing_subscriber::fmt()
        .with_env_filter("info")
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .init();
    let history = OpenOptions::new()
        .append(true)
        .open(std::env::var(HISTORY).unwrap());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let worker = Worker::builder()
        .settings(settings)
        .state(Arc::new(history.unwrap()))
        .handler("line.step", step)
        .build();
    runtime.block_on(worker.unwrap().run()).unwrap();
    std::process::exit(0);
}

/// Says when it begins and ends, in a file that all share; of 30 in a hundred the first try fails.
async fn step(context: Context, (subject, number): (u64, u64)) -> Result<(), HandlerError> {
    let history = context.state::<Arc<File>>()?;
    let say = |what: &str| {
        let line = format!("{} {what} {subject} {number}\n", context.instance());
        (&**history).write_all(line.as_bytes()).unwrap();
    };
    say("began");
    tokio::time::sleep(Duration::from_millis(fastrand::u64(0..10))).await;
    if (subject * 31 + number * 17) % 100 < 30 && context.event().attempt() == 1 {
        say("failed");
        return Err(HandlerError::internal("once"));
    }
    say("ended");
    Ok(())
}

struct World {
    redis: Redis,
    dir: PathBuf,
    started: usize,
}

struct Process {
    id: String,
    child: Child,
}

impl Process {
    fn signal(&self, signal: &str) {
        support::signal(self.child.id(), signal);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl World {
    fn spawn(&mut self) -> Process {
        self.started += 1;
        let id = format!("w-{}", self.started);
        let settings = Settings {
            redis_url: RedisUrl::new(self.redis.url()),
            id: id.clone(),
            partitions: PARTITIONS,
            concurrency: 64,
            heartbeat_ttl: TTL,
            claim_idle: TTL,
            backoff_base: Duration::from_millis(20),
            backoff_cap: Duration::from_millis(500),
            max_attempts: 1000,
            max_deliveries: 1000,
            stream_history: 10_000_000,
            ..Settings::default()
        };
        let log = File::create(self.dir.join(format!("{id}.log"))).unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_worker_process", "--nocapture"])
            .env(SETTINGS, serde_json::to_string(&settings).unwrap())
            .env(HISTORY, self.history())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        Process {
            id,
            child: child.unwrap(),
        }
    }

    fn history(&self) -> PathBuf {
        self.dir.join("history")
    }

    fn streams(&self, kind: &str) -> Vec<String> {
        let of = |partition| format!("{{cb:line:{partition}}}:{kind}");
        (0..PARTITIONS).map(of).collect()
    }

    fn settled(&self) -> u64 {
        let length = |stream: &String| -> u64 {
            let mut length = redis::cmd("XLEN");
            length.arg(stream).query(&mut self.redis.connect()).unwrap()
        };
        self.streams("results").iter().map(length).sum()
    }

    /// The number of each subject's results; each is there once, and they are in order.
    fn results(&self) -> HashMap<u64, u64> {
        let mut next: HashMap<u64, u64> = HashMap::new();
        for stream in self.streams("results") {
            let mut range = redis::cmd("XRANGE");
            let said = range
                .arg(&[&stream, "-", "+"])
                .query(&mut self.redis.connect());
            for entry in entries_of(said.unwrap()).unwrap() {
                let id = String::from_utf8(entry.get("correlationid").unwrap().to_vec()).unwrap();
                let (subject, number) = id.split_once('-').unwrap();
                let next = next.entry(subject.parse().unwrap()).or_default();
                assert_eq!(
                    number.parse::<u64>().unwrap(),
                    *next,
                    "subject {subject} of {stream}"
                );
                *next += 1;
            }
        }
        next
    }
}

/// No run begins before all earlier ones of its subject have ended well, or beside another one of its subject whose worker
/// was neither killed nor stopped. What a worker says that was stopped may be late.
fn assert_one_at_a_time(
    history: &Path,
    killed: &HashSet<String>,
    stopped: &HashSet<String>,
) -> usize {
    let mut ended: HashMap<u64, u64> = HashMap::new();
    let mut runs: HashMap<u64, String> = HashMap::new();
    let mut began = 0;
    for line in std::fs::read_to_string(history).unwrap().lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let [worker, what, subject, number] = words[..] else {
            panic!("{line}");
        };
        let (subject, number): (u64, u64) = (subject.parse().unwrap(), number.parse().unwrap());
        let ended = ended.entry(subject).or_default();
        match what {
            "began" if stopped.contains(worker) => {}
            "began" => {
                began += 1;
                assert!(number <= *ended, "{line}, and {ended} was next");
                // What ended without its outcome being committed runs again.
                assert!(number + 1 >= *ended, "{line}, and {ended} was next");
                if let Some(beside) = runs.insert(subject, worker.to_owned()) {
                    assert!(killed.contains(&beside), "{line}, beside a run of {beside}");
                }
            }
            _ => {
                if runs.get(&subject).is_some_and(|it| it == worker) {
                    runs.remove(&subject);
                }
                if what == "ended" {
                    *ended = (*ended).max(number + 1);
                }
            }
        }
    }
    began
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: scripts/torture owned"]
async fn kills_stops_and_moves_leave_each_subject_in_order() {
    let kills = torture::size("TORTURE_OWNED_KILLS", 3, 50);
    let stops = torture::size("TORTURE_OWNED_STOPS", 2, 20);
    let changes = torture::size("TORTURE_OWNED_CHANGES", 2, 20);
    let subjects = torture::size("TORTURE_OWNED_SUBJECTS", 50, 1000);
    let redis = Redis::start();
    let dir = support::new_directory("owned");
    let mut world = World {
        redis,
        dir,
        started: 0,
    };
    File::create(world.history()).unwrap();
    let connector = |user| Connector::new(&RedisUrl::new(world.redis.url_for(user)), 2).unwrap();
    let keys = Keys::tagged("cb", PARTITIONS).unwrap();
    let domains = Domains::new(connector(users::OPERATOR), keys.clone());
    let order = Some(DomainOrder::Subject);
    domains
        .change("line", None, order, None, "ann")
        .await
        .unwrap();
    let client = Client::new(connector(users::PUBLISHER), keys, ClientOptions::default()).unwrap();
    let mut workers: Vec<Process> = (0..WORKERS).map(|_| world.spawn()).collect();
    let over = Arc::new(AtomicBool::new(false));
    let publishing = tokio::spawn({
        let over = over.clone();
        async move {
            for number in 0_u64.. {
                if over.load(Ordering::Relaxed) {
                    return number;
                }
                for subject in 0..subjects {
                    let event = Outgoing::new("line.step", &(subject, number));
                    let event = event.subject(format!("s-{subject}"));
                    client
                        .publish(event.id(format!("{subject}-{number}")))
                        .await
                        .unwrap();
                }
                tokio::time::sleep(Duration::from_millis(subjects * 5)).await;
            }
            0
        }
    });
    until("some are run", async || world.settled() > subjects).await;
    let mut dice = torture::dice("owned");
    let mut acts: Vec<char> = [(kills, 'k'), (stops, 's'), (changes, 'c')]
        .into_iter()
        .flat_map(|(count, act)| std::iter::repeat_n(act, count as usize))
        .collect();
    dice.shuffle(&mut acts);
    let (mut killed, mut stopped) = (HashSet::new(), HashSet::new());
    for act in acts {
        tokio::time::sleep(Duration::from_millis(dice.u64(100..2500))).await;
        let at = dice.usize(0..workers.len());
        match act {
            'k' => {
                let mut dies = workers.remove(at);
                killed.insert(dies.id.clone());
                dies.signal("KILL");
                dies.child.wait().unwrap();
                workers.push(world.spawn());
            }
            's' => {
                let stops = &workers[at];
                stopped.insert(stops.id.clone());
                stops.signal("STOP");
                tokio::time::sleep(TTL.mul_f64(1.2 + dice.f64())).await;
                stops.signal("CONT");
            }
            _ => {
                workers.push(world.spawn());
                let mut leaves = workers.remove(at);
                leaves.signal("TERM");
                while leaves.child.try_wait().unwrap().is_none() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        }
    }
    over.store(true, Ordering::Relaxed);
    let numbers = publishing.await.unwrap();
    let before = |settled: u64| settled < subjects * numbers;
    let mut settled = world.settled();
    while before(settled) {
        // As long as it goes on.
        until("one more is settled", async || world.settled() > settled).await;
        settled = world.settled();
    }
    let results = world.results();
    for subject in 0..subjects {
        assert_eq!(results.get(&subject), Some(&numbers), "subject {subject}");
    }
    // On a machine that is busy one may stand still for longer than its lease by itself.
    for n in 1..=world.started {
        let log = std::fs::read_to_string(world.dir.join(format!("w-{n}.log"))).unwrap();
        if log.contains("was not renewed in time") {
            stopped.insert(format!("w-{n}"));
        }
    }
    let began = assert_one_at_a_time(&world.history(), &killed, &stopped);
    drop(workers);
    torture::Report::default()
        .fault(kills, "kills of owners")
        .fault(stops, "owners stopped past their lease")
        .fault(changes, "workers that came, each for one that left")
        .event(subjects * numbers, "events of subjects in order")
        .note(format!("{began} runs"))
        .tell("owned");
}
