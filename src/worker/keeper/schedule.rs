//! Stores the events of schedules whose tick is due.
//!
//! All replicas look, so that no tick waits for an election; the leader a little sooner, so that mostly one calls.

use super::Chores;
use crate::connect::connector::reconnect_delay;
use std::time::Duration;

/// The longest pause between two looks: a change of a schedule is told by a fact, which may be missed.
const PAUSE: Duration = Duration::from_secs(5);
/// How much later those who do not lead look.
const BEHIND: Duration = Duration::from_millis(100);

/// Looks again and again: when the next tick is due, and when a schedule changed.
pub(super) async fn run(chores: &Chores) {
    loop {
        let pause = match chores.schedules.fire_due(chores.id()).await {
            Ok(next) => next.unwrap_or(PAUSE).min(PAUSE),
            Err(error) => {
                tracing::debug!(%error, "the schedules could not be looked at");
                reconnect_delay(3)
            }
        };
        let behind = match chores.leads() {
            true => Duration::ZERO,
            false => BEHIND.mul_f64(fastrand::f64() + 0.5),
        };
        tokio::select! {
            () = tokio::time::sleep(pause + behind) => {}
            () = chores.schedules.changed() => {}
        }
    }
}
