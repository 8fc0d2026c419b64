//! Random parts of workers die: a thread or a task panics, ends or hangs. The whole worker must end, say
//! which part it was, and leave no ghost: none that is listed lost and runs on, none that runs and is not
//! listed, none that is listed and does not run.

#[path = "../support/mod.rs"]
mod support;

use convoke::client::publish::Outgoing;
use convoke::client::{Client, ClientOptions};
use convoke::connect::connector::Connector;
use convoke::protocol::keys::Keys;
use convoke::settings::{DatabaseUrl, RedisUrl, Settings};
use convoke::streams::read::entries_of;
use convoke::worker::{Death, kill, parts};
use convoke::{Context, HandlerError, Worker};
use redis::aio::MultiplexedConnection;
use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use support::{Redis, torture, users};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

const SETTINGS: &str = "DEATHS_WORKER_SETTINGS";
const DIES: &str = "dies ";
const WORKERS: u64 = 3;
/// Long enough for a keeper that hangs to be noticed before it is missed.
const TTL: Duration = Duration::from_secs(12);

/// A worker process: it takes orders to die on its standard input, each a random number.
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
    let id = settings.id.clone();
    std::thread::spawn(move || {
        for order in std::io::stdin().lines() {
            die(&id, order.unwrap().parse().unwrap());
        }
    });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let worker = Worker::builder()
        .settings(settings)
        .handler("life.work", work)
        .build();
    let ended = runtime.block_on(worker.unwrap().run());
    runtime.shutdown_timeout(Duration::from_secs(5));
    match ended {
        Ok(()) => std::process::exit(0),
        Err(error) => {
            eprintln!("ended: {error}");
            std::process::exit(3);
        }
    }
}

/// One part dies, whichever the number says.
fn die(id: &str, mut number: usize) {
    let mut draw = |of: usize| {
        let drawn = number % of;
        number /= of;
        drawn
    };
    let parts = parts(id);
    let part = &parts[draw(parts.len())];
    // A lane or a ledger that hangs cannot be told from one whose handler or database takes its time.
    let deaths = [Death::Panic, Death::Return, Death::Hang];
    let deaths = match part.starts_with("keeper") {
        true => &deaths[..],
        false => &deaths[..2],
    };
    let death = deaths[draw(deaths.len())];
    println!("\n{DIES}{death:?} {part}");
    kill(id, part, death);
}

async fn work(_: Context, n: u64) -> Result<u64, HandlerError> {
    tokio::time::sleep(Duration::from_millis(20)).await;
    Ok(n)
}

/// Who is to be listed now, and who may not run any more.
#[derive(Default)]
struct Expected {
    alive: HashSet<String>,
    ended: HashSet<String>,
}

struct World {
    redis: Redis,
    dir: PathBuf,
    expected: Mutex<Expected>,
}

impl World {
    fn spawn(&self, id: &str) -> Child {
        let settings = Settings {
            redis_url: RedisUrl::new(self.redis.url()),
            database_url: DatabaseUrl::new(format!("sqlite:{}", self.file(id, "db").display())),
            id: id.to_owned(),
            heartbeat_ttl: TTL,
            drain_timeout: Duration::from_secs(5),
            max_deliveries: 1000,
            ..Settings::default()
        };
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_worker_process", "--nocapture"])
            .env(SETTINGS, serde_json::to_string(&settings).unwrap())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(self.file(id, "log")).unwrap())
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    }

    fn file(&self, id: &str, what: &str) -> PathBuf {
        self.dir.join(format!("{id}.{what}"))
    }

    fn log(&self, id: &str) -> String {
        std::fs::read_to_string(self.file(id, "log")).unwrap()
    }

    fn expect(&self, change: impl FnOnce(&mut Expected)) {
        change(&mut self.expected.lock().unwrap());
    }

    /// One worker after the other, each of which loses a part; how they died.
    async fn live(&self, slot: u64, deaths: u64) -> BTreeMap<String, u64> {
        let mut dice = torture::dice(&format!("deaths {slot}"));
        let mut connection = self.redis.connection().await;
        let mut died = BTreeMap::new();
        for number in 0..deaths {
            let id = format!("w-{slot}-{number}");
            let mut child = self.spawn(&id);
            let began = Instant::now();
            while listed(&mut connection, &id).await.is_none() {
                assert!(
                    began.elapsed() < Duration::from_secs(60),
                    "{id} does not start"
                );
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            self.expect(|expected| _ = expected.alive.insert(id.clone()));
            tokio::time::sleep(Duration::from_millis(dice.u64(200..1500))).await;
            self.expect(|expected| _ = expected.alive.remove(&id));
            let order = format!("{}\n", dice.u32(..));
            let mut orders = child.stdin.take().unwrap();
            orders.write_all(order.as_bytes()).await.unwrap();
            let mut told = BufReader::new(child.stdout.take().unwrap()).lines();
            let death = loop {
                let line = told
                    .next_line()
                    .await
                    .unwrap()
                    .expect("it tells how it dies");
                if let Some(death) = line.strip_prefix(DIES) {
                    break death.to_owned();
                }
            };
            let ended = tokio::time::timeout(Duration::from_secs(30), child.wait()).await;
            let ended =
                ended.unwrap_or_else(|_| panic!("{id} runs on after {death}: {}", self.log(&id)));
            self.expect(|expected| _ = expected.ended.insert(id.clone()));
            let log = self.log(&id);
            assert_eq!(ended.unwrap().code(), Some(3), "{id}, {death}: {log}");
            let (_, part) = death.split_once(' ').unwrap();
            // One that holds the keeper's thread is seen as the thread.
            let said = [
                format!("ended: {part} of the worker "),
                "ended: keeper of the worker hangs".into(),
            ];
            assert!(
                said.iter().any(|said| log.contains(said)),
                "{id}, {death}: {log}"
            );
            assert!(
                listed(&mut connection, &id).await.is_none(),
                "{id} ended and is listed: {death}: {log}"
            );
            *died.entry(death).or_default() += 1;
        }
        died
    }

    /// Looks again and again for ghosts, until told to stop; how often it looked.
    async fn look(&self, stop: CancellationToken) -> u64 {
        let mut connection = self.redis.connection().await;
        let mut looks = 0;
        while !stop.is_cancelled() {
            let alive: Vec<String> = {
                let expected = self.expected.lock().unwrap();
                expected.alive.iter().cloned().collect()
            };
            for id in alive {
                let is_listed = listed(&mut connection, &id).await.is_some();
                let still = self.expected.lock().unwrap().alive.contains(&id);
                assert!(
                    is_listed || !still,
                    "{id} runs and is not listed: {}",
                    self.log(&id)
                );
            }
            for id in lost(&mut connection).await {
                let ended = self.expected.lock().unwrap().ended.contains(&id);
                assert!(ended, "{id} is lost and runs: {}", self.log(&id));
            }
            looks += 1;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        looks
    }
}

/// Until when an instance is listed as alive.
async fn listed(connection: &mut MultiplexedConnection, id: &str) -> Option<f64> {
    let mut score = redis::cmd("ZSCORE");
    score.arg("cb:instances:active").arg(id);
    score.query_async(connection).await.unwrap()
}

async fn stream(
    connection: &mut MultiplexedConnection,
    stream: &str,
) -> Vec<convoke::protocol::event::Entry> {
    let mut range = redis::cmd("XRANGE");
    range.arg(stream).arg("-").arg("+");
    entries_of(range.query_async(connection).await.unwrap()).unwrap()
}

/// Those of whom it was told that they were lost.
async fn lost(connection: &mut MultiplexedConnection) -> Vec<String> {
    let facts = stream(connection, "cb:broadcast").await.into_iter();
    let lost = facts.filter(|fact| fact.get("type") == Some(b"instance.lost"));
    lost.map(|fact| {
        #[derive(serde::Deserialize)]
        struct Lost {
            id: String,
        }
        let lost: Lost = rmp_serde::from_slice(fact.get("data").unwrap()).unwrap();
        lost.id
    })
    .collect()
}

/// Publishes until told to stop; how many.
async fn publish(client: Client, stop: CancellationToken) -> u64 {
    let mut published = 0;
    while !stop.is_cancelled() {
        let event = Outgoing::new("life.work", &published).id(format!("e-{published}"));
        client.publish(&event).await.unwrap();
        published += 1;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    published
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_dies_in_a_worker_leaves_no_ghost() {
    let deaths = torture::size("TORTURE_DEATHS", 12, 100);
    let world = Arc::new(World {
        redis: Redis::start(),
        dir: support::new_directory("deaths"),
        expected: Mutex::default(),
    });
    let url = RedisUrl::new(world.redis.url_for(users::PUBLISHER));
    let connector = Connector::new(&url, 2).unwrap();
    let client = Client::new(
        connector,
        Keys::new("cb").unwrap(),
        ClientOptions::default(),
    )
    .unwrap();
    let stop = CancellationToken::new();
    let publishing = tokio::spawn(publish(client, stop.clone()));
    let (looked, until) = (world.clone(), stop.clone());
    let looking = tokio::spawn(async move { looked.look(until).await });
    let lives = (0..WORKERS).map(|slot| {
        let world = world.clone();
        let share = deaths / WORKERS + u64::from(slot < deaths % WORKERS);
        tokio::spawn(async move { world.live(slot, share).await })
    });
    let mut died: BTreeMap<String, u64> = BTreeMap::new();
    for life in lives.collect::<Vec<_>>() {
        for (death, count) in life.await.unwrap() {
            *died.entry(death).or_default() += count;
        }
    }
    stop.cancel();
    let published = publishing.await.unwrap();
    let looks = looking.await.unwrap();

    // One that nothing happens to does what is left.
    let mut last = world.spawn("last");
    let mut connection = world.redis.connection().await;
    let began = Instant::now();
    let results = loop {
        let results = stream(&mut connection, "cb:results:life").await;
        if results.len() as u64 >= published {
            break results;
        }
        assert!(
            began.elapsed() < Duration::from_secs(90),
            "{} of {published}",
            results.len()
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let ids: HashSet<&[u8]> = results
        .iter()
        .filter_map(|result| result.get("correlationid"))
        .collect();
    assert_eq!(
        (ids.len() as u64, results.len() as u64),
        (published, published)
    );
    assert!(stream(&mut connection, "cb:dead:life").await.is_empty());
    support::signal(last.id().unwrap(), "TERM");
    assert!(last.wait().await.unwrap().success());
    assert_eq!(died.values().sum::<u64>(), deaths);
    for (death, count) in &died {
        println!("{count} {death}");
    }
    remove(&world.dir);
    torture::Report::default()
        .fault(deaths, "deaths of single threads and tasks")
        .event(published, "events")
        .event(0, "ghosts")
        .note(format!("{looks} looks for ghosts"))
        .tell("deaths");
}

fn remove(dir: &Path) {
    std::fs::remove_dir_all(dir).ok();
}
