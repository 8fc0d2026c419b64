//! Moves retries and scheduled events that are due to their streams.

use super::Chores;
use crate::connect::clock::{ServerClock, local_now};
use crate::connect::connector::reconnect_delay;
use crate::connect::error::BusError;
use crate::protocol::keys::StreamKeys;
use crate::streams::delay;
use crate::worker::shared::Shared;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// The longest pause between two looks at the delay queues, while events of this worker's are retried.
const PAUSE: Duration = Duration::from_millis(250);
/// And while none are. What is in the queues leaves them on time all the same; only what comes later, to
/// be run within this time, may have to wait for the next look, unless it is this worker's own.
pub(crate) const IDLE: Duration = Duration::from_millis(500);

/// The time between two looks at the least, however much this worker puts off.
const LEAST: Duration = Duration::from_millis(20);

/// Looks at all queues again and again; at once if there is more, and when the next event is due.
pub(super) async fn run(chores: &Chores) {
    // The local clock, until the server has told its own.
    let mut clock = ServerClock::told(local_now());
    let mut retried = 0;
    loop {
        let retries = |lane: &Arc<Shared>| lane.counts.retried.load(Ordering::Relaxed);
        let until_now = chores.lanes.iter().map(retries).sum();
        let pause = if retried == until_now { IDLE } else { PAUSE };
        retried = until_now;
        let pause = match run_once(chores, &mut clock, pause).await {
            Ok(pause) => pause,
            Err(error) => {
                tracing::debug!(%error, "the delay queues could not be looked at");
                reconnect_delay(3)
            }
        };
        let soon = chores
            .lanes
            .iter()
            .map(|lane| Box::pin(lane.soon.notified()));
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = futures_util::future::select_all(soon) => tokio::time::sleep(LEAST).await,
        }
    }
}

/// Looks at each queue once; returns how long to wait, `pause` at the most. To look is one round trip for
/// all queues; only where something is due before the next look does the script run, which tells when.
async fn run_once(
    chores: &Chores,
    clock: &mut ServerClock,
    pause: Duration,
) -> Result<Duration, BusError> {
    let lanes = chores.lanes.iter();
    let routes: Vec<&StreamKeys> = lanes.flat_map(|lane| lane.routes.iter()).collect();
    let mut connection = chores.connector.pooled().await?;
    let source = chores.connector.clock().await?;
    let until = clock.now() + pause.as_millis() as u64;
    let asked = Instant::now();
    let (due, told) = delay::due_by(&mut connection, &routes, source, until).await?;
    *clock = told;
    let epoch = chores.connector.epoch();
    chores.answers.heard(asked, clock.now(), epoch);
    let now = clock.now();
    // Not all workers at the same moment.
    let mut pause = pause.mul_f64(fastrand::f64() / 2.0 + 0.5);
    let mut refused = false;
    for (route, _) in routes.iter().zip(due).filter(|(_, due)| *due) {
        let most = chores.settings.limits().entry();
        match delay::promote(&mut connection, route, delay::AT_ONCE, most).await {
            Ok(promoted) => {
                let next = promoted.next_due_ms.unwrap_or(u64::MAX);
                pause = pause.min(Duration::from_millis(next.saturating_sub(now)));
            }
            Err(error) => {
                tracing::debug!(stream = route.events, %error, "nothing leaves the delay queue");
                refused = true;
            }
        }
    }
    // The stream is of another type, or the server takes no writes.
    Ok(if refused {
        pause.max(reconnect_delay(3))
    } else {
        pause
    })
}
