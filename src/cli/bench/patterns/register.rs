//! How soon a task is with a worker that is idle, and what that costs, in each pattern of `system.register`.

use super::fleet::Fleet;
use super::{Asker, TIMEOUT};
use crate::bench::load::Load;
use crate::cli::bench::figure::Figure;
use crate::cli::bench::meter::{Mark, Sample};
use crate::cli::bench::rig::{Rig, Running, Start};
use anyhow::Context as _;
use convoke::protocol::pattern::{Pattern, Patterned};
use convoke::{Context, HandlerError};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Between two tasks: a worker that looks for some has none to do meanwhile, and looks less often.
const PAUSE: Duration = Duration::from_millis(250);

/// Tells that a task runs.
#[derive(Default)]
pub(super) struct Taken(Notify);

impl Taken {
    fn tell(&self) {
        self.0.notify_one();
    }
}

#[derive(Deserialize, JsonSchema)]
struct Work {
    #[allow(dead_code)] // Decoded, as a handler would.
    n: u64,
}

async fn take(context: Context, _: Work) -> Result<(), HandlerError> {
    context.state::<Arc<Taken>>()?.tell();
    Ok(())
}

/// Starts a worker that says when it runs a task.
pub(super) fn worker(
    rig: &Rig,
    id: &str,
    load: &Load,
    taken: &Arc<Taken>,
) -> anyhow::Result<Running> {
    let race = Start::default().race(u64::MAX);
    rig.start(id, load, &race, |builder, kind| {
        builder.state(taken.clone()).handler(kind, take)
    })
}

/// Tasks one after another, from when they are created until a worker runs them.
pub(super) async fn measure(
    asker: &Asker<'_>,
    fleet: &Fleet<'_>,
    load: &Load,
    taken: &Taken,
) -> anyhow::Result<()> {
    let rig = asker.rig;
    let tasks = (rig.plan.requests / 800).clamp(1, 20);
    let kind = load.kinds.first().context("no kind of task")?;
    let one = async |side: &'static str, tasks: u64| {
        let pattern = Pattern::named(side).unwrap_or_default();
        asker.follow(Patterned::Register, pattern).await?;
        let (before, begin) = (rig.usage().await?, Mark::now());
        let mut times = Vec::new();
        for _ in 0..tasks {
            tokio::time::sleep(PAUSE).await;
            let task = json!({"kind": kind, "payload": {"n": 1}});
            let asked = Instant::now();
            asker.request("task.create", &task).await?;
            let runs = tokio::time::timeout(TIMEOUT, taken.0.notified()).await;
            runs.context("a task that nobody takes")?;
            times.push(asked.elapsed().as_secs_f64());
        }
        let (after, end) = (rig.usage().await?, Mark::now());
        Ok(Sample::between([begin, end], [&before, &after], tasks).with_times(times))
    };
    let names = Pattern::ALL.map(Pattern::as_str);
    let samples = rig.rounds(names, tasks, one).await?;
    asker.clear(Patterned::Register).await?;
    let shown: Vec<_> = names.into_iter().zip(&samples).collect();
    let size = fleet.size() + 2;
    let case = format!("a task until it runs, {size} instances of which two work");
    let mut figure = Figure::new("patterns", case, "us", tasks, &shown).hops(&shown);
    for (side, of) in &shown[1..] {
        let what = format!("server CPU, {side} / centralized");
        figure = figure.ratio(what, of, &samples[0], |sample| sample.server_cpu, None);
    }
    rig.tell(figure)
}
