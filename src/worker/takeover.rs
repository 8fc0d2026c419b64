//! Taking over pending entries: one's own after a lost read, a dead consumer's, and those that nobody
//! renewed for too long.
//!
//! An event that kills its process takes everything with it that ran beside it. So what was delivered
//! before is taken in ever smaller parts: the second delivery 100 at a time, the third 10, then one
//! alone. The killer ends alone, is counted, and is found out as poison; its neighbours get through.

use super::shared::{Delivery, Shared};
use super::unbegun;
use crate::connect::error::BusError;
use crate::coordination::error::CoordinationError;
use crate::protocol::event::EntryId;
use crate::streams::claim::{self, Idle, Pending};
use crate::streams::hold::{self, Held};
use redis::aio::ConnectionLike;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::convert::Infallible;
use std::time::{Duration, Instant};

/// Why entries are to be taken over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trigger {
    /// A read may have been lost on the way, or an outcome was discarded: what is pending with us and
    /// not in our hands. While a read is under way that is not known.
    Own,
    /// Something was handed to us: the same, at once.
    Given,
    /// Consumers that are gone. What they hold is taken by its age, whoever holds it: parts of one subject may be
    /// with several of them.
    Gone(BTreeSet<String>),
    /// The time has come to look for entries that nobody renewed.
    Stale,
    /// The partition is this worker's: all that is pending with anybody and not in our hands. While a read is under way
    /// that is not known.
    Whole,
}

/// One stream to be looked through for one reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Job {
    trigger: Trigger,
    stream: usize,
    from: EntryId,
    /// More are gone since its last step began: that one may be past what they hold.
    grew: bool,
}

/// What is still to be looked through.
#[derive(Debug, Default)]
pub(super) struct Jobs(VecDeque<Job>);

/// What one step of a job did.
#[derive(Debug)]
pub(super) enum Step {
    /// Took entries over, asked for then; there may be more.
    Took(Vec<Delivery>, Instant),
    /// The same of a partition that this worker owns: with what is noted of them, and up to which entry nothing is left.
    TookAll(Vec<Delivery>, Instant, HashMap<EntryId, Held>, EntryId),
    /// Nothing on this page; the next begins here.
    Onward(EntryId),
    /// A consumer of those that were gone is back, and keeps what it holds.
    Back(String),
    /// Nothing is left.
    Done,
}

const PAGE: usize = 100;

/// Deliveries from which on an event runs with nothing beside it.
pub(super) const ALONE: u32 = 4;

fn part(deliveries: u32) -> usize {
    match deliveries {
        0 | 1 => claim::TAKEN,
        2 => 10,
        _ => 1,
    }
}

impl Jobs {
    /// Adds what a trigger asks for, unless it waits already.
    pub(super) fn add(&mut self, trigger: &Trigger, streams: usize) {
        // New events wait while the gone are taken over from: that goes before what is not as urgent.
        let mut first = 1;
        for stream in 0..streams {
            if self.grows(trigger, stream) {
                continue;
            }
            let job = Job {
                trigger: trigger.clone(),
                stream,
                from: EntryId::default(),
                grew: false,
            };
            // The front one may be under way already, and past what the trigger is about.
            if self.0.iter().skip(1).any(|waiting| *waiting == job) {
                continue;
            }
            match job.is_of_the_gone() && first < self.0.len() {
                true => self.0.insert(first, job),
                false => self.0.push_back(job),
            }
            first += 1;
        }
    }

    /// Whether there is a job for what the gone hold of a stream, to which these are added.
    fn grows(&mut self, trigger: &Trigger, stream: usize) -> bool {
        let Trigger::Gone(more) = trigger else {
            return false;
        };
        let mut jobs = self.0.iter_mut().filter(|job| job.stream == stream);
        let grown = jobs.find_map(|job| match &mut job.trigger {
            Trigger::Gone(gone) => Some((gone, &mut job.from, &mut job.grew)),
            _ => None,
        });
        let Some((gone, from, grew)) = grown else {
            return false;
        };
        gone.extend(more.iter().cloned());
        (*from, *grew) = (EntryId::default(), true);
        true
    }

    /// The next job; its step begins now.
    pub(super) fn begin(&mut self) -> Option<Job> {
        let job = self.0.front_mut()?;
        job.grew = false;
        Some(job.clone())
    }

    /// Whether what the gone held is still to be looked through.
    pub(super) fn are_of_the_gone(&self) -> bool {
        self.0.iter().any(Job::is_of_the_gone)
    }

    /// The next job.
    pub(super) fn next(&self) -> Option<Job> {
        self.0.front().cloned()
    }

    /// Notes what a step of the next job did.
    pub(super) fn stepped(&mut self, step: &Step) {
        match (step, self.0.front_mut()) {
            (_, Some(job)) if job.grew => {}
            (Step::Onward(from), Some(job)) => job.from = *from,
            (Step::Back(back), Some(job)) => {
                if let Trigger::Gone(gone) = &mut job.trigger {
                    gone.remove(back);
                }
            }
            (Step::Done, _) => {
                self.0.pop_front();
            }
            _ => {}
        }
    }
}

impl Job {
    /// Whether it is for when no read is under way.
    pub(super) fn is_own(&self) -> bool {
        matches!(self.trigger, Trigger::Own | Trigger::Whole)
    }

    /// Whether its next step lists what is pending from the beginning.
    pub(super) fn is_at_the_beginning(&self) -> bool {
        self.from == EntryId::default()
    }

    /// Whether it is for what those hold that are gone.
    pub(super) fn is_of_the_gone(&self) -> bool {
        matches!(self.trigger, Trigger::Gone(_))
    }

    /// Takes the next part, of at most `room` entries.
    pub(super) async fn step(&self, shared: &Shared, room: usize) -> Result<Step, BusError> {
        let stream = &shared.routes[self.stream].events;
        let group = &shared.group;
        let me = shared.instance();
        let mut gone: Vec<&str> = Vec::new();
        if let Trigger::Gone(all) = &self.trigger {
            gone.extend(all.iter().map(String::as_str).filter(|gone| *gone != me));
        }
        let (owners, idle): (Vec<Option<&str>>, Idle) = match &self.trigger {
            Trigger::Own | Trigger::Given => (vec![Some(me)], Duration::ZERO.into()),
            Trigger::Gone(_) => (
                gone.iter().copied().map(Some).collect(),
                Duration::ZERO.into(),
            ),
            Trigger::Whole => (vec![None], Duration::ZERO.into()),
            // Nobody could renew anything while the server did not answer.
            Trigger::Stale => match shared.answers.steady_for(shared.claim_idle) {
                Some(within) => {
                    let least = shared.claim_idle;
                    (vec![None], Idle { least, within })
                }
                None => return Ok(Step::Done),
            },
        };
        let claims = shared.claims.known(self.stream);
        let mut connection = shared.process.connector.pooled().await?;
        let (page, ends) =
            claim::pending_with(&mut connection, stream, group, self.from, PAGE, &owners).await?;
        let wanted = |entry: &&Pending| {
            entry.idle >= idle.least
                // What was handed over was not delivered yet; what was may be what a read brings just now.
                && (self.trigger != Trigger::Given || entry.deliveries == 0)
                && !(entry.consumer == me
                    && shared
                        .inflight
                        .holds(self.stream, entry.id, entry.deliveries))
        };
        let Some(first) = page.iter().find(wanted) else {
            return match page.last() {
                Some(last) if !ends => Ok(Step::Onward(last.id.next())),
                _ => {
                    for gone in gone {
                        claim::forget(&mut connection, stream, group, gone).await?;
                    }
                    Ok(Step::Done)
                }
            };
        };
        let back = match gone.is_empty() {
            true => None,
            false => first_back(shared, &page).await?,
        };
        if let Some(back) = back {
            return Ok(Step::Back(back));
        }
        let level = first.deliveries.max(1);
        let chosen: Vec<Pending> = page
            .iter()
            .filter(wanted)
            // None passes one that was delivered more or less often: they may be of one subject.
            .take_while(|entry| entry.deliveries.max(1) == level)
            .take(part(level).min(room))
            .cloned()
            .collect();
        let mut wire = shared.connector.wire().await?;
        let asked = Instant::now();
        let fence = shared.fence.as_deref();
        let mut taken = claim::take_owned(
            &mut connection,
            stream,
            group,
            me,
            idle,
            &chosen,
            |consumer| shared.claims_key(self.stream, consumer),
            fence,
        )
        .await?;
        // One that changed its holder or its count meanwhile is listed again; what is behind it must not pass it.
        let is_left = |entry: &&Pending| !taken.iter().any(|taken| taken.entry.id == entry.id);
        let left = chosen.iter().find(is_left).map(|left| left.id);
        let to = left.or_else(|| Some(chosen.last()?.id.next()));
        let there = taken.iter().filter(|taken| !taken.deleted);
        let held: Vec<_> = there
            .map(|taken| (taken.entry.id, taken.deliveries))
            .collect();
        let mut notes = HashMap::new();
        if let Some(fence) = fence {
            let ids: Vec<EntryId> = held.iter().map(|(id, _)| *id).collect();
            match hold::noted(&mut connection, fence, &ids).await {
                Ok(noted) => notes = noted,
                Err(error) => {
                    unbegun::of_stream(shared, self.stream, &held).await.ok();
                    return Err(error);
                }
            }
        }
        let read = tokio::select! {
            read = claim::fields(&mut wire, stream, &mut taken, shared.limits.entry()) => read,
            never = keep(shared, connection, stream, &held) => match never {},
        };
        if let Err(error) = read {
            // It is taken again, as often as it cannot be read.
            unbegun::of_stream(shared, self.stream, &held).await.ok();
            return Err(error);
        }
        let since = Instant::now();
        let mut deliveries = Vec::with_capacity(taken.len());
        for taken in taken {
            if taken.deleted {
                tracing::error!(
                    stream,
                    entry = %taken.entry.id,
                    "a pending entry was deleted from its stream before it was run: the event is lost"
                );
                continue;
            }
            deliveries.push(Delivery {
                stream: self.stream,
                entry: taken.entry,
                deliveries: taken.deliveries,
                claims,
                since,
            });
        }
        Ok(match fence {
            None => Step::Took(deliveries, asked),
            Some(_) => Step::TookAll(deliveries, asked, notes, to.unwrap_or_default()),
        })
    }
}

/// A consumer that holds one of these and came back under its id. Asked *after* the entries were listed: what they
/// are then was delivered before it went, and whoever begins under its id later takes that back by itself, under
/// another delivery count.
async fn first_back(shared: &Shared, page: &[Pending]) -> Result<Option<String>, BusError> {
    let owners = page.iter().map(|entry| entry.consumer.clone());
    let mut owners: Vec<String> = owners.collect();
    owners.sort_unstable();
    owners.dedup();
    match shared.instances.gone_among(&owners).await {
        Ok(gone) => Ok(owners.into_iter().find(|owner| !gone.contains(owner))),
        Err(CoordinationError::Bus(error)) => Err(error),
        Err(error) => Err(BusError::Pool(error.to_string())),
    }
}

/// Renews what was taken for as long as its fields are read: they may be large enough that others would
/// take it meanwhile, and read it as long.
async fn keep(
    shared: &Shared,
    mut connection: impl ConnectionLike,
    stream: &str,
    held: &[(EntryId, u32)],
) -> Infallible {
    loop {
        tokio::time::sleep(shared.claim_idle / 3).await;
        let renewed = claim::renew(
            &mut connection,
            stream,
            &shared.group,
            shared.instance(),
            held,
        );
        if let Err(error) = renewed.await {
            tracing::debug!(%error, "leases were not renewed; trying again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gone(ids: &[&str]) -> Trigger {
        Trigger::Gone(ids.iter().map(|&id| id.to_owned()).collect())
    }

    #[test]
    fn the_gone_are_taken_over_from_before_all_that_waits_and_new_events_wait_for_it() {
        let mut jobs = Jobs::default();
        jobs.add(&Trigger::Stale, 2);
        assert!(!jobs.are_of_the_gone());
        jobs.add(&gone(&["w-1"]), 2);
        assert!(jobs.are_of_the_gone(), "though another one is under way");
        let order: Vec<(Trigger, usize)> = std::iter::from_fn(|| {
            let job = jobs.begin()?;
            jobs.stepped(&Step::Done);
            Some((job.trigger, job.stream))
        })
        .collect();
        let gone = || gone(&["w-1"]);
        let expected = [
            (Trigger::Stale, 0),
            (gone(), 0),
            (gone(), 1),
            (Trigger::Stale, 1),
        ];
        assert_eq!(order, expected);
        assert!(!jobs.are_of_the_gone());
    }

    #[test]
    fn who_goes_while_the_gone_are_taken_over_from_is_looked_at_from_the_oldest_on() {
        let mut jobs = Jobs::default();
        jobs.add(&gone(&["w-1"]), 1);
        assert_eq!(jobs.begin().map(|job| job.trigger), Some(gone(&["w-1"])));
        jobs.stepped(&Step::Onward(EntryId { ms: 7, seq: 0 }));
        assert_eq!(jobs.begin().map(|job| job.from.ms), Some(7));
        jobs.add(&gone(&["w-2"]), 1);
        // What that step found was the first one's alone.
        jobs.stepped(&Step::Done);
        let job = jobs.begin().unwrap();
        assert_eq!((job.trigger, job.from.ms), (gone(&["w-1", "w-2"]), 0));
        jobs.stepped(&Step::Back("w-1".to_owned()));
        assert_eq!(jobs.begin().map(|job| job.trigger), Some(gone(&["w-2"])));
        jobs.stepped(&Step::Done);
        assert!(jobs.next().is_none());
    }
}
