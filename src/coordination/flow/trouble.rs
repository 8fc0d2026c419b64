//! What does not flow, in words: what is wrong, why that matters, how it is mended.

use super::waiting::Waiting;
use crate::protocol::keys::StreamName;
use std::collections::HashMap;

/// Findings of one kind that are told one by one.
pub(super) const TOLD: usize = 5;

/// Something that does not flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// A short name: `stalled`, `no-handler`, …
    pub check: &'static str,
    /// Whether events stand still by it, or may be lost.
    pub severe: bool,
    /// What is wrong.
    pub what: String,
    /// Why that matters.
    pub why: &'static str,
    /// How it is mended.
    pub mend: String,
}

/// The checks, in the order in which they are told.
pub const CHECKS: [&str; 9] = [
    "stalled",
    "no-consumer",
    "no-handler",
    "unread",
    "ledger",
    "delayed",
    "runs",
    "lost",
    "partition",
];

pub(super) fn stalled(one: &Waiting, age: u64) -> Trouble {
    Trouble {
        check: "stalled",
        severe: true,
        what: format!(
            "nothing goes out of {} while {} wait and {} are held; the next one waits for {}",
            one.stream.key,
            one.undelivered(),
            one.pending,
            seconds(age)
        ),
        why: "the workers of its group take nothing new and end nothing: their handlers hang, their circuits are \
              open, or they have no place",
        mend: "convoke top shows which handlers run and since when, convoke pending --running 10s names the events"
            .into(),
    }
}

pub(super) fn no_consumer(one: &Waiting, age: u64) -> Trouble {
    let (key, group) = (&one.stream.key, &one.group);
    Trouble {
        check: "no-consumer",
        severe: false,
        what: format!(
            "{} of {key} wait for the group {group}, which has no consumer, the oldest for {}",
            one.undelivered(),
            seconds(age)
        ),
        why: "nobody reads them in that group, and the stream cannot be trimmed past them: it grows",
        mend: format!(
            "start what reads as {group}; if nothing will any more: redis-cli XGROUP DESTROY {key} {group}"
        ),
    }
}

pub(super) fn no_handler(kind: &str, key: &str) -> Trouble {
    Trouble {
        check: "no-handler",
        severe: false,
        what: format!("{key} holds events of type {kind}, and no instance has a handler for it"),
        why: "whoever reads one makes it a dead letter (unimplemented); where nobody reads, they wait for ever",
        mend: format!(
            "start a worker with a handler for {kind}; if the name is wrong, mend its publisher"
        ),
    }
}

pub(super) fn nobody_reads(name: &StreamName, length: i64, group: &str) -> Trouble {
    let key = &name.key;
    Trouble {
        check: "unread",
        severe: false,
        what: format!("{length} entries are on {key}, which has no group {group}"),
        why: "nobody reads these events: no worker ever had a handler for their domain, or the group was destroyed",
        mend: "start a worker with a handler for it, which makes the group".into(),
    }
}

pub(super) fn seconds(ms: u64) -> String {
    match ms / 1000 {
        s @ 0..120 => format!("{s} s"),
        s @ 120..7200 => format!("{} min", s / 60),
        s => format!("{} h", s / 3600),
    }
}

/// Of each kind the first ones, and how many more there are.
pub(super) fn bounded(mut troubles: Vec<Trouble>) -> Vec<Trouble> {
    troubles.sort_by_key(|trouble| CHECKS.iter().position(|check| *check == trouble.check));
    let mut counts: HashMap<&'static str, usize> = HashMap::new();
    for trouble in &troubles {
        *counts.entry(trouble.check).or_default() += 1;
    }
    let mut told: HashMap<&'static str, usize> = HashMap::new();
    troubles.retain_mut(|trouble| {
        let nth = told.entry(trouble.check).or_default();
        *nth += 1;
        let more = counts[trouble.check].saturating_sub(TOLD);
        if *nth == TOLD && more > 0 {
            trouble
                .what
                .push_str(&format!("; {more} more are like that"));
        }
        *nth <= TOLD
    });
    troubles
}
