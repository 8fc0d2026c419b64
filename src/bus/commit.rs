//! The fenced commit: the only place that acknowledges.
//!
//! An outcome takes effect only if its entry is still pending with this consumer, in the delivery
//! that was run. There are two ways to that.
//!
//! *Slow and always right*: `commit.lua`, entry by entry, compares owner and delivery count and
//! writes in one step.
//!
//! *Fast*: plain commands in one `MULTI`/`EXEC` for the whole batch. What makes it safe is the
//! **claim counter** of this consumer, which every takeover raises in the step in which it claims.
//! The counter is watched; each commit is sent as `MULTI … EXEC WATCH counters MGET counters`.
//!
//! - Moved while it was watched: `EXEC` does nothing.
//! - Moved between `EXEC` and the next `WATCH`: the `MGET` behind it shows another value.
//! - A read that was answered late: each entry carries the value that was known **before its read was
//!   sent**. The counter only rises, so if it equals the watched value the entry was not taken since.
//! - Unknown outcome (time-out, cut connection): the batch goes the slow way, which finds out one by
//!   one what was committed already.
//!
//! The counter is raised when a consumer starts and with each connection, so that an older process of
//! the same name loses the fast way, and so does what was read before a connection broke: the server
//! may have failed over. It exists while the consumer lives, so that a flushed database trips it.

use super::connect::{Connector, reconnect_delay};
use super::dead::DeadLetter;
use super::error::{BusError, Reaction};
use super::event::{Entry, EntryId};
use super::keys::Route;
use super::{claim, delay};
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Cmd, Pipeline, RedisError, Script, Value};
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

static COMMIT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("commit.lua")));

/// The most reply streams whose time to live is remembered.
const REMEMBERED_REPLIES: usize = 10_000;
/// The most words that a script may unpack into one command, with room to spare.
const SCRIPT_WORDS: usize = 4_000;
/// Tries of a commit that is too long for a script, each undone by a takeover.
const LARGE_TRIES: u32 = 16;

/// The server's clock, read once and carried on by the local monotonic one.
#[derive(Clone, Copy, Debug)]
pub struct ServerClock {
    at: Instant,
    ms: u64,
}

impl ServerClock {
    /// Unix milliseconds on the server now.
    pub fn now(&self) -> u64 {
        self.ms + self.at.elapsed().as_millis() as u64
    }

    /// Asks the server.
    pub async fn read(connection: &mut MultiplexedConnection) -> Result<Self, BusError> {
        let at = Instant::now();
        let (seconds, micros): (u64, u64) = redis::cmd("TIME").query_async(connection).await?;
        let ms = seconds * 1000 + micros / 1000;
        Ok(Self { at, ms })
    }
}

/// A reply or a result, ready to be stored.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The stream that the requester named; `None` for the results of the domain.
    pub to: Option<String>,
    /// The event's id.
    pub correlation_id: String,
    /// The event's type.
    pub kind: String,
    /// `ok` or an error code.
    pub status: &'static str,
    /// MessagePack: the result or the error.
    pub data: Vec<u8>,
}

/// An entry for a stream: names and values in turn.
#[derive(Clone, Debug)]
pub struct Publication {
    /// The stream.
    pub stream: String,
    /// Names and values in turn.
    pub fields: Vec<Vec<u8>>,
}

impl Publication {
    /// Stores it now, by itself.
    pub async fn store(&self, connection: &mut impl ConnectionLike) -> Result<(), BusError> {
        Ok(add(&self.stream, &self.fields)
            .exec_async(connection)
            .await?)
    }
}

/// What becomes of the event itself.
#[derive(Clone, Debug)]
pub enum End {
    /// It is done with.
    Done,
    /// It runs again after a wait, as these fields.
    Later {
        /// The fields of the event that will be published.
        fields: Vec<Vec<u8>>,
        /// From now on.
        wait: Duration,
    },
    /// It will not run again.
    Dead(Box<DeadLetter>),
}

/// Which delivery of which entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lease {
    /// Index of the stream among those of the committer.
    pub stream: usize,
    /// The entry.
    pub entry: EntryId,
    /// How often it was delivered when it was handed to us.
    pub deliveries: u32,
    /// The claim counter that was known before the entry was read.
    pub claims: u64,
}

/// The end of one delivery: what to write, and then to acknowledge.
#[derive(Clone, Debug)]
pub struct Settlement {
    /// Which delivery.
    pub lease: Lease,
    /// What the requester gets, or the results stream.
    pub reply: Option<Reply>,
    /// What the handler publishes.
    pub publications: Vec<Publication>,
    /// What becomes of the event.
    pub end: End,
}

/// How the settlements of a batch ended.
#[derive(Debug, Default)]
pub struct Report {
    /// Written and acknowledged.
    pub committed: u64,
    /// Not ours any more: discarded whole.
    pub fenced: u64,
    /// Left pending: a key that must be written has the wrong type. With what happened.
    pub refused: Vec<(Lease, String)>,
    /// Left pending since the committer was told to stop while the server was away.
    pub abandoned: u64,
}

/// What a committer last learned from the server: the claim counters, one for each of its counter
/// keys, and the time.
#[derive(Debug)]
pub struct Claims {
    clock: Mutex<Option<ServerClock>>,
    keys: Vec<String>,
    of_stream: Vec<usize>,
    known: Vec<AtomicU64>,
}

impl Claims {
    fn new(of_streams: Vec<String>) -> Self {
        let mut keys: Vec<String> = of_streams.clone();
        keys.sort_unstable();
        keys.dedup();
        let of_stream = of_streams
            .iter()
            .map(|key| keys.binary_search(key).unwrap_or(0))
            .collect();
        let known = keys.iter().map(|_| AtomicU64::new(0)).collect();
        Self {
            clock: Mutex::new(None),
            keys,
            of_stream,
            known,
        }
    }

    /// The server's clock, in Unix milliseconds; the local one before the first connection.
    pub fn server_now(&self) -> u64 {
        let clock = *self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        clock.map_or_else(local_now, |clock| clock.now())
    }

    /// The counter of a stream's commits as it is known now: to be read before a read is sent.
    pub fn known(&self, stream: usize) -> u64 {
        self.known[self.of_stream[stream]].load(Ordering::Acquire)
    }

    /// Sets the counters' time to live anew; costs one batch its fast way.
    pub async fn keep(&self, connection: &mut impl ConnectionLike) -> Result<(), BusError> {
        for key in &self.keys {
            redis::cmd("PEXPIRE")
                .arg(key)
                .arg(claim::CLAIMS_TTL.as_millis() as u64)
                .exec_async(connection)
                .await?;
        }
        Ok(())
    }

    /// Whether all of them exist.
    fn learn(&self, values: &Value) -> Result<bool, BusError> {
        let Value::Array(values) = values else {
            return Err(BusError::Reply { what: "MGET" });
        };
        let mut all = values.len() == self.known.len();
        for (known, value) in self.known.iter().zip(values) {
            let number = match value {
                Value::BulkString(bytes) => std::str::from_utf8(bytes)
                    .ok()
                    .and_then(|text| text.parse().ok()),
                _ => None,
            };
            all &= number.is_some();
            known.store(number.unwrap_or(0), Ordering::Release);
        }
        Ok(all)
    }
}

/// Commits the outcomes of one lane.
#[derive(Debug)]
pub struct Committer {
    connector: Connector,
    routes: Arc<[Route]>,
    group: String,
    consumer: String,
    claims: Arc<Claims>,
    connection: Option<Redacted>,
    replies: HashMap<String, Instant>,
    reply_ttl: Duration,
    reply_history: u64,
    stop: CancellationToken,
}

struct Redacted(MultiplexedConnection);

impl std::fmt::Debug for Redacted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("connection")
    }
}

/// What a committer is made of.
#[derive(Debug)]
pub struct CommitterOptions {
    /// Where connections come from.
    pub connector: Connector,
    /// The keys of each stream of the lane.
    pub routes: Arc<[Route]>,
    /// The claim counter's key of each stream of the lane.
    pub claims: Vec<String>,
    /// The consumer group.
    pub group: String,
    /// This consumer.
    pub consumer: String,
    /// How long a reply stream outlives its last reply.
    pub reply_ttl: Duration,
    /// About how many replies a reply stream keeps.
    pub reply_history: u64,
    /// Ends the wait for a server that is away.
    pub stop: CancellationToken,
}

/// One command of a settlement, and what it is worth.
struct Effect {
    command: Cmd,
    key_type: &'static str,
    optional: bool,
}

impl Effect {
    fn words(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.command.args_iter().map(|word| match word {
            redis::Arg::Simple(bytes) => bytes,
            _ => &[],
        })
    }

    fn key(&self) -> String {
        let key = self.words().nth(1).unwrap_or_default();
        String::from_utf8_lossy(key).into_owned()
    }

    /// The fields of what is added to a stream.
    fn fields(&self) -> Vec<Vec<u8>> {
        let words = self.words().skip_while(|word| *word != b"*").skip(1);
        words.map(<[u8]>::to_vec).collect()
    }
}

enum Fast {
    /// The server's answers, in the order of the commands.
    Done(Vec<Value>),
    /// Nothing was written: a counter moved, or a lease is from before it did.
    Nothing,
    /// Nothing was written: the server refused a command before running any.
    Aborted(RedisError),
}

/// An effect of a committed settlement that could not be written.
struct Lost {
    lease: Lease,
    stream: String,
    fields: Vec<Vec<u8>>,
    message: String,
}

impl Committer {
    /// A committer that is not connected yet.
    pub fn new(options: CommitterOptions) -> Self {
        Self {
            connector: options.connector,
            routes: options.routes,
            group: options.group,
            consumer: options.consumer,
            claims: Arc::new(Claims::new(options.claims)),
            connection: None,
            replies: HashMap::new(),
            reply_ttl: options.reply_ttl,
            reply_history: options.reply_history,
            stop: options.stop,
        }
    }

    /// The claim counters as the committer knows them.
    pub fn claims(&self) -> Arc<Claims> {
        self.claims.clone()
    }

    /// Connects and raises this consumer's claim counters, which fences older processes of the same
    /// name.
    pub async fn start(&mut self) -> Result<(), BusError> {
        self.arm().await
    }

    /// Removes the claim counters of a consumer that has nothing pending.
    pub async fn finish(self) -> Result<(), BusError> {
        let mut connection = self.connector.pooled().await?;
        for key in &self.claims.keys {
            redis::cmd("UNLINK")
                .arg(key)
                .exec_async(&mut connection)
                .await?;
        }
        Ok(())
    }

    async fn arm(&mut self) -> Result<(), BusError> {
        self.connection = None;
        let mut connection = self.connector.dedicated().await?;
        let clock = ServerClock::read(&mut connection).await?;
        *self
            .claims
            .clock
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(clock);
        for (key, known) in self.claims.keys.iter().zip(&self.claims.known) {
            raise(
                &mut connection,
                key,
                known.load(Ordering::Acquire),
                clock.now(),
            )
            .await?;
        }
        let mut pipe = redis::pipe();
        pipe.cmd("WATCH").arg(&self.claims.keys);
        pipe.cmd("MGET").arg(&self.claims.keys);
        let values = connection.send_packed_commands(&pipe, 0, 2).await?;
        self.claims
            .learn(values.get(1).ok_or(BusError::Reply { what: "MGET" })?)?;
        self.connection = Some(Redacted(connection));
        Ok(())
    }

    /// Commits a batch. Returns when every settlement has an end; while the server is away that is
    /// when it is back, or when the committer is told to stop.
    pub async fn commit(&mut self, batch: Vec<Settlement>) -> Report {
        let mut report = Report::default();
        let mut failures = 0;
        let mut slow = match self.fast(&batch).await {
            Ok(Fast::Done(answers)) => {
                report.committed = batch.len() as u64;
                self.make_good(&batch, &answers).await;
                return report;
            }
            Ok(Fast::Nothing | Fast::Aborted(_)) => batch,
            Err(_) => {
                self.connection = None;
                batch
            }
        };
        // They are taken from the end.
        slow.reverse();
        while let Some(settlement) = slow.pop() {
            match self.slow(&settlement).await {
                Ok(Slow::Committed) => report.committed += 1,
                Ok(Slow::Fenced) => report.fenced += 1,
                Ok(Slow::Refused(why)) => report.refused.push((settlement.lease, why)),
                Err(error) if error.reaction() == Reaction::GiveUp => {
                    report.refused.push((settlement.lease, error.to_string()));
                }
                // Without the group nothing is pending any more: it will be delivered again.
                Err(error) if error.reaction() == Reaction::RepairGroup => report.fenced += 1,
                Err(error) => {
                    slow.push(settlement);
                    if error.reaction() == Reaction::Reconnect {
                        self.connection = None;
                    }
                    tokio::select! {
                        () = tokio::time::sleep(reconnect_delay(failures)) => failures += 1,
                        () = self.stop.cancelled() => {
                            report.abandoned = slow.len() as u64;
                            return report;
                        }
                    }
                    continue;
                }
            }
            failures = 0;
        }
        report
    }

    /// Tries the whole batch in one transaction.
    async fn fast(&mut self, batch: &[Settlement]) -> Result<Fast, BusError> {
        if self.connection.is_none() {
            self.arm().await?;
        }
        let fits = |settlement: &Settlement| {
            matches!(settlement.end, End::Done)
                && settlement.lease.claims == self.claims.known(settlement.lease.stream)
        };
        if !batch.iter().all(fits) {
            return Ok(Fast::Nothing);
        }
        self.transact(batch).await
    }

    /// Runs the whole batch in one transaction, which does nothing if a claim counter moved since
    /// it was last watched.
    async fn transact(&mut self, batch: &[Settlement]) -> Result<Fast, BusError> {
        let mut pipe = Pipeline::with_capacity(batch.len() + 8);
        pipe.cmd("MULTI");
        let mut acknowledge: Vec<Option<Cmd>> = vec![None; self.routes.len()];
        for settlement in batch {
            self.effects(settlement, |effect| {
                pipe.add_command(effect.command);
            });
            let stream = settlement.lease.stream;
            acknowledge[stream]
                .get_or_insert_with(|| {
                    let mut command = redis::cmd("XACK");
                    command.arg(&self.routes[stream].events).arg(&self.group);
                    command
                })
                .arg(settlement.lease.entry.to_string());
        }
        for command in acknowledge.into_iter().flatten() {
            pipe.add_command(command);
        }
        let told = self.prolong_replies(batch, &mut pipe);
        let queued = pipe.len();
        pipe.cmd("EXEC");
        pipe.cmd("WATCH").arg(&self.claims.keys);
        pipe.cmd("MGET").arg(&self.claims.keys);
        let Some(armed) = &mut self.connection else {
            return Ok(Fast::Nothing);
        };
        let mut answers = armed.0.send_packed_commands(&pipe, queued, 3).await?;
        let (Some(values), Some(_), Some(executed)) = (answers.pop(), answers.pop(), answers.pop())
        else {
            return Err(BusError::Reply { what: "EXEC" });
        };
        if !self.claims.learn(&values)? {
            // Gone with a flushed database. A counter that does not exist can not be watched.
            self.connection = None;
        }
        match executed {
            Value::Array(answers) => {
                self.remember(told);
                Ok(Fast::Done(answers))
            }
            Value::Nil => Ok(Fast::Nothing),
            Value::ServerError(error) => Ok(Fast::Aborted(error.into())),
            _ => Err(BusError::Reply { what: "EXEC" }),
        }
    }

    /// Gives each command of a settlement, without the acknowledgement.
    fn effects(&self, settlement: &Settlement, mut give: impl FnMut(Effect)) {
        let route = &self.routes[settlement.lease.stream];
        match &settlement.end {
            End::Done => {}
            End::Later { fields, wait } => {
                let due = self.claims.server_now() + wait.as_millis() as u64;
                let token = settlement.lease.entry.to_string();
                let mut command = redis::cmd("ZADD");
                command
                    .arg(&route.delayed)
                    .arg(due)
                    .arg(delay::encode_member(&token, fields));
                give(Effect {
                    command,
                    key_type: "zset",
                    optional: false,
                });
            }
            End::Dead(letter) => give(Effect {
                command: add(&route.dead, letter.fields()),
                key_type: "stream",
                optional: false,
            }),
        }
        for publication in &settlement.publications {
            give(Effect {
                command: add(&publication.stream, &publication.fields),
                key_type: "stream",
                optional: false,
            });
        }
        if let Some(reply) = &settlement.reply {
            give(Effect {
                command: self.reply(route, reply),
                key_type: "stream",
                optional: true,
            });
        }
    }

    fn reply(&self, route: &Route, reply: &Reply) -> Cmd {
        let mut command = Cmd::with_capacity(20, 256 + reply.data.len());
        command.arg("XADD");
        match &reply.to {
            Some(stream) => command
                .arg(stream)
                .arg("MAXLEN")
                .arg("~")
                .arg(self.reply_history),
            None => command.arg(&route.results),
        };
        let mut kind = String::with_capacity(reply.kind.len() + 7);
        kind.push_str(&reply.kind);
        kind.push_str(".result");
        command
            .arg("*")
            .arg("correlationid")
            .arg(&reply.correlation_id)
            .arg("type")
            .arg(kind)
            .arg("status")
            .arg(reply.status)
            .arg("source")
            .arg(&self.consumer)
            .arg("time")
            .arg(self.claims.server_now())
            .arg("data")
            .arg(&reply.data);
        command
    }

    /// Reply streams go away some time after the last reply. Each batch gives one to those that have
    /// none (they may be new, or made anew behind a requester that went away); now and then it is
    /// set anew. Returns the streams for which it is.
    fn prolong_replies(&self, batch: &[Settlement], pipe: &mut Pipeline) -> Vec<String> {
        let ttl = self.reply_ttl.as_millis() as u64;
        let (mut seen, mut told) = (HashSet::new(), Vec::new());
        for reply in batch.iter().filter_map(|s| s.reply.as_ref()) {
            let Some(stream) = &reply.to else {
                continue;
            };
            if stream.contains(":inbox:") || !seen.insert(stream.as_str()) {
                continue;
            }
            pipe.cmd("PEXPIRE").arg(stream).arg(ttl).arg("NX");
            let told_at = self.replies.get(stream);
            if told_at.is_none_or(|at| at.elapsed() >= self.reply_ttl / 4) {
                pipe.cmd("PEXPIRE").arg(stream).arg(ttl).arg("GT");
                told.push(stream.clone());
            }
        }
        told
    }

    fn remember(&mut self, told: Vec<String>) {
        if self.replies.len() + told.len() > REMEMBERED_REPLIES {
            self.replies.clear();
        }
        let now = Instant::now();
        self.replies
            .extend(told.into_iter().map(|stream| (stream, now)));
    }

    /// Finds the effects of a committed transaction that failed by themselves (a key of the wrong
    /// type).
    async fn make_good(&self, batch: &[Settlement], answers: &[Value]) {
        if !answers.iter().any(|a| matches!(a, Value::ServerError(_))) {
            return;
        }
        let mut lost = Vec::new();
        let mut next = 0;
        for settlement in batch {
            self.effects(settlement, |effect| {
                if let Some(Value::ServerError(error)) = answers.get(next) {
                    lost.push(Lost {
                        lease: settlement.lease,
                        stream: effect.key(),
                        fields: effect.fields(),
                        message: error.to_string(),
                    });
                }
                next += 1;
            });
        }
        self.bury(lost).await;
    }

    /// What could not be written becomes a dead letter of its own: the event is acknowledged already.
    async fn bury(&self, lost: Vec<Lost>) {
        for Lost {
            lease,
            stream,
            fields,
            message,
        } in lost
        {
            let route = &self.routes[lease.stream];
            let letter = DeadLetter {
                entry: Entry {
                    id: lease.entry,
                    fields,
                },
                reason: "failed_precondition".into(),
                message,
                attempts: 0,
                deliveries: lease.deliveries,
                stream,
                instance: self.consumer.clone(),
                time: self.claims.server_now(),
            };
            let command = add(&route.dead, letter.fields());
            let stored = match self.connector.pooled().await {
                Ok(mut connection) => command.exec_async(&mut connection).await.is_ok(),
                Err(_) => false,
            };
            tracing::error!(
                stream = route.events,
                error = letter.message,
                dead_letter = stored,
                "a committed event's reply or publication could not be written"
            );
        }
    }

    /// Commits one settlement by the script.
    async fn slow(&mut self, settlement: &Settlement) -> Result<Slow, BusError> {
        if self.connection.is_none() {
            self.arm().await?;
        }
        let lease = settlement.lease;
        let mut effects = Vec::new();
        self.effects(settlement, |effect| effects.push(effect));
        let mut call = COMMIT.prepare_invoke();
        call.key(&self.routes[lease.stream].events);
        call.arg(&self.group)
            .arg(&self.consumer)
            .arg(lease.entry.to_string())
            .arg(lease.deliveries);
        for effect in &effects {
            let mut words = effect.words();
            let count = words.len() - 1;
            let name = words.next().unwrap_or_default();
            call.key(words.next().unwrap_or_default());
            call.arg(effect.key_type).arg(u8::from(effect.optional));
            if count > SCRIPT_WORDS {
                return self.large(settlement).await;
            }
            call.arg(count).arg(name);
            for word in words {
                call.arg(word);
            }
        }
        let Some(armed) = &mut self.connection else {
            return Err(BusError::Pool("not connected".into()));
        };
        let answer: Vec<Value> = call.invoke_async(&mut armed.0).await?;
        match answer.as_slice() {
            [Value::Int(1), left_out @ ..] => {
                self.tell_replies(settlement).await;
                let lost = left_out.chunks_exact(2).filter_map(|pair| {
                    let [Value::Int(number), Value::BulkString(message)] = pair else {
                        return None;
                    };
                    let effect = effects.get(usize::try_from(*number).ok()?.checked_sub(1)?)?;
                    Some(Lost {
                        lease,
                        stream: effect.key(),
                        fields: effect.fields(),
                        message: String::from_utf8_lossy(message).into_owned(),
                    })
                });
                self.bury(lost.collect()).await;
                Ok(Slow::Committed)
            }
            [Value::Int(0)] => Ok(Slow::Fenced),
            [
                Value::Int(-1),
                Value::Int(number),
                Value::BulkString(message),
            ] => Ok(Slow::Refused(format!(
                "effect {number} can not be written: {}",
                String::from_utf8_lossy(message)
            ))),
            _ => Err(BusError::Reply { what: "commit.lua" }),
        }
    }

    async fn tell_replies(&mut self, settlement: &Settlement) {
        let mut pipe = redis::pipe();
        let told = self.prolong_replies(std::slice::from_ref(settlement), &mut pipe);
        if pipe.is_empty() {
            return;
        }
        let Some(armed) = &mut self.connection else {
            return;
        };
        let connection = &mut armed.0;
        // Best effort: the next reply to that stream tells the server again.
        match connection.send_packed_commands(&pipe, 0, pipe.len()).await {
            Ok(_) => self.remember(told),
            Err(_) => self.connection = None,
        }
    }

    /// Commits one settlement with more words than a script can write at a time: asks who holds the
    /// entry, then runs the transaction, which a takeover since would undo.
    async fn large(&mut self, settlement: &Settlement) -> Result<Slow, BusError> {
        let Lease {
            stream,
            entry,
            deliveries,
            ..
        } = settlement.lease;
        for _ in 0..LARGE_TRIES {
            let Some(armed) = &mut self.connection else {
                return Err(BusError::Pool("not connected".into()));
            };
            let page = claim::pending(
                &mut armed.0,
                &self.routes[stream].events,
                &self.group,
                entry,
                1,
                None,
            );
            let held = page.await?.into_iter().next().is_some_and(|pending| {
                pending.id == entry
                    && pending.consumer == self.consumer
                    && pending.deliveries == deliveries
            });
            if !held {
                return Ok(Slow::Fenced);
            }
            let batch = std::slice::from_ref(settlement);
            match self.transact(batch).await? {
                Fast::Done(answers) => {
                    self.make_good(batch, &answers).await;
                    return Ok(Slow::Committed);
                }
                Fast::Nothing => {}
                Fast::Aborted(error) => return Err(error.into()),
            }
        }
        Ok(Slow::Refused(
            "entries of this consumer are taken over all the time".into(),
        ))
    }
}

/// Raises a claim counter above its value, above `known` and, if it is new, to the time.
///
/// Done for each connection: what was read before is then committed the slow way. The server behind
/// it may be another one, or the same with older data, that knows nothing of those deliveries.
async fn raise(
    connection: &mut MultiplexedConnection,
    key: &str,
    known: u64,
    now: u64,
) -> Result<(), BusError> {
    let ttl = claim::CLAIMS_TTL.as_millis() as u64;
    let mut pipe = redis::pipe();
    pipe.cmd("SET").arg(key).arg(now).arg("PX").arg(ttl);
    pipe.arg("NX").ignore();
    pipe.cmd("INCR").arg(key);
    pipe.cmd("PEXPIRE").arg(key).arg(ttl).ignore();
    let (value,): (u64,) = pipe.query_async(connection).await?;
    if value <= known {
        redis::cmd("INCRBY")
            .arg(key)
            .arg(known - value + 1)
            .exec_async(connection)
            .await?;
    }
    Ok(())
}

fn local_now() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}

enum Slow {
    Committed,
    Fenced,
    Refused(String),
}

fn add<F: AsRef<[u8]>>(stream: &str, fields: impl IntoIterator<Item = F>) -> Cmd {
    let mut command = redis::cmd("XADD");
    command.arg(stream).arg("*");
    for field in fields {
        command.arg(field.as_ref());
    }
    command
}
