//! A worker: joins the bus and the registry, and keeps both going.
//!
//! | part | what it does | where it runs |
//! |---|---|---|
//! | lane *control* | runs `system` and `task` events | a task |
//! | lane *tasks* | runs what arrives in the inbox: the tasks assigned to this instance | a task |
//! | lane *data* | runs the events of all other domains that have a handler | a task |
//! | keeper | pulses, watches peers, renews leases, sweeps, promotes what is due, trims | a thread of its own, so that a handler that blocks its thread does not make the worker look dead |
//! | ledger | writes what happened into the database, where one is set | tasks |
//! | patterns | looks at this instance's own services, where system events are answered so | a task |
//! | watcher | reads the broadcast and has lanes take over what the gone held | the keeper's thread |

mod activity;
mod admission;
#[doc(hidden)]
pub mod builder;
mod handover;
mod inflight;
mod keeper;
mod lane;
mod lanes;
#[cfg(any(feature = "ledger-sqlite", feature = "ledger-postgres"))]
mod ledger;
#[cfg(not(any(feature = "ledger-sqlite", feature = "ledger-postgres")))]
#[path = "no_ledger.rs"]
mod ledger;
#[cfg(feature = "logs")]
#[doc(hidden)]
pub mod logs;
mod mortal;
mod orphans;
mod patterns;
mod reader;
mod report;
pub(crate) mod settle;
mod shared;
mod signals;
mod sparing;
mod supervisor;
mod takeover;
mod unbegun;
pub mod vital;
mod watch;

use crate::connect::backoff::Backoff;
use crate::connect::error::Reaction;
use crate::connect::silence::Answers;
use crate::coordination::batches::leases::Leases;
use crate::coordination::catalog::{Catalog, Method};
use crate::coordination::instances::instance::Registering;
use crate::coordination::instances::{Instances, Registered};
use crate::coordination::own_report::OwnReport;
use crate::coordination::patterns::Patterns;
use crate::coordination::tasks::Tasks;
use crate::handler::context::Process;
use crate::handler::router::Registration;
use crate::settings::Settings;
use crate::streams::claim;
use crate::streams::commit::Committer;
use keeper::{Begun, Keeper};
use lanes::{Lanes, Running};
use ledger::Ledger;
use report::Reporter;
use signals::Signals;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll};
use std::time::Duration;
use supervisor::{Failure, Supervisor};
use tokio_util::sync::{CancellationToken, DropGuard};
use vital::probe::Socket;
use vital::{Notifier, Vital};

pub use crate::connect::error::BusError;
pub use crate::coordination::error::CoordinationError;
pub use builder::{BuildError, Builder};
#[cfg(feature = "failpoints")]
pub use mortal::{Death, kill, parts};
pub use supervisor::Why;

/// A worker that is ready to run.
#[derive(Debug)]
pub struct Worker {
    settings: Settings,
    handlers: Vec<Registration>,
    process: Arc<Process>,
    /// The name that no other process has.
    name: String,
    answers: Answers,
    /// Speaks for this worker itself.
    instances: Instances,
    tasks: Tasks,
    own_report: OwnReport,
    patterns: Patterns,
    leases: Leases,
    catalog: Catalog,
    vital: Vital,
}

/// Why a worker ended that was not told to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The worker was not built: see [`Builder::run`].
    #[error(transparent)]
    Build(#[from] BuildError),
    /// Redis cannot be used: it refused the credentials, or it is too old.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The registration was refused.
    #[error("the instance cannot be registered: {0}")]
    Registration(#[source] CoordinationError),
    /// The system gave no thread or no signal handler.
    #[error("the system refused what the worker needs: {0}")]
    System(#[from] io::Error),
    /// The ledger cannot be kept.
    #[cfg(any(feature = "ledger-sqlite", feature = "ledger-postgres"))]
    #[error(transparent)]
    Ledger(#[from] crate::ledger::LedgerError),
    /// A part of the worker failed. It drained what it could.
    #[error("{part} of the worker {why}")]
    Part {
        /// Which one: a lane, the keeper, one of its duties, a part of the ledger.
        part: String,
        /// What became of it.
        why: Why,
    },
}

impl RunError {
    /// Whether it may come right by itself: the same again, later.
    fn passes(&self) -> bool {
        match self {
            RunError::Bus(error) | RunError::Registration(CoordinationError::Bus(error)) => {
                error.reaction() != Reaction::GiveUp
            }
            RunError::Registration(error) => matches!(error, CoordinationError::Contended { .. }),
            _ => false,
        }
    }
}

/// How a worker ends.
#[derive(Clone, Debug, Default)]
struct Ending {
    /// Read no more; finish what runs.
    drain: CancellationToken,
    /// Finish nothing.
    stop: CancellationToken,
}

/// What a worker began.
struct Begin {
    registered: Registered,
    running: Running,
    supervisor: Supervisor,
}

/// The future in which a worker lives: dropped, it tells all parts to end before it drops them.
struct Life {
    _stop: DropGuard,
    work: Pin<Box<dyn Future<Output = Result<(), RunError>> + Send>>,
}

impl Future for Life {
    type Output = Result<(), RunError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Self::Output> {
        self.work.as_mut().poll(cx)
    }
}

/// How long a lane may take to stop that was told to; a handler that holds its thread holds it too.
const STOPS: Duration = Duration::from_secs(5);

impl Worker {
    /// Starts collecting what a worker is made of.
    ///
    /// ```no_run
    /// use convoke::{Context, HandlerError, Worker};
    /// use schemars::JsonSchema;
    /// use serde::{Deserialize, Serialize};
    ///
    /// #[derive(Deserialize, JsonSchema)]
    /// struct Resize { width: u32 }
    /// #[derive(Serialize, JsonSchema)]
    /// struct Resized { pixels: u32 }
    ///
    /// async fn resize(_: Context, job: Resize) -> Result<Resized, HandlerError> {
    ///     Ok(Resized { pixels: job.width * job.width })
    /// }
    ///
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// Worker::builder()
    ///     .redis("redis://127.0.0.1")
    ///     .handler("image.resize", resize)
    ///     .run()
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// A worker by the settings of the file that `CONVOKE_CONFIG` names and of the environment: see
    /// [`Settings::load`].
    ///
    /// # Errors
    /// See [`LoadError`](crate::settings::LoadError).
    #[cfg(feature = "config")]
    pub fn from_env() -> Result<Builder, crate::settings::LoadError> {
        Ok(Self::builder().settings(Settings::load()?))
    }

    /// The instance id, which is also the consumer's name.
    pub fn id(&self) -> &str {
        &self.process.instance
    }

    /// Runs until SIGTERM, SIGINT or SIGHUP, then drains; a second signal ends it without draining. The
    /// worker lives in this future, as in that of [`Worker::run_until`].
    ///
    /// A server that cannot be reached is tried again, for good. What happens is told by `tracing`. Where the
    /// program has no subscriber, such as that of `tracing_subscriber::fmt::init()`, and none of `log`, the
    /// feature `logs` writes it to stderr: as `CONVOKE_LOG` says (`info`, or a filter such as
    /// `convoke=debug`), and as JSON if `CONVOKE_LOG_FORMAT` is `json`. A program that takes logs begins so before this.
    ///
    /// # Errors
    /// See [`RunError`].
    pub async fn run(self) -> Result<(), RunError> {
        #[cfg(feature = "logs")]
        let _logs = logs::unless_taken();
        let ending = Ending::default();
        let signals = Signals::listen()?.end(ending.clone());
        let _systemd = Notifier::start(&self.vital)?;
        tokio::select! {
            ended = self.live(ending) => ended,
            () = signals => Ok(()),
            () = orphans::reap() => Ok(()),
        }
    }

    /// Runs until the token is cancelled, then drains. The worker lives in this future: dropped, it ends
    /// without draining, and what it held is taken over.
    ///
    /// # Errors
    /// See [`RunError`].
    pub async fn run_until(self, drain: CancellationToken) -> Result<(), RunError> {
        let stop = CancellationToken::new();
        // Others may drain by the same token.
        let drain = drain.child_token();
        self.live(Ending { drain, stop }).await
    }

    fn live(self, ending: Ending) -> Life {
        Life {
            _stop: ending.stop.clone().drop_guard(),
            work: Box::pin(self.work(ending)),
        }
    }

    async fn work(self, ending: Ending) -> Result<(), RunError> {
        let _probed = self.probed();
        // A worker runs once.
        self.process.draining.set(ending.drain.clone()).ok();
        let mut lanes = Lanes::new(
            &self.settings,
            &self.handlers,
            &self.process,
            &self.instances,
            &self.answers,
            &ending,
        )?;
        let methods = lanes.methods(self.settings.handler_timeout);
        let registering = self.registering(&lanes);
        let told = self.process.progress.open();
        let Some(begin) = self
            .join(&mut lanes, &registering, &methods, &ending)
            .await?
        else {
            return Ok(());
        };
        let incarnation = begin.registered.incarnation;
        let reporter = Arc::new(Reporter::new(&lanes, &self.name));
        // The process, which the reporter holds on to, holds this one.
        let own = Arc::downgrade(&reporter);
        let instances = self.instances.clone();
        self.own_report
            .comes_from(self.id(), instances, move || Some(own.upgrade()?.report()));
        let begun = Begun {
            registering,
            registered: begin.registered,
            methods,
            told,
        };
        let supervisor = begin.supervisor.clone();
        let started =
            Keeper::start(&self, &mut lanes, reporter, begun, &supervisor).and_then(|keeper| {
                let ledger = Ledger::start(&self, lanes.dead(), &ending.drain, &supervisor)?;
                Ok((keeper, ledger))
            });
        let (keeper, ledger) = match started {
            Ok(started) => started,
            Err(error) => {
                ending.stop.cancel();
                begin.running.ended().await;
                self.unregister(incarnation).await;
                return Err(error);
            }
        };
        let lacks = self.process.connector.lacks();
        if !lacks.is_nothing() {
            tracing::warn!(redis = %self.settings.redis_url, "the server does not tell {lacks}: `convoke doctor` says which guarantees are weaker so");
        }
        self.vital.works(lanes.shared());
        tracing::info!(
            instance = self.id(),
            incarnation,
            streams = lanes.streams().join(" "),
            handlers = self.handlers.len(),
            redis = %self.settings.redis_url,
            "working"
        );
        let leads = keeper.leads();
        let _patterns = patterns::start(&self, &ending.drain, &supervisor, leads);
        let drained = self.until_drained(&lanes, begin.running, &ending, &supervisor);
        let hangs = async {
            keeper.hangs().await;
            supervisor.failed(keeper::NAME, Why::Hangs);
            std::future::pending().await
        };
        let committers = tokio::select! {
            committers = drained => committers,
            never = hangs => never,
        };
        if let Some(ledger) = ledger {
            ledger.ended().await;
        }
        keeper.stop(&self.instances, &supervisor).await;
        match supervisor.failure() {
            None => {
                self.leave(&lanes, committers).await;
                tracing::info!(instance = self.id(), counts = %lanes.counts(), progress_dropped = self.process.progress.dropped(), "stopped");
                Ok(())
            }
            Some(Failure { part, why }) => Err(RunError::Part {
                part: part.clone(),
                why: why.clone(),
            }),
        }
    }

    /// The socket that `convoke probe` asks, where one is wanted. A worker does its work without, too.
    fn probed(&self) -> Option<Socket> {
        if self.settings.runtime_dir.is_empty() {
            return None;
        }
        let directory = Path::new(&self.settings.runtime_dir);
        match Socket::open(directory, self.id(), &self.vital) {
            Ok(socket) => Some(socket),
            Err(error) => {
                tracing::warn!(directory = %directory.display(), %error, "nobody can probe this worker: its socket cannot be made; name another directory by runtime_dir");
                None
            }
        }
    }

    /// Joins registry and bus and starts the lanes, as soon as the bus can be joined; `None` if the
    /// worker is to end before that.
    async fn join(
        &self,
        lanes: &mut Lanes,
        registering: &Registering,
        methods: &[(String, Method)],
        ending: &Ending,
    ) -> Result<Option<Begin>, RunError> {
        let supervisor = Supervisor::new(self.id(), ending);
        let (mut backoff, mut incarnation) = (Backoff::default(), None);
        let given_up = loop {
            let begun = self.begin(lanes, registering, methods, &supervisor, &mut incarnation);
            match begun.await {
                Ok((registered, running)) => {
                    return Ok(Some(Begin {
                        registered,
                        running,
                        supervisor,
                    }));
                }
                Err(error) if !error.passes() => break Err(error),
                Err(error) => {
                    if !backoff.is_failing() {
                        tracing::warn!(redis = %self.settings.redis_url, %error, "the bus cannot be joined yet; trying again");
                    }
                    tokio::select! {
                        () = tokio::time::sleep(backoff.failed()) => {}
                        () = ending.drain.cancelled() => break Ok(None),
                    }
                }
            }
        };
        if let Some(incarnation) = incarnation {
            self.unregister(incarnation).await;
        }
        given_up
    }

    /// Takes the instance out of the active ones.
    async fn unregister(&self, incarnation: u64) {
        let id = self.id();
        if let Err(error) = self.instances.unregister(id, Some(incarnation)).await {
            tracing::warn!(instance = id, %error, "not unregistered; it will be declared lost");
        }
    }

    /// Joins registry and bus, as which incarnation, which is told as soon as it is registered; can be
    /// repeated.
    async fn begin(
        &self,
        lanes: &mut Lanes,
        registering: &Registering,
        methods: &[(String, Method)],
        supervisor: &Supervisor,
        as_which: &mut Option<u64>,
    ) -> Result<(Registered, Running), RunError> {
        self.process.connector.check_server().await?;
        // Before it is registered: whoever sees that it has a handler also sees what that one is.
        match self.catalog.publish(methods).await {
            Err(CoordinationError::Bus(error)) if error.reaction() != Reaction::GiveUp => {
                return Err(error.into());
            }
            Err(error) => {
                tracing::warn!(%error, "what the handlers are could not be published; trying again later");
            }
            Ok(()) => {}
        }
        let (group, kinds) = (&self.settings.group, &registering.capabilities);
        let reads = self.instances.reads(group, self.id(), kinds).await;
        reads.map_err(RunError::Registration)?;
        // What an older process of this id was at when it died would run here again, and kill this
        // one too if that was why.
        let left = self.tasks.release(self.id()).await;
        if left.map_err(RunError::Registration)? > 0 {
            tracing::warn!(
                instance = self.id(),
                "an older process of this id left tasks behind: they were assigned again"
            );
        }
        let registered = self.instances.register(registering).await;
        let registered = registered.map_err(RunError::Registration)?;
        *as_which = Some(registered.incarnation);
        if let Err(error) = self.patterns.refresh().await {
            tracing::debug!(%error, "which patterns were chosen is not known yet");
        }
        if !registered.new {
            tracing::warn!(
                instance = self.id(),
                "an instance of this id was alive already: this one takes its place"
            );
        }
        let gone = lanes.begin_with_the_gone(&self.process, &self.instances);
        match gone.await.map_err(RunError::Registration) {
            Err(error) if error.passes() => return Err(error),
            // The watcher looks for them again.
            Err(error) => tracing::debug!(%error, "who is gone and holds entries is not known"),
            Ok(()) => {}
        }
        Ok((registered, lanes.start(supervisor).await?))
    }

    fn registering(&self, lanes: &Lanes) -> Registering {
        let settings = &self.settings;
        Registering {
            id: settings.id.clone(),
            roles: settings.role.clone(),
            capacity: settings.capacity,
            capabilities: lanes.capabilities(),
            metadata: Vec::new(),
            ttl_ms: settings.heartbeat_ttl.as_millis() as u64,
            incarnation: None,
        }
    }

    /// Runs the lanes to their end, at most the drain time long once they were told to end. Their
    /// committers come back, where they are free.
    async fn until_drained(
        &self,
        lanes: &Lanes,
        running: Running,
        ending: &Ending,
        supervisor: &Supervisor,
    ) -> Vec<Committer> {
        let limit = async {
            ending.drain.cancelled().await;
            self.vital.drains();
            tracing::info!(
                instance = self.id(),
                in_flight = lanes.in_flight(),
                "draining"
            );
            let over = async {
                tokio::select! {
                    () = tokio::time::sleep(self.patience(supervisor)) => {}
                    () = ending.stop.cancelled() => {}
                }
            };
            let (_, ()) = tokio::join!(self.tasks.retire(self.id()), over);
            let left = lanes.in_flight();
            tracing::warn!(
                instance = self.id(),
                left,
                "not all finished in time; the others take over"
            );
            ending.stop.cancel();
            tokio::time::sleep(STOPS).await;
            tracing::error!(
                instance = self.id(),
                "a handler holds a thread; the worker ends without it"
            );
        };
        tokio::select! {
            committers = running.ended() => committers,
            () = limit => Vec::new(),
        }
    }

    /// How long draining may take. Without a keeper the instance is lost soon: it must be gone by then.
    fn patience(&self, supervisor: &Supervisor) -> Duration {
        let Settings {
            drain_timeout,
            heartbeat_ttl,
            ..
        } = self.settings;
        match supervisor.failure() {
            Some(failure) if failure.part == keeper::NAME => drain_timeout.min(heartbeat_ttl / 6),
            _ => drain_timeout,
        }
    }

    /// Removes what this consumer left behind on streams where nothing is pending with it.
    async fn leave(&self, lanes: &Lanes, committers: Vec<Committer>) {
        let left = async {
            let mut connection = self.process.connector.pooled().await?;
            let mut clean = true;
            for stream in lanes.streams() {
                clean &=
                    claim::forget(&mut connection, stream, &self.settings.group, self.id()).await?;
            }
            if clean {
                for committer in committers {
                    committer.finish().await?;
                }
            }
            Ok::<_, BusError>(())
        };
        if let Err(error) = left.await {
            tracing::warn!(instance = self.id(), %error, "the consumer was not removed");
        }
    }
}
