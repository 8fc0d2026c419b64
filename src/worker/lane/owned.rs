//! A lane whose partition this worker owns ([`Ownership`](crate::worker::owned::Ownership)): what it does besides.
//!
//! What a former owner sends has no effect; so it matters only what it may still be *given*:
//!
//! - *It first takes over all that is pending*, whoever it is with, in the order of the entries, and then reads. A former
//!   owner's read may still bring that one something: so each read is followed by a look whether anybody else has anything,
//!   and what they have is taken over before anything newer is started. What was read before is older and seen; what is
//!   read after the look is newer, and is seen by the next.
//! - *Of a subject one event is under way at a time* ([`line`](super::line)), and what is to be tried again stays in its
//!   place ([`hold`](super::hold)).
//! - *What is paused waits in its place* too, if it has a subject: what is parked is kept by type, and would come back in
//!   another order than its subject's.
//! - *It starts nothing without its lease*, and ends at once where there is another owner, or where the server is in another
//!   history of its data: nothing that it sends then has an effect.

use super::line::Lined;
use super::{ALONE, DOUBT, LATE, Lane, ROUND, Waiting};
use crate::coordination::error::CoordinationError;
use crate::streams::claim::{self, TAKEN};
use crate::streams::commit::{Receipt, Tally};
use crate::streams::hold;
use crate::streams::read::Look;
use crate::worker::shared::Delivery;
use crate::worker::shared::Shared;
use crate::worker::takeover::{Step, Trigger};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How long what is out of sight stays so before somebody looks for it.
const SOON: Duration = Duration::from_secs(1);
/// Between two looks whether what waits in its place is paused still.
const PAUSED: Duration = Duration::from_millis(500);

impl Lane {
    /// Whether the partition has another owner, or may have one since its lease is over; or the server another history of its
    /// data: it may have forgotten what was committed, and whoever takes the partition again looks through all that is
    /// pending, in order. The lane and all that it runs end by that, and are to: else it counts as a failure.
    pub(super) fn is_over(&self) -> bool {
        let (Some(fence), Some(owned)) = (&self.shared.fence, &self.shared.owned) else {
            return false;
        };
        let connector = &self.shared.connector;
        let is_now = |epoch| connector.check_epoch(epoch).is_ok();
        let over = fence.is_lost() || owned.is_over() || !fence.epoch().is_none_or(is_now);
        if over {
            self.shared.end.cancel();
        }
        over
    }

    /// Whether it may start anything, as far as its lease goes.
    pub(super) fn may_start(&self) -> bool {
        let owned = self.shared.owned.as_ref();
        owned.is_none_or(|owned| owned.may_start())
    }

    /// When it is to look after its line or its lease.
    pub(super) fn alarm(&self) -> Option<Instant> {
        let (owned, line) = (self.shared.owned.as_ref()?, self.line.as_ref()?);
        let now = Instant::now();
        let lease = match owned.may_start() {
            true => owned.until(),
            false => owned.ends().min(now + DOUBT),
        };
        // What is due and finds no slot waits for a run to end.
        let due = line.next_due().filter(|due| *due > now);
        let look = self.look_again;
        [due, look].into_iter().flatten().chain([lease]).min()
    }

    /// Looks after all that waits and what is out of sight.
    pub(super) fn look_at_line(&mut self) {
        if self.line.is_none() {
            return;
        }
        match self.may_start() {
            true => self.lapsed = false,
            // Somebody else may own it before it is renewed.
            false if !std::mem::replace(&mut self.lapsed, true) => {
                tracing::warn!(
                    lane = self.shared.name,
                    stream = self.shared.routes[0].events,
                    "the lease of the partition was not renewed in time: nothing is started until it is"
                );
                self.shared.inflight.cancel_runs();
            }
            false => {}
        }
        if self.look_again.is_some_and(|at| at <= Instant::now()) {
            self.look_again = None;
            self.add_job(&Trigger::Own);
        }
        if self.line_looked.elapsed() >= ROUND {
            self.line_looked = Instant::now();
            self.look_at_waiting();
        }
    }

    /// Of what waits in line, what is not to run any more.
    fn look_at_waiting(&mut self) {
        let Some(line) = &mut self.line else {
            return;
        };
        let now = self.shared.claims.server_now();
        let deadline = |lined: &Lined| lined.event.deadline();
        let late = line.take_those(|lined| deadline(lined).is_some_and(|at| at <= now));
        let inflight = self.shared.inflight.clone();
        let lost = line.take_those(|lined| inflight.is_lost(&lined.receipt));
        for Lined { receipt, event } in late {
            self.expired(receipt, &event);
        }
        let lost: Vec<Receipt> = lost.into_iter().map(|lined| lined.receipt).collect();
        let void = lost.iter().filter(|receipt| self.is_void(receipt)).count();
        let cancelled = &self.shared.counts.cancelled;
        cancelled.fetch_add(void as u64, Ordering::Relaxed);
        self.let_go(&lost);
    }

    /// Adds what a trigger asks for. Where the partition is owned there is one thing to do: to take over all that is
    /// pending and not in hand.
    pub(super) fn add_job(&mut self, trigger: &Trigger) {
        if *trigger == Trigger::Stale && !self.shared.may_hold.load(Ordering::Relaxed) {
            return;
        }
        let streams = self.shared.routes.len();
        let Some(line) = &mut self.line else {
            return self.jobs.add(trigger, streams);
        };
        match trigger {
            // Who else has something is found by the look after each read.
            Trigger::Given | Trigger::Gone(_) | Trigger::Stale => {}
            Trigger::Own | Trigger::Whole => {
                if self.jobs.next().is_none() {
                    line.is_to_look();
                }
                self.jobs.add(&Trigger::Whole, streams);
            }
        }
    }

    /// Notes that the next job begins, in an owned partition.
    pub(super) fn looks(&mut self) {
        let from_the_beginning = self
            .jobs
            .next()
            .is_some_and(|job| job.is_at_the_beginning());
        if let Some(line) = &mut self.line
            && from_the_beginning
        {
            line.looks();
        }
    }

    /// Notes that a read begins.
    pub(super) fn begins_to_read(&mut self) {
        if let Some(line) = &mut self.line {
            line.dropped = 0;
        }
    }

    /// Takes what the look after a read saw, once what it brought is in hand. A read that was given up may have brought this
    /// consumer something, too.
    pub(super) fn saw(&mut self, look: Look) {
        let Some(line) = &self.line else {
            return;
        };
        let known = self.shared.inflight.len() + line.dropped + line.out_of_sight();
        if look.others || look.mine > known {
            self.add_job(&Trigger::Whole);
        }
    }

    /// Takes what a step of that found, before it is accepted.
    pub(super) fn has_looked(&mut self, step: &mut Step) {
        let Some(line) = &mut self.line else {
            return;
        };
        match step {
            Step::TookAll(deliveries, _, notes, to) => {
                let entries = deliveries.iter().map(|delivery| delivery.entry.id);
                line.took(entries, std::mem::take(notes));
                line.has_looked_to(*to);
            }
            Step::Onward(next) => line.has_looked_to(*next),
            Step::Done => {
                line.has_looked();
                self.sweep_once();
            }
            _ => {}
        }
    }

    /// Removes, when it has all that is pending for the first time, what is noted of other entries.
    fn sweep_once(&mut self) {
        if std::mem::replace(&mut self.swept, true) {
            return;
        }
        let Some(fence) = self.shared.fence.clone() else {
            return;
        };
        let shared = self.shared.clone();
        tokio::spawn(async move {
            let Ok(mut connection) = shared.connector.pooled().await else {
                return;
            };
            if let Err(error) = hold::sweep(&mut connection, &fence).await {
                tracing::debug!(%error, "notes of entries that are gone may be left");
            }
            if let Err(error) = forget_the_gone(&shared).await {
                tracing::debug!(%error, "consumers of instances that are gone may be left");
            }
        });
    }

    /// Whether the next one that was read waits, since what is older may not be in hand yet.
    pub(super) fn waits_for_older(&self) -> bool {
        let (Some(line), Some(next)) = (&self.line, self.ready.front()) else {
            return false;
        };
        self.jobs.next().is_some() && !line.has_all_before(next.entry.id)
    }

    /// The next one of the line that may start now.
    pub(super) fn next_in_line(&mut self, now: Instant) -> Option<Lined> {
        let line = self.line.as_mut()?;
        let looks = self.jobs.next().is_some();
        line.next(now, self.shared.claims.server_now(), looks)
    }

    /// Has an event wait in its place that is paused; it is looked up again after a while. No attempt is spent.
    pub(super) fn pauses_in_place(&mut self, waiting: Waiting) {
        let Waiting {
            receipt, context, ..
        } = waiting;
        let event = context.event().clone();
        if let Some(line) = &mut self.line {
            let held = line.waits_unbegun(&receipt, event.attempt());
            line.waits(Lined { receipt, event }, Instant::now() + PAUSED);
            if let Some(held) = held {
                self.note_waiting(receipt, held);
            }
        }
        if self.alone == Some(receipt) {
            self.alone = None;
        }
    }

    /// Whether one whose turn it is must wait until nothing runs beside it.
    pub(super) fn is_suspect(&self, receipt: &Receipt) -> bool {
        let line = self.line.as_ref();
        line.is_some_and(|line| line.tries(receipt) >= ALONE && self.alone != Some(*receipt))
    }

    /// Has it do so.
    pub(super) fn waits_alone(&mut self, suspect: Lined) {
        let Lined { receipt, event } = suspect;
        self.suspects.push_back(Delivery {
            stream: receipt.stream,
            entry: event.into_entry(),
            deliveries: receipt.deliveries,
            claims: receipt.claims,
            since: receipt.since,
        });
    }

    /// How often an entry was delivered, as far as that tells whether it kills its worker.
    pub(super) fn tries(&self, receipt: &Receipt) -> u32 {
        match &self.line {
            None => receipt.deliveries,
            Some(line) => line.tries(receipt),
        }
    }

    /// Lets go of what was not settled, and stays pending. Where the partition is owned nothing of its subject starts until
    /// somebody has looked where it is.
    pub(super) fn let_go(&mut self, receipts: &[Receipt]) {
        // What waited closes no subject by itself.
        if self.loses(receipts) {
            self.add_job(&Trigger::Whole);
        }
    }

    /// The same of what it gave back itself: that may be so again at once.
    pub(super) fn let_go_for_now(&mut self, receipts: &[Receipt]) {
        self.loses(receipts);
    }

    /// Whether it lost one of them that was not under way.
    fn loses(&mut self, receipts: &[Receipt]) -> bool {
        if self.line.is_none() || receipts.is_empty() {
            self.release(receipts);
            return false;
        }
        let (void, sought): (Vec<Receipt>, Vec<Receipt>) =
            receipts.iter().partition(|receipt| self.is_void(receipt));
        self.release(&void);
        self.drop_from_hand(&sought);
        let mut waited = false;
        if let Some(line) = &mut self.line {
            for receipt in &sought {
                waited |= !line.loses(receipt.entry);
            }
        }
        if !sought.is_empty() {
            self.looks_again_in(SOON);
        }
        waited
    }

    /// Lets go of a batch of which some were not written.
    pub(super) fn release_written(&mut self, receipts: &[Receipt], report: &Tally) {
        let refused = |receipt: &Receipt| report.refused.iter().any(|(it, _)| it == receipt);
        let (mut written, mut unwritable, mut left) = (Vec::new(), Vec::new(), Vec::new());
        for receipt in receipts {
            match report.unwritten.contains(receipt) {
                false => written.push(*receipt),
                true if refused(receipt) => unwritable.push(*receipt),
                true => left.push(*receipt),
            }
        }
        self.release(&written);
        if !unwritable.is_empty() {
            self.cannot_write(&unwritable);
        }
        self.let_go(&left);
    }

    /// Has it look for what is out of sight after so long at the latest.
    fn looks_again_in(&mut self, time: Duration) {
        let at = Instant::now() + time;
        self.look_again = Some(self.look_again.map_or(at, |before| before.min(at)));
    }

    /// Lets go of what cannot be written. It runs again as late as elsewhere, where others wait until nobody has renewed
    /// it.
    fn cannot_write(&mut self, receipts: &[Receipt]) {
        self.drop_from_hand(receipts);
        if let Some(line) = &mut self.line {
            for receipt in receipts {
                line.loses(receipt.entry);
            }
        }
        self.looks_again_in(self.shared.claim_idle);
    }

    /// Whether more of what is pending may be taken in hand. Where too much waits the rest stays where it is, as what is not
    /// read does: unless what is in hand waits for it.
    pub(super) fn may_take(&self) -> bool {
        let line = self.line.as_ref().filter(|line| line.is_full());
        line.is_none_or(|line| line.waits_for_a_look()) || self.waits_for_older()
    }

    /// How much room a takeover has: what was read may have to wait for just that. What could start and finds no slot need
    /// not be in hand: if its owner is killed it counts as delivered.
    pub(super) fn room_to_take(&self, room: usize) -> usize {
        match self.waits_for_older() {
            false => room,
            true => room.max(TAKEN),
        }
    }
}

/// Removes the consumers of former owners that are gone and hold nothing.
async fn forget_the_gone(shared: &Shared) -> Result<(), CoordinationError> {
    let (stream, group) = (&shared.routes[0].events, &shared.group);
    let mut connection = shared.connector.pooled().await?;
    let idle = claim::idle(&mut connection, stream, group, Duration::ZERO).await?;
    let mut gone = shared.instances.gone_among(&idle).await?;
    gone.retain(|gone| gone != shared.instance());
    for gone in gone {
        claim::forget(&mut connection, stream, group, &gone).await?;
    }
    Ok(())
}

/// Ends when it is time, or when there is another owner.
pub(super) async fn alarmed(shared: &Shared, at: Option<Instant>) {
    let Some(owned) = &shared.owned else {
        return std::future::pending().await;
    };
    let at = at.unwrap_or_else(|| Instant::now() + LATE);
    tokio::select! {
        () = owned.lost.cancelled() => {}
        () = tokio::time::sleep_until(at.into()) => {}
    }
}
