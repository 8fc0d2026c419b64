//! What the parts of `system.get_state` show is what is there: instances, leader, tasks, batches,
//! decisions, streams, facts.

mod shown;

use crate::run::Scenario;
use crate::support::ballots::id;
use crate::world::{DAY, HOUR, MINUTE, SECOND, Tail, World};
use convoke::coordination::ballots::ballot::{
    BallotStatus as Ballot, DEFAULT_EXPIRES_IN_MS, Vote as NewVote,
};
use convoke::coordination::ballots::{Ballots, KEPT as BALLOTS_KEPT};
use convoke::coordination::batches::batch::{BatchPlan, Mode};
use convoke::coordination::batches::{
    ABANDONED, Acquired, Advanced, Asker, Batches, FinishedItem, KEPT as BATCHES_KEPT,
};
use convoke::coordination::error::CoordinationError;
use convoke::coordination::instances::instance::Registering;
use convoke::coordination::instances::{Instances, RECENTLY};
use convoke::coordination::tasks::Tasks;
use convoke::coordination::tasks::task::{NewTask, TaskStatus};
use convoke::coordination::view::View;
use convoke::protocol::event::Entry;
use proptest::prelude::*;
use redis::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const TTL: u64 = 30_000;
const LEASE: u64 = 30_000;
const TOTAL: usize = 4;
const STREAM: &str = "cb:events:image";
const GROUP: &str = "workers";

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Join(u8),
    Leave(u8),
    Sweep,
    Contend(u8),
    Create { task: u8, priority: u8 },
    Cancel(u8),
    Hold { batch: u8, who: u8 },
    Finish { batch: u8, item: u8 },
    Vote { decision: u8, voter: u8, value: u8 },
    Publish,
    Read { count: u8 },
    Acknowledge,
}

use Step::*;

struct Member {
    expires: u64,
    incarnation: u64,
}

struct Batched {
    fence: u64,
    finished: BTreeSet<u8>,
    /// When it was reported last.
    told: u64,
    kept: u64,
    processor: u8,
    runs: bool,
    expires: u64,
}

struct Voted {
    opened: u64,
    status: Ballot,
    votes: u64,
    expires: u64,
    kept: u64,
}

pub(crate) struct Scene {
    instances: Instances,
    service: Tasks,
    batches: Batches,
    ballots: Ballots,
    view: View,
    members: BTreeMap<u8, Member>,
    /// When each was lost, and until when any counts as that.
    lost: BTreeMap<u8, u64>,
    lost_until: u64,
    /// Who leads in which incarnation, until when.
    leader: Option<(u8, u64, u64)>,
    /// Those that wait, in their order; and how many were cancelled.
    waiting: BTreeSet<(u8, u64, u8)>,
    tasks: BTreeMap<u8, TaskStatus>,
    created: u64,
    ended: BTreeMap<u8, u64>,
    cancelled: u64,
    held: BTreeMap<u8, Batched>,
    decisions: BTreeMap<u8, Voted>,
    runs: u64,
    facts: Vec<Entry>,
    broadcast: Tail,
    /// Entries published, read and acknowledged.
    stream: (u64, Vec<String>),
    read: u64,
    /// How often the server was started when the case began.
    restarts: u64,
}

fn task(number: u8) -> String {
    format!("t-{number}")
}

fn batch(number: u8) -> String {
    format!("b-{number}")
}

fn decision(number: u8) -> String {
    format!("d-{number}")
}

fn ms(duration: Duration) -> u64 {
    duration.as_millis() as u64
}

fn wanted(number: u8) -> BatchPlan {
    let items: Vec<Vec<u8>> = (0..TOTAL).map(|n| vec![n as u8]).collect();
    BatchPlan::new(&batch(number), "number.add", Mode::Exclusive, &items, LEASE).unwrap()
}

impl Scene {
    fn is_alive(&self, number: u8, now: u64) -> bool {
        self.members.get(&number).is_some_and(|is| is.expires > now)
    }

    fn leads(&self, now: u64) -> Option<u8> {
        let (number, _, until) = self.leader?;
        (until > now && self.is_alive(number, now)).then_some(number)
    }

    /// Forgets what has expired, which the look after it does on the server.
    fn forget(&mut self, now: u64) {
        if self.lost_until < now {
            self.lost.clear();
        }
        self.held.retain(|_, batch| batch.kept >= now);
        self.decisions.retain(|_, ballot| ballot.kept >= now);
    }

    async fn hold(&mut self, number: u8, who: u8, now: u64) {
        self.runs += 1;
        let (instance, run) = (id(who), format!("r-{}", self.runs));
        let asker = Asker {
            instance: &instance,
            run: &run,
            entry: &run,
            deliveries: 1,
            event: &run,
            may_hold: true,
        };
        let known = self.held.get(&number);
        match self.batches.acquire(&wanted(number), asker).await.unwrap() {
            Acquired::Held(progress, _) => {
                assert!(known.is_none_or(|known| known.runs && known.expires <= now));
                let finished = self.held.remove(&number).map(|known| known.finished);
                let held = Batched {
                    fence: progress.fence,
                    finished: finished.unwrap_or_default(),
                    told: now,
                    kept: now + ms(ABANDONED),
                    processor: who,
                    runs: true,
                    expires: now + LEASE,
                };
                self.held.insert(number, held);
            }
            Acquired::Busy { .. } => assert!(known.is_some_and(|is| is.runs && is.expires > now)),
            Acquired::Completed(_) => assert!(known.is_some_and(|known| !known.runs)),
            Acquired::Free => panic!("it may hold"),
            Acquired::Shared(..) => panic!("each has a holder"),
            Acquired::Cancelled(why) => panic!("nobody cancels: {why}"),
        }
    }

    async fn finish(&mut self, number: u8, item: u8, now: u64) {
        let Some(held) = self.held.get_mut(&number) else {
            return;
        };
        let outcome = FinishedItem {
            index: item.into(),
            failure: None,
        };
        let done = self
            .batches
            .progress(&wanted(number), held.fence, &[outcome], &[])
            .await;
        if held.runs && held.finished.insert(item) {
            (held.expires, held.kept) = (now + LEASE, now + ms(ABANDONED));
            if held.finished.len() == TOTAL {
                (held.runs, held.told) = (false, now);
                held.kept = now + ms(BATCHES_KEPT);
            } else if now.abs_diff(held.told) >= 250 {
                held.told = now;
            }
        }
        match done.unwrap() {
            Advanced::Running(_) => assert!(held.runs),
            Advanced::Completed(_) => assert!(!held.runs),
            Advanced::Lost(_) => panic!("its fence is the last one"),
        }
    }

    async fn vote(&mut self, number: u8, voter: u8, value: u8, now: u64) {
        let vote = NewVote::new(decision(number), id(voter), vec![value]);
        match self.ballots.vote(&vote).await {
            Ok(voted) => {
                let new = Voted {
                    opened: now,
                    status: Ballot::Open,
                    votes: 0,
                    expires: now + DEFAULT_EXPIRES_IN_MS,
                    kept: now + DEFAULT_EXPIRES_IN_MS + ms(BALLOTS_KEPT),
                };
                let known = self.decisions.entry(number).or_insert(new);
                let ended = matches!(voted.status, Ballot::Decided | Ballot::Deadlocked);
                if ended && known.status != voted.status {
                    known.kept = now + ms(BALLOTS_KEPT);
                }
                (known.status, known.votes) = (voted.status, voted.vote_count);
            }
            Err(CoordinationError::FailedPrecondition(_) | CoordinationError::AlreadyExists(_)) => {
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// One entry more, and one that a worker reads or acknowledges.
    async fn stream(&mut self, world: &mut World, step: &Step) {
        let mut pipe = redis::pipe();
        match step {
            Publish => {
                let domain = pipe.cmd("ZADD").arg(world.keys.read_domains());
                domain.arg(world.now).arg("image").ignore();
                let create = pipe.cmd("XGROUP").arg("CREATE").arg(STREAM).arg(GROUP);
                create.arg("0").arg("MKSTREAM").ignore();
                pipe.cmd("XADD")
                    .arg(STREAM)
                    .arg(&["*", "type", "image.made"])
                    .ignore();
                self.stream.0 += 1;
                pipe.ignore_errors();
            }
            Read { count } if self.stream.0 > self.read => {
                let read = pipe
                    .cmd("XREADGROUP")
                    .arg(&["GROUP", GROUP, "w-1", "COUNT"]);
                read.arg(count).arg("STREAMS").arg(STREAM).arg(">");
                type Reply = Vec<(String, Vec<(String, Vec<String>)>)>;
                let (mut reply,): (Reply,) = world.look(&pipe).await;
                let ids = reply.remove(0).1.into_iter().map(|(id, _)| id);
                let before = self.stream.1.len();
                self.stream.1.extend(ids);
                self.read += (self.stream.1.len() - before) as u64;
                return;
            }
            Acknowledge if !self.stream.1.is_empty() => {
                let acknowledge = pipe.cmd("XACK").arg(STREAM).arg(GROUP);
                acknowledge.arg(self.stream.1.remove(0)).ignore();
            }
            _ => return,
        }
        let _: Value = world.look(&pipe).await;
    }
}

impl Scenario for Scene {
    const NAME: &'static str = "states";
    const SHARE: u64 = 5;
    const CLOCK: &'static [i64] = &[
        1,
        200,
        SECOND,
        10 * SECOND,
        20 * SECOND,
        -10 * SECOND,
        5 * MINUTE,
        5 * MINUTE,
        -5 * MINUTE,
        HOUR,
        -HOUR,
        DAY,
        -DAY,
    ];
    type Step = Step;

    fn steps() -> BoxedStrategy<Step> {
        let who = || 0..4u8;
        prop_oneof![
            4 => who().prop_map(Join),
            1 => who().prop_map(Leave),
            2 => Just(Sweep),
            2 => who().prop_map(Contend),
            3 => (0..12u8, 0..3u8)
                .prop_map(|(task, priority)| Create { task, priority: priority * 50 }),
            2 => (0..12u8).prop_map(Cancel),
            2 => (0..3u8, who()).prop_map(|(batch, who)| Hold { batch, who }),
            4 => (0..3u8, 0..TOTAL as u8).prop_map(|(batch, item)| Finish { batch, item }),
            4 => (0..3u8, who(), 0..2u8)
                .prop_map(|(decision, voter, value)| Vote { decision, voter, value }),
            1 => Just(Publish),
            1 => (1..3u8).prop_map(|count| Read { count }),
            1 => Just(Acknowledge),
        ]
        .boxed()
    }

    fn begin(world: &World) -> Self {
        let (connector, keys) = (world.connector.clone(), world.keys.clone());
        Self {
            instances: Instances::of_process(connector.clone(), keys.clone(), "test"),
            service: Tasks::new(connector.clone(), keys.clone()),
            batches: Batches::new(connector.clone(), keys.clone()),
            ballots: Ballots::new(connector.clone(), keys.clone()),
            view: View::new(connector, keys),
            members: BTreeMap::new(),
            lost: BTreeMap::new(),
            lost_until: 0,
            leader: None,
            waiting: BTreeSet::new(),
            tasks: BTreeMap::new(),
            created: 0,
            ended: BTreeMap::new(),
            cancelled: 0,
            held: BTreeMap::new(),
            decisions: BTreeMap::new(),
            runs: 0,
            facts: Vec::new(),
            broadcast: Tail::default(),
            stream: (0, Vec::new()),
            read: 0,
            restarts: world.restarts,
        }
    }

    async fn take(&mut self, world: &mut World, step: &Step, lost: bool) {
        let now = world.now;
        for _ in 0..1 + u8::from(lost) {
            match *step {
                Join(number) => {
                    let registering = Registering::new(id(number), ["gpu"]);
                    let done = self.instances.register(&registering).await.unwrap();
                    let (expires, incarnation) = (now + TTL, done.incarnation);
                    self.members.insert(
                        number,
                        Member {
                            expires,
                            incarnation,
                        },
                    );
                    self.lost.remove(&number);
                }
                Leave(number) => {
                    self.instances.unregister(&id(number), None).await.unwrap();
                    self.members.remove(&number);
                }
                Sweep => {
                    self.instances.sweep(16).await.unwrap();
                    let late = self.members.iter().filter(|(_, is)| is.expires <= now);
                    let late: Vec<u8> = late.map(|(number, _)| *number).collect();
                    for number in late {
                        self.members.remove(&number);
                        self.lost.retain(|_, at| *at + ms(RECENTLY) > now);
                        self.lost.insert(number, now);
                        self.lost_until = now + ms(RECENTLY);
                    }
                }
                Contend(number) => {
                    let incarnation = self.members.get(&number).map_or(0, |is| is.incarnation);
                    let contest = self
                        .instances
                        .contend(&id(number), incarnation)
                        .await
                        .unwrap();
                    let leads = self.leads(now);
                    let wins = self.is_alive(number, now) && leads.is_none_or(|is| is == number);
                    assert_eq!(contest.lead.is_some(), wins);
                    if wins {
                        self.leader = Some((number, incarnation, self.members[&number].expires));
                    }
                }
                Create {
                    task: number,
                    priority,
                } => {
                    let mut new = NewTask::new(task(number), "a.b");
                    new.priority = priority;
                    match self.service.create(&new).await {
                        Err(CoordinationError::AlreadyExists(_)) => {
                            assert!(self.tasks.contains_key(&number));
                        }
                        created => {
                            let is = created.unwrap().status;
                            let known = self.tasks.entry(number).or_insert(TaskStatus::Pending);
                            assert_eq!(is, *known);
                            let mut known = self.waiting.iter().map(|(_, _, number)| number);
                            if is == TaskStatus::Pending && known.all(|known| *known != number) {
                                self.created += 1;
                                self.waiting.insert((100 - priority, self.created, number));
                            }
                        }
                    }
                }
                Cancel(number) => {
                    let cancelled = self.service.cancel(&task(number), "").await;
                    assert_eq!(cancelled.is_ok(), self.tasks.contains_key(&number));
                    let before = self.waiting.len();
                    self.waiting.retain(|(_, _, known)| *known != number);
                    if self.waiting.len() < before {
                        self.cancelled += 1;
                        // What ended a day ago is forgotten when another one ends.
                        self.ended.insert(number, now);
                        let old = self.ended.iter().filter(|(_, at)| **at + DAY as u64 <= now);
                        let old: Vec<u8> = old.map(|(number, _)| *number).collect();
                        for number in old {
                            self.ended.remove(&number);
                            self.tasks.remove(&number);
                        }
                        self.tasks.insert(number, TaskStatus::Cancelled);
                    }
                }
                Hold { batch, who } => self.hold(batch, who, now).await,
                Finish { batch, item } => self.finish(batch, item, now).await,
                Vote {
                    decision,
                    voter,
                    value,
                } => self.vote(decision, voter, value, now).await,
                Publish | Read { .. } | Acknowledge => self.stream(world, step).await,
            }
        }
    }

    async fn check(&mut self, world: &mut World) {
        let now = world.now;
        self.forget(now);
        let mut pipe = redis::pipe();
        pipe.cmd("EXISTS").arg(world.keys.lost()).ignore();
        self.broadcast.ask(&mut pipe, &world.keys.broadcast());
        let (facts,): (Value,) = world.look(&pipe).await;
        self.facts.extend(self.broadcast.read(facts));
        self.check_instances(now).await;
        self.check_work(now).await;
        // The server's file does not tell how much a group read.
        let knows_lag = world.restarts == self.restarts;
        self.check_streams(knows_lag).await;
    }
}
