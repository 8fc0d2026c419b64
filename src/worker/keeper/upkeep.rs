//! What is to be done from time to time, so that nothing is forgotten.

use super::Chores;
use crate::worker::takeover::Trigger;
use std::time::Duration;

/// How often the claim counters' time to live is set anew.
const CLAIMS_PAUSE: Duration = Duration::from_secs(3600);

/// Has the lanes look for entries that nobody renewed, several times in the claim time.
pub async fn look_for_stale(chores: &Chores) {
    let pause = chores.settings.claim_idle / 4;
    loop {
        tokio::time::sleep(pause.mul_f64(fastrand::f64() / 2.0 + 0.75)).await;
        chores.triggers.send(&Trigger::Stale);
    }
}

/// Keeps the claim counters from going away.
pub async fn keep_claims(chores: &Chores) {
    loop {
        tokio::time::sleep(CLAIMS_PAUSE).await;
        for lane in &chores.lanes {
            if let Ok(mut connection) = chores.connector.pooled().await {
                lane.claims.keep(&mut connection).await.ok();
            }
        }
    }
}
