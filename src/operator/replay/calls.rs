//! Entries as the scripts that replay them take them.

use super::{Move, WINDOW};
use crate::connect::clock::whole_ms;
use crate::protocol::keys::{Keys, StreamName};
use crate::streams::claim::{CLAIMS_TTL, Pending};
use redis::ScriptInvocation;
use std::time::Duration;

/// Pending entries, for `held.lua`.
pub(super) struct Held<'a> {
    /// Each once, in the order of their names.
    owners: Vec<&'a [u8]>,
    moves: Vec<(&'a Move, &'a Pending, Duration)>,
}

impl<'a> Held<'a> {
    pub(super) fn of(moves: impl Iterator<Item = &'a Move>) -> Self {
        let seen = moves.filter_map(|one| {
            let (pending, idle) = one.pending.as_ref()?;
            Some((one, pending, *idle))
        });
        let moves: Vec<_> = seen.collect();
        let owners = moves.iter();
        let mut owners: Vec<&[u8]> = owners
            .map(|(_, pending, _)| pending.consumer_bytes.as_slice())
            .collect();
        owners.sort_unstable();
        owners.dedup();
        Self { owners, moves }
    }

    /// How many are handed over.
    pub(super) fn count(&self) -> usize {
        self.moves.len()
    }

    pub(super) fn keys(&self, call: &mut ScriptInvocation<'_>, keys: &Keys, stream: &StreamName) {
        for owner in &self.owners {
            let owner = String::from_utf8_lossy(owner);
            call.key(keys.claims(&stream.part, stream.partition, &owner));
        }
    }

    /// The group and what follows it.
    pub(super) fn words(&self, call: &mut ScriptInvocation<'_>, group: &str) {
        call.arg(group)
            .arg(whole_ms(CLAIMS_TTL))
            .arg(self.owners.len());
        for owner in &self.owners {
            call.arg(*owner);
        }
        for (one, seen, idle) in &self.moves {
            let owner = seen.consumer_bytes.as_slice();
            let place = self.owners.binary_search(&owner).unwrap_or(0) + 1;
            call.arg(one.entry.to_string())
                .arg(place)
                .arg(seen.deliveries)
                .arg(whole_ms(*idle));
            words(call, one);
        }
    }
}

/// Entries of a range, for `copies.lua`.
pub(super) struct Copies<'a>(Vec<&'a Move>);

impl<'a> Copies<'a> {
    pub(super) fn of(moves: impl Iterator<Item = &'a Move>) -> Self {
        Self(moves.collect())
    }

    pub(super) fn keys(&self, call: &mut ScriptInvocation<'_>, keys: &Keys, stream: &StreamName) {
        for one in &self.0 {
            let entry = one.entry.to_string();
            call.key(keys.replayed(&stream.part, stream.partition, &entry));
        }
    }

    /// How long a marker lives, and what follows it.
    pub(super) fn words(&self, call: &mut ScriptInvocation<'_>, force: bool) {
        call.arg(whole_ms(WINDOW))
            .arg(u8::from(force))
            .arg(self.0.len());
        for one in &self.0 {
            entry(call, one);
        }
    }
}

/// An entry's id, and its words.
pub(super) fn entry(call: &mut ScriptInvocation<'_>, one: &Move) {
    call.arg(one.entry.to_string());
    words(call, one);
}

fn words(call: &mut ScriptInvocation<'_>, one: &Move) {
    call.arg(one.fields.len());
    for word in &one.fields {
        call.arg(word.as_slice());
    }
}
