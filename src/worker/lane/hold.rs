//! What is to be tried again stays where it is, in a partition that this worker owns: noted by one task for each lane.
//!
//! Elsewhere such an event leaves its entry and waits in the delay queue; it would come back behind others of its subject.
//! Here its entry stays pending, its slot is free, and its subject waits with it.

use super::Lane;
use super::finished::Finished;
use super::line::Lined;
use super::told::ToTell;
use crate::connect::backoff::Backoff;
use crate::connect::clock::{NEVER, whole_ms};
use crate::connect::error::Reaction;
use crate::protocol::error::HandlerError;
use crate::protocol::event::Event;
use crate::streams::commit::{Disposition, Receipt, Settlement, Tally};
use crate::streams::fence::Fence;
use crate::streams::hold::{self, HELD, Held};
use crate::worker::outcomes::ToNote;
use crate::worker::shared::Shared;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

/// Notes what a lane gives it; begun when something is to be noted first.
pub(super) struct Holder {
    asked: mpsc::UnboundedSender<Noting>,
    _task: AbortOnDropHandle<()>,
}

/// What is to be noted.
struct Noting {
    receipt: Receipt,
    held: Held,
    /// Of a run that ended.
    ran: Option<(Disposition, ToTell, ToNote)>,
}

/// What was noted, and what was not.
pub(crate) struct Noted {
    pub(super) noted: Vec<Receipt>,
    pub(super) gone: Vec<Receipt>,
}

/// Which try the fields of an event name that is put off.
fn attempt_in(fields: &[Vec<u8>]) -> Option<u32> {
    let mut pairs = fields.chunks_exact(2);
    let attempt = pairs.find(|pair| pair[0] == b"attempt")?;
    std::str::from_utf8(&attempt[1]).ok()?.parse().ok()
}

impl Lane {
    /// Has an event stay in its place where it is to be tried again and its partition is owned. Gives back how it is to be
    /// settled otherwise.
    pub(super) fn unless_held(
        &mut self,
        settlement: Settlement,
        event: &Event,
        error: &HandlerError,
    ) -> Option<Settlement> {
        let Some(line) = &mut self.line else {
            return Some(settlement);
        };
        let Disposition::Later { fields, wait } = &settlement.disposition else {
            return Some(settlement);
        };
        let (receipt, wait) = (settlement.receipt, (*wait).min(NEVER));
        let held = Held {
            attempt: attempt_in(fields).unwrap_or_else(|| event.attempt()),
            due: self.shared.claims.server_now() + whole_ms(wait),
            deliveries: receipt.deliveries,
            code: error.code.as_str().to_owned(),
            message: String::new(),
        };
        let held = held.saying(error.bounded_message());
        let event = event.clone();
        line.holds(
            Lined { receipt, event },
            Instant::now() + wait,
            held.clone(),
        );
        if self.alone == Some(receipt) {
            self.alone = None;
        }
        let of = std::slice::from_ref(&settlement);
        let (to_tell, to_note) = (self.what_to_tell(of), self.noted.of(of));
        self.note(Noting {
            receipt,
            held,
            ran: Some((settlement.disposition, to_tell, to_note)),
        });
        None
    }

    /// Has something be noted of one that waits, and did not begin.
    pub(super) fn note_waiting(&mut self, receipt: Receipt, held: Held) {
        let ran = None;
        self.note(Noting { receipt, held, ran });
    }

    fn note(&mut self, noting: Noting) {
        // It may be settled before that is sent.
        if let Some(fence) = &self.shared.fence {
            fence.notes(noting.receipt.entry);
        }
        let (shared, finished) = (&self.shared, &self.finished);
        let holder = self.holder.get_or_insert_with(|| {
            let (asked, asks) = mpsc::unbounded_channel();
            let work = run(shared.clone(), asks, finished.clone());
            Holder {
                asked,
                _task: AbortOnDropHandle::new(tokio::spawn(work)),
            }
        });
        holder.asked.send(noting).ok();
    }

    /// Takes what was noted.
    pub(super) fn were_noted(&mut self, noted: &Noted) {
        let Some(line) = &mut self.line else {
            return;
        };
        for receipt in &noted.noted {
            line.noted(receipt);
        }
        for receipt in &noted.gone {
            line.not_noted(receipt);
        }
        let counts = &self.shared.counts;
        let held = noted.noted.len() as u64;
        counts.committed.fetch_add(held, Ordering::Relaxed);
        counts.retried.fetch_add(held, Ordering::Relaxed);
        let gone = noted.gone.len() as u64;
        counts.fenced.fetch_add(gone, Ordering::Relaxed);
        self.let_go(&noted.gone);
    }
}

async fn run(
    shared: Arc<Shared>,
    mut asked: mpsc::UnboundedReceiver<Noting>,
    finished: mpsc::UnboundedSender<Finished>,
) {
    let Some(fence) = shared.fence.clone() else {
        return;
    };
    let mut batch = Vec::new();
    while asked.recv_many(&mut batch, HELD).await > 0 {
        let some: Vec<Noting> = std::mem::take(&mut batch);
        let Some(gone) = noted(&shared, &fence, &some).await else {
            // The lane ends.
            return;
        };
        let (mut noted, mut unwritten) = (Vec::new(), Vec::new());
        for one in some {
            let Some((disposition, to_tell, to_note)) = one.ran else {
                continue;
            };
            let mut tally = Tally::default();
            if gone.contains(&one.receipt) {
                tally.unwritten.push(one.receipt);
                unwritten.push(one.receipt);
            } else {
                tally.count(&disposition);
                noted.push(one.receipt);
            }
            to_tell.tell(&tally);
            to_note.keep(&tally);
        }
        let done = Noted {
            noted,
            gone: unwritten,
        };
        finished.send(Finished::Noted(done)).ok();
    }
}

/// Notes these until the server has answered; those that are somebody else's by now. `None` where there is another owner.
async fn noted(shared: &Shared, fence: &Fence, some: &[Noting]) -> Option<Vec<Receipt>> {
    let entries: Vec<_> = some
        .iter()
        .map(|one| (one.receipt.entry, one.receipt.deliveries, &one.held))
        .collect();
    let Some(route) = shared.routes.first() else {
        return Some(Vec::new());
    };
    let mut backoff = Backoff::default();
    loop {
        let asked = async {
            let mut connection = shared.connector.pooled().await?;
            let (events, group) = (&route.events, &shared.group);
            hold::hold(
                &mut connection,
                events,
                group,
                shared.instance(),
                fence,
                &entries,
            )
            .await
        };
        match asked.await {
            Ok(lost) => {
                let is_lost = |one: &&Noting| lost.contains(&one.receipt.entry);
                return Some(some.iter().filter(is_lost).map(|one| one.receipt).collect());
            }
            Err(error) if fence.hears(&error) => return None,
            // Without the group nothing is pending any more: it will be delivered again.
            Err(error) if error.reaction() == Reaction::RepairGroup => {
                return Some(some.iter().map(|one| one.receipt).collect());
            }
            Err(error) if error.reaction() == Reaction::GiveUp => {
                tracing::warn!(lane = shared.name, entries = entries.len(), %error, "what waits for its next try cannot be noted: the next owner begins with its last noted one");
                return Some(Vec::new());
            }
            Err(error) => {
                tracing::debug!(lane = shared.name, %error, "noting again what waits for its next try");
            }
        }
        tokio::time::sleep(backoff.failed()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::attempt_in;

    #[test]
    fn the_next_try_is_the_one_that_the_fields_name() {
        let words = |all: &[&str]| -> Vec<Vec<u8>> { all.iter().map(|&w| w.into()).collect() };
        let named = words(&["type", "attempt", "attempt", "7"]);
        assert_eq!(attempt_in(&named), Some(7));
        assert_eq!(attempt_in(&words(&["type", "a.b"])), None);
    }
}
