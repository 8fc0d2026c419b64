//! What a handler knows of its event and may do besides returning a result.

use crate::connect::clock::local_now;
use crate::connect::connector::{Connector, Pooled};
use crate::connect::epoch::Epoch;
use crate::connect::error::Reaction;
use crate::handler::fence::drop_fenced;
use crate::handler::function::{Encoded, encode};
use crate::handler::progress::{ProgressChannel, Told};
use crate::handler::router::Router;
use crate::handler::state::StateType;
use crate::handler::threads::Holds;
use crate::mutex::locked;
use crate::protocol::error::{Code, HandlerError};
use crate::protocol::event::{CAUSE, Event};
use crate::protocol::json;
use crate::protocol::keys::{self, Keys};
use crate::protocol::msgpack::{self, PayloadLimits};
use crate::protocol::trace::TraceContext;
use crate::streams::commit::{MAX_PUBLICATIONS, Publication};
use crate::telemetry::Telemetry;
use serde::Serialize;
use std::any::{Any, TypeId, type_name};
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// How long an event waits whose run was given no connection.
const AWAY: Duration = Duration::from_millis(500);

/// How long a run has to end by itself once its event was cancelled.
const CLEANS_UP: Duration = Duration::from_secs(2);

/// State by type: what a worker was built with and its handlers share.
#[derive(Clone, Default)]
pub struct States(HashMap<TypeId, Arc<dyn Any + Send + Sync>>);

impl States {
    /// Adds a value; one of the same type is replaced.
    pub fn insert<S: Send + Sync + 'static>(&mut self, state: S) {
        self.0.insert(TypeId::of::<S>(), Arc::new(state));
    }

    fn get<S: Send + Sync + 'static>(&self) -> Option<&S> {
        self.0.get(&TypeId::of::<S>())?.downcast_ref()
    }

    pub(crate) fn share<S: Send + Sync + 'static>(&self) -> Option<Arc<S>> {
        self.0.get(&TypeId::of::<S>())?.clone().downcast().ok()
    }

    /// Whether there is one of that type.
    pub(crate) fn has(&self, wanted: &StateType) -> bool {
        self.0.contains_key(&wanted.id())
    }
}

impl Drop for States {
    fn drop(&mut self) {
        for (_, state) in self.0.drain() {
            drop_fenced(state);
        }
    }
}

impl fmt::Debug for States {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "States({})", self.0.len())
    }
}

/// What all handlers of one process share.
#[derive(Debug)]
pub struct Process {
    /// The instance id.
    pub instance: String,
    /// The key names.
    pub keys: Keys,
    /// Where connections come from.
    pub connector: Connector,
    /// Bounds on payloads, those of results and of what handlers publish among them.
    pub payload: PayloadLimits,
    /// The state that the worker was built with.
    pub states: States,
    /// Its handlers, once they are all known.
    pub router: OnceLock<Arc<Router>>,
    /// Is cancelled when the worker is to shut down, once it runs.
    pub draining: OnceLock<CancellationToken>,
    /// The way to whoever writes what runs say about their progress.
    pub progress: ProgressChannel,
    /// Who reports runs, where telemetry is wanted.
    #[doc(hidden)]
    pub telemetry: Option<Telemetry>,
}

/// What a handler knows of its event and may do besides returning a result. Cheap to clone.
#[derive(Clone)]
pub struct Context(
    Arc<Call>,
    /// The cancellation of one call of the handler, where that ends before the run's.
    Option<CancellationToken>,
);

struct Call {
    /// Whether its own SQL took effect, in this run or in an earlier one, or is about to.
    effect: AtomicBool,
    /// The history of the server in which the run began.
    epoch: Epoch,
    /// Whether the handler asked for a connection, and may have written there.
    wrote: AtomicBool,
    event: Event,
    process: Arc<Process>,
    inbox: bool,
    /// What the handler published; `None` once the run has ended.
    outbox: Mutex<Option<Vec<Publication>>>,
    cancelled: OnceLock<CancellationToken>,
    /// Why the event is cancelled.
    void: OnceLock<Arc<str>>,
    /// Is told when it is.
    voided: Notify,
    /// What the cache answers, found before the run began.
    answer: OnceLock<Vec<u8>>,
    deliveries: OnceLock<u32>,
    told: Told,
    trace: OnceLock<Option<TraceContext>>,
    holds: Holds,
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("type", &self.0.event.kind())
            .field("entry", &self.0.event.entry_id())
            .finish_non_exhaustive()
    }
}

impl Context {
    /// The context of one run of a handler.
    #[doc(hidden)]
    pub fn new(event: Event, process: Arc<Process>) -> Self {
        Self::arrived(event, process, false)
    }

    /// The context of one run of a handler, on an event that arrived in this instance's inbox or not.
    pub(crate) fn arrived(event: Event, process: Arc<Process>, inbox: bool) -> Self {
        let call = Call {
            effect: AtomicBool::new(false),
            epoch: process.connector.epoch(),
            wrote: AtomicBool::new(false),
            event,
            process,
            inbox,
            outbox: Mutex::new(Some(Vec::new())),
            cancelled: OnceLock::new(),
            void: OnceLock::new(),
            voided: Notify::new(),
            answer: OnceLock::new(),
            deliveries: OnceLock::new(),
            told: Told::default(),
            trace: OnceLock::new(),
            holds: Holds::default(),
        };
        Self(Arc::new(call), None)
    }

    /// The event as it arrived.
    pub fn event(&self) -> &Event {
        &self.0.event
    }

    /// The id of the instance that runs the handler.
    pub fn instance(&self) -> &str {
        &self.0.process.instance
    }

    /// Whether the event arrived in this instance's inbox, where publishers may not write.
    pub(crate) fn is_from_inbox(&self) -> bool {
        self.0.inbox
    }

    /// The key names.
    pub fn keys(&self) -> &Keys {
        &self.0.process.keys
    }

    /// The state of that type that the worker was built with.
    ///
    /// # Errors
    /// `internal`, not retryable, if the worker has no such state. A handler that takes [`State`](crate::State) as an
    /// argument finds that out when its worker is built.
    pub fn state<S: Send + Sync + 'static>(&self) -> Result<&S, HandlerError> {
        self.0.process.states.get().ok_or_else(lacks::<S>)
    }

    /// The same, to be kept.
    pub(crate) fn shared<S: Send + Sync + 'static>(&self) -> Result<Arc<S>, HandlerError> {
        self.0.process.states.share().ok_or_else(lacks::<S>)
    }

    /// A pooled connection to Redis, for a few commands that do not block.
    ///
    /// What is written there is gone if the server fails over to a replica that did not have it yet, or
    /// restarts without it. So this run's outcome is only committed in the history of the server in which
    /// it began; after a failover or a restart the event runs again.
    ///
    /// # Errors
    /// `unavailable` if none can be had in time. A run that fails with it spends no attempt: it comes
    /// again a moment later.
    pub async fn redis(&self) -> Result<Pooled, HandlerError> {
        self.writes();
        let connection = self.0.process.connector.pooled().await;
        connection.map_err(|error| match error.reaction() {
            Reaction::GiveUp => HandlerError::unavailable(error.to_string()),
            // The run has not begun to do anything there.
            _ => HandlerError::later(AWAY, error.to_string()),
        })
    }

    /// Publishes an event when, and only if, this run is committed.
    ///
    /// It carries this event's trace context on, this instance as its `source`, and this event's id as its `causationid`.
    ///
    /// # Errors
    /// `internal`, not retryable, if `kind` is no event type, the payload cannot be encoded or is over a
    /// limit, or the run has ended.
    pub fn publish<P: Serialize>(&self, kind: &str, payload: &P) -> Result<(), HandlerError> {
        self.publish_encoded(kind, encode(payload)?, None)
    }

    /// Publishes what is encoded, under that subject or this event's.
    pub(crate) fn publish_encoded(
        &self,
        kind: &str,
        data: Encoded,
        subject: Option<&str>,
    ) -> Result<(), HandlerError> {
        let data = self.within_limits(format_args!("publish {kind}"), data)?;
        keys::check_event_type(kind)
            .map_err(|error| HandlerError::internal(error.to_string()).permanent())?;
        let mut fields: Vec<Vec<u8>> = vec![
            b"type".to_vec(),
            kind.into(),
            b"data".to_vec(),
            data,
            b"source".to_vec(),
            self.instance().into(),
        ];
        fields.extend([CAUSE.into(), self.0.event.id().into_bytes()]);
        let mut partition_key = None;
        if let Some(subject) = subject.or(self.0.event.subject()) {
            fields.extend([b"subject".to_vec(), subject.into()]);
            partition_key = Some(subject.to_owned());
        }
        if let Some(trace) = self.trace() {
            // Storing it is reported as a span of its own.
            let trace = match self.told_by() {
                Some(_) => trace.child(),
                None => trace,
            };
            fields.extend([b"traceparent".to_vec(), trace.to_string().into_bytes()]);
        }
        let domain = keys::domain_of(kind);
        let keys = self.keys();
        let partition_key = partition_key.unwrap_or_else(|| self.0.event.id());
        let stream = keys.events(domain, keys.partition_of(domain, &partition_key));
        self.publish_raw(Publication { stream, fields })
    }

    /// What a run gives out, if it is within the limits that hold for payloads.
    pub(crate) fn within_limits(
        &self,
        what: impl fmt::Display,
        data: Encoded,
    ) -> Result<Encoded, HandlerError> {
        match msgpack::scan(&data, &self.0.process.payload) {
            Ok(()) => Ok(data),
            Err(error) => Err(HandlerError::internal(format!("{what}: {error}")).permanent()),
        }
    }

    /// A result whose reply is within the limits too, where that is JSON.
    pub(crate) fn answerable(&self, data: Encoded) -> Result<Encoded, HandlerError> {
        let most = self.0.process.payload.bytes;
        let as_json = self.event().is_json() && self.event().reply_to().is_some();
        let length = match as_json.then(|| json::to_json(&data)) {
            Some(Ok(value)) => value.to_string().len(),
            _ => 0,
        };
        match length > most {
            false => Ok(data),
            true => Err(HandlerError::internal(format!(
                "the result: {length} bytes of JSON are over the limit of {most}"
            ))
            .permanent()),
        }
    }

    /// The history of the server in which the run began.
    pub(crate) fn epoch(&self) -> Epoch {
        self.0.epoch
    }

    /// Notes that this run, or a part of it, writes to the server by itself.
    pub(crate) fn writes(&self) {
        self.0.wrote.store(true, Ordering::Release);
    }

    /// Whether the handler asked for a connection, and may have written there.
    pub(crate) fn wrote(&self) -> bool {
        self.0.wrote.load(Ordering::Acquire)
    }

    /// Whether this event's own SQL took effect, or may in this run.
    pub(crate) fn effect(&self) -> &AtomicBool {
        &self.0.effect
    }

    /// Adds an entry to any stream when, and only if, this run is committed.
    ///
    /// # Errors
    /// `internal`, not retryable, if the run has ended.
    pub(crate) fn publish_raw(&self, publication: Publication) -> Result<(), HandlerError> {
        match &mut *self.outbox() {
            Some(outbox) if outbox.len() >= MAX_PUBLICATIONS => {
                let message = format!(
                    "publish: one run publishes at most {MAX_PUBLICATIONS} events, since all are stored \
                     in one step: split the work"
                );
                return Err(HandlerError::new(Code::ResourceExhausted, message).permanent());
            }
            Some(outbox) => outbox.push(publication),
            None => {
                let message = "publish: the run has ended, so nothing can be committed with it: \
                     publish before the handler returns";
                return Err(HandlerError::internal(message).permanent());
            }
        }
        Ok(())
    }

    fn outbox(&self) -> MutexGuard<'_, Option<Vec<Publication>>> {
        locked(&self.0.outbox)
    }

    /// Notes what the cache answers.
    pub(crate) fn answered(&self, result: Vec<u8>) {
        self.0.answer.set(result).ok();
    }

    /// What the cache answers, where that was found before the run began.
    pub(crate) fn answer(&self) -> Option<Vec<u8>> {
        self.0.answer.get().cloned()
    }

    /// Whether the handler published something.
    pub(crate) fn has_published(&self) -> bool {
        self.outbox()
            .as_ref()
            .is_some_and(|outbox| !outbox.is_empty())
    }

    /// Looks at each event that the handler published.
    pub(crate) fn look_at_outbox(&self, look: impl FnMut(&Publication)) {
        self.outbox().iter().flatten().for_each(look);
    }

    /// Takes what the handler published; the committer stores it. The run has ended.
    #[doc(hidden)]
    pub fn take_outbox(&self) -> Vec<Publication> {
        self.outbox().take().unwrap_or_default()
    }

    /// How often the entry was delivered: 1 unless it was taken over from someone who never
    /// committed it.
    pub fn deliveries(&self) -> u32 {
        self.0.deliveries.get().copied().unwrap_or(1)
    }

    /// Says how often the entry was delivered. Before the handler runs.
    pub(crate) fn delivered(self, deliveries: u32) -> Self {
        self.0.deliveries.set(deliveries).ok();
        self
    }

    /// Is cancelled when the run cannot be committed any more (its lease was lost, or its event was
    /// [cancelled](Self::cancel_reason)), or when the worker's drain time is over. A handler that runs long watches it.
    ///
    /// Where the handler blocks ([`Policy::blocking`](crate::Policy::blocking)) it is cancelled too when the run's time
    /// is over and when the worker is dropped: nothing else reaches a thread that blocks.
    pub fn cancellation(&self) -> &CancellationToken {
        let run = || self.0.cancelled.get_or_init(CancellationToken::new);
        self.1.as_ref().unwrap_or_else(run)
    }

    /// Why the event is cancelled, and by whom, if somebody did that while it runs: then [`cancellation`](Self::cancellation)
    /// is cancelled too, and nothing of this run is committed. A run that does not end by itself within 2 s is dropped, unless it is a batch's.
    pub fn cancel_reason(&self) -> Option<&str> {
        self.0.void.get().map(|why| &**why)
    }

    /// Notes why the event is cancelled. Before its cancellation is told.
    pub(crate) fn void(&self, why: &Arc<str>) {
        if self.0.void.set(why.clone()).is_ok() {
            self.0.voided.notify_one();
        }
    }

    /// Ends when the event was cancelled and the run had time to end by itself; never otherwise. For who runs it.
    pub(crate) async fn given_up(&self) -> HandlerError {
        self.0.voided.notified().await;
        tokio::time::sleep(CLEANS_UP).await;
        HandlerError::new(
            Code::Cancelled,
            self.cancel_reason().unwrap_or_default().to_owned(),
        )
    }

    /// The same run's context for one call of the handler, whose cancellation may come before the run's.
    pub(super) fn of_a_call(&self) -> Self {
        Self(self.0.clone(), Some(self.cancellation().child_token()))
    }

    /// The threads that the run holds.
    pub(super) fn holds(&self) -> &Holds {
        &self.0.holds
    }

    /// Is cancelled when the worker is to shut down. A handler that runs for as long as there is work
    /// stops between two parts of it.
    pub fn draining(&self) -> CancellationToken {
        self.0.process.draining.get().cloned().unwrap_or_default()
    }

    /// How far the run is, as it told last.
    pub(super) fn told(&self) -> &Told {
        &self.0.told
    }

    /// Whether it is the same run's.
    pub(crate) fn is(&self, other: &Context) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// What all handlers of this process share.
    pub(crate) fn process(&self) -> &Arc<Process> {
        &self.0.process
    }

    /// Has this run be cancelled with another one. Before anyone asked for its cancellation.
    pub(crate) fn cancelled_with(&self, parent: &Context) {
        self.0
            .cancelled
            .set(parent.cancellation().child_token())
            .ok();
    }

    /// The run's own span in the trace that the event came with. Where it came with none it begins one if the worker
    /// reports its runs (see [`telemetry_file`](crate::settings::Settings::telemetry_file)), else it is `None`.
    pub fn trace(&self) -> Option<TraceContext> {
        *self.0.trace.get_or_init(|| match self.trace_parent() {
            Some(parent) => Some(parent.child()),
            None => Some(self.0.process.telemetry.as_ref()?.root(&self.0.event)),
        })
    }

    /// The span of whoever published the event.
    pub(crate) fn trace_parent(&self) -> Option<TraceContext> {
        TraceContext::parse(self.0.event.traceparent()?)
    }

    /// Who reports this run, and its span, where it is sampled.
    pub(crate) fn told_by(&self) -> Option<(&Telemetry, TraceContext)> {
        let telemetry = self.0.process.telemetry.as_ref()?;
        let own = self.trace().filter(TraceContext::is_sampled)?;
        Some((telemetry, own))
    }

    /// How long until the event's deadline by the local clock; `None` without one.
    pub fn time_left(&self) -> Option<Duration> {
        let deadline = self.0.event.deadline()?;
        Some(Duration::from_millis(deadline.saturating_sub(local_now())))
    }
}

#[cold]
fn lacks<S>() -> HandlerError {
    let name = type_name::<S>();
    HandlerError::internal(format!(
        "the worker was built without state of type {name}: add .state(…) to its builder"
    ))
    .permanent()
}
