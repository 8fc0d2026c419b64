//! Moves retries and scheduled events that are due to their streams.

use super::Chores;
use crate::bus::connect::reconnect_delay;
use crate::bus::delay;
use crate::bus::error::BusError;
use crate::bus::keys::Route;
use std::time::Duration;

/// Events that one call moves from a delay queue at the most.
const PROMOTE: usize = 500;
/// The longest pause between two looks at the delay queues.
const PAUSE: Duration = Duration::from_millis(250);

/// Looks at all queues again and again; at once if there is more.
pub async fn run(chores: &Chores) {
    loop {
        let pause = run_once(chores).await;
        tokio::time::sleep(pause.mul_f64(fastrand::f64() / 2.0 + 0.5)).await;
    }
}

/// Looks at each queue once; returns how long to wait.
async fn run_once(chores: &Chores) -> Duration {
    let mut pause = PAUSE;
    for route in chores.lanes.iter().flat_map(|lane| lane.routes.iter()) {
        match promote(chores, route).await {
            Ok(moved) if moved >= PROMOTE as u64 => pause = Duration::ZERO,
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(stream = route.events, %error, "the delay queue could not be looked at");
                pause = pause.max(reconnect_delay(3));
            }
        }
    }
    pause
}

async fn promote(chores: &Chores, route: &Route) -> Result<u64, BusError> {
    let mut connection = chores.connector.pooled().await?;
    let promoted = delay::promote(&mut connection, route, PROMOTE).await?;
    Ok(promoted.moved + promoted.dead)
}
