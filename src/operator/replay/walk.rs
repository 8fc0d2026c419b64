//! Walking over what a replay is about: the entries of one stream, page by page, and what becomes of each.

use super::planning::{Candidate, Planner, too_large};
use super::repair::Way;
use super::wanted::Wanted;
use super::{REPLAYS, Source, again, copied};
use crate::connect::error::BusError;
use crate::operator::browse::{Contents, Pages, PendingPages, Sight};
use crate::operator::inspect;
use crate::protocol::event::{Entry, EntryId};
use crate::protocol::keys::StreamName;
use crate::streams::claim::Pending;
use redis::aio::ConnectionLike;
use std::collections::{HashSet, VecDeque};
use std::time::Duration;

/// Which entries are meant, and how they change.
#[derive(Clone, Debug)]
pub struct Choice {
    /// What they are.
    pub from: Source,
    /// Which of them.
    pub wanted: Wanted,
    /// How they change, and which are left alone.
    pub planner: Planner,
    /// The consumer group that has them pending, or is done with them.
    pub group: String,
    /// For how long nobody must have renewed a pending entry whose owner is not gone.
    pub idle: Duration,
    /// The name of the replay.
    pub run: String,
}

/// A walk over one stream.
#[derive(Debug)]
pub struct Walk {
    stream: StreamName,
    pages: Open,
}

#[derive(Debug)]
enum Open {
    Dead(Pages),
    /// With the last entry that the group was delivered.
    Range(Pages, EntryId),
    Pending {
        pages: PendingPages,
        contents: Contents,
        waiting: VecDeque<Pending>,
        /// The last entry of the page that waits.
        last: EntryId,
    },
}

/// A page of what a walk meets.
#[derive(Debug)]
pub struct Page {
    /// The last entry that it is about.
    pub last: EntryId,
    found: Found,
}

#[derive(Debug)]
enum Found {
    Dead(Vec<Entry>),
    Range {
        entries: Vec<Entry>,
        delivered: EntryId,
        running: HashSet<EntryId>,
        /// Which run copied each of them lately.
        copied: Vec<Option<String>>,
    },
    /// Without the entry where it was deleted.
    Pending(Vec<(Pending, Option<Entry>)>),
}

impl Choice {
    /// How entries are replayed.
    pub fn way(&self) -> Way<'_> {
        match self.from {
            Source::Dead => Way::Dead,
            Source::Pending => Way::Pending { group: &self.group },
            Source::Range => Way::Range {
                force: self.planner.force,
            },
        }
    }

    /// Begins to walk over a stream, from one entry to another, both included; `None` if it has no such group, so that
    /// nobody knows what of it was run.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn walk(
        &self,
        sight: &Sight,
        connection: &mut impl ConnectionLike,
        stream: &StreamName,
        from: EntryId,
        to: EntryId,
    ) -> Result<Option<Walk>, BusError> {
        let pages = match self.from {
            Source::Dead => Open::Dead(Pages::new(sight, &stream.key, from, to)),
            Source::Pending => {
                let consumer = self.wanted.consumer.as_deref();
                Open::Pending {
                    pages: PendingPages::new(&stream.key, &self.group, consumer, from, to),
                    contents: Contents::new(sight),
                    waiting: VecDeque::new(),
                    last: EntryId::default(),
                }
            }
            Source::Range => {
                let group = inspect::standing(connection, &stream.key, &self.group).await?;
                let Some(group) = group else {
                    return Ok(None);
                };
                Open::Range(Pages::new(sight, &stream.key, from, to), group.delivered)
            }
        };
        Ok(Some(Walk {
            stream: stream.clone(),
            pages,
        }))
    }

    /// What becomes of the entries of a page that are meant. `gone` are those of its [owners](Page::owners) that left.
    pub fn judge(
        &self,
        stream: &StreamName,
        page: Page,
        gone: &[String],
        now_ms: u64,
    ) -> Vec<Candidate> {
        match page.found {
            Found::Dead(entries) => {
                let fitting = entries.iter().filter_map(|entry| {
                    let letter = self.wanted.fit(entry)?;
                    Some(self.planner.letter(stream, entry, letter, now_ms))
                });
                fitting.collect()
            }
            Found::Range {
                entries,
                delivered,
                running,
                copied,
            } => {
                let pairs = entries.iter().zip(copied);
                pairs
                    .map(|(entry, copied)| {
                        let left = if entry.id > delivered {
                            Some("not delivered yet: it will run anyway")
                        } else if running.contains(&entry.id) {
                            Some("pending: it is being run, see `replay pending`")
                        } else {
                            self.copied_before(entry, copied.as_deref())
                        };
                        self.own(stream, entry, left.map(str::to_owned), now_ms)
                    })
                    .collect()
            }
            Found::Pending(held) => {
                let held = held.into_iter();
                held.filter_map(|(pending, entry)| self.held(stream, pending, entry, gone, now_ms))
                    .collect()
            }
        }
    }

    fn copied_before(&self, entry: &Entry, copied: Option<&str>) -> Option<&'static str> {
        let number = |name| {
            let text = entry.get(name).and_then(|v| std::str::from_utf8(v).ok());
            text.and_then(|text| text.parse::<u32>().ok()).unwrap_or(0)
        };
        let force = self.planner.force;
        let named = force || self.wanted.names(entry.id);
        if !named && (number("attempt") > 1 || number(REPLAYS) > 0) {
            // The event itself stands before it: both would be one too many.
            return Some("a retry or replay of an earlier entry (--id, --force)");
        }
        match copied {
            Some(run) if run == self.run => Some("copied by this run already"),
            Some(_) if !force => Some("copied already in the last 24h (--force)"),
            _ => None,
        }
    }

    fn held(
        &self,
        stream: &StreamName,
        pending: Pending,
        entry: Option<Entry>,
        gone: &[String],
        now_ms: u64,
    ) -> Option<Candidate> {
        let is_there = entry.is_some();
        let entry = entry.unwrap_or_else(|| Entry::new(pending.id, [[]; 0]));
        if is_there && !self.wanted.fit_entry(&entry) {
            return None;
        }
        let needed = if self.planner.force {
            Duration::ZERO
        } else if gone.contains(&pending.consumer) {
            // Its owner may be back before its turn: what that one has renewed by then was idle for less.
            pending.idle
        } else {
            self.idle
        };
        let left = if !is_there {
            Some("deleted from its stream: the event is lost".to_owned())
        } else if pending.idle < needed {
            let bound = humantime::format_duration(needed);
            let owner = &pending.consumer;
            Some(format!(
                "held by {owner}, idle for less than {bound} (--force)"
            ))
        } else {
            None
        };
        let mut candidate = self.own(stream, &entry, left, now_ms);
        candidate.act.pending = Some((pending, needed));
        Some(candidate)
    }

    /// An entry that goes back to its own stream.
    fn own(
        &self,
        stream: &StreamName,
        entry: &Entry,
        left: Option<String>,
        now_ms: u64,
    ) -> Candidate {
        let fields: Vec<Vec<u8>> = entry.words().map(<[u8]>::to_vec).collect();
        let again = again(&fields, Some(entry.id), self.from, now_ms);
        let left = too_large(entry).or(left);
        self.planner
            .candidate(stream, entry, stream.key.clone(), again, left)
    }
}

impl Walk {
    /// The next page; `None` at the end.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn next(
        &mut self,
        choice: &Choice,
        connection: &mut impl ConnectionLike,
    ) -> Result<Option<Page>, BusError> {
        let stream = &self.stream;
        let (last, found) = match &mut self.pages {
            Open::Dead(pages) => {
                let entries = pages.next().await?;
                let Some(last) = entries.last().map(|entry| entry.id) else {
                    return Ok(None);
                };
                (last, Found::Dead(entries))
            }
            Open::Range(pages, delivered) => {
                let mut entries = pages.next().await?;
                let ends = entries.first().zip(entries.last());
                let Some((first, last)) = ends.map(|(first, last)| (first.id, last.id)) else {
                    return Ok(None);
                };
                // What is delivered and not pending now was acknowledged, and stays so.
                let mut running = HashSet::new();
                let mut held = PendingPages::new(&stream.key, &choice.group, None, first, last);
                while let Some(page) = held.next(connection).await? {
                    running.extend(page.into_iter().map(|pending| pending.id));
                }
                let wanted = &choice.wanted;
                entries.retain(|entry| wanted.fit_id(entry.id) && wanted.fit_entry(entry));
                let ids: Vec<EntryId> = entries.iter().map(|entry| entry.id).collect();
                let copied = copied(connection, &choice.planner.keys, stream, &ids).await?;
                let found = Found::Range {
                    entries,
                    delivered: *delivered,
                    running,
                    copied,
                };
                (last, found)
            }
            Open::Pending {
                pages,
                contents,
                waiting,
                last,
            } => {
                if waiting.is_empty() {
                    let Some(page) = pages.next(connection).await? else {
                        return Ok(None);
                    };
                    *last = page.last().map_or(*last, |pending| pending.id);
                    waiting.extend(page.into_iter().filter(|one| choice.wanted.fit_held(one)));
                }
                let ids: Vec<EntryId> = waiting.iter().map(|pending| pending.id).collect();
                let entries = contents.read(&stream.key, &ids).await?;
                let held: Vec<_> = waiting.drain(..entries.len()).zip(entries).collect();
                let upto = match (waiting.is_empty(), held.last()) {
                    (false, Some((pending, _))) => pending.id,
                    _ => *last,
                };
                (upto, Found::Pending(held))
            }
        };
        Ok(Some(Page { last, found }))
    }
}

impl Page {
    /// Who holds entries of it, each once.
    pub fn owners(&self) -> Vec<String> {
        let Found::Pending(held) = &self.found else {
            return Vec::new();
        };
        let mut owners: Vec<String> = held.iter().map(|(one, _)| one.consumer.clone()).collect();
        owners.sort_unstable();
        owners.dedup();
        owners
    }
}
