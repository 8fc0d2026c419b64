//! An event that was found, and where.

use super::fate::Standing;
use crate::protocol::entry::{Entry, EntryId};
use crate::protocol::event::{Event, Limits};
use crate::protocol::keys::{Keys, StreamKeys};

/// Where an event is.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// In its stream; with its owner, if it has one.
    Entry {
        entry: EntryId,
        owner: String,
        deliveries: u32,
    },
    /// In the delay queue.
    Delayed { token: String, member: Vec<u8> },
    /// Parked.
    Parked {
        token: String,
        kind: String,
        member: Vec<u8>,
    },
}

impl Place {
    pub(super) fn entry(&self) -> Option<EntryId> {
        match self {
            Place::Entry { entry, .. } => Some(*entry),
            Place::Delayed { token, .. } | Place::Parked { token, .. } => {
                EntryId::parse(token.as_bytes())
            }
        }
    }

    /// What names the place in a fact.
    pub(super) fn token(&self) -> String {
        match self {
            Place::Entry { entry, .. } => entry.to_string(),
            Place::Delayed { token, .. } | Place::Parked { token, .. } => token.clone(),
        }
    }
}

/// An event that was found.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) partition: u16,
    pub(super) state: Standing,
    pub(super) place: Place,
    /// The server's time when it was found, in Unix ms.
    pub(super) now: u64,
    /// As it is; or what is known of an entry that is no event.
    pub(super) event: Result<Box<Event>, Malformed>,
}

#[derive(Clone, Debug)]
pub(super) struct Malformed {
    pub(super) entry: Entry,
    pub(super) id: String,
    pub(super) kind: Option<String>,
    pub(super) reply_to: Option<String>,
}

impl Found {
    pub(super) fn new(
        scope: &Scope<'_>,
        state: Standing,
        place: Place,
        fields: Vec<Vec<u8>>,
        limits: &Limits,
    ) -> Self {
        let entry = Entry::new(place.entry().unwrap_or_default(), fields);
        let event = Event::parse(entry, limits, scope.keys, &scope.route.events);
        Self {
            partition: scope.partition,
            state,
            now: 0,
            event: event.map(Box::new).map_err(|bad| Malformed {
                id: bad.correlation_id(),
                kind: bad.kind.clone(),
                reply_to: bad.reply_to.clone(),
                entry: bad.entry,
            }),
            place,
        }
    }

    pub(super) fn at(self, now: u64) -> Self {
        Self { now, ..self }
    }

    /// The event's id; a token of the publisher's own stands for that of an event that was in no stream.
    pub(super) fn id(&self) -> String {
        match &self.event {
            Ok(event) => match event.given_id() {
                Some(id) => id.to_owned(),
                None => self.place.token(),
            },
            Err(bad) => bad.id.clone(),
        }
    }

    /// The id that its publisher gave it.
    pub(super) fn given_id(&self) -> Option<&str> {
        match &self.event {
            Ok(event) => event.given_id(),
            Err(bad) => Some(&bad.id),
        }
    }

    pub(super) fn kind(&self) -> Option<&str> {
        match &self.event {
            Ok(event) => Some(event.kind()),
            Err(bad) => bad.kind.as_deref(),
        }
    }

    pub(super) fn is_live(&self) -> bool {
        self.state > Standing::Finished
    }

    /// Whether it is one of several copies that run once.
    pub(super) fn asks_once(&self) -> bool {
        matches!(&self.event, Ok(event) if event.asks_once())
    }

    pub(super) fn fits(&self, name: &str) -> bool {
        self.place.token() == name || self.id() == name
    }
}

/// One partition of a domain.
pub(super) struct Scope<'a> {
    pub(super) keys: &'a Keys,
    pub(super) partition: u16,
    pub(super) route: StreamKeys,
}
