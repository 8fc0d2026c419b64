//! What a lane read and did not start by the time it is to end.

use super::Lane;
use super::run::Finished;
use crate::coordination::instances::roster::Reader;
use crate::handler::context::Context;
use crate::protocol::error::HandlerError;
use crate::protocol::event::Event;
use crate::streams::commit::{Receipt, Settlement};
use crate::worker::settle;
use crate::worker::shared::{Delivery, Shared};
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
    /// Leaves it to those who read the stream as well: they take it, in its order, as soon as this
    /// instance unregisters. Where there is nobody it is given back, so that nothing stays pending.
    pub(super) fn give_back(&mut self) {
        let (waiting, entering) = self.admission.give_up();
        self.release(&entering);
        let waiting = waiting.into_iter();
        let waiting = waiting.map(|waiting| Unstarted::Admitted(waiting.receipt, waiting.context));
        let read = self.ready.drain(..).chain(self.suspects.drain(..));
        let unstarted: Vec<Unstarted> = waiting.chain(read.map(Unstarted::Read)).collect();
        if unstarted.is_empty() {
            return;
        }
        self.tell_ahead();
        self.running += 1;
        let (shared, finished) = (self.shared.clone(), self.finished.clone());
        tokio::spawn(async move {
            let receipts: Vec<Receipt> = unstarted.iter().map(Unstarted::receipt).collect();
            let back = given_back(&shared, unstarted);
            let back = AssertUnwindSafe(back).catch_unwind().await;
            let back = back.unwrap_or_default();
            let goes =
                |receipt: &Receipt| back.iter().any(|settlement| settlement.receipt == *receipt);
            let stays = receipts
                .into_iter()
                .filter(|receipt| !goes(receipt))
                .collect();
            finished.send(Finished::GivenBack(back, stays)).ok();
        });
    }
}

/// How those of them are settled that nobody else reads: they wait in the delay queue, without an attempt
/// being spent. What was delivered before stays pending, since how often that was must not be forgotten.
async fn given_back(shared: &Shared, unstarted: Vec<Unstarted>) -> Vec<Settlement> {
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
