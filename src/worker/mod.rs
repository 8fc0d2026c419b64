//! A worker: joins the bus and the registry, and keeps both going.
//!
//! | part | what it does | where it runs |
//! |---|---|---|
//! | lane *control* | runs `system` and `task` events | a task |
//! | lane *tasks* | runs what arrives in the inbox: the tasks assigned to this instance | a task |
//! | lane *data* | runs the events of all other domains that have a handler | a task |
//! | keeper | pulses, watches peers, renews leases, sweeps, promotes what is due, trims | a thread of its own, so that a handler that blocks its thread does not make the worker look dead |
//! | ledger | writes what happened into the database, where one is set | tasks |
//! | watcher | reads the broadcast and has lanes take over what the gone held | the keeper's thread |

mod activity;
pub mod builder;
mod handover;
mod inflight;
mod keeper;
mod lane;
mod lanes;
mod ledger;
mod reader;
mod report;
mod settle;
mod shared;
mod takeover;
mod watch;

use crate::bus::claim;
use crate::bus::commit::Committer;
use crate::bus::connect::reconnect_delay;
use crate::bus::error::{BusError, Reaction};
use crate::config::Settings;
use crate::coordination::catalog::{Catalog, Method};
use crate::coordination::error::CoordinationError;
use crate::coordination::instance::Registering;
use crate::coordination::instances::{Instances, Registered};
use crate::coordination::leases::Leases;
use crate::coordination::metrics::OwnReport;
use crate::coordination::tasks::Tasks;
use crate::registry::context::Process;
use crate::registry::router::Registration;
use builder::Builder;
use keeper::{Begun, Keeper};
use lanes::{Lanes, Running};
use ledger::Ledger;
use report::Reporter;
use std::io;
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A worker that is ready to run.
#[derive(Debug)]
pub struct Worker {
    settings: Settings,
    handlers: Vec<Registration>,
    process: Arc<Process>,
    instances: Instances,
    tasks: Tasks,
    own_report: OwnReport,
    leases: Leases,
    catalog: Catalog,
}

/// Why a worker ended that was not told to.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Redis can not be used: it refused the credentials, or it is too old.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The registration was refused.
    #[error("the instance can not be registered: {0}")]
    Registration(#[source] CoordinationError),
    /// The system gave no thread or no signal handler.
    #[error("the system refused what the worker needs: {0}")]
    System(#[from] io::Error),
    /// The ledger can not be kept.
    #[error(transparent)]
    Ledger(#[from] crate::ledger::LedgerError),
    /// A lane ended by itself.
    #[error("a lane of the worker failed")]
    Lane,
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
    /// let worker = Worker::builder()
    ///     .redis("redis://127.0.0.1")
    ///     .handler("image.resize", resize)
    ///     .build()?;
    /// worker.run().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The instance id, which is also the consumer's name.
    pub fn id(&self) -> &str {
        &self.process.instance
    }

    /// Runs until SIGTERM or SIGINT, then drains; a second signal ends it without draining.
    ///
    /// # Errors
    /// See [`RunError`].
    pub async fn run(self) -> Result<(), RunError> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let ending = Ending::default();
        let (drain, stop) = (ending.drain.clone(), ending.stop.clone());
        let signals = async move {
            for token in [drain, stop] {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                token.cancel();
            }
            std::future::pending::<()>().await
        };
        tokio::select! {
            ended = self.work(ending) => ended,
            () = signals => Ok(()),
        }
    }

    /// Runs until the token is cancelled, then drains.
    ///
    /// # Errors
    /// See [`RunError`].
    pub async fn run_until(self, drain: CancellationToken) -> Result<(), RunError> {
        let stop = CancellationToken::new();
        self.work(Ending { drain, stop }).await
    }

    async fn work(self, ending: Ending) -> Result<(), RunError> {
        // A worker runs once.
        self.process.draining.set(ending.drain.clone()).ok();
        let mut lanes = Lanes::new(
            &self.settings,
            &self.handlers,
            &self.process,
            &self.instances,
            &ending,
        )?;
        let methods = lanes.methods(self.settings.handler_timeout);
        let registering = self.registering(&lanes);
        let mut failures = 0;
        let (incarnation, running) = loop {
            match self.begin(&mut lanes, &registering, &methods).await {
                Ok(begun) => break begun,
                Err(error) if !error.passes() => return Err(error),
                Err(error) => {
                    if failures == 0 {
                        tracing::warn!(redis = %self.settings.redis_url, %error, "the bus can not be joined yet; trying again");
                    }
                    tokio::select! {
                        () = tokio::time::sleep(reconnect_delay(failures)) => failures += 1,
                        () = ending.drain.cancelled() => return Ok(()),
                    }
                }
            }
        };
        let reporter = Arc::new(Reporter::new(&lanes));
        // The process, which the reporter holds on to, holds this one.
        let own = Arc::downgrade(&reporter);
        self.own_report
            .comes_from(move || Some(own.upgrade()?.report()));
        let begun = Begun {
            registering,
            incarnation,
            methods,
        };
        let keeper = Keeper::start(&self, &mut lanes, reporter, begun)?;
        let ledger = Ledger::start(&self, lanes.dead(), &ending.drain)?;
        let lacks = self.process.connector.lacks();
        if !lacks.is_nothing() {
            tracing::warn!(redis = %self.settings.redis_url, "the server does not tell {lacks}: `convoke doctor` says which guarantees are weaker so");
        }
        tracing::info!(
            instance = self.id(),
            incarnation,
            streams = lanes.streams().join(" "),
            handlers = self.handlers.len(),
            redis = %self.settings.redis_url,
            "working"
        );
        let committers = self.until_drained(&lanes, running, &ending).await;
        if let Some(ledger) = ledger {
            ledger.ended().await;
        }
        keeper.stop(&self.instances).await;
        self.leave(&lanes, committers?).await;
        tracing::info!(instance = self.id(), counts = %lanes.counts(), "stopped");
        Ok(())
    }

    /// Joins registry and bus, as which incarnation; can be repeated.
    async fn begin(
        &self,
        lanes: &mut Lanes,
        registering: &Registering,
        methods: &[(String, Method)],
    ) -> Result<(u64, Running), RunError> {
        self.process.connector.check_server().await?;
        // Before it is registered: whoever sees that it has a handler also sees what that one is.
        if let Err(error) = self.catalog.publish(methods).await {
            tracing::warn!(%error, "what the handlers are could not be published; trying again later");
        }
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
        let Registered {
            incarnation, new, ..
        } = registered.map_err(RunError::Registration)?;
        if !new {
            tracing::warn!(
                instance = self.id(),
                "an instance of this id was alive already: this one takes its place"
            );
        }
        Ok((incarnation, lanes.start().await?))
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
        }
    }

    /// Runs the lanes to their end, at most the drain time long once they were told to end.
    async fn until_drained(
        &self,
        lanes: &Lanes,
        running: Running,
        ending: &Ending,
    ) -> Result<Vec<Committer>, RunError> {
        let limit = async {
            ending.drain.cancelled().await;
            tracing::info!(
                instance = self.id(),
                in_flight = lanes.in_flight(),
                "draining"
            );
            let over = async {
                tokio::select! {
                    () = tokio::time::sleep(self.settings.drain_timeout) => {}
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
        };
        let ended = running.ended();
        tokio::pin!(limit, ended);
        tokio::select! {
            ended = &mut ended => return ended,
            () = &mut limit => {}
        }
        ended.await
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
