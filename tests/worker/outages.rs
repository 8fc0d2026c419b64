//! Outages of the server, and jumps of its clock, under live workers: nobody is lost by them, nothing is
//! started twice, and who died meanwhile is found.

use crate::rig::{Rig, Running};
use crate::support::proxy::{Mode, Proxy};
use crate::support::{Redis, keys, until, users};
use convoke::client::publish::Outgoing;
use convoke::connect::connector::{ANSWER, Connector};
use convoke::coordination::instances::Instances;
use convoke::coordination::instances::instance::Registering;
use convoke::settings::{RedisUrl, Settings};
use convoke::{Context, HandlerError, Policy, Worker};
use serde_json::json;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Semaphore;

/// Rather short, so that the tests are; long enough for a loaded machine.
pub(crate) const TTL: Duration = Duration::from_secs(2);
const WORKERS: usize = 3;
/// Events, and as many tasks, that run while it happens.
const RUNNING: usize = 9;

/// Runs that wait to be let go, and how often each began.
#[derive(Clone)]
struct Runs {
    begun: Arc<Mutex<HashMap<String, u32>>>,
    go: Arc<Semaphore>,
}

impl Runs {
    fn new() -> Self {
        Self {
            begun: Arc::default(),
            go: Arc::new(Semaphore::new(0)),
        }
    }

    fn count(&self) -> usize {
        self.begun.lock().unwrap().len()
    }
}

async fn hold(context: Context, name: String) -> Result<String, HandlerError> {
    let runs = context.state::<Runs>()?.clone();
    *runs.begun.lock().unwrap().entry(name.clone()).or_default() += 1;
    runs.go.acquire().await.unwrap().forget();
    Ok(name)
}

/// Three workers on a server that something is going to happen to.
pub(crate) struct Scene {
    pub(crate) rig: Rig,
    proxy: Proxy,
    runs: Runs,
    workers: Vec<Running>,
    instances: Instances,
}

impl Scene {
    pub(crate) async fn begin(redis: Redis) -> Self {
        let rig = Rig::on(redis).await;
        let proxy = Proxy::before(&rig.redis).await;
        let url = RedisUrl::new(rig.redis.url());
        let connector = Connector::new(&url, 2).unwrap();
        let instances = Instances::of_process(connector, keys(), "ghost");
        let runs = Runs::new();
        let mut scene = Self {
            rig,
            proxy,
            runs,
            workers: Vec::new(),
            instances,
        };
        for number in 1..=WORKERS {
            let settings = Settings {
                id: format!("w-{number}"),
                redis_url: RedisUrl::new(scene.proxy.url_of(&scene.rig.redis, users::WORKER)),
                heartbeat_ttl: TTL,
                // As the default is to the ttl.
                claim_idle: 2 * TTL,
                capacity: 2 * RUNNING as u32,
                ..scene.rig.settings()
            };
            let builder = Worker::builder().settings(settings);
            let builder = builder.state(scene.runs.clone());
            let policy = || Policy::new().no_timeout();
            let builder = builder.handler_with("load.hold", hold, policy());
            let worker = builder.handler_with("work.hold", hold, policy());
            scene.workers.push(scene.rig.start(worker));
        }
        scene
            .rig
            .wait_for_fact("instance.registered", WORKERS)
            .await;
        for number in 0..RUNNING {
            let event = Outgoing::new("load.hold", &format!("e-{number}"));
            scene.rig.client.publish(&event).await.unwrap();
            let task = json!({
                "task_id": format!("t-{number}"), "kind": "work.hold", "payload": format!("t-{number}"),
                "max_attempts": 1
            });
            scene.rig.ask("task.create", &task).await.unwrap();
        }
        let runs = scene.runs.clone();
        until("all run", || async { runs.count() == 2 * RUNNING }).await;
        scene
    }

    /// When the server's clock says what.
    pub(crate) async fn now(&self) -> u64 {
        self.instances.server_time().await.unwrap()
    }

    pub(crate) async fn leader(&self) -> Option<String> {
        self.instances.leader().await.unwrap()
    }

    /// Somebody of whom nothing is heard any more.
    pub(crate) async fn ghost(&self) {
        let mut ghost = Registering::new("ghost", ["ghost"]);
        ghost.ttl_ms = TTL.as_millis() as u64;
        self.instances.register(&ghost).await.unwrap();
    }

    /// Waits until all workers have pulsed for two ttls since then: whoever is to be lost is lost by now.
    pub(crate) async fn settle(&self, since: u64) {
        let then = since + 2 * TTL.as_millis() as u64;
        until("all workers pulse", || async {
            let Ok(listed) = self.instances.list().await else {
                return false;
            };
            let workers = listed.iter().filter(|is| is.id.starts_with("w-"));
            workers.filter(|is| is.last_seen >= then).count() == WORKERS
        })
        .await;
    }

    /// Lets all runs go, and checks that each was the only one.
    pub(crate) async fn end(mut self, what: &str) {
        self.rig.connection = self.rig.redis.connection().await;
        self.runs.go.add_permits(4 * RUNNING);
        self.rig.wait_for_fact("task.completed", RUNNING).await;
        let results = self.rig.wait_for("cb:results:load", RUNNING).await;
        assert_eq!(results.len(), RUNNING, "{what}");
        let begun = self.runs.begun.lock().unwrap().clone();
        let twice: Vec<_> = begun.iter().filter(|(_, count)| **count > 1).collect();
        assert!(twice.is_empty(), "{what}: started twice: {twice:?}");
        let facts = self.rig.entries("cb:broadcast").await;
        let told: Vec<String> = facts
            .iter()
            .map(|fact| crate::rig::text(fact, "type"))
            .collect();
        let count = |kind: &str| told.iter().filter(|told| *told == kind).count();
        // The ghost registers, and is lost.
        let ghosts = count("instance.lost");
        assert_eq!(count("task.failed"), 0, "{what}: {told:?}");
        assert_eq!(
            count("instance.registered"),
            WORKERS + ghosts,
            "{what}: {told:?}"
        );
        for fact in facts
            .iter()
            .filter(|fact| fact.get("type") == Some(b"instance.lost"))
        {
            let data: serde_json::Value = rmp_serde::from_slice(fact.get("data").unwrap()).unwrap();
            assert_eq!(data["id"], "ghost", "{what}: a live worker was lost");
        }
        for worker in self.workers {
            worker.stop().await;
        }
    }
}

/// How long an outage is, in tenths of a ttl.
const LENGTHS: [u32; 3] = [5, 15, 30];

async fn pause(tenths: u32) {
    tokio::time::sleep(TTL * tenths / 10).await;
}

async fn outages(redis: fn() -> Redis, what: &str, mut outage: impl AsyncFnMut(&mut Scene, u32)) {
    for tenths in LENGTHS {
        let mut scene = Scene::begin(redis()).await;
        scene.ghost().await;
        outage(&mut scene, tenths).await;
        let back = scene.now().await;
        scene.settle(back).await;
        scene.rig.connection = scene.rig.redis.connection().await;
        let lost = scene.rig.wait_for_fact("instance.lost", 1).await;
        let after = lost[0].id.ms.saturating_sub(back);
        // A ttl, what a loaded machine adds, and how long a wire that died silently may be waited for.
        let most = (3 * TTL + ANSWER).as_millis() as u64;
        assert!(
            after < most,
            "{what} of {tenths}/10: lost {after} ms after it"
        );
        scene.end(&format!("{what} of {tenths}/10 ttl")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_server_costs_nobody_anything() {
    outages(Redis::start, "a stop", async |scene, tenths| {
        scene.rig.redis.signal("STOP");
        pause(tenths).await;
        scene.rig.redis.signal("CONT");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_costs_nobody_anything() {
    outages(Redis::durable, "a kill", async |scene, tenths| {
        scene.rig.redis.kill();
        pause(tenths).await;
        scene.rig.redis.restart();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_server_costs_nobody_anything() {
    outages(Redis::start, "a pause", async |scene, tenths| {
        let length = TTL * tenths / 10;
        let mut connection = scene.rig.connection.clone();
        redis::cmd("CLIENT")
            .arg(&["PAUSE", &length.as_millis().to_string(), "ALL"])
            .exec_async(&mut connection)
            .await
            .unwrap();
        // It answers when the pause is over.
        redis::cmd("PING")
            .exec_async(&mut connection)
            .await
            .unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_wire_costs_nobody_anything() {
    for mode in [Mode::Refuse, Mode::Swallow] {
        outages(
            Redis::start,
            &format!("{mode:?}"),
            async move |scene, tenths| {
                scene.proxy.set(mode);
                pause(tenths).await;
                scene.proxy.heal();
            },
        )
        .await;
    }
}
