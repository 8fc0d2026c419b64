//! The lanes of a worker: which streams each reads, started and ended together.

use super::admission::Share;
use super::handover::NUDGE;
use super::inflight::InFlight;
use super::keeper::describe;
use super::lane::{Lane, LaneEvents};
use super::outcomes::{Outcomes, OutcomesReceiver};
use super::pausing::Pausing;
use super::shared::{Counts, Doubt, Shared, Turned};
use super::sparing::Sparing;
use super::supervisor::Supervisor;
use super::takeover::Trigger;
use super::watch::gone_holders;
use super::{Ending, RunError};
use crate::builtin::system::batch_process::PLACES;
use crate::connect::connector::Connector;
use crate::connect::error::BusError;
use crate::connect::silence::Answers;
use crate::coordination::catalog::Method;
use crate::coordination::error::CoordinationError;
use crate::coordination::instances::Instances;
use crate::coordination::limits::RateLimits;
use crate::coordination::policies::Policies;
use crate::handler::assembly::Surroundings;
use crate::handler::context::Process;
use crate::handler::function::{Endpoint, Schemas};
use crate::handler::layers::circuit::CircuitChange;
use crate::handler::policy::{Policy, RetryPolicy};
use crate::handler::router::{Registration, Router};
use crate::mutex::locked;
use crate::protocol::keys::{self, StreamKeys};
use crate::settings::Settings;
use crate::streams::commit::{Committer, CommitterOptions};
use crate::streams::first::Judge;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc};
use tokio_util::task::AbortOnDropHandle;

/// Sends a trigger to every lane.
#[derive(Clone, Debug, Default)]
pub(super) struct Triggers(Arc<Mutex<Vec<mpsc::UnboundedSender<Trigger>>>>);

impl Triggers {
    /// One more lane: what it hears.
    fn add(&self) -> mpsc::UnboundedReceiver<Trigger> {
        let (lane, triggered) = mpsc::unbounded_channel();
        locked(&self.0).push(lane);
        triggered
    }

    /// Has every lane look for what the trigger is about.
    pub(super) fn send(&self, trigger: &Trigger) {
        for lane in locked(&self.0).iter() {
            // A lane that ended takes nothing over any more.
            lane.send(trigger.clone()).ok();
        }
    }
}

struct Prepared {
    lane: Lane,
    events: LaneEvents,
    committer: Committer,
}

/// The lanes of a worker.
pub(super) struct Lanes {
    shared: Vec<Arc<Shared>>,
    prepared: Vec<Prepared>,
    triggers: Triggers,
    answers: Answers,
    router: Arc<Router>,
    changes: Option<mpsc::UnboundedReceiver<CircuitChange>>,
    outcomes: Option<OutcomesReceiver>,
    ending: Ending,
}

/// Lanes that run; dropped, they run no more.
pub(super) struct Running(Vec<AbortOnDropHandle<Option<Committer>>>);

impl Running {
    /// Waits until all have ended. Their committers come back, where none is in the middle of a commit.
    pub(super) async fn ended(self) -> Vec<Committer> {
        let ended = futures_util::future::join_all(self.0).await;
        ended.into_iter().flatten().flatten().collect()
    }
}

/// Connections on which rates are counted; none of them is made before the first is.
const ASKING: usize = 16;
/// Entries of the inbox that may be waited for besides tasks.
const BESIDES: usize = 8;

/// What a lane reads.
struct Plan {
    name: &'static str,
    concurrency: usize,
    routes: Vec<StreamKeys>,
    places: Vec<(String, u16)>,
    inbox: Option<usize>,
    /// Runs that there is room for beside the others.
    beside: usize,
    /// What one type may hold of the slots, in percent.
    share: u8,
}

/// The inbox has a lane of its own: tasks may run long, as many at a time as the capacity says, and
/// a `system` event must not wait for any of them.
///
/// On a cluster a lane's streams are in one slot: each partition of a domain has a lane of its own, and all of them
/// share the concurrency evenly.
fn plans(settings: &Settings, process: &Process, router: &Router) -> Vec<Plan> {
    let (keys, instance) = (&process.keys, process.instance.as_str());
    let mut control = Plan {
        name: "control",
        concurrency: settings.concurrency,
        routes: Vec::new(),
        places: Vec::new(),
        inbox: None,
        beside: PLACES,
        share: settings.type_share,
    };
    for domain in ["system", "task"] {
        control.routes.push(keys.route(domain, 0));
        control.places.push((domain.to_owned(), 0));
    }
    let tasks = Plan {
        name: "tasks",
        concurrency: settings.capacity as usize,
        routes: vec![keys.inbox_route(instance)],
        places: vec![("task".to_owned(), 0)],
        inbox: Some(0),
        beside: BESIDES,
        // All of it is one type, and how much of it there may be the capacity says.
        share: 100,
    };

    let of_data = router.routes().map(|route| route.kind.as_str());
    let of_data: Vec<&str> = of_data
        .filter(|kind| *kind != NUDGE && !keys::is_control(keys::domain_of(kind)))
        .collect();
    let ignored = settings.ignore.iter().map(String::as_str);
    let read = of_data.iter().copied().chain(ignored);
    let domains: BTreeSet<&str> = read.map(keys::domain_of).collect();
    let places = domains.into_iter().flat_map(|domain| {
        (0..keys.partitions(domain)).map(|partition| (domain.to_owned(), partition))
    });
    let places: Vec<(String, u16)> = places.collect();
    let lanes: Vec<Vec<(String, u16)>> = match process.connector.is_cluster() {
        true => places.into_iter().map(|place| vec![place]).collect(),
        false if places.is_empty() => Vec::new(),
        false => vec![places],
    };
    let concurrency = settings.concurrency.div_ceil(lanes.len().max(1));
    let data = lanes.into_iter().map(|places| Plan {
        name: "data",
        concurrency,
        routes: places
            .iter()
            .map(|(domain, partition)| keys.route(domain, *partition))
            .collect(),
        places,
        inbox: None,
        beside: 0,
        // One that has no neighbours starves none.
        share: match of_data.len() {
            1 => 100,
            _ => settings.type_share,
        },
    });
    let mut plans = vec![control, tasks];
    plans.extend(data);
    plans
}

/// The handler that hears that an entry was handed to this instance.
fn nudge(triggers: Triggers) -> Registration {
    let endpoint = Endpoint::raw(move |_| {
        triggers.send(&Trigger::Given);
        Box::pin(std::future::ready(Ok(vec![0xc0])))
    });
    Registration {
        kind: NUDGE.to_owned(),
        endpoint,
        policy: Policy::new().silent(),
        schemas: Schemas::of::<(), ()>(),
    }
}

impl Lanes {
    /// Lanes for these handlers; nothing runs yet.
    pub(super) fn new(
        settings: &Settings,
        handlers: &[Registration],
        process: &Arc<Process>,
        instances: &Instances,
        answers: &Answers,
        policies: &Policies,
        ending: &Ending,
    ) -> Result<Self, RunError> {
        let retry = RetryPolicy::from(settings);
        let (noted, outcomes) = Outcomes::of(settings).unzip();
        let (circuits, changes) = mpsc::unbounded_channel();
        let surroundings = Surroundings {
            process: process.clone(),
            handler_timeout: settings.handler_timeout,
            limits: RateLimits::new(Connector::of(settings, ASKING)?, process.keys.clone()),
            circuits: Some(circuits),
        };
        let triggers = Triggers::default();
        let mut registrations = handlers.to_vec();
        registrations.push(nudge(triggers.clone()));
        let router =
            Arc::new(Router::new(registrations, retry, &surroundings).map_err(BusError::from)?);
        // A worker makes its lanes once.
        process.router.set(router.clone()).ok();
        let pausing = Arc::new(Pausing::new(policies.clone(), &router));
        let mut shared = Vec::new();
        let mut prepared = Vec::new();
        for plan in plans(settings, process, &router) {
            let triggered = triggers.add();
            let connector = process.connector.toward(&plan.routes[0].events);
            let judge = Judge::new(connector.clone());
            let routes: Arc<[StreamKeys]> = plan.routes.into();
            let claims_key = |(domain, partition): &(String, u16)| {
                process.keys.claims(domain, *partition, &process.instance)
            };
            let committer = Committer::new(CommitterOptions {
                connector: connector.clone(),
                routes: routes.clone(),
                claims: plan.places.iter().map(claims_key).collect(),
                group: settings.group.clone(),
                consumer: process.instance.clone(),
                reply_ttl: settings.reply_ttl,
                reply_history: settings.stream_history,
                stop: ending.stop.clone(),
            });
            let lane = Arc::new(Shared {
                name: plan.name,
                routes,
                places: plan.places,
                inbox: plan.inbox,
                group: settings.group.clone(),
                connector,
                process: process.clone(),
                router: router.clone(),
                pausing: pausing.clone(),
                instances: instances.clone(),
                limits: settings.limits(),
                inflight: Arc::new(InFlight::default()),
                claims: committer.claims(),
                slots: AtomicUsize::new(plan.concurrency),
                quiet: AtomicBool::new(false),
                share: Share {
                    slots: plan.concurrency + plan.beside,
                    beside: plan.beside,
                    percent: plan.share.into(),
                },
                claim_idle: settings.claim_idle,
                max_deliveries: settings.max_deliveries,
                retry,
                judge,
                unasked: Mutex::new(Sparing::new(Instant::now())),
                dedup_window: settings.dedup_window,
                ignore: settings.ignore.clone().into(),
                soon: Notify::new(),
                counts: Counts::default(),
                turned: Turned::default(),
                doubt: Doubt::default(),
                patience: settings.claim_idle.min(settings.heartbeat_ttl) / 3,
                answers: answers.clone(),
            });
            shared.push(lane.clone());
            let (lane, events) = Lane::new(lane, triggered, noted.clone());
            prepared.push(Prepared {
                lane,
                events,
                committer,
            });
        }
        Ok(Self {
            shared,
            prepared,
            triggers,
            answers: answers.clone(),
            router,
            changes: Some(changes),
            outcomes,
            ending: ending.clone(),
        })
    }

    /// Fences older processes of this name, then starts every lane.
    pub(super) async fn start(&mut self, supervisor: &Supervisor) -> Result<Running, BusError> {
        for prepared in &mut self.prepared {
            prepared.committer.start().await?;
        }
        let started = self.prepared.drain(..).map(|prepared| {
            let Prepared {
                lane,
                events,
                committer,
            } = prepared;
            let Ending { drain, stop } = self.ending.clone();
            // They were made before the bus could be joined, perhaps long ago.
            lane.shared().turned.now();
            let supervisor = supervisor.clone();
            AbortOnDropHandle::new(tokio::spawn(async move {
                let name = format!("lane {}", lane.name());
                let shared = lane.shared().clone();
                let run = lane.run(events, committer, drain.clone(), stop);
                let ended = supervisor.run(&name, &drain, run).await.flatten();
                shared.turned.over();
                shared.doubt.end();
                ended
            }))
        });
        Ok(Running(started.collect()))
    }

    /// Has the lanes begin with what the gone hold: it is older than all that a first read brings.
    pub(super) async fn begin_with_the_gone(
        &self,
        process: &Process,
        instances: &Instances,
    ) -> Result<(), CoordinationError> {
        let mut connection = process.connector.pooled().await?;
        let gone = gone_holders(&mut connection, instances, &self.shared).await?;
        let others = gone.into_iter().filter(|id| *id != process.instance);
        let gone: BTreeSet<String> = others.collect();
        if !gone.is_empty() {
            self.triggers.send(&Trigger::Gone(gone));
        }
        Ok(())
    }

    /// What the parts of each lane share.
    pub(super) fn shared(&self) -> &[Arc<Shared>] {
        &self.shared
    }

    /// When the server answered: the keeper notes it, the lanes judge by it.
    pub(super) fn answers(&self) -> &Answers {
        &self.answers
    }

    /// The handlers.
    pub(super) fn router(&self) -> &Arc<Router> {
        &self.router
    }

    /// Makes lanes look for entries.
    pub(super) fn triggers(&self) -> Triggers {
        self.triggers.clone()
    }

    /// The outcomes of events, for whoever keeps them first.
    pub(super) fn take_outcomes(&mut self) -> Option<OutcomesReceiver> {
        self.outcomes.take()
    }

    /// The circuits that open and close, for who announces them first.
    pub(super) fn take_changes(&mut self) -> Option<mpsc::UnboundedReceiver<CircuitChange>> {
        self.changes.take()
    }

    /// The event types that this worker has handlers for.
    pub(super) fn capabilities(&self) -> Vec<String> {
        let kinds = self.router.routes().map(|route| route.kind.clone());
        kinds.filter(|kind| kind != NUDGE).collect()
    }

    /// What there is to say of each of these handlers.
    pub(super) fn methods(&self, handler_timeout: Duration) -> Vec<(String, Method)> {
        let routes = self.router.routes().filter(|route| route.kind != NUDGE);
        routes
            .map(|route| (route.kind.clone(), describe::method(route, handler_timeout)))
            .collect()
    }

    /// The streams that are read.
    pub(super) fn streams(&self) -> Vec<&str> {
        let routes = self.shared.iter().flat_map(|lane| lane.routes.iter());
        routes.map(|route| route.events.as_str()).collect()
    }

    /// The streams of their dead letters.
    pub(super) fn dead(&self) -> Vec<String> {
        let routes = self.shared.iter().flat_map(|lane| lane.routes.iter());
        routes.map(|route| route.dead.clone()).collect()
    }

    /// Entries that were read and not settled.
    pub(super) fn in_flight(&self) -> usize {
        self.shared.iter().map(|lane| lane.inflight.len()).sum()
    }

    /// What happened so far.
    pub(super) fn counts(&self) -> Totals {
        let mut totals = Totals::default();
        for lane in &self.shared {
            let counts = &lane.counts;
            totals.committed += counts.committed.load(Ordering::Relaxed);
            totals.fenced += counts.fenced.load(Ordering::Relaxed);
            totals.cancelled += counts.cancelled.load(Ordering::Relaxed);
            totals.taken += counts.taken.load(Ordering::Relaxed);
            totals.expired += counts.expired.load(Ordering::Relaxed);
            totals.ignored += counts.ignored.load(Ordering::Relaxed);
            totals.repeats += counts.repeats.load(Ordering::Relaxed);
        }
        totals
    }
}

/// What happened in all lanes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    committed: u64,
    fenced: u64,
    cancelled: u64,
    taken: u64,
    expired: u64,
    ignored: u64,
    repeats: u64,
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            committed,
            fenced,
            cancelled,
            taken,
            expired,
            ignored,
            repeats,
        } = self;
        write!(
            f,
            "{committed} committed, {taken} taken over, {fenced} outcomes discarded, {cancelled} cancelled, {expired} past their deadline, {ignored} ignored, {repeats} added before"
        )
    }
}
