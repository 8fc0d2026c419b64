//! Says that the instance lives and what it did; registers again after having been declared lost, and where
//! somebody changed what it registered.

use super::{Chores, Standing, peers};
use crate::connect::backoff::Backoff;
use crate::coordination::error::CoordinationError;
use crate::coordination::instances::instance::Beat;
use std::time::Instant;

/// Pulses every third of the time to live.
pub(super) async fn run(chores: &Chores) {
    let third = chores.settings.heartbeat_ttl / 3;
    let mut backoff = Backoff::default();
    // The registration was the first pulse.
    let mut next = Instant::now() + third;
    if let Err(error) = chores.contend().await {
        tracing::debug!(%error, "could not contend for the lead; the next pulse does");
    }
    loop {
        tokio::time::sleep_until(next.into()).await;
        let began = Instant::now();
        next = match run_once(chores, backoff.is_failing()).await {
            Ok(()) => {
                if backoff.worked() {
                    tracing::info!("pulsing again");
                }
                began + third
            }
            Err(error) => {
                if !backoff.is_failing() {
                    tracing::warn!(%error, "a pulse failed; trying again");
                }
                // When the server is back, one try that had begun before is in vain, and the next must be early
                // enough for a third one before anybody may be declared lost.
                Instant::now() + backoff.failed().min(third / 4)
            }
        };
    }
}

/// One pulse, and what it is a good time for.
async fn run_once(chores: &Chores, fails: bool) -> Result<(), CoordinationError> {
    let report = chores.reporter.report();
    let standing = chores.standing().clone();
    let beat = Beat {
        load: Some(chores.reporter.tasks() as f64),
        metrics: Some(chores.reporter.news_of(&report)),
        seal: Some(standing.seal),
        ..Beat::new(chores.id(), Some(standing.incarnation))
    };
    let third = chores.settings.heartbeat_ttl / 3;
    let pulse = chores.instances.heartbeat(&beat);
    // After a failure there is less time.
    let most = if fails { third / 2 } else { third };
    let pulse = chores.within(most, pulse).await?;

    if pulse.superseded {
        chores.reporter.acknowledged(report);
        chores.set_lead(None);
        chores.superseded();
        return Ok(());
    }
    if !pulse.alive {
        chores.reporter.forget();
        chores.set_lead(None);
        let why = "was declared lost, or what it registered was deleted";
        return register_again(chores, why).await;
    }
    chores.reporter.acknowledged(report);
    if pulse.changed {
        let why = "what it registered was changed by somebody else";
        return register_again(chores, why).await;
    }
    match pulse.leader {
        Some(leader) if leader != chores.id() => chores.set_lead(None),
        _ => chores.contend().await?,
    }
    if let Err(error) = peers::run_once(chores, pulse.watch).await {
        tracing::debug!(%error, "peers were not looked after; the next pulse does");
    }
    Ok(())
}

async fn register_again(chores: &Chores, why: &str) -> Result<(), CoordinationError> {
    // The server may have lost this too.
    chores.publish().await?;
    let mut registering = chores.registering.clone();
    if chores.draining() {
        registering.capacity = 0;
    }
    let registered = chores.instances.register_again(&registering).await?;
    // It may have begun meanwhile.
    if chores.draining() {
        chores.tasks.retire(chores.id()).await?;
    }
    let Some(registered) = registered else {
        chores.superseded();
        return Ok(());
    };
    let standing = Standing::of(&registering, registered);
    let incarnation = standing.incarnation;
    *chores.standing() = standing;
    tracing::warn!(incarnation, why, "registered again");
    chores.contend().await
}
