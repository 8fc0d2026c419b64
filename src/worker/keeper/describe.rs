//! Keeps what this worker published of its handlers, and of what it reads.

use super::Chores;
use crate::coordination::catalog;
use std::time::Duration;

/// The pause after a failure.
const PAUSE: Duration = Duration::from_secs(60);

/// Publishes it again and again, long before it lapses.
pub async fn run(chores: &Chores) {
    // The first time may have failed.
    let mut pause = PAUSE;
    loop {
        tokio::time::sleep(pause.mul_f64(fastrand::f64() / 2.0 + 0.75)).await;
        pause = match chores.publish().await {
            Ok(()) => catalog::KEPT / 3,
            Err(error) => {
                tracing::debug!(%error, "what the handlers are could not be published; trying again");
                PAUSE
            }
        };
    }
}
