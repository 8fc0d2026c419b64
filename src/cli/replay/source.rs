//! What there is to replay, page by page, and for each entry whether it may be.

use super::super::choose;
use super::super::choose::{Filters, Span};
use super::super::dead::Which;
use super::super::pending::Held;
use super::super::{Misuse, Session};
use super::flags::Act;
use convoke::coordination::instances::Instances;
use convoke::operator::browse::{Contents, Pages, PendingPages, Sight};
use convoke::operator::inspect;
use convoke::operator::replay::planning::{Candidate, Planner, too_large};
use convoke::operator::replay::{self, Operator, REPLAYS, Source};
use convoke::protocol::event::{Entry, EntryId};
use convoke::protocol::keys::StreamKind;
use convoke::streams::claim::Pending;
use redis::aio::ConnectionLike;
use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

/// What is chosen from.
pub(super) enum From {
    Dead(Which),
    Pending(Vec<String>, Held, Filters),
    Range(Vec<String>, Option<String>, Filters),
}

/// Walks over all that fits, any number of times: what comes later is not met.
pub(super) struct Walk {
    from: From,
    planner: Planner,
    sight: Sight,
    group: String,
    bound: Duration,
    run: String,
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
        let keys = session.keys().await?;
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
            planner: Planner {
                keys,
                limits: session.settings.limits(),
                force: act.force,
                to_type: act.to_type.clone(),
                mends: act.mends()?,
                by: operator.by().to_owned(),
            },
            sight,
            group,
            bound: idle.unwrap_or(session.settings.claim_idle),
            run: operator.run().to_owned(),
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

    /// How events are changed on their way back.
    pub(super) fn planner(&self) -> &Planner {
        &self.planner
    }

    /// Where it looks.
    pub(super) fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// What is chosen from.
    pub(super) fn from(&self) -> &From {
        &self.from
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
            .map(|(entry, letter)| self.planner.letter(stream, entry, letter, self.now))
            .collect()
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
        let copied = replay::copied(connection, &self.planner.keys, stream, &ids).await?;
        let pairs = fitting.into_iter().zip(copied);
        Ok(pairs
            .map(|(entry, copied)| {
                let number = |name| {
                    let text = entry.get(name).and_then(|v| std::str::from_utf8(v).ok());
                    text.and_then(|text| text.parse::<u32>().ok()).unwrap_or(0)
                };
                let named = self.planner.force || filters.names(entry.id);
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
                        Some(_) if !self.planner.force => {
                            Some("copied already in the last 24h (--force)")
                        }
                        _ => None,
                    }
                };
                let again = replay::again(&fields(entry), Some(entry.id), Source::Range, self.now);
                let left = too_large(entry).or(left.map(str::to_owned));
                let to = stream.key.clone();
                self.planner.candidate(stream, entry, to, again, left)
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
        let stream = &self.spans[self.at].stream;
        let mut candidates = Vec::new();
        for (pending, entry) in pending.into_iter().zip(entries) {
            let is_there = entry.is_some();
            let entry = entry.unwrap_or_else(|| Entry::new(pending.id, [[]; 0]));
            if is_there && !filters.fit(&entry) {
                continue;
            }
            let needed = match self.planner.force || gone.contains_key(pending.consumer.as_str()) {
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
            let (to, left) = (stream.key.clone(), too_large(&entry).or(left));
            let mut candidate = self.planner.candidate(stream, &entry, to, again, left);
            candidate.act.pending = Some((pending, needed));
            candidates.push(candidate);
        }
        Ok(candidates)
    }
}

/// Names and values in turn.
fn fields(entry: &Entry) -> Vec<Vec<u8>> {
    entry.words().map(<[u8]>::to_vec).collect()
}
