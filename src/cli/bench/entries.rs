//! One stream that is longer and longer.

use super::drain::Drain;
use super::figure::{Figure, Samples};
use super::rig::{BARE, RAW, Rig, WORKER};
use crate::bench::bare::OUTSTANDING;
use crate::cli::output::count;

pub(super) async fn measure(rig: &Rig) -> anyhow::Result<()> {
    let mut lengths = match rig.plan.quick {
        true => vec![500, 5000],
        false => vec![10_000, 100_000, 1_000_000],
    };
    lengths.extend((rig.plan.events > 1_000_000).then_some(rig.plan.events));
    let load = rig.load(1, None);
    let drain = Drain {
        load: &load,
        reply: true,
        consumers: 1,
        outstanding: OUTSTANDING,
    };
    let mut first = None;
    for entries in lengths {
        let rounds = drain.rounds(rig, entries).await?;
        let case = count(entries, "entry", "entries");
        tell_flat(rig, "entries", case, entries, rounds, &mut first)?;
    }
    Ok(())
}

/// A case and what it is to the first one: the cost of an event should be the same.
pub(super) fn tell_flat(
    rig: &Rig,
    measurement: &'static str,
    case: String,
    events: u64,
    [raw, bare, worker]: [Samples; 3],
    first: &mut Option<(String, Samples)>,
) -> anyhow::Result<()> {
    let sides = [(RAW, &raw), (BARE, &bare), (WORKER, &worker)];
    let mut figure = Figure::new(measurement, case.clone(), "events/s", events, &sides)
        .ratio("speed, worker / bare", &worker, &bare, |s| s.value, None)
        .ratio("speed, worker / raw", &worker, &raw, |s| s.value, None);
    match first {
        Some((begin, first)) => {
            let what = format!("time per event, to {begin}");
            figure = figure.ratio(what, &worker, first, |s| 1.0 / s.value, None);
            let what = format!("server CPU per event, to {begin}");
            figure = figure.ratio(what, &worker, first, |s| s.server_cpu, None);
        }
        None => *first = Some((case, worker)),
    }
    rig.tell(figure)
}
