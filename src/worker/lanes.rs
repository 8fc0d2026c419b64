//! The lanes of a worker: which streams each reads, started and ended together.

use super::handover::NUDGE;
use super::keeper::describe;
use super::lane_list::LaneList;
use super::lane_plans;
use super::making::{DataLanes, Maker, Prepared, Running};
use super::outcomes::{Outcomes, OutcomesReceiver};
use super::pausing::Pausing;
use super::shared::Shared;
use super::supervisor::Supervisor;
use super::takeover::Trigger;
use super::watch::gone_holders;
use super::{Ending, RunError};
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
use crate::settings::Settings;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::mpsc;

/// Sends a trigger to every lane.
#[derive(Clone, Debug, Default)]
pub(super) struct Triggers(Arc<Mutex<Vec<mpsc::UnboundedSender<Trigger>>>>);

impl Triggers {
    /// One more lane: what it hears.
    pub(super) fn add(&self) -> mpsc::UnboundedReceiver<Trigger> {
        let (lane, triggered) = mpsc::unbounded_channel();
        locked(&self.0).push(lane);
        triggered
    }

    /// Has every lane look for what the trigger is about.
    pub(super) fn send(&self, trigger: &Trigger) {
        // A lane that ended takes nothing over any more.
        locked(&self.0).retain(|lane| lane.send(trigger.clone()).is_ok());
    }
}

/// The lanes of a worker.
pub(super) struct Lanes {
    list: LaneList,
    /// The lanes of the control plane that do not run yet.
    prepared: Vec<Prepared>,
    /// The lanes of the events of others, until somebody looks after them.
    data: Option<DataLanes>,
    triggers: Triggers,
    answers: Answers,
    router: Arc<Router>,
    changes: Option<mpsc::UnboundedReceiver<CircuitChange>>,
    outcomes: Option<OutcomesReceiver>,
    ending: Ending,
}

/// Connections on which rates are counted; none of them is made before the first is.
const ASKING: usize = 16;

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
        let maker = Maker {
            settings: settings.clone(),
            process: process.clone(),
            instances: instances.clone(),
            answers: answers.clone(),
            router: router.clone(),
            pausing,
            noted,
            ending: ending.clone(),
            list: LaneList::new(settings.concurrency),
            triggers: triggers.clone(),
            urgent: Arc::default(),
        };
        let control = lane_plans::of_control(settings, process);
        let prepared = control.map(|plan| maker.prepare(plan));
        Ok(Self {
            list: maker.list.clone(),
            prepared: prepared.into(),
            data: Some(DataLanes::new(maker)),
            triggers,
            answers: answers.clone(),
            router,
            changes: Some(changes),
            outcomes,
            ending: ending.clone(),
        })
    }

    /// Learns over how many partitions the domains are split, and makes the lanes that read them. Those of partitions that
    /// are to wait for others come later.
    pub(super) async fn split(&mut self) -> Result<(), BusError> {
        if let Some(data) = &mut self.data {
            data.learn().await?;
            data.prepare().await;
        }
        Ok(())
    }

    /// Fences older processes of this name, then starts every lane.
    pub(super) async fn start(&mut self, supervisor: &Supervisor) -> Result<Running, BusError> {
        for prepared in &mut self.prepared {
            prepared.committer.start().await?;
        }
        if let Some(data) = &mut self.data {
            data.fence().await?;
        }
        let running = Running::default();
        if let Some(data) = &mut self.data {
            data.run(&running, supervisor);
        }
        for prepared in self.prepared.drain(..) {
            prepared.run(&running, &self.ending, supervisor);
        }
        Ok(running)
    }

    /// Has the lanes begin with what the gone hold: it is older than all that a first read brings.
    pub(super) async fn begin_with_the_gone(
        &self,
        process: &Process,
        instances: &Instances,
    ) -> Result<(), CoordinationError> {
        let gone = gone_holders(&process.connector, instances, &self.list.now()).await?;
        let others = gone.into_iter().filter(|id| *id != process.instance);
        let gone: BTreeSet<String> = others.collect();
        if !gone.is_empty() {
            self.triggers.send(&Trigger::Gone(gone));
        }
        Ok(())
    }

    /// What the parts of each lane share.
    pub(super) fn shared(&self) -> Arc<[Arc<Shared>]> {
        self.list.now()
    }

    /// The same for who looks again and again.
    pub(super) fn list(&self) -> &LaneList {
        &self.list
    }

    /// The partitions that are read, for who looks after them first.
    pub(super) fn take_data(&mut self) -> Option<DataLanes> {
        self.data.take()
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
    pub(super) fn streams(&self) -> Vec<String> {
        let lanes = self.list.now();
        let routes = lanes.iter().flat_map(|lane| lane.routes.iter());
        routes.map(|route| route.events.clone()).collect()
    }

    /// The streams of their dead letters.
    pub(super) fn dead(&self) -> Vec<String> {
        let lanes = self.list.now();
        let routes = lanes.iter().flat_map(|lane| lane.routes.iter());
        routes.map(|route| route.dead.clone()).collect()
    }

    /// Entries that were read and not settled.
    pub(super) fn in_flight(&self) -> usize {
        self.list.now().iter().map(|lane| lane.inflight.len()).sum()
    }

    /// What happened so far.
    pub(super) fn counts(&self) -> Totals {
        let list = &self.list;
        Totals {
            committed: list.count(|counts| &counts.committed),
            fenced: list.count(|counts| &counts.fenced),
            cancelled: list.count(|counts| &counts.cancelled),
            taken: list.count(|counts| &counts.taken),
            expired: list.count(|counts| &counts.expired),
            ignored: list.count(|counts| &counts.ignored),
            repeats: list.count(|counts| &counts.repeats),
        }
    }
}

/// What happened in all lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
