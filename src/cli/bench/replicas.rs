//! Several consumers on one stream.
//!
//! The workers are in this one process, each with connections, lanes and a keeper of its own. So
//! they have the cores that the loops have, and what is measured is what they cost each other.

use super::drain::Drain;
use super::figure::{Figure, Samples};
use super::rig::{BARE, RAW, Rig, WORKER};
use crate::bench::bare::OUTSTANDING;

pub(super) async fn measure(rig: &Rig) -> anyhow::Result<()> {
    let load = rig.load(1, None);
    let events = rig.plan.events;
    let most = if rig.plan.quick { 2 } else { 4 };
    let mut alone: Option<Samples> = None;
    for consumers in 1..=most {
        let drain = Drain {
            load: &load,
            reply: true,
            consumers,
            outstanding: OUTSTANDING,
        };
        let [raw, bare, worker] = drain.rounds(rig, events).await?;
        let case = match consumers {
            1 => "1 replica".to_owned(),
            _ => format!("{consumers} replicas"),
        };
        let sides = [(RAW, &raw), (BARE, &bare), (WORKER, &worker)];
        let mut figure = Figure::new("replicas", case, "events/s", events, &sides)
            .ratio("speed, worker / bare", &worker, &bare, |s| s.value, None)
            .ratio("speed, worker / raw", &worker, &raw, |s| s.value, None);
        if let Some(alone) = &alone {
            let what = format!("speed, {consumers} workers / 1");
            figure = figure.ratio(what, &worker, alone, |s| s.value, None);
        }
        rig.tell(figure)?;
        alone.get_or_insert(worker);
    }
    Ok(())
}
