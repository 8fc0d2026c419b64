//! Requests in flight and the streams that their replies come back on.
//!
//! A client has one reply stream (one per partition on a cluster), with one task that reads it on a
//! connection of its own and hands each reply to the request that waits for it. The stream exists,
//! and the place to read from is known, before the first request is sent, so no reply is missed.

use crate::client::publish::PublishError;
use crate::connect::backoff::Backoff;
use crate::connect::clock::{NEVER, whole_ms};
use crate::connect::connector::{BLOCK, Connector};
use crate::connect::error::BusError;
use crate::mutex::locked;
use crate::protocol::event::{Entry, EntryId, Limits};
use crate::protocol::progress::Progress;
use crate::protocol::reply::{MalformedReply, RemoteError, Reply};
use crate::streams::read::read_after;
use redis::aio::MultiplexedConnection;
use std::collections::HashMap;
use std::collections::hash_map;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{OnceCell, mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// Replies that are read at a time: bounds the memory that one read may take.
const COUNT: usize = 64;
/// Reports of progress that wait for whoever hears them; what comes beyond that is dropped.
const UNHEARD: usize = 64;

/// Why a request has no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The request was rejected, or it is unknown whether it was stored and no reply came in time.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// Nobody answered in time. It may have run, or, without a worker, wait until its deadline.
    #[error(
        "no reply in time to {kind} ({within:?}, event {id:?}): nobody reads {stream}, nobody who does handles it, \
         or it still runs (convoke streams, convoke pending)"
    )]
    TimedOut {
        /// The event's type.
        kind: String,
        /// The event's id.
        id: String,
        /// The stream in which it stands.
        stream: String,
        /// How long it was awaited.
        within: Duration,
    },
    /// The handler failed.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// The reply is malformed.
    #[error(transparent)]
    Malformed(#[from] MalformedReply),
    /// The client was closed.
    #[error("the client is closed")]
    Closed,
}

type Answer = Result<Reply, RequestError>;

/// Who hears of a request's progress.
pub(crate) type Hear<'a> = Option<&'a mut (dyn FnMut(Progress) + Send)>;

/// How a client's reply streams are kept.
#[derive(Clone)]
pub(crate) struct ReplyStreams {
    pub client: String,
    pub limits: Limits,
    pub history: u64,
    pub ttl: Duration,
}

/// The requests in flight of one client, and its reply streams.
pub(crate) struct Replies {
    shared: Arc<Shared>,
    open: Mutex<HashMap<String, Arc<OnceCell<()>>>>,
}

struct Shared {
    connector: Connector,
    streams: ReplyStreams,
    /// By the event's id.
    waiting: Mutex<HashMap<String, Waits>>,
    closed: CancellationToken,
}

/// The other end of a request in flight.
struct Waits {
    answer: oneshot::Sender<Answer>,
    /// `None` where nobody hears it.
    progress: Option<mpsc::Sender<Progress>>,
}

impl Replies {
    pub(crate) fn new(connector: Connector, streams: ReplyStreams) -> Self {
        Self {
            shared: Arc::new(Shared {
                connector,
                streams,
                waiting: Mutex::default(),
                closed: CancellationToken::new(),
            }),
            open: Mutex::default(),
        }
    }

    /// Sees to it that the stream exists and is read.
    pub(crate) async fn open(&self, stream: &str) -> Result<(), RequestError> {
        if self.shared.closed.is_cancelled() {
            return Err(RequestError::Closed);
        }
        let cell = locked(&self.open)
            .entry(stream.to_owned())
            .or_default()
            .clone();
        if cell.initialized() {
            return Ok(());
        }
        // Apart: it is large, and who asks would have it on the stack each time.
        Box::pin(cell.get_or_try_init(|| self.begin(stream)))
            .await
            .map_err(|error| {
                PublishError::unsent(format_args!("the reply stream cannot be opened: {error}"))
            })?;
        Ok(())
    }

    /// Creates the stream and begins to read it.
    async fn begin(&self, stream: &str) -> Result<(), BusError> {
        let connector = self.shared.connector.toward(stream);
        let mut generation = connector.generation();
        let (connection, after) = self.shared.open(&connector, stream).await?;
        if connector.is_cluster() && generation == 0 {
            // Nobody had asked where the slot is. A node that has lost it since says so to who reads.
            generation = connector.generation();
        }
        let reader = Reader {
            shared: self.shared.clone(),
            connector,
            generation,
            stream: stream.to_owned(),
            after,
            refresh: Instant::now() + self.shared.streams.ttl.min(NEVER) / 3,
        };
        tokio::spawn(reader.run(connection));
        Ok(())
    }

    /// From now on the reply to that event is kept for the caller, and its progress where that is heard.
    pub(crate) fn wait_for(&self, id: &str, hears: bool) -> Result<Waiting<'_>, RequestError> {
        let (answer, receiver) = oneshot::channel();
        let (progress, told) = hears.then(|| mpsc::channel(UNHEARD)).unzip();
        match self.shared.waiting().entry(id.to_owned()) {
            hash_map::Entry::Occupied(_) => {
                let reason = "id: a request with this id is in flight";
                return Err(PublishError::rejected(reason).into());
            }
            hash_map::Entry::Vacant(place) => place.insert(Waits { answer, progress }),
        };
        Ok(Waiting {
            shared: &self.shared,
            id: id.to_owned(),
            receiver,
            told,
        })
    }

    /// Ends all waiting and, soon, all reading. Returns the streams, which nobody reads any more.
    pub(crate) fn close(&self) -> Vec<String> {
        self.shared.closed.cancel();
        self.shared.waiting().clear();
        locked(&self.open)
            .drain()
            .map(|(stream, _)| stream)
            .collect()
    }
}

/// One request in flight; forgotten when it is dropped.
pub(crate) struct Waiting<'a> {
    shared: &'a Shared,
    id: String,
    receiver: oneshot::Receiver<Answer>,
    told: Option<mpsc::Receiver<Progress>>,
}

impl Waiting<'_> {
    /// Its reply, behind all of its progress. Cancel safe.
    pub(crate) async fn answer(&mut self, hear: &mut Hear<'_>) -> Answer {
        let answer = match (&mut self.told, hear) {
            (Some(told), Some(hear)) => loop {
                // The sender of both is one: it is gone with the answer.
                tokio::select! {
                    biased;
                    Some(progress) = told.recv() => hear(progress),
                    answer = &mut self.receiver => break answer,
                }
            },
            _ => (&mut self.receiver).await,
        };
        answer.unwrap_or(Err(RequestError::Closed))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.shared.waiting().remove(&self.id);
    }
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, HashMap<String, Waits>> {
        locked(&self.waiting)
    }

    /// A connection for reading the stream, which exists then, and the last id in it.
    async fn open(
        &self,
        connector: &Connector,
        stream: &str,
    ) -> Result<(MultiplexedConnection, EntryId), BusError> {
        let mut connection = connector.blocking(BLOCK).await?;
        let last = self.create(&mut connection, stream).await?;
        Ok((connection, last))
    }

    /// Adds an entry, which creates the stream and tells its last id, and removes it again.
    async fn create(
        &self,
        connection: &mut MultiplexedConnection,
        stream: &str,
    ) -> Result<EntryId, BusError> {
        let mut step = redis::pipe();
        step.atomic();
        step.cmd("XADD").arg(stream).arg("MAXLEN").arg("~");
        step.arg(self.streams.history).arg("*");
        step.arg("source").arg(&self.streams.client);
        step.cmd("PEXPIRE").arg(stream).arg(self.ttl_ms());
        let (id, _): (String, i64) = step.query_async(connection).await?;
        let mut remove = redis::cmd("XDEL");
        remove.arg(stream).arg(&id);
        let _: i64 = remove.query_async(connection).await?;
        id.parse().map_err(|_| BusError::Reply { what: "XADD" })
    }

    fn ttl_ms(&self) -> u64 {
        whole_ms(self.streams.ttl).max(1)
    }

    fn deliver(&self, entry: &Entry) {
        let id = entry.get("correlationid").unwrap_or_default();
        let id = std::str::from_utf8(id).unwrap_or_default();
        if Progress::is_in(entry) {
            return self.tell(id, entry);
        }
        let Some(waits) = self.waiting().remove(id) else {
            debug!(entry = %entry.id, "a reply that nobody waits for");
            return;
        };
        let answer = match Reply::parse(entry, &self.streams.limits) {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(failure)) => Err(failure.into()),
            Err(malformed) => Err(malformed.into()),
        };
        waits.answer.send(answer).ok();
    }

    /// Hands progress to whoever hears it; a request that hears none goes on waiting for its reply.
    fn tell(&self, id: &str, entry: &Entry) {
        let waiting = self.waiting();
        let told = waiting.get(id).and_then(|waits| waits.progress.as_ref());
        if let Some(told) = told {
            match Progress::parse(entry, &self.streams.limits) {
                Ok(progress) => _ = told.try_send(progress),
                Err(error) => debug!(entry = %entry.id, %error, "progress that nobody can read"),
            }
        }
    }
}

/// Reads one reply stream until the client is closed; lives through the server's restarts.
struct Reader {
    shared: Arc<Shared>,
    /// The way to the stream.
    connector: Connector,
    /// The primary that the connection leads to.
    generation: u64,
    stream: String,
    after: EntryId,
    refresh: Instant,
}

impl Reader {
    async fn run(mut self, mut connection: MultiplexedConnection) {
        let mut backoff = Backoff::default();
        while !self.shared.closed.is_cancelled() {
            match self.step(&mut connection).await {
                Ok(()) => _ = backoff.worked(),
                Err(error) => {
                    if !backoff.is_failing() {
                        warn!(stream = %self.stream, %error, "reading replies failed; trying again");
                    }
                    match self.reconnect(&mut backoff).await {
                        Some(new) => connection = new,
                        None => return,
                    }
                }
            }
        }
        let mut command = redis::cmd("UNLINK");
        command.arg(&self.stream);
        if let Err(error) = command.query_async::<i64>(&mut connection).await {
            debug!(stream = %self.stream, %error, "the reply stream is left to expire");
        }
    }

    async fn step(&mut self, connection: &mut MultiplexedConnection) -> Result<(), BusError> {
        self.connector.check(self.generation)?;
        if Instant::now() >= self.refresh {
            let mut command = redis::cmd("PEXPIRE");
            command.arg(&self.stream).arg(self.shared.ttl_ms());
            let exists: i64 = command.query_async(connection).await?;
            if exists == 0 {
                let last = self.shared.create(connection, &self.stream).await?;
                self.go_on_from(last);
            }
            self.refresh = Instant::now() + self.shared.streams.ttl.min(NEVER) / 3;
        }
        let from = [(self.stream.as_str(), self.after)];
        for batch in read_after(connection, &from, COUNT, BLOCK).await? {
            for entry in &batch.entries {
                self.after = self.after.max(entry.id);
                self.shared.deliver(entry);
            }
        }
        Ok(())
    }

    /// A new connection; none if the client was closed meanwhile.
    async fn reconnect(&mut self, backoff: &mut Backoff) -> Option<MultiplexedConnection> {
        loop {
            let pause = tokio::time::sleep(backoff.failed());
            tokio::select! {
                () = self.shared.closed.cancelled() => return None,
                () = pause => {}
            }
            self.generation = self.connector.generation();
            match self.shared.open(&self.connector, &self.stream).await {
                Ok((connection, last)) => {
                    self.go_on_from(last);
                    return Some(connection);
                }
                Err(error) => debug!(stream = %self.stream, %error, "reconnecting failed"),
            }
        }
    }

    /// After a loss of data the stream may begin again below what was read.
    fn go_on_from(&mut self, last: EntryId) {
        if last < self.after {
            self.after = EntryId::default();
        }
    }
}
