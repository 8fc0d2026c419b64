//! The same events, spread over more and more streams.

use super::drain::Drain;
use super::entries::tell_flat;
use super::rig::Rig;
use crate::bench::bare::OUTSTANDING;

/// As many as a worker has handlers for at the most, except for those of the bus itself.
const MANY: usize = 960;

pub(super) async fn measure(rig: &Rig) -> anyhow::Result<()> {
    let counts: &[usize] = if rig.plan.quick {
        &[10, 30]
    } else {
        &[10, 100, MANY]
    };
    let mut first = None;
    for &streams in counts {
        let load = rig.load(streams, None);
        let drain = Drain {
            load: &load,
            reply: true,
            consumers: 1,
            outstanding: OUTSTANDING,
        };
        let rounds = drain.rounds(rig, rig.plan.events).await?;
        let case = format!("{streams} streams");
        tell_flat(rig, "streams", case, rig.plan.events, rounds, &mut first)?;
        load.remove(&rig.connector).await?;
    }
    Ok(())
}
