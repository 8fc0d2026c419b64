//! Keeps a worker alive in the eyes of the others, and does the chores that any of them may do.
//!
//! It runs on a thread of its own with a pool of its own: a handler that blocks its thread, or takes
//! every connection, must not make the worker look dead.
//!
//! | duty | how often |
//! |---|---|
//! | `pulse`: says that it lives and what it did, contends for the lead, watches its peers | a third of the ttl |
//! | `renew`: renews leases of what runs long | a sixth of the claim time |
//! | `sweep`: declares the expired lost, looks at the tasks that wait, tells of partitions | all instances together one to four times a second |
//! | `promote`: moves what is due from the delay queues | when it is due; looks for more twice to eight times a second |
//! | `trim`: keeps streams at their history; those of the control plane the leader's only | a second when busy, else half a minute |
//! | `upkeep`: looks for stale entries, keeps the claim counters | a quarter of the claim time; an hour |
//! | `describe`: keeps what it published of its handlers | 20 minutes |
//! | `announce`: tells of circuits, as they change | |
//! | `summary`: sums up failures in the log | 10 s |

mod announce;
mod describe;
mod peers;
mod promote;
mod pulse;
mod renew;
mod summary;
mod sweep;
mod trim;
mod upkeep;

use super::lanes::{Lanes, Triggers};
use super::report::Reporter;
use super::shared::Shared;
use super::watch::Watch;
use super::{RunError, Worker};
use crate::bus::connect::Connector;
use crate::config::Settings;
use crate::coordination::batches::Batches;
use crate::coordination::catalog::{Catalog, Method};
use crate::coordination::error::CoordinationError;
use crate::coordination::instance::{Beat, Registering};
use crate::coordination::instances::Instances;
use crate::coordination::leader::Lead;
use crate::coordination::leases::Leases;
use crate::coordination::tasks::Tasks;
use crate::registry::layers::circuit::CircuitChange;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_util::sync::CancellationToken;

/// Connections of the keeper's pool.
const POOL: usize = 4;

/// The keeper of a running worker.
pub struct Keeper {
    thread: JoinHandle<()>,
    stop: CancellationToken,
    chores: Arc<Chores>,
}

/// As what the worker began.
pub struct Begun {
    /// What it registered.
    pub registering: Registering,
    /// The incarnation that it is.
    pub incarnation: u64,
    /// What it published of its handlers.
    pub methods: Vec<(String, Method)>,
}

/// What the duties share.
struct Chores {
    settings: Settings,
    connector: Connector,
    instances: Instances,
    tasks: Tasks,
    leases: Leases,
    batches: Batches,
    lanes: Vec<Arc<Shared>>,
    triggers: Triggers,
    reporter: Arc<Reporter>,
    registering: Registering,
    incarnation: AtomicU64,
    lead: Mutex<Option<Lead>>,
    catalog: Catalog,
    methods: Vec<(String, Method)>,
    broadcast: String,
}

impl Keeper {
    /// Starts the thread.
    pub fn start(
        worker: &Worker,
        lanes: &mut Lanes,
        reporter: Arc<Reporter>,
        begun: Begun,
    ) -> Result<Self, RunError> {
        let keys = &worker.process.keys;
        let connector = Connector::of(&worker.settings, POOL)?;
        let chores = Arc::new(Chores {
            settings: worker.settings.clone(),
            instances: Instances::new(connector.clone(), keys.clone()),
            tasks: Tasks::new(connector.clone(), keys.clone()),
            catalog: Catalog::new(connector.clone(), keys.clone()),
            leases: worker.leases.clone(),
            batches: Batches::new(connector.clone(), keys.clone()),
            connector,
            lanes: lanes.shared().to_vec(),
            triggers: lanes.triggers(),
            reporter,
            registering: begun.registering,
            incarnation: begun.incarnation.into(),
            methods: begun.methods,
            lead: Mutex::default(),
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
        let id = self.chores.id();
        let incarnation = self.chores.incarnation();
        // What was done since the last pulse.
        let last = Beat {
            metrics: Some(self.chores.reporter.report()),
            ..Beat::new(id, Some(incarnation))
        };
        if let Err(error) = instances.heartbeat(&last).await {
            tracing::debug!(%error, "the last report was not sent");
        }
        match instances.unregister(id, Some(incarnation)).await {
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(instance = id, %error, "not unregistered; it will be declared lost")
            }
        }
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
                pulse::run(&self),
                renew::run(&self),
                self.leases.keep(&self.batches),
                sweep::run(&self),
                promote::run(&self),
                trim::run(&self),
                upkeep::look_for_stale(&self),
                upkeep::keep_claims(&self),
                describe::run(&self),
                announce::run(&self, changes),
                summary::run(&self),
                watch.run(stop.clone()),
            );
        };
        tokio::select! {
            () = chores => {}
            () = stop.cancelled() => {}
        }
    }

    fn id(&self) -> &str {
        &self.registering.id
    }

    fn incarnation(&self) -> u64 {
        self.incarnation.load(Ordering::Relaxed)
    }

    /// Whether the worker shuts down, and is to get no task any more.
    fn draining(&self) -> bool {
        let process = self.lanes.first().map(|lane| &lane.process);
        let draining = process.and_then(|process| process.draining.get());
        draining.is_some_and(CancellationToken::is_cancelled)
    }

    /// Whether this instance leads, as far as it can know without asking.
    fn leads(&self) -> bool {
        let lead = self.lead.lock().unwrap_or_else(PoisonError::into_inner);
        lead.as_ref().is_some_and(Lead::is_current)
    }

    fn set_lead(&self, lead: Option<Lead>) {
        let mut held = self.lead.lock().unwrap_or_else(PoisonError::into_inner);
        let terms = (held.map(|lead| lead.term), lead.map(|lead| lead.term));
        *held = lead;
        match terms {
            (before, Some(term)) if before != Some(term) => tracing::info!(term, "leads"),
            (Some(term), None) => tracing::info!(term, "leads no more"),
            _ => {}
        }
    }

    /// Takes the lead if nobody has it, or renews it.
    async fn contend(&self) -> Result<(), CoordinationError> {
        let contest = self
            .instances
            .contend(self.id(), self.incarnation())
            .await?;
        self.set_lead(contest.lead);
        Ok(())
    }
}
