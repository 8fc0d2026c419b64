//! A full stream is consumed from some way off: by loops that keep four batches outstanding, and by a worker.

use super::drain::Drain;
use super::figure::{Check, Figure, Goal, Spread};
use super::proxy::Proxy;
use super::rig::{BARE, RAW, Rig, WORKER};
use anyhow::Context as _;
use redis::{ConnectionAddr, IntoConnectionInfo};
use std::time::{Duration, Instant};

/// What the way to the server and back takes, in us, besides what it takes anyway.
const ROUND_TRIPS: [u64; 5] = [0, 500, 1000, 2000, 5000];
/// Batches that the loops keep outstanding.
const OUTSTANDING: usize = 4;
/// How often the way is measured.
const PINGS: usize = 20;

pub(super) async fn measure(rig: &Rig) -> anyhow::Result<()> {
    let url = rig.settings.redis_url.expose();
    let place = url.into_connection_info()?;
    let ConnectionAddr::Tcp(host, port) = place.addr() else {
        anyhow::bail!("distance: the server must be named by redis://HOST:PORT, without TLS");
    };
    for us in ROUND_TRIPS {
        let round_trip = Duration::from_micros(us);
        let proxy = Proxy::to(host, *port, round_trip).context("a proxy cannot listen")?;
        let far = rig.through(proxy.port())?;
        let pings = pings(&far).await?;
        let load = far.load(1, None);
        let drain = Drain {
            load: &load,
            reply: true,
            consumers: 1,
            outstanding: OUTSTANDING,
        };
        let events = rig.plan.events;
        let [raw, bare, worker] = drain.rounds(&far, events).await?;
        let sides = [(RAW, &raw), (BARE, &bare), (WORKER, &worker)];
        let case = format!("a round trip of {} ms", us as f64 / 1000.0);
        let goal = (us == 2000).then_some(Goal::AtLeast(0.85));
        let mut figure = Figure::new("distance", case, "events/s", events, &sides)
            .ratio("speed, worker / raw", &worker, &raw, |s| s.value, goal)
            .ratio("speed, worker / bare", &worker, &bare, |s| s.value, None);
        let measured = Check::new("round trip as measured, ms", pings, None);
        figure.checks.push(measured);
        rig.tell(figure)?;
    }
    Ok(())
}

/// What the way takes, in ms.
async fn pings(far: &Rig) -> anyhow::Result<Spread> {
    let mut connection = far.way.dedicated().await?;
    let mut times = Vec::new();
    for _ in 0..PINGS {
        let began = Instant::now();
        redis::cmd("PING").exec_async(&mut connection).await?;
        times.push(began.elapsed().as_secs_f64() * 1e3);
    }
    Ok(Spread::of(times))
}
