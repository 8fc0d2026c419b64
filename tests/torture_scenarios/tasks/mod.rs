//! Tasks: each is in one place, with one holder under one fence, and ends once.

mod invariants;
mod model;
mod step;
mod words;

use crate::run::Scenario;
use crate::world::{DAY, HOUR, SECOND, Tail, World};
use convoke::coordination::error::CoordinationError;
use convoke::coordination::instances::Instances;
use convoke::coordination::instances::instance::{Beat, Registering};
use convoke::coordination::tasks::list::TaskCounts;
use convoke::coordination::tasks::task::{NewTask, Task, TaskStatus};
use convoke::coordination::tasks::{Assignment, Tasks};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use step::Step::*;

pub(crate) use step::Step;

const KINDS: [&str; 3] = ["a.b", "c.d", "e.f"];
const ROLES: [&str; 2] = ["worker", "gpu"];
const INSTANCES: u8 = 4;
const TASKS: u8 = 12;
const TTL: u64 = 30_000;
/// How long what has ended is kept.
const KEPT: u64 = DAY as u64;

/// What an instance said of itself, as far as it is active.
#[derive(Clone, Debug)]
struct Member {
    capacity: u32,
    kinds: BTreeSet<String>,
    roles: BTreeSet<String>,
    expires: u64,
    /// Whether it takes its work by itself.
    claims: bool,
}

impl Member {
    fn fits(&self, task: &Task) -> bool {
        let able = match self.kinds.is_empty() {
            true => task.requires.is_empty(),
            false => {
                let mut needed = task.requires.iter().chain([&task.kind]);
                needed.all(|kind| self.kinds.contains(kind))
            }
        };
        able && self.roles.contains(&task.role)
    }
}

pub(crate) struct Scene {
    instances: Instances,
    /// As events ask for changes.
    asked: Instances,
    service: Tasks,
    members: BTreeMap<String, Member>,
    tasks: BTreeMap<String, Task>,
    /// In which order they were created.
    serials: HashMap<String, usize>,
    created: usize,
    /// Every assignment ever seen, with its holder.
    fences: BTreeMap<u64, (String, String)>,
    completed: BTreeSet<String>,
    /// Every report of a failure that took effect, with its answer.
    failures: Vec<(Assignment, TaskStatus)>,
    /// Whether somebody may have come back to life beside what waits: a look finds that.
    unseen: bool,
    alive: BTreeSet<String>,
    broadcast: Tail,
    inboxes: Vec<Tail>,
    delivered: BTreeSet<u64>,
    /// The fences that claims were answered with.
    told: BTreeSet<u64>,
    /// The last claims, each with what it was answered.
    claims: Vec<(String, Vec<(String, u64)>)>,
    /// Events that asked for something.
    words: u32,
    /// What somebody's word gave past others in this step.
    out_of_turn: Option<String>,
    /// How all are after the step, once that was asked.
    seen: Option<(TaskCounts, Vec<Task>)>,
}

fn picked<'a>(names: &'a [&'a str], bits: u8) -> impl Iterator<Item = String> + 'a {
    let chosen = names.iter().enumerate();
    chosen
        .filter(move |(bit, _)| bits & (1 << bit) != 0)
        .map(|(_, name)| (*name).to_owned())
}

fn worker(number: u8) -> String {
    format!("w-{number}")
}

/// The one that no process registered.
pub(crate) const EXTERNAL: u8 = INSTANCES - 1;

fn name(task: u8) -> String {
    format!("t-{task:02}")
}

fn has_ended(status: TaskStatus) -> bool {
    !matches!(status, TaskStatus::Pending | TaskStatus::Assigned)
}

impl Scenario for Scene {
    const NAME: &'static str = "tasks";
    const SHARE: u64 = 12;
    const CLOCK: &'static [i64] = &[
        SECOND,
        SECOND,
        20 * SECOND,
        20 * SECOND,
        -20 * SECOND,
        30 * SECOND,
        HOUR,
        -HOUR,
        DAY,
        -DAY,
    ];
    type Step = Step;

    fn steps() -> BoxedStrategy<Step> {
        let requires = prop_oneof![6 => Just(0), 1 => 0..8u8];
        // Most in one lane, where they can pass each other.
        let kind = prop_oneof![4 => Just(0), 1 => 0..3u8];
        let role = prop_oneof![4 => Just(0), 1 => 0..2u8];
        let create = (0..TASKS, kind, role, 0..3u8, 1..4u32, requires).prop_map(
            |(task, kind, role, priority, attempts, requires)| Create {
                task,
                kind,
                role,
                priority: priority * 50,
                attempts,
                requires,
            },
        );
        let (instance, task) = (|| 0..INSTANCES, || 0..TASKS);
        let register =
            (instance(), 0..4u32, 0..8u8, 1..4u8).prop_map(|(instance, capacity, kinds, roles)| {
                Register {
                    instance,
                    capacity,
                    kinds,
                    roles,
                }
            });
        prop_oneof![
            6 => create,
            4 => register,
            4 => instance().prop_map(Pulse),
            1 => instance().prop_map(Unregister),
            2 => instance().prop_map(Lose),
            1 => Just(Sweep),
            1 => instance().prop_map(Begin),
            1 => instance().prop_map(Retire),
            6 => task().prop_map(Complete),
            3 => (task(), any::<bool>()).prop_map(|(task, again)| Fail(task, again)),
            2 => task().prop_map(Cancel),
            2 => (task(), 0..3u8, prop::option::of(0..8u8)).prop_map(|(task, priority, requires)| {
                Update(task, priority * 50, requires)
            }),
            3 => (task(), instance()).prop_map(|(task, instance)| Assign(task, instance)),
            2 => task().prop_map(Unassign),
            4 => (1..4u8, prop_oneof![4 => Just(0), 1 => 0..8u8])
                .prop_map(|(limit, kinds)| Claim(limit, kinds)),
            1 => any::<u8>().prop_map(ClaimAgain),
            2 => any::<u16>().prop_map(Repeat),
            2 => (any::<u16>(), any::<bool>()).prop_map(|(index, done)| Stale(index, done)),
            2 => Just(Look),
        ]
        .boxed()
    }

    fn begin(world: &World) -> Self {
        let (connector, keys) = (world.connector.clone(), world.keys.clone());
        Self {
            instances: Instances::of_process(connector.clone(), keys.clone(), "test"),
            asked: Instances::new(connector.clone(), keys.clone()),
            service: Tasks::new(connector, keys),
            members: BTreeMap::new(),
            tasks: BTreeMap::new(),
            serials: HashMap::new(),
            created: 0,
            fences: BTreeMap::new(),
            completed: BTreeSet::new(),
            failures: Vec::new(),
            unseen: false,
            alive: BTreeSet::new(),
            broadcast: Tail::default(),
            inboxes: (0..INSTANCES).map(|_| Tail::default()).collect(),
            delivered: BTreeSet::new(),
            told: BTreeSet::new(),
            claims: Vec::new(),
            words: 0,
            out_of_turn: None,
            seen: None,
        }
    }

    async fn take(&mut self, world: &mut World, step: &Step, lost: bool) {
        match *step {
            Create {
                task,
                kind,
                role,
                priority,
                attempts,
                requires,
            } => {
                let id = name(task);
                let mut new = NewTask::new(&id, KINDS[usize::from(kind)]);
                new.role = ROLES[usize::from(role)].into();
                new.priority = priority;
                new.max_attempts = attempts;
                new.requires = picked(&KINDS, requires).collect();
                if lost {
                    self.service.create(&new).await.ok();
                }
                let created = self.service.create(&new).await;
                match (self.tasks.get(&id), created) {
                    (None, Ok(created)) => {
                        let is = self.task(&id).await;
                        assert_eq!(created.status, is.status);
                        assert_eq!(created.assigned_to, is.instance);
                        assert!(matches!(
                            is.status,
                            TaskStatus::Pending | TaskStatus::Assigned
                        ));
                        assert_eq!(is.attempt, u32::from(is.status == TaskStatus::Assigned));
                        self.created += 1;
                        self.serials.insert(id, self.created);
                    }
                    (Some(known), Ok(created)) => assert_eq!(created.status, known.status),
                    (Some(_), Err(CoordinationError::AlreadyExists(_))) => {}
                    (_, other) => panic!("{other:?}"),
                }
            }
            Register {
                instance,
                capacity,
                kinds,
                roles,
            } => {
                let id = worker(instance);
                let was = self.members.get(&id);
                // One that nobody speaks for starts again once it is past its expiry.
                let ends = instance == EXTERNAL && was.is_none_or(|was| was.expires <= world.now);
                let member = Member {
                    capacity,
                    kinds: picked(&KINDS, kinds).collect(),
                    roles: picked(&ROLES, roles).collect(),
                    expires: world.now + TTL,
                    claims: !ends && was.is_some_and(|was| was.claims),
                };
                let mut registering = Registering::new(&id, member.roles.clone());
                registering.capacity = capacity;
                registering.capabilities = member.kinds.iter().cloned().collect();
                if lost {
                    let registry = self.registry(instance);
                    registry.register(&registering).await.unwrap();
                }
                let mut before = self.held(&id);
                if ends {
                    before.clear();
                    self.claims.clear();
                }
                let registry = self.registry(instance);
                let done = registry.register(&registering).await.unwrap();
                self.members.insert(id.clone(), member);
                self.alive.insert(id.clone());
                let after = self.all().await;
                let mine = after.iter().filter(|task| {
                    task.status == TaskStatus::Assigned && task.instance.as_deref() == Some(&id)
                });
                let new = mine.filter(|task| !before.contains(&task.id));
                let new: BTreeSet<String> = new.map(|task| task.id.clone()).collect();
                let assigned: BTreeSet<String> = done.assigned.into_iter().collect();
                assert!(if lost {
                    new.is_superset(&assigned)
                } else {
                    new == assigned
                });
            }
            Pulse(instance) => {
                let id = worker(instance);
                let pulse = self
                    .registry(instance)
                    .heartbeat(&Beat::new(&id, None))
                    .await
                    .unwrap();
                let revives = instance != EXTERNAL;
                let member = self.members.get_mut(&id);
                let member = member.filter(|member| revives || member.expires > world.now);
                assert_eq!(pulse.alive, member.is_some());
                if let Some(member) = member {
                    member.expires = world.now + TTL;
                }
            }
            Unregister(instance) => {
                let id = worker(instance);
                let registry = self.registry(instance);
                if lost {
                    registry.unregister(&id, None).await.unwrap();
                }
                let left = registry.unregister(&id, None).await.unwrap();
                let held = self.held(&id);
                if self.members.remove(&id).is_some() {
                    assert_eq!(left.tasks_reassigned, held.len() as u64);
                    self.expect_gone(&id, &held, 0).await;
                }
            }
            Lose(instance) => {
                let id = worker(instance);
                if let Some(member) = self.members.get_mut(&id) {
                    member.expires = 1000;
                    let mut expire = redis::cmd("ZADD");
                    expire.arg(world.keys.active()).arg("XX").arg(1000).arg(&id);
                    expire.exec_async(&mut world.admin).await.unwrap();
                }
                self.sweep(world, lost).await;
            }
            Sweep => self.sweep(world, lost).await,
            Begin(instance) => {
                let id = worker(instance);
                let held = self.held(&id);
                if lost {
                    self.service.release(&id).await.unwrap();
                }
                let moved = self.service.release(&id).await.unwrap();
                if let Some(member) = self.members.get_mut(&id)
                    && !held.is_empty()
                {
                    member.capacity = 0;
                    let failed = self.expect_gone(&id, &held, 1).await;
                    assert_eq!(moved, if lost { 0 } else { held.len() as u64 - failed });
                }
            }
            Retire(instance) => {
                let id = worker(instance);
                self.service.retire(&id).await.unwrap();
                if let Some(member) = self.members.get_mut(&id) {
                    member.capacity = 0;
                }
            }
            Complete(task) => {
                let id = name(task);
                if let Some(assignment) = self.assignment(&id) {
                    for _ in 0..1 + u8::from(lost) {
                        self.service
                            .complete(&assignment, &[0xc0], &[])
                            .await
                            .unwrap();
                    }
                    assert!(self.completed.insert(id.clone()), "{id} completed twice");
                    assert_eq!(self.task(&id).await.status, TaskStatus::Completed);
                }
            }
            Fail(task, retryable) => {
                let id = name(task);
                if let Some(assignment) = self.assignment(&id) {
                    let was = self.tasks[&id].clone();
                    if lost {
                        self.service
                            .fail(&assignment, "no", retryable)
                            .await
                            .unwrap();
                    }
                    let status = self
                        .service
                        .fail(&assignment, "no", retryable)
                        .await
                        .unwrap();
                    let is = self.task(&id).await;
                    assert_eq!(is.status, status);
                    self.failures.push((assignment, status));
                    let last = !retryable || was.attempt == was.max_attempts;
                    assert_eq!(is.status == TaskStatus::Failed, last);
                    let again = u32::from(is.status == TaskStatus::Assigned);
                    assert_eq!(is.attempt, was.attempt + again);
                }
            }
            Repeat(index) => {
                if !self.failures.is_empty() {
                    let at = usize::from(index) % self.failures.len();
                    let (assignment, told) = self.failures[at].clone();
                    let again = self.service.fail(&assignment, "again", true).await;
                    assert_eq!(again.unwrap(), told);
                    let before = self.tasks[&assignment.task].clone();
                    assert_eq!(self.task(&assignment.task).await, before);
                }
            }
            Cancel(task) => {
                let id = name(task);
                if lost {
                    self.service.cancel(&id, "why").await.ok();
                }
                let cancelled = self.service.cancel(&id, "why").await;
                if let (Some(assignment), false) = (self.assignment(&id), lost) {
                    let late = self.service.complete(&assignment, &[0xc0], &[]).await;
                    assert!(matches!(late, Err(CoordinationError::Aborted(_))));
                }
                match self.tasks.get(&id).map(|task| task.status) {
                    None => assert!(matches!(cancelled, Err(CoordinationError::NotFound(_)))),
                    Some(TaskStatus::Completed | TaskStatus::Failed) => assert!(matches!(
                        cancelled,
                        Err(CoordinationError::FailedPrecondition(_))
                    )),
                    Some(_) => {
                        cancelled.unwrap();
                        let is = self.task(&id).await;
                        assert_eq!(is.status, TaskStatus::Cancelled);
                        assert_eq!(is.reason.as_deref(), Some("why"));
                    }
                }
            }
            Update(task, priority, requires) => {
                self.update(&name(task), priority, requires, lost).await;
            }
            Assign(task, instance) => {
                let (task, instance) = (name(task), worker(instance));
                self.assign(world, &task, &instance, lost).await;
            }
            Unassign(task) => self.unassign(world, &name(task), lost).await,
            Claim(limit, kinds) => self.claim(world, limit.into(), kinds, lost).await,
            ClaimAgain(index) => self.claim_again(world, index).await,
            Stale(index, complete) => self.stale(index, complete).await,
            Look => {
                let found = self.service.assign_waiting().await.unwrap();
                assert!(self.unseen || found.is_empty(), "left waiting: {found:?}");
                self.unseen = false;
            }
        }
    }

    async fn check(&mut self, world: &mut World) {
        self.all().await;
        let (counts, all) = self.seen.take().unwrap();
        let keys = world.keys.tasks();
        let mut pipe = redis::pipe();
        pipe.cmd("HGET").arg(&keys.counts).arg("waiting");
        pipe.cmd("HGETALL").arg(&keys.slots);
        self.broadcast.ask(&mut pipe, &world.keys.broadcast());
        for number in 0..INSTANCES {
            let inbox = world.keys.inbox(&worker(number));
            pipe.cmd("EXISTS").arg(&inbox);
            self.inboxes[usize::from(number)].ask(&mut pipe, &inbox);
        }
        let mut answers: Vec<redis::Value> = world.look(&pipe).await;
        let arrived = answers.split_off(3);
        let facts = self.broadcast.read(answers.pop().unwrap());
        let slots: HashMap<String, String> =
            redis::from_redis_value(answers.pop().unwrap()).unwrap();
        let waiting: Option<u64> = redis::from_redis_value(answers.pop().unwrap()).unwrap();
        let is = |status| all.iter().filter(|t| t.status == status).count() as u64;
        assert_eq!(
            (counts.pending, counts.assigned),
            (is(TaskStatus::Pending), is(TaskStatus::Assigned))
        );
        assert_eq!(
            waiting.unwrap_or(0),
            counts.pending,
            "a byte of payload each"
        );
        self.forget_the_old(world, &all);
        self.arrived(&arrived);
        self.compare(&all);
        self.told(&facts, &all);
        self.in_order(&all);
        self.out_of_turn = None;
        self.have_room(world, &all, &slots);
        self.tasks = all
            .into_iter()
            .map(|task| (task.id.clone(), task))
            .collect();
    }
}
