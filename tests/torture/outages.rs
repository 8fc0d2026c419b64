//! Outages of the server while workers live: it is stopped, killed, paused, or all wires to it are cut.
//! Nobody who lives is lost by them, nothing is started twice, and who dies meanwhile is found.

mod checks;

use crate::load::Load;
use crate::support;
use crate::support::proxy::{Mode, Proxy};
use crate::support::{Redis, signal, torture, until, users};
use crate::worker::note;
use crate::world::{World, settings};
use crate::{facts, hygiene, outcomes};
use checks::Counts;
use convoke::client::Client;
use convoke::client::publish::Outgoing;
use convoke::connect::connector::{ANSWER, Connector};
use convoke::coordination::instances::Instances;
use convoke::protocol::event::EntryId;
use convoke::protocol::keys::Keys;
use convoke::settings::{RedisUrl, Settings};
use convoke::worker::builder::Builder;
use convoke::{Context, HandlerError, Policy};
use fastrand::Rng;
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::task::block_in_place;

/// Of the workers: `TORTURE_TTL_MS`. What it costs to notice and to connect is the less of a ttl, the longer it is.
fn ttl() -> Duration {
    Duration::from_millis(torture::size("TORTURE_TTL_MS", 2000, 2000))
}

const WORKERS: usize = 3;
/// Events, and as many tasks, that run through an outage.
const HELD: usize = 6;
/// Events a second besides.
const RATE: u64 = 12;
/// The beginnings of their ids.
const EVENT: &str = "h-";
const TASK: &str = "t-";

/// What happens to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Stop,
    Kill,
    Pause,
    Cut,
}

const KINDS: [Kind; 4] = [Kind::Stop, Kind::Kill, Kind::Pause, Kind::Cut];
/// How wires are cut.
const CUTS: [Mode; 4] = [Mode::Refuse, Mode::Swallow, Mode::Reset, Mode::Nowhere];
/// Those of them that nobody notices at once: who waits for an answer waits for as long as one may take.
const SILENT: [Mode; 2] = [Mode::Swallow, Mode::Nowhere];

#[derive(Clone, Copy, Debug)]
struct Outage {
    kind: Kind,
    cut: Mode,
    /// How long, in tenths of a ttl.
    tenths: u32,
    /// Who is killed in it, and after which part of it.
    death: Option<(usize, f64)>,
}

impl Outage {
    fn length(&self) -> Duration {
        ttl() * self.tenths / 10
    }
}

/// This many outages of each length; one of five has a death.
fn schedule(kind: Kind, lengths: &[u32], each: u64) -> Vec<Outage> {
    let mut dice = torture::dice(&format!("outages {kind:?} {lengths:?}"));
    let mut tenths: Vec<u32> = (0..each).flat_map(|_| lengths.to_vec()).collect();
    dice.shuffle(&mut tenths);
    let first = kind as usize;
    let numbered = (first..).zip(tenths);
    let outage = |(number, tenths)| Outage {
        kind,
        cut: CUTS[number % CUTS.len()],
        tenths,
        death: (number % 5 == 0).then(|| death(&mut dice)),
    };
    numbered.map(outage).collect()
}

fn death(dice: &mut Rng) -> (usize, f64) {
    (dice.usize(..WORKERS), dice.f64())
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Through {
    /// It ends as soon as that file is there.
    until: PathBuf,
}

async fn through(context: Context, through: Through) -> Result<(), HandlerError> {
    note(&context, "invoke")?;
    while !through.until.exists() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    note(&context, "ok")
}

pub(crate) fn handlers(builder: Builder) -> Builder {
    let policy = || Policy::new().no_timeout();
    let builder = builder.handler_with("through.event", through, policy());
    builder.handler_with("through.task", through, policy())
}

/// Workers on a server of their own, and who looks at them.
struct Scene {
    world: World,
    connection: MultiplexedConnection,
    client: Client,
    wire: Proxy,
    instances: Instances,
    counts: Counts,
}

impl Scene {
    async fn begin(kind: Kind) -> Self {
        let redis = block_in_place(|| match kind {
            Kind::Kill => Redis::durable(),
            _ => Redis::start(),
        });
        let settings = Settings {
            heartbeat_ttl: ttl(),
            // As the default is to the ttl.
            claim_idle: 2 * ttl(),
            capacity: 4 * HELD as u32,
            ..settings()
        };
        let mut world = World::begin("outages", redis, 0, settings).await;
        world.start_with_handlers(WORKERS).await;
        let (client, wire) = world.client().await;
        let url = RedisUrl::new(world.redis.url_for(users::WORKER));
        let connector = Connector::new(&url, 2).unwrap();
        let instances = Instances::of_process(connector, Keys::new("cb").unwrap(), "rig");
        Self {
            connection: world.redis.connection().await,
            world,
            client,
            wire,
            instances,
            counts: Counts::default(),
        }
    }

    /// Has events and tasks run until that file is there.
    async fn hold(&mut self, until: PathBuf, attempts: u32) {
        let number = self.counts.outages.len();
        for n in 0..HELD {
            let through = Through {
                until: until.clone(),
            };
            let event = Outgoing::new("through.event", &through);
            let event = event.id(format!("{EVENT}{number}-{n}"));
            self.client.publish(&event).await.unwrap();
            let task = serde_json::json!({
                "task_id": format!("{TASK}{number}-{n}"), "kind": "through.task", "payload": through,
                "max_attempts": attempts
            });
            let event = Outgoing::new("task.create", &task);
            let asked = self.client.request(event, Duration::from_secs(20)).await;
            asked.unwrap();
        }
        let connection = self.connection.clone();
        let ids: Vec<String> = self.world.workers.iter().map(|w| w.id.clone()).collect();
        support::until("all are held", || async {
            let mut held = [pending(&connection, "cb:events:through").await, 0];
            for id in &ids {
                held[1] += pending(&connection, &format!("cb:inbox:{id}")).await;
            }
            held == [HELD; 2]
        })
        .await;
    }

    async fn now(&self) -> u64 {
        self.instances.server_time().await.unwrap()
    }

    /// The outage, and whoever dies in it; what is held ends in it or after it.
    async fn suffer(&mut self, outage: Outage, until: &Path) {
        let length = outage.length();
        match outage.kind {
            Kind::Stop => signal(self.world.redis.pid(), "STOP"),
            Kind::Kill => block_in_place(|| self.world.redis.kill()),
            Kind::Pause => {
                let pause = ["PAUSE", &length.as_millis().to_string(), "ALL"];
                let mut command = redis::cmd("CLIENT");
                let command = command.arg(&pause);
                command.exec_async(&mut self.connection).await.unwrap();
            }
            Kind::Cut => self.cut(outage.cut),
        }
        if self.counts.outages.len().is_multiple_of(2) {
            File::create(until).unwrap();
        }
        match outage.death {
            None => tokio::time::sleep(length).await,
            Some((who, part)) => {
                tokio::time::sleep(length.mul_f64(part)).await;
                block_in_place(|| self.world.workers[who].kill());
                tokio::time::sleep(length.mul_f64(1.0 - part)).await;
            }
        }
        match outage.kind {
            Kind::Stop => signal(self.world.redis.pid(), "CONT"),
            Kind::Kill => {
                block_in_place(|| self.world.redis.restart());
                self.connection = self.world.redis.connection().await;
            }
            // It answers when the pause is over.
            Kind::Pause => redis::cmd("PING")
                .exec_async(&mut self.connection)
                .await
                .unwrap(),
            Kind::Cut => self.cut(Mode::Pass),
        }
    }

    fn cut(&self, mode: Mode) {
        let wires = self.world.workers.iter().map(|worker| &worker.proxy);
        for wire in wires.chain([&self.wire]) {
            match mode {
                Mode::Pass => drop(wire.heal()),
                mode => wire.set(mode),
            }
        }
    }

    /// One outage, until all is as it was before.
    async fn once(&mut self, outage: Outage) {
        let told = format!("{outage:?}");
        // Who is killed loses an attempt.
        let attempts = if outage.death.is_some() { 2 } else { 1 };
        let number = self.counts.outages.len();
        let until = self.world.dir.join(format!("until.{number}"));
        self.hold(until.clone(), attempts).await;
        let mark = EntryId {
            ms: self.now().await,
            seq: 0,
        };
        self.world
            .history
            .note("outage", "invoke", "server", "", &told);
        self.suffer(outage, &until).await;
        let back = self.now().await;
        File::create(&until).unwrap();
        self.world.history.note("outage", "ok", "server", "", &told);
        if let Some((who, _)) = outage.death {
            let after = found(&self.world, mark, &self.world.workers[who].id).await;
            let silent = outage.kind == Kind::Cut && SILENT.contains(&outage.cut);
            self.counts.found[usize::from(silent)].push(after.saturating_sub(back));
            self.world.workers[who].start();
        }
        self.settle(back).await;
        self.counts
            .judge(&self.world, mark, outage.death.map(|(who, _)| who))
            .await;
        self.counts.outages.push((outage.kind, outage.tenths));
    }

    /// Waits until all workers have pulsed for two ttls since then, so that whoever is to be lost is lost,
    /// and until what ran through it is done.
    async fn settle(&mut self, since: u64) {
        let then = since + 2 * ttl().as_millis() as u64;
        let done = (self.counts.outages.len() + 1) * HELD;
        until("all workers pulse, and all is done", || async {
            let Ok(listed) = self.instances.list().await else {
                return false;
            };
            let pulsed = listed.iter().filter(|is| is.last_seen >= then).count();
            let mut connection = self.connection.clone();
            let events: usize = connection.xlen("cb:results:through").await.unwrap();
            let tasks: usize = connection.zcard("cb:tasks:held").await.unwrap();
            pulsed == WORKERS && events >= done && tasks == 0
        })
        .await;
    }
}

async fn pending(connection: &MultiplexedConnection, stream: &str) -> usize {
    let mut connection = connection.clone();
    type Summary = (usize, redis::Value, redis::Value, redis::Value);
    let summary = redis::cmd("XPENDING")
        .arg(&[stream, "workers"])
        .query_async::<Summary>(&mut connection)
        .await;
    summary.map_or(0, |summary| summary.0)
}

/// Waits until that one is declared lost; when that was.
async fn found(world: &World, mark: EntryId, who: &str) -> u64 {
    let when = AtomicU64::new(0);
    until("who died is declared lost", || async {
        let facts = facts::since(world, mark).await;
        let mut lost = facts.iter().filter(|fact| fact.kind == "instance.lost");
        let lost = lost.find(|fact| fact.data["id"] == who);
        let ms = lost.map_or(0, |fact| fact.id.ms);
        when.store(ms, Ordering::Relaxed);
        ms > 0
    })
    .await;
    when.into_inner()
}

/// All outages of a schedule, under load.
async fn outages(kind: Kind, lengths: &'static [u32], each: u64) -> (Counts, outcomes::Counts) {
    let mut scene = Scene::begin(kind).await;
    let (client, history) = (scene.client.clone(), scene.world.history.clone());
    let load = Load::start(client, history, RATE);
    for outage in schedule(kind, lengths, each) {
        scene.once(outage).await;
    }
    let events = load.stop().await;
    let Scene {
        mut world,
        mut counts,
        ..
    } = scene;
    let outcomes = outcomes::check(&world, &events).await;
    counts.finish(&world).await;
    facts::rise(&world).await;
    hygiene::check(&world).await;
    world.drain().await;
    (counts, outcomes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 6)]
async fn outages_of_the_server_cost_no_live_worker_and_start_nothing_twice() {
    let lengths: &'static [u32] = match torture::is_full() {
        true => &[5, 15, 30, 100],
        false => &[15],
    };
    let each = torture::size("TORTURE_OUTAGES", 1, 25);
    let mut worlds = tokio::task::JoinSet::new();
    for kind in KINDS {
        worlds.spawn(outages(kind, lengths, each));
    }
    let mut counts = Counts::default();
    for (some, outcomes) in worlds.join_all().await {
        counts.add(some);
        counts.load.add(outcomes);
    }
    counts.none_was_harmed(3 * ttl() + ANSWER);
    counts.tell(ttl()).tell("outages");
}
