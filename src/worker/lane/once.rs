//! Events that take effect once within a window, however often they were added: the field `dedup`.
//!
//! # Who is the first, and why nothing is lost
//!
//! An event's **name** is the entry as which it was added. Each step that moves an event to another entry (a retry,
//! what came early, what is given back) writes the name into the moved one's field, whether or not anybody asked
//! under it. What stays on its entry (a takeover, a handover) stays under its name anyhow. So an event has one name
//! for good, whoever holds it.
//!
//! Before it runs, an event asks under its name (see [`first`](crate::streams::first)). The answer to a name does not
//! change while the mark of the id is there: the first is the first again. The mark is written by
//!
//! - the first one that asks, and again each time that it asks;
//! - the commit of a run that succeeded, in the same step;
//! - whoever publishes with deduplication, with the event.
//!
//! A repeat is settled unrun, and only while the mark names another event. That one asked and was told to run, or
//! is stored, or took effect; it is not a repeat itself as long as the mark names it. So of all events of an id the
//! one that the mark named last runs, or is a dead letter, or ends unrun: then its commit says so, and the next one
//! that asks takes its place. Where a death or a lost answer may fall:
//!
//! - *Before it asked, or the answer is lost*: nothing was settled. It asks again, under the same name.
//! - *The first, between its answer and its commit*: its entry is pending; whoever takes it over asks under the same
//!   name, and is the first. Of two runs one is committed, as ever: the commit is fenced.
//! - *A repeat, between its answer and its commit*: its entry is pending, and asks again.
//! - *The mark is gone* (its window is over; a failover forgot it): the next one that asks is the first. One that ran
//!   by then is a repeat when it is tried again, unless it asks before that.
//! - *The server fell back to a state in which the first, or its mark, is not there*: what was judged is settled only in
//!   the history of the data in which it was judged, whether it is a repeat or the first. In another one it asks again.
//!
//! # Where it is asked
//!
//! After the event has its place in the line of its subject, and its permit: it keeps both while it is judged, so no
//! later event of its subject passes. What a batch handler takes by subject keeps its place in that line alike. A suspect is judged alone. What would end unrun (nobody has a handler, it was
//! delivered too often, a layer refuses it) is judged first, so that there is one dead letter and not one for each
//! repeat.

use super::finished::{Finished, Ran, Unjudged};
use super::{Lane, Waiting};
use crate::connect::backoff::Backoff;
use crate::protocol::event::Event;
use crate::streams::commit::Receipt;
use crate::streams::first::{Asks, FirstCheck};
use crate::worker::admission::{Line, Until};
use crate::worker::settle;
use crate::worker::shared::Shared;
use std::sync::atomic::Ordering;
use tokio_util::task::AbortOnDropHandle;

impl Lane {
    /// Asks whether an event is the first of its id.
    pub(super) fn judge(&mut self, unjudged: Unjudged) {
        let (receipt, size) = (unjudged.receipt(), unjudged.event().entry().size());
        let line = match &unjudged {
            Unjudged::Admitted(waiting) => Line::of(waiting),
            _ => None,
        };
        if let Unjudged::Admitted(waiting) | Unjudged::Refused(waiting, _) = &unjudged {
            self.shared.inflight.waits(&receipt, waiting.route.index);
        }
        let (shared, finished) = (self.shared.clone(), self.finished.clone());
        let task = tokio::spawn(async move {
            let verdict = asked(&shared, receipt, unjudged.event()).await;
            finished
                .send(Finished::Judged(Box::new(unjudged), verdict))
                .ok();
        });
        let until = Until::Judged(line);
        let task = AbortOnDropHandle::new(task);
        self.admission.enters(receipt, size, until, task);
    }

    /// Takes the answer.
    pub(super) fn judged(&mut self, unjudged: Unjudged, verdict: FirstCheck) {
        let receipt = unjudged.receipt();
        // It may have been given up in the meantime.
        if !self.admission.entered(&receipt) {
            return;
        }
        let event = unjudged.event();
        if let FirstCheck::Repeat { first, said, epoch } = verdict {
            tracing::debug!(entry = %receipt.entry, id = event.given_id(), first, "added before: not run");
            self.shared.counts.repeats.fetch_add(1, Ordering::Relaxed);
            let scene = self.shared.scene(receipt);
            let repeat = settle::repeat(scene, event, &first, said.as_ref(), epoch);
            self.settled.push(repeat);
            return;
        }
        if self.is_poison(receipt, event) {
            return;
        }
        let judged_in = match verdict {
            FirstCheck::First { epoch } => Some(epoch),
            FirstCheck::Repeat { .. } => None,
        };
        let first = |waiting: Waiting| Waiting {
            first: true,
            judged_in,
            ..waiting
        };
        match unjudged {
            Unjudged::Admitted(waiting) => self.admission.wait(first(waiting)),
            Unjudged::Refused(waiting, error) => self.ran(Ran::refused(first(waiting), error)),
            Unjudged::Left(left, context) => self.leave(left, context, None),
        }
    }
}

/// Asks until there is an answer. What is held meanwhile is renewed like anything else that waits.
async fn asked(shared: &Shared, receipt: Receipt, event: &Event) -> FirstCheck {
    let (Some(firsts), Some(name), Some(id)) = (
        shared.firsts(receipt.stream),
        event.once(),
        event.given_id(),
    ) else {
        let epoch = shared.connector.epoch();
        return FirstCheck::First { epoch };
    };
    let asks = Asks {
        id,
        name,
        to: event.reply_to(),
    };
    let mut backoff = Backoff::default();
    loop {
        match shared.judge.ask(firsts, asks).await {
            Ok(verdict) => return verdict,
            Err(error) => shared.unjudged(&error),
        }
        tokio::time::sleep(backoff.failed()).await;
    }
}
