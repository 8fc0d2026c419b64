//! What the scripts that assign tasks have in common: their beginning, their keys, and whose
//! inboxes they may write.
//!
//! Whom a task goes to depends on the state, and only the script sees that. A call declares the
//! inboxes that it thinks of; a script that wants another one changes nothing and names it, and the
//! call is repeated with that one as well.

use crate::connect::script::script_with;
use crate::coordination::scripts::VERSION;
use crate::coordination::store::words;
use crate::protocol::keys::Keys;
use redis::{Script, ScriptInvocation};
use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

/// Tries of a call that meets other inboxes each time. Each try declares all that the ones before it
/// met, and each answer names several: very many others must assign meanwhile to make another needed.
pub(crate) const TRIES: u32 = 16;
/// Names that are remembered for the next call.
const REMEMBERED: usize = 16;

/// A script with `tasks.lua` in it, which raises the version of the state.
pub(crate) fn script(source: &str) -> Script {
    script_with(&[VERSION, include_str!("tasks.lua")], source)
}

/// Declares the keys that `tasks.lua` binds, in its order.
pub(crate) fn declare(call: &mut ScriptInvocation<'_>, keys: &Keys) {
    let tasks = keys.tasks();
    call.key(tasks.tasks)
        .key(tasks.data)
        .key(tasks.waiting)
        .key(tasks.heads)
        .key(tasks.queue)
        .key(tasks.held)
        .key(tasks.slots)
        .key(tasks.free)
        .key(tasks.done)
        .key(tasks.counts)
        .key(keys.active())
        .key(keys.capabilities())
        .key(keys.broadcast())
        .key(keys.state());
}

/// The instances whose inboxes a call declares.
#[derive(Clone, Debug)]
pub(crate) struct Inboxes(BTreeSet<String>);

impl Inboxes {
    /// The inbox of one instance.
    pub(crate) fn of(id: &str) -> Self {
        Self(BTreeSet::from([id.to_owned()]))
    }

    /// Declares the inboxes as the next keys, and the names as the next argument.
    pub(crate) fn declare(&self, call: &mut ScriptInvocation<'_>, keys: &Keys) {
        for id in &self.0 {
            call.key(keys.inbox(id));
        }
        call.arg(words(&self.0));
    }

    /// Declares those as well that a script named.
    pub(crate) fn learn(&mut self, named: &str) {
        self.0.extend(named.split_whitespace().map(str::to_owned));
    }

    /// Declares all but that one.
    pub(crate) fn without(mut self, id: &str) -> Self {
        self.0.remove(id);
        self
    }
}

/// Who was named lately: the next call will meet them again.
#[derive(Clone, Debug, Default)]
pub(crate) struct Named(Arc<Mutex<VecDeque<String>>>);

impl Named {
    /// The instances whose inboxes a call declares first.
    pub(crate) fn inboxes(&self) -> Inboxes {
        let named = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Inboxes(named.iter().cloned().collect())
    }

    /// Remembers those that a script named; the oldest are forgotten.
    pub(crate) fn remember(&self, ids: &str) {
        let mut named = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for id in ids.split_whitespace() {
            if !named.iter().any(|known| known == id) {
                named.push_back(id.to_owned());
            }
        }
        let over = named.len().saturating_sub(REMEMBERED);
        named.drain(..over);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_last_met_are_remembered_and_no_more_than_a_few() {
        let named = Named::default();
        named.remember("a b");
        named.remember("b c");
        assert_eq!(super::super::words(&named.inboxes().0), "a b c");
        let many: Vec<String> = (0..40).map(|n| format!("w-{n}")).collect();
        named.remember(&many.join(" "));
        let left = named.inboxes().0;
        assert_eq!(left.len(), REMEMBERED);
        assert!(left.contains("w-39") && !left.contains("a"));
    }
}
