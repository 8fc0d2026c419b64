//! What is to be done from time to time, so that nothing is forgotten.

use super::Chores;
use crate::connect::error::BusError;
use crate::streams::claim;
use crate::worker::by_node;
use crate::worker::takeover::Trigger;
use redis::Value;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How often the claim counters' time to live is renewed.
const CLAIMS_PAUSE: Duration = Duration::from_secs(3600);

/// How long a pooled connection may be unused. More than between two renewals of what a partition's owner has.
const UNUSED: Duration = Duration::from_secs(15);

/// Has the lanes look for entries that nobody renewed, several times in the claim time.
pub(super) async fn look_for_stale(chores: &Chores) {
    let pause = chores.settings.claim_idle / 4;
    loop {
        tokio::time::sleep(pause.mul_f64(fastrand::f64() / 2.0 + 0.75)).await;
        if chores.connector.is_cluster() {
            look_what_is_pending(chores).await;
        }
        chores.triggers.send(&Trigger::Stale);
    }
}

/// Tells each lane whether anything is pending in its streams at all.
async fn look_what_is_pending(chores: &Chores) {
    let lanes = chores.lanes.now();
    let all = lanes.iter().flat_map(|lane| lane.routes.iter());
    let streams: Vec<&str> = all.map(|route| route.events.as_str()).collect();
    let group = &chores.settings.group;
    let asked = by_node::ask(&chores.connector, &streams, |stream| {
        claim::ask_holders(stream, group)
    });
    let mut asked = asked.await.into_iter();
    for lane in lanes.iter() {
        let of_lane = asked.by_ref().take(lane.routes.len());
        let is_none = |summary: &Option<Value>| match summary {
            Some(Value::Array(parts)) => parts.first() == Some(&Value::Int(0)),
            _ => false,
        };
        // All of them: each takes its own.
        let held = of_lane.filter(|summary| !is_none(summary)).count();
        lane.may_hold.store(held > 0, Ordering::Relaxed);
    }
}

/// On a cluster, lets connections go that nobody used of late: each partition has some of its own.
pub(super) async fn let_idle_go(chores: &Chores) {
    loop {
        tokio::time::sleep(UNUSED / 3).await;
        chores.connector.let_idle_go(UNUSED);
        if let Some(lane) = chores.lanes.now().first() {
            lane.process.connector.let_idle_go(UNUSED);
        }
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
