//! What all measurements stand on: the server, a namespace of its own, workers in it, rounds.

use super::figure::{Figure, Samples};
use super::meter::{Mark, Sample};
use super::{Plan, text};
use crate::bench::load::{Load, Race, SHORTEST, remove_namespace};
use crate::cli::Session;
use crate::cli::output::Output;
use anyhow::{Context as _, bail};
use convoke::connect::connector::Connector;
use convoke::operator::server::Usage;
use convoke::protocol::keys::Keys;
use convoke::settings::{DatabaseUrl, RedisUrl, Settings};
use convoke::worker::RunError;
use convoke::worker::builder::Builder;
use convoke::{Context, HandlerError, Policy, Worker};
use schemars::JsonSchema;
use serde::Deserialize;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

/// The sides of a comparison.
pub(super) const RAW: &str = "raw";
pub(super) const BARE: &str = "bare";
pub(super) const WORKER: &str = "worker";

/// The domain of a load of one stream.
const FIRST: &str = "bench0";

#[derive(Deserialize, JsonSchema)]
pub(super) struct Work {
    #[allow(dead_code)] // Decoded, as a handler would.
    n: u64,
    #[allow(dead_code)]
    text: String,
}

async fn handle(context: Context, _: Work) -> Result<(), HandlerError> {
    context.state::<Arc<Race>>()?.take(1);
    Ok(())
}

/// The server and the namespace.
pub(super) struct Rig {
    pub(crate) settings: Settings,
    /// The one that was named, or that is the default.
    pub(crate) database: DatabaseUrl,
    pub(crate) keys: Keys,
    /// The way to the server; on a cluster to the node of the one domain that has work.
    pub(crate) connector: Connector,
    /// The same as clients have it; on a cluster to the node of the control plane.
    pub(crate) control: Connector,
    /// The cluster that is measured beside it.
    cluster: Option<RedisUrl>,
    /// The way of those who are measured, which may be longer.
    pub(crate) way: Connector,
    pub(crate) output: Output,
    pub(crate) plan: Plan,
    stop: CancellationToken,
    workers: TaskTracker,
}

/// A worker of this process; it drains once this is dropped.
pub(super) struct Running {
    drain: DropGuard,
    ended: JoinHandle<Result<(), RunError>>,
    /// Why it ended by itself, if it did.
    why: Arc<OnceLock<String>>,
}

impl Running {
    /// Whether it ended by itself.
    pub(super) fn is_over(&self) -> bool {
        self.ended.is_finished()
    }

    /// Why it did.
    fn why(&self) -> &str {
        self.why.get().map_or("it drained", String::as_str)
    }

    /// Drains it.
    pub(super) async fn stop(self) -> anyhow::Result<()> {
        drop(self.drain);
        Ok(self.ended.await??)
    }
}

/// When the first event of a race arrived.
#[derive(Clone, Default)]
pub(super) struct Start(Arc<OnceLock<Mark>>);

impl Start {
    /// A race that notes its start here.
    pub(super) fn race(&self, events: u64) -> Arc<Race> {
        let start = self.0.clone();
        let first = move || _ = start.get_or_init(Mark::now);
        Arc::new(Race::new(events, first))
    }

    pub(super) fn mark(&self) -> anyhow::Result<Mark> {
        self.0.get().copied().context("nothing arrived")
    }
}

impl Rig {
    pub(super) async fn new(
        session: Session,
        plan: Plan,
        cluster: Option<RedisUrl>,
    ) -> anyhow::Result<Self> {
        let mut settings = session.settings;
        settings.namespace = format!("bench-{:08x}", fastrand::u32(..));
        settings.partitions = u16::from(settings.redis_url.is_cluster());
        settings.id = "bench".into();
        let database = settings.database_url.clone();
        // Nothing of it belongs into anybody's ledger, nor costs what another service costs.
        settings.database_url = DatabaseUrl::default();
        settings.mcp_server = Default::default();
        let keys = settings.keys()?;
        let control = Connector::of(&settings, 4)?;
        let connector = control.toward(&keys.events(FIRST, 0));
        connector
            .check_server()
            .await
            .context("the server cannot be used")?;
        Ok(Self {
            keys,
            settings,
            database,
            cluster,
            way: connector.clone(),
            connector,
            control,
            output: session.output,
            plan,
            stop: CancellationToken::new(),
            workers: TaskTracker::new(),
        })
    }

    /// The same, for those who go to the server by that port of this machine.
    pub(super) fn through(&self, port: u16) -> anyhow::Result<Self> {
        let url = redis::parse_redis_url(self.settings.redis_url.expose());
        let mut url = url.context("the server's URL cannot be read")?;
        let host = url.set_host(Some("127.0.0.1"));
        host.ok().context("the server's URL has no host")?;
        let told = url.set_port(Some(port));
        told.ok().context("the server's URL has no port")?;
        self.with(Settings {
            redis_url: RedisUrl::new(url.to_string()),
            ..self.settings.clone()
        })
    }

    /// The same with workers of other settings.
    pub(super) fn with(&self, settings: Settings) -> anyhow::Result<Self> {
        Ok(Self {
            way: Connector::of(&settings, 4)?,
            settings,
            database: self.database.clone(),
            cluster: self.cluster.clone(),
            keys: self.keys.clone(),
            connector: self.connector.clone(),
            control: self.control.clone(),
            output: self.output.clone(),
            plan: self.plan,
            stop: self.stop.clone(),
            workers: self.workers.clone(),
        })
    }

    /// The same on the cluster, if one was named: a domain has one partition there.
    pub(super) fn cluster(&self) -> anyhow::Result<Option<Self>> {
        let Some(url) = &self.cluster else {
            return Ok(None);
        };
        let mut rig = self.with(Settings {
            redis_url: url.clone(),
            partitions: 1,
            ..self.settings.clone()
        })?;
        rig.keys = rig.settings.keys()?;
        rig.connector = rig.way.clone();
        rig.control = rig.way.clone();
        Ok(Some(rig))
    }

    /// Makes this many streams of events of this many bytes each; of the shortest, if none are told.
    pub(super) fn load(&self, streams: usize, payload: Option<usize>) -> Load {
        let domains = (0..streams).map(|n| format!("bench{n}"));
        Load {
            routes: domains.clone().map(|d| self.keys.route(&d, 0)).collect(),
            kinds: domains.map(|domain| format!("{domain}.work")).collect(),
            reply_to: self.keys.reply(FIRST, 0, "bench"),
            group: self.settings.group.clone(),
            history: self.settings.stream_history,
            payload: payload.unwrap_or(SHORTEST),
        }
    }

    /// Starts a worker of this process for a load.
    pub(super) fn worker(
        &self,
        id: &str,
        load: &Load,
        race: &Arc<Race>,
    ) -> anyhow::Result<Running> {
        let policy = || Policy::new().silent();
        self.start(id, load, race, |builder, kind| {
            builder.handler_with(kind, handle, policy())
        })
    }

    /// The same with other handlers.
    pub(super) fn start(
        &self,
        id: &str,
        load: &Load,
        race: &Arc<Race>,
        handled: impl Fn(Builder, &str) -> Builder,
    ) -> anyhow::Result<Running> {
        let settings = Settings {
            id: id.to_owned(),
            ..self.settings.clone()
        };
        let mut builder = Worker::builder().settings(settings).state(race.clone());
        for kind in &load.kinds {
            builder = handled(builder, kind);
        }
        let worker = builder.build()?;
        let drain = self.stop.child_token();
        let until = drain.clone();
        let why = Arc::<OnceLock<String>>::default();
        let noted = why.clone();
        Ok(Running {
            drain: drain.drop_guard(),
            ended: self.workers.spawn(async move {
                let ended = worker.run_until(until).await;
                if let Err(error) = &ended {
                    noted.set(error.to_string()).ok();
                }
                ended
            }),
            why,
        })
    }

    /// Waits until a race's events are taken and acknowledged by workers; the moment at which they were.
    pub(super) async fn until_done(
        &self,
        load: &Load,
        race: &Race,
        workers: &[Running],
    ) -> anyhow::Result<Mark> {
        let mut connection = self.connector.dedicated().await?;
        while race.taken() < race.total {
            if let Some(over) = workers.iter().find(|worker| worker.is_over()) {
                bail!("a worker ended by itself: {}", over.why());
            }
            // Closely only towards the end: to look costs the worker a part of its core.
            let near = race.taken() > race.total / 10 * 9;
            let pause = if near { 1 } else { 5 };
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        while load.pending(&mut connection).await? > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(Mark::now())
    }

    /// What the server has used up so far, or all nodes of a cluster together.
    pub(super) async fn usage(&self) -> anyhow::Result<Usage> {
        Ok(self.usage_of_each().await?.0)
    }

    /// The same, and the CPU time of each node, in seconds.
    pub(super) async fn usage_of_each(&self) -> anyhow::Result<(Usage, Vec<f64>)> {
        let mut sum: Option<Usage> = None;
        let mut each = Vec::new();
        for node in self.connector.nodes().await? {
            let usage = Usage::look(&mut node.dedicated().await?).await?;
            each.push(usage.cpu);
            let Some(sum) = &mut sum else {
                sum = Some(usage);
                continue;
            };
            sum.cpu += usage.cpu;
            sum.memory += usage.memory;
            for (name, calls) in usage.calls {
                *sum.calls.entry(name).or_default() += calls;
            }
        }
        Ok((sum.unwrap_or_default(), each))
    }

    /// Rounds of some sides, in a new order each time; first one that is not counted.
    pub(super) async fn rounds<const N: usize>(
        &self,
        sides: [&'static str; N],
        events: u64,
        one: impl AsyncFn(&'static str, u64) -> anyhow::Result<Sample>,
    ) -> anyhow::Result<[Samples; N]> {
        let mut samples = [(); N].map(|()| Samples::new());
        for side in sides {
            one(side, events.div_ceil(10)).await?;
        }
        for round in 0..self.plan.rounds as usize {
            for turn in 0..N {
                let at = (round + turn) % N;
                samples[at].push(one(sides[at], events).await?);
            }
        }
        Ok(samples)
    }

    /// Prints a figure.
    pub(super) fn tell(&self, figure: Figure) -> anyhow::Result<()> {
        match self.output.is_json() {
            true => self.output.json(&serde_json::to_value(&figure)?)?,
            false => text::print(&self.output, &figure)?,
        }
        Ok(())
    }

    /// Waits for the workers that still run, and removes the namespace.
    pub(super) async fn clean(&self) -> anyhow::Result<()> {
        self.stop.cancel();
        self.workers.close();
        self.workers.wait().await;
        remove_namespace(&self.connector, &self.keys).await?;
        if let Some(cluster) = self.cluster()? {
            remove_namespace(&cluster.connector, &cluster.keys).await?;
        }
        Ok(())
    }
}
