//! What a walk found, counted by type and by stream.

use crate::cli::output::number;
use convoke::operator::replay::planning::Candidate;
use std::collections::BTreeMap;

/// Types that a question names.
const NAMED: usize = 3;
/// Reasons and types that are told apart; what comes on top is counted together.
const TOLD: usize = 100;

/// What a walk came to.
#[derive(Default)]
pub(super) struct Tally {
    pub(super) chosen: u64,
    /// What a program could not mend.
    pub(super) unmended: u64,
    pub(super) types: BTreeMap<String, u64>,
    pub(super) streams: BTreeMap<String, u64>,
    pub(super) left: BTreeMap<String, u64>,
}

/// Counts one more of that.
pub(super) fn add(counts: &mut BTreeMap<String, u64>, what: &str) {
    let known = counts.len() < TOLD || counts.contains_key(what);
    *counts
        .entry(if known { what } else { "…" }.to_owned())
        .or_default() += 1;
}

impl Tally {
    pub(super) fn note(&mut self, candidate: &Candidate) {
        match &candidate.left {
            Some(why) => add(&mut self.left, why),
            None => {
                self.chosen += 1;
                add(&mut self.types, &candidate.kind);
                add(&mut self.streams, &candidate.to);
            }
        }
    }

    /// `image.resize 9,998, mail.send 2`
    pub(super) fn named(counts: &BTreeMap<String, u64>) -> String {
        let mut most: Vec<_> = counts.iter().collect();
        most.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
        let named = most.iter().take(NAMED);
        let mut text: Vec<String> = named
            .map(|(name, n)| format!("{name} {}", number(**n)))
            .collect();
        if most.len() > NAMED {
            text.push(format!("and {} more", most.len() - NAMED));
        }
        text.join(", ")
    }

    pub(super) fn streams(&self) -> String {
        let named: Vec<&str> = self
            .streams
            .keys()
            .take(NAMED)
            .map(String::as_str)
            .collect();
        match self.streams.len() {
            n if n > NAMED => format!("{} streams", n),
            _ => named.join(", "),
        }
    }
}
