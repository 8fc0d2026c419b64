//! What is to be done from time to time, so that nothing is forgotten.

use super::Chores;
use crate::connect::error::BusError;
use crate::worker::takeover::Trigger;
use std::time::Duration;

/// How often the claim counters' time to live is renewed.
const CLAIMS_PAUSE: Duration = Duration::from_secs(3600);

/// Has the lanes look for entries that nobody renewed, several times in the claim time.
pub(super) async fn look_for_stale(chores: &Chores) {
    let pause = chores.settings.claim_idle / 4;
    loop {
        tokio::time::sleep(pause.mul_f64(fastrand::f64() / 2.0 + 0.75)).await;
        chores.triggers.send(&Trigger::Stale);
    }
}

/// Keeps the claim counters from going away.
pub(super) async fn keep_claims(chores: &Chores) {
    loop {
        tokio::time::sleep(CLAIMS_PAUSE).await;
        for lane in chores.lanes.now().iter() {
            if let Ok(mut connection) = chores.connector.pooled().await {
                lane.claims.keep(&mut connection).await.ok();
            }
        }
    }
}

/// Has the server know what those call who may not load scripts, should it have been made to forget.
pub(super) async fn keep_scripts(chores: &Chores) {
    let third = chores.settings.heartbeat_ttl / 3;
    loop {
        if let Err(error) = chores.connector.keep_loaded().await {
            tracing::debug!(%error, "whether the server has all scripts is not known; trying again");
        }
        tokio::time::sleep(third).await;
    }
}

/// Says so where events wait under the name that earlier versions gave the inbox's delay queue. They are
/// left alone: publishers can write there, and the tasks that they announced were assigned again when this
/// worker started. Says it once, and never ends, as no duty does.
pub(super) async fn name_leftovers(chores: &Chores) {
    let key = chores.keys.old_inbox_delayed(chores.id());
    let left = async {
        let mut connection = chores.connector.pooled().await?;
        let mut count = redis::cmd("ZCARD");
        Ok::<u64, BusError>(count.arg(&key).query_async(&mut connection).await?)
    };
    match left.await {
        Ok(0) => {}
        Ok(events) => tracing::warn!(
            key,
            events,
            "retries of an earlier version are left alone: their tasks were assigned again; delete the key"
        ),
        Err(error) => tracing::debug!(key, %error, "could not be looked at"),
    }
    std::future::pending().await
}
