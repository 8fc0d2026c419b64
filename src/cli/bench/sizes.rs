//! Payloads of many sizes.

use super::drain::Drain;
use super::figure::Figure;
use super::rig::{BARE, RAW, Rig, WORKER};
use crate::bench::bare::OUTSTANDING;

/// Bytes of a payload.
const SIZES: [usize; 6] = [64, 256, 1024, 4096, 16_384, 65_536];

pub(super) async fn measure(rig: &Rig) -> anyhow::Result<()> {
    // What a round may take of the server's memory.
    let budget: u64 = if rig.plan.quick { 2 << 20 } else { 256 << 20 };
    for size in SIZES {
        let events = rig.plan.events.min(budget / size as u64);
        let load = rig.load(1, Some(size));
        let drain = Drain {
            load: &load,
            reply: true,
            consumers: 1,
            outstanding: OUTSTANDING,
        };
        let [raw, bare, worker] = drain.rounds(rig, events).await?;
        let case = match size {
            0..1024 => format!("{size} B"),
            _ => format!("{} KiB", size / 1024),
        };
        let sides = [(RAW, &raw), (BARE, &bare), (WORKER, &worker)];
        rig.tell(
            Figure::new("sizes", case, "events/s", events, &sides)
                .ratio("speed, worker / bare", &worker, &bare, |s| s.value, None)
                .ratio("speed, worker / raw", &worker, &raw, |s| s.value, None),
        )?;
    }
    Ok(())
}
