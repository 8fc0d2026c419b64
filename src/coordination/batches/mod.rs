//! Batches: each is held by one instance at a time, which commits what it finished.
//!
//! | from | to | by |
//! |---|---|---|
//! | unknown | running, held, `batch.started` | `acquire` |
//! | running, lease run out or given back | running, held with a higher fence, `batch.progress` | `acquire` by anyone |
//! | running, held | the same, at once | `acquire` with the holder's own entry, which the bus took over |
//! | running, held | items finished, the lease renewed, now and then `batch.progress` | `progress` with the last fence |
//! | running, the last item | completed, `batch.completed` | the same |
//! | running, held | held for another lease, or given back | `renew`, `give_back` with the last fence |
//! | running | cancelled, `batch.cancelled`: nobody holds it from then on | `cancel` |
//! | completed, cancelled | unknown, after [`KEPT`] | time |
//!
//! *Fences only rise*: a new one is the greater of the last one plus 1 and the server's clock in
//! microseconds, so a server that lost its data does not fall back.
//!
//! *The items stay with the event.* A holder's event is pending until the batch is completed, so it
//! is there for whoever takes it over, and trimming never removes it; another request with the same
//! id brings the same items, which the digest makes sure of. The state is a few numbers, a bit an
//! item and the first failures, and no payload is copied through a script.
//!
//! *A batch that is nobody's* ([`share`](Batches::share)) has no holder: whoever has its event goes on with it, and who
//! was thought dead may still be at it. All have the same fence. That is safe where the effects of an item are committed
//! apart from its progress, and once: as an event of its own.
//!
//! *Progress is a set*, not a position: the bit of an item is set once, by whichever holder, so a
//! repeated commit counts nothing twice, and items may be finished in any order.

pub mod batch;
pub mod cancel;
pub mod leases;

use super::error::CoordinationError;
use super::outbox;
use super::scripts::VERSION;
use super::store::Store;
use crate::connect::clock::whole_ms;
use crate::connect::connector::Connector;
use crate::connect::epoch::Epoch;
use crate::connect::error::BusError;
use crate::connect::script::{script, script_with};
use crate::connect::silence::{Answers, CallTime};
use crate::coordination::answer::answer;
use crate::coordination::batches::batch::{
    Batch, BatchPlan, Failure, MAX_FAILURES, MAX_MESSAGE, check_id,
};
use crate::protocol::domain::MAX_PARTITIONS;
use crate::protocol::keys::Keys;
use crate::streams::commit::Publication;
use redis::{Script, ScriptInvocation};
use std::collections::HashMap;
use std::sync::LazyLock;
use std::time::Duration;
use uuid::Uuid;

/// How long a completed batch is kept, to answer again with its result.
pub const KEPT: Duration = Duration::from_secs(24 * 3600);
/// How long a batch is kept that nobody goes on with.
pub const ABANDONED: Duration = Duration::from_secs(7 * 24 * 3600);
/// The shortest time between two `batch.progress` of one batch and holder.
pub const TELL: Duration = Duration::from_millis(250);
/// Running and recent batches that are listed at the most.
pub const LISTED: usize = 1000;
/// Hashes read in one round trip.
const PAGE: usize = 64;

static COORDINATE: LazyLock<Script> =
    LazyLock::new(|| script_with(&[VERSION], include_str!("coordinate_batch.lua")));
static RENEW: LazyLock<Script> = LazyLock::new(|| script(include_str!("renew_batch.lua")));

/// The batches of one namespace. Cheap to clone; every clone and every process sees the same.
#[derive(Clone, Debug)]
pub struct Batches {
    store: Store,
    answers: Option<Answers>,
}

/// Who asks for a batch.
#[derive(Clone, Copy, Debug)]
pub struct Asker<'a> {
    /// The instance.
    pub instance: &'a str,
    /// A word that no other run of a handler has.
    pub run: &'a str,
    /// The id of the entry that the event is on.
    pub entry: &'a str,
    /// Which delivery of that entry the caller has.
    pub deliveries: u32,
    /// The event's id.
    pub event: &'a str,
    /// Whether it could hold the batch; if not it only asks.
    pub may_hold: bool,
}

/// How far a batch is and who holds it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BatchProgress {
    /// The holder's fence.
    pub fence: u64,
    /// The holder, or the last one.
    pub processor_id: String,
    /// Items that succeeded.
    pub processed: u64,
    /// Items that failed for good.
    pub failed: u64,
    /// All items.
    pub total: u64,
}

/// The outcome of asking for a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Acquired {
    /// The asker holds it; the bitmap of what was finished before.
    Held(BatchProgress, Vec<u8>),
    /// A batch of nobody's, with which the asker goes on, perhaps beside others; the same bitmap.
    Shared(BatchProgress, Vec<u8>),
    /// Another one holds it.
    Busy {
        /// Who, and how far.
        progress: BatchProgress,
        /// What is left of its lease.
        left: Duration,
        /// Whether the holder's event has the asker's event id: it is the same request.
        same_event: bool,
    },
    /// Nobody holds it, and the asker may not.
    Free,
    /// The batch is completed.
    Completed(BatchProgress),
    /// Somebody cancelled it: who, and why.
    Cancelled(String),
}

/// The outcome of committing a batch's progress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Advanced {
    /// The item is committed, and others are missing.
    Running(BatchProgress),
    /// The item is committed, and was the last of its batch.
    Completed(BatchProgress),
    /// Nothing was changed: somebody else holds the batch, or it is gone.
    Lost(BatchProgress),
}

/// An item that is finished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FinishedItem {
    /// Which item, from 0.
    pub index: usize,
    /// Why it failed for good, if it did: an error code and a message.
    pub failure: Option<(&'static str, String)>,
}

answer! {
    /// What `coordinate_batch.lua` answers.
    struct Coordinated {
        state: String,
        fence: u64,
        processor_id: String,
        processed: u64,
        failed: u64,
        total: u64,
        left: u64,
        event: String,
        /// Which items are finished; or the stream to which an item cannot publish.
        bits: Vec<u8>,
    }
}

impl Batches {
    /// The batches of the namespace of `keys`.
    pub fn new(connector: Connector, keys: Keys) -> Self {
        Self {
            store: Store::new(connector, keys),
            answers: None,
        }
    }

    /// The same that counts a holder's silence by those answers of the server. Without, all silence counts.
    #[must_use]
    pub fn judging_by(self, answers: Answers) -> Self {
        Self {
            answers: Some(answers),
            ..self
        }
    }

    /// The same in one history of the server only ([`Connector::epoch`]): in another one calls fail
    /// with [`BusError::OtherEpoch`].
    #[must_use]
    pub fn within(&self, epoch: Epoch) -> Self {
        Self {
            store: self.store.within(epoch),
            ..self.clone()
        }
    }

    fn coordinate(&self, action: &str, id: &str) -> ScriptInvocation<'static> {
        let keys = &self.store.keys;
        let mut call = COORDINATE.prepare_invoke();
        call.key(keys.batch(id))
            .key(keys.batch_finished(id))
            .key(keys.batches())
            .key(keys.broadcast())
            .key(keys.state())
            .arg(action)
            .arg(id)
            .arg(whole_ms(KEPT));
        call
    }

    /// Holds a batch if nobody does, or tells who does and how far it is. The same run that asks
    /// again gets the same answer.
    ///
    /// # Errors
    /// `AlreadyExists` if a batch of that id has another content; `Bus` else.
    pub async fn acquire(
        &self,
        wanted: &BatchPlan,
        asker: Asker<'_>,
    ) -> Result<Acquired, CoordinationError> {
        self.ask_for(wanted, asker, false).await
    }

    /// The same; a batch that is new is nobody's: whoever has its event goes on with it.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    pub async fn share(
        &self,
        wanted: &BatchPlan,
        asker: Asker<'_>,
    ) -> Result<Acquired, CoordinationError> {
        self.ask_for(wanted, asker, true).await
    }

    async fn ask_for(
        &self,
        wanted: &BatchPlan,
        asker: Asker<'_>,
        shared: bool,
    ) -> Result<Acquired, CoordinationError> {
        let mut call = self.coordinate("acquire", &wanted.id);
        call.arg(&wanted.item_type)
            .arg(wanted.mode.as_str())
            .arg(&wanted.digest)
            .arg(wanted.total)
            .arg(asker.instance)
            .arg(asker.run)
            .arg(asker.entry)
            .arg(asker.event)
            .arg(wanted.lease_ms)
            .arg(u8::from(asker.may_hold))
            .arg(whole_ms(ABANDONED))
            .arg(LISTED)
            .arg(asker.deliveries);
        let span = self
            .answers
            .as_ref()
            .map_or(Some(CallTime::ANY), Answers::span);
        // Within a gap nobody can say whether the holder is silent.
        let span = span.unwrap_or(CallTime::NEVER);
        call.arg(span.since).arg(span.from).arg(span.until);
        call.arg(unguessable()).arg(u8::from(shared));
        let answer: Coordinated = self.store.invoke(&call).await?;
        match answer.state.as_str() {
            "held" => Ok(Acquired::Held(progress(&answer), answer.bits)),
            "shared" => Ok(Acquired::Shared(progress(&answer), answer.bits)),
            "busy" => Ok(Acquired::Busy {
                progress: progress(&answer),
                left: Duration::from_millis(answer.left),
                same_event: answer.event == asker.event,
            }),
            "free" => Ok(Acquired::Free),
            "completed" => Ok(Acquired::Completed(progress(&answer))),
            "cancelled" => Ok(Acquired::Cancelled(
                String::from_utf8_lossy(&answer.bits).into_owned(),
            )),
            "differs" => Err(CoordinationError::AlreadyExists(format!(
                "batch_id: {} is there with another item_type, mode or items: give this one another id",
                wanted.id
            ))),
            _ => Err(unexpected()),
        }
    }

    /// Commits items as finished, and stores what they published in the same step. Renews the lease.
    /// Where all of them are finished already nothing is stored: a call whose answer was lost is repeated as it was,
    /// with no item more.
    ///
    /// # Errors
    /// `Invalid` for an item that the batch does not have; `FailedPrecondition` if a publication can
    /// not be stored, nothing was changed; `Bus` else.
    pub async fn progress(
        &self,
        wanted: &BatchPlan,
        fence: u64,
        outcomes: &[FinishedItem],
        publications: &[Publication],
    ) -> Result<Advanced, CoordinationError> {
        outbox::check(publications)?;
        let mut call = self.coordinate("progress", &wanted.id);
        call.arg(fence)
            .arg(whole_ms(TELL))
            .arg(MAX_FAILURES)
            .arg(whole_ms(ABANDONED))
            .arg(outcomes.len());
        for outcome in outcomes {
            if outcome.index >= wanted.total {
                let (index, total) = (outcome.index, wanted.total);
                return Err(CoordinationError::Invalid(format!(
                    "index: {index} is not below {total}"
                )));
            }
            let (code, message) = match &outcome.failure {
                Some((code, message)) => (*code, cut(message)),
                None => ("", ""),
            };
            call.arg(outcome.index).arg(code).arg(message);
        }
        outbox::publish(&mut call, &self.store, publications);
        let answer: Coordinated = self.store.invoke(&call).await?;
        match answer.state.as_str() {
            "held" => Ok(Advanced::Running(progress(&answer))),
            "completed" => Ok(Advanced::Completed(progress(&answer))),
            "lost" => Ok(Advanced::Lost(progress(&answer))),
            "unwritable" => Err(CoordinationError::FailedPrecondition(format!(
                "an item publishes to {}, which holds no stream",
                String::from_utf8_lossy(&answer.bits)
            ))),
            _ => Err(unexpected()),
        }
    }

    /// Renews the lease; false if the fence is not the last holder's. Works when the server's memory
    /// is full.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn renew(
        &self,
        id: &str,
        fence: u64,
        lease: Duration,
    ) -> Result<bool, CoordinationError> {
        self.set_lease(id, fence, whole_ms(lease).max(1)).await
    }

    /// Gives the lease back: whoever asks next holds the batch. False if the fence is not the last
    /// holder's.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn give_back(&self, id: &str, fence: u64) -> Result<bool, CoordinationError> {
        self.set_lease(id, fence, 0).await
    }

    async fn set_lease(&self, id: &str, fence: u64, ms: u64) -> Result<bool, CoordinationError> {
        let mut call = RENEW.prepare_invoke();
        call.key(self.store.keys.batch(id))
            .key(self.store.keys.batch_finished(id))
            .arg(fence)
            .arg(ms)
            .arg(whole_ms(ABANDONED));
        Ok(self.store.invoke(&call).await?)
    }

    /// The word by which those who work on a batch know that an answer belongs to it; nobody else does.
    ///
    /// # Errors
    /// `NotFound` if there is no such batch; `Bus`.
    pub async fn word(&self, id: &str) -> Result<String, CoordinationError> {
        let mut reads = redis::pipe();
        reads.cmd("HGET").arg(self.store.keys.batch(id)).arg("word");
        let (word,): (Option<String>,) = self.store.ask(&reads).await?;
        word.ok_or_else(|| not_there(id))
    }

    /// Over how many partitions the items of a batch are published: as many as there were when it began, whoever goes on
    /// with it, since the marks that keep an item from being stored twice lie in its partition.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn partitions(&self, id: &str, now: u16) -> Result<u16, CoordinationError> {
        let key = self.store.keys.batch(id);
        let mut asks = redis::pipe();
        asks.cmd("HSETNX")
            .arg(&key)
            .arg("partitions")
            .arg(now)
            .ignore();
        asks.cmd("HGET").arg(&key).arg("partitions");
        let (kept,): (Option<u16>,) = self.store.ask(&asks).await?;
        Ok(kept.unwrap_or(now).clamp(1, MAX_PARTITIONS))
    }

    /// Fails if a later history of the server than that was seen.
    ///
    /// # Errors
    /// `OtherEpoch`.
    pub fn check_epoch(&self, epoch: Epoch) -> Result<(), BusError> {
        self.store.connector.check_epoch(epoch)
    }

    /// Removes the streams that the replies of a batch's items were on, once it is completed.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn forget_replies(&self, streams: &[String]) -> Result<(), CoordinationError> {
        let mut removals = redis::pipe();
        for stream in streams {
            removals.cmd("UNLINK").arg(stream).ignore();
        }
        Ok(self.store.ask(&removals).await?)
    }

    /// One batch; `None` if no batch has that id, or it was completed longer than [`KEPT`] ago.
    ///
    /// # Errors
    /// `Invalid` if it is no id; `Bus`.
    pub async fn find(&self, id: &str) -> Result<Option<Batch>, CoordinationError> {
        check_id(id)?;
        let mut found = self.read(&[id.to_owned()]).await?;
        Ok(found.pop())
    }

    /// The first failures of a batch, by index.
    ///
    /// # Errors
    /// As [`find`](Self::find).
    pub async fn failures(&self, id: &str) -> Result<Vec<Failure>, CoordinationError> {
        let batch = self.find(id).await?;
        Ok(batch.map(|batch| batch.failures).unwrap_or_default())
    }

    /// Running and recent batches, at most `limit`, the one that changed last first.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn list(&self, limit: usize) -> Result<Vec<Batch>, CoordinationError> {
        if limit == 0 {
            return Ok(Vec::new());
        }
        let mut ids = redis::pipe();
        ids.cmd("ZRANGE")
            .arg(self.store.keys.batches())
            .arg(0)
            .arg(limit.min(LISTED) - 1)
            .arg("REV");
        let (ids,): (Vec<String>,) = self.store.ask(&ids).await?;
        let mut batches = Vec::with_capacity(ids.len());
        for page in ids.chunks(PAGE) {
            batches.extend(self.read(page).await?);
        }
        Ok(batches)
    }

    async fn read(&self, ids: &[String]) -> Result<Vec<Batch>, CoordinationError> {
        let mut reads = redis::pipe();
        for id in ids {
            reads.cmd("HGETALL").arg(self.store.keys.batch(id));
        }
        let hashes: Vec<HashMap<String, String>> = self.store.ask(&reads).await?;
        Ok(hashes.iter().filter_map(Batch::from_hash).collect())
    }
}

fn progress(answer: &Coordinated) -> BatchProgress {
    BatchProgress {
        fence: answer.fence,
        processor_id: answer.processor_id.clone(),
        processed: answer.processed,
        failed: answer.failed,
        total: answer.total,
    }
}

fn not_there(id: &str) -> CoordinationError {
    CoordinationError::NotFound(format!("batch_id: no batch is named {id}"))
}

fn unguessable() -> String {
    format!("{}{:016x}", Uuid::now_v7().simple(), fastrand::u64(..))
}

fn unexpected() -> CoordinationError {
    CoordinationError::Bus(BusError::Reply {
        what: "coordinate_batch.lua",
    })
}

fn cut(message: &str) -> &str {
    &message[..message.floor_char_boundary(MAX_MESSAGE)]
}
