//! Sees when the server answers and what its clock does, for whoever judges silence by it.
//!
//! After an outage it must be seen soon that the server is back: from then on the silence of the dead counts (see
//! [`crate::connect::silence`]). So while it does not answer it is asked again and again, each time on a new connection
//! and without waiting for what was asked before: on a wire that died silently no answer comes.

use super::Chores;
use crate::connect::clock::ServerClock;
use crate::connect::error::BusError;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use std::time::{Duration, Instant};
use tokio::time::{MissedTickBehavior, timeout};

/// Asks the server for its time where nobody else did for a while.
pub(super) async fn run(chores: &Chores) {
    let answers = &chores.answers;
    loop {
        let pause = pause(chores);
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
            continue;
        }
        let asked = Instant::now();
        // All that may be lent may hang: it is asked again long before that would be a gap.
        let told = chores.within(answers.again(), chores.instances.server_time());
        match told.await {
            Ok(ms) => answers.heard(asked, ms, chores.connector.epoch()),
            Err(error) => {
                tracing::debug!(%error, "the server does not tell its time");
                let third = chores.settings.heartbeat_ttl / 3;
                until_told(answers.again(), third, || ask_again(chores)).await;
                // What is asked next must not wait for a wire that died in between.
                chores.connector.forget_pooled();
            }
        }
    }
}

/// How long it is until the server must be asked.
fn pause(chores: &Chores) -> Duration {
    let age = chores.answers.age();
    age.map_or(Duration::ZERO, |age| {
        chores.answers.pause().saturating_sub(age)
    })
}

/// Asks on a new connection, unless somebody was answered meanwhile.
async fn ask_again(chores: &Chores) -> Result<(), BusError> {
    if !pause(chores).is_zero() {
        return Ok(());
    }
    let mut wire = chores.connector.wire().await?;
    let source = chores.connector.clock().await?;
    let asked = Instant::now();
    if chores.connector.is_cluster() {
        // TIME is of no slot: it says nothing about whether anybody could pulse.
        wire.ask(&[b"EXISTS", chores.broadcast.as_bytes()]).await?;
    }
    let told = ServerClock::read(&mut wire, source, &chores.broadcast).await?;
    let epoch = chores.connector.epoch();
    chores.answers.heard(asked, told.now(), epoch);
    Ok(())
}

/// Asks once a `pause` until one of those that were asked within the last `limit` is told something.
async fn until_told<T, E, A>(pause: Duration, limit: Duration, ask: impl Fn() -> A) -> T
where
    A: Future<Output = Result<T, E>>,
{
    let mut asked = FuturesUnordered::new();
    let mut next = tokio::time::interval(pause);
    next.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            Some(told) = asked.next() => {
                if let Ok(Ok(told)) = told {
                    return told;
                }
            }
            _ = next.tick() => asked.push(timeout(limit, ask())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn that_the_server_is_back_is_seen_one_pause_later_though_nothing_came_of_what_was_asked_before()
     {
        let ms = Duration::from_millis;
        let (pause, limit) = (ms(100), ms(400));
        for outage in (0..3000).step_by(7) {
            for is_silent in [false, true] {
                let back = Instant::now() + ms(outage);
                let ask = || async move {
                    match back <= Instant::now() {
                        true => Ok(Instant::now()),
                        // It is refused, or its wire died and tells nobody.
                        false if is_silent => std::future::pending().await,
                        false => Err(()),
                    }
                };
                let told = until_told(pause, limit, ask).await;
                assert!(told <= back + pause, "{outage} {is_silent}");
            }
        }
    }
}
