//! Keeps a worker alive in the eyes of the others, and does the chores that any of them may do.
//!
//! It runs on a thread of its own with a pool of its own: a handler that blocks its thread, or takes
//! every connection, must not make the worker look dead. Each duty is a task of its own. Where one
//! fails the worker ends; until then it is taken up again.
//!
//! | duty | how often |
//! |---|---|
//! | `pulse`: says that it lives and what it did, contends for the lead, watches its peers | a third of the ttl |
//! | `collect`: writes the pulses of all, where that is chosen; the leader's only | 4 to 50 times a second |
//! | `renew`: renews leases of what runs long | a sixth of the claim time |
//! | `own`: renews the leases of partitions that it owns | a third of the ttl |
//! | `attend`: sees when the server answers, and what its clock does | an eighth of the ttl, at most a second, unless others did |
//! | `sweep`: declares the expired lost, looks at the tasks that wait, reports partitions | all instances together one to four times a second |
//! | `obey`: does what operators order it (leave, be quiet, another concurrency), says how it is | a third of the ttl, and when it is told |
//! | `pauses`: reads the policies; releases what is parked and not paused any more | a third of the ttl, and when it is told; four times a second while something is paused |
//! | `promote`: moves what is due from the delay queues | when it is due; looks for more twice to eight times a second |
//! | `schedule`: stores the events of schedules whose tick is due | when one is due; looks for more every 5 s, and when it is told |
//! | `repair`: replays dead letters that somebody had workers replay, if no other worker does | looks every 5 s, and when it is told |
//! | `outbox`: on a cluster, moves what runs published into other slots | 5 ms when busy, else up to 200 ms |
//! | `trim`: keeps streams at their history; those of the control plane the leader's only | a second when busy, else half a minute |
//! | `upkeep`: looks for stale entries; has the server know the scripts that others call; keeps the claim counters; lets idle connections go | a quarter of the claim time; a third of the ttl; an hour; 5 s |
//! | `seats`: takes seats of types with a total, and gives them back | when one is needed, or has become free; a quarter of their lease |
//! | `describe`: keeps what it published of its handlers | 20 minutes |
//! | `announce`: reports circuits as they change | |
//! | `tell`: writes how far runs are to those who asked | when they tell it |
//! | `exposition`: writes the metrics of the bus into a file, if one is set | 15 s |
//! | `measures`: tells OpenTelemetry what was counted, if there is a file for it | 15 s |
//! | `summary`: sums up failures in the log | 10 s |

mod announce;
mod attend;
mod collect;
pub(super) mod describe;
mod exposition;
pub(super) mod measures;
mod neighbours;
mod obey;
pub(super) mod outbox;
mod own;
mod pauses;
mod peers;
mod promote;
mod pulse;
mod renew;
mod repair;
mod schedule;
mod seats;
mod send;
mod signs;
mod summary;
mod sweep;
mod tell;
mod trim;
mod upkeep;

use super::lane_list::LaneList;
use super::lanes::{Lanes, Triggers};
use super::report::Reporter;
use super::supervisor::{Supervisor, Why};
use super::watch::Watch;
use super::{RunError, Worker};
use crate::connect::connector::Connector;
use crate::connect::error::BusError;
use crate::connect::silence::Answers;
use crate::coordination::batches::Batches;
use crate::coordination::batches::leases::Leases;
use crate::coordination::catalog::{Catalog, Method};
use crate::coordination::error::CoordinationError;
use crate::coordination::instances::instance::{Beat, Registering};
use crate::coordination::instances::{Instances, Registered, Seal};
use crate::coordination::leader::Lead;
use crate::coordination::patterns::PatternStore;
use crate::coordination::policies::Policies;
use crate::coordination::repairs::Repairs;
use crate::coordination::schedules::Schedules;
use crate::coordination::scripts;
use crate::coordination::seats::Seats;
use crate::coordination::tasks::Tasks;
use crate::handler::layers::circuit::CircuitChange;
use crate::handler::progress::Tell;
use crate::protocol::keys::Keys;
use crate::settings::Settings;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use signs::ThreadSigns;

pub(super) use promote::IDLE as SOON;
pub(super) use pulse::Pulsed;

/// Connections of the keeper's pool.
const POOL: usize = 4;

/// The pause before a duty that failed is taken up again.
const AGAIN: Duration = Duration::from_millis(100);
/// How long the worker waits for the thread to take the instance out of the active ones.
const LEAVE: Duration = Duration::from_secs(15);

/// The name of the thread.
pub(super) const NAME: &str = "keeper";

/// The keeper of a running worker; dropped, it leaves by itself.
pub(super) struct Keeper {
    left: oneshot::Receiver<()>,
    stop: CancellationToken,
    chores: Arc<Chores>,
}

/// As what the worker began.
pub(super) struct Begun {
    /// What it registered.
    pub registering: Registering,
    /// As what.
    pub registered: Registered,
    /// When it pulsed last.
    pub pulsed: Pulsed,
    /// What it published of its handlers.
    pub methods: Vec<(String, Method)>,
    /// What runs say about their progress.
    pub told: UnboundedReceiver<Tell>,
    /// When the worker began.
    pub since: SystemTime,
}

/// What the duties share.
struct Chores {
    settings: Settings,
    keys: Keys,
    connector: Connector,
    instances: Instances,
    tasks: Tasks,
    leases: Leases,
    batches: Batches,
    lanes: LaneList,
    triggers: Triggers,
    reporter: Arc<Reporter>,
    registering: Registering,
    standing: Mutex<Standing>,
    /// When the worker pulsed before the keeper did.
    pulsed: Pulsed,
    answers: Answers,
    superseded: AtomicBool,
    lead: Mutex<Option<Lead>>,
    catalog: Catalog,
    methods: Vec<(String, Method)>,
    broadcast: String,
    patterns: PatternStore,
    policies: Policies,
    schedules: Schedules,
    repairs: Repairs,
    seats: Seats,
    /// Numbers what is said of them.
    calls: AtomicU64,
    /// Something is ordered.
    ordered: Arc<Notify>,
    changes: tokio::sync::Mutex<Option<UnboundedReceiver<CircuitChange>>>,
    told: tokio::sync::Mutex<UnboundedReceiver<Tell>>,
    signs: ThreadSigns,
    since: SystemTime,
}

/// As what this worker is registered now.
#[derive(Clone, Debug)]
struct Standing {
    incarnation: u64,
    seal: Seal,
}

impl Standing {
    fn of(registering: &Registering, registered: Registered) -> Self {
        let seal = Seal {
            digest: registered.seal,
            roles: registering.roles.iter().cloned().collect(),
            capabilities: registering.capabilities.iter().cloned().collect(),
        };
        Self {
            incarnation: registered.incarnation,
            seal,
        }
    }
}

impl Keeper {
    /// Starts the thread.
    pub(super) fn start(
        worker: &Worker,
        lanes: &mut Lanes,
        reporter: Arc<Reporter>,
        begun: Begun,
        supervisor: &Supervisor,
    ) -> Result<Self, RunError> {
        let keys = &worker.process.keys;
        let (ttl, lease) = (worker.settings.heartbeat_ttl, worker.settings.claim_idle);
        let connector = Connector::prompt(&worker.settings, POOL, (ttl / 3).min(lease / 6))?;
        let connector = connector.loading(scripts::called_by_others());
        let answers = lanes.answers().clone();
        let instances = Instances::of_process(connector.clone(), keys.clone(), &worker.name);
        let standing = Standing::of(&begun.registering, begun.registered);
        let chores = Arc::new(Chores {
            settings: worker.settings.clone(),
            keys: keys.clone(),
            instances: instances.judging_by(answers.clone()),
            tasks: Tasks::new(connector.clone(), keys.clone()).of_process(&worker.name),
            catalog: Catalog::new(connector.clone(), keys.clone()),
            leases: worker.leases.clone(),
            batches: Batches::new(connector.clone(), keys.clone()),
            schedules: Schedules::new(connector.clone(), keys.clone()),
            repairs: Repairs::new(connector.clone(), keys.clone()),
            policies: worker.policies.by(connector.clone()),
            seats: Seats::new(
                connector.clone(),
                keys.clone(),
                worker.id(),
                seats::lease(ttl),
            ),
            calls: AtomicU64::new(1),
            connector,
            lanes: lanes.list().clone(),
            triggers: lanes.triggers(),
            reporter,
            registering: begun.registering,
            standing: standing.into(),
            pulsed: begun.pulsed,
            answers,
            superseded: AtomicBool::default(),
            methods: begun.methods,
            lead: Mutex::default(),
            broadcast: keys.broadcast(),
            ordered: Arc::default(),
            patterns: worker.patterns.clone(),
            changes: tokio::sync::Mutex::new(lanes.take_changes()),
            told: tokio::sync::Mutex::new(begun.told),
            signs: ThreadSigns::default(),
            since: begun.since,
        });
        let stop = CancellationToken::new();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (work, told, supervisor) = (chores.clone(), stop.clone(), supervisor.clone());
        let (leaves, left) = oneshot::channel();
        std::thread::Builder::new()
            .name(NAME.into())
            .spawn(move || {
                let _watched = supervisor.watch(NAME, &told);
                runtime.block_on(async {
                    let all = work.all(&supervisor, &told);
                    supervisor.run(NAME, &told, all).await;
                    if told.is_cancelled() {
                        work.leave(&work.instances).await;
                        leaves.send(()).ok();
                    }
                });
            })?;
        Ok(Self { left, stop, chores })
    }

    /// Is ready when the thread gives no sign of life.
    pub(super) async fn hangs(&self) {
        let patience = self.chores.patience();
        let state = self.chores.signs.missing(patience).await;
        tracing::error!(state, "the keeper gave no sign of life for {patience:?}");
    }

    /// Tells whether this instance leads, as far as it can know without asking.
    pub(super) fn leads(&self) -> impl Fn() -> bool + Send + Sync + 'static {
        let chores = self.chores.clone();
        move || chores.leads()
    }

    /// Stops the thread, which takes the instance out of the active ones. Where the thread is not
    /// there any more, or hangs, that is done by way of `instances`.
    pub(super) async fn stop(mut self, instances: &Instances, supervisor: &Supervisor) {
        self.stop.cancel();
        let hangs = supervisor
            .failure()
            .is_some_and(|failure| failure.part == NAME && failure.why == Why::Hangs);
        let patience = if hangs { Duration::ZERO } else { LEAVE };
        if !matches!(
            tokio::time::timeout(patience, &mut self.left).await,
            Ok(Ok(()))
        ) {
            self.chores.leave(instances).await;
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// The duties of a keeper.
struct Duties<'a> {
    chores: &'a Arc<Chores>,
    supervisor: &'a Supervisor,
    told: &'a CancellationToken,
    tasks: JoinSet<()>,
}

impl Duties<'_> {
    /// Begins one, and takes it up again whenever it ends.
    fn begin<F, D>(&mut self, name: &'static str, duty: F)
    where
        F: Fn(Arc<Chores>) -> D + Send + 'static,
        D: Future<Output = ()> + Send,
    {
        let (chores, told) = (self.chores.clone(), self.told.clone());
        let supervisor = self.supervisor.clone();
        let name = format!("{NAME} {name}");
        self.tasks.spawn(async move {
            loop {
                // Apart, or each call between here and what it does would have it on the thread's stack.
                let duty = Box::pin(duty(chores.clone()));
                supervisor.run(&name, &told, duty).await;
                tokio::time::sleep(AGAIN).await;
            }
        });
    }
}

impl Chores {
    async fn all(self: &Arc<Self>, supervisor: &Supervisor, told: &CancellationToken) {
        let mut duties = Duties {
            chores: self,
            supervisor,
            told,
            tasks: JoinSet::new(),
        };
        duties.begin("pulse", async |all| pulse::run(&all).await);
        duties.begin("collect", async |all| collect::run(&all).await);
        duties.begin("renew", async |all| renew::run(&all).await);
        duties.begin("own", async |all| own::run(&all).await);
        duties.begin("leases", async |all| all.leases.keep(&all.batches).await);
        duties.begin("attend", async |all| attend::run(&all).await);
        duties.begin("sweep", async |all| sweep::run(&all).await);
        duties.begin("promote", async |all| promote::run(&all).await);
        duties.begin("obey", async |all| obey::run(&all).await);
        duties.begin("pauses", async |all| pauses::run(&all).await);
        duties.begin("schedule", async |all| schedule::run(&all).await);
        duties.begin("repair", async |all| repair::run(&all).await);
        duties.begin("trim", async |all| trim::run(&all).await);
        duties.begin("stale", async |all| upkeep::look_for_stale(&all).await);
        duties.begin("idle", async |all| upkeep::let_idle_go(&all).await);
        duties.begin("claims", async |all| upkeep::keep_claims(&all).await);
        duties.begin("scripts", async |all| upkeep::keep_scripts(&all).await);
        duties.begin("leftovers", async |all| upkeep::name_leftovers(&all).await);
        duties.begin("seats", async |all| seats::run(&all).await);
        duties.begin("describe", async |all| describe::run(&all).await);
        duties.begin("outbox", async |all| outbox::run(&all).await);
        duties.begin("announce", async |all| announce::run(&all).await);
        duties.begin("tell", async |all| tell::run(&all).await);
        duties.begin("exposition", async |all| exposition::run(&all).await);
        duties.begin("measures", async |all| measures::run(&all).await);
        duties.begin("summary", async |all| summary::run(&all).await);
        duties.begin("watch", async |all| all.watch().await);
        tokio::select! {
            biased;
            () = told.cancelled() => {}
            never = self.signs.show(self.patience()) => never,
        }
        duties.tasks.shutdown().await;
    }

    /// How long the thread may give no sign of life. Its last pulse is up to a third of the ttl older, and
    /// the worker must be gone before it is declared lost.
    fn patience(&self) -> Duration {
        (self.settings.heartbeat_ttl * 5 / 12).max(Duration::from_secs(3))
    }

    /// Watches for instances that went.
    async fn watch(&self) {
        let watch = Watch {
            connector: self.connector.clone(),
            instances: self.instances.clone(),
            lanes: self.lanes.clone(),
            triggers: self.triggers.clone(),
            broadcast: self.broadcast.clone(),
            patterns: self.patterns.clone(),
            schedules: self.schedules.clone(),
            policies: self.policies.clone(),
            repairs: self.repairs.clone(),
            leases: self.leases.clone(),
            id: self.id().to_owned(),
            ordered: self.ordered.clone(),
            since: self.incarnation() / 1000,
            compare: self.settings.heartbeat_ttl,
        };
        watch.run().await;
    }

    /// Tells what was done since the last pulse and takes the instance out of the active ones.
    async fn leave(&self, instances: &Instances) {
        seats::leave(self).await;
        let (id, incarnation) = (self.id(), self.incarnation());
        let last = Beat {
            metrics: Some(self.reporter.report()),
            ..Beat::new(id, Some(incarnation))
        };
        if let Err(error) = instances.heartbeat(&last).await {
            tracing::debug!(%error, "the last report was not sent");
        }
        if let Err(error) = instances.unregister(id, Some(incarnation)).await {
            tracing::warn!(instance = id, %error, "not unregistered; it will be declared lost");
        }
    }

    fn id(&self) -> &str {
        &self.registering.id
    }

    fn incarnation(&self) -> u64 {
        self.standing().incarnation
    }

    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the worker shuts down, and is to get no task any more.
    fn draining(&self) -> bool {
        let first = self.lanes.first();
        let draining = first.as_ref().and_then(|lane| lane.process.draining.get());
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

    /// Waits for an answer no longer than that: a wire that died silently would be waited for longer than
    /// an instance or a lease lives. The next call has another one.
    async fn within<T, E: From<BusError>>(
        &self,
        limit: Duration,
        answer: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        within(&self.connector, limit, answer).await
    }

    /// Says once that another process has the id.
    fn superseded(&self) {
        if !self.superseded.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                instance = self.id(),
                "another process of this id has begun: it is registered, this one is not"
            );
        }
    }

    /// Publishes what the handlers are, and that this worker reads their events.
    async fn publish(&self) -> Result<(), CoordinationError> {
        self.catalog.publish(&self.methods).await?;
        let (group, kinds) = (&self.settings.group, &self.registering.capabilities);
        self.instances.reads(group, self.id(), kinds).await
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

/// Waits for what is asked by way of a connector, and no longer than that; the next call has another connection.
async fn within<T, E: From<BusError>>(
    connector: &Connector,
    limit: Duration,
    answer: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    match tokio::time::timeout(limit, answer).await {
        Ok(answer) => answer,
        Err(_) => {
            connector.forget_pooled();
            Err(BusError::Pool(format!("no answer within {limit:?}")).into())
        }
    }
}
