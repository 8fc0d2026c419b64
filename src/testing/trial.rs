//! A handler, an event, and what surrounds them.

use super::run::Ended;
use super::server::Server;
use crate::connect::clock::{local_now, whole_ms};
use crate::connect::connector::Connector;
use crate::coordination::limits::RateLimits;
use crate::handler::assembly::Surroundings;
use crate::handler::context::{Context, Process, States};
use crate::handler::fence::Fenced;
use crate::handler::function::{Encoded, Handler, encode};
use crate::handler::policy::Policy;
use crate::handler::router::{Registration, Route, Router};
use crate::protocol::error::HandlerError;
use crate::protocol::event::{Entry, EntryId, Event};
use crate::protocol::keys;
use crate::settings::{RedisUrl, Settings};
use crate::streams::commit::Receipt;
use crate::worker::settle::{self, Scene};
use futures_util::FutureExt;
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// The type of the event, unless another one is given.
pub(super) const KIND: &str = "test.run";
/// Nobody listens there.
const NOWHERE: &str = "redis://127.0.0.1:1";
/// Connections that a handler may have at a time.
const POOL: usize = 4;

type Moment = Pin<Box<dyn Future<Output = ()> + Send>>;
/// Names and values of an event.
type Fields = Vec<(&'static str, Vec<u8>)>;

/// An event, and what surrounds a run on it. With a handler it is run when it is awaited; without one it
/// gives a [`Context`].
#[must_use = "it is run when it is awaited"]
pub struct Trial<H = ()> {
    handler: H,
    kind: String,
    fields: Fields,
    settings: Settings,
    states: States,
    cancel: Option<Moment>,
    drain: Option<Moment>,
}

impl<H> fmt::Debug for Trial<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Trial({})", self.kind)
    }
}

/// A trial of a handler on a payload. The event is of the type `test.run`, on its first attempt, unless
/// something else is said.
///
/// # Panics
/// If the payload cannot be encoded.
#[track_caller]
pub fn run<H, P, R, W>(handler: H, payload: &(impl Serialize + ?Sized)) -> Trial<Registration>
where
    H: Handler<P, R, W>,
    P: DeserializeOwned + JsonSchema + Send + 'static,
    R: Serialize + JsonSchema + 'static,
{
    event(payload).handled_by(Registration::new(KIND, handler, Policy::new()))
}

/// An event with a payload and nobody who handles it: for a [`Context`], or for a handler that is registered
/// elsewhere.
///
/// # Panics
/// If the payload cannot be encoded.
#[track_caller]
pub fn event(payload: &(impl Serialize + ?Sized)) -> Trial {
    let data = match encode(payload) {
        Ok(data) => data,
        Err(error) => panic!("the payload: {error}"),
    };
    Trial {
        handler: (),
        kind: KIND.to_owned(),
        fields: vec![("data", data)],
        settings: Settings {
            id: "test".into(),
            redis_url: RedisUrl::new(NOWHERE),
            ..Settings::default()
        },
        states: States::default(),
        cancel: None,
        drain: None,
    }
}

impl<H> Trial<H> {
    fn field(mut self, name: &'static str, value: impl Into<Vec<u8>>) -> Self {
        self.fields.retain(|(known, _)| *known != name);
        self.fields.push((name, value.into()));
        self
    }

    /// The event's type.
    pub fn kind(mut self, kind: impl Into<String>) -> Self {
        self.kind = kind.into();
        self
    }

    /// The event's id; its entry's id if none is given.
    pub fn id(self, id: impl Into<String>) -> Self {
        self.field("id", id.into())
    }

    /// Who published it.
    pub fn source(self, source: impl Into<String>) -> Self {
        self.field("source", source.into())
    }

    /// Its ordering and partition key.
    pub fn subject(self, subject: impl Into<String>) -> Self {
        self.field("subject", subject.into())
    }

    /// Which try this is; the first one is 1.
    pub fn attempt(self, attempt: u32) -> Self {
        self.field("attempt", attempt.to_string())
    }

    /// The event is worth nothing any more after so long.
    pub fn deadline(self, within: Duration) -> Self {
        let at = local_now().saturating_add(whole_ms(within));
        self.field("deadline", at.to_string())
    }

    /// A value that handlers get by its type, as from the worker's builder.
    pub fn state<S: Send + Sync + 'static>(mut self, state: S) -> Self {
        self.states.insert(state);
        self
    }

    /// A server for what the handler asks [`Context::redis`] for. Without one it gets no connection.
    pub fn server(mut self, server: &Server) -> Self {
        self.settings.redis_url = RedisUrl::new(server.url());
        self
    }

    /// Other settings of the worker, their server and instance id included.
    pub fn settings(mut self, settings: Settings) -> Self {
        self.settings = settings;
        self
    }

    /// Has somebody else run the event.
    pub fn handled_by(self, registration: Registration) -> Trial<Registration> {
        Trial {
            handler: registration,
            kind: self.kind,
            fields: self.fields,
            settings: self.settings,
            states: self.states,
            cancel: self.cancel,
            drain: self.drain,
        }
    }

    /// The context of a run on the event, for functions that handlers call.
    ///
    /// # Panics
    /// If the event or the settings are not what the protocol allows.
    #[track_caller]
    pub fn context(self) -> Context {
        self.begin().1
    }

    /// Its settings, and the context of a run.
    #[track_caller]
    fn begin(self) -> (Settings, Context) {
        let (settings, process) = surroundings(self.settings, self.states);
        let context = context(&settings, &process, &self.kind, self.fields, 0);
        (settings, context)
    }

    /// Its settings.
    pub(super) fn into_settings(self) -> Settings {
        self.settings
    }

    /// Its type and its fields.
    pub(super) fn into_event(self) -> (String, Fields) {
        (self.kind, self.fields)
    }
}

/// The settings, and the process that they make.
#[track_caller]
pub(super) fn surroundings(mut settings: Settings, states: States) -> (Settings, Arc<Process>) {
    if settings.id.is_empty() {
        settings.id = "test".into();
    }
    match process(&settings, states) {
        Ok(process) => (settings, Arc::new(process)),
        Err(error) => panic!("the settings: {error}"),
    }
}

/// The context of a run on an event of that type with these fields, whose entry has that number.
#[track_caller]
pub(super) fn context(
    settings: &Settings,
    process: &Arc<Process>,
    kind: &str,
    fields: Fields,
    number: u64,
) -> Context {
    let mut words = vec![b"type".to_vec(), kind.as_bytes().to_vec()];
    for (name, value) in fields {
        words.extend([name.as_bytes().to_vec(), value]);
    }
    let entry = Entry::new(EntryId { ms: 1, seq: number }, words);
    let stream = process.keys.events(keys::domain_of(kind), 0);
    match Event::parse(entry, &settings.limits(), &process.keys, &stream) {
        Ok(event) => Context::new(event, process.clone()),
        Err(malformed) => panic!("the event: {}", malformed.message),
    }
}

fn process(
    settings: &Settings,
    states: States,
) -> Result<Process, Box<dyn std::error::Error + Send + Sync>> {
    settings.check()?;
    Ok(Process {
        instance: settings.id.clone(),
        keys: settings.keys()?,
        connector: Connector::of(settings, POOL)?,
        payload: settings.limits().payload,
        states,
        router: Default::default(),
        draining: Default::default(),
        progress: Default::default(),
        telemetry: None,
    })
}

impl Trial<Registration> {
    /// How the handler is run. A rate is counted on a [`server`](Trial::server).
    pub fn policy(mut self, policy: Policy) -> Self {
        self.handler.policy = policy;
        self
    }

    /// Cancels the run, as when it loses its lease, at the moment when that future ends: at once, once the
    /// handler said something, after a while.
    pub fn cancel_when(mut self, moment: impl Future<Output = ()> + Send + 'static) -> Self {
        self.cancel = Some(Box::pin(moment));
        self
    }

    /// Has the worker shut down at the moment when that future ends.
    pub fn drain_when(mut self, moment: impl Future<Output = ()> + Send + 'static) -> Self {
        self.drain = Some(Box::pin(moment));
        self
    }

    #[track_caller]
    fn start(mut self) -> impl Future<Output = Ended> + Send {
        let (cancel, drain) = (self.cancel.take(), self.drain.take());
        let registration = Registration {
            kind: self.kind.clone(),
            ..self.handler.clone()
        };
        let (settings, context) = self.begin();
        let route = route(registration, &settings, &context);
        async move {
            let draining = context.draining();
            context.keeps_progress();
            let moments = futures_util::future::join(
                at(cancel, context.cancellation().clone()),
                at(drain, draining),
            );
            let run = Fenced::start(|| route.start(context.clone()));
            let run = run.within(&route.kind, route.timeout());
            let result = tokio::select! {
                biased;
                (never, _) = moments => match never {},
                result = run => result,
            };
            settled(&context, &route, result)
        }
    }
}

/// The handler as a worker runs it.
#[track_caller]
pub(super) fn route(
    registration: Registration,
    settings: &Settings,
    context: &Context,
) -> Arc<Route> {
    let process = context.process();
    let kind = registration.kind.clone();
    let surroundings = Surroundings {
        process: process.clone(),
        handler_timeout: settings.handler_timeout,
        limits: RateLimits::new(process.connector.clone(), process.keys.clone()),
        circuits: None,
    };
    let router = match Router::new(vec![registration], settings.into(), &surroundings) {
        Ok(router) => Arc::new(router),
        Err(error) => panic!("the event: {error}"),
    };
    // The process is this trial's own.
    process.router.set(router.clone()).ok();
    process.draining.set(CancellationToken::new()).ok();
    match router.find(&kind) {
        Some(route) => route.clone(),
        None => unreachable!("the router has this handler only"),
    }
}

/// Cancels something at a moment, and does not end.
async fn at(moment: Option<Moment>, token: CancellationToken) -> Infallible {
    if let Some(moment) = moment {
        moment.await;
        token.cancel();
    }
    std::future::pending().await
}

/// What a worker writes after a run, as the trial's own instance.
pub(super) fn settled(
    context: &Context,
    route: &Route,
    result: Result<Encoded, HandlerError>,
) -> Ended {
    let result = result.and_then(|result| context.within_limits("the result", result));
    let event = context.event();
    let stream = context.keys().events(event.domain(), 0);
    let scene = Scene {
        receipt: Receipt {
            stream: 0,
            entry: event.entry_id(),
            deliveries: context.deliveries(),
            claims: 0,
            since: Instant::now(),
        },
        stream: &stream,
        instance: context.instance(),
        firsts: None,
    };
    let publications = context.take_outbox();
    let settlement = match &result {
        Ok(data) => settle::success(
            scene,
            event,
            data.clone(),
            publications,
            route.policy.silent,
        ),
        Err(error) => settle::failure(scene, event, error, &route.retry()),
    };
    Ended::new(result, settlement, context.kept_progress())
}

impl IntoFuture for Trial<Registration> {
    type Output = Ended;
    type IntoFuture = Pin<Box<dyn Future<Output = Ended> + Send>>;

    #[track_caller]
    fn into_future(self) -> Self::IntoFuture {
        self.start().boxed()
    }
}
