//! Takes the partitions that this worker is to own, and lets go of the others.
//!
//! It runs where the lanes run. Each look goes the same way: who owns what, who is there, who is to own what; what is free
//! and to be the worker's own is taken, and of what is its own and to be another one's the lane ends, which lets it go.
//! Where a partition is another one's that is yet to let it go, it looks again soon. Who comes, leaves, or lets a partition
//! go says so, and all look at once; who dies is followed when its lease has ended, to which there is an alarm.

use super::leases::{Lease, Look};
use super::spread::{Member, spread};
use super::{Ownership, leave, telling};
use crate::connect::error::BusError;
use crate::coordination::error::CoordinationError;
use crate::protocol::keys::Keys;
use crate::streams::domains::Domains;
use crate::streams::made;
use crate::streams::own::{self, Looked, OwnKeys, Owner, Taking};
use crate::worker::lane_plans::{self, Place};
use crate::worker::making::{Maker, Running};
use crate::worker::shared::Shared;
use crate::worker::supervisor::Supervisor;
use futures_util::StreamExt;
use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Between two looks at what others are to let go.
pub(in crate::worker) const SOON: Duration = Duration::from_millis(100);
/// Partitions that are begun with, or looked at on a cluster, at a time.
const AT_A_TIME: usize = 8;
/// How long a question about one partition may keep those about the others waiting.
const LIMIT: Duration = Duration::from_secs(1);
/// Partitions that one look asks for.
const AT_ONCE: usize = 500;
/// How long a node may take to answer, at the least and at the most.
const LOOKS_FOR: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(3)];
/// Calls by which is looked in that time where nothing is to happen.
const LOOKS: u32 = 8;
const SELDOM: Duration = Duration::from_millis(500);
/// How long it looks soon where others take long: then it is told, or looks seldom.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two alarms.
const LEAST: Duration = Duration::from_millis(10);

/// A domain whose subjects have an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::worker) struct Ordered {
    pub domain: String,
    /// A type of it that this worker has a handler for: all who own partitions of the domain have all of its handlers.
    pub kind: String,
}

/// What this worker owns, and what it knows of the others.
#[derive(Default)]
pub(in crate::worker) struct Owning {
    /// Whose stream was made, and is not there.
    gone: BTreeSet<Place>,
    /// Their lanes.
    own: BTreeMap<Place, Arc<Shared>>,
    leases: BTreeMap<Place, Lease>,
    /// The domains whose members are known, and when they were asked for.
    members: BTreeMap<String, Vec<Member>>,
    learned: Option<Instant>,
    /// When the next of them is there no more, unless it pulses.
    expires: Option<Instant>,
    /// Since when it waits for others.
    waits: Option<Instant>,
    /// Owners that have left, as they were seen then: one that renewed its lease after that lives.
    left: Vec<Owner>,
    /// Partitions that it took, or tried to: what an older process of its instance had there it takes once.
    tried: HashSet<Place>,
    /// What it took and is yet to tell, with the fences.
    untold: VecDeque<(Place, u64)>,
}

/// What one look at all says.
struct Wanted {
    /// Free, and to be this worker's own.
    free: Vec<Place>,
    /// To be its own, and another one's.
    kept: BTreeSet<Place>,
    /// Some is free and to be another one's, who may be gone.
    orphaned: bool,
}

/// When the next look is due.
#[derive(Clone, Copy, Debug)]
pub(in crate::worker) struct Next {
    pause: Duration,
    alarm: Option<Instant>,
}

impl Next {
    /// In about that time.
    pub(in crate::worker) fn in_time(pause: Duration) -> Self {
        Self { pause, alarm: None }
    }

    /// In that time at the latest.
    pub(in crate::worker) fn within(self, pause: Duration) -> Self {
        let pause = self.pause.min(pause);
        Self { pause, ..self }
    }

    /// Ends when it is due. Not all look at the same time, unless there is a reason.
    pub(in crate::worker) async fn comes(self) {
        let alarm = async {
            match self.alarm {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = tokio::time::sleep(self.pause.mul_f64(fastrand::f64() / 4.0 + 0.75)) => {}
            () = alarm => {}
        }
    }
}

impl Owning {
    /// Whether a partition is its own, or its lane has not ended yet.
    pub(in crate::worker) fn has(&self, place: &Place) -> bool {
        self.own.contains_key(place)
    }

    /// Who is there may have changed.
    pub(in crate::worker) fn told(&mut self) {
        self.learned = None;
    }

    /// One look; when the next one is due.
    ///
    /// # Errors
    /// `Bus`: who is there, or what is open, is not known; the same again.
    pub(in crate::worker) async fn step(
        &mut self,
        maker: &Maker,
        bus: &Domains,
        ordered: &[Ordered],
        running: &Running,
        supervisor: &Supervisor,
    ) -> Result<Next, BusError> {
        let third = maker.settings.heartbeat_ttl / 3;
        self.own.retain(|_, lane| !lane.ended.is_cancelled());
        for ((domain, _), lane) in &self.own {
            if !ordered.iter().any(|one| one.domain == *domain) {
                lane.end.cancel();
            }
        }
        if ordered.is_empty() {
            *self = Self {
                own: std::mem::take(&mut self.own),
                ..Self::default()
            };
            let pause = if self.own.is_empty() { third } else { SOON };
            return Ok(Next::in_time(pause));
        }
        let expired = self.expires.is_some_and(|at| at <= Instant::now());
        if expired || self.is_learned_before(third * 3 / 4) {
            self.learn(maker, ordered).await.map_err(of_the_bus)?;
        }
        let places = |one: &Ordered| {
            let domain = one.domain.clone();
            (0..maker.process.keys.partitions(&domain)).map(move |at| (domain.clone(), at))
        };
        let all: Vec<Place> = ordered.iter().flat_map(places).collect();
        let calls = match maker.process.connector.is_cluster() {
            true => all.len() as u32,
            false => 1,
        };
        self.look(maker, &all).await;
        let mut wanted = self.decide(maker, ordered);
        if wanted.orphaned && self.is_learned_before(SELDOM) {
            self.learn(maker, ordered).await.map_err(of_the_bus)?;
            wanted = self.decide(maker, ordered);
        }
        let orphaned = wanted.orphaned;
        let mut waits = !wanted.kept.is_empty();
        let mut open = Vec::new();
        for place in wanted.free {
            if self.is_gone(maker, &place).await {
                waits = true;
                continue;
            }
            match bus.is_open(&place.0, place.1, &maker.settings.group).await {
                Ok(true) => open.push(place),
                Ok(false) => waits = true,
                Err(error) => {
                    let (domain, partition) = place;
                    tracing::debug!(domain, partition, %error, "whether a partition may be read is not known; asking again");
                    waits = true;
                }
            }
        }
        let some = !open.is_empty();
        let mut begins = Vec::new();
        for place in &open {
            let Some(lease) = self.leases.get(place) else {
                continue;
            };
            let taken = Free {
                place,
                lease,
                over: self.is_over(lease, Instant::now()),
                replaces: !self.tried.contains(place),
            };
            begins.push(taken.begin(maker, running, supervisor));
        }
        let begun = futures_util::stream::iter(begins).buffer_unordered(AT_A_TIME);
        let begun: Vec<(Place, Begun)> = Box::pin(begun.collect()).await;
        for (place, begun) in begun {
            match begun {
                Ok(Some(lane)) => {
                    let fence = lane.owned.as_ref().map(|own| own.fence);
                    self.untold
                        .extend(fence.map(|fence| (place.clone(), fence)));
                    self.own.insert(place.clone(), lane);
                }
                Ok(None) => waits = true,
                Err(error) => {
                    waits = true;
                    let (domain, partition) = &place;
                    tracing::debug!(domain, partition, %error, "a partition could not be taken; trying again");
                    continue;
                }
            }
            self.tried.insert(place);
        }
        Box::pin(telling::tell(maker, &mut self.untold)).await;
        if some {
            self.tell(ordered);
        }
        waits |= self.own.values().any(|lane| lane.end.is_cancelled());
        let now = Instant::now();
        self.waits = waits.then(|| self.waits.unwrap_or(now));
        let pause = match self.waits {
            Some(since) if now - since < PATIENCE => SOON,
            Some(_) => SELDOM,
            None if orphaned => SELDOM,
            // Each renewal is to be seen. The longer a lease lasts, the less happens that nobody tells.
            None => (third * 3 / 4).min(SELDOM.max(third * 3 / 20) * calls.div_ceil(LOOKS)),
        };
        let alarm = self.next_end(now);
        Ok(Next { pause, alarm })
    }

    /// Whether who is there was learned longer ago than that, or never.
    fn is_learned_before(&self, time: Duration) -> bool {
        self.learned.is_none_or(|at| at.elapsed() >= time)
    }

    /// When the next lease ends, or the next member is gone, if it does not renew it, or pulse.
    fn next_end(&self, now: Instant) -> Option<Instant> {
        let ends = self.leases.values().filter_map(Lease::ends);
        let ends = ends.chain(self.expires).filter(|at| *at > now).min();
        ends.map(|at| at.max(now + LEAST))
    }

    /// Whether the stream of a partition was made, and is not there: nothing is written beside it, which might be in the way of
    /// what comes back.
    async fn is_gone(&mut self, maker: &Maker, place: &Place) -> bool {
        let process = &maker.process;
        if !process.connector.is_cluster() {
            return false;
        }
        let gone = async {
            let mut connection = process.connector.pooled().await?;
            made::is_gone(&mut connection, &process.keys, (&place.0, place.1)).await
        };
        let late = || BusError::Pool(format!("no answer within {LIMIT:?}"));
        let gone = tokio::time::timeout(LIMIT, gone).await;
        match gone.unwrap_or_else(|_| Err(late())) {
            Ok(true) => {
                if self.gone.insert(place.clone()) {
                    made::tell(&process.keys.events(&place.0, place.1));
                }
                true
            }
            Ok(false) => {
                self.gone.remove(place);
                false
            }
            Err(error) => {
                let (domain, partition) = place;
                tracing::debug!(domain, partition, %error, "whether its stream is there is not known; asking again");
                true
            }
        }
    }

    async fn learn(&mut self, maker: &Maker, ordered: &[Ordered]) -> Result<(), CoordinationError> {
        let mut members = BTreeMap::new();
        let mut expires: Option<Instant> = None;
        for one in ordered {
            let group = &maker.settings.group;
            let me = &maker.process.instance;
            let found = maker.instances.members(group, &one.kind).await?;
            let answered = Instant::now();
            let others = found.iter().filter(|member| member.id != *me);
            let others = others.map(|member| answered + member.left);
            expires = others.chain(expires).min();
            let found = found.into_iter().map(|member| Member {
                id: member.id,
                capacity: member.capacity,
            });
            let mut found: Vec<Member> = found.collect();
            // After an outage others may have pulsed before this worker did: it lets nothing go for that.
            if !maker.list.is_quiet() && found.iter().all(|member| member.id != *me) {
                found.push(Member {
                    id: me.clone(),
                    capacity: maker.settings.capacity.into(),
                });
            }
            members.insert(one.domain.clone(), found);
        }
        let owners = self.leases.values().filter_map(Lease::owner);
        let owners: Vec<&Owner> = owners.collect();
        let mut ids: Vec<String> = owners.iter().map(|owner| owner.instance.clone()).collect();
        ids.sort_unstable();
        ids.dedup();
        // Not who was declared lost: it may be back, and has its lease as long as it renews it.
        let left = maker.instances.left_among(&ids).await?;
        let left = owners
            .into_iter()
            .filter(|owner| left.contains(&owner.instance));
        self.left = left.cloned().collect();
        self.members = members;
        self.expires = expires;
        self.learned = Some(Instant::now());
        Ok(())
    }

    /// Looks at who owns what.
    async fn look(&mut self, maker: &Maker, all: &[Place]) {
        let part = match maker.process.connector.is_cluster() {
            // Each of them lies in a slot of its own.
            true => 1,
            false => AT_ONCE,
        };
        let mut looks = Vec::new();
        for places in all.chunks(part) {
            looks.push(look_at(maker, places));
        }
        let looks = futures_util::stream::iter(looks).buffer_unordered(AT_A_TIME);
        let looks: Vec<_> = Box::pin(looks.collect()).await;
        let ttl = maker.settings.heartbeat_ttl;
        let known: BTreeSet<&Place> = all.iter().collect();
        self.leases.retain(|place, _| known.contains(place));
        for (places, looked) in looks {
            let (look, looked) = match looked {
                Ok(looked) => looked,
                Err(error) => {
                    tracing::debug!(%error, "who owns partitions is not known; asking again");
                    continue;
                }
            };
            for (place, owner) in places.iter().zip(looked.owners) {
                match owner {
                    Ok(owner) => {
                        let lease = self.leases.entry(place.clone()).or_default();
                        lease.seen(look, owner.as_ref(), ttl);
                    }
                    Err(error) => {
                        let (domain, partition) = place;
                        tracing::warn!(
                            domain,
                            partition,
                            error,
                            "who owns the partition cannot be read"
                        );
                    }
                }
            }
        }
    }

    /// Has lanes end that are to be another one's, and says what is to be the worker's own.
    fn decide(&self, maker: &Maker, ordered: &[Ordered]) -> Wanted {
        let (me, now) = (maker.process.instance.as_str(), Instant::now());
        let ttl = maker.settings.heartbeat_ttl;
        let mut wanted = Wanted {
            free: Vec::new(),
            kept: BTreeSet::new(),
            orphaned: false,
        };
        for one in ordered {
            let Some(members) = self.members.get(&one.domain) else {
                continue;
            };
            let places = |at| (one.domain.clone(), at);
            let places: Vec<Place> = (0..maker.process.keys.partitions(&one.domain))
                .map(places)
                .collect();
            let holds = |place: &Place| match self.own.contains_key(place) {
                true => Some(me),
                false => {
                    let lease = self.leases.get(place)?;
                    let owner = lease.owner().filter(|_| !self.is_over(lease, now))?;
                    Some(owner.instance.as_str())
                }
            };
            let owners: Vec<Option<&str>> = places.iter().map(holds).collect();
            let target = spread(&one.domain, &owners, members);
            for ((place, owner), target) in places.iter().zip(&owners).zip(target) {
                if let Some(lane) = self.own.get(place) {
                    if target != Some(me) && target.is_some() {
                        lane.end.cancel();
                    }
                } else if target == Some(me) {
                    // What nobody could look at is not known to be free.
                    let known = self
                        .leases
                        .get(place)
                        .is_some_and(|lease| lease.is_known(now, ttl));
                    let own = *owner == Some(me) && self.replaces(maker, place);
                    match known && (owner.is_none() || own) {
                        true => wanted.free.push(place.clone()),
                        false => _ = wanted.kept.insert(place.clone()),
                    }
                } else {
                    wanted.orphaned |= owner.is_none();
                }
            }
        }
        wanted
    }

    /// Whether nobody has the lease any more: it ended, or its owner has left.
    fn is_over(&self, lease: &Lease, now: Instant) -> bool {
        let ended = lease.ends().is_none_or(|ends| ends <= now);
        let owner = lease.owner();
        ended || owner.is_none_or(|owner| self.left.contains(owner))
    }

    /// Whether what this instance owns by another process may be taken from it, or is this process's.
    fn replaces(&self, maker: &Maker, place: &Place) -> bool {
        let owner = self.leases.get(place).and_then(Lease::owner);
        let own = owner.is_some_and(|owner| owner.process == maker.instances.process());
        own || !self.tried.contains(place)
    }

    fn tell(&self, ordered: &[Ordered]) {
        for one in ordered {
            let own = self.own.keys().filter(|(domain, _)| *domain == one.domain);
            let own: Vec<String> = own.map(|(_, partition)| partition.to_string()).collect();
            let own = own.join(" ");
            tracing::info!(domain = one.domain, partitions = own, "owns partitions");
        }
    }
}

fn of_the_bus(error: CoordinationError) -> BusError {
    match error {
        CoordinationError::Bus(error) => error,
        other => BusError::Pool(other.to_string()),
    }
}

fn keys_of(keys: &Keys, (domain, partition): &Place, group: &str) -> OwnKeys {
    OwnKeys::of(keys, domain, *partition, group)
}

/// Looks at partitions that one node has.
async fn look_at<'a>(
    maker: &Maker,
    places: &'a [Place],
) -> (&'a [Place], Result<(Look, Looked), BusError>) {
    // A node that is away keeps nobody from what is free elsewhere for long.
    let limit = (maker.settings.heartbeat_ttl / 6).clamp(LOOKS_FOR[0], LOOKS_FOR[1]);
    let looked = tokio::time::timeout(limit, try_to_look_at(maker, places)).await;
    let looked =
        looked.unwrap_or_else(|_| Err(BusError::Pool(format!("no answer within {limit:?}"))));
    (places, looked)
}

async fn try_to_look_at(maker: &Maker, places: &[Place]) -> Result<(Look, Looked), BusError> {
    let (process, group) = (&maker.process, &maker.settings.group);
    let keys = places
        .iter()
        .map(|place| keys_of(&process.keys, place, group));
    let keys: Vec<OwnKeys> = keys.collect();
    let connector = match keys.first() {
        Some(first) => process.connector.toward(&first.owner),
        None => process.connector.clone(),
    };
    let source = connector.clock().await?;
    let mut connection = connector.pooled().await?;
    let asked = Instant::now();
    let looked = own::look(&mut connection, source, &keys).await?;
    let look = Look {
        asked,
        answered: Instant::now(),
        now: looked.now,
        epoch: connector.epoch(),
    };
    Ok((look, looked))
}

/// The lane of a partition that was taken; nothing where another one was faster.
type Begun = Result<Option<Arc<Shared>>, BusError>;

/// A partition that is to be this worker's own.
struct Free<'a> {
    place: &'a Place,
    lease: &'a Lease,
    /// Nobody has the lease any more.
    over: bool,
    /// What another process of this instance has is taken from it.
    replaces: bool,
}

impl Free<'_> {
    /// Takes it, and has a lane run there.
    async fn begin(
        self,
        maker: &Maker,
        running: &Running,
        supervisor: &Supervisor,
    ) -> (Place, Begun) {
        let begun = self.try_to_begin(maker, running, supervisor).await;
        (self.place.clone(), begun)
    }

    async fn try_to_begin(
        &self,
        maker: &Maker,
        running: &Running,
        supervisor: &Supervisor,
    ) -> Begun {
        let (process, ttl) = (&maker.process, maker.settings.heartbeat_ttl);
        let asked = Instant::now();
        let Some(until) = self.lease.until(asked, ttl) else {
            return Ok(None);
        };
        let (keys, group) = (&process.keys, &maker.settings.group);
        let own = keys_of(keys, self.place, group);
        let taking = Taking {
            instance: &process.instance,
            process: maker.instances.process(),
            ttl,
            ended: self.lease.owner().filter(|_| self.over),
            until,
            replaces: self.replaces,
        };
        let connector = process.connector.toward(&own.owner);
        let mut connection = connector.pooled().await?;
        let Some(fence) = own::take(&mut connection, &own, taking).await? else {
            return Ok(None);
        };
        drop(connection);
        let held = keys.held(&self.place.0, self.place.1, group);
        let ownership = Ownership::new([own.owner, own.fence, held], fence, asked, ttl);
        let plan = lane_plans::of_owned(
            &maker.settings,
            process,
            &maker.router,
            self.place.clone(),
            Arc::new(ownership),
        );
        let mut prepared = maker.prepare(plan);
        let lane = prepared.shared().clone();
        if let Err(error) = prepared.committer.start().await {
            drop(prepared);
            maker.list.remove(&lane);
            leave(&lane, maker.instances.process()).await;
            return Err(error);
        }
        prepared.run(running, &maker.ending, supervisor);
        Ok(Some(lane))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connect::epoch::Epoch;

    #[test]
    fn the_alarm_is_for_the_lease_that_ends_next_or_the_member_that_is_silent_for_longest() {
        let began = Instant::now();
        let (second, ttl) = (Duration::from_secs(1), Duration::from_secs(12));
        let mut owning = Owning::default();
        assert_eq!(owning.next_end(began), None);
        for (partition, left) in [(0, 9), (1, 5)] {
            let owner = Owner {
                instance: "w-2".into(),
                process: "p-2".into(),
                till: format!("{}", 7000 + left * 1000),
                ttl,
                since: 1,
            };
            let mut lease = Lease::default();
            // The second look sees a lease that was taken after the first one.
            for (at, owner) in [(0, None), (1, Some(&owner))] {
                let asked = began + second * at;
                let look = Look {
                    asked,
                    answered: asked,
                    now: 6000 + u64::from(at) * 1000,
                    epoch: Epoch(1),
                };
                lease.seen(look, owner, ttl);
            }
            owning.leases.insert(("line".into(), partition), lease);
        }
        let now = began + second;
        let first = owning.leases[&("line".into(), 1)].ends();
        assert!(first.is_some_and(|ends| ends >= now + second * 5 && ends < now + second * 6));
        assert_eq!(owning.next_end(now), first);
        owning.expires = Some(now + second * 2);
        assert_eq!(owning.next_end(now), owning.expires);
        // What is over rings no more; the next one is not at once.
        let over = now + second * 2;
        assert_eq!(owning.next_end(over), first);
        let late = first.map(|first| owning.next_end(first - LEAST / 2));
        assert_eq!(late, Some(first.map(|first| first + LEAST / 2)));
    }
}
