//! Handlers that take their time: they compute, block or wait. Their opponents do the same work without a bus.

use super::figure::{Figure, Goal};
use super::meter::{Mark, Sample};
use super::rig::{Rig, Start, WORKER};
use crate::bench::load::{Load, Race};
use convoke::worker::builder::Builder;
use convoke::{Context, HandlerError, Policy};
use std::hint::black_box;
use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

/// CPU time of a run that computes.
const COMPUTES: Duration = Duration::from_millis(5);
/// How long a run blocks.
const BLOCKS: Duration = Duration::from_millis(50);
/// How long a run waits.
const WAITS: Duration = Duration::from_millis(1);
/// Runs at a time that block, or wait.
const AT_ONCE: u64 = 64;

/// Steps of a run that computes.
#[derive(Clone, Copy, Debug)]
struct Steps(u64);

impl Steps {
    /// As many as take [`COMPUTES`] on this machine.
    fn measured() -> Self {
        let some = Self(1_000_000);
        let times = (0..20).map(|_| {
            let began = Instant::now();
            some.run();
            began.elapsed()
        });
        let least = times.min().unwrap_or(COMPUTES).as_secs_f64();
        Self((some.0 as f64 * COMPUTES.as_secs_f64() / least) as u64)
    }

    fn run(self) {
        let mut value = 1_u64;
        for step in 0..self.0 {
            value = black_box(value.wrapping_mul(0x5851_f42d_4c95_7f2d) ^ step);
        }
    }
}

async fn compute(context: Context, _: serde_json::Value) -> Result<(), HandlerError> {
    context.state::<Arc<Race>>()?.take(1);
    context.state::<Steps>()?.run();
    Ok(())
}

async fn block(context: Context, _: serde_json::Value) -> Result<(), HandlerError> {
    context.state::<Arc<Race>>()?.take(1);
    std::thread::sleep(BLOCKS);
    Ok(())
}

async fn wait(context: Context, _: serde_json::Value) -> Result<(), HandlerError> {
    context.state::<Arc<Race>>()?.take(1);
    tokio::time::sleep(WAITS).await;
    Ok(())
}

/// CPU on all cores that this process may use.
pub(super) async fn measure_compute(rig: &Rig) -> anyhow::Result<()> {
    const ONE: &str = "n x 1 thread";
    const ALL: &str = "n threads";
    let cores = available_parallelism().map_or(1, NonZero::get);
    let steps = Steps::measured();
    let load = rig.load(1, None);
    let events = if rig.plan.quick { 40 } else { 1000 };
    let one = async |side, events: u64| -> anyhow::Result<Sample> {
        match side {
            ONE => {
                let one = threads(rig, 1, steps, events.div_ceil(cores as u64)).await?;
                let value = one.value * cores as f64;
                Ok(Sample { value, ..one })
            }
            ALL => threads(rig, cores, steps, events).await,
            _ => {
                let handled = |b: Builder, kind: &str| b.state(steps).handler(kind, compute);
                worker(rig, &load, events, handled).await
            }
        }
    };
    let [one, all, worker] = rig.rounds([ONE, ALL, WORKER], events, one).await?;
    let sides = [(ONE, &one), (ALL, &all), (WORKER, &worker)];
    let case = format!("5 ms of CPU each, n = {cores} cores");
    let goal = Some(Goal::AtLeast(0.9));
    rig.tell(
        Figure::new("compute", case, "events/s", events, &sides)
            .ratio(
                "speed, worker / n x 1 thread",
                &worker,
                &one,
                |s| s.value,
                goal,
            )
            .ratio(
                "speed, worker / n threads",
                &worker,
                &all,
                |s| s.value,
                None,
            ),
    )
}

/// The work by plain threads.
async fn threads(rig: &Rig, threads: usize, steps: Steps, events: u64) -> anyhow::Result<Sample> {
    let before = rig.usage().await?;
    let begin = Mark::now();
    let left = Arc::new(AtomicU64::new(events));
    let threads = (0..threads).map(|_| {
        let left = left.clone();
        tokio::task::spawn_blocking(move || {
            let next = |left: u64| left.checked_sub(1);
            while left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, next)
                .is_ok()
            {
                steps.run();
            }
        })
    });
    for thread in threads.collect::<Vec<_>>() {
        thread.await?;
    }
    let end = Mark::now();
    let after = rig.usage().await?;
    Ok(Sample::between([begin, end], [&before, &after], events))
}

/// Threads that block.
pub(super) async fn measure_block(rig: &Rig) -> anyhow::Result<()> {
    const IDEAL: &str = "ideal";
    let load = rig.load(1, None);
    let events = if rig.plan.quick { 128 } else { 100 * AT_ONCE };
    let one = async |side, events: u64| -> anyhow::Result<Sample> {
        match side {
            IDEAL => Ok(Sample {
                value: AT_ONCE as f64 / BLOCKS.as_secs_f64(),
                ..Sample::default()
            }),
            _ => {
                let policy = || Policy::new().blocking();
                let handled = |b: Builder, kind: &str| b.handler_with(kind, block, policy());
                worker(rig, &load, events, handled).await
            }
        }
    };
    let [ideal, worker] = rig.rounds([IDEAL, WORKER], events, one).await?;
    let sides = [(IDEAL, &ideal), (WORKER, &worker)];
    let case = "50 ms of blocking each, 64 at a time";
    rig.tell(
        Figure::new("block", case, "events/s", events, &sides).ratio(
            "speed, worker / ideal",
            &worker,
            &ideal,
            |s| s.value,
            Some(Goal::AtLeast(0.9)),
        ),
    )
}

/// The timer of tokio, with and without a bus.
pub(super) async fn measure_wait(rig: &Rig) -> anyhow::Result<()> {
    const TIMER: &str = "timer";
    let load = rig.load(1, None);
    let events = if rig.plan.quick { 1000 } else { 2000 * AT_ONCE };
    let one = async |side, events: u64| -> anyhow::Result<Sample> {
        match side {
            TIMER => timer(rig, events).await,
            _ => {
                let handled = |b: Builder, kind: &str| b.handler(kind, wait);
                worker(rig, &load, events, handled).await
            }
        }
    };
    let [timer, worker] = rig.rounds([TIMER, WORKER], events, one).await?;
    let sides = [(TIMER, &timer), (WORKER, &worker)];
    let case = "1 ms of waiting each, 64 at a time";
    rig.tell(Figure::new("wait", case, "events/s", events, &sides).ratio(
        "speed, worker / timer",
        &worker,
        &timer,
        |s| s.value,
        Some(Goal::AtLeast(0.9)),
    ))
}

async fn timer(rig: &Rig, events: u64) -> anyhow::Result<Sample> {
    let before = rig.usage().await?;
    let begin = Mark::now();
    let tasks = (0..AT_ONCE).map(|_| {
        tokio::spawn(async move {
            for _ in 0..events.div_ceil(AT_ONCE) {
                tokio::time::sleep(WAITS).await;
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await?;
    }
    let end = Mark::now();
    let after = rig.usage().await?;
    Ok(Sample::between([begin, end], [&before, &after], events))
}

/// A full stream, consumed by a worker.
pub(super) async fn worker(
    rig: &Rig,
    load: &Load,
    events: u64,
    handled: impl Fn(Builder, &str) -> Builder,
) -> anyhow::Result<Sample> {
    load.remove(&rig.connector).await?;
    load.fill(&rig.connector, events, false, None).await?;
    let began = Start::default();
    let race = began.race(events);
    let before = rig.usage().await?;
    let workers = [rig.start("bench", load, &race, handled)?];
    let end = rig.until_done(load, &race, &workers).await?;
    let after = rig.usage().await?;
    for worker in workers {
        worker.stop().await?;
    }
    let begin = began.mark()?;
    Ok(Sample::between([begin, end], [&before, &after], events))
}
