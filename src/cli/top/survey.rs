//! The streams of the namespace: which are looked at closely, and how much is in all the others.
//!
//! A stream that is looked at closely costs the server some commands each time. Where there are more than
//! [`CLOSE`], those are chosen that hold the most, and those that pass a filter; of the others is asked how much
//! is in them, some thousand at a time, so that what is said of all is of all.

use super::flow::rate;
use super::sample::Others;
use crate::cli::choose;
use convoke::connect::connector::{ANSWER, Connector, Pooled};
use convoke::connect::error::{BusError, Reaction};
use convoke::connect::reach::Reach;
use convoke::operator::inspect::{self, Size, Stream};
use convoke::protocol::keys::{Keys, StreamKind, StreamName};
use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

/// Streams that are looked at closely.
pub(super) const CLOSE: usize = 500;
/// Others that are asked about in one look, after the first one.
const ASKED: usize = 2000;
/// Streams asked about in one round trip.
const PAGE: usize = 200;
/// How often all keys are walked for new streams.
const SEARCH: Duration = Duration::from_secs(10);

/// What was seen of a stream last.
#[derive(Clone, Copy, Debug)]
struct Seen {
    at: u64,
    size: Size,
    rate_in: Option<f64>,
    rate_out: Option<f64>,
}

/// What is known of the streams.
#[derive(Default)]
pub(super) struct Survey {
    found: Vec<StreamName>,
    searched: Option<Instant>,
    reach: Option<Reach>,
    seen: HashMap<String, Seen>,
    /// Which are asked about next.
    next: VecDeque<usize>,
}

impl Survey {
    /// Looks at the streams: closely at some, and how much is in the others.
    pub(super) async fn look(
        &mut self,
        connector: &Connector,
        connection: &mut Pooled,
        keys: &Keys,
        filters: &[String; 2],
        now: u64,
    ) -> Result<(Vec<Stream>, Others), BusError> {
        if self.searched.is_none_or(|at| at.elapsed() >= SEARCH) {
            self.search(connector, keys).await?;
        }
        match self.seen(connection, filters, now).await {
            // A node that answered before may be away by now.
            Err(error) if self.has_several() && error.reaction() == Reaction::Reconnect => {
                self.search(connector, keys).await?;
                self.seen(connection, filters, now).await
            }
            seen => seen,
        }
    }

    /// Which nodes answered last.
    pub(super) fn reach(&self) -> Option<&Reach> {
        self.reach.as_ref()
    }

    fn has_several(&self) -> bool {
        let reach = self.reach.iter();
        reach
            .map(|it| it.nodes().len() + it.away().count())
            .sum::<usize>()
            > 1
    }

    /// Walks all keys of the nodes that answer.
    async fn search(&mut self, connector: &Connector, keys: &Keys) -> Result<(), BusError> {
        let reach = Reach::look(connector, ANSWER).await?;
        let mut found = inspect::streams_within(reach.nodes(), keys).await?;
        found.retain(|name| name.kind != StreamKind::Reply);
        self.found = found;
        self.next = (0..self.found.len()).collect();
        self.searched = Some(Instant::now());
        self.reach = Some(reach);
        Ok(())
    }

    async fn seen(
        &mut self,
        connection: &mut Pooled,
        filters: &[String; 2],
        now: u64,
    ) -> Result<(Vec<Stream>, Others), BusError> {
        if self.found.len() > CLOSE {
            self.ask(connection, now).await?;
        }
        let close = self.closest(filters);
        let mut streams = Vec::with_capacity(close.len());
        for at in &close {
            streams.extend(inspect::stream(connection, &self.found[*at]).await?);
        }
        Ok((streams, self.others(&close)))
    }

    /// Asks how much is in some of the streams: in those that were never asked about, and in the next ones.
    async fn ask(&mut self, connection: &mut Pooled, now: u64) -> Result<(), BusError> {
        let known: HashSet<&str> = self.found.iter().map(|name| name.key.as_str()).collect();
        self.seen.retain(|key, _| known.contains(key.as_str()));
        let is_new = |at: &usize| !self.seen.contains_key(&self.found[*at].key);
        let mut wanted: Vec<usize> = (0..self.found.len()).filter(is_new).collect();
        let turn = ASKED.min(self.next.len());
        let turn: Vec<usize> = self.next.drain(..turn).collect();
        self.next.extend(&turn);
        let new: HashSet<usize> = wanted.iter().copied().collect();
        wanted.extend(turn.into_iter().filter(|at| !new.contains(at)));
        for page in wanted.chunks(PAGE) {
            let names: Vec<&StreamName> = page.iter().map(|at| &self.found[*at]).collect();
            let sizes = inspect::sizes(connection, &names).await?;
            for (name, size) in names.into_iter().zip(sizes) {
                let before = self.seen.get(&name.key).copied();
                let since = |then: Option<u64>, now_: Option<u64>| {
                    let ms = now.checked_sub(before?.at)?;
                    rate(then?, now_?, ms)
                };
                let seen = Seen {
                    at: now,
                    size,
                    rate_in: since(before.and_then(|b| b.size.added), size.added),
                    rate_out: since(before.and_then(|b| b.size.settled), size.settled),
                };
                self.seen.insert(name.key.clone(), seen);
            }
        }
        Ok(())
    }

    /// Which streams are looked at closely, in the order of their names.
    fn closest(&self, filters: &[String; 2]) -> Vec<usize> {
        let mut all: Vec<usize> = (0..self.found.len()).collect();
        if all.len() <= CLOSE {
            return all;
        }
        let [of_streams, of_dead] = filters;
        let passes = |name: &StreamName| {
            let filter = match name.kind {
                StreamKind::Dead => of_dead,
                _ => of_streams,
            };
            !filter.is_empty() && choose::short(name).to_lowercase().contains(filter)
        };
        let holds = |name: &StreamName| {
            let seen = self.seen.get(&name.key);
            seen.map_or(0, |seen| match name.kind {
                StreamKind::Dead => seen.size.length,
                _ => seen.size.waiting,
            })
        };
        // Each kind of panel gets its half, if it needs it.
        let mut ranked: Vec<(bool, bool, u64, usize)> = all
            .drain(..)
            .map(|at| {
                let name = &self.found[at];
                (
                    passes(name),
                    name.kind == StreamKind::Inbox,
                    holds(name),
                    at,
                )
            })
            .collect();
        ranked.sort_by_key(|(passes, inbox, holds, at)| {
            (!passes, std::cmp::Reverse(*holds), *inbox, *at)
        });
        let is_dead = |at: usize| self.found[at].kind == StreamKind::Dead;
        let (dead, alive): (Vec<usize>, Vec<usize>) = ranked
            .into_iter()
            .map(|(.., at)| at)
            .partition(|at| is_dead(*at));
        let of_alive = alive
            .len()
            .min((CLOSE / 2).max(CLOSE.saturating_sub(dead.len())));
        let of_dead = dead.len().min(CLOSE - of_alive);
        let mut close: Vec<usize> = alive[..of_alive].to_vec();
        close.extend(&dead[..of_dead]);
        close.sort_unstable();
        close
    }

    /// How much is in those that are not looked at closely.
    fn others(&self, close: &[usize]) -> Others {
        let mut others = Others::default();
        let close: HashSet<usize> = close.iter().copied().collect();
        for (at, name) in self.found.iter().enumerate() {
            let Some(seen) = self.seen.get(&name.key).filter(|_| !close.contains(&at)) else {
                continue;
            };
            if name.kind == StreamKind::Dead {
                others.dead_streams += 1;
                others.dead_letters += seen.size.length;
                continue;
            }
            others.streams += 1;
            if !matches!(name.kind, StreamKind::Events | StreamKind::Inbox) {
                continue;
            }
            others.waiting += seen.size.waiting;
            if let Some(rate) = seen.rate_in {
                *others.rate_in.get_or_insert(0.0) += rate;
            }
            if let Some(rate) = seen.rate_out {
                *others.rate_out.get_or_insert(0.0) += rate;
            }
        }
        others
    }
}
