//! A batch in the hands of its holder: what is finished, what of it is not committed yet, and when
//! to stop.

use crate::Context;
use crate::connect::backoff::Backoff;
use crate::connect::epoch::Epoch;
use crate::connect::error::{BusError, Reaction};
use crate::coordination::batches::batch::{BatchPlan, TOGETHER};
use crate::coordination::batches::leases::Held;
use crate::coordination::batches::{Advanced, BatchProgress, Batches, FinishedItem};
use crate::coordination::error::CoordinationError;
use crate::handler::dispatch::Unbegun;
use crate::protocol::error::HandlerError;
use crate::streams::commit::MAX_PUBLICATIONS;
use crate::streams::commit::Publication;
use std::time::{Duration, Instant};

/// How long a finished item waits for others to be committed with.
const WAIT: Duration = Duration::from_millis(100);
/// Bytes of publications that are not committed yet, at the most, before the item that adds to them.
const BYTES: usize = 256 * 1024;

/// Deliveries after which an entry that makes progress is exchanged for a new one: before it would
/// have to run with nothing beside it.
const OFTEN: u32 = 3;

/// Why a holder stops before the batch is completed.
#[derive(Debug)]
pub(super) enum Stop {
    /// Somebody else holds the batch, or may.
    Lost,
    /// The worker shuts down.
    Draining,
    /// The event is no longer this worker's, or the drain time is over.
    Cancelled,
    /// The batch goes on as a new entry: it makes progress, and its event was delivered so often that it will
    /// soon count as poison; or the server forgot some of the progress.
    Again,
    /// The server failed over or restarted, and may lack what the items did there.
    Outdated,
    /// The batch cannot go on.
    Failed(HandlerError),
}

impl From<Unbegun> for Stop {
    fn from(why: Unbegun) -> Self {
        match why {
            Unbegun::Cancelled => Stop::Cancelled,
            Unbegun::Draining => Stop::Draining,
            Unbegun::Late => Stop::Failed(why.into()),
        }
    }
}

/// A batch in the hands of its holder.
pub(super) struct Holding<'a> {
    /// The run of the batch's event.
    pub context: &'a Context,
    batches: &'a Batches,
    wanted: &'a BatchPlan,
    lease: Held,
    progress: BatchProgress,
    finished: Vec<u8>,
    outcomes: Vec<FinishedItem>,
    publications: Vec<Publication>,
    bytes: usize,
    due: Option<Instant>,
    /// Whether the items' effects are on the server, stored apart from the progress.
    apart: bool,
}

impl<'a> Holding<'a> {
    pub(super) fn new(
        context: &'a Context,
        batches: &'a Batches,
        wanted: &'a BatchPlan,
        lease: Held,
        progress: BatchProgress,
        finished: Vec<u8>,
        apart: bool,
    ) -> Self {
        Self {
            context,
            batches,
            wanted,
            lease,
            progress,
            finished,
            outcomes: Vec::new(),
            publications: Vec::new(),
            bytes: 0,
            due: None,
            apart,
        }
    }

    /// The batch's id.
    pub(super) fn id(&self) -> &str {
        self.wanted.id()
    }

    /// As last committed.
    pub(super) fn progress(&self) -> &BatchProgress {
        &self.progress
    }

    /// Whether the item needs no further run; committed or not.
    pub(super) fn is_finished(&self, index: usize) -> bool {
        let byte = self.finished.get(index / 8).copied().unwrap_or(0);
        byte & (0x80 >> (index % 8)) != 0
    }

    /// Notes a finished item, and commits it with others when it is time.
    pub(super) async fn finish(
        &mut self,
        index: usize,
        failure: Option<(&'static str, String)>,
        publications: Vec<Publication>,
    ) -> Result<(), Stop> {
        if self.publications.len() + publications.len() > MAX_PUBLICATIONS {
            self.commit().await?;
        }
        if self.finished.len() <= index / 8 {
            self.finished.resize(index / 8 + 1, 0);
        }
        self.finished[index / 8] |= 0x80 >> (index % 8);
        self.outcomes.push(FinishedItem { index, failure });
        let words = publications.iter().flat_map(|p| &p.fields);
        self.bytes += words.map(Vec::len).sum::<usize>();
        self.publications.extend(publications);
        let due = *self.due.get_or_insert_with(|| Instant::now() + WAIT);
        let full = self.outcomes.len() >= TOGETHER || self.bytes >= BYTES;
        if full || Instant::now() >= due {
            self.commit().await?;
        }
        Ok(())
    }

    /// Commits what is finished. As long as the lease lasts it is tried again.
    pub(super) async fn commit(&mut self) -> Result<(), Stop> {
        if self.outcomes.is_empty() {
            return Ok(());
        }
        let mut backoff = Backoff::default();
        let batches = match self.epoch() {
            Some(epoch) => &self.batches.within(epoch),
            None => self.batches,
        };
        let advanced = loop {
            let begun = Instant::now();
            let (fence, outcomes) = (self.lease.fence, &self.outcomes);
            let advanced = batches
                .progress(self.wanted, fence, outcomes, &self.publications)
                .await;
            match advanced {
                Ok(advanced) => {
                    self.lease.renewed(begun);
                    break advanced;
                }
                Err(CoordinationError::Bus(BusError::OtherEpoch)) => return Err(Stop::Outdated),
                Err(CoordinationError::Bus(error))
                    if error.reaction() != Reaction::GiveUp && self.lease.is_valid() =>
                {
                    tracing::debug!(batch = self.id(), %error, "progress was not committed; trying again");
                    tokio::time::sleep(backoff.failed()).await;
                }
                Err(error) => return Err(Stop::Failed(error.into_handler_error())),
            }
        };
        self.outcomes.clear();
        self.publications.clear();
        self.bytes = 0;
        self.due = None;
        match advanced {
            Advanced::Running(progress) => {
                self.progress = progress;
                match self.context.deliveries() {
                    OFTEN.. => Err(Stop::Again),
                    _ => Ok(()),
                }
            }
            Advanced::Completed(progress) => {
                self.progress = progress;
                Ok(())
            }
            Advanced::Lost(_) => Err(self.stop_items()),
        }
    }

    /// The only history of the server in which progress is committed, if items wrote there apart from
    /// it: what they wrote must be there where the progress is.
    fn epoch(&self) -> Option<Epoch> {
        let wrote = self.apart || self.context.wrote();
        wrote.then(|| self.context.epoch())
    }

    /// The word that only those know who work on the batch.
    pub(super) async fn word(&self) -> Result<String, Stop> {
        let word = self.batches.word(self.id()).await;
        word.map_err(|error| Stop::Failed(error.into_handler_error()))
    }

    /// Over how many partitions its items are published.
    pub(super) async fn partitions(&self, now: u16) -> Result<u16, Stop> {
        let partitions = self.batches.partitions(self.id(), now).await;
        partitions.map_err(|error| Stop::Failed(error.into_handler_error()))
    }

    /// Removes the streams that the items' replies were on, where the batch is completed. What remains
    /// expires by itself.
    pub(super) async fn forget_replies(&self, streams: &[String]) {
        let batches = self.batches.within(self.context.epoch());
        if let Err(error) = batches.forget_replies(streams).await {
            tracing::debug!(batch = self.id(), %error, "the replies were not removed; they expire");
        }
    }

    /// Commits what is finished last. If that does not complete the batch, the server failed over to
    /// one that lacks some of the progress: what it does not know of has to run again.
    pub(super) async fn complete(&mut self) -> Result<(), Stop> {
        self.commit().await?;
        let BatchProgress {
            processed,
            failed,
            total,
            ..
        } = self.progress;
        match processed + failed < total {
            true => Err(Stop::Again),
            false => Ok(()),
        }
    }

    /// Whether all is done, by whoever else may be at the batch; what this one has finished is committed first.
    pub(super) async fn is_completed(&mut self) -> Result<bool, Stop> {
        self.commit().await?;
        let fence = self.lease.fence;
        match self.batches.progress(self.wanted, fence, &[], &[]).await {
            Ok(Advanced::Completed(progress)) => {
                self.progress = progress;
                Ok(true)
            }
            Ok(Advanced::Running(_)) => Ok(false),
            Ok(Advanced::Lost(_)) => Err(self.stop_items()),
            Err(error) => {
                tracing::debug!(batch = self.id(), %error, "how far it is was not read; trying again");
                Ok(false)
            }
        }
    }

    /// Before an item is begun: whether to go on.
    pub(super) async fn check(&mut self) -> Result<(), Stop> {
        if self.context.draining().is_cancelled() {
            return Err(Stop::Draining);
        }
        if self.context.cancellation().is_cancelled() {
            return Err(Stop::Cancelled);
        }
        // It could commit nothing any more, and replies that it read may be none there.
        if let Some(epoch) = self.epoch()
            && self.batches.check_epoch(epoch).is_err()
        {
            return Err(Stop::Outdated);
        }
        if self.lease.is_valid() {
            return Ok(());
        }
        // This process stood still, or the server was away: perhaps nobody wanted the batch.
        let begun = Instant::now();
        let (id, fence) = (self.wanted.id(), self.lease.fence);
        let length = self.wanted.lease();
        match self.batches.renew(id, fence, length).await {
            Ok(true) if !self.lease.lost().is_cancelled() => {
                self.lease.renewed(begun);
                Ok(())
            }
            _ => Err(self.stop_items()),
        }
    }

    /// Waits for something while what is finished is committed in time; it is dropped when the batch
    /// is lost.
    pub(super) async fn beside<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Stop> {
        tokio::pin!(work);
        let cancelled = self.context.cancellation().clone();
        let lost = self.lease.lost().clone();
        loop {
            let due = self.due;
            tokio::select! {
                biased;
                done = &mut work => return Ok(done),
                () = lost.cancelled() => return Err(self.stop_items()),
                () = cancelled.cancelled() => return Err(Stop::Cancelled),
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now).into()), if due.is_some() => {
                    self.commit().await?;
                }
            }
        }
    }

    /// The same; it is dropped as soon as the worker is to shut down.
    pub(super) async fn until_drained<T>(
        &mut self,
        work: impl Future<Output = T>,
    ) -> Result<T, Stop> {
        let draining = self.context.draining();
        let work = async {
            tokio::select! {
                biased;
                () = draining.cancelled() => Err(Stop::Draining),
                done = work => Ok(done),
            }
        };
        self.beside(work).await?
    }

    /// Whether somebody was given the batch after this holder. If nobody was, the server was away for
    /// long, or failed over to one that never heard of this holder; or the batch was cancelled.
    pub(super) async fn is_overtaken(&self) -> bool {
        let found = self.batches.find(self.id()).await;
        let mine = self.lease.fence;
        matches!(found, Ok(Some(batch)) if batch.fence > mine && batch.cancelled.is_none())
    }

    /// Commits what is finished and lets the next one have the batch; what could not be committed runs again there.
    pub(super) async fn give_back(&mut self) {
        if let Err(stop) = self.commit().await {
            tracing::debug!(
                batch = self.id(),
                ?stop,
                "what was finished last is not committed"
            );
        }
        self.let_go().await;
    }

    /// Lets the next one have the batch as it is known. As long as the lease lasts it is tried again: whoever asks is
    /// told until then that the batch is under way.
    pub(super) async fn let_go(&self) {
        let (id, fence) = (self.id(), self.lease.fence);
        let mut backoff = Backoff::default();
        while let Err(error) = self.batches.give_back(id, fence).await {
            tracing::debug!(batch = id, %error, "the lease was not given back");
            let hopeless = match &error {
                CoordinationError::Bus(error) => error.reaction() == Reaction::GiveUp,
                _ => true,
            };
            if hopeless || !self.lease.is_valid() {
                return;
            }
            tokio::time::sleep(backoff.failed()).await;
        }
    }

    fn stop_items(&self) -> Stop {
        self.context.cancellation().cancel();
        Stop::Lost
    }
}
