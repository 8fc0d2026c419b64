//! What Redis knows about events, place by place.

mod parked;

use super::step::{Deed, Step};
use super::{DEPTH, Flags};
use crate::cli::choose;
use crate::cli::output::{self, count, span};
use crate::cli::within::Within;
use crate::cli::{Session, payload};
use convoke::connect::clock::whole_ms;
use convoke::connect::connector::{Connector, Pooled};
use convoke::operator::browse::{Pages, Sight};
use convoke::operator::delayed::{DelayedPages, Queue};
use convoke::operator::inspect::{self, Group};
use convoke::protocol::dead::Letter;
use convoke::protocol::event::{CAUSE, Entry, EntryId, LAST_ERROR, payload_of};
use convoke::protocol::json;
use convoke::protocol::keys::{Keys, StreamKind, StreamName};
use convoke::streams::claim;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Places that are looked at for events.
const PLACES: [StreamKind; 2] = [StreamKind::Events, StreamKind::Inbox];
/// Steps that are told at the most.
const STEPS: usize = 100_000;
/// The end of every stream.
const END: EntryId = EntryId {
    ms: u64::MAX,
    seq: u64::MAX,
};

/// Collects steps.
pub(super) struct Gathering<'a> {
    flags: &'a Flags,
    connector: Connector,
    within: Within,
    connection: Pooled,
    sight: Sight,
    keys: Keys,
    now: u64,
    /// From here on; before that nothing was published that is meant.
    from: EntryId,
    /// The type of each event by its id, and whose run published it.
    events: BTreeMap<String, (Option<String>, Option<String>)>,
    /// The events whose runs' events are looked for; empty: those that are meant themselves.
    parents: BTreeSet<String>,
    /// Events by what operators' facts name them: a stream or a queue, and in it the id of an entry or a token.
    named: BTreeMap<(String, String), String>,
    steps: Vec<Step>,
    cut: bool,
}

fn text(entry: &Entry, name: &str) -> Option<String> {
    let value = entry.get(name)?;
    Some(String::from_utf8_lossy(value).into_owned())
}

fn number(entry: &Entry, name: &str) -> Option<u64> {
    text(entry, name)?.parse().ok()
}

impl<'a> Gathering<'a> {
    pub(super) async fn begin(
        session: &Session,
        flags: &'a Flags,
        connection: Pooled,
        now: u64,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            flags,
            connector: session.connector()?,
            within: session.within()?,
            connection,
            sight: session.sight()?,
            keys: session.keys().await?,
            now,
            from: flags
                .since
                .map_or_else(EntryId::default, |at| at.first(now)),
            events: BTreeMap::new(),
            parents: BTreeSet::new(),
            named: BTreeMap::new(),
            steps: Vec::new(),
            cut: false,
        })
    }

    /// Whether there were more events than are followed.
    pub(super) fn is_cut(&self) -> bool {
        self.cut
    }

    pub(super) fn finish(self) -> Vec<Step> {
        self.steps
    }

    /// Takes an event in, unless there are too many: whether it is followed.
    fn follow(&mut self, id: &str, place: &str, name: String, event: &Entry) -> bool {
        let is_new = !self.events.contains_key(id);
        if is_new && self.events.len() as u64 >= self.flags.limit || self.steps.len() >= STEPS {
            self.cut = true;
            return false;
        }
        let about = (text(event, "type"), text(event, CAUSE));
        self.events.insert(id.to_owned(), about);
        self.named.insert((place.to_owned(), name), id.to_owned());
        true
    }

    /// The events themselves, and how they stand.
    pub(super) async fn events(&mut self) -> anyhow::Result<()> {
        let names = &self.flags.streams;
        let streams = choose::streams(&self.within, &self.keys, names, &PLACES).await?;
        self.look(&streams).await?;
        // What an event's runs published, what the runs of that did, and so on.
        for _ in 0..DEPTH {
            if self.flags.id.is_none() || self.events.is_empty() || self.cut {
                break;
            }
            let before = self.events.len();
            self.parents = self.events.keys().cloned().collect();
            self.look(&streams).await?;
            if self.events.len() == before {
                break;
            }
        }
        Ok(())
    }

    /// Whether an entry is one of an event that is followed, or that a run of one published.
    fn is_meant(&self, event: &Entry, entry: &str) -> bool {
        match self.parents.is_empty() {
            true => self.flags.fit(event, entry),
            false => {
                let cause = text(event, CAUSE);
                cause.is_some_and(|cause| self.parents.contains(&cause))
            }
        }
    }

    /// Looks through streams once.
    async fn look(&mut self, streams: &[StreamName]) -> anyhow::Result<()> {
        for stream in streams {
            let found = self.of_stream(stream).await?;
            if found.is_empty() {
                continue;
            }
            let seen = inspect::stream(&mut self.connection, stream).await?;
            let groups = seen.map(|stream| stream.groups).unwrap_or_default();
            for (id, entry) in found {
                for group in &groups {
                    self.stands(stream, &id, entry, group).await?;
                }
                if groups.is_empty() {
                    let said = "nobody reads the stream: no group".to_owned();
                    self.add(
                        Step::new(Deed::Stands, self.now, &id, &stream.key, said).entry(entry),
                    );
                }
            }
        }
        Ok(())
    }

    /// The entries of a stream that are meant, with their events' ids.
    async fn of_stream(&mut self, stream: &StreamName) -> anyhow::Result<Vec<(String, EntryId)>> {
        let mut found = Vec::new();
        let mut pages = Pages::new(&self.sight, &stream.key, self.from, END);
        loop {
            let page = pages.next().await?;
            if page.is_empty() {
                return Ok(found);
            }
            for entry in page {
                let name = entry.id.to_string();
                let place = (stream.key.clone(), name.clone());
                if self.is_meant(&entry, &name) && !self.named.contains_key(&place) {
                    let id = text(&entry, "id").unwrap_or_else(|| name.clone());
                    if self.follow(&id, &stream.key, name, &entry) {
                        self.published(stream, &id, &entry);
                        found.push((id, entry.id));
                    }
                }
            }
        }
    }

    fn published(&mut self, stream: &StreamName, id: &str, entry: &Entry) {
        let source = text(entry, "source");
        let mut said = match number(entry, "attempt").unwrap_or(1) {
            0 | 1 => "published".to_owned(),
            attempt => {
                let error = text(entry, LAST_ERROR).unwrap_or_default();
                format!("delivered for attempt {attempt}, after: {error}")
            }
        };
        if let Some(source) = &source {
            said.push_str(&format!(" by {source}"));
        }
        if let Some(replays) = number(entry, "replays") {
            said.push_str(&format!(", replayed {}", count(replays, "time", "times")));
        }
        if let Some(subject) = text(entry, "subject") {
            said.push_str(&format!(", subject {subject}"));
        }
        if let Some(too_large) = payload::too_large(entry) {
            said.push_str(&format!(", {too_large}"));
        }
        self.add(
            Step::new(Deed::Published, entry.id.ms, id, &stream.key, said)
                .entry(entry.id)
                .by(source),
        );
    }

    /// How an entry stands with a group: not delivered, held, or settled.
    async fn stands(
        &mut self,
        stream: &StreamName,
        id: &str,
        entry: EntryId,
        group: &Group,
    ) -> anyhow::Result<()> {
        let mut by = None;
        let said = if entry > group.delivered {
            format!("not delivered to group {} yet", group.name)
        } else {
            let (name, key) = (&group.name, &stream.key);
            let held = claim::pending(&mut self.connection, key, name, entry, 1, None).await?;
            match held.into_iter().find(|held| held.id == entry) {
                None => format!("settled by group {name}"),
                Some(held) => {
                    by = Some(held.consumer.clone());
                    let times = count(held.deliveries.into(), "delivery", "deliveries");
                    format!(
                        "held by {} of group {name}, idle for {}, {times}",
                        held.consumer,
                        span(whole_ms(held.idle)),
                    )
                }
            }
        };
        self.add(
            Step::new(Deed::Stands, self.now, id, &stream.key, said)
                .entry(entry)
                .by(by),
        );
        Ok(())
    }

    /// Events that wait for their time.
    pub(super) async fn delayed(&mut self) -> anyhow::Result<()> {
        let all = self.within.queues(&self.keys).await?;
        let there: Vec<StreamName> = all.into_iter().map(|queue| queue.stream).collect();
        let streams = choose::named(&self.keys, &self.flags.streams, &PLACES, &there)?;
        for stream in self.within.of(streams).await? {
            let Some(queue) = Queue::of(&self.keys, &stream) else {
                continue;
            };
            let mut pages = DelayedPages::of(&queue, 0, self.sight.limit());
            loop {
                let page = pages.next(&mut self.connection).await?;
                if page.is_empty() {
                    break;
                }
                for waiting in page {
                    let Some(event) = &waiting.event else {
                        continue;
                    };
                    let id = waiting.id();
                    let entry = waiting.token.parse().ok();
                    let since = entry.map(|entry: EntryId| entry.ms);
                    let since = number(event, "time").or(since).unwrap_or(u64::MAX);
                    if since < self.from.ms
                        || !self.flags.fit(event, &waiting.token)
                            && !self.is_meant(event, &waiting.token)
                        || !self.follow(&id, &queue.key, waiting.token.clone(), event)
                    {
                        continue;
                    }
                    let due = output::date(waiting.due_ms);
                    let said = match number(event, "attempt").unwrap_or(1) {
                        0 | 1 => format!("waits for its time, {due}"),
                        attempt => {
                            let error = text(event, LAST_ERROR).unwrap_or_default();
                            format!("waits for attempt {attempt} at {due}, after: {error}")
                        }
                    };
                    self.add(Step::new(Deed::Stands, self.now, &id, &queue.key, said));
                }
            }
        }
        Ok(())
    }

    /// Dead letters.
    pub(super) async fn dead(&mut self) -> anyhow::Result<()> {
        let dead = self.beside(StreamKind::Dead).await?;
        for stream in dead {
            let mut pages = Pages::new(&self.sight, &stream.key, self.from, END);
            loop {
                let page = pages.next().await?;
                if page.is_empty() {
                    break;
                }
                for entry in page {
                    let letter = Letter::read(&entry);
                    let own = Entry::new(entry.id, &letter.fields);
                    let stood = letter.entry.map(|id| id.to_string()).unwrap_or_default();
                    let is_older = letter.entry.is_some_and(|entry| entry < self.from);
                    let is_meant = self.flags.fit(&own, &stood) || self.is_meant(&own, &stood);
                    if is_older || !is_meant {
                        continue;
                    }
                    let id = text(&own, "id").unwrap_or(stood);
                    if !self.follow(&id, &stream.key, entry.id.to_string(), &own) {
                        continue;
                    }
                    let tries = count(letter.attempts, "try", "tries");
                    let said = format!("dead after {tries}: {}: {}", letter.reason, letter.message);
                    let at = letter.time.unwrap_or(entry.id.ms);
                    let by = letter.instance;
                    self.add(
                        Step::new(Deed::Died, at, &id, &stream.key, said)
                            .entry(entry.id)
                            .by(by),
                    );
                }
            }
        }
        Ok(())
    }

    /// Replies and results, as far as they are still there.
    pub(super) async fn answers(&mut self) -> anyhow::Result<()> {
        if self.events.is_empty() && self.flags.id.is_none() {
            return Ok(());
        }
        let mut streams = self.beside(StreamKind::Results).await?;
        streams.extend(self.all(StreamKind::Reply).await?);
        streams.extend(self.all(StreamKind::Inbox).await?);
        for stream in streams {
            let mut pages = Pages::new(&self.sight, &stream.key, self.from, END);
            loop {
                let page = pages.next().await?;
                if page.is_empty() {
                    break;
                }
                for entry in page {
                    self.answered(&stream, &entry);
                }
            }
        }
        Ok(())
    }

    fn answered(&mut self, stream: &StreamName, entry: &Entry) {
        let Some(id) = text(entry, "correlationid") else {
            return;
        };
        let is_meant = self.events.contains_key(&id) || self.flags.id.as_ref() == Some(&id);
        let Some(status) = text(entry, "status").filter(|_| is_meant) else {
            return;
        };
        let by = text(entry, "source");
        let mut said = format!("answered {status}");
        if let Some(by) = &by {
            said.push_str(&format!(" by {by}"));
        }
        if status != "ok" {
            let data = payload_of(entry).and_then(|data| json::to_json(&data).ok());
            let message = data.as_ref().and_then(|data| data["message"].as_str());
            said.push_str(&format!(": {}", message.unwrap_or_default()));
        }
        let at = number(entry, "time").unwrap_or(entry.id.ms);
        self.add(
            Step::new(Deed::Answered, at, &id, &stream.key, said)
                .entry(entry.id)
                .by(by),
        );
    }

    /// What operators did to them, as the broadcast tells.
    pub(super) async fn deeds_of_operators(&mut self) -> anyhow::Result<()> {
        let asked = self.flags.entry().map(|entry| entry.to_string());
        let broadcast = self.keys.broadcast();
        let mut pages = Pages::new(&self.sight, &broadcast, self.from, END);
        loop {
            let page = pages.next().await?;
            if page.is_empty() {
                return Ok(());
            }
            for entry in page {
                let kind = text(&entry, "type").unwrap_or_default();
                let data = payload_of(&entry).and_then(|data| json::to_json(&data).ok());
                let data = data.unwrap_or_default();
                if kind == "event.cancelled" {
                    self.cancellation(&entry, &data, &broadcast);
                }
                let Some(verb) = kind.strip_prefix("operator.") else {
                    continue;
                };
                let names = data["entries"].as_array().into_iter().flatten();
                let place = data["stream"].as_str().unwrap_or_default();
                let meant: BTreeSet<String> = names
                    .filter_map(|name| {
                        let name = name.as_str()?;
                        let known = self.named.get(&(place.to_owned(), name.to_owned()));
                        known
                            .or(asked.as_ref().filter(|asked| *asked == name))
                            .cloned()
                    })
                    .collect();
                let by = text(&entry, "source");
                for id in meant {
                    let mut said = verb.to_owned();
                    if let Some(from) = data["from"].as_str() {
                        said.push_str(&format!(" from {from}"));
                    }
                    said.push_str(&format!(" by {}", by.as_deref().unwrap_or("?")));
                    self.add(
                        Step::new(Deed::Operated, entry.id.ms, &id, &broadcast, said)
                            .entry(entry.id)
                            .by(by.clone()),
                    );
                }
            }
        }
    }

    /// A cancellation, which may have left nothing else of its event.
    fn cancellation(&mut self, fact: &Entry, data: &Value, broadcast: &str) {
        let said = |name: &str| data[name].as_str().unwrap_or_default();
        let (id, entry) = (said("id"), said("entry"));
        let place = (said("stream").to_owned(), entry.to_owned());
        let named = self.flags.id.as_deref();
        if !self.named.contains_key(&place) && named != Some(id) && named != Some(entry) {
            return;
        }
        let mut told = format!("cancelled while {} by {}", said("state"), said("by"));
        if !said("reason").is_empty() {
            told.push_str(&format!(": {}", said("reason")));
        }
        let by = Some(said("by").to_owned());
        let step = Step::new(Deed::Operated, fact.id.ms, id, broadcast, told);
        self.add(step.entry(fact.id).by(by));
    }

    /// The streams of that kind of the domains that are meant.
    async fn beside(&mut self, kind: StreamKind) -> anyhow::Result<Vec<StreamName>> {
        let all = self.all(kind).await?;
        if self.flags.streams.is_empty() {
            return Ok(all);
        }
        let names = &self.flags.streams;
        let streams = choose::streams(&self.within, &self.keys, names, &PLACES).await?;
        let parts: BTreeSet<&str> = streams
            .iter()
            .map(|stream| match stream.kind {
                StreamKind::Inbox => "inbox",
                _ => stream.part.as_str(),
            })
            .collect();
        let beside = all
            .into_iter()
            .filter(|one| parts.contains(one.part.as_str()));
        Ok(beside.collect())
    }

    async fn all(&mut self, kind: StreamKind) -> anyhow::Result<Vec<StreamName>> {
        choose::streams(&self.within, &self.keys, &[], &[kind]).await
    }

    fn add(&mut self, mut step: Step) {
        (step.kind, step.cause) = self.events.get(&step.event).cloned().unwrap_or_default();
        self.steps.push(step);
    }
}
