//! Keeps a worker alive in the eyes of the others, and does the chores that any of them may do.
//!
//! It runs on a thread of its own with a pool of its own: a handler that blocks its thread, or takes
//! every connection, must not make the worker look dead.

use super::lane::{Counts, Shared};
use super::lanes::{Lanes, Triggers};
use super::takeover::Trigger;
use super::watch::Watch;
use super::{RunError, Worker};
use crate::bus::commit::Publication;
use crate::bus::connect::{Connector, reconnect_delay};
use crate::bus::error::BusError;
use crate::bus::keys::Keys;
use crate::bus::trim::Trimmer;
use crate::bus::{claim, delay, json, lifetime};
use crate::config::Settings;
use crate::coordination::batches::Batches;
use crate::coordination::catalog::{self, Catalog, Method};
use crate::coordination::instance::{Beat, Registering};
use crate::coordination::instances::{Instances, SWEEP};
use crate::coordination::leases::Leases;
use crate::registry::context::unix_ms;
use crate::registry::layers::circuit::CircuitChange;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_util::sync::CancellationToken;

/// Connections of the keeper's pool.
const POOL: usize = 4;
/// Entries whose lease one call renews at the most.
const RENEW: usize = 500;
/// Events that one call moves from a delay queue at the most.
const PROMOTE: usize = 500;
/// The longest pause between two looks at the delay queues.
const PROMOTE_PAUSE: Duration = Duration::from_millis(250);
/// The longest pause between two trims of a quiet worker's streams.
const TRIM_PAUSE: Duration = Duration::from_secs(30);
/// How often failures are summed up in the log.
const SUMMARY_PAUSE: Duration = Duration::from_secs(10);
/// How often the claim counters' time to live is set anew.
const CLAIMS_PAUSE: Duration = Duration::from_secs(3600);
/// How long to wait before what the handlers are is published again after a failure.
const METHODS_PAUSE: Duration = Duration::from_secs(60);
/// How long the inbox of an instance that is gone is kept.
const INBOX_TTL: Duration = Duration::from_secs(24 * 3600);

/// The keeper of a running worker.
pub struct Keeper {
    thread: JoinHandle<()>,
    stop: CancellationToken,
    chores: Arc<Chores>,
}

struct Chores {
    settings: Settings,
    connector: Connector,
    instances: Instances,
    leases: Leases,
    batches: Batches,
    lanes: Vec<Arc<Shared>>,
    triggers: Triggers,
    registering: Registering,
    catalog: Catalog,
    methods: Vec<(String, Method)>,
    incarnation: AtomicU64,
    keys: Keys,
    inbox: String,
    broadcast: String,
}

impl Keeper {
    /// Starts the thread.
    pub fn start(
        worker: &Worker,
        lanes: &mut Lanes,
        registering: Registering,
        incarnation: u64,
        methods: Vec<(String, Method)>,
    ) -> Result<Self, RunError> {
        let keys = &worker.process.keys;
        let connector = Connector::new(&worker.settings.redis_url, POOL)?;
        let chores = Arc::new(Chores {
            settings: worker.settings.clone(),
            instances: Instances::new(connector.clone(), keys.clone()),
            leases: worker.leases.clone(),
            batches: Batches::new(connector.clone(), keys.clone()),
            catalog: Catalog::new(connector.clone(), keys.clone()),
            methods,
            connector,
            lanes: lanes.shared().to_vec(),
            triggers: lanes.triggers(),
            registering,
            incarnation: incarnation.into(),
            keys: keys.clone(),
            inbox: keys.inbox(worker.id()),
            broadcast: keys.broadcast(),
        });
        let stop = CancellationToken::new();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (work, until) = (chores.clone(), stop.clone());
        let changes = lanes.take_changes();
        let thread = std::thread::Builder::new()
            .name("keeper".into())
            .spawn(move || runtime.block_on(work.all(changes, until)))?;
        Ok(Self {
            thread,
            stop,
            chores,
        })
    }

    /// Stops the thread, then takes the instance out of the active ones.
    pub async fn stop(self, instances: &Instances) {
        self.stop.cancel();
        let thread = self.thread;
        if tokio::task::spawn_blocking(|| thread.join().is_ok())
            .await
            .ok()
            != Some(true)
        {
            tracing::error!("the keeper failed");
        }
        let id = &self.chores.registering.id;
        let incarnation = self.chores.incarnation.load(Ordering::Relaxed);
        match instances.unregister(id, Some(incarnation)).await {
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(instance = id, %error, "not unregistered; it will be declared lost")
            }
        }
        self.chores.expire_inbox(id).await.ok();
    }
}

impl Chores {
    async fn all(
        self: Arc<Self>,
        changes: Option<UnboundedReceiver<CircuitChange>>,
        stop: CancellationToken,
    ) {
        let watch = Watch {
            connector: self.connector.clone(),
            instances: self.instances.clone(),
            lanes: self.lanes.clone(),
            triggers: self.triggers.clone(),
            broadcast: self.broadcast.clone(),
            compare: self.settings.heartbeat_ttl,
        };
        let chores = async {
            tokio::join!(
                self.pulse(),
                self.renew(),
                self.leases.keep(&self.batches),
                self.sweep(),
                self.promote(),
                self.trim(),
                self.look_for_stale(),
                self.keep_claims(),
                self.announce(changes),
                self.publish_methods(),
                self.sum_up(),
                watch.run(stop.clone()),
            );
        };
        tokio::select! {
            () = chores => {}
            () = stop.cancelled() => {}
        }
    }

    /// Pulses every third of the time to live; registers again after having been declared lost.
    async fn pulse(&self) {
        let third = self.settings.heartbeat_ttl / 3;
        let mut failures = 0;
        // The registration was the first pulse.
        let mut next = Instant::now() + third;
        self.keep_inbox().await.ok();
        loop {
            tokio::time::sleep_until(next.into()).await;
            let incarnation = self.incarnation.load(Ordering::Relaxed);
            let mut beat = Beat::new(&self.registering.id, Some(incarnation));
            let running: usize = self.lanes.iter().map(|lane| lane.inflight.len()).sum();
            beat.load = Some(running as f64);
            let alive = match self.instances.heartbeat(&beat).await {
                Ok(pulse) if pulse.alive => Ok(()),
                Ok(_) => self.register_again().await,
                Err(error) => Err(error),
            };
            next = match alive {
                Ok(()) => {
                    if failures > 0 {
                        tracing::info!("pulsing again");
                    }
                    failures = 0;
                    Instant::now() + third
                }
                Err(error) => {
                    if failures == 0 {
                        tracing::warn!(%error, "a pulse failed; trying again");
                    }
                    failures += 1;
                    Instant::now() + reconnect_delay(failures).min(third)
                }
            };
        }
    }

    async fn register_again(&self) -> Result<(), crate::coordination::error::CoordinationError> {
        // The server may have lost this too.
        self.catalog.publish(&self.methods).await?;
        let registered = self.instances.register(&self.registering).await?;
        self.incarnation
            .store(registered.incarnation, Ordering::Relaxed);
        tracing::warn!(
            incarnation = registered.incarnation,
            "was declared lost, or the server lost its data: registered again"
        );
        self.keep_inbox().await.ok();
        Ok(())
    }

    async fn keep_inbox(&self) -> Result<(), BusError> {
        let mut connection = self.connector.pooled().await?;
        lifetime::keep(&mut connection, &self.inbox).await
    }

    async fn expire_inbox(&self, id: &str) -> Result<(), BusError> {
        let mut connection = self.connector.pooled().await?;
        lifetime::expire(&mut connection, &self.keys.inbox(id), INBOX_TTL).await
    }

    /// Renews the lease of what has been in hand for a third of the claim time.
    async fn renew(&self) {
        let age = self.settings.claim_idle / 3;
        loop {
            tokio::time::sleep(age / 2).await;
            for lane in &self.lanes {
                for (stream, route) in lane.routes.iter().enumerate() {
                    let due = lane.inflight.due(stream, age);
                    for held in due.chunks(RENEW) {
                        if let Err(error) = self.renew_some(lane, stream, &route.events, held).await
                        {
                            tracing::debug!(%error, "leases were not renewed; trying again");
                        }
                    }
                }
            }
        }
    }

    async fn renew_some(
        &self,
        lane: &Shared,
        stream: usize,
        events: &str,
        held: &[(crate::bus::event::EntryId, u32)],
    ) -> Result<(), BusError> {
        let mut connection = self.connector.pooled().await?;
        let me = lane.instance();
        let lost = claim::renew(&mut connection, events, &lane.group, me, held).await?;
        lane.inflight.renewed(stream, held, &lost);
        if !lost.is_empty() {
            tracing::warn!(
                stream = events,
                entries = lost.len(),
                "leases were lost: someone else owns the entries now"
            );
        }
        Ok(())
    }

    /// Declares expired instances lost, all instances together about four times a second.
    async fn sweep(&self) {
        let ttl = self.settings.heartbeat_ttl;
        let mut pause = Duration::from_millis(250);
        loop {
            let spread = fastrand::f64() / 2.0 + 0.75;
            tokio::time::sleep(pause.mul_f64(spread)).await;
            match self.instances.sweep(SWEEP).await {
                Ok(swept) => {
                    pause =
                        Duration::from_millis((swept.active * 250).clamp(250, 5000)).min(ttl / 2);
                    for lost in swept.lost {
                        tracing::warn!(
                            instance = lost.id,
                            incarnation = lost.incarnation,
                            last_seen = lost.last_seen,
                            "an instance was lost"
                        );
                        self.expire_inbox(&lost.id).await.ok();
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "sweeping failed; waiting for the others to pulse again");
                    // Whoever could not reach the server does not blame others for it.
                    tokio::time::sleep(ttl).await;
                }
            }
        }
    }

    /// Moves retries and scheduled events that are due to their streams.
    async fn promote(&self) {
        loop {
            let mut pause = PROMOTE_PAUSE;
            for route in self.lanes.iter().flat_map(|lane| lane.routes.iter()) {
                let promoted = async {
                    let mut connection = self.connector.pooled().await?;
                    delay::promote(&mut connection, route, PROMOTE).await
                };
                match promoted.await {
                    Ok(promoted) if promoted.moved + promoted.dead >= PROMOTE as u64 => {
                        pause = Duration::ZERO
                    }
                    Ok(_) => {}
                    Err(error) => {
                        tracing::debug!(stream = route.events, %error, "the delay queue could not be looked at");
                        pause = pause.max(reconnect_delay(3));
                    }
                }
            }
            tokio::time::sleep(pause.mul_f64(fastrand::f64() / 2.0 + 0.5)).await;
        }
    }

    /// Keeps the streams at about their history; the busier this worker, the more often.
    async fn trim(&self) {
        let mut trimmer = Trimmer::default();
        let history = self.settings.stream_history;
        let streams: Vec<(String, u64)> = self
            .lanes
            .iter()
            .flat_map(|lane| lane.routes.iter())
            .flat_map(|route| [route.events.clone(), route.results.clone()])
            .chain([self.broadcast.clone()])
            .map(|stream| (stream, history))
            .collect();
        let committed = || -> u64 {
            let counts = self.lanes.iter().map(|lane| &lane.counts);
            counts
                .map(|counts| counts.committed.load(Ordering::Relaxed))
                .sum()
        };
        let mut before = 0;
        let mut trimmed_at: Option<Instant> = None;
        loop {
            tokio::time::sleep(Duration::from_millis(fastrand::u64(800..1200))).await;
            let now = committed();
            let quiet = now.saturating_sub(before) < (history / 10).max(1);
            if quiet && trimmed_at.is_some_and(|at| at.elapsed() < TRIM_PAUSE) {
                continue;
            }
            before = now;
            trimmed_at = Some(Instant::now());
            let mut rest = streams.clone();
            while !rest.is_empty() {
                let Ok(mut connection) = self.connector.pooled().await else {
                    break;
                };
                let results = trimmer.run_once(&mut connection, &rest).await;
                let full = |removed: u64| removed >= crate::bus::trim::LIMIT / 2;
                rest = rest
                    .into_iter()
                    .zip(results)
                    .filter(|(_, result)| result.as_ref().is_ok_and(|done| full(done.removed)))
                    .map(|(stream, _)| stream)
                    .collect();
            }
        }
    }

    /// Has the lanes look for entries that nobody renewed, several times in the claim time.
    async fn look_for_stale(&self) {
        let pause = self.settings.claim_idle / 4;
        loop {
            tokio::time::sleep(pause.mul_f64(fastrand::f64() / 2.0 + 0.75)).await;
            self.triggers.send(&Trigger::Stale);
        }
    }

    async fn keep_claims(&self) {
        loop {
            tokio::time::sleep(CLAIMS_PAUSE).await;
            for lane in &self.lanes {
                if let Ok(mut connection) = self.connector.pooled().await {
                    lane.claims.keep(&mut connection).await.ok();
                }
            }
        }
    }

    /// Keeps what this worker published of its handlers.
    async fn publish_methods(&self) {
        // The first time may have failed.
        let mut pause = METHODS_PAUSE;
        loop {
            tokio::time::sleep(pause.mul_f64(fastrand::f64() / 2.0 + 0.75)).await;
            pause = match self.catalog.publish(&self.methods).await {
                Ok(()) => catalog::KEPT / 3,
                Err(error) => {
                    tracing::debug!(%error, "what the handlers are could not be published; trying again");
                    METHODS_PAUSE
                }
            };
        }
    }

    /// Tells everyone which circuits opened and closed.
    async fn announce(&self, changes: Option<UnboundedReceiver<CircuitChange>>) {
        let Some(mut changes) = changes else {
            return;
        };
        while let Some(change) = changes.recv().await {
            let told = async {
                let fact = self.fact(&change);
                let mut connection = self.connector.pooled().await?;
                fact.store(&mut connection).await
            };
            if let Err(error) = told.await {
                tracing::debug!(%error, handler = &*change.kind, "a circuit's change was not announced");
            }
        }
    }

    fn fact(&self, change: &CircuitChange) -> Publication {
        let kind = match change.opened {
            true => "circuit.opened",
            false => "circuit.closed",
        };
        let instance = &self.registering.id;
        let data = serde_json::json!({"type": &*change.kind, "instance": instance});
        let fields = [
            ("type", kind.as_bytes().to_vec()),
            ("data", json::from_json(&data)),
            ("source", instance.clone().into_bytes()),
            ("time", unix_ms().to_string().into_bytes()),
        ];
        let pairs = fields
            .into_iter()
            .flat_map(|(name, value)| [name.into(), value]);
        Publication {
            stream: self.broadcast.clone(),
            fields: pairs.collect(),
        }
    }

    /// Says now and then what went wrong since: one line, however much it was.
    async fn sum_up(&self) {
        let count = |pick: fn(&Counts) -> &AtomicU64| -> u64 {
            let lanes = self.lanes.iter();
            lanes
                .map(|lane| pick(&lane.counts).load(Ordering::Relaxed))
                .sum()
        };
        let mut before = (0, 0, 0);
        loop {
            tokio::time::sleep(SUMMARY_PAUSE).await;
            let now = (
                count(|c| &c.dead),
                count(|c| &c.retried),
                count(|c| &c.expired),
            );
            if now != before {
                tracing::warn!(
                    dead_letters = now.0 - before.0,
                    retries = now.1 - before.1,
                    past_deadline = now.2 - before.2,
                    seconds = SUMMARY_PAUSE.as_secs(),
                    "events failed"
                );
                before = now;
            }
        }
    }
}
