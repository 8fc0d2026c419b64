//! `system.quorum.vote`, in three patterns ([`pattern`](crate::protocol::pattern)).

pub(crate) mod counting;

use crate::builtin::Services;
use crate::builtin::system::encoded;
use crate::coordination::ballots::ballot::{BallotStatus, DEFAULT_EXPIRES_IN_MS, Vote};
use crate::handler::state::State;
use crate::protocol::pattern::Patterned;
use crate::{Context, HandlerError};
use rmpv::Value;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Instant;

#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct QuorumVote {
    /// The name of what is decided: one name for one decision.
    decision: String,
    /// Who votes. Whoever may publish this event may name any instance.
    instance_id: String,
    /// What for: any value of at most 1024 bytes.
    #[schemars(with = "serde_json::Value")]
    value: Value,
    /// Who may vote, if this opens the ballot: active instances of this role; all without it.
    role: Option<String>,
    /// How long the ballot is open, if this opens it.
    #[serde(default = "five_minutes")]
    expires_in_ms: u64,
}

fn five_minutes() -> u64 {
    DEFAULT_EXPIRES_IN_MS
}

/// How a ballot stands.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum StatusName {
    Open,
    Decided,
    Deadlocked,
    Expired,
}

impl From<BallotStatus> for StatusName {
    fn from(status: BallotStatus) -> Self {
        match status {
            BallotStatus::Open => StatusName::Open,
            BallotStatus::Decided => StatusName::Decided,
            BallotStatus::Deadlocked => StatusName::Deadlocked,
            BallotStatus::Expired => StatusName::Expired,
        }
    }
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct QuorumVoted {
    /// Whether this vote is counted, now or since an earlier call.
    voted: bool,
    quorum_reached: bool,
    /// What was decided, once it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "serde_json::Value")]
    final_decision: Option<Value>,
    /// Votes that were counted, for whatever value.
    vote_count: u64,
    /// Votes for one value that decide.
    quorum: u64,
    /// Instances that may vote.
    electorate: u64,
    status: StatusName,
}

pub(super) async fn quorum_vote(
    context: Context,
    event: QuorumVote,
    services: State<Services>,
) -> Result<QuorumVoted, HandlerError> {
    let vote = Vote {
        decision: event.decision,
        instance_id: event.instance_id,
        value: encoded(&event.value),
        role: event.role,
        expires_in_ms: event.expires_in_ms,
    };
    let began = Instant::now();
    let pattern = services.patterns.of(Patterned::Quorum);
    let voted = match services.ballots.take(&vote, pattern).await {
        Ok(taken) => counting::counted(&context, &services, &vote.decision, taken).await,
        Err(error) => Err(error.into_handler_error()),
    };
    let of = (Patterned::Quorum, pattern);
    services.patterns.answered(of, began, &voted, |_| None);
    let voted = voted?;
    Ok(QuorumVoted {
        voted: voted.voted,
        quorum_reached: voted.status == BallotStatus::Decided,
        final_decision: voted.decision.as_deref().map(decoded).transpose()?,
        vote_count: voted.vote_count,
        quorum: voted.quorum,
        electorate: voted.electorate,
        status: voted.status.into(),
    })
}

/// A value that was checked when it was stored.
pub(super) fn decoded(mut value: &[u8]) -> Result<Value, HandlerError> {
    Ok(rmpv::decode::read_value(&mut value)?)
}
