//! Watches the broadcast: for instances that went, whose entries the lanes then take over; and for tasks,
//! batches and events that were cancelled, or taken away, while they run here; and for the choice of
//! another pattern, and for schedules, policies, repairs and domains that somebody changed.

use super::by_node;
use super::lane_list::LaneList;
use super::lanes::Triggers;
use super::owned::is_of_a_free_one;
use super::shared::Shared;
use super::takeover::Trigger;
use crate::connect::backoff::Backoff;
use crate::connect::connector::{BLOCK, Connector};
use crate::coordination::batches::leases::Leases;
use crate::coordination::error::CoordinationError;
use crate::coordination::instances::Instances;
use crate::coordination::instances::orders;
use crate::coordination::instances::roster::{self, gone_in};
use crate::coordination::patterns::{PatternStore, is_choice};
use crate::coordination::policies::{self, Policies};
use crate::coordination::repairs::{self, Repairs};
use crate::coordination::schedules::{self, Schedules};
use crate::coordination::tasks::{Assignment, ended_in};
use crate::protocol::entry::EntryId;
use crate::streams::cancel::{Taken, taken_in};
use crate::streams::claim;
use crate::streams::domains;
use crate::streams::read;
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Facts that one read brings at the most.
const COUNT: usize = 256;

/// What watching needs; its connections belong to the keeper's thread.
pub(super) struct Watch {
    pub connector: Connector,
    pub instances: Instances,
    pub lanes: LaneList,
    pub triggers: Triggers,
    pub broadcast: String,
    pub patterns: PatternStore,
    pub schedules: Schedules,
    pub policies: Policies,
    pub repairs: Repairs,
    pub leases: Leases,
    pub id: String,
    /// Is told when something is ordered of this instance.
    pub ordered: Arc<Notify>,
    /// The server's time at which the instance was registered, in ms: what is in hand was read later.
    pub since: u64,
    /// How often consumers are compared with instances, besides the facts.
    pub compare: Duration,
}

/// How far the broadcast was heard, and how many facts the next read asks for.
struct Place {
    after: EntryId,
    count: usize,
}

impl Place {
    /// A read failed: what is too large for one is asked for in parts, and a fact that is too large by itself is passed over,
    /// with all up to the last one.
    fn failed(&mut self, last: EntryId) {
        if self.count == 1 {
            tracing::warn!(after = %self.after, "a fact on the broadcast cannot be read: it is passed over");
            self.after = self.after.max(last);
            self.count = COUNT;
        } else {
            self.count /= 2;
        }
    }
}

impl Watch {
    /// Watches for ever.
    pub(super) async fn run(&self) {
        let mut backoff = Backoff::default();
        // What was said of events, tasks and batches in hand is told by no other way than its fact: no look at the
        // broadcast leaves one out.
        let mut place = Place {
            after: EntryId {
                ms: self.since,
                seq: 0,
            },
            count: COUNT,
        };
        loop {
            let began = Instant::now();
            let Err(error) = self.follow(&mut place).await;
            tracing::debug!(%error, "watching the broadcast failed; trying again");
            if began.elapsed() > BLOCK {
                backoff.worked();
            }
            tokio::time::sleep(backoff.failed()).await;
        }
    }

    async fn follow(&self, place: &mut Place) -> Result<Infallible, CoordinationError> {
        let generation = self.connector.generation();
        let mut connection = self.connector.blocking(BLOCK).await?;
        // The position first: who goes from here on is told, who went before is found by comparing.
        let last = read::last_id(&mut connection, &self.broadcast).await?;
        // Later than all that is there: the server's clock, or its data, is not what it was.
        place.after = last.min(place.after);
        // What was said before is found by reading it.
        self.patterns.told();
        self.ordered.notify_one();
        self.schedules.told();
        self.policies.told();
        self.repairs.told();
        self.lanes.has_more_partitions();
        self.lanes.has_other_members();
        self.compare().await.or_else(|error| self.go_on(error))?;
        let mut compared = Instant::now();
        loop {
            self.connector.check(generation)?;
            let position = [(self.broadcast.as_str(), place.after)];
            let read = read::read_after(&mut connection, &position, place.count, BLOCK).await;
            let batches = read.inspect_err(|_| place.failed(last))?;
            place.count = COUNT;
            let mut gone = Vec::new();
            for entry in batches.iter().flat_map(|batch| &batch.entries) {
                place.after = entry.id;
                gone.extend(gone_in(entry));
                if is_choice(entry) {
                    self.patterns.told();
                }
                if orders::is_order_to(entry, &self.id) {
                    self.ordered.notify_one();
                }
                if policies::is_change(entry) {
                    self.policies.told();
                }
                if repairs::is_change(entry) {
                    self.repairs.told();
                }
                if domains::is_change(entry) {
                    self.lanes.has_more_partitions();
                }
                if roster::is_of_members(entry) || is_of_a_free_one(entry) {
                    self.lanes.has_other_members();
                }
                if schedules::is_change(entry) {
                    self.schedules.told();
                }
                if let Some(task) = ended_in(entry) {
                    self.cancel(&task);
                }
                self.leases.hear(entry);
                if let Some(taken) = taken_in(entry) {
                    self.void(&taken);
                }
            }
            if !gone.is_empty() {
                // A fact may be old: whoever is back by now keeps what it holds.
                self.take_over(self.instances.gone_among(&gone).await?);
            }
            if compared.elapsed() >= self.compare {
                self.compare().await.or_else(|error| self.go_on(error))?;
                compared = Instant::now();
            }
        }
    }

    /// Compares those who hold entries with those who are gone: a fact may have been missed.
    async fn compare(&self) -> Result<(), CoordinationError> {
        let gone = gone_holders(&self.connector, &self.instances, &self.lanes.now()).await?;
        self.take_over(gone);
        Ok(())
    }

    /// On a cluster the nodes of the streams may be away while the one of the facts is not: those are followed.
    fn go_on(&self, error: CoordinationError) -> Result<(), CoordinationError> {
        match self.connector.is_cluster() {
            true => {
                tracing::debug!(%error, "who holds entries and is gone is not known; asking again");
                Ok(())
            }
            false => Err(error),
        }
    }

    /// Tells a run of ours that its task is no more its own. What it still does is discarded anyway.
    fn cancel(&self, task: &Assignment) {
        for lane in self.lanes.now().iter().filter(|lane| lane.inbox.is_some()) {
            if lane.instance() == task.instance {
                lane.inflight.cancel(&task.event_id());
            }
        }
    }

    /// Has an event that was taken away here not begin, or its run end. What it still does is discarded anyway.
    fn void(&self, taken: &Taken) {
        let Some(entry) = taken.entry() else {
            return;
        };
        let lanes = self.lanes.now();
        for lane in lanes
            .iter()
            .filter(|lane| lane.instance() == taken.instance)
        {
            let stream = lane
                .routes
                .iter()
                .position(|route| route.events == taken.stream);
            if let Some(stream) = stream
                && lane.inflight.void(stream, entry, &taken.why())
            {
                tracing::info!(stream = taken.stream, %entry, by = taken.by, reason = taken.reason, "an event that was in hand is cancelled");
            }
        }
    }

    fn take_over(&self, gone: Vec<String>) {
        let lanes = self.lanes.now();
        let others = |id: &String| lanes.iter().all(|lane| lane.instance() != *id);
        let gone: BTreeSet<String> = gone.into_iter().filter(others).collect();
        if !gone.is_empty() {
            self.triggers.send(&Trigger::Gone(gone));
        }
    }
}

/// Who holds entries of the lanes' streams, and is gone.
pub(super) async fn gone_holders(
    connector: &Connector,
    instances: &Instances,
    lanes: &[Arc<Shared>],
) -> Result<Vec<String>, CoordinationError> {
    let mut holders = Vec::new();
    let Some(group) = lanes.first().map(|lane| &lane.group) else {
        return Ok(holders);
    };
    let streams = lanes.iter().flat_map(|lane| lane.routes.iter());
    let streams: Vec<&str> = streams.map(|route| route.events.as_str()).collect();
    let asked = by_node::ask(connector, &streams, |stream| {
        claim::ask_holders(stream, group)
    });
    for (stream, asked) in streams.iter().zip(asked.await) {
        let found = match asked {
            Some(answer) => claim::holders_in(answer),
            None => {
                let asked = async {
                    let mut connection = connector.toward(stream).pooled().await?;
                    claim::holders(&mut connection, stream, group).await
                };
                asked.await
            }
        };
        match found {
            Ok(found) => holders.extend(found),
            // The reader creates the group, and says what is no stream.
            Err(error) if matches!(error.code(), Some("NOGROUP" | "WRONGTYPE")) => {}
            // The node of one partition is away: of the others it is known.
            Err(error) if connector.is_cluster() => {
                tracing::debug!(stream, %error, "who holds entries is not known");
            }
            Err(error) => return Err(error.into()),
        }
    }
    holders.sort_unstable();
    holders.dedup();
    instances.gone_among(&holders).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fact_that_cannot_be_read_is_passed_over_once_it_alone_was_asked_for() {
        let (first, last) = (EntryId { ms: 1, seq: 0 }, EntryId { ms: 9, seq: 0 });
        let mut place = Place {
            after: first,
            count: COUNT,
        };
        let mut asked = Vec::new();
        while place.after == first {
            asked.push(place.count);
            place.failed(last);
        }
        assert_eq!(asked, [256, 128, 64, 32, 16, 8, 4, 2, 1]);
        assert_eq!((place.after, place.count), (last, COUNT));
    }
}
