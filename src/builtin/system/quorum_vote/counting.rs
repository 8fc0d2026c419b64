//! Who counts the votes that the script only stores: the leader, or everyone.

use crate::builtin::Services;
use crate::connect::error::BusError;
use crate::coordination::ballots::Voted;
use crate::coordination::ballots::counting::{Counter, Taken};
use crate::coordination::error::CoordinationError;
use crate::coordination::instances::asking::Ask;
use crate::handler::state::State;
use crate::protocol::pattern::Pattern;
use crate::{Context, HandlerError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// The event by which the leader is asked to count.
pub(in crate::builtin::system) const COUNT: &str = "system.quorum.count";
/// How long a vote waits for the arbiter at most: the ballot goes on without an answer.
const WAIT: Duration = Duration::from_secs(5);
/// How long one leader is waited for, until it is asked who leads by then.
const TURN: Duration = Duration::from_secs(1);
/// The pause before somebody is asked again, where nobody leads.
const PAUSE: Duration = Duration::from_millis(50);
/// Votes that one process has wait for the arbiter at a time; what is over it is answered as it stands.
pub(crate) const PLACES: usize = 16;
/// How many workers ask how many they are, of those that do not lead: one in this many in each round.
const ONE_IN: u8 = 4;
/// As many of them look for what nobody counted, about.
const LOOK: f64 = 4.0;
/// Ballots that one look counts.
const AT_ONCE: usize = 64;

#[derive(Debug, Deserialize, Serialize, JsonSchema)]
pub(in crate::builtin::system) struct Count {
    /// The name of what is decided.
    decision: String,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(in crate::builtin::system) struct DidCount {}

/// Counts the votes of a ballot, if this worker leads.
pub(in crate::builtin::system) async fn count(
    context: Context,
    asked: Count,
    services: State<Services>,
) -> Result<DidCount, HandlerError> {
    let counter = Counter::Arbiter(context.instance());
    let counted = services.ballots.count(&asked.decision, counter).await;
    counted.map_err(CoordinationError::into_handler_error)?;
    Ok(DidCount {})
}

/// How the ballot stands when whoever is to count has done so.
pub(super) async fn counted(
    context: &Context,
    services: &Services,
    decision: &str,
    taken: Taken,
) -> Result<Voted, HandlerError> {
    let stands = match taken.counts {
        None => return Ok(taken.voted),
        Some(Pattern::Centralized) => arbitrated(context, services, decision).await,
        Some(_) => {
            let counted = services.ballots.count(decision, Counter::Everyone).await;
            counted.map(Some)
        }
    };
    Ok(match stands.map_err(uncounted)? {
        // The vote is the one that it was.
        Some(stands) => Voted {
            voted: taken.voted.voted,
            ..stands
        },
        None => taken.voted,
    })
}

/// A vote was stored, and not counted: where a failover came in between, its event is run again, which stores what may be
/// lost.
fn uncounted(error: CoordinationError) -> HandlerError {
    match error {
        CoordinationError::NotFound(_) | CoordinationError::Bus(BusError::OtherEpoch) => {
            HandlerError::later(PAUSE, error.to_string())
        }
        error => error.into_handler_error(),
    }
}

/// Has the leader count; `None`: nobody did in time, and whoever leads next does.
async fn arbitrated(
    context: &Context,
    services: &Services,
    decision: &str,
) -> Result<Option<Voted>, CoordinationError> {
    let Ok(_place) = services.arbitration.try_acquire() else {
        return Ok(None);
    };
    let wait = context.time_left().map_or(WAIT, |left| left / 2).min(WAIT);
    let (began, me) = (Instant::now(), context.instance());
    // What is made of strings is always encoded.
    let data = rmp_serde::to_vec_named(&Count {
        decision: decision.to_owned(),
    });
    let data = data.unwrap_or_default();
    loop {
        let elected = services.instances.elected().await?;
        let left = wait.saturating_sub(began.elapsed());
        match elected.map(|(leader, _)| leader) {
            Some(leader) if leader == me => {
                match services.ballots.count(decision, Counter::Arbiter(me)).await {
                    Err(CoordinationError::Aborted(_)) => {}
                    counted => return counted.map(Some),
                }
            }
            Some(leader) => {
                let turn = TURN.min(left);
                let ask = Ask {
                    from: me,
                    kind: COUNT,
                    id: decision,
                    data: &data,
                };
                let answer = services.instances.ask_one(&leader, ask, turn).await?;
                if answer.is_some_and(|reply| reply.get("status") == Some(b"ok")) {
                    return services.ballots.stands(decision).await;
                }
            }
            None => {}
        }
        if began.elapsed() >= wait || context.draining().is_cancelled() {
            return Ok(None);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Counts what nobody has: of whoever stored a vote and died, or found no leader. The leader does so in each round, and
/// about four others where everyone counts.
pub(crate) async fn count_left(
    services: &Services,
    id: &str,
    leads: bool,
) -> Result<(), CoordinationError> {
    if !leads && fastrand::u8(..ONE_IN) > 0 {
        return Ok(());
    }
    if !leads {
        // Before the list is read, which may be long.
        let (_, active) = services.instances.moment().await?;
        if fastrand::f64() > f64::from(ONE_IN) * LOOK / active.max(1) as f64 {
            return Ok(());
        }
    }
    let mut left = services.ballots.uncounted().await?;
    left.retain(|one| leads || one.pattern != Pattern::Centralized);
    let counter = match leads {
        true => Counter::Arbiter(id),
        false => Counter::Everyone,
    };
    for one in left.into_iter().take(AT_ONCE) {
        match services.ballots.count(&one.decision, counter).await {
            Err(CoordinationError::NotFound(_) | CoordinationError::Aborted(_)) | Ok(_) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::error::Refusal;

    #[test]
    fn a_vote_between_whose_storing_and_counting_the_server_failed_over_is_taken_again() {
        let gone = CoordinationError::NotFound("no ballot".into());
        for error in [gone, CoordinationError::Bus(BusError::OtherEpoch)] {
            let error = uncounted(error);
            assert_eq!(error.refusal, Some(Refusal::Busy), "{error}");
        }
        let refused = uncounted(CoordinationError::Aborted("became more".into()));
        assert_eq!(refused.refusal, None, "{refused}");
    }
}
