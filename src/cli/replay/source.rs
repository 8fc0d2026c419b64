//! What there is to replay, page by page, and for each entry whether it may be.

use super::super::choose;
use super::super::choose::{Filters, Span};
use super::super::dead::Which;
use super::super::output;
use super::super::pending::Held;
use super::super::{Misuse, Session};
use super::flags::Act;
use convoke::coordination::instances::Instances;
use convoke::operator::browse::{Contents, Pages, PendingPages, Sight};
use convoke::operator::inspect;
use convoke::operator::replay::{
    self, Again, EDITED, Move, NoWayBack, Operator, REPLAYS, Source, WORDS,
};
use convoke::protocol::event::{Entry, EntryId, Event, Limits};
use convoke::protocol::keys::{Keys, StreamKind, StreamName, domain_of};
use convoke::streams::claim::Pending;
use redis::aio::ConnectionLike;
use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

/// Replays after which an event came back too often.
pub(super) const TOO_OFTEN: u32 = 3;

/// What is chosen from.
pub(super) enum From {
    Dead(Which),
    Pending(Vec<String>, Held, Filters),
    Range(Vec<String>, Option<String>, Filters),
}

/// An entry that the conditions fit.
pub(super) struct Candidate {
    /// The stream where it is.
    pub(crate) stream: StreamName,
    /// The stream that it goes to.
    pub(crate) to: String,
    /// Its type.
    pub(crate) kind: String,
    /// How often it has been replayed then.
    pub(crate) replays: u32,
    /// What will be done.
    pub(crate) act: Move,
    /// Its payload before a program mended it.
    pub(crate) before: Option<Vec<u8>>,
    /// Why it is left alone, if it is.
    pub(crate) left: Option<String>,
}

/// Walks over all that fits, any number of times: what comes later is not met.
pub(super) struct Walk {
    from: From,
    keys: Keys,
    limits: Limits,
    sight: Sight,
    group: String,
    bound: Duration,
    force: bool,
    run: String,
    /// The type that the events get, and who gives it to them.
    to_type: Option<(String, String)>,
    instances: Instances,
    spans: Vec<Span>,
    at: usize,
    pages: Open,
    now: u64,
}

/// The stream that is being walked over.
enum Open {
    Nothing,
    Entries(Pages),
    Range(Pages, EntryId),
    Pending(PendingPages, Contents, VecDeque<Pending>),
}

impl Walk {
    /// Prepares to walk over what is there now.
    pub(super) async fn begin(
        session: &Session,
        connection: &mut impl ConnectionLike,
        from: From,
        act: &Act,
        operator: &Operator,
    ) -> anyhow::Result<Self> {
        let keys = session.settings.keys()?;
        let now = inspect::now(connection).await?;
        let events = [StreamKind::Events];
        let sight = session.sight()?;
        let (group, idle) = match &from {
            From::Pending(_, held, _) => (held.group.clone(), held.idle),
            From::Range(_, group, _) => (group.clone(), None),
            From::Dead(_) => (None, None),
        };
        let group = group.unwrap_or_else(|| session.settings.group.clone());
        let spans = match &from {
            From::Dead(which) => which.spans(session, connection).await?,
            From::Pending(names, _, filters) | From::Range(names, _, filters) => {
                let streams = choose::streams(&session.connector()?, &keys, names, &events).await?;
                let (from, to) = filters.bounds(now);
                let mut spans = Vec::new();
                for stream in streams {
                    // What is pending may have left its stream.
                    let group = inspect::standing(connection, &stream.key, &group).await?;
                    let delivered = group.map_or_else(EntryId::default, |group| group.delivered);
                    let last = sight.last_id(&stream.key).await?;
                    let to = to.min(last.max(delivered));
                    spans.push(Span { stream, from, to });
                }
                spans
            }
        };
        Ok(Self {
            from,
            keys,
            limits: session.settings.limits(),
            sight,
            group,
            bound: idle.unwrap_or(session.settings.claim_idle),
            force: act.force,
            run: operator.run().to_owned(),
            to_type: act
                .to_type
                .clone()
                .map(|kind| (kind, operator.by().to_owned())),
            instances: session.instances()?,
            spans,
            at: 0,
            pages: Open::Nothing,
            now,
        })
    }

    /// The group that it is about.
    pub(super) fn group(&self) -> &str {
        &self.group
    }

    /// Where the entries come from.
    pub(super) fn source(&self) -> Source {
        match self.from {
            From::Dead(_) => Source::Dead,
            From::Pending(..) => Source::Pending,
            From::Range(..) => Source::Range,
        }
    }

    /// Begins again from the beginning, up to where it ended before.
    pub(super) fn rewind(&mut self) {
        self.at = 0;
        self.pages = Open::Nothing;
    }

    /// What fits on the next page; `None` at the end.
    pub(super) async fn next(
        &mut self,
        connection: &mut impl ConnectionLike,
    ) -> anyhow::Result<Option<Vec<Candidate>>> {
        while self.at < self.spans.len() {
            if matches!(self.pages, Open::Nothing) {
                self.open(connection).await?;
            }
            if let Some(page) = self.page(connection).await? {
                return Ok(Some(page));
            }
            self.at += 1;
            self.pages = Open::Nothing;
        }
        Ok(None)
    }

    async fn open(&mut self, connection: &mut impl ConnectionLike) -> anyhow::Result<()> {
        let Span { stream, from, to } = &self.spans[self.at];
        self.pages = match &self.from {
            From::Dead(_) => Open::Entries(Pages::new(&self.sight, &stream.key, *from, *to)),
            From::Pending(_, held, _) => {
                let consumer = held.consumer.as_deref();
                let pages = PendingPages::new(&stream.key, &self.group, consumer, *from, *to);
                Open::Pending(pages, Contents::new(&self.sight), VecDeque::new())
            }
            From::Range(..) => {
                let group = inspect::standing(connection, &stream.key, &self.group).await?;
                let Some(group) = group else {
                    return Err(Misuse::error(format_args!(
                        "{} has no group {}: what of it was run, nobody knows; --group names another",
                        stream.key, self.group
                    )));
                };
                let pages = Pages::new(&self.sight, &stream.key, *from, *to);
                Open::Range(pages, group.delivered)
            }
        };
        Ok(())
    }

    async fn page(
        &mut self,
        connection: &mut impl ConnectionLike,
    ) -> anyhow::Result<Option<Vec<Candidate>>> {
        match &mut self.pages {
            Open::Nothing => Ok(None),
            Open::Entries(pages) => {
                let page = pages.next().await?;
                Ok((!page.is_empty()).then(|| self.dead(page)))
            }
            Open::Range(pages, delivered) => {
                let delivered = *delivered;
                let page = pages.next().await?;
                match page.is_empty() {
                    true => Ok(None),
                    false => self.range(connection, page, delivered).await.map(Some),
                }
            }
            Open::Pending(pages, contents, waiting) => {
                if waiting.is_empty() {
                    match pages.next(connection).await? {
                        Some(page) => waiting.extend(page),
                        None => return Ok(None),
                    }
                }
                let From::Pending(_, held, filters) = &self.from else {
                    return Ok(None);
                };
                waiting.retain(|p| held.fit(p) && filters.fit_id(p.id));
                let ids: Vec<EntryId> = waiting.iter().map(|pending| pending.id).collect();
                let stream = &self.spans[self.at].stream;
                let entries = contents.read(&stream.key, &ids).await?;
                let pending: Vec<Pending> = waiting.drain(..entries.len()).collect();
                self.pending(pending, entries).await.map(Some)
            }
        }
    }

    /// What holds for all sources: whether it is an event, and how often it came back.
    pub(super) fn check(&self, to: &str, fields: &[Vec<u8>], replays: u32) -> Option<String> {
        if fields.len() > WORDS {
            return Some("it has too many fields".into());
        }
        if let Some((kind, _)) = &self.to_type
            && !self.keys.runs_from(kind, to)
        {
            return Some(format!("{kind} does not run from {to}"));
        }
        if self.force {
            return None;
        }
        if replays > TOO_OFTEN {
            return Some(format!("replayed {TOO_OFTEN} times already (--force)"));
        }
        let entry = Entry::new(EntryId::default(), fields);
        match Event::parse(entry, &self.limits, &self.keys, to) {
            Ok(event) if !self.keys.runs_from(event.kind(), to) => Some(format!(
                "no worker takes it: {} does not run from {to} (--force)",
                event.kind()
            )),
            Ok(_) => None,
            Err(bad) => Some(format!("no worker takes it: {} (--force)", bad.message)),
        }
    }

    fn candidate(
        &self,
        entry: &Entry,
        to: String,
        mut again: Again,
        left: Option<String>,
    ) -> Candidate {
        let mut kind = String::from_utf8_lossy(entry.get("type").unwrap_or_default());
        if let Some((to_type, by)) = &self.to_type {
            replay::set_field(&mut again.fields, "type", to_type.as_bytes());
            replay::set_field(&mut again.fields, EDITED, by.as_bytes());
            kind = to_type.into();
        }
        Candidate {
            stream: self.spans[self.at].stream.clone(),
            left: too_large(entry)
                .or(left)
                .or_else(|| self.check(&to, &again.fields, again.replays)),
            to,
            kind: kind.into_owned(),
            replays: again.replays,
            before: None,
            act: Move {
                entry: entry.id,
                fields: again.fields,
                pending: None,
            },
        }
    }

    fn dead(&self, page: Vec<Entry>) -> Vec<Candidate> {
        let From::Dead(which) = &self.from else {
            return Vec::new();
        };
        let stream = &self.spans[self.at].stream;
        let fitting = page
            .iter()
            .filter_map(|entry| Some((entry, which.fit(entry)?)));
        fitting
            .map(|(entry, mut letter)| {
                if let Some((to_type, _)) = &self.to_type {
                    replay::set_field(&mut letter.fields, "type", to_type.as_bytes());
                }
                // What never stood on a stream by itself has no entry that could serve as its id.
                let own_id = letter.entry.filter(|_| letter.attempts > 0);
                let again = replay::again(&letter.fields, own_id, Source::Dead, self.now);
                let way = replay::way_back(&self.keys, stream, &letter);
                let (to, left) = match way.and_then(|to| self.of_type(to, stream)) {
                    Ok(to) => (to, None),
                    Err(why) => (String::new(), Some(why.to_string())),
                };
                self.candidate(entry, to, again, left)
            })
            .collect()
    }

    /// The stream of the type that the events get: that of its domain.
    fn of_type(&self, to: String, dead: &StreamName) -> Result<String, NoWayBack> {
        let Some((kind, _)) = &self.to_type else {
            return Ok(to);
        };
        if self.keys.runs_from(kind, &to) {
            return Ok(to);
        }
        let to = self.keys.events(domain_of(kind), dead.partition);
        match self.keys.share_slot(&to, &dead.key) {
            true => Ok(to),
            false => Err(NoWayBack::OtherSlot),
        }
    }

    async fn range(
        &self,
        connection: &mut impl ConnectionLike,
        page: Vec<Entry>,
        delivered: EntryId,
    ) -> anyhow::Result<Vec<Candidate>> {
        let From::Range(_, _, filters) = &self.from else {
            return Ok(Vec::new());
        };
        let stream = &self.spans[self.at].stream;
        let (Some(first), Some(last)) = (page.first(), page.last()) else {
            return Ok(Vec::new());
        };
        // What is delivered and not pending now was acknowledged, and stays so.
        let mut running = HashSet::new();
        let mut pages = PendingPages::new(&stream.key, &self.group, None, first.id, last.id);
        while let Some(pending) = pages.next(connection).await? {
            running.extend(pending.into_iter().map(|pending| pending.id));
        }
        let fitting = page
            .iter()
            .filter(|e| filters.fit_id(e.id) && filters.fit(e));
        let fitting: Vec<&Entry> = fitting.collect();
        let ids: Vec<EntryId> = fitting.iter().map(|entry| entry.id).collect();
        let copied = replay::copied(connection, &self.keys, stream, &ids).await?;
        let pairs = fitting.into_iter().zip(copied);
        Ok(pairs
            .map(|(entry, copied)| {
                let number = |name| {
                    let text = entry.get(name).and_then(|v| std::str::from_utf8(v).ok());
                    text.and_then(|text| text.parse::<u32>().ok()).unwrap_or(0)
                };
                let named = self.force || filters.names(entry.id);
                let left = if entry.id > delivered {
                    Some("not delivered yet: it will run anyway")
                } else if running.contains(&entry.id) {
                    Some("pending: it is being run, see `replay pending`")
                } else if !named && (number("attempt") > 1 || number(REPLAYS) > 0) {
                    // The event itself stands before it: both would be one too many.
                    Some("a retry or replay of an earlier entry (--id, --force)")
                } else {
                    match copied {
                        Some(run) if run == self.run => Some("copied by this run already"),
                        Some(_) if !self.force => Some("copied already in the last 24h (--force)"),
                        _ => None,
                    }
                };
                let again = replay::again(&fields(entry), Some(entry.id), Source::Range, self.now);
                let left = left.map(str::to_owned);
                self.candidate(entry, stream.key.clone(), again, left)
            })
            .collect())
    }

    async fn pending(
        &self,
        pending: Vec<Pending>,
        entries: Vec<Option<Entry>>,
    ) -> anyhow::Result<Vec<Candidate>> {
        let From::Pending(_, _, filters) = &self.from else {
            return Ok(Vec::new());
        };
        let mut owners: Vec<String> = pending.iter().map(|p| p.consumer.clone()).collect();
        owners.sort_unstable();
        owners.dedup();
        let gone = self.instances.gone_among(&owners).await?;
        let gone: HashMap<&str, ()> = gone.iter().map(|id| (id.as_str(), ())).collect();
        let to = &self.spans[self.at].stream.key;
        let mut candidates = Vec::new();
        for (pending, entry) in pending.into_iter().zip(entries) {
            let is_there = entry.is_some();
            let entry = entry.unwrap_or_else(|| Entry::new(pending.id, [[]; 0]));
            if is_there && !filters.fit(&entry) {
                continue;
            }
            let needed = match self.force || gone.contains_key(pending.consumer.as_str()) {
                true => Duration::ZERO,
                false => self.bound,
            };
            let left = if !is_there {
                Some("deleted from its stream: the event is lost".to_owned())
            } else if pending.idle < needed {
                let bound = humantime::format_duration(needed);
                Some(format!(
                    "held by {}, idle for less than {bound} (--force)",
                    pending.consumer
                ))
            } else {
                None
            };
            let again = replay::again(&fields(&entry), Some(entry.id), Source::Pending, self.now);
            let mut candidate = self.candidate(&entry, to.clone(), again, left);
            candidate.act.pending = Some((pending, needed));
            candidates.push(candidate);
        }
        Ok(candidates)
    }
}

/// Why an entry that is larger than any event is left alone: only a part of it was read.
fn too_large(entry: &Entry) -> Option<String> {
    let bytes = output::bytes(entry.cut()?);
    Some(format!(
        "too large: {bytes}, and no worker takes an event of that size"
    ))
}

/// Names and values in turn.
fn fields(entry: &Entry) -> Vec<Vec<u8>> {
    entry.words().map(<[u8]>::to_vec).collect()
}
