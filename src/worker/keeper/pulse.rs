//! Says that the instance lives and what it did; registers again after having been declared lost, and where
//! somebody changed what it registered.
//!
//! Nothing may make a pulse late: what else it is a good time for is left to the next one where it takes until then,
//! and after a failed pulse each try has a connection of its own, which waits for nothing that hangs.

use super::neighbours::Neighbours;
use super::{Chores, Standing, Worker, peers, send};
use crate::connect::backoff::Backoff;
use crate::coordination::error::CoordinationError;
use crate::coordination::instances::Pulse;
use crate::coordination::instances::instance::Beat;
use crate::protocol::pattern::{Pattern, Patterned};
use std::convert::Infallible;
use std::time::Instant;
use tokio::sync::watch;

/// When a worker pulsed last that has no keeper yet, and as which incarnation; the registration is a pulse.
#[derive(Debug, Default)]
pub(in crate::worker) struct Pulsed(watch::Sender<Option<(u64, Instant)>>);

impl Pulsed {
    /// Notes a pulse that was asked for then.
    pub(in crate::worker) fn note(&self, incarnation: u64, asked: Instant) {
        self.0.send_replace(Some((incarnation, asked)));
    }

    /// As which incarnation the worker is registered, if it is.
    pub(in crate::worker) fn incarnation(&self) -> Option<u64> {
        self.0.borrow().map(|(incarnation, _)| incarnation)
    }

    fn last(&self) -> Option<Instant> {
        self.0.borrow().map(|(_, last)| last)
    }

    /// Keeps the worker alive from its registration on.
    pub(in crate::worker) async fn keep(&self, worker: &Worker) -> Infallible {
        let third = worker.settings.heartbeat_ttl / 3;
        let mut registered = self.0.subscribe();
        // It cannot be closed while this one borrows it.
        registered.wait_for(Option::is_some).await.ok();
        let mut next = self.last().unwrap_or_else(Instant::now) + third;
        loop {
            tokio::time::sleep_until(next.into()).await;
            let (asked, incarnation) = (Instant::now(), self.incarnation());
            let pulse = async {
                let connector = worker.process.connector.apart(third / 2)?;
                let beat = Beat::new(worker.id(), incarnation);
                worker.instances.by(connector).heartbeat(&beat).await
            };
            next = match (tokio::time::timeout(third / 2, pulse).await, incarnation) {
                (Ok(Ok(_)), Some(incarnation)) => {
                    self.note(incarnation, asked);
                    asked + third
                }
                _ => Instant::now() + third / 4,
            };
        }
    }
}

/// Pulses every third of the time to live.
pub(super) async fn run(chores: &Chores) {
    let third = chores.settings.heartbeat_ttl / 3;
    let (mut backoff, mut own) = (Backoff::default(), None);
    let mut neighbours = Neighbours::default();
    let mut next = chores.pulsed.last().unwrap_or_else(Instant::now) + third;
    by(next, "contending for the lead", chores.contend()).await;
    loop {
        tokio::time::sleep_until(next.into()).await;
        let began = Instant::now();
        if backoff.is_failing() {
            neighbours = Neighbours::default();
        } else if neighbours.round(chores).await {
            next = began + third;
            continue;
        }
        let sent = match backoff.is_failing() {
            true => None,
            false => send::send(chores, own.as_ref()).await,
        };
        if let Some(watch) = sent {
            let peers = Box::pin(peers::run_once(chores, watch));
            by(began + third, "what follows a pulse", peers).await;
            next = began + third;
            continue;
        }
        next = match run_once(chores, backoff.is_failing(), neighbours.lasting).await {
            Ok(pulse) => {
                if backoff.worked() {
                    tracing::info!("pulsing again");
                }
                own = pulse.as_ref().map(|pulse| send::Own::of(began, pulse));
                let follow = follow(chores, pulse, &mut neighbours);
                by(began + third, "what follows a pulse", follow).await;
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

/// Does it until then; what it did not do by then the next pulse does.
async fn by(then: Instant, what: &str, duty: impl Future<Output = Result<(), CoordinationError>>) {
    match tokio::time::timeout_at(then.into(), duty).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "{what} failed; the next pulse does it"),
        Err(_) => tracing::debug!("{what} took too long; the next pulse does it"),
    }
}

/// One pulse.
async fn run_once(
    chores: &Chores,
    fails: bool,
    lasting: bool,
) -> Result<Option<Pulse>, CoordinationError> {
    let third = chores.settings.heartbeat_ttl / 3;
    // After a failure there is less time.
    let most = if fails { third / 2 } else { third };
    let apart = match fails {
        true => Some(chores.instances.by(chores.connector.apart(most)?)),
        false => None,
    };
    let instances = apart.as_ref().unwrap_or(&chores.instances);
    let report = chores.reporter.report();
    let standing = chores.standing().clone();
    let beat = Beat {
        load: Some(chores.reporter.tasks() as f64),
        metrics: Some(chores.reporter.news_of(&report)),
        seal: Some(standing.seal),
        lasting,
        ..Beat::new(chores.id(), Some(standing.incarnation))
    };
    let began = Instant::now();
    let pulse = chores.within(most, instances.heartbeat(&beat)).await;
    // A pulse of its own is written at once, in whatever pattern it had to be.
    let of = (Patterned::Heartbeat, Pattern::Centralized);
    chores.patterns.answered(of, began, &pulse, |_| None);
    let pulse = pulse?;
    if pulse.superseded {
        chores.reporter.acknowledged(report);
        chores.set_lead(None);
        chores.superseded();
        return Ok(None);
    }
    if pulse.alive {
        chores.reporter.acknowledged(report);
    } else {
        chores.reporter.forget();
        chores.set_lead(None);
    }
    let why = match pulse {
        Pulse { alive: false, .. } => "was declared lost, or what it registered was deleted",
        Pulse { changed: true, .. } => "what it registered was changed by somebody else",
        _ => return Ok(Some(pulse)),
    };
    chores.within(third, register_again(chores, why)).await?;
    Ok(None)
}

/// What a pulse is a good time for.
async fn follow(
    chores: &Chores,
    pulse: Option<Pulse>,
    neighbours: &mut Neighbours,
) -> Result<(), CoordinationError> {
    let Some(pulse) = pulse else {
        return Ok(());
    };
    match pulse.leader {
        Some(leader) if leader != chores.id() => chores.set_lead(None),
        _ => chores.contend().await?,
    }
    Box::pin(neighbours.follow(chores, &pulse.watch)).await?;
    Box::pin(peers::run_once(chores, pulse.watch)).await
}

pub(super) async fn register_again(chores: &Chores, why: &str) -> Result<(), CoordinationError> {
    // The server may have lost this too.
    chores.publish().await?;
    let mut registering = chores.registering.clone();
    if chores.draining() || chores.lanes.is_quiet() {
        registering.capacity = 0;
    }
    let registered = chores.instances.register_again(&registering).await?;
    // It may have begun meanwhile.
    if chores.draining() || chores.lanes.is_quiet() {
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn what_hangs_is_left_when_the_next_pulse_is_due() {
        let began = tokio::time::Instant::now();
        let due = (began + Duration::from_secs(3)).into_std();
        by(due, "a duty", std::future::pending()).await;
        assert_eq!(began.elapsed().as_secs(), 3);
        by(due, "a duty", async { Ok(()) }).await;
        assert_eq!(began.elapsed().as_secs(), 3);
    }
}
