//! Every key name, once ([protocol](crate::docs::protocol#names)).
//!
//! Two layouts give the same streams different names. *Plain* is for a standalone or Sentinel
//! deployment. *Tagged* carries hash tags so that the keys that one atomic step touches share a
//! slot of a Redis Cluster: the control plane lives under `{cb}`, every other domain is split into
//! partitions, each under a tag of its own.

use std::fmt;
use std::sync::Arc;

/// The consumer group that fills the ledger.
pub const LEDGER_GROUP: &str = "ledger";

/// The longest name of an instance, role, batch, decision or client, in bytes.
pub const MAX_NAME: usize = 128;
/// The longest event type, in bytes.
pub const MAX_TYPE: usize = 128;

/// What no domain may be called: `cb:dead:inbox` holds the dead letters of all inboxes, and the other
/// two are streams without a domain.
const RESERVED: [&str; 3] = ["inbox", "broadcast", "reply"];

/// A name that the protocol does not allow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// Not a namespace.
    #[error("namespace {0:?} is not 1 to 32 of the characters a-z 0-9 _ -")]
    Namespace(String),
    /// Not an event type.
    #[error(
        "event type {0:?} is not domain.action (lower-case letters, digits and _, at least one dot, at most 128 bytes)"
    )]
    EventType(String),
    /// An event type in a domain that is no domain: streams of the bus itself bear that name.
    #[error(
        "event type {kind:?}: a domain cannot be called {domain:?}, streams of the bus itself are; choose another name"
    )]
    Reserved {
        /// The type that was given.
        kind: String,
        /// Its domain.
        domain: &'static str,
    },
    /// Not the name of an instance, a role, a batch, a decision or a client.
    #[error("{what} {name:?} is not 1 to 128 of the characters A-Z a-z 0-9 . _ -")]
    Name {
        /// What was named.
        what: &'static str,
        /// The name that was given.
        name: String,
    },
}

/// Whether `name` may name an instance, a role, a batch, a decision or a client.
pub fn is_name(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// Checks a name; `what` says in the error what it should have named.
pub fn check_name(what: &'static str, name: &str) -> Result<(), NameError> {
    if is_name(name) {
        Ok(())
    } else {
        let name = name.chars().take(MAX_NAME).collect();
        Err(NameError::Name { what, name })
    }
}

/// The domain of `kind` if it is one that no event type may have.
pub fn reserved_domain(kind: &[u8]) -> Option<&'static str> {
    let is_of = |domain: &&str| {
        let rest = kind.strip_prefix(domain.as_bytes());
        rest.is_some_and(|rest| rest.first() == Some(&b'.'))
    };
    RESERVED.into_iter().find(is_of)
}

/// Whether `kind` is an event type: `domain.action` or deeper, in a domain that may be one.
pub fn is_event_type(kind: &[u8]) -> bool {
    let mut segments = 0;
    let mut segment = 0;
    for &b in kind {
        match b {
            b'a'..=b'z' | b'0'..=b'9' | b'_' => segment += 1,
            b'.' if segment > 0 => {
                segments += 1;
                segment = 0;
            }
            _ => return false,
        }
    }
    segments > 0 && segment > 0 && kind.len() <= MAX_TYPE && reserved_domain(kind).is_none()
}

/// Checks an event type.
pub fn check_event_type(kind: &str) -> Result<(), NameError> {
    if is_event_type(kind.as_bytes()) {
        return Ok(());
    }
    let shown = kind.chars().take(MAX_TYPE).collect();
    Err(match reserved_domain(kind.as_bytes()) {
        Some(domain) => NameError::Reserved {
            kind: shown,
            domain,
        },
        None => NameError::EventType(shown),
    })
}

/// The domain of an event type: all before its first dot.
pub fn domain_of(kind: &str) -> &str {
    kind.split_once('.').map_or(kind, |(domain, _)| domain)
}

/// Whether a pattern is that type, or its domain and `.*`.
pub fn covers(pattern: &str, kind: &str) -> bool {
    match pattern.strip_suffix(".*") {
        Some(domain) => domain == domain_of(kind),
        None => pattern == kind,
    }
}

/// Whether the domain belongs to the control plane, which has a lane of its own.
pub fn is_control(domain: &str) -> bool {
    matches!(domain, "system" | "task")
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    Plain,
    Tagged { partitions: u16 },
}

/// The names of all keys of one namespace.
#[derive(Clone)]
pub struct Keys {
    namespace: Arc<str>,
    layout: Layout,
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
}

/// Where tasks are. `tasks.lua` says what each holds and in which form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskKeys {
    /// The record of each task: a hash.
    pub tasks: String,
    /// Their payloads and results: a hash.
    pub data: String,
    /// The tasks that wait, by lane.
    pub waiting: String,
    /// The first one of each lane, by role.
    pub heads: String,
    /// The tasks that wait, by urgency.
    pub queue: String,
    /// The tasks that are assigned, by instance.
    pub held: String,
    /// Room and load of each instance: a hash.
    pub slots: String,
    /// The instances that have room, by role and load.
    pub free: String,
    /// The finished tasks by time.
    pub done: String,
    /// Serial numbers and totals: a hash.
    pub counts: String,
}

/// What a stream holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StreamKind {
    /// Events that wait for a handler.
    Events,
    /// Events for one instance only.
    Inbox,
    /// Dead letters.
    Dead,
    /// Results of events that named no `replyto`.
    Results,
    /// Facts for everyone.
    Broadcast,
    /// Replies to one requester.
    Reply,
}

impl StreamKind {
    /// The word that its keys carry.
    pub fn as_str(self) -> &'static str {
        match self {
            StreamKind::Events => "events",
            StreamKind::Inbox => "inbox",
            StreamKind::Dead => "dead",
            StreamKind::Results => "results",
            StreamKind::Broadcast => "broadcast",
            StreamKind::Reply => "reply",
        }
    }

    fn parse(word: &str) -> Option<Self> {
        use StreamKind::{Broadcast, Dead, Events, Inbox, Reply, Results};
        let kinds = [Events, Inbox, Dead, Results, Broadcast, Reply];
        kinds.into_iter().find(|kind| kind.as_str() == word)
    }
}

/// A stream's key, taken apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StreamName {
    /// What it holds.
    pub kind: StreamKind,
    /// The domain, the instance or the requester; empty for the broadcast.
    pub part: String,
    /// The domain's partition; 0 where there are none.
    pub partition: u16,
    /// The key.
    pub key: String,
}

impl Keys {
    /// The plain names, for a standalone or Sentinel deployment.
    pub fn new(namespace: &str) -> Result<Self, NameError> {
        Self::with_layout(namespace, Layout::Plain)
    }

    /// The names with hash tags, for Redis Cluster; every data domain has that many partitions.
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
        })
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// How many streams the events of a domain are split over.
    pub fn partitions(&self, domain: &str) -> u16 {
        match self.layout {
            Layout::Tagged { partitions } if !is_control(domain) => partitions,
            _ => 1,
        }
    }

    /// The partition for an event of that domain with that subject (or id).
    pub fn partition_of(&self, domain: &str, subject_or_id: &str) -> u16 {
        crc16(subject_or_id.as_bytes()) % self.partitions(domain)
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

    /// Marks a published event id for the deduplication window.
    pub fn dedup(&self, domain: &str, partition: u16, id: &str) -> String {
        format!("{}:{id}", self.data("dedup", domain, partition))
    }

    /// What is said to whoever asks again about an event that takes effect once, by the entry as which it was added
    /// and by its id: an entry can be guessed.
    pub fn said(&self, domain: &str, partition: u16, name: &str, id: &str) -> String {
        format!("{}:{name}:{id}", self.data("said", domain, partition))
    }

    /// The keys of one domain's partition.
    #[doc(hidden)]
    pub fn route(&self, domain: &str, partition: u16) -> StreamKeys {
        StreamKeys {
            events: self.events(domain, partition),
            results: self.results(domain, partition),
            dead: self.dead(domain, partition),
            delayed: self.delayed(domain, partition),
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

    /// One registered instance.
    pub fn instance(&self, id: &str) -> String {
        self.control(format_args!("instance:{id}"))
    }

    /// The instance ids by expiry time.
    pub fn active(&self) -> String {
        self.control(format_args!("instances:active"))
    }

    /// The ids of the active instances that hold a role.
    pub fn role(&self, role: &str) -> String {
        self.control(format_args!("role:{role}"))
    }

    /// Who has a handler for what: a sorted set of `type id` members, all scores 0.
    pub fn capabilities(&self) -> String {
        self.control(format_args!("capabilities"))
    }

    /// The ids of the recently lost instances by the time of their loss.
    pub fn lost(&self) -> String {
        self.control(format_args!("instances:lost"))
    }

    /// The active instances that are external, by expiry time: an event registered them, not their own process.
    pub fn external(&self) -> String {
        self.control(format_args!("instances:external"))
    }

    /// The ids of the recently lost external instances by the time of their loss.
    pub fn lost_external(&self) -> String {
        self.control(format_args!("instances:external:lost"))
    }

    /// The current leader (`id`, `incarnation`), its `term` and `until` when it leads: a hash.
    pub fn leader(&self) -> String {
        self.control(format_args!("leader"))
    }

    /// One ballot: a hash.
    pub fn ballot(&self, decision: &str) -> String {
        self.control(format_args!("ballot:{decision}"))
    }

    /// The instances that may vote in a ballot: a sorted set, by what was their expiry.
    pub fn electorate(&self, decision: &str) -> String {
        self.control(format_args!("ballot:{decision}:electorate"))
    }

    /// Who voted what in a ballot: a hash.
    pub fn votes(&self, decision: &str) -> String {
        self.control(format_args!("ballot:{decision}:votes"))
    }

    /// How many votes each value of a ballot has: a hash.
    pub fn tally(&self, decision: &str) -> String {
        self.control(format_args!("ballot:{decision}:tally"))
    }

    /// The decisions of the latest ballots, by the time at which they were opened.
    pub fn ballots(&self) -> String {
        self.control(format_args!("ballots"))
    }

    /// The decisions of the open ballots by their expiry: a sorted set.
    pub fn ballots_open(&self) -> String {
        self.control(format_args!("ballots:open"))
    }

    /// `electorate decision` of the ballots that are kept by the time until which they are: a sorted set.
    pub fn ballots_kept(&self) -> String {
        self.control(format_args!("ballots:kept"))
    }

    /// How many electors those have together.
    pub fn electors(&self) -> String {
        self.control(format_args!("ballots:electors"))
    }

    /// What a worker published of its handler of an event type.
    pub fn method(&self, kind: &str) -> String {
        self.control(format_args!("method:{kind}"))
    }

    /// The instances that read a type's stream in a group and have a handler for it, by the time until which
    /// that holds: a sorted set that lapses.
    pub fn readers(&self, group: &str, kind: &str) -> String {
        self.control(format_args!("readers:{group}:{kind}"))
    }

    /// How often an entry was handed over.
    pub fn handed(&self, domain: &str, partition: u16, entry: &str) -> String {
        format!("{}:{entry}", self.data("handed", domain, partition))
    }

    /// The domains that workers read, by when one of them last said so.
    pub fn domains(&self) -> String {
        self.control(format_args!("domains"))
    }

    /// Where tasks are.
    #[doc(hidden)]
    pub fn tasks(&self) -> TaskKeys {
        let part = |part: &str| self.control(format_args!("tasks:{part}"));
        TaskKeys {
            tasks: self.control(format_args!("tasks")),
            data: part("data"),
            waiting: part("waiting"),
            heads: part("heads"),
            queue: part("queue"),
            held: part("held"),
            slots: part("slots"),
            free: part("free"),
            done: part("done"),
            counts: part("counts"),
        }
    }

    /// The suspect instances by the time until which the suspicion stands: a sorted set.
    pub fn suspects(&self) -> String {
        self.control(format_args!("instances:suspect"))
    }

    /// What observers last said of an instance: a hash by observer. It lapses with the reports.
    pub fn reports(&self, id: &str) -> String {
        self.control(format_args!("reports:{id}"))
    }

    /// The partition that was detected and has not healed: a hash.
    pub fn partition(&self) -> String {
        self.control(format_args!("partition"))
    }

    /// What all instances did so far, by event type: a hash.
    pub fn metrics(&self) -> String {
        self.control(format_args!("metrics"))
    }

    /// What one process of an instance last reported of what it did: a hash that lapses without reports.
    pub fn reported(&self, id: &str, process: &str) -> String {
        self.control(format_args!("metrics:of:{id}:{process}"))
    }

    /// The claim counter of a consumer: raised by whoever takes entries over from it (see
    /// [`crate::streams::commit`]). In the slot of the partition whose commits it guards.
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

    /// The rate-limit state of one bucket.
    pub fn limit(&self, kind: &str, source: &str) -> String {
        self.control(format_args!("limit:{kind}:{source}"))
    }

    /// Marks an entry that was copied by a replay of a range.
    pub fn replayed(&self, domain: &str, partition: u16, entry: &str) -> String {
        format!("{}:{entry}", self.data("replayed", domain, partition))
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

    /// Takes the key of a stream of this namespace apart; `None` if it is not one.
    pub fn stream_name(&self, key: &str) -> Option<StreamName> {
        let namespace = self.namespace.as_ref();
        let made = |kind, part: &str, partition| {
            let fits = match kind {
                StreamKind::Broadcast => part.is_empty(),
                _ => is_name(part),
            };
            fits.then(|| StreamName {
                kind,
                part: part.to_owned(),
                partition,
                key: key.to_owned(),
            })
        };
        let control = match self.layout {
            Layout::Plain => key.strip_prefix(namespace)?.strip_prefix(':'),
            Layout::Tagged { .. } => {
                let inside = key.strip_prefix('{')?.strip_prefix(namespace)?;
                if let Some(rest) = inside.strip_prefix(':') {
                    let (tag, rest) = rest.split_once("}:")?;
                    let (domain, partition) = tag.split_once(':')?;
                    let partition = partition.parse().ok()?;
                    return match rest.split_once(':') {
                        Some(("reply", client)) => made(StreamKind::Reply, client, partition),
                        Some(_) => None,
                        None => made(StreamKind::parse(rest)?, domain, partition),
                    };
                }
                inside.strip_prefix("}:")
            }
        }?;
        let (word, part) = control.split_once(':').unwrap_or((control, ""));
        made(StreamKind::parse(word)?, part, 0)
    }

    /// Whether one atomic step may touch both keys.
    pub fn share_slot(&self, a: &str, b: &str) -> bool {
        let tag = |key: &str| key.split_once('}').map(|(tag, _)| tag.to_owned());
        self.layout == Layout::Plain || tag(a) == tag(b)
    }

    /// One batch: a hash.
    pub fn batch(&self, id: &str) -> String {
        self.control(format_args!("batch:{id}"))
    }

    /// The version of the state that is told, and what of it lapsed: a hash.
    pub fn state(&self) -> String {
        self.control(format_args!("state"))
    }

    /// The groups that were gone and were made again: a hash that lapses.
    pub fn remade(&self) -> String {
        self.control(format_args!("remade"))
    }

    /// Which items of a batch are finished: a bitmap.
    pub fn batch_finished(&self, id: &str) -> String {
        self.control(format_args!("batch:{id}:finished"))
    }

    /// The ids of running and recent batches by their last change.
    pub fn batches(&self) -> String {
        self.control(format_args!("batches"))
    }

    /// Whether an event of that type may run from that stream: its own domain's, or an inbox.
    pub fn runs_from(&self, kind: &str, stream: &str) -> bool {
        let domain = domain_of(kind);
        let Some(rest) = stream
            .strip_prefix(if self.layout == Layout::Plain {
                ""
            } else {
                "{"
            })
            .and_then(|rest| rest.strip_prefix(self.namespace.as_ref()))
        else {
            return false;
        };
        let control = match self.layout {
            Layout::Plain => rest.strip_prefix(':'),
            Layout::Tagged { .. } => rest.strip_prefix("}:"),
        };
        if let Some(name) = control {
            let own = self.layout == Layout::Plain || is_control(domain);
            return name.starts_with("inbox:")
                || own && name.strip_prefix("events:") == Some(domain);
        }
        let partition = rest.strip_prefix(':').and_then(|r| r.strip_prefix(domain));
        let partition = partition.and_then(|r| r.strip_prefix(':')?.strip_suffix("}:events"));
        !is_control(domain) && partition.is_some_and(|n| n.parse::<u16>().is_ok())
    }

    /// Whether a publisher may ask for replies on `key` to an event that arrived on `events`: a
    /// reply stream or an inbox of this namespace, in the same slot, with a well-formed name.
    pub fn may_reply_to(&self, key: &str, events: &str) -> bool {
        let prefix = match self.layout {
            Layout::Plain => self.namespace.as_ref(),
            Layout::Tagged { .. } => match events.split_once('}') {
                Some((tag, _)) => &events[..=tag.len()],
                None => return false,
            },
        };
        let Some(rest) = key.strip_prefix(prefix).and_then(|r| r.strip_prefix(':')) else {
            return false;
        };
        let name = rest
            .strip_prefix("reply:")
            .or_else(|| rest.strip_prefix("inbox:"));
        name.is_some_and(is_name)
    }
}

/// CRC16 (XMODEM), as Redis Cluster computes slots.
fn crc16(bytes: &[u8]) -> u16 {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_runs_from_its_own_domain_and_from_inboxes_only() {
        let plain = Keys::new("cb").unwrap();
        let tagged = Keys::tagged("cb", 4).unwrap();
        for keys in [&plain, &tagged] {
            for kind in ["image.resize", "system.register", "task.create.now"] {
                let domain = domain_of(kind);
                for partition in 0..keys.partitions(domain) {
                    assert!(keys.runs_from(kind, &keys.events(domain, partition)));
                }
                assert!(keys.runs_from(kind, &keys.inbox("w-1")));
                for other in ["text", "imag", "images", "system.register", ""] {
                    assert!(!keys.runs_from(kind, &keys.events(other, 0)), "{other}");
                }
                for other in [
                    keys.broadcast(),
                    keys.dead(domain, 0),
                    keys.reply(domain, 0, "me"),
                ] {
                    assert!(!keys.runs_from(kind, &other), "{other}");
                }
            }
            let control = ["system.ping", "task.get"].map(|kind| (kind, keys.events("image", 0)));
            for (kind, stream) in control {
                assert!(!keys.runs_from(kind, &stream));
                assert!(!keys.runs_from("image.resize", &keys.events(domain_of(kind), 0)));
            }
        }
        assert!(!tagged.runs_from("image.resize", "{cb:image:x}:events"));
        assert!(!tagged.runs_from("image.resize", "{cb}:events:image"));
        assert!(!plain.runs_from("image.resize", "other:events:image"));
    }

    #[test]
    fn plain_names_are_the_protocols() {
        let keys = Keys::new("cb").unwrap();
        assert_eq!(keys.events("image", 0), "cb:events:image");
        assert_eq!(keys.results("image", 0), "cb:results:image");
        assert_eq!(keys.reply("image", 0, "me"), "cb:reply:me");
        assert_eq!(keys.inbox("w-1"), "cb:inbox:w-1");
        assert_eq!(keys.broadcast(), "cb:broadcast");
        assert_eq!(keys.dead("image", 0), "cb:dead:image");
        assert_eq!(keys.instance("w-1"), "cb:instance:w-1");
        assert_eq!(keys.active(), "cb:instances:active");
        assert_eq!(keys.role("worker"), "cb:role:worker");
    }

    #[test]
    fn tagged_names_share_a_slot() {
        let keys = Keys::tagged("cb", 8).unwrap();
        assert_eq!(keys.events("system", 0), "{cb}:events:system");
        assert_eq!(keys.instance("w-1"), "{cb}:instance:w-1");
        assert_eq!(keys.events("image", 3), "{cb:image:3}:events");
        assert_eq!(keys.reply("image", 3, "me"), "{cb:image:3}:reply:me");
        assert_eq!(keys.partitions("system"), 1);
        assert!(keys.partition_of("image", "user-7") < 8);
    }

    #[test]
    fn stream_names_are_taken_apart() {
        let (plain, tagged) = (Keys::new("cb").unwrap(), Keys::tagged("cb", 4).unwrap());
        for (keys, key, kind, part, partition) in [
            (
                &plain,
                plain.events("image", 0),
                StreamKind::Events,
                "image",
                0,
            ),
            (&plain, plain.dead("image", 0), StreamKind::Dead, "image", 0),
            (&plain, plain.broadcast(), StreamKind::Broadcast, "", 0),
            (&plain, plain.inbox("w-1"), StreamKind::Inbox, "w-1", 0),
            (
                &tagged,
                tagged.events("image", 3),
                StreamKind::Events,
                "image",
                3,
            ),
            (
                &tagged,
                tagged.events("system", 0),
                StreamKind::Events,
                "system",
                0,
            ),
            (
                &tagged,
                tagged.reply("image", 2, "me"),
                StreamKind::Reply,
                "me",
                2,
            ),
            (&tagged, tagged.broadcast(), StreamKind::Broadcast, "", 0),
        ] {
            let name = keys.stream_name(&key).expect(&key);
            assert_eq!(
                (name.kind, &*name.part, name.partition),
                (kind, part, partition)
            );
            assert_eq!(name.key, key);
        }
        for key in [
            "cb:instance:w-1",
            "cbx:events:a",
            "cb:events:",
            "cb:events:a:b",
            "cb:broadcast:x",
            "cb:leader",
            "x",
            "{cb}:events:a",
        ] {
            assert_eq!(plain.stream_name(key), None, "{key}");
        }
        for key in [
            "cb:events:a",
            "{cb:image}:events",
            "{cb:image:x}:events",
            "{cb:image:1}:events:x",
            "{cb:image:1}:delayed",
            "{cbx}:events:a",
        ] {
            assert_eq!(tagged.stream_name(key), None, "{key}");
        }
        assert!(plain.share_slot("cb:dead:a", "cb:broadcast"));
        assert!(tagged.share_slot("{cb:a:1}:dead", "{cb:a:1}:events"));
        assert!(!tagged.share_slot("{cb:a:1}:dead", "{cb}:broadcast"));
    }

    #[test]
    fn crc16_is_redis_clusters() {
        assert_eq!(crc16(b"123456789"), 0x31C3);
    }

    #[test]
    fn event_types() {
        for good in ["a.b", "system.heartbeat", "a_1.b_2.c3"] {
            assert!(is_event_type(good.as_bytes()), "{good}");
        }
        let long = format!("a.{}", "b".repeat(127));
        for bad in [
            "", "a", ".", "a.", ".a", "a..b", "A.b", "a.b*", "a.b\n", "a:b.c", "{a}.b", &long,
        ] {
            assert!(!is_event_type(bad.as_bytes()), "{bad}");
        }
    }

    #[test]
    fn no_domain_is_called_like_a_stream_of_the_bus_itself() {
        for bad in ["inbox.a", "inbox.w.b", "broadcast.a", "reply.me"] {
            assert!(!is_event_type(bad.as_bytes()), "{bad}");
            let said = check_event_type(bad).unwrap_err().to_string();
            assert!(said.contains("a domain cannot be called"), "{said}");
        }
        for good in ["inboxes.a", "in.inbox", "replies.a", "task.inbox.a"] {
            assert_eq!(check_event_type(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn what_enters_an_inbox_waits_under_a_name_of_no_domain() {
        for keys in [Keys::new("cb").unwrap(), Keys::tagged("cb", 2).unwrap()] {
            let inbox = keys.inbox_route("w-1");
            let domain = keys.route("system", 0);
            let prefix = domain.delayed.strip_suffix("system").unwrap();
            assert!(!inbox.delayed.starts_with(prefix), "{}", inbox.delayed);
            assert!(keys.share_slot(&inbox.delayed, &inbox.events));
            assert_eq!(keys.stream_name(&inbox.delayed), None);
        }
    }

    #[test]
    fn replies_go_to_reply_streams_and_inboxes_only() {
        let keys = Keys::new("cb").unwrap();
        let events = "cb:events:image";
        for good in ["cb:reply:me", "cb:inbox:w-1", "cb:reply:a.b_c-9"] {
            assert!(keys.may_reply_to(good, events), "{good}");
        }
        let long = format!("cb:reply:{}", "x".repeat(129));
        for bad in [
            "",
            "cb:reply:",
            "cb:reply:*",
            "cb:reply:a:b",
            "cb:reply:{a}",
            "other:reply:me",
            "cb:events:image",
            "cb:broadcast",
            "cb:instance:w-1",
            "cb:reply:a\n",
            "cbb:reply:a",
            &long,
        ] {
            assert!(!keys.may_reply_to(bad, events), "{bad}");
        }
        let tagged = Keys::tagged("cb", 4).unwrap();
        assert!(tagged.may_reply_to("{cb:image:1}:reply:me", "{cb:image:1}:events"));
        assert!(!tagged.may_reply_to("{cb:image:2}:reply:me", "{cb:image:1}:events"));
        assert!(tagged.may_reply_to("{cb}:reply:me", "{cb}:events:system"));
    }
}
