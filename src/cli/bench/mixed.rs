//! Heartbeats are answered while the data lane is flooded.

use super::figure::{Figure, Goal};
use super::meter::{Mark, Sample};
use super::request::TIMEOUT;
use super::rig::{BARE, Rig, Start, WORKER};
use crate::bench::bare::{self, Requester};
use crate::bench::load::Load;
use convoke::client::publish::Outgoing;
use convoke::client::{Client, ClientOptions};
use convoke::connect::error::BusError;
use serde::Serialize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use tokio_util::task::AbortOnDropHandle;

/// A worker that nothing floods.
const IDLE: &str = "worker, idle";
/// Heartbeats of one source: fewer than it may send a minute.
const OF_A_SOURCE: u64 = 500;
/// Whose heartbeats they are: an instance that registers by an event, as programs without this library do.
const PROGRAM: &str = "bench-program";
/// How long it lives without one, in ms.
const TTL_MS: u64 = 600_000;

#[derive(Serialize)]
struct Register {
    id: &'static str,
    roles: [&'static str; 1],
    capacity: u32,
    ttl_ms: u64,
}

#[derive(Serialize)]
struct Heartbeat {
    instance_id: &'static str,
}

/// Sends heartbeats, of which no source ever sends too many: a round does not know those of the others.
#[derive(Default)]
struct Beats(AtomicU64);

impl Beats {
    fn next(&self) -> Outgoing {
        let heartbeat = Heartbeat {
            instance_id: PROGRAM,
        };
        let source = self.0.fetch_add(1, Ordering::Relaxed) / OF_A_SOURCE;
        Outgoing::new("system.heartbeat", &heartbeat).source(format!("bench-{source}"))
    }
}

pub(super) async fn measure(rig: &Rig) -> anyhow::Result<()> {
    let flood = rig.load(1, None);
    let mut control = rig.load(2, None);
    control.routes.remove(0);
    control.kinds.remove(0);
    control.reply_to = rig.keys.reply("bench", 0, "bench-control");
    let events = rig.plan.events;
    let beats = Beats::default();
    let one = async |side, events| match side {
        BARE => by_hand(rig, &flood, &control, events).await,
        side => by_worker(rig, &flood, side == WORKER, events, &beats).await,
    };
    let [bare, idle, worker] = rig.rounds([BARE, IDLE, WORKER], events, one).await?;
    let sides = [(BARE, &bare), (IDLE, &idle), (WORKER, &worker)];
    let p99 = |s: &Sample| s.p99.unwrap_or(f64::NAN);
    rig.tell(
        Figure::new("mixed", "heartbeats under a flood", "us", events, &sides)
            .ratio(
                "p50, worker flooded / idle",
                &worker,
                &idle,
                |s| s.value,
                None,
            )
            .ratio("p99, worker flooded / idle", &worker, &idle, p99, None)
            .ratio(
                "p99, worker / bare",
                &worker,
                &bare,
                p99,
                Some(Goal::AtMost(1.0)),
            ),
    )?;
    control.remove(&rig.connector).await?;
    Ok(flood.remove(&rig.connector).await?)
}

/// Work floods in.
fn filling(rig: &Rig, flood: &Load, events: u64) -> AbortOnDropHandle<Result<(), BusError>> {
    let (flood, connector) = (flood.clone(), rig.connector.clone());
    let filling = async move { flood.fill(&connector, events, true, None).await };
    AbortOnDropHandle::new(tokio::spawn(filling))
}

/// The bare loop consumes; another one answers on a stream of its own.
async fn by_hand(rig: &Rig, flood: &Load, control: &Load, events: u64) -> anyhow::Result<Sample> {
    let connector = &rig.connector;
    flood.remove(connector).await?;
    control.remove(connector).await?;
    flood.ensure_groups(connector).await?;
    control.ensure_groups(connector).await?;
    let race = Start::default().race(events);
    let answering = {
        let (control, connector) = (control.clone(), connector.clone());
        AbortOnDropHandle::new(tokio::spawn(async move {
            bare::answer_all(&control, &connector).await
        }))
    };
    let mut requester = Requester::new(control, connector).await?;
    requester.ask(1, 1).await?;
    let (before, begin) = (rig.usage().await?, Mark::now());
    let consuming = {
        let (flood, connector, race) = (flood.clone(), connector.clone(), race.clone());
        AbortOnDropHandle::new(tokio::spawn(async move {
            bare::consume(&flood, &connector, &race, "bare", true, bare::OUTSTANDING).await
        }))
    };
    let filling = filling(rig, flood, events);
    let mut times = Vec::new();
    while times.is_empty() || race.taken() < events && !consuming.is_finished() {
        let asked = requester.ask(1, 1).await?;
        times.extend(asked.iter().map(std::time::Duration::as_secs_f64));
    }
    filling.await??;
    consuming.await??;
    let end = Mark::now();
    let after = rig.usage().await?;
    drop(answering);
    Ok(Sample::between([begin, end], [&before, &after], events).with_times(times))
}

async fn by_worker(
    rig: &Rig,
    flood: &Load,
    flooded: bool,
    events: u64,
    beats: &Beats,
) -> anyhow::Result<Sample> {
    let connector = &rig.connector;
    flood.remove(connector).await?;
    let race = Start::default().race(events);
    let worker = [rig.worker("bench-0", flood, &race)?];
    let options = ClientOptions::from(&rig.settings);
    let client = Client::new(connector.clone(), rig.keys.clone(), options)?;
    let register = Register {
        id: PROGRAM,
        roles: ["program"],
        capacity: 0,
        ttl_ms: TTL_MS,
    };
    // The worker is there once it answers.
    client
        .request(Outgoing::new("system.register", &register), TIMEOUT)
        .await?;
    let beat = async || {
        let event = beats.next();
        let began = Instant::now();
        client.request(event, TIMEOUT).await?;
        anyhow::Ok(began.elapsed().as_secs_f64())
    };
    beat().await?;
    let (before, begin) = (rig.usage().await?, Mark::now());
    let mut times = Vec::new();
    if flooded {
        let filling = filling(rig, flood, events);
        while times.is_empty() || race.taken() < events && !worker[0].is_over() {
            times.push(beat().await?);
        }
        filling.await??;
        rig.until_done(flood, &race, &worker).await?;
    } else {
        for _ in 0..rig.plan.requests {
            times.push(beat().await?);
        }
    }
    let end = Mark::now();
    let after = rig.usage().await?;
    for worker in worker {
        worker.stop().await?;
    }
    client.close().await;
    let handled = if flooded { events } else { times.len() as u64 };
    Ok(Sample::between([begin, end], [&before, &after], handled).with_times(times))
}
