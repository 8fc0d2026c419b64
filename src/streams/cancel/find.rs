//! Where events are that are to be cancelled.
//!
//! What is parked and what is delayed first, then the stream, from its first entry on: an event moves from the one to
//! the other behind its last entry only.

use super::found::{Found, Place, Scope};
use super::{CancelError, Canceller, Fate, Name, Standing, words};
use crate::connect::error::BusError;
use crate::connect::script::script_with;
use crate::protocol::entry::EntryId;
use crate::streams::delay::{self, LOOK, MEMBER};
use crate::streams::park::{self, PLACES};
use crate::streams::trim::IDS;
use redis::aio::ConnectionLike;
use redis::{FromRedisValue, Script, Value};
use std::sync::LazyLock;

static FIND: LazyLock<Script> =
    LazyLock::new(|| script_with(&[IDS], include_str!("cancel_find.lua")));
static PARKED: LazyLock<Script> =
    LazyLock::new(|| script_with(&[PLACES, MEMBER], include_str!("cancel_parked.lua")));

/// Entries that one call looks at.
const PAGE: usize = 500;
/// Members of a delay queue, which are shown whole.
const MEMBERS: usize = 250;

/// A part of a stream.
struct Page {
    /// The server's time, in Unix ms.
    now: u64,
    /// Where to go on; empty at the end.
    next: String,
    /// How many entries were looked at.
    looked: usize,
    found: Vec<Found>,
}

/// How many entries may still be looked at.
struct Budget<'a> {
    domain: &'a str,
    limit: usize,
    left: usize,
}

impl Budget<'_> {
    fn spend(&mut self, entries: usize) -> Result<(), CancelError> {
        match self.left.checked_sub(entries) {
            Some(left) => self.left = left,
            None => {
                return Err(CancelError::TooMany {
                    domain: self.domain.to_owned(),
                    limit: self.limit,
                });
            }
        }
        Ok(())
    }
}

impl Canceller {
    /// Looks for some of the events: all that is found of each.
    pub(super) async fn search(
        &self,
        domain: &str,
        fates: &[Fate],
        some: &[usize],
        limit: usize,
    ) -> Result<Vec<(usize, Vec<Found>)>, CancelError> {
        let mut all = Vec::with_capacity(some.len());
        let mut rest = Vec::new();
        for &at in some {
            let mut own = Vec::new();
            if let Name::Entry(entry) = fates[at].name {
                own = self.entry(domain, entry).await?;
            }
            let mut known = words(&fates[at].name, &fates[at]);
            known.extend(own.iter().map(Found::id));
            // Copies of an event with `dedup` are one event.
            let has_copies = own.iter().any(|one| one.is_live() && one.asks_once());
            match own.iter().any(Found::is_live) && !has_copies {
                true => all.push((at, own)),
                false => {
                    let partitions = own.iter().map(|one| one.partition);
                    let only: Vec<u16> = partitions.filter(|_| has_copies).collect();
                    rest.push((at, known, only));
                }
            }
        }
        if rest.is_empty() {
            return Ok(all);
        }
        let mut wanted: Vec<String> = rest
            .iter()
            .flat_map(|(_, words, _)| words.clone())
            .collect();
        wanted.sort_unstable();
        wanted.dedup();
        let found = self.find(domain, &wanted, limit).await?;
        all.extend(rest.into_iter().map(|(at, words, only)| {
            let fits = |one: &&Found| {
                (only.is_empty() || only.contains(&one.partition))
                    && words.iter().any(|word| one.fits(word))
            };
            (at, found.iter().filter(fits).cloned().collect())
        }));
        Ok(all)
    }

    /// One entry, in each partition.
    async fn entry(&self, domain: &str, entry: EntryId) -> Result<Vec<Found>, CancelError> {
        let mut found = Vec::new();
        for partition in self.partitions(domain) {
            let scope = self.scope(domain, partition);
            let mut connection = self.connector.toward(&scope.route.events).pooled().await?;
            let id = entry.to_string();
            let page = self.page(&mut connection, &scope, &id, &id, &[]).await?;
            found.extend(page.found);
        }
        Ok(found)
    }

    /// All events that are called so.
    async fn find(
        &self,
        domain: &str,
        wanted: &[String],
        limit: usize,
    ) -> Result<Vec<Found>, CancelError> {
        let mut budget = Budget {
            domain,
            limit,
            left: limit,
        };
        let mut found = Vec::new();
        for partition in self.partitions(domain) {
            let scope = self.scope(domain, partition);
            let mut connection = self.connector.toward(&scope.route.events).pooled().await?;
            let (at, first) = (&mut connection, found.len());
            self.parked(at, &scope, wanted, &mut budget, &mut found)
                .await?;
            self.delayed(at, &scope, wanted, &mut budget, &mut found)
                .await?;
            let now = self.stream(at, &scope, wanted, &mut budget, &mut found);
            let now = now.await?;
            found[first..].iter_mut().for_each(|one| one.now = now);
        }
        Ok(found)
    }

    /// Looks through the stream; gives the server's time.
    async fn stream(
        &self,
        connection: &mut impl ConnectionLike,
        scope: &Scope<'_>,
        wanted: &[String],
        budget: &mut Budget<'_>,
        found: &mut Vec<Found>,
    ) -> Result<u64, CancelError> {
        let mut from = "-".to_owned();
        loop {
            let page = self.page(connection, scope, &from, "+", wanted).await?;
            found.extend(page.found);
            if page.next.is_empty() {
                return Ok(page.now);
            }
            budget.spend(page.looked)?;
            from = page.next;
        }
    }

    /// A part of the stream: where to go on, and what was found.
    async fn page(
        &self,
        connection: &mut impl ConnectionLike,
        scope: &Scope<'_>,
        from: &str,
        to: &str,
        wanted: &[String],
    ) -> Result<Page, BusError> {
        let mut call = FIND.prepare_invoke();
        call.key(&scope.route.events);
        call.arg(&self.options.group).arg(from).arg(to).arg(PAGE);
        call.arg(self.options.limits.entry()).arg(wanted);
        let answer: Vec<Value> = call.invoke_async(connection).await?;
        let mut answer = answer.into_iter();
        let shape = || BusError::Reply {
            what: "cancel_find.lua",
        };
        let now = read(answer.next().ok_or_else(shape)?)?;
        let next = read(answer.next().ok_or_else(shape)?)?;
        let looked = read(answer.next().ok_or_else(shape)?)?;
        let mut found = Vec::new();
        for one in answer {
            let (entry, stands, deliveries, fields): (String, Vec<u8>, u32, Vec<Vec<u8>>) =
                read(one)?;
            let entry = entry.parse().map_err(|_| shape())?;
            let owner = stands.strip_prefix(b"held:").map(<[u8]>::to_vec);
            let state = match &owner {
                Some(_) => Standing::Running,
                None if stands == b"unread" => Standing::Waiting,
                None => Standing::Finished,
            };
            let place = Place::Entry {
                entry,
                owner: String::from_utf8_lossy(&owner.unwrap_or_default()).into_owned(),
                deliveries,
            };
            found.push(Found::new(scope, state, place, fields, &self.options.limits).at(now));
        }
        Ok(Page {
            now,
            next,
            looked,
            found,
        })
    }

    async fn delayed(
        &self,
        connection: &mut impl ConnectionLike,
        scope: &Scope<'_>,
        wanted: &[String],
        budget: &mut Budget<'_>,
        found: &mut Vec<Found>,
    ) -> Result<(), CancelError> {
        let most = self.options.limits.entry();
        let (mut due, mut last, mut cut) = (String::new(), Vec::new(), 0);
        loop {
            let mut call = LOOK.prepare_invoke();
            call.key(&scope.route.delayed);
            call.arg(&due).arg(&last).arg(cut).arg(MEMBERS).arg(most);
            let page = call.invoke_async(connection).await;
            let page: Vec<(f64, usize, Vec<u8>)> = page.map_err(BusError::from)?;
            if page.is_empty() {
                return Ok(());
            }
            budget.spend(page.len())?;
            for (score, bytes, member) in page {
                if member.len() != bytes {
                    cut += 1;
                    continue;
                }
                (due, last, cut) = (score.to_string(), member, 0);
                let Some((token, fields)) = delay::decode_member(&last, most) else {
                    continue;
                };
                let member = last.clone();
                let place = Place::Delayed { token, member };
                let one = Found::new(
                    scope,
                    Standing::Delayed,
                    place,
                    fields,
                    &self.options.limits,
                );
                if wanted.iter().any(|word| one.fits(word)) {
                    found.push(one);
                }
            }
        }
    }

    async fn parked(
        &self,
        connection: &mut impl ConnectionLike,
        scope: &Scope<'_>,
        wanted: &[String],
        budget: &mut Budget<'_>,
        found: &mut Vec<Found>,
    ) -> Result<(), CancelError> {
        let kinds = park::kinds(connection, &[&scope.route]).await?;
        let most = self.options.limits.entry();
        for kind in kinds.into_iter().flatten() {
            let mut from: Vec<u8> = Vec::new();
            loop {
                let mut call = PARKED.prepare_invoke();
                call.key(scope.route.parked_of(&kind));
                call.arg(&from).arg(PAGE).arg(most).arg(wanted);
                let page = call.invoke_async(connection).await;
                let page: Vec<Value> = page.map_err(BusError::from)?;
                let mut page = page.into_iter();
                from = read(page.next().unwrap_or(Value::Nil))?;
                let looked = read(page.next().unwrap_or(Value::Nil))?;
                for member in page {
                    let member: Vec<u8> = read(member)?;
                    let event = member.get(park::HEAD..).unwrap_or_default();
                    let Some((token, fields)) = delay::decode_member(event, most) else {
                        continue;
                    };
                    let place = Place::Parked {
                        token,
                        kind: kind.clone(),
                        member,
                    };
                    let waits = Standing::Waiting;
                    found.push(Found::new(
                        scope,
                        waits,
                        place,
                        fields,
                        &self.options.limits,
                    ));
                }
                if from.is_empty() {
                    break;
                }
                budget.spend(looked)?;
            }
        }
        Ok(())
    }
}

fn read<T: FromRedisValue>(value: Value) -> Result<T, BusError> {
    let read = redis::from_redis_value(value);
    read.map_err(|_| BusError::Reply {
        what: "cancel_find.lua",
    })
}
