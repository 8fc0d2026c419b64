//! The claim counters of a consumer as its committers know them (see [`crate::streams::commit`]).

use crate::connect::clock::whole_ms;
use crate::connect::clock::{self, ClockSource, ServerClock, local_now};
use crate::connect::epoch::Epoch;
use crate::connect::error::BusError;
use crate::connect::resp::wire::{Commands, Token, Tokens, Wire, server_error};
use crate::mutex::locked;
use crate::protocol::digits::Digits;
use crate::streams::claim::CLAIMS_TTL;
use crate::streams::fence::Fence;
use redis::aio::ConnectionLike;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

/// What the committers of a lane last learned from the server: the claim counters, one for each of their
/// counter keys, and the time.
#[derive(Debug)]
pub struct Claims {
    clock: Mutex<Option<ServerClock>>,
    keys: Vec<String>,
    of_stream: Vec<usize>,
    known: Vec<AtomicU64>,
    /// The history of the server's data in which they were raised last, where it names it.
    raised_in: Mutex<Option<Epoch>>,
    /// What is watched besides, where the partition is owned.
    fence: OnceLock<Arc<Fence>>,
}

/// The counters as one connection watches them; none while it watches nothing.
#[derive(Debug, Default)]
pub(crate) struct Watched(Vec<u64>);

/// The counters as they were known when they were asked for: since they only rise, what comes is no lower.
#[derive(Debug)]
pub(crate) struct Least(Vec<u64>);

impl Claims {
    pub(crate) fn new(of_streams: Vec<String>) -> Self {
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
            raised_in: Mutex::new(None),
            fence: OnceLock::new(),
        }
    }

    /// Has it watch a fence, too. Before it is used.
    pub(crate) fn fenced(&self, fence: Arc<Fence>) {
        self.fence.set(fence).ok();
    }

    /// What is watched besides the counters.
    pub(crate) fn fence(&self) -> Option<&Arc<Fence>> {
        self.fence.get()
    }

    /// The server's clock, in Unix milliseconds; the local one before the first connection.
    pub fn server_now(&self) -> u64 {
        let clock = *locked(&self.clock);
        clock.map_or_else(local_now, |clock| clock.now())
    }

    /// The counter of a stream's commits as it is known now: to be read before a read is sent.
    pub fn known(&self, stream: usize) -> u64 {
        self.known[self.of_stream[stream]].load(Ordering::Acquire)
    }

    /// Whether a connection that watches them so sees each taking over of what was read from that stream when the
    /// counter stood there.
    pub(crate) fn is_watched(&self, watched: &Watched, stream: usize, claims: u64) -> bool {
        watched.0.get(self.of_stream[stream]) == Some(&claims)
    }

    /// Renews the counters' time to live; each batch that is on its way is sent a second time.
    pub async fn keep(&self, connection: &mut impl ConnectionLike) -> Result<(), BusError> {
        for key in &self.keys {
            redis::cmd("PEXPIRE")
                .arg(key)
                .arg(whole_ms(CLAIMS_TTL))
                .exec_async(connection)
                .await?;
        }
        Ok(())
    }

    /// Fences whoever committed under this name before, and learns the counters and the time.
    pub(crate) async fn arm(
        &self,
        wire: &mut Wire,
        source: ClockSource,
    ) -> Result<Watched, BusError> {
        *locked(&self.raised_in) = None;
        if source == ClockSource::Key {
            for key in &self.keys {
                clock::make(wire, key).await?;
            }
        }
        let beside = self.keys.first().map_or("", String::as_str);
        let clock = ServerClock::read(wire, source, beside).await?;
        *locked(&self.clock) = Some(clock);
        for (key, known) in self.keys.iter().zip(&self.known) {
            raise(wire, key, known.load(Ordering::Acquire), clock.now()).await?;
        }
        let (watched, _) = self.look(wire).await?;
        *locked(&self.raised_in) = wire.epoch;
        Ok(watched)
    }

    /// Whether another connection may watch the counters without raising them, for all that is known here.
    pub(crate) fn may_join(&self) -> bool {
        locked(&self.raised_in).is_some()
    }

    /// Has one more connection watch the counters without raising them; `None` if they must be raised: this process has
    /// not done so in the history of the data that is at its other end, or the server does not name it.
    pub(crate) async fn join(&self, wire: &mut Wire) -> Result<Option<Watched>, BusError> {
        let raised_in = *locked(&self.raised_in);
        if raised_in.is_none() || raised_in != wire.epoch {
            return Ok(None);
        }
        let (watched, stand) = self.look(wire).await?;
        Ok(stand.then_some(watched))
    }

    async fn look(&self, wire: &mut Wire) -> Result<(Watched, bool), BusError> {
        let mut commands = Commands::default();
        let least = self.watch(&mut commands);
        wire.send(&mut commands).await?;
        let mut watched = Watched::default();
        let stand = self.watched(wire, &mut watched, &least).await?;
        Ok((watched, stand))
    }

    /// Adds the commands that watch the counters and read them.
    pub(crate) fn watch(&self, commands: &mut Commands) -> Least {
        for name in [&b"WATCH"[..], b"MGET"] {
            let fence = self.fence.get();
            commands.begin(1 + self.keys.len() + usize::from(fence.is_some()));
            commands.word(name);
            for key in &self.keys {
                commands.word(key.as_bytes());
            }
            if let Some(fence) = fence {
                commands.word(fence.key().as_bytes());
            }
        }
        let known = self.known.iter();
        Least(known.map(|known| known.load(Ordering::Acquire)).collect())
    }

    /// Reads the answers of what [`Claims::watch`] added: how the counters stand, and whether all exist and none fell.
    pub(crate) async fn watched(
        &self,
        wire: &mut Wire,
        watched: &mut Watched,
        least: &Least,
    ) -> Result<bool, BusError> {
        watched.0.clear();
        // Without a watch nothing would fence the next transaction.
        if let Token::Error(text) = wire.reply().await?.token()? {
            return Err(server_error(text));
        }
        self.learn(wire.reply().await?, watched, least)
    }

    /// Learns from the answer of an `MGET` whether all of them exist and none fell: one that was removed and made again
    /// fences nothing of what was read before.
    fn learn(
        &self,
        mut values: Tokens<'_>,
        watched: &mut Watched,
        least: &Least,
    ) -> Result<bool, BusError> {
        let mut all = match values.token()? {
            Token::Array(length) => {
                length == self.known.len() + usize::from(self.fence.get().is_some())
            }
            Token::Error(text) => return Err(server_error(text)),
            _ => return Err(BusError::Reply { what: "MGET" }),
        };
        for (known, least) in self.known.iter().zip(&least.0) {
            let number = match values.token()? {
                Token::Bulk(bytes) => std::str::from_utf8(bytes)
                    .ok()
                    .and_then(|text| text.parse().ok()),
                _ => None,
            };
            all &= number.is_some_and(|number| number >= *least);
            watched.0.push(number.unwrap_or(0));
            // Of several connections one may hear of a later value before another hears of an earlier one.
            known.fetch_max(number.unwrap_or(0), Ordering::AcqRel);
        }
        if let Some(fence) = self.fence.get() {
            fence.stands_at(match values.token()? {
                Token::Bulk(number) => Some(number),
                _ => None,
            });
        }
        Ok(all)
    }

    /// Removes the counters of a consumer that has nothing pending.
    pub(crate) async fn forget(
        &self,
        connection: &mut impl ConnectionLike,
    ) -> Result<(), BusError> {
        for key in &self.keys {
            redis::cmd("UNLINK").arg(key).exec_async(connection).await?;
        }
        Ok(())
    }
}

/// Raises a claim counter above its value, above `known` and, if it is new, to the time.
///
/// Done for each connection: what was read before is then committed the slow way. The server behind
/// it may be another one, or the same with older data, that knows nothing of those deliveries.
async fn raise(wire: &mut Wire, key: &str, known: u64, now: u64) -> Result<(), BusError> {
    let key = key.as_bytes();
    let (now, ttl) = (Digits::of(now), Digits::of(whole_ms(CLAIMS_TTL)));
    let mut commands = Commands::default();
    commands.add(&[b"SET", key, now.as_ref(), b"PX", ttl.as_ref(), b"NX"]);
    commands.add(&[b"INCR", key]);
    commands.add(&[b"PEXPIRE", key, ttl.as_ref()]);
    wire.send(&mut commands).await?;
    let mut raised = Err(BusError::Reply { what: "INCR" });
    for command in 0..3 {
        match wire.reply().await?.token()? {
            Token::Error(text) => raised = Err(server_error(text)),
            Token::Int(value) if command == 1 => raised = Ok(value as u64),
            _ => {}
        }
    }
    let value = raised?;
    if value <= known {
        let more = Digits::of(known - value + 1);
        wire.ask(&[b"INCRBY", key, more.as_ref()]).await?;
    }
    Ok(())
}
