//! Moves retries and scheduled events that are due to their streams.

use super::Chores;
use crate::connect::clock::{ClockSource, ServerClock, local_now};
use crate::connect::connector::{Connector, reconnect_delay};
use crate::connect::error::BusError;
use crate::protocol::keys::StreamKeys;
use crate::streams::delay;
use crate::streams::made;
use crate::worker::by_node;
use futures_util::future::join_all;
use redis::Value;
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
        let lanes = chores.lanes.now();
        let until_now = chores.lanes.count(|counts| &counts.retried);
        let pause = if retried == until_now { IDLE } else { PAUSE };
        retried = until_now;
        let pause = match run_once(chores, &mut clock, pause).await {
            Ok(pause) => pause,
            Err(error) => {
                tracing::debug!(%error, "the delay queues could not be looked at");
                reconnect_delay(3)
            }
        };
        let soon = lanes.iter().map(|lane| Box::pin(lane.soon.notified()));
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = futures_util::future::select_all(soon) => tokio::time::sleep(LEAST).await,
        }
    }
}

/// Looks at each queue once; returns how long to wait, `pause` at the most. To look is one round trip for
/// all queues of a server; only where something is due before the next look does the script run, which tells when.
async fn run_once(
    chores: &Chores,
    clock: &mut ServerClock,
    pause: Duration,
) -> Result<Duration, BusError> {
    let lanes = chores.lanes.now();
    let routes: Vec<&StreamKeys> = lanes.iter().flat_map(|lane| lane.routes.iter()).collect();
    let look = Look {
        chores,
        source: chores.connector.clock().await?,
        until: clock.now() + pause.as_millis() as u64,
    };
    // Not all workers at the same moment.
    let pause = pause.mul_f64(fastrand::f64() / 2.0 + 0.5);
    let asked = Instant::now();
    let heard = |ms| chores.answers.heard(asked, ms, chores.connector.epoch());
    if !chores.connector.is_cluster() {
        let (told, next) = look.at(&chores.connector, &routes).await?;
        heard(told.now());
        *clock = told;
        return Ok(match next {
            Next::In(next) => pause.min(next),
            // The stream is of another type, or the server takes no writes.
            Next::Refused => pause.max(reconnect_delay(3)),
        });
    }
    let queues: Vec<&str> = routes.iter().map(|route| route.delayed.as_str()).collect();
    let asks = by_node::asks(&chores.connector, &queues, |queue| {
        delay::count_due(queue, look.until)
    });
    // The queues of a node that is away keep none of the others waiting.
    let each = asks.into_iter().map(async |asked| {
        let asked = asked.await.into_iter();
        let due = asked.filter(|(_, due)| matches!(due, None | Some(Value::Int(1..))));
        let next = join_all(due.map(async |(at, _)| {
            let route = routes[at];
            let connector = chores.connector.toward(&route.delayed);
            match look.at(&connector, &[route]).await {
                Ok((_, Next::In(next))) => next,
                Ok((_, Next::Refused)) => pause,
                Err(error) => {
                    tracing::debug!(stream = route.events, %error, "the delay queue could not be looked at");
                    pause
                }
            }
        }));
        next.await.into_iter().fold(pause, Duration::min)
    });
    // What it says counts from when it comes, however long a node of the queues takes.
    let told = async {
        let told = ServerClock::told(chores.instances.server_time().await?);
        heard(told.now());
        Ok::<_, BusError>(told)
    };
    let (told, each) = tokio::join!(told, join_all(each));
    *clock = told?;
    Ok(each.into_iter().fold(pause, Duration::min))
}

/// When to look again.
enum Next {
    In(Duration),
    Refused,
}

/// One look at delay queues.
struct Look<'a> {
    chores: &'a Chores,
    source: ClockSource,
    until: u64,
}

impl Look<'_> {
    /// Looks at the queues of one server, and moves what is due: what its clock says, and when to look again.
    async fn at(
        &self,
        connector: &Connector,
        routes: &[&StreamKeys],
    ) -> Result<(ServerClock, Next), BusError> {
        let mut connection = connector.pooled().await?;
        let queue = routes.first().map(|route| &route.delayed);
        let asked = (self.source, &**queue.unwrap_or(&self.chores.broadcast));
        let (due, clock) = delay::due_by(&mut connection, routes, asked, self.until).await?;
        let now = clock.now();
        let mut next = Next::In(Duration::MAX);
        for (route, _) in routes.iter().zip(due).filter(|(_, due)| *due) {
            let most = self.chores.settings.limits().entry();
            let moved = async {
                made::ensure_there(&mut connection, &self.chores.keys, &route.events).await?;
                delay::promote(&mut connection, route, delay::AT_ONCE, most).await
            };
            match moved.await {
                Ok(promoted) => {
                    let due = promoted.next_due_ms.unwrap_or(u64::MAX);
                    let wait = Duration::from_millis(due.saturating_sub(now));
                    if let Next::In(soonest) = &mut next {
                        *soonest = wait.min(*soonest);
                    }
                }
                Err(error) => {
                    tracing::debug!(stream = route.events, %error, "nothing leaves the delay queue");
                    next = Next::Refused;
                }
            }
        }
        Ok((clock, next))
    }
}
