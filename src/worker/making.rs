//! Makes lanes, at the start of a worker and while it runs, and has them run.

use super::Ending;
use super::admission::Share;
use super::inflight::InFlight;
use super::lane::{Lane, LaneEvents};
use super::lane_list::LaneList;
use super::lane_plans::{self, Place, Plan};
use super::lanes::Triggers;
use super::outcomes::Outcomes;
use super::owned::{self, Next, Ordered, Owning, SOON};
use super::pausing::Pausing;
use super::shared::{Counts, Doubt, Shared, Turned};
use super::sparing::Sparing;
use super::supervisor::Supervisor;
use crate::connect::error::BusError;
use crate::connect::silence::Answers;
use crate::coordination::instances::Instances;
use crate::handler::context::Process;
use crate::handler::policy::RetryPolicy;
use crate::handler::router::Router;
use crate::mutex::locked;
use crate::protocol::domain::DomainOrder;
use crate::protocol::keys::StreamKeys;
use crate::settings::Settings;
use crate::streams::commit::{Committer, CommitterOptions};
use crate::streams::domains::{Domains, Use};
use crate::streams::fence::Fence;
use crate::streams::first::Judge;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

type Handle = AbortOnDropHandle<Option<Committer>>;

/// Lanes that run; when all clones are dropped, they run no more.
#[derive(Clone, Default)]
pub(super) struct Running(Arc<Mutex<Vec<Handle>>>);

impl Running {
    /// Waits until all have ended, those that are added meanwhile included. Their committers come back, where none is in
    /// the middle of a commit.
    pub(super) async fn ended(self) -> Vec<Committer> {
        let mut committers = Vec::new();
        loop {
            let some = std::mem::take(&mut *locked(&self.0));
            if some.is_empty() {
                return committers;
            }
            let ended = futures_util::future::join_all(some).await;
            committers.extend(ended.into_iter().flatten().flatten());
        }
    }

    /// One more. Of those that have ended before the worker does nothing is kept.
    fn add(&self, handle: Handle) {
        let mut all = locked(&self.0);
        all.retain(|handle| !handle.is_finished());
        all.push(handle);
    }
}

/// A lane that does not run yet.
pub(super) struct Prepared {
    lane: Lane,
    events: LaneEvents,
    pub(super) committer: Committer,
    after: After,
}

impl Prepared {
    /// What the lane's parts share.
    pub(super) fn shared(&self) -> &Arc<Shared> {
        self.lane.shared()
    }

    /// Has it run, once its committer was started.
    pub(super) fn run(self, running: &Running, ending: &Ending, supervisor: &Supervisor) {
        let Prepared {
            lane,
            events,
            committer,
            after,
        } = self;
        let shared = lane.shared().clone();
        let (end, stop, drain) = (
            shared.end.clone(),
            ending.stop.clone(),
            ending.drain.clone(),
        );
        // It was made before the bus could be joined, perhaps long ago.
        shared.turned.now();
        let supervisor = supervisor.clone();
        running.add(AbortOnDropHandle::new(tokio::spawn(async move {
            let name = format!("lane {}", lane.name());
            let run = Box::pin(lane.run(events, committer, end.clone(), stop));
            // One that ends before its worker does has as long; of the others the worker waits for all.
            let over = async {
                end.cancelled().await;
                tokio::time::sleep(after.patience).await;
                if drain.is_cancelled() {
                    std::future::pending().await
                }
            };
            let run = async {
                tokio::select! {
                    ended = run => ended,
                    () = over => None,
                }
            };
            let ended = supervisor.run(&name, &end, run).await.flatten();
            shared.turned.over();
            shared.doubt.end();
            // Who ends with the worker is counted at its end.
            let stays = drain.is_cancelled();
            if !stays {
                after.list.remove(&shared);
            }
            let left = owned::leave(&shared, &after.process).await;
            shared.ended.cancel();
            // Where it is yet to be told that it ended: another one may own the partition by now.
            after.list.has_other_members();
            if left {
                owned::tell_left(&shared).await;
            }
            ended.filter(|_| stays)
        })));
    }
}

/// What is done when a lane has ended.
struct After {
    list: LaneList,
    /// The name that no other process has.
    process: String,
    /// How long its end may take.
    patience: Duration,
}

/// What lanes are made of.
#[derive(Clone)]
pub(super) struct Maker {
    pub(super) settings: Settings,
    pub(super) process: Arc<Process>,
    pub(super) instances: Instances,
    pub(super) answers: Answers,
    pub(super) router: Arc<Router>,
    pub(super) pausing: Arc<Pausing>,
    pub(super) noted: Option<Outcomes>,
    pub(super) ending: Ending,
    pub(super) list: LaneList,
    pub(super) triggers: Triggers,
    /// See [`Shared::urgent`].
    pub(super) urgent: Arc<AtomicBool>,
}

impl Maker {
    /// Makes one. Whoever looks after lanes sees it from now on.
    pub(super) fn prepare(&self, plan: Plan) -> Prepared {
        let Maker {
            settings, process, ..
        } = self;
        let connector = process.connector.toward(&plan.routes[0].events);
        let judge = Judge::new(connector.clone());
        let routes: Arc<[StreamKeys]> = plan.routes.into();
        let claims_key = |(domain, partition): &(String, u16)| {
            process.keys.claims(domain, *partition, &process.instance)
        };
        let committer = Committer::new(CommitterOptions {
            connector: connector.clone(),
            routes: routes.clone(),
            claims: plan.places.iter().map(claims_key).collect(),
            group: settings.group.clone(),
            consumer: process.instance.clone(),
            reply_ttl: settings.reply_ttl,
            reply_history: settings.stream_history,
            stop: self.ending.stop.clone(),
        });
        let fence = plan.owned.as_ref().map(|owned| {
            let (key, held) = (&owned.fence_key, &owned.held_key);
            let fence = Fence::new(key, owned.fence, held, owned.lost.clone());
            Arc::new(fence.in_epoch(connector.epoch()))
        });
        let committer = match &fence {
            None => committer,
            Some(fence) => committer.fenced(fence.clone()),
        };
        let after = After {
            list: self.list.clone(),
            process: self.instances.process().to_owned(),
            patience: settings.drain_timeout,
        };
        let pool = plan.owned.as_ref().map(|_| self.list.pool());
        let lane = Arc::new(Shared {
            name: plan.name,
            routes,
            places: plan.places,
            inbox: plan.inbox,
            owned: plan.owned,
            fence,
            end: self.ending.drain.child_token(),
            ended: CancellationToken::new(),
            group: settings.group.clone(),
            connector,
            process: process.clone(),
            router: self.router.clone(),
            pausing: self.pausing.clone(),
            instances: self.instances.clone(),
            limits: settings.limits(),
            inflight: Arc::new(InFlight::default()),
            claims: committer.claims(),
            slots: AtomicUsize::new(plan.concurrency),
            pool,
            quiet: AtomicBool::new(false),
            may_hold: AtomicBool::new(true),
            urgent: self.urgent.clone(),
            share: Share {
                slots: plan.concurrency + plan.beside,
                beside: plan.beside,
                percent: plan.share.into(),
            },
            claim_idle: settings.claim_idle,
            max_deliveries: settings.max_deliveries,
            retry: RetryPolicy::from(settings),
            judge,
            unasked: Mutex::new(Sparing::new(Instant::now())),
            dedup_window: settings.dedup_window,
            ignore: settings.ignore.clone().into(),
            soon: Notify::new(),
            counts: Counts::default(),
            turned: Turned::default(),
            doubt: Doubt::default(),
            patience: settings.claim_idle.min(settings.heartbeat_ttl) / 3,
            answers: self.answers.clone(),
        });
        self.list.add(lane.clone());
        let (lane, events) = Lane::new(lane, self.triggers.add(), self.noted.clone());
        Prepared {
            lane,
            events,
            committer,
            after,
        }
    }
}

/// The partitions that a worker reads, and those that it has yet to begin with.
///
/// One of a domain without an order is read by all workers, one of a domain with an order by its owner alone.
pub(super) struct DataLanes {
    maker: Maker,
    domains: BTreeSet<String>,
    /// A type of each domain that there is a handler for.
    handled: BTreeMap<String, String>,
    bus: Domains,
    begun: BTreeSet<Place>,
    /// The lanes of the partitions that are begun with, as far as they have not ended.
    lanes: Vec<Arc<Shared>>,
    /// Made, and not running yet.
    prepared: Vec<Prepared>,
    owning: Owning,
    /// Whether it was said that changes are not followed.
    said: AtomicBool,
}

impl DataLanes {
    pub(super) fn new(maker: Maker) -> Self {
        let process = &maker.process;
        Self {
            domains: lane_plans::domains(&maker.settings, &maker.router),
            handled: lane_plans::handled(&maker.router),
            bus: Domains::new(process.connector.clone(), process.keys.clone()),
            begun: BTreeSet::new(),
            lanes: Vec::new(),
            prepared: Vec::new(),
            owning: Owning::default(),
            said: AtomicBool::new(false),
            maker,
        }
    }

    /// Learns how many partitions there are: those of the own domains are written where nobody used them before.
    ///
    /// # Errors
    /// `Bus`.
    pub(super) async fn learn(&self) -> Result<(), BusError> {
        let own: Vec<&str> = self.domains.iter().map(String::as_str).collect();
        self.bus.learn(&own, Use::Works).await?;
        if let Err(error) = self.bus.keep(&own).await {
            tracing::debug!(%error, "whether the server forgot how many partitions there are is not known");
        }
        let keys = &self.maker.process.keys;
        let unknown = own
            .iter()
            .find(|it| keys.is_split(it) && keys.domain(it).is_none());
        if let Some(domain) = unknown
            && !self.said.swap(true, Ordering::Relaxed)
        {
            tracing::warn!(
                domain,
                "how many partitions there are may not be looked at, or cannot be read: the setting counts, and changes are \
                 not followed (deploy/users.acl, convoke doctor)"
            );
        }
        // What runs publish goes to others.
        if let Err(error) = self.bus.learn_all().await {
            tracing::debug!(%error, "how many partitions the other domains have is not known");
        }
        Ok(())
    }

    /// Whether each partition of a domain has an owner that alone reads it.
    fn is_owned(&self, domain: &str) -> bool {
        let is = self.maker.process.keys.domain(domain);
        is.is_some_and(|is| is.order == DomainOrder::Subject)
    }

    fn ordered_domains(&self) -> BTreeSet<String> {
        let ordered = self.domains.iter().filter(|domain| self.is_owned(domain));
        ordered.cloned().collect()
    }

    /// The domains of which this worker may own partitions.
    pub(super) fn ordered(&self) -> Vec<Ordered> {
        let ordered = self
            .handled
            .iter()
            .filter(|(domain, _)| self.is_owned(domain));
        let ordered = ordered.map(|(domain, kind)| Ordered {
            domain: domain.clone(),
            kind: kind.clone(),
        });
        ordered.collect()
    }

    /// Who is there may have changed.
    pub(super) fn members_changed(&mut self) {
        self.owning.told();
    }

    /// Tells the others that this worker is to own nothing more, as it leaves.
    pub(super) async fn leave(&self) {
        let Maker {
            instances,
            process,
            settings,
            ..
        } = &self.maker;
        for Ordered { domain, kind } in self.ordered() {
            let left = instances.reads_no_more(&settings.group, &process.instance, &kind);
            if let Err(error) = left.await {
                tracing::debug!(domain, %error, "the others are not told that this worker owns nothing more");
            }
        }
    }

    /// Has lanes end that read partitions of domains which have an order by now; whether any is yet to end.
    fn end_what_is_owned(&mut self) -> bool {
        let ordered: BTreeSet<String> = self.ordered_domains();
        let owned = |lane: &Shared| {
            lane.places
                .iter()
                .any(|(domain, _)| ordered.contains(domain))
        };
        let mut over = Vec::new();
        let mut waits = false;
        for lane in &self.lanes {
            if owned(lane) && !lane.end.is_cancelled() {
                tracing::info!(
                    streams = lane.streams(),
                    "its domain has an order: each partition gets an owner"
                );
                lane.end.cancel();
            }
            waits |= lane.end.is_cancelled() && !lane.ended.is_cancelled();
            if lane.ended.is_cancelled() {
                over.extend(lane.places.iter().cloned());
            }
        }
        let unbegun = |prepared: &mut Prepared| owned(prepared.shared());
        let unbegun: Vec<Prepared> = self.prepared.extract_if(.., unbegun).collect();
        for prepared in unbegun {
            let lane = prepared.shared().clone();
            drop(prepared);
            self.maker.list.remove(&lane);
            over.extend(lane.places.iter().cloned());
            lane.ended.cancel();
        }
        self.begun.retain(|place| !over.contains(place));
        self.lanes.retain(|lane| !lane.ended.is_cancelled());
        waits
    }

    /// The partitions that were not begun with: those that may be now, and whether others must wait.
    async fn next(&self) -> (Vec<Place>, bool) {
        let (mut open, mut waits) = (Vec::new(), false);
        for domain in self.domains.iter().filter(|domain| !self.is_owned(domain)) {
            for partition in 0..self.maker.process.keys.partitions(domain) {
                let place = (domain.clone(), partition);
                if self.begun.contains(&place) {
                    continue;
                }
                // Its domain has no order any more: who owned it finishes what runs.
                if self.owning.has(&place) {
                    waits = true;
                    continue;
                }
                let group = &self.maker.settings.group;
                match self.bus.is_open(domain, partition, group).await {
                    Ok(true) => open.push(place),
                    Ok(false) => waits = true,
                    Err(error) => {
                        tracing::debug!(domain, partition, %error, "whether a partition may be read is not known; asking again");
                        waits = true;
                    }
                }
            }
        }
        (open, waits)
    }

    /// Makes the lanes of the partitions that may be read by now; whether others must wait.
    pub(super) async fn prepare(&mut self) -> bool {
        let (open, waits) = self.next().await;
        self.begun.extend(open.iter().cloned());
        let maker = &self.maker;
        for plan in lane_plans::of_data(&maker.settings, &maker.process, &maker.router, open) {
            let prepared = maker.prepare(plan);
            self.lanes.push(prepared.shared().clone());
            self.prepared.push(prepared);
        }
        waits
    }

    /// Fences older processes of this name where they may still read.
    ///
    /// # Errors
    /// `Bus`: a node is away; the same again.
    pub(super) async fn fence(&mut self) -> Result<(), BusError> {
        for prepared in &mut self.prepared {
            prepared.lane.shared().turned.now();
            prepared.committer.start().await?;
        }
        Ok(())
    }

    /// Has those run that were made.
    pub(super) fn run(&mut self, running: &Running, supervisor: &Supervisor) {
        for prepared in self.prepared.drain(..) {
            prepared.run(running, &self.maker.ending, supervisor);
        }
    }

    /// Begins with the partitions that may be read by now, and with those that are to be this worker's own, and has lanes
    /// end whose partitions others are to own; when it is to be done again.
    ///
    /// # Errors
    /// `Bus`: a node is away; the same again.
    pub(super) async fn go_on(
        &mut self,
        running: &Running,
        supervisor: &Supervisor,
    ) -> Result<Next, BusError> {
        let ends = self.end_what_is_owned();
        let mut ordered = self.ordered();
        if ends {
            // What this worker still runs of a domain runs before what it is to own.
            let ending = self.lanes.iter().flat_map(|lane| lane.places.iter());
            let ending: BTreeSet<&String> = ending.map(|(domain, _)| domain).collect();
            ordered.retain(|one| !ending.contains(&one.domain));
        }
        let owning = self
            .owning
            .step(&self.maker, &self.bus, &ordered, running, supervisor);
        let owned = Box::pin(owning).await;
        let shared = self.go_on_with_shared(running, supervisor).await;
        let shared = match shared? || ends {
            true => SOON,
            false => self.maker.settings.heartbeat_ttl / 3,
        };
        Ok(owned?.within(shared))
    }

    /// Whether others must wait.
    async fn go_on_with_shared(
        &mut self,
        running: &Running,
        supervisor: &Supervisor,
    ) -> Result<bool, BusError> {
        let waits = self.prepare().await;
        let streams = self.prepared.iter().flat_map(|one| {
            let routes = one.lane.shared().routes.iter();
            routes.map(|route| route.events.clone())
        });
        let streams: Vec<String> = streams.collect();
        let mut away = None;
        for mut prepared in std::mem::take(&mut self.prepared) {
            match prepared.committer.start().await {
                Ok(()) => prepared.run(running, &self.maker.ending, supervisor),
                // Its node is away: it keeps none of the others waiting, and is no lane that hangs.
                Err(error) => {
                    away = Some(error);
                    self.prepared.push(prepared);
                }
            }
        }
        for prepared in &self.prepared {
            prepared.lane.shared().turned.now();
        }
        if let Some(error) = away {
            return Err(error);
        }
        if !streams.is_empty() {
            tracing::info!(streams = streams.join(" "), "reads more partitions");
        }
        Ok(waits)
    }
}
