//! From an event type to its handler.

use crate::coordination::policies::RunLimits;
use crate::handler::assembly::{self, Surroundings};
use crate::handler::batch::Lots;
use crate::handler::context::Context;
use crate::handler::function::{Endpoint, Handler, Run, Schemas};
use crate::handler::gate::Gate;
use crate::handler::gate::permits::{Bare, Permits};
use crate::handler::layers::circuit::Circuit;
use crate::handler::layers::instrument::Stats;
use crate::handler::limits::LiveLimits;
use crate::handler::pace::Pace;
use crate::handler::policy::{Policy, RetryPolicy};
use crate::handler::threads::Threads;
use crate::protocol::keys::{self, NameError};
use foldhash::fast::RandomState;
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// A handler as it was registered.
#[derive(Clone, Debug)]
pub struct Registration {
    /// The event type.
    pub kind: String,
    /// The handler.
    pub endpoint: Endpoint,
    /// How it is run.
    pub policy: Policy,
    /// What it takes and gives.
    pub schemas: Schemas,
}

impl Registration {
    /// A handler for events of that type, run as the policy says.
    pub fn new<H, P, R, W>(kind: impl Into<String>, handler: H, policy: Policy) -> Self
    where
        H: Handler<P, R, W>,
        P: DeserializeOwned + JsonSchema + Send + 'static,
        R: Serialize + JsonSchema + 'static,
    {
        Self {
            kind: kind.into(),
            endpoint: Endpoint::new(handler),
            policy,
            schemas: Schemas::of::<P, R>(),
        }
    }
}

/// A handler ready to run.
#[derive(Debug)]
pub struct Route {
    /// Which of the router's it is, counted from 0.
    pub index: usize,
    /// The event type.
    pub kind: String,
    /// How it is run.
    pub policy: Policy,
    /// What holds for its runs now.
    pub limits: Arc<LiveLimits>,
    /// What it takes and gives.
    pub schemas: Schemas,
    /// What it did so far.
    pub stats: Arc<Stats>,
    /// Its circuit, if its policy has one.
    pub circuit: Option<Arc<Circuit>>,
    /// The handler as it takes many events at once, if it does.
    pub lots: Option<Lots>,
    /// How long it holds its thread.
    pub pace: Pace,
    /// What its policy, or operators, ask for before a run begins. A batch handler has none.
    gate: Option<Arc<Gate>>,
    endpoint: Endpoint,
}

impl Route {
    /// Starts a run.
    pub fn start(&self, context: Context) -> Run {
        match self.gate() {
            None => self.endpoint.start(context),
            Some(gate) => gate.start(context),
        }
    }

    /// Starts a run as it is without a gate.
    pub fn start_bare(&self, context: Context) -> Run {
        self.endpoint.start(context)
    }

    /// The gate before its handler, if events have to enter one now.
    pub fn gate(&self) -> Option<&Arc<Gate>> {
        self.gate.as_ref().filter(|gate| gate.stands())
    }

    /// The gate by which an event entered.
    pub fn entered_gate(&self) -> Option<&Arc<Gate>> {
        self.gate.as_ref()
    }

    /// Its runs that go on, which operators may have all workers share. A batch handler counts none.
    pub fn permits(&self) -> Option<&Arc<Permits>> {
        Some(&self.gate.as_ref()?.permits)
    }

    /// When a failed run is tried again.
    pub fn retry(&self) -> RetryPolicy {
        self.limits.now().retry
    }

    /// How long a run may take, where that is not the gate's business.
    pub fn timeout(&self) -> Option<Duration> {
        match self.gate() {
            None => self.limits.now().timeout,
            Some(_) => None,
        }
    }

    /// Counts a run that goes on and has entered no gate, for those that will have to.
    pub fn counted(&self) -> Option<Bare> {
        Some(self.gate.as_ref()?.permits.bare())
    }

    /// Has its runs be limited so from now on, in the place of its own policy; whether that changes anything.
    pub fn ask(&self, asked: RunLimits) -> bool {
        let changes = self.limits.ask(asked);
        if changes && let Some(gate) = &self.gate {
            let now = self.limits.now();
            gate.permits.resize(now.concurrency);
            gate.permits.share(now.total);
        }
        changes
    }
}

/// All handlers of a process, by event type.
#[derive(Debug, Default)]
pub struct Router {
    routes: HashMap<Box<[u8]>, Arc<Route>, RandomState>,
}

impl Router {
    /// Puts the layers around each handler. A later registration of a type replaces an earlier one.
    ///
    /// # Errors
    /// A type that is no event type.
    pub fn new(
        registrations: Vec<Registration>,
        defaults: RetryPolicy,
        surroundings: &Surroundings,
    ) -> Result<Self, NameError> {
        let mut routes: HashMap<Box<[u8]>, Route, RandomState> = HashMap::default();
        let threads = Threads::default();
        for registration in registrations {
            let Registration {
                kind,
                endpoint,
                policy,
                schemas,
            } = registration;
            let mut policy = policy;
            policy.ordered |= endpoint.lots().is_some_and(|lots| lots.batches.by_subject);
            keys::check_event_type(&kind)?;
            let endpoint = match policy.blocking {
                true => endpoint.on(threads.clone()),
                false => endpoint,
            };
            let stats = Arc::new(Stats::default());
            let circuit = assembly::circuit_of(&kind, &policy, surroundings);
            let limits = assembly::limits_of(&policy, defaults, surroundings);
            let limits = Arc::new(LiveLimits::new(limits));
            let lots = endpoint.lots().cloned();
            let gate = match &lots {
                // What a policy of a batch handler may have is asked for where batches are made.
                Some(_) => None,
                None => Some(assembly::gate(
                    &kind,
                    &policy,
                    endpoint.clone(),
                    &stats,
                    circuit.as_ref(),
                    &limits,
                    surroundings,
                )),
            };
            let route = Route {
                index: 0,
                limits,
                kind: kind.clone(),
                policy,
                schemas,
                stats,
                circuit,
                gate,
                lots,
                pace: Pace::default(),
                endpoint,
            };
            routes.insert(kind.into_bytes().into_boxed_slice(), route);
        }
        let routes = routes.into_iter().enumerate();
        let routes =
            routes.map(|(index, (kind, route))| (kind, Arc::new(Route { index, ..route })));
        Ok(Self {
            routes: routes.collect(),
        })
    }

    /// The handler of a type.
    pub fn find(&self, kind: &str) -> Option<&Arc<Route>> {
        self.routes.get(kind.as_bytes())
    }

    /// All handlers, in no order.
    pub fn routes(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.routes.values()
    }
}
