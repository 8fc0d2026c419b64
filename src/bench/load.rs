//! What the loops of `bench` work on: streams of events that are all alike, and how far they are read.

use convoke::connect::connector::Connector;
use convoke::connect::error::BusError;
use convoke::connect::resp::wire::{Commands, Token, Wire, server_error};
use convoke::protocol::entry::EntryId;
use convoke::protocol::keys::{Keys, StreamKeys};
use convoke::streams::read;
use redis::aio::MultiplexedConnection;
use redis::{Pipeline, Value};
use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Events that one pipeline publishes at the most, and about how many bytes.
const FILL: (u64, usize) = (1000, 4 << 20);
/// Keys that one step of a scan looks at, about.
const STEP: usize = 1000;
/// How often the namespace is looked through until nothing is found: what a connection that was
/// given up had sent already may still be running.
const SWEEPS: usize = 50;
/// How long between two of them.
const PAUSE: Duration = Duration::from_millis(50);
/// Bytes of a payload besides the text.
const AROUND: usize = 17;
/// Bytes of the shortest payload.
pub(crate) const SHORTEST: usize = AROUND + 17;

/// Streams of events, each of a type of its own, and where their replies go.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    /// The keys of each stream.
    pub(crate) routes: Vec<StreamKeys>,
    /// The type of the events of each.
    pub(crate) kinds: Vec<String>,
    /// The stream that gets replies.
    pub(crate) reply_to: String,
    /// The consumer group.
    pub(crate) group: String,
    /// About how many replies are kept.
    pub(crate) history: u64,
    /// Bytes of each payload, at least [`SHORTEST`].
    pub(crate) payload: usize,
}

impl Load {
    /// Publishes events, the streams in turn; with `replyto`, if they are requests. The groups exist
    /// then. With `cap`, each stream keeps about this many entries.
    ///
    /// # Errors
    /// Whatever the server answers.
    pub(crate) async fn fill(
        &self,
        connector: &Connector,
        events: u64,
        request: bool,
        cap: Option<u64>,
    ) -> Result<(), BusError> {
        self.ensure_groups(connector).await?;
        let mut wire = connector.wire().await?;
        let mut commands = Commands::default();
        let chunk = FILL.0.min((FILL.1 / self.payload.max(1)).max(1) as u64);
        let cap = cap.map(|cap| cap.to_string());
        let mut done = 0;
        while done < events {
            let end = events.min(done + chunk);
            for n in done..end {
                let stream = n as usize % self.routes.len();
                let data = payload(n, self.payload);
                let (events, kind) = (&self.routes[stream].events, &self.kinds[stream]);
                let mut words = vec![b"XADD", events.as_bytes()];
                if let Some(cap) = &cap {
                    words.extend([&b"MAXLEN"[..], b"~", cap.as_bytes()]);
                }
                words.extend([&b"*"[..], b"type", kind.as_bytes(), b"data", &data]);
                if request {
                    words.extend([b"replyto", self.reply_to.as_bytes()]);
                }
                commands.add(&words);
            }
            wire.send(&mut commands).await?;
            for _ in done..end {
                answered(&mut wire).await?;
            }
            done = end;
        }
        Ok(())
    }

    /// Sees to it that every stream and its group exist.
    ///
    /// # Errors
    /// Whatever the server answers.
    pub(crate) async fn ensure_groups(&self, connector: &Connector) -> Result<(), BusError> {
        let mut connection = connector.dedicated().await?;
        for route in &self.routes {
            read::ensure_group(&mut connection, &route.events, &self.group).await?;
        }
        Ok(())
    }

    /// How many entries are delivered and not acknowledged.
    ///
    /// # Errors
    /// Whatever the server answers.
    pub(crate) async fn pending(
        &self,
        connection: &mut MultiplexedConnection,
    ) -> Result<i64, BusError> {
        let mut pipe = Pipeline::new();
        for route in &self.routes {
            pipe.cmd("XPENDING").arg(&route.events).arg(&self.group);
        }
        let summaries: Vec<Vec<Value>> = pipe.query_async(connection).await?;
        let counts = summaries.into_iter().map(|summary| match summary.first() {
            Some(Value::Int(count)) => Ok(*count),
            _ => Err(BusError::Reply { what: "XPENDING" }),
        });
        counts.sum()
    }

    /// Removes the streams and what came of them.
    ///
    /// # Errors
    /// Whatever the server answers.
    pub(crate) async fn remove(&self, connector: &Connector) -> Result<(), BusError> {
        let mut connection = connector.dedicated().await?;
        let mut command = redis::cmd("UNLINK");
        command.arg(&self.reply_to);
        for route in &self.routes {
            command.arg(&[&route.events, &route.results, &route.dead, &route.delayed]);
        }
        Ok(command.exec_async(&mut connection).await?)
    }
}

/// The next reply, which must be no error.
pub(crate) async fn answered(wire: &mut Wire) -> Result<(), BusError> {
    match wire.reply().await?.token()? {
        Token::Error(text) => Err(server_error(text)),
        _ => Ok(()),
    }
}

/// The MessagePack of `{n, text}` in this many bytes, at least [`SHORTEST`].
pub(crate) fn payload(n: u64, bytes: usize) -> Vec<u8> {
    let mut data = Vec::with_capacity(bytes);
    data.extend_from_slice(&[0x82, 0xa1, b'n', 0xcf]);
    data.extend_from_slice(&n.to_be_bytes());
    data.extend_from_slice(&[0xa4, b't', b'e', b'x', b't']);
    let rest = bytes.max(SHORTEST) - AROUND;
    let text = match rest {
        0..=32 => {
            data.push(0xa0 | (rest - 1) as u8);
            rest - 1
        }
        33..=257 => {
            data.extend_from_slice(&[0xd9, (rest - 2) as u8]);
            rest - 2
        }
        258..=65_538 => {
            let text = rest - 3;
            data.push(0xda);
            data.extend_from_slice(&(text as u16).to_be_bytes());
            text
        }
        _ => {
            let text = rest - 5;
            data.push(0xdb);
            data.extend_from_slice(&(text as u32).to_be_bytes());
            text
        }
    };
    data.resize(data.len() + text, b'x');
    data
}

/// How far the consumers of a load are, together.
pub(crate) struct Race {
    /// How many events there are.
    pub(crate) total: u64,
    taken: AtomicU64,
    settled: AtomicU64,
    first: Box<dyn Fn() + Send + Sync>,
    last: OnceLock<Instant>,
}

impl fmt::Debug for Race {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Race({} of {})", self.taken(), self.total)
    }
}

impl Race {
    /// A race for this many events; `first` is called when the first of them arrive.
    pub(crate) fn new(total: u64, first: impl Fn() + Send + Sync + 'static) -> Self {
        Self {
            total,
            taken: AtomicU64::new(0),
            settled: AtomicU64::new(0),
            first: Box::new(first),
            last: OnceLock::new(),
        }
    }

    /// Counts this many more as arrived.
    pub(crate) fn take(&self, events: u64) {
        if events > 0 && self.taken.fetch_add(events, Ordering::Relaxed) == 0 {
            (self.first)();
        }
    }

    /// Counts this many more as acknowledged.
    pub(crate) fn settle(&self, events: u64) {
        let before = self.settled.fetch_add(events, Ordering::Relaxed);
        if before + events >= self.total {
            self.last.get_or_init(Instant::now);
        }
    }

    /// How many have arrived.
    pub(crate) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// When the last one was acknowledged.
    pub(crate) fn ended(&self) -> Option<Instant> {
        self.last.get().copied()
    }
}

/// Deletes every key of a namespace, on each node of a cluster. Walks all keys of the server in small steps.
///
/// # Errors
/// Whatever the server answers, or if keys come back all the time.
pub(crate) async fn remove_namespace(connector: &Connector, keys: &Keys) -> Result<(), BusError> {
    for _ in 0..SWEEPS {
        let mut found = false;
        for node in connector.nodes().await? {
            found |= sweep(&mut node.dedicated().await?, keys).await?;
        }
        if !found {
            return Ok(());
        }
        tokio::time::sleep(PAUSE).await;
    }
    let namespace = keys.namespace();
    Err(BusError::Unsupported(format!(
        "keys of {namespace}:* come back: something still writes there"
    )))
}

/// Deletes what a server has of a namespace: whether that was anything.
async fn sweep(connection: &mut MultiplexedConnection, keys: &Keys) -> Result<bool, BusError> {
    let mut found = false;
    for pattern in keys.patterns() {
        let mut cursor = "0".to_owned();
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(&cursor).arg("MATCH").arg(&pattern);
            scan.arg("COUNT").arg(STEP);
            let (next, page): (String, Vec<Vec<u8>>) = scan.query_async(connection).await?;
            if !page.is_empty() {
                found = true;
                // Each alone: on a cluster they have slots of their own.
                let mut unlinks = redis::pipe();
                for key in &page {
                    unlinks.cmd("UNLINK").arg(key).ignore();
                }
                unlinks.exec_async(connection).await?;
            }
            cursor = next;
            if cursor == "0" {
                break;
            }
        }
    }
    Ok(found)
}

/// The id that a requester gives its `n`-th event, from 1.
pub(crate) fn request_id(n: u64) -> EntryId {
    EntryId { ms: 1, seq: n }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_payload_has_the_size_that_is_asked_for() {
        for bytes in [
            34, 48, 49, 50, 64, 274, 275, 276, 1024, 65_536, 65_555, 65_556, 70_000,
        ] {
            let data = payload(7, bytes);
            assert_eq!(data.len(), bytes, "{bytes}");
            let value: rmpv::Value = rmp_serde::from_slice(&data).unwrap();
            assert_eq!(value["n"], 7.into());
            assert!(value["text"].as_str().unwrap().starts_with("xxxx"));
        }
        assert_eq!(payload(1, 0).len(), SHORTEST);
    }

    #[test]
    fn a_race_begins_once_and_ends_with_the_last_acknowledgement() {
        let begun = Arc::new(AtomicU64::new(0));
        let counts = begun.clone();
        let race = Race::new(3, move || _ = counts.fetch_add(1, Ordering::Relaxed));
        race.take(0);
        assert_eq!(begun.load(Ordering::Relaxed), 0);
        race.take(2);
        race.take(1);
        race.settle(2);
        assert_eq!((begun.load(Ordering::Relaxed), race.ended()), (1, None));
        race.settle(1);
        assert!(race.ended().is_some());
    }
}
