//! Handlers that take many events at once.

use crate::connect::connector::Pooled;
use crate::handler::context::Context;
use crate::handler::fence::Kept;
use crate::handler::function::{Encoded, Endpoint, Run, Schemas, decoding, encode};
use crate::handler::policy::Policy;
use crate::handler::router::Registration;
use crate::handler::threads::{self, Ends, Threads};
use crate::mutex::locked;
use crate::protocol::error::HandlerError;
use futures_util::FutureExt;
use futures_util::future::ready;
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How the events of a batch handler are gathered.
///
/// ```
/// use convoke::Batches;
/// use std::time::Duration;
///
/// let batches = Batches::of(500).within(Duration::from_millis(10));
/// # let _ = batches;
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batches {
    pub(crate) most: usize,
    pub(crate) within: Duration,
    pub(crate) by_subject: bool,
}

impl Batches {
    /// At most this many events at a time, up to 10,000. A batch takes what is there, and waits for no more.
    ///
    /// An event that failed before runs in a batch of its own, so that one that makes a whole batch fail does so once.
    pub fn of(most: usize) -> Self {
        Self {
            most,
            within: Duration::ZERO,
            by_subject: false,
        }
    }

    /// A batch that is not full waits so long for more, from when its oldest event arrived; and no longer than half of
    /// the time that one of its events has left until its deadline.
    #[must_use]
    pub fn within(mut self, within: Duration) -> Self {
        self.within = within;
        self
    }

    /// The events of a batch have one subject, in order, and no two batches of a subject run at a time. Events without a
    /// subject have no order.
    ///
    /// In a domain with `order: "subject"` one event of a subject runs at a time, so each batch has one: leave this out
    /// there, and a batch has events of many subjects, one of each.
    #[must_use]
    pub fn by_subject(mut self) -> Self {
        self.by_subject = true;
        self
    }
}

/// A batch that runs: its events, and what they share. Cheap to clone.
#[derive(Clone)]
pub struct Batch(Arc<[Context]>);

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Batch({})", self.0.len())
    }
}

impl Batch {
    /// A batch of these events.
    #[doc(hidden)]
    pub fn new(events: Vec<Context>) -> Self {
        Self(events.into())
    }

    /// What there is of each event, in the order of the payloads: what one publishes there is stored with that event's
    /// outcome, and is dropped if it failed.
    pub fn events(&self) -> &[Context] {
        &self.0
    }

    /// The state of that type that the worker was built with.
    ///
    /// # Errors
    /// See [`Context::state`].
    pub fn state<S: Send + Sync + 'static>(&self) -> Result<&S, HandlerError> {
        self.one()?.state()
    }

    /// A pooled connection to Redis. The outcome of each event counts only in the history of the server in which the
    /// batch began, see [`Context::redis`].
    ///
    /// # Errors
    /// See [`Context::redis`].
    pub async fn redis(&self) -> Result<Pooled, HandlerError> {
        self.0.iter().for_each(Context::writes);
        self.one()?.redis().await
    }

    /// Any of them: a batch has at least one event.
    fn one(&self) -> Result<&Context, HandlerError> {
        let none = || HandlerError::internal("a batch without an event");
        self.0.first().ok_or_else(none)
    }
}

/// A batch handler: any `async fn(Batch, Vec<P>) -> Result<Vec<Result<R, HandlerError>>, HandlerError>`.
///
/// The payloads are those of the events that could be decoded; the outcomes are in their order. An error
/// instead of outcomes is that of every event; so is a wrong number of outcomes, a panic or a time-out. Each is
/// tried again in a batch of its own.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a batch handler",
    label = "not `async fn(Batch, Vec<P>) -> Result<Vec<Result<R, HandlerError>>, HandlerError>`",
    note = "P must implement Deserialize and JsonSchema, R must implement Serialize and JsonSchema",
    note = "its future must be Send: it holds nothing like an Rc or a MutexGuard over an .await"
)]
pub trait BatchHandler<P, R>: Send + Sync + 'static {
    /// Runs it on some events.
    fn call(
        &self,
        batch: Batch,
        payloads: Vec<P>,
    ) -> impl Future<Output = Result<Vec<Result<R, HandlerError>>, HandlerError>> + Send + 'static;
}

impl<F, Fut, P, R> BatchHandler<P, R> for F
where
    F: Fn(Batch, Vec<P>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Vec<Result<R, HandlerError>>, HandlerError>> + Send + 'static,
{
    fn call(
        &self,
        batch: Batch,
        payloads: Vec<P>,
    ) -> impl Future<Output = Result<Vec<Result<R, HandlerError>>, HandlerError>> + Send + 'static
    {
        self(batch, payloads)
    }
}

/// Where a run leaves the outcome of each event.
#[derive(Clone, Default)]
pub(crate) struct Outcomes(Arc<Mutex<Vec<Result<Encoded, HandlerError>>>>);

impl Outcomes {
    fn put(&self, outcomes: Vec<Result<Encoded, HandlerError>>) {
        *locked(&self.0) = outcomes;
    }

    /// The outcomes of that many events, whose run ended so.
    pub(crate) fn of(
        &self,
        events: usize,
        result: Result<Encoded, HandlerError>,
    ) -> Vec<Result<Encoded, HandlerError>> {
        match result {
            Ok(_) => std::mem::take(&mut *locked(&self.0)),
            Err(error) => vec![Err(error); events],
        }
    }
}

type Start = dyn Fn(Vec<Context>, Outcomes) -> Run + Send + Sync;

/// A batch handler whose types are erased.
#[derive(Clone)]
pub struct Lots {
    pub(crate) batches: Batches,
    start: Arc<Start>,
}

impl fmt::Debug for Lots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lots({:?})", self.batches)
    }
}

impl Lots {
    fn new<H, P, R>(handler: H, batches: Batches) -> Self
    where
        H: BatchHandler<P, R>,
        P: DeserializeOwned + JsonSchema + Send + 'static,
        R: Serialize + 'static,
    {
        let decode = decoding::<P>();
        let handler = Kept::new(handler);
        let start = move |events: Vec<Context>, outcomes: Outcomes| -> Run {
            let mut told = Vec::with_capacity(events.len());
            let (mut good, mut payloads) = (Vec::new(), Vec::new());
            for event in events {
                match decode(event.event().data()) {
                    Ok(payload) => {
                        told.push(None);
                        good.push(event);
                        payloads.push(payload);
                    }
                    Err(error) => told.push(Some(Err(error))),
                }
            }
            if good.is_empty() {
                outcomes.put(told.into_iter().flatten().collect());
                return Box::pin(ready(Ok(Vec::new())));
            }
            let count = good.len();
            let run = handler.call(Batch::new(good), payloads);
            Box::pin(run.map(move |ran| {
                let mut ran = each(count, ran).into_iter();
                let told = told.into_iter().filter_map(|told| match told {
                    None => ran.next(),
                    told => told,
                });
                outcomes.put(told.collect());
                Ok(Vec::new())
            }))
        };
        Self {
            batches,
            start: Arc::new(start),
        }
    }

    /// Starts a run on at least one event.
    pub(crate) fn start(&self, events: Vec<Context>, outcomes: Outcomes) -> Run {
        (self.start)(events, outcomes)
    }

    /// The same on threads that may block.
    pub(crate) fn on(self, threads: Threads) -> Self {
        let Self { batches, start } = self;
        let start = move |mut events: Vec<Context>, outcomes: Outcomes| -> Run {
            let ends = Ends::of(&mut events);
            let Some(first) = events.first().cloned() else {
                return start(events, outcomes);
            };
            let start = start.clone();
            threads::run(&threads, &first, ends, move || start(events, outcomes))
        };
        Self {
            batches,
            start: Arc::new(start),
        }
    }
}

/// The outcome of each of that many events.
fn each<R: Serialize>(
    events: usize,
    ran: Result<Vec<Result<R, HandlerError>>, HandlerError>,
) -> Vec<Result<Encoded, HandlerError>> {
    let outcomes = match ran {
        Ok(outcomes) => outcomes,
        Err(error) => return vec![Err(error); events],
    };
    if outcomes.len() != events {
        let message = format!(
            "the batch handler gave {} outcomes for {events} events: it must give one for each",
            outcomes.len()
        );
        return vec![Err(HandlerError::internal(message)); events];
    }
    let encoded = outcomes.into_iter().map(|outcome| encode(&outcome?));
    encoded.collect()
}

impl Registration {
    /// A handler that takes many events of that type at once.
    pub fn batch<H, P, R>(
        kind: impl Into<String>,
        handler: H,
        batches: Batches,
        policy: Policy,
    ) -> Self
    where
        H: BatchHandler<P, R>,
        P: DeserializeOwned + JsonSchema + Send + 'static,
        R: Serialize + JsonSchema + 'static,
    {
        let lots = Lots::new(handler, batches);
        let one = lots.clone();
        // Where only one is to be run: as a part of another run, in a trial.
        let endpoint = Endpoint::raw(move |context| {
            let outcomes = Outcomes::default();
            let run = one.start(vec![context], outcomes.clone());
            Box::pin(run.map(move |ran| {
                let lost = || HandlerError::internal("the batch handler gave no outcome");
                let mut outcome = outcomes.of(1, ran).into_iter();
                outcome.next().unwrap_or_else(|| Err(lost()))
            }))
        });
        Self {
            kind: kind.into(),
            endpoint: endpoint.with(lots),
            policy,
            schemas: Schemas::of::<P, R>(),
        }
    }
}
