//! What a worker is made of.

use super::limiting;
use super::vital::Vital;
use super::{RunError, Worker};
use crate::builtin::Services;
use crate::builtin::pipe::Pipe;
use crate::builtin::services::Configured;
use crate::builtin::system::batch_process::Runner;
use crate::builtin::system::quorum_vote::counting::PLACES;
use crate::connect::connector::Connector;
use crate::connect::error::BusError;
use crate::connect::silence::Answers;
use crate::coordination::ballots::Ballots;
use crate::coordination::batches::Batches as Held;
use crate::coordination::batches::leases::Leases;
use crate::coordination::catalog::Catalog;
use crate::coordination::flow::Flow;
use crate::coordination::instances::Instances;
use crate::coordination::own_report::OwnReport;
use crate::coordination::patterns::PatternStore;
use crate::coordination::policies::Policies;
use crate::coordination::repairs::Repairs;
use crate::coordination::schedules::Schedules;
use crate::coordination::scripts;
use crate::coordination::tasks::Tasks;
use crate::coordination::view::View;
use crate::handler::batch::{BatchHandler, Batches};
use crate::handler::context::{Process, States};
use crate::handler::function::Handler;
use crate::handler::policy::{Policy, PolicyError};
use crate::handler::router::Registration;
use crate::protocol::keys::{self, LEDGER_GROUP, NameError};
use crate::settings::{RedisUrl, SettingError, Settings};
use crate::streams::cancel::Canceller;
use crate::telemetry::{self, Telemetry};
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::HashSet;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Connections that handlers and coordination share.
const POOL: usize = 16;

/// Why a worker cannot be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// A name that the protocol does not allow.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A setting that is out of range; the message names it, its value and what would do.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// A handler's policy that makes no sense.
    #[error("the policy of {kind}: {error}")]
    Policy {
        /// The event type of the handler.
        kind: String,
        /// Which part, its value and what would do.
        error: PolicyError,
    },
    /// Two handlers of one event type. The built-in ones count.
    #[error("{kind} has two handlers: only one of them would run")]
    TwoHandlers {
        /// The event type.
        kind: String,
    },
    /// A handler takes state that the worker was not given.
    #[error("the handler of {kind} takes state of type {state}: add .state(…) to the builder")]
    NoState {
        /// The event type of the handler.
        kind: String,
        /// The type of the state.
        state: &'static str,
    },
    /// The URL is not valid, or the pool cannot be made.
    #[error(transparent)]
    Bus(#[from] BusError),
}

/// Collects what a worker is made of; see [`Worker::builder`].
#[derive(Debug, Default)]
pub struct Builder {
    settings: Settings,
    redis: Option<RedisUrl>,
    ignored: Vec<String>,
    handlers: Vec<Registration>,
    states: States,
}

impl Builder {
    /// Replaces all settings, except for what [`redis`](Builder::redis) and [`ignore`](Builder::ignore) say.
    #[must_use]
    pub fn settings(mut self, settings: Settings) -> Self {
        self.settings = settings;
        self
    }

    /// Where Redis is.
    #[must_use]
    pub fn redis(mut self, url: impl Into<String>) -> Self {
        self.redis = Some(RedisUrl::new(url));
        self
    }

    /// A type that nobody needs to handle, such as `image.resized`, or those of a whole domain, `image.*`: beside
    /// those of [`Settings::ignore`].
    #[must_use]
    pub fn ignore(mut self, pattern: impl Into<String>) -> Self {
        self.ignored.push(pattern.into());
        self
    }

    /// Adds a handler for events of that type, with the default policy.
    #[must_use]
    pub fn handler<H, P, R, W>(self, kind: impl Into<String>, handler: H) -> Self
    where
        H: Handler<P, R, W>,
        P: DeserializeOwned + JsonSchema + Send + 'static,
        R: Serialize + JsonSchema + 'static,
    {
        self.handler_with(kind, handler, Policy::new())
    }

    /// Adds a handler for events of that type, run as the policy says.
    #[must_use]
    pub fn handler_with<H, P, R, W>(
        self,
        kind: impl Into<String>,
        handler: H,
        policy: Policy,
    ) -> Self
    where
        H: Handler<P, R, W>,
        P: DeserializeOwned + JsonSchema + Send + 'static,
        R: Serialize + JsonSchema + 'static,
    {
        self.register(Registration::new(kind, handler, policy))
    }

    /// Adds a handler that takes many events of that type at once: what would cost the most for each, such as a
    /// transaction, is had once for all.
    ///
    /// Each event keeps an outcome, attempts and a dead letter of its own. A time-out, a panic and an error instead of
    /// outcomes are every event's. An event that may have killed its worker runs alone.
    ///
    /// ```no_run
    /// use convoke::sqlx::{PgPool, QueryBuilder};
    /// use convoke::{Batch, Batches, HandlerError, Worker};
    /// use std::time::Duration;
    ///
    /// async fn insert(
    ///     batch: Batch,
    ///     rows: Vec<i64>,
    /// ) -> Result<Vec<Result<(), HandlerError>>, HandlerError> {
    ///     let pool = batch.state::<PgPool>()?;
    ///     // Those that an earlier run has inserted are not among the new ones.
    ///     batch
    ///         .once(pool, async |transaction, new| {
    ///             let mut insert = QueryBuilder::new("INSERT INTO measured (value) ");
    ///             insert.push_values(&new, |mut row, at| _ = row.push_bind(rows[*at]));
    ///             insert.build().execute(transaction).await?;
    ///             Ok(new.iter().map(|_| Ok(())).collect())
    ///         })
    ///         .await
    /// }
    ///
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let pool = PgPool::connect("postgres://localhost/shop").await?;
    /// let batches = Batches::of(500).within(Duration::from_millis(10));
    /// Worker::builder().batch_handler("row.insert", insert, batches).state(pool).run().await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn batch_handler<H, P, R>(
        self,
        kind: impl Into<String>,
        handler: H,
        batches: Batches,
    ) -> Self
    where
        H: BatchHandler<P, R>,
        P: DeserializeOwned + JsonSchema + Send + 'static,
        R: Serialize + JsonSchema + 'static,
    {
        self.batch_handler_with(kind, handler, batches, Policy::new())
    }

    /// The same, run as the policy says. `ordered` is [`Batches::by_subject`]; `concurrency` bounds the batches that run
    /// at a time, which are 4 otherwise. A rate limit, a circuit, a cache and layers decide event by event: a batch
    /// handler cannot have them.
    #[must_use]
    pub fn batch_handler_with<H, P, R>(
        self,
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
        self.register(Registration::batch(kind, handler, batches, policy))
    }

    /// Adds a handler that was registered elsewhere.
    #[must_use]
    pub fn register(mut self, registration: Registration) -> Self {
        self.handlers.push(registration);
        self
    }

    /// Adds a value that handlers get by its type, as an argument ([`State`](crate::State)) or from
    /// [`Context::state`](crate::Context::state). One of the same type is replaced.
    #[must_use]
    pub fn state<S: Send + Sync + 'static>(mut self, state: S) -> Self {
        self.states.insert(state);
        self
    }

    /// A worker with these handlers and the built-in ones. Connects nothing yet.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub fn build(self) -> Result<Worker, BuildError> {
        let Self {
            mut settings,
            redis,
            ignored,
            handlers,
            states,
        } = self;
        settings.ignore.extend(ignored);
        if let Some(url) = redis {
            settings.redis_url = url;
        }
        if settings.id.is_empty() {
            settings.id = invented_id();
        }
        settings.check()?;
        let built_in = crate::builtin::registrations().into_iter();
        let piped = settings.pipe.iter();
        let pipes: Vec<Pipe> = piped
            .map(|(kind, pipe)| Pipe::new(kind, pipe, settings.max_payload))
            .collect();
        let piped = pipes.iter().map(Pipe::registration);
        let mut handlers: Vec<Registration> = built_in.chain(handlers).chain(piped).collect();
        limiting::begin(&mut handlers, &settings)?;
        let mut kinds = HashSet::new();
        for handler in &handlers {
            let kind = &handler.kind;
            keys::check_event_type(kind)?;
            if !kinds.insert(kind.as_str()) {
                return Err(BuildError::TwoHandlers { kind: kind.clone() });
            }
            let lots = handler.endpoint.lots();
            let checked = handler.policy.check().and_then(|()| match lots {
                Some(lots) => handler.policy.check_of_batches(&lots.batches),
                None => Ok(()),
            });
            checked.map_err(|error| BuildError::Policy {
                kind: kind.clone(),
                error,
            })?;
        }
        let answers = Answers::new(settings.heartbeat_ttl);
        let telemetry = Telemetry::new(&telemetry::Options {
            path: &settings.telemetry_file,
            sample: settings.telemetry_sample,
            size: settings.telemetry_size,
            instance: &settings.id,
            group: &settings.group,
            namespace: &settings.namespace,
        });
        let parts = Parts {
            vital: Vital::new(&settings.id, settings.heartbeat_ttl, &answers),
            settings,
            handlers,
            pipes,
            states,
            answers,
            telemetry,
        };
        parts.assemble()
    }

    /// Builds the worker and runs it as [`Worker::run`] does.
    ///
    /// # Errors
    /// See [`RunError`]; what cannot be built is [`RunError::Build`].
    pub async fn run(self) -> Result<(), RunError> {
        self.build()?.run().await
    }
}

/// A worker without what depends on where its URL leads.
struct Parts {
    settings: Settings,
    handlers: Vec<Registration>,
    pipes: Vec<Pipe>,
    states: States,
    answers: Answers,
    vital: Vital,
    telemetry: Option<Telemetry>,
}

impl Worker {
    /// The same toward there; it must not have begun anything.
    pub(super) fn toward(self, redis_url: RedisUrl) -> Result<Self, BuildError> {
        let parts = Parts {
            settings: Settings {
                redis_url,
                ..self.settings
            },
            handlers: self.handlers,
            pipes: self.pipes,
            states: self.process.states.clone(),
            answers: self.answers,
            vital: self.vital,
            telemetry: self.process.telemetry.clone(),
        };
        parts.assemble()
    }
}

impl Parts {
    /// The worker. Connects nothing.
    fn assemble(self) -> Result<Worker, BuildError> {
        let Self {
            settings,
            handlers,
            pipes,
            mut states,
            answers,
            vital,
            telemetry,
        } = self;
        let keys = settings.keys()?;
        let connector = Connector::of(&settings, POOL)?.loading(scripts::called_by_others());
        // Handlers get the one that speaks for events: what an event asks for is not this worker's own word.
        let asked = Instances::new(connector.clone(), keys.clone());
        let name = uuid::Uuid::now_v7().simple().to_string();
        let instances = Instances::of_process(connector.clone(), keys.clone(), &name);
        let tasks = Tasks::new(connector.clone(), keys.clone())
            .of_process(&name)
            .max_payload(settings.max_payload);
        let (own_report, leases) = (OwnReport::default(), Leases::default());
        let catalog = Catalog::new(connector.clone(), keys.clone());
        let patterns = PatternStore::new(connector.clone(), keys.clone(), settings.patterns);
        let policies = Policies::new(connector.clone(), keys.clone());
        let (group, of_ledger) = (settings.group.as_str(), LEDGER_GROUP);
        let runs = (leases.clone(), answers.clone());
        states.insert(Services {
            instances: asked,
            tasks: tasks.clone(),
            batches: Held::new(connector.clone(), keys.clone()),
            runner: Runner::new(connector.clone(), keys.clone(), &settings, runs.0, runs.1)?,
            ballots: Ballots::new(connector.clone(), keys.clone()),
            view: View::new(connector.clone(), keys.clone()),
            flow: Flow::new(connector.clone(), keys.clone(), group, of_ledger),
            catalog: catalog.clone(),
            own_report: own_report.clone(),
            patterns: patterns.clone(),
            policies: policies.clone(),
            schedules: Schedules::new(connector.clone(), keys.clone()),
            repairs: Repairs::new(connector.clone(), keys.clone()),
            canceller: Canceller::new(connector.clone(), keys.clone(), &settings),
            nudged: Default::default(),
            arbitration: Semaphore::new(PLACES),
            configured: Configured::new(&settings),
        });
        for handler in &handlers {
            let wanted = handler.endpoint.wants();
            if let Some(lacks) = wanted.iter().find(|wanted| !states.has(wanted)) {
                return Err(BuildError::NoState {
                    kind: handler.kind.clone(),
                    state: lacks.name(),
                });
            }
        }
        let process = Arc::new(Process {
            instance: settings.id.clone(),
            keys,
            connector,
            payload: settings.limits().payload,
            states,
            router: Default::default(),
            draining: Default::default(),
            progress: Default::default(),
            telemetry,
        });
        Ok(Worker {
            settings,
            handlers,
            pipes,
            process,
            name,
            answers,
            instances,
            tasks,
            own_report,
            patterns,
            policies,
            leases,
            catalog,
            vital,
        })
    }
}

/// `<host>-<8 hex digits>`: readable in a list, and no other process's.
fn invented_id() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name: String = host
        .trim()
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
        .take(64)
        .collect();
    let name = if name.is_empty() { "worker" } else { &name };
    format!("{name}-{:08x}", fastrand::u32(..))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handler::context::Context;
    use crate::handler::state::State;
    use crate::protocol::error::HandlerError;

    async fn handle(_: Context, _: ()) -> Result<(), HandlerError> {
        Ok(())
    }

    #[test]
    fn nobody_handles_a_domain_that_is_called_like_a_stream_of_the_bus() {
        let refused = Worker::builder().handler("inbox.open", handle).build();
        let refused = refused.expect_err("a domain that there is not");
        let said = refused.to_string();
        assert!(
            said.contains("a domain cannot be called \"inbox\""),
            "{said}"
        );
    }

    #[test]
    fn a_type_has_one_handler() {
        let twice = Worker::builder()
            .handler("a.b", handle)
            .handler("a.b", handle);
        for (builder, kind) in [
            (twice, "a.b"),
            (
                Worker::builder().handler("system.ping", handle),
                "system.ping",
            ),
        ] {
            let said = builder.build().expect_err("two handlers").to_string();
            assert!(said.starts_with(kind), "{said}");
        }
    }

    struct Prices(u64);
    struct Names(Vec<String>);

    async fn both(
        context: Context,
        n: usize,
        names: State<Names>,
        prices: State<Prices>,
    ) -> Result<String, HandlerError> {
        assert_eq!(context.state::<Prices>()?.0, prices.0);
        Ok(format!("{} {}", names.0[n], prices.0))
    }

    #[tokio::test]
    async fn the_state_that_a_handler_takes_must_be_there() {
        let builder = || Worker::builder().handler("a.b", both);
        let missing = builder().state(Names(Vec::new())).build();
        let said = missing.expect_err("no prices").to_string();
        assert!(said.contains("a.b") && said.contains("Prices"), "{said}");
        let worker = builder().state(Names(Vec::new())).state(Prices(7)).build();
        worker.expect("all that it takes");
    }

    #[tokio::test]
    async fn settings_leave_the_url_as_it_was_given() {
        let builder = Worker::builder()
            .redis("redis://a")
            .settings(Settings::default());
        let worker = builder.build().expect("a worker");
        assert_eq!(worker.settings.redis_url.expose(), "redis://a");
    }
}
