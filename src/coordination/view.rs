//! Looking at the bus itself: its streams, its leader, what it was told last. Read live, in bounded
//! pages; nothing is written.

use super::catalog::Catalog;
use super::error::CoordinationError;
use super::scripts::VERSION;
use super::store::Store;
use super::{batches, instances};
use crate::connect::clock::whole_ms;
use crate::connect::connector::Connector;
use crate::connect::memory::Together;
use crate::connect::reach::Reach;
use crate::connect::script::script_with;
use crate::protocol::event::Entry;
use crate::protocol::keys::{Keys, StreamName};
use crate::protocol::msgpack::{self, PayloadLimits};
use crate::streams::read;
use redis::{FromRedisValue, Script, Value};
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

/// Facts that are shown at the most.
pub const MAX_RECENT: usize = 100;
/// Streams that are looked at, at the most.
pub const MAX_STREAMS: usize = 1000;
/// Streams of events that are looked at for whether they flow, at the most.
pub const MAX_FLOWS: usize = 10_000;

/// Streams asked about in one round trip.
const PAGE: usize = 100;
/// Facts read in one round trip. Each may be as large as an event.
const FACTS: usize = 10;
/// Bytes of facts after which no more are read.
const MAX_BYTES: usize = 256 * 1024;

static READ_VERSION: LazyLock<Script> =
    LazyLock::new(|| script_with(&[VERSION], include_str!("read_version.lua")));

/// How much a stream holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamSize {
    /// The key.
    pub name: String,
    /// Entries.
    pub length: u64,
    /// Entries that are delivered and not acknowledged, in all groups together.
    pub pending: u64,
    /// Entries that the group furthest behind has yet to read; `None` if there is no group, or the
    /// server cannot tell (entries were deleted).
    pub lag: Option<u64>,
}

/// The view of one namespace. Cheap to clone.
#[derive(Clone, Debug)]
pub struct View {
    store: Store,
    catalog: Catalog,
    /// The highest version that was read.
    version: Arc<AtomicU64>,
}

impl View {
    /// The view of the namespace of `keys`.
    pub fn new(connector: Connector, keys: Keys) -> Self {
        let catalog = Catalog::new(connector.clone(), keys.clone());
        let store = Store::new(connector, keys);
        Self {
            store,
            catalog,
            version: Arc::default(),
        }
    }

    /// The version of the state: of instances, the leader, tasks, batches and ballots. It rises with each
    /// change of what it shows of them, but not with a pulse that says nothing new, and it never falls. So
    /// what is read after it is of that version or a later one.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn version(&self) -> Result<u64, CoordinationError> {
        let keys = &self.store.keys;
        let mut call = READ_VERSION.prepare_invoke();
        call.key(keys.state())
            .key(keys.active())
            .key(keys.suspects())
            .key(keys.lost())
            .key(keys.lost_external())
            .key(keys.leader())
            .key(keys.ballots_open())
            .key(keys.ballots_kept())
            .key(keys.batches())
            .arg(whole_ms(instances::RECENTLY))
            .arg(whole_ms(batches::KEPT))
            .arg(whole_ms(batches::ABANDONED))
            .arg(self.store.connector.epoch_name().unwrap_or_default())
            .arg(self.version.load(Ordering::Relaxed));
        let version: u64 = self.store.invoke(&call).await?;
        self.version.fetch_max(version, Ordering::Relaxed);
        Ok(version)
    }

    /// Which nodes answer now, within that long each.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn reach(&self, patience: Duration) -> Result<Reach, CoordinationError> {
        Ok(Reach::look(&self.store.connector, patience).await?)
    }

    /// The streams of the domains that workers read, now or lately, and of the control plane, as far
    /// as they exist and their node answers: events, results and dead letters; of the inboxes only what they share. At
    /// most [`MAX_STREAMS`] are looked at.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn streams(&self, reach: &Reach) -> Result<Vec<StreamSize>, CoordinationError> {
        let mut names = self.names().await?;
        names.retain(|name| reach.missing(name).is_none());
        let mut sizes = Vec::new();
        for page in names.chunks(PAGE) {
            let mut reads = redis::pipe();
            for name in page {
                reads.cmd("TYPE").arg(name);
            }
            let types: Vec<String> = self.store.ask(&reads).await?;
            let pairs = page.iter().zip(types);
            let streams: Vec<&String> = pairs
                .filter(|(_, kind)| kind == "stream")
                .map(|(name, _)| name)
                .collect();
            if streams.is_empty() {
                continue;
            }
            let mut reads = redis::pipe();
            for name in &streams {
                reads.cmd("XLEN").arg(name);
                reads.cmd("XINFO").arg("GROUPS").arg(name);
            }
            // Any of them may be gone by now.
            reads.ignore_errors();
            let answers: Vec<Value> = self.store.ask(&reads).await?;
            let pairs = streams.into_iter().zip(answers.chunks_exact(2));
            sizes.extend(pairs.filter_map(|(name, answers)| size_of(name, answers)));
        }
        sizes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(sizes)
    }

    /// The streams through which events flow, by name, whether they exist or not: at most [`MAX_FLOWS`] of events, and of
    /// the others as many as [`View::streams`] looks at.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn flow_names(&self) -> Result<Vec<StreamName>, CoordinationError> {
        let keys = &self.store.keys;
        let domains = self.catalog.domains().await?;
        let events = domains.iter().flat_map(|domain| {
            let partitions = 0..keys.partitions(domain);
            partitions.map(move |partition| keys.events(domain, partition))
        });
        let mut names: Vec<String> = events.take(MAX_FLOWS).collect();
        let known: HashSet<String> = names.iter().cloned().collect();
        let others = self.names().await?.into_iter();
        names.extend(others.filter(|name| !known.contains(name)));
        let names = names.iter().filter_map(|name| keys.stream_name(name));
        Ok(names.collect())
    }

    async fn names(&self) -> Result<Vec<String>, CoordinationError> {
        let keys = &self.store.keys;
        let inboxes = keys.inbox_route("");
        let mut names = vec![keys.broadcast(), inboxes.results, inboxes.dead];
        for domain in self.catalog.domains().await? {
            for partition in 0..keys.partitions(&domain) {
                let route = keys.route(&domain, partition);
                names.extend([route.events, route.results, route.dead]);
            }
        }
        names.truncate(MAX_STREAMS);
        Ok(names)
    }

    /// What the server uses of its memory, or the nodes that answer together; `None` if it does not tell.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn memory(&self, reach: &Reach) -> Result<Option<Together>, CoordinationError> {
        Ok(Together::look(reach).await?)
    }

    /// The last entries of the broadcast, the latest first: at most that many, at most
    /// [`MAX_RECENT`], and fewer if they are very long.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn recent(&self, count: usize) -> Result<Vec<Entry>, CoordinationError> {
        let count = count.min(MAX_RECENT);
        let mut facts: Vec<Entry> = Vec::new();
        let mut before = "+".to_owned();
        let mut bytes = 0;
        while facts.len() < count && bytes < MAX_BYTES {
            let wanted = FACTS.min(count - facts.len());
            let mut reads = redis::pipe();
            reads
                .cmd("XREVRANGE")
                .arg(self.store.keys.broadcast())
                .arg(&before)
                .arg("-")
                .arg("COUNT")
                .arg(wanted);
            let (page,): (Value,) = self.store.ask(&reads).await?;
            let page = read::entries_of(page)?;
            let last = page.len() < wanted;
            for entry in page {
                bytes += entry.words().map(<[u8]>::len).sum::<usize>();
                before = format!("({}", entry.id);
                facts.push(entry);
            }
            if last {
                break;
            }
        }
        Ok(facts)
    }
}

/// What `XLEN` and `XINFO GROUPS` said.
fn size_of(name: &str, answers: &[Value]) -> Option<StreamSize> {
    let [Value::Int(length), Value::Array(groups)] = answers else {
        return None;
    };
    let mut size = StreamSize {
        name: name.to_owned(),
        length: u64::try_from(*length).ok()?,
        pending: 0,
        lag: (!groups.is_empty()).then_some(0),
    };
    for group in groups {
        let fields: HashMap<String, Value> = FromRedisValue::from_redis_value_ref(group).ok()?;
        let number = |field: &str| match fields.get(field) {
            Some(Value::Int(number)) => u64::try_from(*number).ok(),
            _ => None,
        };
        size.pending += number("pending").unwrap_or_default();
        size.lag = size.lag.zip(number("lag")).map(|(a, b)| a.max(b));
    }
    Some(size)
}

/// The payload of a fact; `None` if it is not one value of at most 64 KiB.
pub fn payload(entry: &Entry) -> Option<rmpv::Value> {
    let limits = PayloadLimits {
        bytes: 64 * 1024,
        ..PayloadLimits::default()
    };
    let data = entry.get("data")?;
    msgpack::scan(data, &limits).ok()?;
    let mut rest = data;
    rmpv::decode::read_value(&mut rest).ok()
}
