//! Every key name, once ([protocol](crate::docs::protocol#names)).
//!
//! Two layouts give the same streams different names. *Plain* is for a standalone or Sentinel
//! deployment. *Tagged* carries hash tags so that the keys that one atomic step touches share a
//! slot of a Redis Cluster: the control plane lives under `{cb}`, every other domain is split into
//! partitions, each under a tag of its own.

mod control;
mod names;
mod stream;
#[cfg(test)]
mod tests;

pub use control::{RepairKeys, ScheduleKeys, TaskKeys};
pub use names::{
    MAX_NAME, MAX_TYPE, NameError, check_event_type, check_name, covers, domain_of, is_control,
    is_event_type, is_name, reserved_domain,
};
pub use stream::{StreamKind, StreamName};

use super::domain::Domain;
use crate::mutex::locked;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex};

/// The consumer group that fills the ledger.
pub const LEDGER_GROUP: &str = "ledger";
/// How many slots a Redis Cluster has.
pub(crate) const SLOTS: u16 = 16384;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    Plain,
    Tagged { partitions: u16 },
}

/// The names of all keys of one namespace. All clones know the same of its domains.
#[derive(Clone)]
pub struct Keys {
    namespace: Arc<str>,
    layout: Layout,
    /// What the bus says of domains, as far as that is known.
    domains: Arc<Mutex<HashMap<String, Domain>>>,
    /// Of which partitions the stream was made: a bit of each, by domain.
    made: Arc<Mutex<HashMap<String, Vec<u8>>>>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys({}, {:?})", self.namespace, self.layout)
    }
}

/// The keys that the commit of an entry of one stream may touch. On a cluster they share a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamKeys {
    /// The stream that is read.
    pub events: String,
    /// Where results go that nobody asked for.
    pub results: String,
    /// Where dead letters go.
    pub dead: String,
    /// The delay queue (sorted set): retries and scheduled events, by due time.
    pub delayed: String,
    /// Where events wait that runs publish into other slots of a cluster.
    pub outbox: String,
    /// The types of which something is parked, or was released and is not begun: a hash.
    pub parked: String,
}

impl StreamKeys {
    /// Where the events of a type are parked: a sorted set, by their places.
    pub fn parked_of(&self, kind: &str) -> String {
        format!("{}:{kind}", self.parked)
    }
}

impl Keys {
    /// The plain names, for a standalone or Sentinel deployment.
    pub fn new(namespace: &str) -> Result<Self, NameError> {
        Self::with_layout(namespace, Layout::Plain)
    }

    /// The names with hash tags, for Redis Cluster; a data domain of which the bus says nothing yet has that many
    /// partitions.
    pub fn tagged(namespace: &str, partitions: u16) -> Result<Self, NameError> {
        let partitions = partitions.max(1);
        Self::with_layout(namespace, Layout::Tagged { partitions })
    }

    fn with_layout(namespace: &str, layout: Layout) -> Result<Self, NameError> {
        let fits = (1..=32).contains(&namespace.len())
            && namespace
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-'));
        if !fits {
            return Err(NameError::Namespace(namespace.chars().take(64).collect()));
        }
        Ok(Self {
            namespace: namespace.into(),
            layout,
            domains: Arc::default(),
            made: Arc::default(),
        })
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// How many streams the events of a domain are split over: as the bus says, if that is known.
    pub fn partitions(&self, domain: &str) -> u16 {
        match self.layout {
            Layout::Tagged { partitions } if !is_control(domain) => {
                let known = locked(&self.domains);
                known.get(domain).map_or(partitions, |it| it.partitions)
            }
            _ => 1,
        }
    }

    /// How many partitions a domain gets that nobody used before; nothing where the names have no tags.
    #[doc(hidden)]
    pub fn set_partitions(&self) -> Option<u16> {
        match self.layout {
            Layout::Plain => None,
            Layout::Tagged { partitions } => Some(partitions),
        }
    }

    /// Whether a domain has partitions, of which the bus says how many.
    #[doc(hidden)]
    pub fn is_split(&self, domain: &str) -> bool {
        self.layout != Layout::Plain && !is_control(domain)
    }

    /// What the bus says of a domain, if that is known.
    #[doc(hidden)]
    pub fn domain(&self, domain: &str) -> Option<Domain> {
        locked(&self.domains).get(domain).cloned()
    }

    /// Whether an event with that subject (or id) belongs into that partition, now or by what was before.
    #[doc(hidden)]
    pub fn holds(&self, domain: &str, subject_or_id: &str, partition: u16) -> bool {
        if !self.is_split(domain) {
            return true;
        }
        let known = locked(&self.domains);
        known
            .get(domain)
            .is_none_or(|it| it.holds(subject_or_id, partition))
    }

    /// Notes what the bus says of a domain. Neither an older version is believed nor fewer partitions than there were: a
    /// server that failed over, or was emptied, forgot what others have published by.
    #[doc(hidden)]
    pub fn learn(&self, domain: &str, is: Domain) {
        let mut known = locked(&self.domains);
        match known.get_mut(domain) {
            Some(known) if is.version < known.version || is.partitions < known.partitions => {}
            Some(known) => *known = is,
            None => _ = known.insert(domain.to_owned(), is),
        }
    }

    /// Notes of which partitions of a domain the stream was made, as the bus says now.
    pub(crate) fn learn_made(&self, domain: &str, marks: &[u8]) {
        let mut known = locked(&self.made);
        match known.get_mut(domain) {
            Some(known) if known == marks => {}
            Some(known) => *known = marks.to_vec(),
            None if marks.is_empty() => {}
            None => _ = known.insert(domain.to_owned(), marks.to_vec()),
        }
    }

    /// Whether the stream of a partition was made once, as far as is known: if it is not there, it is lost or out of reach.
    #[doc(hidden)]
    pub fn is_made(&self, domain: &str, partition: u16) -> bool {
        if !self.is_split(domain) {
            return false;
        }
        let known = locked(&self.made);
        let byte = known
            .get(domain)
            .and_then(|marks| marks.get(usize::from(partition / 8)));
        // As SETBIT counts: the highest bit of a byte is the first.
        byte.is_some_and(|byte| byte & (0x80 >> (partition % 8)) != 0)
    }

    /// The same of a stream, whatever it is.
    pub(crate) fn is_made_stream(&self, stream: &str) -> bool {
        let name = self.stream_name(stream);
        name.is_some_and(|it| it.kind == StreamKind::Events && self.is_made(&it.part, it.partition))
    }

    /// The partition for an event of that domain with that subject (or id).
    pub fn partition_of(&self, domain: &str, subject_or_id: &str) -> u16 {
        Self::partition_among(self.partitions(domain), subject_or_id)
    }

    /// The same among that many.
    pub(crate) fn partition_among(partitions: u16, subject_or_id: &str) -> u16 {
        crc16(subject_or_id.as_bytes()) % partitions.max(1)
    }

    /// The prefix of control-plane keys.
    fn control(&self, rest: fmt::Arguments<'_>) -> String {
        match self.layout {
            Layout::Plain => format!("{}:{rest}", self.namespace),
            Layout::Tagged { .. } => format!("{{{}}}:{rest}", self.namespace),
        }
    }

    fn data(&self, kind: &str, domain: &str, partition: u16) -> String {
        match self.layout {
            Layout::Tagged { .. } if !is_control(domain) => {
                format!("{{{}:{domain}:{partition}}}:{kind}", self.namespace)
            }
            _ => self.control(format_args!("{kind}:{domain}")),
        }
    }

    /// The stream of events that wait for a handler.
    pub fn events(&self, domain: &str, partition: u16) -> String {
        self.data("events", domain, partition)
    }

    /// The stream of results of events that named no `replyto`.
    pub fn results(&self, domain: &str, partition: u16) -> String {
        self.data("results", domain, partition)
    }

    /// The stream of dead letters.
    pub fn dead(&self, domain: &str, partition: u16) -> String {
        self.data("dead", domain, partition)
    }

    /// The delay queue of a domain.
    pub fn delayed(&self, domain: &str, partition: u16) -> String {
        self.data("delayed", domain, partition)
    }

    /// Where events wait that runs of a partition publish into other slots; the control plane has one.
    pub fn outbox(&self, domain: &str, partition: u16) -> String {
        match self.layout {
            Layout::Tagged { .. } if !is_control(domain) => {
                format!("{{{}:{domain}:{partition}}}:outbox", self.namespace)
            }
            _ => self.control(format_args!("outbox")),
        }
    }

    /// What was moved from outboxes into the slot of that stream, by outbox: a hash.
    pub fn moved_beside(&self, stream: &str) -> String {
        self.beside(stream, format_args!("moved"))
    }

    /// A key in the slot of another one.
    fn beside(&self, key: &str, rest: fmt::Arguments<'_>) -> String {
        match key.split_once('}') {
            Some((tag, _)) if self.layout != Layout::Plain => format!("{tag}}}:{rest}"),
            _ => self.control(rest),
        }
    }

    /// Whether a key is one of this namespace.
    pub(crate) fn is_own(&self, key: &str) -> bool {
        let rest = match self.layout {
            Layout::Plain => key.strip_prefix(self.namespace.as_ref()),
            Layout::Tagged { .. } => key
                .strip_prefix('{')
                .and_then(|rest| rest.strip_prefix(self.namespace.as_ref())),
        };
        rest.is_some_and(|rest| rest.starts_with([':', '}']))
    }

    /// Who owns a partition of a domain with an order, for one group: a hash.
    pub fn owner(&self, domain: &str, partition: u16, group: &str) -> String {
        format!("{}:{group}", self.data("owner", domain, partition))
    }

    /// How often a partition changed its owner, for one group. What was sent under another number changes nothing.
    pub fn fence(&self, domain: &str, partition: u16, group: &str) -> String {
        format!("{}:{group}", self.data("fence", domain, partition))
    }

    /// What waits in its place in a partition for its next try, for one group: a hash, by entry.
    pub fn held(&self, domain: &str, partition: u16, group: &str) -> String {
        format!("{}:{group}", self.data("held", domain, partition))
    }

    /// Marks a published event id for the deduplication window.
    pub fn dedup(&self, domain: &str, partition: u16, id: &str) -> String {
        format!("{}:{id}", self.data("dedup", domain, partition))
    }

    /// What is said to whoever asks again about an event that takes effect once, by the entry as which it was added
    /// and by its id: an entry can be guessed.
    pub fn said(&self, domain: &str, partition: u16, name: &str, id: &str) -> String {
        format!("{}:{name}:{id}", self.data("said", domain, partition))
    }

    /// The note that an event was cancelled, by its id or its entry.
    pub fn cancelled(&self, domain: &str, partition: u16, id: &str) -> String {
        format!("{}:{id}", self.data("cancelled", domain, partition))
    }

    /// The keys of one domain's partition.
    #[doc(hidden)]
    pub fn route(&self, domain: &str, partition: u16) -> StreamKeys {
        StreamKeys {
            events: self.events(domain, partition),
            results: self.results(domain, partition),
            dead: self.dead(domain, partition),
            delayed: self.delayed(domain, partition),
            outbox: self.outbox(domain, partition),
            parked: self.data("parked", domain, partition),
        }
    }

    /// The keys for the events of one instance's inbox. Its dead letters and results share one
    /// stream each, `inbox`, whatever the types. Its delay queue has no name that a publisher's
    /// pattern for those of domains fits: what is in it enters the inbox.
    #[doc(hidden)]
    pub fn inbox_route(&self, instance: &str) -> StreamKeys {
        StreamKeys {
            events: self.inbox(instance),
            results: self.control(format_args!("results:inbox")),
            dead: self.control(format_args!("dead:inbox")),
            delayed: self.control(format_args!("inbox_delayed:{instance}")),
            outbox: self.control(format_args!("outbox")),
            parked: self.control(format_args!("inbox_parked:{instance}")),
        }
    }

    /// Where earlier versions kept the delay queue of an inbox. Publishers can write there.
    pub fn old_inbox_delayed(&self, instance: &str) -> String {
        self.control(format_args!("delayed:inbox:{instance}"))
    }

    /// The replies to one requester, for requests in a domain's partition.
    pub fn reply(&self, domain: &str, partition: u16, client: &str) -> String {
        match self.layout {
            Layout::Tagged { .. } if !is_control(domain) => {
                format!("{{{}:{domain}:{partition}}}:reply:{client}", self.namespace)
            }
            _ => self.control(format_args!("reply:{client}")),
        }
    }

    /// The events for one instance only.
    pub fn inbox(&self, instance: &str) -> String {
        self.control(format_args!("inbox:{instance}"))
    }

    /// The facts for everyone.
    pub fn broadcast(&self) -> String {
        self.control(format_args!("broadcast"))
    }

    /// How often an entry was handed over.
    pub fn handed(&self, domain: &str, partition: u16, entry: &str) -> String {
        format!("{}:{entry}", self.data("handed", domain, partition))
    }

    /// The claim counter of a consumer: raised by whoever takes entries over from it (see
    /// `streams/commit`). In the slot of the partition whose commits it guards.
    pub fn claims(&self, domain: &str, partition: u16, consumer: &str) -> String {
        match self.layout {
            Layout::Tagged { .. } if !is_control(domain) => {
                format!(
                    "{{{}:{domain}:{partition}}}:claims:{consumer}",
                    self.namespace
                )
            }
            _ => self.control(format_args!("claims:{consumer}")),
        }
    }

    /// The claim counter of a consumer that reads streams of any domain, in the slot of one of them.
    #[cfg(any(feature = "ledger-sqlite", feature = "ledger-postgres"))]
    pub(crate) fn claims_beside(&self, stream: &str, consumer: &str) -> String {
        self.beside(stream, format_args!("claims:{consumer}"))
    }

    /// Marks an entry that was copied by a replay of a range.
    pub fn replayed(&self, domain: &str, partition: u16, entry: &str) -> String {
        format!("{}:{entry}", self.data("replayed", domain, partition))
    }

    /// How far a repair is among the dead letters of one stream: a hash in its slot, that lapses.
    #[doc(hidden)]
    pub fn repair_beside(&self, dead: &StreamName, noted: &str) -> String {
        self.beside(&dead.key, format_args!("repair:{}:{noted}", dead.part))
    }

    /// Patterns for `SCAN` that find every key of the namespace.
    pub fn patterns(&self) -> Vec<String> {
        let namespace = &self.namespace;
        match self.layout {
            Layout::Plain => vec![format!("{namespace}:*")],
            Layout::Tagged { .. } => {
                vec![format!("{{{namespace}}}:*"), format!("{{{namespace}:*")]
            }
        }
    }
}

/// The slot of a key on a Redis Cluster: of what stands in its first braces, or of all of it.
pub(crate) fn slot_of(key: &[u8]) -> u16 {
    let open = key.iter().position(|&b| b == b'{');
    let inside = open.and_then(|open| {
        let rest = &key[open + 1..];
        let close = rest.iter().position(|&b| b == b'}')?;
        Some(&rest[..close]).filter(|inside| !inside.is_empty())
    });
    crc16(inside.unwrap_or(key)) % SLOTS
}

/// CRC16 (XMODEM), as Redis Cluster computes slots.
pub(crate) fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc: u16, &b| {
        (0..8).fold(crc ^ (u16::from(b) << 8), |crc, _| {
            if crc & 0x8000 != 0 {
                (crc << 1) ^ 0x1021
            } else {
                crc << 1
            }
        })
    })
}
