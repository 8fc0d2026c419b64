//! One ballot: what a vote says, what a ballot is, and the bounds on both.

use crate::coordination::bounds::{check_id, invalid};
use crate::coordination::error::CoordinationError;
use crate::protocol::canonical::canonical;
use crate::protocol::keys;
use crate::protocol::msgpack::PayloadLimits;
use crate::protocol::pattern::Pattern;
use std::collections::HashMap;
use std::ops::RangeInclusive;

/// Bytes of a value in its canonical form, and values in it. Every voter's vote is stored.
pub const VALUE: PayloadLimits = PayloadLimits {
    bytes: 1024,
    depth: 16,
    values: 256,
};
/// How long a ballot may be open, in ms: up to a week.
pub const EXPIRES_IN_MS: RangeInclusive<u64> = 1..=7 * 24 * 3_600_000;
/// How long a ballot is open unless the opening vote says otherwise, in ms.
pub const DEFAULT_EXPIRES_IN_MS: u64 = 300_000;

/// The status of a ballot whose votes are stored, and counted by others than the script that stores them.
pub(super) const VOTING: &str = "voting";

/// One vote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vote {
    /// The name of what is decided.
    pub decision: String,
    /// Who votes.
    pub instance_id: String,
    /// What for: any one MessagePack value within [`VALUE`], save NaN. Encodings of the same value
    /// are the same vote, whatever the width of its numbers and the order of its keys; types stay apart,
    /// so the integer 1 and the float 1.0 are two values.
    pub value: Vec<u8>,
    /// With the opening vote: only instances of this role are in the electorate. With a later one it
    /// must be the ballot's; a vote that names none takes part whatever that is.
    pub role: Option<String>,
    /// With the opening vote: how long the ballot is open, in ms, within [`EXPIRES_IN_MS`]. With a
    /// later one it means nothing.
    pub expires_in_ms: u64,
}

impl Vote {
    /// A vote in a ballot of all active instances, open for the protocol's default time.
    pub fn new(
        decision: impl Into<String>,
        instance_id: impl Into<String>,
        value: Vec<u8>,
    ) -> Vote {
        Vote {
            decision: decision.into(),
            instance_id: instance_id.into(),
            value,
            role: None,
            expires_in_ms: DEFAULT_EXPIRES_IN_MS,
        }
    }

    /// Checks every bound and gives the value's canonical form.
    pub(crate) fn check(&self) -> Result<Vec<u8>, CoordinationError> {
        check_decision(&self.decision)?;
        check_id("instance_id", &self.instance_id)?;
        if let Some(role) = &self.role {
            keys::check_name("role", role).map_err(|error| invalid(format!("role: {error}")))?;
        }
        if !EXPIRES_IN_MS.contains(&self.expires_in_ms) {
            let (least, most) = (EXPIRES_IN_MS.start(), EXPIRES_IN_MS.end());
            return Err(invalid(format!(
                "expires_in_ms: {} is not {least} to {most}",
                self.expires_in_ms
            )));
        }
        canonical(&self.value, &VALUE).map_err(|error| {
            let error = error.to_string();
            let reason = error.strip_prefix("data: ").unwrap_or(&error);
            invalid(format!("value: {reason}"))
        })
    }
}

pub(crate) fn check_decision(decision: &str) -> Result<(), CoordinationError> {
    keys::check_name("decision", decision).map_err(|error| invalid(format!("decision: {error}")))
}

/// How a ballot stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BallotStatus {
    /// Votes are counted.
    Open,
    /// A value has quorum.
    Decided,
    /// No value can reach quorum any more.
    Deadlocked,
    /// Its time ran out before.
    Expired,
}

impl BallotStatus {
    /// The name on the bus.
    pub const fn as_str(self) -> &'static str {
        match self {
            BallotStatus::Open => "open",
            BallotStatus::Decided => "decided",
            BallotStatus::Deadlocked => "deadlocked",
            BallotStatus::Expired => "expired",
        }
    }

    pub(crate) fn from_name(name: &str) -> Option<BallotStatus> {
        if name == VOTING {
            return Some(BallotStatus::Open);
        }
        [
            BallotStatus::Open,
            BallotStatus::Decided,
            BallotStatus::Deadlocked,
            BallotStatus::Expired,
        ]
        .into_iter()
        .find(|status| status.as_str() == name)
    }
}

/// A ballot as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ballot {
    /// The name of what is decided.
    pub decision: String,
    /// How it stands.
    pub status: BallotStatus,
    /// The role whose holders may vote; without one all instances that were active.
    pub role: Option<String>,
    /// Votes that were counted, for whatever value.
    pub vote_count: u64,
    /// Votes for the value that has most of them.
    pub leading: u64,
    /// Votes for one value that decide.
    pub quorum: u64,
    /// Instances that may vote.
    pub electorate: u64,
    /// When it was opened, in Unix ms.
    pub opened_at: u64,
    /// When it expires, or would have, in Unix ms.
    pub expires_at: u64,
    /// When it was decided, deadlocked or expired, in Unix ms.
    pub ended_at: Option<u64>,
    /// Until when it is kept, in Unix ms.
    pub kept_until: u64,
    /// What was decided: canonical MessagePack.
    pub value: Option<Vec<u8>>,
    /// Who counts: the pattern in which it was opened.
    pub pattern: Pattern,
}

impl Ballot {
    /// Reads the hash; `None` if it is gone. `now` is the server's time in Unix ms.
    pub fn from_hash(hash: &HashMap<String, Vec<u8>>, now: u64) -> Option<Ballot> {
        let text = |name: &str| {
            hash.get(name)
                .and_then(|value| std::str::from_utf8(value).ok())
                .unwrap_or_default()
        };
        let number = |name: &str| text(name).parse::<u64>().ok();
        let expires_at = number("expires_at")?;
        let (status, ended_at) = match BallotStatus::from_name(text("status"))? {
            // Where others count, it is open until somebody has counted all: its votes may decide it.
            BallotStatus::Open if expires_at <= now && text("status") != VOTING => {
                (BallotStatus::Expired, Some(expires_at))
            }
            status => (status, number("ended_at")),
        };
        Some(Ballot {
            decision: text("decision").to_owned(),
            status,
            role: Some(text("role").to_owned()).filter(|role| !role.is_empty()),
            vote_count: number("vote_count")?,
            leading: number("leading")?,
            quorum: number("quorum")?,
            electorate: number("electorate")?,
            opened_at: number("opened_at")?,
            expires_at,
            ended_at,
            kept_until: number("kept_until")?,
            value: hash.get("value").cloned(),
            pattern: Pattern::named(text("pattern")).unwrap_or(Pattern::Hybrid),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut Vote)) -> String {
        let mut vote = Vote::new("d", "w-1", vec![0xc3]);
        change(&mut vote);
        match vote.check() {
            Err(CoordinationError::Invalid(message)) => message,
            _ => panic!("{vote:?} was not refused"),
        }
    }

    #[test]
    fn what_a_vote_says_is_bounded_and_the_message_names_the_field() {
        assert_eq!(
            Vote::new("d", "w-1", vec![0xcc, 1]).check().ok(),
            Some(vec![1])
        );
        assert!(refused(|v| v.decision = "a:b".into()).starts_with("decision: "));
        assert!(refused(|v| v.decision = "x".repeat(129)).starts_with("decision: "));
        assert!(refused(|v| v.instance_id.clear()).starts_with("instance_id: "));
        assert!(refused(|v| v.role = Some(String::new())).starts_with("role: "));
        for expires_in_ms in [0, 604_800_001, u64::MAX] {
            let refused = refused(|v| v.expires_in_ms = expires_in_ms);
            assert!(refused.starts_with("expires_in_ms: "));
        }
        let mut long = vec![0xc5, 4, 0];
        long.resize(3 + 1024, 0);
        for value in [vec![], vec![0xc1], vec![1, 2], vec![0x91; 17], long] {
            let refused = refused(|v| v.value = value);
            assert!(refused.starts_with("value: "), "{refused}");
        }
    }
}
