//! `convoke bench`: the same work by the bare loop and by a worker, side by side in one run.

use super::{Outcome, Session};
use anyhow::{Context as _, ensure};
use clap::Args;
use convoke::bus::bare::Bare;
use convoke::bus::claim;
use convoke::bus::connect::Connector;
use convoke::bus::keys::Keys;
use convoke::config::Settings;
use convoke::{Context, HandlerError, Policy, Worker};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

const EXAMPLES: &str = "\
Examples:
  scripts/bench                                  a server of its own, each side on a core of its own
  taskset -c 1 convoke bench --rounds 5          against a server that was started with taskset -c 0
  convoke bench --format json

The bare loop is the best that one can write by hand with the same client library: it decodes, \
routes and fences nothing. It works on a namespace of its own, which it removes; a server that \
does other work meanwhile is slowed down.";

/// Measure this machine: the same work by a bare Redis loop and by a worker
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Flags {
    /// Events that each side consumes in a round
    #[arg(long, value_name = "N", default_value_t = 300_000, value_parser = clap::value_parser!(u64).range(1..))]
    events: u64,
    /// Requests that are made one at a time in a round
    #[arg(long, value_name = "N", default_value_t = 5_000, value_parser = clap::value_parser!(u64).range(1..))]
    requests: u64,
    /// Rounds, alternating; the figures are their medians
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
}

/// The figures of one measurement: medians over the rounds.
#[derive(Clone, Debug, Serialize)]
struct Figure {
    what: &'static str,
    unit: &'static str,
    bare: f64,
    worker: f64,
    ratio: f64,
    /// The first goal of the ratio.
    goal: f64,
    /// CPU time of this process per event, in microseconds.
    bare_cpu_us: f64,
    worker_cpu_us: f64,
    cpu_ratio: f64,
}

/// What a run found.
#[derive(Clone, Debug, Serialize)]
struct Report {
    version: &'static str,
    placement: Placement,
    events: u64,
    requests: u64,
    rounds: u32,
    figures: Vec<Figure>,
}

/// Which cores the two sides may use.
#[derive(Clone, Debug, Serialize)]
struct Placement {
    client: String,
    server: String,
    redis: String,
}

#[derive(Deserialize, JsonSchema)]
struct Work {
    #[allow(dead_code)] // Decoded, as a handler would.
    n: u64,
    #[allow(dead_code)]
    text: String,
}

/// When the first event was handled, and how many were since.
#[derive(Default)]
struct Progress {
    began: std::sync::OnceLock<Instant>,
    handled: AtomicU64,
}

async fn handle(context: Context, _: Work) -> Result<(), HandlerError> {
    let progress = context.state::<Arc<Progress>>()?;
    progress.began.get_or_init(Instant::now);
    progress.handled.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

struct Sample {
    elapsed: f64,
    cpu: f64,
}

struct Rig {
    settings: Settings,
    connector: Connector,
    bare: Bare,
}

/// Runs the command.
pub fn run(session: Session, flags: &Flags) -> anyhow::Result<Outcome> {
    // As a worker runs: one thread a core that it may use.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let report = runtime.block_on(measure(session.settings, flags))?;
    if session.output.is_json() {
        session.output.json(&serde_json::to_value(&report)?)?;
    } else {
        for line in report.to_text().lines() {
            session.output.line(line)?;
        }
    }
    Ok(Outcome::Done)
}

/// Measures, on streams of a namespace of its own that it removes.
async fn measure(mut settings: Settings, bench: &Flags) -> anyhow::Result<Report> {
    settings.namespace = format!("bench-{:08x}", fastrand::u32(..));
    settings.id = "bench".into();
    let keys = Keys::new(&settings.namespace)?;
    let connector = Connector::new(&settings.redis_url, 4)?;
    connector
        .check_version()
        .await
        .context("the server can not be used")?;
    let rig = Rig {
        bare: Bare {
            route: keys.route("bench", 0),
            reply_to: keys.reply("bench", 0, "bench"),
            group: settings.group.clone(),
            kind: "bench.work".into(),
            history: settings.stream_history,
        },
        settings,
        connector,
    };
    let measured = rig.measure(bench).await;
    rig.clean(&keys).await?;
    Ok(Report {
        version: env!("CARGO_PKG_VERSION"),
        placement: rig.placement().await?,
        events: bench.events,
        requests: bench.requests,
        rounds: bench.rounds,
        figures: measured?,
    })
}

impl Rig {
    async fn measure(&self, bench: &Flags) -> anyhow::Result<Vec<Figure>> {
        let mut figures = Vec::new();
        for (what, reply) in [
            ("consume, reply and acknowledge", true),
            ("consume and acknowledge", false),
        ] {
            let (mut bare, mut worker) = (Vec::new(), Vec::new());
            for _ in 0..bench.rounds {
                bare.push(self.bare_consumes(bench.events, reply).await?);
                worker.push(self.worker_consumes(bench.events, reply).await?);
            }
            let events = bench.events as f64;
            let ratios = pairs(&bare, &worker, |bare, worker| bare.elapsed / worker.elapsed);
            figures.push(figure(
                what,
                "events/s",
                events,
                &bare,
                &worker,
                median(ratios),
                0.80,
                |s| events / s.elapsed,
            ));
        }
        let (mut bare, mut worker) = (Vec::new(), Vec::new());
        for _ in 0..bench.rounds {
            bare.push(self.bare_answers(bench.requests).await?);
            worker.push(self.worker_answers(bench.requests).await?);
        }
        let ratios = pairs(&bare, &worker, |bare, worker| worker.elapsed / bare.elapsed);
        let requests = bench.requests as f64;
        figures.push(figure(
            "one request at a time, p50",
            "us",
            requests,
            &bare,
            &worker,
            median(ratios),
            1.25,
            |s| s.elapsed * 1e6,
        ));
        Ok(figures)
    }

    async fn bare_consumes(&self, events: u64, reply: bool) -> anyhow::Result<Sample> {
        self.fresh().await?;
        self.bare.fill(&self.connector, events, reply).await?;
        let cpu = cpu_time();
        let elapsed = self.bare.consume(&self.connector, events, reply).await?;
        Ok(Sample {
            elapsed: elapsed.as_secs_f64(),
            cpu: cpu_time() - cpu,
        })
    }

    async fn worker_consumes(&self, events: u64, reply: bool) -> anyhow::Result<Sample> {
        self.fresh().await?;
        self.bare.fill(&self.connector, events, reply).await?;
        let progress = Arc::new(Progress::default());
        let cpu = cpu_time();
        let (drain, worker) = self.worker(&progress)?;
        while progress.handled.load(Ordering::Relaxed) < events {
            ensure!(!worker.is_finished(), "the worker ended by itself");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let mut connection = self.connector.dedicated().await?;
        let (stream, group) = (&self.bare.route.events, &self.bare.group);
        while !claim::holders(&mut connection, stream, group)
            .await?
            .is_empty()
        {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let began = progress.began.get().context("nothing was handled")?;
        let sample = Sample {
            elapsed: began.elapsed().as_secs_f64(),
            cpu: cpu_time() - cpu,
        };
        drain.cancel();
        worker.await??;
        Ok(sample)
    }

    async fn bare_answers(&self, requests: u64) -> anyhow::Result<Sample> {
        self.fresh().await?;
        let (bare, connector) = (self.bare.clone(), self.connector.clone());
        let cpu = cpu_time();
        let answering =
            tokio::spawn(async move { bare.answer_one_by_one(&connector, requests).await });
        let times = self
            .bare
            .request_one_by_one(&self.connector, requests)
            .await?;
        answering.await??;
        Ok(Sample {
            elapsed: p50(times),
            cpu: cpu_time() - cpu,
        })
    }

    async fn worker_answers(&self, requests: u64) -> anyhow::Result<Sample> {
        self.fresh().await?;
        let cpu = cpu_time();
        let (drain, worker) = self.worker(&Arc::default())?;
        let times = self
            .bare
            .request_one_by_one(&self.connector, requests)
            .await?;
        let sample = Sample {
            elapsed: p50(times),
            cpu: cpu_time() - cpu,
        };
        drain.cancel();
        worker.await??;
        Ok(sample)
    }

    #[allow(clippy::type_complexity)]
    fn worker(
        &self,
        progress: &Arc<Progress>,
    ) -> anyhow::Result<(
        CancellationToken,
        tokio::task::JoinHandle<Result<(), convoke::worker::RunError>>,
    )> {
        let worker = Worker::builder()
            .settings(self.settings.clone())
            .state(progress.clone())
            .handler_with("bench.work", handle, Policy::new().silent())
            .build()?;
        let drain = CancellationToken::new();
        let until = drain.clone();
        Ok((
            drain,
            tokio::spawn(async move { worker.run_until(until).await }),
        ))
    }

    /// Streams as they are at the start of a measurement.
    async fn fresh(&self) -> anyhow::Result<()> {
        let mut connection = self.connector.dedicated().await?;
        let keys = [
            &self.bare.route.events,
            &self.bare.reply_to,
            &self.bare.route.results,
        ];
        redis::cmd("UNLINK")
            .arg(&keys[..])
            .exec_async(&mut connection)
            .await?;
        Ok(())
    }

    async fn clean(&self, keys: &Keys) -> anyhow::Result<()> {
        self.fresh().await?;
        let mut connection = self.connector.dedicated().await?;
        let mut unlink = redis::cmd("UNLINK");
        unlink
            .arg(keys.broadcast())
            .arg(keys.inbox("bench"))
            .arg(keys.instance("bench"));
        unlink
            .arg(keys.active())
            .arg(keys.capabilities())
            .arg(keys.events("system", 0));
        unlink
            .arg(keys.events("task", 0))
            .arg(keys.claims("bench", 0, "bench"));
        unlink.exec_async(&mut connection).await?;
        Ok(())
    }

    async fn placement(&self) -> anyhow::Result<Placement> {
        let mut connection = self.connector.dedicated().await?;
        let info: String = redis::cmd("INFO")
            .arg("server")
            .query_async(&mut connection)
            .await?;
        let field = |name: &str| {
            let line = info
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.unwrap_or("unknown").trim().to_owned()
        };
        Ok(Placement {
            client: cores("self"),
            server: cores(&field("process_id")),
            redis: field("redis_version"),
        })
    }
}

/// The cores that a process of this machine may run on.
fn cores(pid: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    line.map_or_else(|| "unknown".to_owned(), |cores| cores.trim().to_owned())
}

/// CPU time of this process, in seconds.
fn cpu_time() -> f64 {
    // Fields 14 and 15, in ticks of a hundredth of a second; the name before may hold spaces.
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = rest.split_whitespace().skip(11).take(2);
    ticks
        .filter_map(|field| field.parse::<f64>().ok())
        .sum::<f64>()
        / 100.0
}

fn p50(times: Vec<Duration>) -> f64 {
    median(times.iter().map(Duration::as_secs_f64).collect())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn pairs(bare: &[Sample], worker: &[Sample], ratio: impl Fn(&Sample, &Sample) -> f64) -> Vec<f64> {
    bare.iter().zip(worker).map(|(b, w)| ratio(b, w)).collect()
}

#[allow(clippy::too_many_arguments)]
fn figure(
    what: &'static str,
    unit: &'static str,
    events: f64,
    bare: &[Sample],
    worker: &[Sample],
    ratio: f64,
    goal: f64,
    value: impl Fn(&Sample) -> f64,
) -> Figure {
    let of = |samples: &[Sample], value: &dyn Fn(&Sample) -> f64| {
        median(samples.iter().map(value).collect())
    };
    let cpu = |sample: &Sample| sample.cpu / events * 1e6;
    Figure {
        what,
        unit,
        bare: of(bare, &value),
        worker: of(worker, &value),
        ratio,
        goal,
        bare_cpu_us: of(bare, &cpu),
        worker_cpu_us: of(worker, &cpu),
        cpu_ratio: median(pairs(bare, worker, |b, w| w.cpu / b.cpu)),
    }
}

impl Report {
    /// The figures as a table.
    fn to_text(&self) -> String {
        let Placement {
            client,
            server,
            redis,
        } = &self.placement;
        let mut text = format!(
            "convoke {} on redis {redis}; cores: client {client}, server {server}; {} events, {} requests, medians of {} rounds\n\n{:<32} {:>12} {:>12} {:>8}  {:>6}   {:>20}\n",
            self.version,
            self.events,
            self.requests,
            self.rounds,
            "",
            "bare loop",
            "worker",
            "ratio",
            "goal",
            "CPU us/event (ratio)"
        );
        for figure in &self.figures {
            let Figure {
                what,
                unit,
                bare,
                worker,
                ratio,
                goal,
                bare_cpu_us,
                worker_cpu_us,
                cpu_ratio,
            } = figure;
            let sign = if *goal > 1.0 { "<=" } else { ">=" };
            text.push_str(&format!(
                "{what:<32} {bare:>12.0} {worker:>12.0} {ratio:>8.2}  {sign}{goal:.2}   {bare_cpu_us:.2} -> {worker_cpu_us:.2} ({cpu_ratio:.2})  [{unit}]\n"
            ));
        }
        text
    }
}
