//! What a lane read and did not start by the time it is to end.
//!
//! Where another worker reads the stream as well it stays pending, and is taken over as soon as this instance is gone.
//! Where there is nobody it is given back: it waits in the delay queue, so that nothing stays pending. Some stay all the
//! same:
//!
//! - An event whose handler runs those of a subject in order. Its place in the stream is its order: the one before it
//!   may still be running, or wait, and stay pending; and what is given back comes behind all that the stream holds by
//!   then. Who takes over takes the oldest first, and starts nothing new before that.
//! - What was delivered before, since how often that was must not be forgotten.
//! - What is on its way through a gate, or is judged.
//! - All of a partition that this worker owned: its next owner begins with it, in the order of the stream.
//!
//! What stays was never begun, and its delivery does not count (see [`unbegun`]).

use super::Lane;
use super::finished::Finished;
use crate::coordination::instances::roster::Reader;
use crate::handler::context::Context;
use crate::protocol::error::HandlerError;
use crate::protocol::event::Event;
use crate::streams::commit::{Receipt, Settlement};
use crate::worker::settle;
use crate::worker::shared::{Delivery, Shared};
use crate::worker::unbegun;
use futures_util::FutureExt;
use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

/// An entry that was read and not started.
enum Unstarted {
    Read(Delivery),
    Admitted(Receipt, Context),
}

impl Unstarted {
    fn receipt(&self) -> Receipt {
        match self {
            Unstarted::Read(delivery) => delivery.receipt(),
            Unstarted::Admitted(receipt, _) => *receipt,
        }
    }
}

impl Lane {
    /// Leaves it to who reads the stream as well, or gives it back: see the module.
    pub(super) fn give_back(&mut self) {
        let (waiting, entering) = self.admission.give_up();
        let waiting = waiting.into_iter();
        let waiting = waiting.map(|waiting| Unstarted::Admitted(waiting.receipt, waiting.context));
        let read = self.ready.drain(..).chain(self.suspects.drain(..));
        let unstarted: Vec<Unstarted> = waiting.chain(read.map(Unstarted::Read)).collect();
        let mut stay = entering;
        if let Some(line) = &mut self.line {
            let waited = line.take_those(|_| true).into_iter();
            stay.extend(waited.map(|lined| lined.receipt));
        }
        self.put_down(unstarted, stay);
    }

    /// Leaves one of which nothing was begun as it is.
    pub(super) fn leave_unbegun(&mut self, receipt: Receipt) {
        self.put_down(Vec::new(), vec![receipt]);
    }

    /// Gives back those that may be, and has the others count as not delivered.
    fn put_down(&mut self, unstarted: Vec<Unstarted>, stay: Vec<Receipt>) {
        if unstarted.is_empty() && stay.is_empty() {
            return;
        }
        self.tell_ahead();
        self.running += 1;
        let (shared, finished) = (self.shared.clone(), self.finished.clone());
        tokio::spawn(async move {
            let receipts = unstarted.iter().map(Unstarted::receipt).chain(stay);
            let receipts: Vec<Receipt> = receipts.collect();
            let back = given_back(&shared, unstarted);
            let back = AssertUnwindSafe(back).catch_unwind().await;
            let back = back.unwrap_or_default();
            let goes =
                |receipt: &Receipt| back.iter().any(|settlement| settlement.receipt == *receipt);
            let stays = receipts.into_iter().filter(|receipt| !goes(receipt));
            let stays: Vec<Receipt> = stays.collect();
            // Nothing renews them any more: they would look like somebody else's.
            shared.inflight.remove(stays.iter());
            let counts_not = unbegun::undeliver(&shared, &stays);
            AssertUnwindSafe(counts_not).catch_unwind().await.ok();
            finished.send(Finished::GivenBack(back, stays)).ok();
        });
    }
}

/// How those of them are settled that are given back, without an attempt being spent.
async fn given_back(shared: &Shared, unstarted: Vec<Unstarted>) -> Vec<Settlement> {
    // Its next owner begins with it, in its place.
    if shared.owned.is_some() {
        return Vec::new();
    }
    let mut read_by_others: HashMap<String, bool> = HashMap::new();
    let mut back = Vec::new();
    for one in unstarted {
        let receipt = one.receipt();
        let stream = &shared.routes[receipt.stream].events;
        let keys = &shared.process.keys;
        if receipt.deliveries > 1 || shared.inbox == Some(receipt.stream) {
            continue;
        }
        let parsed;
        let event = match &one {
            Unstarted::Admitted(_, context) => context.event(),
            Unstarted::Read(delivery) => {
                let entry = delivery.entry.clone();
                let Ok(event) = Event::parse(entry, &shared.limits, keys, stream) else {
                    continue;
                };
                parsed = event;
                &parsed
            }
        };
        let kind = event.kind();
        if has_an_order(shared, event) {
            continue;
        }
        let others = match read_by_others.get(kind) {
            Some(others) => *others,
            None => {
                let reader = shared
                    .instances
                    .reader(&shared.group, kind, None, shared.instance());
                // Not known: they stay, as if there were one.
                let others = !matches!(reader.await, Ok(Reader::Nobody));
                read_by_others.insert(kind.to_owned(), others);
                others
            }
        };
        if !others {
            let scene = shared.scene(receipt);
            // Nobody may have looked at it yet.
            let early = event.not_before().unwrap_or_default();
            let early = early.saturating_sub(shared.claims.server_now());
            let error = HandlerError::later(Duration::ZERO, "the worker that read it shut down");
            back.push(match early {
                0 => settle::failure(scene, event, &error, &shared.retry),
                ms => settle::early(scene, event, Duration::from_millis(ms)),
            });
        }
    }
    back
}

/// Whether it is to run behind those of its subject that came before it.
fn has_an_order(shared: &Shared, event: &Event) -> bool {
    let route = shared.router.find(event.kind());
    event.subject().is_some() && route.is_some_and(|route| route.policy.ordered)
}
