//! What it costs to have a batch processed, in each pattern of `system.batch.process`.

use super::Asker;
use super::fleet::Fleet;
use crate::cli::bench::figure::Figure;
use crate::cli::bench::meter::{Mark, Sample};
use anyhow::ensure;
use convoke::protocol::pattern::{Pattern, Patterned};
use serde_json::json;
use std::cell::Cell;
use std::time::Instant;

/// Items of a batch.
const ITEMS: u64 = 200;

/// Batches of items that are ready at once, which two workers may run.
pub(super) async fn measure(asker: &Asker<'_>, fleet: &Fleet<'_>) -> anyhow::Result<()> {
    let rig = asker.rig;
    let batches = (rig.plan.requests / 400).clamp(1, 20);
    let number = Cell::new(0);
    let one = async |side: &'static str, _| {
        let pattern = Pattern::named(side).unwrap_or_default();
        asker.follow(Patterned::Batch, pattern).await?;
        let (before, begin) = (rig.usage().await?, Mark::now());
        let mut times = Vec::new();
        for _ in 0..batches {
            number.set(number.get() + 1);
            let batch = json!({
                "batch_id": format!("bench-{}-{}", fleet.size(), number.get()), "item_type": "system.ping",
                "items": vec![json!({}); ITEMS as usize], "mode": "fan_out",
            });
            let asked = Instant::now();
            let told = asker.request("system.batch.process", &batch).await?;
            times.push(asked.elapsed().as_secs_f64());
            ensure!(told["items_processed"] == ITEMS, "{told}");
        }
        let (after, end) = (rig.usage().await?, Mark::now());
        Ok(Sample::between([begin, end], [&before, &after], batches).with_times(times))
    };
    let size = fleet.size() + 2;
    let case = format!("a batch of {ITEMS} items, fanned out, {size} instances of which two work");
    let names = Pattern::ALL.map(Pattern::as_str);
    let samples = rig.rounds(names, batches, one).await?;
    let shown: Vec<_> = names.into_iter().zip(&samples).collect();
    let mut figure = Figure::new("patterns", case, "us", batches, &shown).hops(&shown);
    for (side, of) in &shown[..2] {
        let what = format!("server CPU, {side} / hybrid");
        figure = figure.ratio(what, of, &samples[2], |sample| sample.server_cpu, None);
    }
    rig.tell(figure)
}
