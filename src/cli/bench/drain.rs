//! A full stream is consumed.

use super::figure::{Figure, Goal, Samples};
use super::meter::{Mark, Sample};
use super::rig::{BARE, RAW, Rig, Start, WORKER};
use crate::bench::bare::OUTSTANDING;
use crate::bench::load::Load;
use crate::bench::{bare, raw};
use anyhow::Context as _;
use futures_util::future::try_join_all;

/// What is consumed, and by how many.
#[derive(Clone, Copy, Debug)]
pub(super) struct Drain<'a> {
    pub(crate) load: &'a Load,
    pub(crate) reply: bool,
    pub(crate) consumers: usize,
    /// Batches that each loop keeps outstanding.
    pub(crate) outstanding: usize,
}

pub(super) async fn measure(rig: &Rig) -> anyhow::Result<()> {
    let load = rig.load(1, None);
    let events = rig.plan.events;
    for (case, reply) in [("with replies", true), ("without replies", false)] {
        let drain = Drain {
            load: &load,
            reply,
            consumers: 1,
            outstanding: OUTSTANDING,
        };
        let [raw, bare, worker] = drain.rounds(rig, events).await?;
        let to_raw = reply.then_some(Goal::AtLeast(0.90));
        let sides = [(RAW, &raw), (BARE, &bare), (WORKER, &worker)];
        rig.tell(
            Figure::new("drain", case, "events/s", events, &sides)
                .ratio(
                    "speed, worker / bare",
                    &worker,
                    &bare,
                    |s| s.value,
                    Some(Goal::AtLeast(0.95)),
                )
                .ratio("speed, worker / raw", &worker, &raw, |s| s.value, to_raw)
                .ratio(
                    "client CPU, worker / bare",
                    &worker,
                    &bare,
                    |s| s.client_cpu,
                    Some(Goal::AtMost(1.3)),
                )
                .ratio(
                    "server CPU, worker / bare",
                    &worker,
                    &bare,
                    |s| s.server_cpu,
                    None,
                ),
        )?;
    }
    Ok(())
}

impl Drain<'_> {
    /// All three sides.
    pub(super) async fn rounds(&self, rig: &Rig, events: u64) -> anyhow::Result<[Samples; 3]> {
        let one = async |side, events| self.one(rig, side, events).await;
        rig.rounds([RAW, BARE, WORKER], events, one).await
    }

    async fn one(&self, rig: &Rig, side: &str, events: u64) -> anyhow::Result<Sample> {
        let Drain {
            load,
            reply,
            consumers,
            outstanding,
        } = *self;
        let (connector, way) = (&rig.connector, &rig.way);
        load.remove(connector).await?;
        load.fill(connector, events, reply, None).await?;
        let start = Start::default();
        let race = start.race(events);
        let before = rig.usage().await?;
        let names = (0..consumers).map(|n| format!("bench-{n}"));
        let mut workers = Vec::new();
        let end = match side {
            WORKER => {
                for name in names {
                    workers.push(rig.worker(&name, load, &race)?);
                }
                rig.until_done(load, &race, &workers).await?
            }
            BARE => {
                let consumers = names.map(async |name| {
                    bare::consume(load, way, &race, &name, reply, outstanding).await
                });
                try_join_all(consumers).await?;
                Mark::now()
            }
            _ => {
                let consumers = names.map(async |name| {
                    raw::consume(load, way, &race, &name, reply, outstanding).await
                });
                try_join_all(consumers).await?;
                Mark::now()
            }
        };
        let after = rig.usage().await?;
        for worker in workers {
            worker.stop().await?;
        }
        let end = match side {
            WORKER => end,
            // A reader that waits in vain for more does not count.
            _ => Mark {
                at: race.ended().context("not all was acknowledged")?,
                ..end
            },
        };
        Ok(Sample::between(
            [start.mark()?, end],
            [&before, &after],
            events,
        ))
    }
}
