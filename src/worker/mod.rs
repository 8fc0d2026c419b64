//! A worker: joins the bus and the registry, and keeps both going.
//!
//! [`Worker::builder`] or [`Worker::from_env`] collect its handlers and states; `run` of the [`Builder`] works until SIGTERM or SIGINT,
//! then finishes what runs. Inside:
//!
//! | part | what it does | where it runs |
//! |---|---|---|
//! | lane *control* | runs `system` and `task` events | a task |
//! | lane *tasks* | runs what arrives in the inbox: the tasks assigned to this instance | a task |
//! | lane *data* | runs the events of all other domains that have a handler | a task |
//! | keeper | pulses, watches peers, renews leases, sweeps, promotes what is due, trims | a thread of its own, so that a handler that blocks its thread does not make the worker look dead |
//! | ledger | writes what happened into the database, where one is set | tasks |
//! | pulling | takes tasks into the inbox, where workers do so by themselves | a task |
//! | partitions | follows how many partitions there are, and begins with new ones | a task |
//! | patterns | looks at this instance's own services, where system events are answered so | a task |
//! | watcher | reads the broadcast and has lanes take over what the gone held | the keeper's thread |

mod activity;
mod admission;
#[doc(hidden)]
pub mod builder;
mod by_node;
mod drain;
mod handover;
mod inflight;
mod join;
mod keeper;
mod lane;
mod lane_list;
mod lane_plans;
mod lanes;
#[cfg(any(feature = "ledger-sqlite", feature = "ledger-postgres"))]
mod ledger;
#[cfg(not(any(feature = "ledger-sqlite", feature = "ledger-postgres")))]
#[path = "no_ledger.rs"]
mod ledger;
mod limiting;
#[cfg(feature = "logs")]
#[doc(hidden)]
pub mod logs;
mod making;
mod mortal;
mod orphans;
mod outcomes;
mod owned;
mod partitions;
mod patterns;
mod pausing;
mod pool;
mod pulling;
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

use crate::builtin::pipe::Pipe;
use crate::connect::silence::Answers;
use crate::coordination::batches::leases::Leases;
use crate::coordination::catalog::Catalog;
use crate::coordination::instances::Instances;
use crate::coordination::own_report::OwnReport;
use crate::coordination::patterns::PatternStore;
use crate::coordination::policies::Policies;
use crate::coordination::tasks::Tasks;
use crate::handler::context::Process;
use crate::handler::router::Registration;
use crate::settings::Settings;
use crate::telemetry::Telemetry;
use keeper::{Begun, Keeper};
use lanes::Lanes;
use ledger::Ledger;
use report::Reporter;
use signals::Signals;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll};
use std::time::SystemTime;
use supervisor::Failure;
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
    pipes: Vec<Pipe>,
    process: Arc<Process>,
    /// The name that no other process has.
    name: String,
    answers: Answers,
    /// Speaks for this worker itself.
    instances: Instances,
    tasks: Tasks,
    own_report: OwnReport,
    patterns: PatternStore,
    policies: Policies,
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

/// How a worker ends.
#[derive(Clone, Debug, Default)]
struct Ending {
    /// Read no more; finish what runs.
    drain: CancellationToken,
    /// Finish nothing.
    stop: CancellationToken,
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
    /// A server that cannot be reached is tried again, for good; a plain URL may lead to a node of a cluster. What happens is told by `tracing`. Where the
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
        let (_probed, since) = (self.probed(), SystemTime::now());
        let telemetry = self.process.telemetry.clone();
        let _telling = telemetry.as_ref().map(Telemetry::start).transpose()?;
        match Box::pin(self.found(&ending)).await? {
            Some(found) => Box::pin(found.work_there(ending, since)).await,
            None => Ok(()),
        }
    }

    /// The same where its URL leads.
    async fn work_there(self, ending: Ending, since: SystemTime) -> Result<(), RunError> {
        let telemetry = self.process.telemetry.as_ref();
        // A worker runs once.
        self.process.draining.set(ending.drain.clone()).ok();
        let mut lanes = Lanes::new(
            &self.settings,
            &self.handlers,
            &self.process,
            &self.instances,
            &self.answers,
            &self.policies,
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
        let reporter = Arc::new(Reporter::new(&lanes, &self.name, &self.patterns));
        // The process, which the reporter holds on to, holds this one.
        let own = Arc::downgrade(&reporter);
        let instances = self.instances.clone();
        self.own_report
            .comes_from(self.id(), instances, move || Some(own.upgrade()?.report()));
        let begun = Begun {
            registering,
            registered: begin.registered,
            pulsed: begin.pulsed,
            methods,
            told,
            since,
        };
        let supervisor = begin.supervisor;
        let last = reporter.clone();
        let started =
            Keeper::start(&self, &mut lanes, reporter, begun, &supervisor).and_then(|keeper| {
                let ledger = Ledger::start(
                    &self,
                    lanes.dead(),
                    lanes.take_outcomes(),
                    &ending.drain,
                    &supervisor,
                )?;
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
        self.vital.works(lanes.list());
        tracing::info!(
            instance = self.id(),
            incarnation,
            streams = lanes.streams().join(" "),
            handlers = self.handlers.len(),
            redis = %self.settings.redis_url,
            "working"
        );
        for pipe in &self.pipes {
            pipe.start();
        }
        let leads = keeper.leads();
        let ttl = self.settings.heartbeat_ttl;
        let _partitions =
            partitions::start(&mut lanes, &begin.running, ttl, &ending.drain, &supervisor);
        let _patterns = patterns::start(&self, &ending.drain, &supervisor, leads);
        let _pulling = pulling::start(&self, &ending.drain, &supervisor);
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
        self.end_pipes(&ending).await;
        if let Some(ledger) = ledger {
            ledger.ended().await;
        }
        if let Some(telemetry) = telemetry {
            telemetry.measured(keeper::measures::measures(&last, since));
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
}
