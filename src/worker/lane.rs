//! A lane: some streams, read, run and committed by one loop.
//!
//! Three things go on at a time: a read, the runs, a commit (several of them where the server is far). What finished
//! while a commit was under way goes into the next one, so batches grow with the load and a lone event waits for
//! nobody. A handler that is ready at once runs inside the loop; one that waits becomes a task, and one that computes
//! is begun as one.

mod arrive;
mod commits;
mod finished;
mod give_back;
mod hold;
mod line;
mod lot;
mod once;
mod owned;
mod run;
mod spread;
mod start;
mod told;
mod turn;
mod under_way;
mod weigh;

use super::admission::{Admission, Waiting};
use super::outcomes::{Noted, Outcomes};
use super::reader::{Read, Reader};
use super::shared::{Delivery, Shared};
use super::sparing::Sparing;
use super::takeover::{ALONE, Job, Jobs, Step, Trigger};
use crate::streams::commit::{Committer, Receipt, Tally};
use crate::streams::trim;
use commits::{Commits, Settled};
use finished::Finished;
use hold::Holder;
use line::Line;
use owned::alarmed;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use told::Followed;
use turn::Turn;
use under_way::{Slot, occupied, read, take};
use weigh::Weigher;

/// Entries that one read asks for at the most.
const READ: usize = 1000;
/// And that one read, or one commit, has while the control plane waits.
const BRIEF: usize = 250;
/// How long a run of the control plane counts as just begun.
const JUST: Duration = Duration::from_millis(100);
/// How long it waits before it asks again whether its leases were renewed.
const DOUBT: Duration = Duration::from_millis(20);
/// How often it looks for deadlines that have passed among what waits.
const LATE: Duration = Duration::from_millis(50);
/// How often it goes round at the least, to show that it lives.
const ROUND: Duration = Duration::from_secs(1);
/// One lane of a worker.
pub(super) struct Lane {
    shared: Arc<Shared>,
    triggers: mpsc::UnboundedReceiver<Trigger>,
    finished: mpsc::UnboundedSender<Finished>,
    jobs: Jobs,
    ready: VecDeque<Delivery>,
    admission: Admission,
    suspects: VecDeque<Delivery>,
    alone: Option<Receipt>,
    settled: Settled,
    /// What was too large to be held, and is to leave its stream once it is settled.
    oversized: Vec<Receipt>,
    sparing: Sparing,
    /// What is told once its outcome is committed.
    followed: HashMap<Receipt, Followed>,
    /// What the ledger keeps once its outcome is committed.
    noted: Noted,
    running: usize,
    /// Events of the batches that run, except one of each.
    batched: usize,
    window: usize,
    /// How many entries more it holds since the server is far.
    further: usize,
    taking_fails: bool,
    /// A read has ended since it failed.
    has_read: bool,
    /// A takeover is under way.
    takes: bool,
    /// When it last looked for deadlines that have passed.
    looked: Instant,
    /// As of which change of the policies it looked at what waits.
    changes: u64,
    /// Weighs what is paused, once something is.
    weigher: Option<Weigher>,
    /// The line of its subjects, where its partition is owned.
    line: Option<Box<Line>>,
    /// Notes what waits in its place, once something does.
    holder: Option<Holder>,
    /// When it is to look for what is out of sight.
    look_again: Option<Instant>,
    /// When it looked after its line.
    line_looked: Instant,
    /// Its lease was over when it last looked.
    lapsed: bool,
    /// Notes of entries that are gone were removed.
    swept: bool,
}

impl Lane {
    /// A lane that reacts to those triggers.
    pub(super) fn new(
        shared: Arc<Shared>,
        triggers: mpsc::UnboundedReceiver<Trigger>,
        outcomes: Option<Outcomes>,
    ) -> (Self, LaneEvents) {
        let (finished, events) = mpsc::unbounded_channel();
        let (routes, streams) = (shared.router.routes().count(), shared.routes.len());
        let fence = shared.fence.clone();
        if fence.is_some() {
            shared.pausing.begins_another();
        }
        let mut admission = Admission::new(shared.share(), routes, streams, spread::room())
            .with_one_of_each_subject(fence.is_some());
        if let Some(pool) = &shared.pool {
            admission.draws_from(pool.clone());
        }
        let lane = Self {
            triggers,
            finished,
            jobs: Jobs::default(),
            ready: VecDeque::new(),
            admission,
            suspects: VecDeque::new(),
            alone: None,
            settled: Settled::default(),
            oversized: Vec::new(),
            sparing: Sparing::new(Instant::now()),
            followed: HashMap::new(),
            noted: Noted::new(outcomes),
            running: 0,
            batched: 0,
            window: shared.concurrency(),
            further: 0,
            taking_fails: false,
            has_read: false,
            takes: false,
            looked: Instant::now(),
            changes: 0,
            weigher: None,
            line: fence.map(|fence| Box::new(Line::new(fence))),
            holder: None,
            look_again: None,
            line_looked: Instant::now(),
            lapsed: false,
            swept: false,
            shared,
        };
        (lane, LaneEvents(events))
    }

    /// Its name.
    pub(super) fn name(&self) -> &'static str {
        self.shared.name
    }

    /// What its parts share.
    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Runs until it is drained (`drain` ends reading) or told to `stop`; gives the committer back.
    pub(super) async fn run(
        mut self,
        mut events: LaneEvents,
        committer: Committer,
        drain: CancellationToken,
        stop: CancellationToken,
    ) -> Option<Committer> {
        let mut reader = Some(Reader::new(self.shared.clone(), drain.clone()));
        let mut commits = Commits::new(committer);
        let mut reading: Slot<(Reader, Read)> = None;
        let mut taking: Slot<Option<Step>> = None;
        self.add_job(&Trigger::Own);
        while let Ok(trigger) = self.triggers.try_recv() {
            self.add_job(&trigger);
        }
        let mut round = tokio::time::interval(ROUND.min(self.shared.patience / 2));
        round.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if self.is_over() {
                return None;
            }
            self.look_at_line();
            self.look_at_leases();
            self.look_at_deadlines();
            self.look_at_pauses();
            self.admission.resize(self.shared.share());
            let draining = drain.is_cancelled();
            if draining {
                self.give_back();
            }
            self.takes = taking.is_some();
            let more = self.start_ready();
            // The commit before the next read: a requester waits for the one, nobody for the other.
            self.further = commits.further_ahead();
            self.tell_urgent(&commits);
            let makes_way = self.shared.makes_way();
            let part = if makes_way { BRIEF } else { usize::MAX };
            while let Some(commit) = commits.next(&mut self.settled, part) {
                let to_tell = self.what_to_tell(&commit.batch);
                let to_note = self.noted.of(&commit.batch);
                commits.begin(commit, self.shared.clone(), to_tell, to_note);
            }
            let room = self.room();
            let calm = self.suspects.is_empty() && self.alone.is_none();
            // The control plane is read all the same.
            let quiet = self.shared.name == "data" && self.shared.is_quiet();
            let may_look = !draining && !quiet && calm && !self.lapsed;
            if may_look && (room > 0 || self.waits_for_older()) {
                let job = self.jobs.next();
                let turn = Turn {
                    job: job.is_some() && self.may_take(),
                    own: job.as_ref().is_some_and(Job::is_own),
                    taking: taking.is_some(),
                    fails: self.taking_fails,
                    has_read: self.has_read,
                    reading: reading.is_some(),
                };
                let (takes, reads) = turn.next();
                if takes {
                    self.looks();
                }
                if takes && let Some(job) = self.jobs.begin() {
                    taking = Some(take(job, self.shared.clone(), self.room_to_take(room)));
                }
                if reads
                    && room > 0
                    && let Some(closed) = self.closed()
                    && let Some(free) = reader.take()
                {
                    let count = if makes_way {
                        BRIEF
                    } else {
                        READ + self.further
                    };
                    self.begins_to_read();
                    reading = Some(read(free, room.min(count), closed));
                }
            }
            // Where it may not start now, the end of what is in its way wakes the loop.
            let may =
                !self.shared.doubt.lasts() && self.suspects.is_empty() && self.alone.is_none();
            let may = may && !draining && self.may_have_a_slot();
            let gathers = match may {
                true => self.admission.next_due(self.running),
                false => None,
            };
            // What is given to a read that is given up the next owner finds.
            let reads = reading.is_some() && self.line.is_none();
            let notes = self.line.as_ref().is_some_and(|line| line.is_noting());
            let busy = reads || commits.are_under_way() || taking.is_some() || notes;
            let alarm = self.alarm();
            if draining && self.running == 0 && self.settled.is_empty() && !busy {
                return commits.into_committer();
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return commits.into_committer(),
                (receipts, report) = commits.ended() => {
                    self.committed(&receipts, report);
                }
                Some(finished) = events.0.recv() => {
                    self.finish(finished);
                    while let Ok(finished) = events.0.try_recv() {
                        self.finish(finished);
                    }
                }
                (free, read) = occupied(&mut reading) => {
                    reading = None;
                    self.has_read = true;
                    reader = Some(free);
                    match read {
                        Read::Entries(deliveries, asked) => self.accept(deliveries, asked),
                        Read::Looked(deliveries, asked, look) => {
                            self.accept(deliveries, asked);
                            self.saw(look);
                        }
                        Read::Lost => self.add_job(&Trigger::Own),
                    }
                }
                step = occupied(&mut taking) => {
                    taking = None;
                    self.taking_fails = step.is_none();
                    if step.is_none() {
                        self.has_read = false;
                        // What was taken and could not be read is pending with us, and in nobody's hands.
                        self.add_job(&Trigger::Own);
                    }
                    if let Some(mut step) = step {
                        self.has_looked(&mut step);
                        self.jobs.stepped(&step);
                        if let Step::Took(deliveries, asked) | Step::TookAll(deliveries, asked, ..) = step {
                            self.shared.counts.taken.fetch_add(deliveries.len() as u64, Ordering::Relaxed);
                            self.accept(deliveries, asked);
                            // What was delivered before is older.
                            let ready = self.ready.make_contiguous();
                            ready.sort_by_key(|delivery| delivery.entry.id);
                        }
                    }
                }
                Some(trigger) = self.triggers.recv() => self.add_job(&trigger),
                () = drain.cancelled(), if !draining => {}
                () = tokio::time::sleep(DOUBT), if self.shared.doubt.lasts() => {}
                () = tokio::time::sleep(LATE), if self.admission.has_deadlines() => {}
                () = gathered(gathers) => {}
                () = self.admission.has_a_slot(), if self.admission.is_pooled() => {}
                () = alarmed(&self.shared, alarm), if alarm.is_some() => {}
                () = tokio::task::yield_now(), if more => {}
                _ = round.tick() => commits.rest(),
            }
        }
    }

    /// After the process stood still for long, its entries may be others': whether they are, a renewal that
    /// was asked for after that tells.
    fn look_at_leases(&mut self) {
        if self.shared.turned.ago() >= self.shared.patience {
            self.shared.doubt.begin();
        }
        self.shared.turned.now();
        let Some(since) = self.shared.doubt.since() else {
            return;
        };
        let inflight = self.shared.inflight.clone();
        if inflight.any_renewed_before(since) {
            return;
        }
        self.shared.doubt.end();
        let mut lost = Vec::new();
        for read in [&mut self.ready, &mut self.suspects] {
            read.retain(|delivery| {
                let is_lost = inflight.is_lost(&delivery.receipt());
                if is_lost {
                    lost.push(delivery.receipt());
                }
                !is_lost
            });
        }
        self.let_go(&lost);
    }

    /// Tells the data lanes whether anything of the control plane is to be begun, has just begun, or is to be committed.
    /// What runs for long (the holder of a batch) is no reason.
    fn tell_urgent(&self, commits: &Commits) {
        if self.shared.name != "control" {
            return;
        }
        let waits = self.ahead() + self.settled.len() > 0 || commits.are_under_way();
        let urgent = waits || self.shared.inflight.has_begun_within(JUST);
        self.shared.tell_urgent(urgent);
    }

    fn look_at_deadlines(&mut self) {
        if !self.admission.has_deadlines() || self.looked.elapsed() < LATE {
            return;
        }
        self.looked = Instant::now();
        for late in self.admission.late(self.shared.claims.server_now()) {
            self.expired(late.receipt, late.context.event());
        }
    }

    /// Takes in what was asked for then. An answer may be as old as that: whoever reads it after its process
    /// stood still does not know whose the entries are by now.
    fn accept(&mut self, mut deliveries: Vec<Delivery>, asked: Instant) {
        let brings = !deliveries.is_empty();
        self.shared.inflight.add(&mut deliveries, asked);
        let doubt = &self.shared.doubt;
        let is_old = doubt.since().is_some_and(|since| asked < since)
            || asked.elapsed() >= self.shared.patience;
        if is_old && brings {
            doubt.begin();
        }
        for delivery in deliveries {
            if delivery.deliveries >= ALONE && self.line.is_none() {
                self.suspects.push_back(delivery);
            } else {
                self.ready.push_back(delivery);
            }
        }
        self.tell_ahead();
    }

    fn finish(&mut self, finished: Finished) {
        let finished = match finished {
            Finished::Entered(waiting, entered) => return self.came_in(*waiting, entered),
            Finished::Judged(unjudged, verdict) => return self.judged(*unjudged, verdict),
            Finished::Computed => return self.admission.computed(),
            Finished::Weighed(weighing, weighed) => return self.weighed(*weighing, weighed),
            Finished::Run(ran) => {
                if !ran.blocks {
                    self.ended(ran.route());
                }
                return self.ran(*ran);
            }
            Finished::Freed(route) => return self.ended(route),
            Finished::Noted(noted) => return self.were_noted(&noted),
            Finished::Lot(ran, held) => {
                if let Some(held) = held {
                    self.running -= 1;
                    self.batched -= held.events - 1;
                    self.admission.ended_lot(&held);
                }
                return ran.into_iter().for_each(|ran| self.ran(ran));
            }
            finished => finished,
        };
        self.running -= 1;
        match finished {
            Finished::Settled(settlement) => self.settled.push(*settlement),
            Finished::Given(receipt) => self.let_go_for_now(std::slice::from_ref(&receipt)),
            Finished::GivenBack(settlements, stays) => {
                self.settled.extend(settlements);
                self.let_go_for_now(&stays);
            }
            _ => {}
        }
    }

    /// Notes that a run gave its slot back.
    fn ended(&mut self, route: usize) {
        self.running -= 1;
        self.admission.ended(route);
    }

    fn committed(&mut self, receipts: &[Receipt], report: Tally) {
        let counts = &self.shared.counts;
        counts
            .committed
            .fetch_add(report.committed, Ordering::Relaxed);
        counts.retried.fetch_add(report.retried, Ordering::Relaxed);
        counts.dead.fetch_add(report.dead, Ordering::Relaxed);
        let void = report.unwritten.iter();
        let void = void.filter(|receipt| self.is_void(receipt)).count() as u64;
        counts.cancelled.fetch_add(void, Ordering::Relaxed);
        let fenced = report.fenced.saturating_sub(void);
        counts.fenced.fetch_add(fenced, Ordering::Relaxed);
        if fenced > 0 {
            tracing::info!(
                lane = self.shared.name,
                entries = fenced,
                "outcomes discarded: someone else owns the entries now, or their events were cancelled"
            );
        }
        if let Some((receipt, why)) = report.refused.first() {
            tracing::error!(
                lane = self.shared.name, entry = %receipt.entry, entries = report.refused.len(), why,
                "outcomes cannot be written; the entries stay pending"
            );
        }
        match self.line.is_some() && !report.unwritten.is_empty() {
            false => self.release(receipts),
            true => self.release_written(receipts, &report),
        }
        self.remove_oversized(receipts);
        if report.outdated > 0 {
            tracing::info!(
                lane = self.shared.name,
                entries = report.outdated,
                "outcomes discarded: the server failed over or restarted since their runs began; they run again"
            );
            self.add_job(&Trigger::Own);
        }
    }

    /// As history it would cost everyone who looks at the stream. What does not work out is left to trimming.
    fn remove_oversized(&mut self, receipts: &[Receipt]) {
        for receipt in self
            .oversized
            .extract_if(.., |receipt| receipts.contains(receipt))
        {
            let shared = self.shared.clone();
            tokio::spawn(async move {
                let stream = &shared.routes[receipt.stream].events;
                if let Ok(mut connection) = shared.process.connector.pooled().await {
                    trim::remove(&mut connection, stream, receipt.entry)
                        .await
                        .ok();
                }
            });
        }
    }

    /// Lets go of what has an end.
    fn release(&mut self, receipts: &[Receipt]) {
        self.drop_from_hand(receipts);
        if let Some(line) = &mut self.line {
            for receipt in receipts {
                line.ended(receipt.entry);
            }
        }
    }

    fn drop_from_hand(&mut self, receipts: &[Receipt]) {
        if let Some(line) = &mut self.line {
            line.dropped += receipts.len();
        }
        self.shared.inflight.remove(receipts.iter());
        if self.alone.is_some_and(|alone| receipts.contains(&alone)) {
            self.alone = None;
        }
    }
}

impl Drop for Lane {
    /// Nothing that it started goes on without it.
    fn drop(&mut self) {
        self.shared.tell_urgent(false);
        self.shared.inflight.end_all();
    }
}

/// Ends when a batch is due; never where none is.
async fn gathered(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

/// What a lane's runs report to it.
pub(super) struct LaneEvents(mpsc::UnboundedReceiver<Finished>);
