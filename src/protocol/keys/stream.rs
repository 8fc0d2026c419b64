//! The keys of streams, read: what a stream holds, whose it is, and what may run or be answered there.

use super::names::{domain_of, is_control, is_name};
use super::{Keys, Layout};

/// What a stream holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
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
    /// The domain's partition; 0 where the domain has none.
    pub partition: u16,
    /// The key.
    pub key: String,
}

impl Keys {
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

    /// The delay queue of a stream of events or of an inbox; `None` for any other.
    pub fn delay_queue(&self, stream: &StreamName) -> Option<String> {
        match stream.kind {
            StreamKind::Events => Some(self.delayed(&stream.part, stream.partition)),
            StreamKind::Inbox => Some(self.inbox_route(&stream.part).delayed),
            _ => None,
        }
    }

    /// The stream that the events of a delay queue enter; `None` if the key is no delay queue of this namespace.
    pub fn fed_by(&self, queue: &str) -> Option<StreamName> {
        let events = match queue.strip_suffix("}:delayed") {
            Some(tag) => format!("{tag}}}:events"),
            None => queue.replacen(":delayed:", ":events:", 1),
        };
        let inbox = queue.replacen(":inbox_delayed:", ":inbox:", 1);
        let streams = [events, inbox].into_iter();
        let mut streams = streams.filter_map(|key| self.stream_name(&key));
        streams.find(|stream| self.delay_queue(stream).as_deref() == Some(queue))
    }

    /// Whether one atomic step may touch both keys.
    pub fn share_slot(&self, a: &str, b: &str) -> bool {
        let tag = |key: &str| key.split_once('}').map(|(tag, _)| tag.to_owned());
        self.layout == Layout::Plain || tag(a) == tag(b)
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
