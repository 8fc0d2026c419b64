//! Reads the policies, and releases what is parked and not paused any more.
//!
//! The number of the last change is looked at with each pulse, and when a change is told. All replicas release: each
//! call takes those that came first, so it does not matter whose it is. One that does not know of a pause yet releases
//! what others park again.

use super::Chores;
use crate::connect::connector::reconnect_delay;
use crate::connect::error::BusError;
use crate::coordination::error::CoordinationError;
use crate::protocol::keys;
use crate::streams::made;
use crate::streams::park::{self, RELEASED};
use crate::worker::by_node;
use crate::worker::limiting;
use crate::worker::shared::Shared;
use redis::Value;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

/// How long it takes at the most to see that a pause has ended by itself, or that others parked something.
const WHILE_PAUSED: Duration = Duration::from_millis(250);
/// Between two calls that release.
const NEXT: Duration = Duration::from_millis(5);

/// What a look found.
enum Found {
    /// Nothing is parked, and nobody paused anything.
    Nothing,
    /// Something may be parked.
    Parked,
    /// More is to be released.
    More,
}

/// Looks again and again.
pub(super) async fn run(chores: &Chores) {
    let third = chores.settings.heartbeat_ttl / 3;
    loop {
        let pause = match run_once(chores).await {
            Ok(Found::More) => NEXT,
            Ok(Found::Parked) => WHILE_PAUSED.mul_f64(fastrand::f64() / 2.0 + 0.5),
            Ok(Found::Nothing) => third.mul_f64(fastrand::f64() / 2.0 + 0.75),
            Err(error) => {
                tracing::debug!(%error, "what is paused is not known; asking again");
                reconnect_delay(3)
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = chores.policies.changed() => {}
        }
    }
}

async fn run_once(chores: &Chores) -> Result<Found, CoordinationError> {
    let lanes = chores.lanes.now();
    let Some(first) = lanes.first() else {
        return Ok(Found::Nothing);
    };
    let pausing = first.pausing.clone();
    if chores.policies.refresh().await? {
        pausing.changed();
        limiting::follow(&first.router, &pausing.held());
    }
    let look = pausing.before_a_look();
    let (mut waits, mut more) = (HashSet::new(), false);
    let mut failed = None;
    let data: Vec<&Arc<Shared>> = lanes.iter().filter(|lane| lane.name == "data").collect();
    let parked = data.iter().flat_map(|lane| lane.routes.iter());
    let parked: Vec<&str> = parked.map(|route| route.parked.as_str()).collect();
    let mut found = match chores.connector.is_cluster() {
        true => by_node::ask(&chores.connector, &parked, park::ask_kinds).await,
        false => Vec::new(),
    }
    .into_iter();
    for lane in data {
        let known = found.by_ref().take(lane.routes.len()).collect();
        match of_lane(chores, lane, known, &mut waits).await {
            Ok(is_more) => more |= is_more,
            // The node of one partition is away: of the others it is known.
            Err(error) => failed = Some(error),
        }
    }
    if let Some(error) = failed {
        return Err(error.into());
    }
    pausing.looked(&look, &waits);
    let held = pausing.held();
    let now = first.claims.server_now();
    Ok(match () {
        () if more => Found::More,
        () if !waits.is_empty() || held.has_pauses(now) => Found::Parked,
        () => Found::Nothing,
    })
}

/// Looks at the streams of a lane unless it is known what is parked there, adds the types of which something waits, and
/// releases what may be; whether there is more.
async fn of_lane(
    chores: &Chores,
    lane: &Arc<Shared>,
    known: Vec<Option<Value>>,
    waits: &mut HashSet<String>,
) -> Result<bool, BusError> {
    let routes: Vec<_> = lane.routes.iter().collect();
    let Some(first) = routes.first() else {
        return Ok(false);
    };
    let known: Option<Vec<Value>> = known.into_iter().collect();
    let known = known.filter(|known| known.len() == routes.len());
    if known
        .as_ref()
        .is_some_and(|known| known.iter().all(park::is_empty))
    {
        return Ok(false);
    }
    let mut connection = chores.connector.toward(&first.events).pooled().await?;
    let found = park::kinds(&mut connection, &routes).await?;
    let held = lane.pausing.held();
    let now = lane.claims.server_now();
    let most = chores.settings.limits().entry();
    let mut more = false;
    for (route, kinds) in routes.iter().zip(found) {
        for kind in kinds {
            waits.insert(kind.clone());
            let domain = keys::domain_of(&kind);
            if held.pause_of_type(&kind, domain, now).is_some() {
                continue;
            }
            let paused = held.paused_subjects(domain, now);
            let group = &lane.group;
            let released = async {
                made::ensure_there(&mut connection, &lane.process.keys, &route.events).await?;
                park::release(&mut connection, route, group, &kind, RELEASED, most, paused).await
            };
            match released.await {
                Ok((released, is_more)) => {
                    more |= is_more;
                    tracing::debug!(stream = route.events, r#type = kind, released, "released");
                }
                // The stream is of another type, or the server takes no writes.
                Err(error) => {
                    tracing::debug!(stream = route.events, r#type = kind, %error, "nothing is released");
                }
            }
        }
    }
    Ok(more)
}
