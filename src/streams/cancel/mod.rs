//! Cancelling events: what waits, is delayed or runs is taken away, and whoever asked is told.
//!
//! An event is in one place at a time: in its stream, not read yet or in the hands of a consumer; in the delay queue; or
//! parked. It is looked for in all of them (`find.rs`), and taken away in one step (`take.rs`), which does nothing if the
//! event is not there any more. An event that moves against the search (its try failed, its pause ended) leaves a
//! settled entry behind: then it is looked for again, until the last entry of it is the same twice.
//!
//! What a consumer has in hand is acknowledged, and that consumer's claim counter is raised in the same step: what it
//! commits later is discarded, as after a takeover (see `streams/commit`). So of each event either its outcome is
//! committed, or its cancellation.
//!
//! A note with a time to live says that an event was cancelled, by whom and why, to whoever asks again.

mod fact;
mod fate;
mod find;
mod found;
mod take;

pub use fact::{Taken, taken_in};
pub use fate::{CancelError, Cancellation, Fate, MAX_REASON, Name, Order, Standing};

use crate::connect::connector::Connector;
use crate::connect::error::BusError;
use crate::connect::reach::Reach;
use crate::protocol::entry::EntryId;
use crate::protocol::error::MAX_MESSAGE;
use crate::protocol::event::Limits;
use crate::protocol::keys::{Keys, MAX_NAME, check_event_type, is_control};
use found::{Found, Place, Scope};
use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

/// How long it is known that an event was cancelled.
pub const KNOWN: Duration = Duration::from_secs(24 * 3600);
/// Names that are looked for at a time.
pub const NAMES: usize = 500;
/// How often an event is looked for that moves meanwhile.
const ROUNDS: u32 = 8;

/// What cancelling depends on, as the workers have it set.
#[derive(Clone, Debug)]
pub struct CancellerOptions {
    /// Their consumer group.
    pub group: String,
    /// Bounds on events.
    pub limits: Limits,
    /// How long it is known which event of an id came first.
    pub dedup_window: Duration,
    /// How long a reply stream outlives its last reply.
    pub reply_ttl: Duration,
    /// About how many replies a reply stream keeps.
    pub reply_history: u64,
}

/// Cancels events.
#[derive(Clone)]
pub struct Canceller {
    connector: Connector,
    keys: Keys,
    options: CancellerOptions,
    /// Which nodes answer, where that was asked.
    reach: Option<Reach>,
}

impl fmt::Debug for Canceller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Canceller({})", self.options.group)
    }
}

impl Canceller {
    /// Cancels what that group of workers has not finished.
    pub fn new(connector: Connector, keys: Keys, options: impl Into<CancellerOptions>) -> Self {
        Self {
            connector,
            keys,
            options: options.into(),
            reach: None,
        }
    }

    /// Leaves alone what lies on nodes of a cluster that did not answer.
    #[doc(hidden)]
    #[must_use]
    pub fn within(self, reach: Reach) -> Self {
        let reach = Some(reach);
        Self { reach, ..self }
    }

    /// Whether the node of a key answered, as far as it was asked.
    fn reaches(&self, key: &str) -> bool {
        let missing = self.reach.as_ref().and_then(|reach| reach.missing(key));
        missing.is_none()
    }

    /// The partitions of a domain that can be asked.
    fn partitions(&self, domain: &str) -> Vec<u16> {
        let all = 0..self.keys.partitions(domain);
        all.filter(|partition| self.reaches(&self.keys.events(domain, *partition)))
            .collect()
    }

    /// How events stand, without changing anything. Looks at `limit` entries at the most.
    ///
    /// # Errors
    /// `Domain`, `TooMany`, `Bus`.
    pub async fn look(
        &self,
        domain: &str,
        names: &[Name],
        limit: usize,
    ) -> Result<Vec<Fate>, CancelError> {
        self.run(domain, names, None, limit).await
    }

    /// Cancels events, and says what became of each. Looks at `limit` entries at the most, each time.
    ///
    /// # Errors
    /// `Domain`, `Reason`, `TooMany`, `Refused`, `Bus`: some may be cancelled all the same; calling again tells.
    pub async fn cancel(
        &self,
        domain: &str,
        names: &[Name],
        order: &Order,
        limit: usize,
    ) -> Result<Vec<Fate>, CancelError> {
        if order.reason.len() > MAX_REASON {
            return Err(CancelError::Reason(order.reason.len()));
        }
        self.run(domain, names, Some(order), limit).await
    }

    async fn run(
        &self,
        domain: &str,
        names: &[Name],
        order: Option<&Order>,
        limit: usize,
    ) -> Result<Vec<Fate>, CancelError> {
        check_domain(domain)?;
        let mut fates: Vec<Fate> = names.iter().map(Fate::of).collect();
        let mut seen = vec![None; names.len()];
        let mut open: Vec<usize> = (0..names.len()).collect();
        for _ in 0..ROUNDS {
            let mut next = Vec::new();
            for some in open.chunks(NAMES) {
                for (at, found) in self.search(domain, &fates, some, limit).await? {
                    let fate = &mut fates[at];
                    let live: Vec<&Found> = found.iter().filter(|one| one.is_live()).collect();
                    found.iter().for_each(|one| fate.see(one));
                    let is_over = match live.is_empty() {
                        true => is_over(fate, &found, &mut seen[at]),
                        false => self.settle(domain, fate, &live, order).await?,
                    };
                    if !is_over {
                        next.push(at);
                    }
                }
            }
            open = next;
            if open.is_empty() {
                break;
            }
        }
        self.remember(domain, &mut fates).await?;
        Ok(fates)
    }

    /// Takes away what was found live of one event; false if it moved, and is to be looked for again.
    async fn settle(
        &self,
        domain: &str,
        fate: &mut Fate,
        live: &[&Found],
        order: Option<&Order>,
    ) -> Result<bool, CancelError> {
        // Entries of several partitions may have the same id, and be of events that have nothing to do with each other.
        let partition = live[0].partition;
        let by_entry = |one: &&Found| one.given_id().is_none_or(|id| id != fate.name.to_string());
        fate.several =
            live.iter().any(|one| one.partition != partition) && live.iter().any(by_entry);
        let Some(order) = order.filter(|_| !fate.several) else {
            return Ok(true);
        };
        let mut all = true;
        for one in live {
            match self.take(domain, one, order).await? {
                Some(taken) => {
                    fate.cancelled = true;
                    fate.state = taken.state;
                    fate.instance = Some(taken.owner).filter(|owner| !owner.is_empty());
                    fate.told = fate.told.or(taken.told);
                }
                None => all = false,
            }
        }
        Ok(all)
    }

    /// Finds out of those that have ended whether they were cancelled.
    async fn remember(&self, domain: &str, fates: &mut [Fate]) -> Result<(), CancelError> {
        let ended = |fate: &&mut Fate| !fate.cancelled && fate.state <= Standing::Finished;
        let mut ended: Vec<&mut Fate> = fates.iter_mut().filter(ended).collect();
        if ended.is_empty() {
            return Ok(());
        }
        for partition in self.partitions(domain) {
            let route = self.keys.route(domain, partition);
            let mut connection = self.connector.toward(&route.events).pooled().await?;
            for some in ended.chunks_mut(NAMES) {
                let mut asks = redis::cmd("MGET");
                for fate in some.iter() {
                    for word in words(&fate.name, fate).iter().take(2) {
                        asks.arg(self.keys.cancelled(domain, partition, word));
                    }
                }
                let told: Vec<Option<Vec<u8>>> = asks
                    .query_async(&mut connection)
                    .await
                    .map_err(BusError::from)?;
                let mut told = told.into_iter();
                for fate in some.iter_mut() {
                    let count = words(&fate.name, fate).len().min(2);
                    let notes: Vec<_> = told.by_ref().take(count).flatten().collect();
                    let read = |note: &Vec<u8>| rmp_serde::from_slice::<Cancellation>(note).ok();
                    // An entry that came after it is another event's.
                    let ended = fate.entry.map_or(0, |entry| entry.ms);
                    let before = |earlier: &Cancellation| earlier.at >= ended;
                    if let Some(earlier) = notes.iter().filter_map(read).find(before) {
                        fate.cancelled = true;
                        fate.state = Standing::Finished;
                        fate.earlier = Some(earlier);
                    }
                }
            }
        }
        Ok(())
    }

    fn scope(&self, domain: &str, partition: u16) -> Scope<'_> {
        Scope {
            keys: &self.keys,
            partition,
            route: self.keys.route(domain, partition),
        }
    }
}

/// The last entry of an event in each partition.
type Last = HashMap<u16, EntryId>;

/// Whether an event of which nothing live was found has ended: it may have moved against the search, but not without
/// another entry of it.
fn is_over(fate: &mut Fate, found: &[Found], seen: &mut Option<Last>) -> bool {
    let mut last = Last::new();
    for one in found {
        if let Place::Entry { entry, .. } = one.place {
            let at = last.entry(one.partition).or_insert(entry);
            *at = entry.max(*at);
        }
    }
    let was_live = fate.state > Standing::Finished;
    let is_over = last.is_empty() && !was_live || seen.as_ref() == Some(&last);
    *seen = Some(last);
    if was_live && !fate.cancelled {
        fate.state = Standing::Finished;
    }
    is_over
}

/// By which words an event is known: as it was named, and its id once that is known.
fn words(name: &Name, fate: &Fate) -> Vec<String> {
    let mut words = vec![name.to_string()];
    if let Name::Entry(_) = name
        && let Some(id) = fate.id.clone().filter(|id| *id != words[0])
    {
        words.push(id);
    }
    words
}

/// What a requester is told, and what a dead letter says.
fn message(order: &Order) -> String {
    why(&order.by, &order.reason)
}

fn why(by: &str, reason: &str) -> String {
    let mut said = match by {
        "" => "cancelled".to_owned(),
        by => format!("cancelled by {by}"),
    };
    if !reason.is_empty() {
        said = format!("{said}: {reason}");
    }
    said.truncate(said.floor_char_boundary(MAX_MESSAGE));
    said
}

fn check_domain(domain: &str) -> Result<(), CancelError> {
    if domain.contains('.') || check_event_type(&format!("{domain}.a")).is_err() {
        let said: String = domain.chars().take(MAX_NAME).collect();
        return Err(CancelError::Domain(format!(
            "{said:?} is no domain of events"
        )));
    }
    if is_control(domain) {
        let instead = match domain {
            "task" => "a task is cancelled by task.cancel (convoke task cancel)",
            _ => "what it asks for may have been done by then",
        };
        return Err(CancelError::Domain(format!(
            "events of {domain} cannot be cancelled: {instead}"
        )));
    }
    Ok(())
}
