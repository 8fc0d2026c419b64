//! What it costs that all instances pulse once, in each pattern of `system.heartbeat`.

use super::fleet::Fleet;
use crate::cli::bench::figure::Figure;
use crate::cli::bench::meter::{Mark, Sample};
use crate::cli::bench::rig::Rig;
use convoke::coordination::instances::gossip::WATCHED;
use convoke::protocol::pattern::Pattern;
use std::cell::Cell;
use std::time::{Duration, Instant};

/// One pulse in this many is an instance's own where pulses are collected, or neighbours ask.
const OWN: usize = 6;
/// Times that a collector looks while all pulse once, at a ttl of 30 s.
const LOOKS: usize = 40;

/// How long answers of neighbours are waited for, at a ttl of 30 s.
const WAIT: Duration = Duration::from_secs(3);

/// Rounds of all instances: each pulse with a report of ten handlers; or one in six so, and the others are collected, or
/// all ask their neighbours.
pub(super) async fn measure(rig: &Rig, fleet: &Fleet<'_>) -> anyhow::Result<()> {
    let size = fleet.size();
    let peers: Vec<String> = (0..WATCHED).map(|at| format!("bench-data-{at}")).collect();
    let round = Cell::new(0);
    let one = async |side: &'static str, _| {
        round.set(round.get() + 1);
        let (before, begin) = (rig.usage().await?, Mark::now());
        let mut times = Vec::new();
        let mut after = None;
        for place in 0..size {
            let began = Instant::now();
            let (collected, own) = (
                side == Pattern::Hybrid.as_str(),
                (place + round.get() as usize).is_multiple_of(OWN),
            );
            if collected && !own {
                fleet.send_pulse(place, &peers).await?;
            } else if own || side == Pattern::Centralized.as_str() {
                fleet.pulse(place, round.get()).await?;
            }
            times.push(began.elapsed().as_secs_f64());
            if collected && (place + 1).is_multiple_of(size.div_ceil(LOOKS)) {
                after = fleet.collect(after).await?;
            }
        }
        if side == Pattern::Distributed.as_str() {
            times = fleet.ask_neighbours(WAIT).await?;
        }
        let (usage, end) = (rig.usage().await?, Mark::now());
        Ok(Sample::between([begin, end], [&before, &usage], size as u64).with_times(times))
    };
    let names = Pattern::ALL.map(Pattern::as_str);
    let samples = rig.rounds(names, size as u64, one).await?;
    let shown: Vec<_> = names.into_iter().zip(&samples).collect();
    let case = format!("a pulse, {} instances that are busy", size + 1);
    let mut figure = Figure::new("patterns", case, "us", size as u64, &shown).hops(&shown);
    for (name, sample) in names.into_iter().zip(&samples).skip(1) {
        figure = figure.ratio(
            format!("server CPU, {name} / centralized"),
            sample,
            &samples[0],
            |sample| sample.server_cpu,
            None,
        );
    }
    rig.tell(figure)
}
