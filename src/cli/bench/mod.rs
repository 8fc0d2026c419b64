//! `convoke bench`: the same work by hand-written loops and by a worker, side by side in one run.

mod cluster;
mod distance;
mod drain;
mod entries;
mod figure;
mod handlers;
mod idle;
mod inserts;
mod meter;
mod mixed;
mod patterns;
mod pipe;
mod proxy;
mod publish;
mod replicas;
mod request;
mod rig;
mod sizes;
mod soak;
mod streams;
mod text;

use super::output::{printable, wrapped};
use super::{Exit, Misuse, Session, threads};
use anyhow::Context as _;
use clap::{Args, ValueEnum};
use convoke::settings::RedisUrl;
use meter::{cores, server_cores};
use rig::Rig;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

const LEGEND: &str = "CPU s, SERVER s: seconds of this process and of the server per 100,000 events; \
CMDS: commands per event; MiB, +KiB: memory of this process, and by how much a round made it grow; SERVER MiB: \
memory of the server";

const EXAMPLES: &str = "\
Examples:
  scripts/bench                    a server of its own, each side on its own core
  scripts/bench all --format json  everything, as JSON lines
  convoke bench --quick            does it run here? Its figures say little
  convoke bench drain --rounds 5
  convoke bench request mixed
  convoke bench compute block wait batch pipe
  scripts/bench distance           how fast is it where the server is far?
  scripts/bench cluster            what does a cluster cost beside one server?
  convoke bench --soak 10          ten million events: does memory grow?

What is compared, on the same events in the same run:
  raw      RESP by hand; what the server can do at the most
  bare     the best loop by hand with the client library of this worker
  worker   decodes, routes, fences, commits
The loops do nothing with an event but answer and acknowledge it. Each figure is the median of \
the rounds, with the least and the most; a first round, of a tenth, is not counted.

Replicas are workers in this one process, each with connections, lanes and a keeper of its own: so \
they share its cores, as the loops do, and the figures stay comparable. What is measured is what \
they cost each other on the server.

Where redis_url names a cluster, the streams of a measurement are on one of its nodes; SERVER is of all \
nodes together. mixed, streams and distance need one server.

Everything happens in a namespace of its own, which is removed, after Ctrl-C as well. A server that \
does other work meanwhile is slowed down, and its work shows in the figures.

CPU times are told by the system in steps of 10 ms or so: raise --events where they matter.";

/// Measure this machine: the same work by loops written by hand and by a worker
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct Flags {
    /// What is measured [default: drain, publish, request]
    #[arg(value_name = "MEASUREMENT")]
    measurements: Vec<Measurement>,
    /// Events that each side gets in a round [default: 300000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    events: Option<u64>,
    /// Requests, or publishes one at a time, that each side makes in a round [default: 5000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    requests: Option<u64>,
    /// Rounds; the figures are their medians [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: Option<u32>,
    /// Little of everything, to see that it runs
    #[arg(long)]
    quick: bool,
    /// Let a worker consume this many million events, and watch its memory
    #[arg(long, value_name = "MILLIONS", conflicts_with_all = ["measurements", "events", "requests", "rounds"])]
    soak: Option<f64>,
    /// The cluster that is measured beside the server, such as redis+cluster://a:1
    #[arg(long, value_name = "URL")]
    cluster: Option<RedisUrl>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Measurement {
    /// A full stream is consumed, with and without replies
    Drain,
    /// Events are published: one at a time, in pipelines
    Publish,
    /// Requests are answered: 1, 16 and 256 in flight
    Request,
    /// Heartbeats are answered while work floods in
    Mixed,
    /// Payloads from 64 bytes to 64 KiB
    Sizes,
    /// 1 to 4 replicas
    Replicas,
    /// 10 to 960 streams
    Streams,
    /// Streams of 10,000 to 1,000,000 entries, and of --events if that is more
    Entries,
    /// The patterns of system events, at 10 to 1,000 instances, and when one is killed
    Patterns,
    /// Handlers that compute, on all cores that this process may use (do not pin it)
    Compute,
    /// Handlers that block their threads
    Block,
    /// Handlers that wait for a timer
    Wait,
    /// Rows that are inserted once each: one or 64 at a time, and by a batch handler
    Batch,
    /// Programs that stay alive (--pipe), beside a program for each event (--exec); they are in Python
    Pipe,
    /// A full stream is consumed from 0, 0.5, 1, 2 and 5 ms off, there and back
    Distance,
    /// What a worker costs that has nothing to do
    Idle,
    /// What a cluster costs beside one server; not among `all` without --cluster
    Cluster,
    /// All of these
    All,
}

impl Measurement {
    /// Whether the server may be a cluster: the loops by hand, and what stands between, are for one slot.
    fn goes_on_a_cluster(self) -> bool {
        use Measurement::*;
        !matches!(self, Mixed | Streams | Distance | Cluster)
    }
}

/// How much of everything.
#[derive(Clone, Copy, Debug)]
struct Plan {
    events: u64,
    requests: u64,
    rounds: u32,
    quick: bool,
}

impl Plan {
    fn new(flags: &Flags) -> Self {
        let (events, requests, rounds) = match flags.quick {
            true => (3000, 50, 1),
            false => (300_000, 5000, 3),
        };
        Self {
            events: flags.events.unwrap_or(events),
            requests: flags.requests.unwrap_or(requests),
            rounds: flags.rounds.unwrap_or(rounds),
            quick: flags.quick,
        }
    }
}

impl Flags {
    fn chosen(&self) -> Vec<Measurement> {
        use Measurement::*;
        let named = &self.measurements;
        if named.contains(&All) {
            let mut all = vec![
                Drain, Publish, Request, Mixed, Sizes, Replicas, Streams, Entries, Patterns,
                Compute, Block, Wait, Batch, Pipe, Distance, Idle,
            ];
            all.extend(self.cluster.is_some().then_some(Cluster));
            return all;
        }
        match named.is_empty() {
            true => vec![Drain, Publish, Request],
            false => {
                let mut chosen: Vec<Measurement> = Vec::new();
                for one in named {
                    if !chosen.contains(one) {
                        chosen.push(*one);
                    }
                }
                chosen
            }
        }
    }
}

/// Runs the command.
pub(super) fn run(session: Session, flags: &Flags) -> anyhow::Result<Exit> {
    if flags
        .soak
        .is_some_and(|millions| !(millions > 0.0 && millions <= 1e6))
    {
        return Err(Misuse::error(
            "--soak: more than 0 and at most 1000000 (millions)",
        ));
    }
    match &flags.cluster {
        Some(url) if !url.is_cluster() => {
            let named = "--cluster: redis+cluster://HOST:PORT, or rediss+cluster://";
            return Err(Misuse::error(named));
        }
        None if flags.chosen().contains(&Measurement::Cluster) => {
            let missing = "cluster: --cluster names the one that is measured (scripts/bench cluster starts one)";
            return Err(Misuse::error(missing));
        }
        _ => {}
    }
    // As a worker runs: one thread a core that it may use.
    let runtime = threads()?;
    let session = runtime.block_on(session.found())?;
    let cannot = flags
        .chosen()
        .into_iter()
        .find(|one| !one.goes_on_a_cluster());
    if let (true, Some(cannot)) = (session.settings.redis_url.is_cluster(), cannot) {
        let name = cannot.to_possible_value();
        let name = name.as_ref().map_or("all", |value| value.get_name());
        return Err(Misuse::error(format_args!(
            "{name}: its loops by hand read streams of one server: name one by redis:// in redis_url; \
             --cluster names the cluster that is held against it"
        )));
    }
    runtime.block_on(async {
        let rig = Rig::new(session, Plan::new(flags), flags.cluster.clone()).await?;
        let mut interrupted = signal(SignalKind::interrupt())?;
        let mut terminated = signal(SignalKind::terminate())?;
        let measured = tokio::select! {
            measured = measure(&rig, flags) => measured,
            _ = interrupted.recv() => Err(anyhow::anyhow!("interrupted")),
            _ = terminated.recv() => Err(anyhow::anyhow!("interrupted")),
        };
        // What was given up half way must have ended before its keys are removed.
        let cleaned = tokio::select! {
            cleaned = rig.clean() => cleaned,
            _ = interrupted.recv() => Err(anyhow::anyhow!("interrupted twice")),
        };
        let namespace = rig.keys.namespace();
        let cleaned = cleaned.with_context(|| format!("{namespace}:* may not be removed"));
        measured.and(cleaned)?;
        Ok(Exit::Done)
    })
}

async fn measure(rig: &Rig, flags: &Flags) -> anyhow::Result<()> {
    let usage = rig.usage().await?;
    let (client, server) = (cores("self"), server_cores(&usage.pid));
    let Plan {
        events,
        requests,
        rounds,
        ..
    } = rig.plan;
    if rig.output.is_json() {
        rig.output.json(&json!({
            "record": "run",
            "version": env!("CARGO_PKG_VERSION"),
            "redis": usage.version,
            "client_cores": client,
            "server_cores": server,
            "events": events,
            "requests": requests,
            "rounds": rounds,
        }))?;
    } else {
        let shared = client == server;
        let unknown = || "unknown".to_owned();
        let (client, server) = (
            client.unwrap_or_else(unknown),
            server.unwrap_or_else(unknown),
        );
        let redis = printable(&usage.version);
        let version = env!("CARGO_PKG_VERSION");
        rig.output.line(&format!(
            "convoke {version} on redis {redis}; cores: client {client}, server {server}"
        ))?;
        if shared {
            rig.output
                .line("not pinned: scripts/bench gives each side a core of its own")?;
        }
        for line in wrapped(LEGEND, 0, rig.output.width()) {
            rig.output.line(&line)?;
        }
        if cfg!(debug_assertions) {
            rig.output
                .line("a debug build: its figures say nothing of a release")?;
        }
    }
    if let Some(millions) = flags.soak {
        return soak::measure(rig, (millions * 1e6) as u64).await;
    }
    for measurement in flags.chosen() {
        match measurement {
            Measurement::Drain => drain::measure(rig).await?,
            Measurement::Publish => publish::measure(rig).await?,
            Measurement::Request => request::measure(rig).await?,
            Measurement::Mixed => mixed::measure(rig).await?,
            Measurement::Sizes => sizes::measure(rig).await?,
            Measurement::Replicas => replicas::measure(rig).await?,
            Measurement::Streams => streams::measure(rig).await?,
            Measurement::Entries => entries::measure(rig).await?,
            Measurement::Patterns => patterns::measure(rig).await?,
            Measurement::Compute => handlers::measure_compute(rig).await?,
            Measurement::Block => handlers::measure_block(rig).await?,
            Measurement::Wait => handlers::measure_wait(rig).await?,
            Measurement::Batch => inserts::measure(rig).await?,
            Measurement::Pipe => pipe::measure(rig).await?,
            Measurement::Distance => distance::measure(rig).await?,
            Measurement::Idle => idle::measure(rig).await?,
            Measurement::Cluster => cluster::measure(rig).await?,
            Measurement::All => {}
        }
    }
    Ok(())
}
