//! What it costs that a majority decides something, in each pattern of `system.quorum.vote`.

use super::Asker;
use super::fleet::Fleet;
use crate::cli::bench::figure::{Check, Figure, Spread};
use crate::cli::bench::meter::{Mark, Sample};
use anyhow::ensure;
use convoke::protocol::pattern::{Pattern, Patterned};
use serde_json::json;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Instant;

/// Ballots of all instances but the workers; as many of them vote as it takes.
pub(super) async fn measure(asker: &Asker<'_>, fleet: &Fleet<'_>) -> anyhow::Result<()> {
    let (rig, size) = (asker.rig, fleet.size());
    let quorum = size as u64 / 2 + 1;
    let ballots = (rig.plan.requests / 20 / quorum).max(1);
    let votes = ballots * quorum;
    let number = Cell::new(0);
    let decides = RefCell::<BTreeMap<&'static str, Vec<f64>>>::default();
    let one = async |side: &'static str, _| {
        let pattern = Pattern::named(side).unwrap_or_default();
        asker.follow(Patterned::Quorum, pattern).await?;
        let (before, begin) = (rig.usage().await?, Mark::now());
        let mut times = Vec::new();
        for _ in 0..ballots {
            number.set(number.get() + 1);
            let decision = format!("bench-{size}-{}", number.get());
            for place in 0..quorum as usize {
                let vote = json!({
                    "decision": decision, "instance_id": fleet.id(place)?, "value": true, "role": "bench-data",
                });
                let asked = Instant::now();
                let told = asker.request("system.quorum.vote", &vote).await?;
                times.push(asked.elapsed().as_secs_f64());
                let decided = place as u64 + 1 == quorum;
                ensure!(told["quorum_reached"] == decided, "{decision}: {told}");
            }
            let last = times.last().copied().unwrap_or(0.0);
            decides
                .borrow_mut()
                .entry(side)
                .or_default()
                .push(last * 1e6);
        }
        let (after, end) = (rig.usage().await?, Mark::now());
        Ok(Sample::between([begin, end], [&before, &after], votes).with_times(times))
    };
    let names = Pattern::ALL.map(Pattern::as_str);
    let samples = rig.rounds(names, votes, one).await?;
    let shown: Vec<_> = names.into_iter().zip(&samples).collect();
    let case = format!("a vote of {size} instances, of which {quorum} decide");
    let mut figure = Figure::new("patterns", case, "us", votes, &shown).hops(&shown);
    for (side, of) in &shown[..2] {
        let what = format!("server CPU, {side} / hybrid");
        figure = figure.ratio(what, of, &samples[2], |sample| sample.server_cpu, None);
    }
    for (side, times) in decides.borrow().iter() {
        let what = format!("the vote that decides, {side}, us");
        let spread = Spread::of(times.iter().copied());
        figure.checks.push(Check::new(what, spread, None));
    }
    rig.tell(figure)
}
