//! Random interleavings of everything that moves tasks, against a model of what must hold.

use crate::fleet::Fleet;
use convoke::coordination::error::CoordinationError;
use convoke::coordination::instance::Registering;
use convoke::coordination::task::{NewTask, Status, Task};
use convoke::coordination::tasks::Assignment;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::collections::{BTreeMap, BTreeSet, HashMap};

const KINDS: [&str; 3] = ["a.b", "c.d", "e.f"];
const ROLES: [&str; 2] = ["worker", "gpu"];

#[derive(Clone, Debug)]
enum Step {
    Create {
        task: u8,
        kind: u8,
        role: u8,
        priority: u8,
        attempts: u32,
        requires: u8,
    },
    Register {
        instance: u8,
        capacity: u32,
        kinds: u8,
        roles: u8,
    },
    Unregister(u8),
    Lose(u8),
    Begin(u8),
    Retire(u8),
    Complete(u8),
    Fail(u8, bool),
    Cancel(u8),
    /// Says again that an attempt failed that was said to have.
    Repeat(prop::sample::Index),
    /// Completes or fails under an assignment that was.
    Stale(prop::sample::Index, bool),
    Look,
}

fn step() -> impl Strategy<Value = Step> {
    let requires = prop_oneof![4 => Just(0), 1 => 0..8u8];
    let create = (0..24u8, 0..3u8, 0..2u8, 0..3u8, 1..4u32, requires).prop_map(
        |(task, kind, role, priority, attempts, requires)| Step::Create {
            task,
            kind,
            role,
            priority: priority * 50,
            attempts,
            requires,
        },
    );
    let register =
        (0..5u8, 0..4u32, 0..8u8, 1..4u8).prop_map(|(instance, capacity, kinds, roles)| {
            Step::Register {
                instance,
                capacity,
                kinds,
                roles,
            }
        });
    prop_oneof![
        6 => create,
        4 => register,
        1 => (0..5u8).prop_map(Step::Unregister),
        2 => (0..5u8).prop_map(Step::Lose),
        1 => (0..5u8).prop_map(Step::Begin),
        1 => (0..5u8).prop_map(Step::Retire),
        6 => (0..24u8).prop_map(Step::Complete),
        3 => (0..24u8, any::<bool>()).prop_map(|(task, retryable)| Step::Fail(task, retryable)),
        2 => (0..24u8).prop_map(Step::Cancel),
        2 => any::<prop::sample::Index>().prop_map(Step::Repeat),
        2 => (any::<prop::sample::Index>(), any::<bool>())
            .prop_map(|(index, complete)| Step::Stale(index, complete)),
        1 => Just(Step::Look),
    ]
}

/// What an instance said of itself, as far as it is active.
#[derive(Clone, Debug)]
struct Member {
    capacity: u32,
    kinds: BTreeSet<String>,
    roles: BTreeSet<String>,
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

/// What must hold, whatever happened.
struct Model {
    fleet: Fleet,
    members: BTreeMap<String, Member>,
    tasks: BTreeMap<String, Task>,
    /// Every assignment ever seen, with its holder.
    fences: HashMap<u64, (String, String)>,
    completed: BTreeSet<String>,
    /// Every report of a failure that took effect, with its answer.
    failures: Vec<(Assignment, Status)>,
}

fn picked<'a>(names: &'a [&'a str], bits: u8) -> impl Iterator<Item = String> + 'a {
    let chosen = names.iter().enumerate();
    chosen
        .filter(move |(bit, _)| bits & (1 << bit) != 0)
        .map(|(_, name)| (*name).to_owned())
}

impl Model {
    async fn run(&mut self, step: Step) {
        match step {
            Step::Create {
                task,
                kind,
                role,
                priority,
                attempts,
                requires,
            } => {
                let id = format!("t-{task}");
                let mut new = NewTask::new(&id, KINDS[usize::from(kind)]);
                new.role = ROLES[usize::from(role)].into();
                new.priority = priority;
                new.max_attempts = attempts;
                new.requires = picked(&KINDS, requires).collect();
                let created = self.fleet.tasks.create(&new).await;
                match (self.tasks.get(&id), created) {
                    (None, Ok(_)) => {
                        let is = self.fleet.task(&id).await;
                        assert!(matches!(is.status, Status::Pending | Status::Assigned));
                        assert_eq!(is.attempt, u32::from(is.status == Status::Assigned));
                        self.tasks.insert(id, is);
                    }
                    (Some(known), Ok(created)) => assert_eq!(created.status, known.status),
                    (Some(_), Err(CoordinationError::AlreadyExists(_))) => {}
                    (_, other) => panic!("{other:?}"),
                }
            }
            Step::Register {
                instance,
                capacity,
                kinds,
                roles,
            } => {
                let id = format!("w-{instance}");
                let member = Member {
                    capacity,
                    kinds: picked(&KINDS, kinds).collect(),
                    roles: picked(&ROLES, roles).collect(),
                };
                let mut registering = Registering::new(&id, member.roles.clone());
                registering.capacity = capacity;
                registering.capabilities = member.kinds.iter().cloned().collect();
                let before = self.held(&id);
                let done = self.fleet.instances.register(&registering).await.unwrap();
                self.members.insert(id.clone(), member);
                let after = self.fleet.tasks.list(Some(Status::Assigned), 100).await;
                let after = after.unwrap();
                let mine = after.iter().filter(|t| t.instance.as_deref() == Some(&id));
                let new = mine.filter(|task| !before.contains(&task.id));
                let new: BTreeSet<String> = new.map(|task| task.id.clone()).collect();
                assert_eq!(new, done.assigned.into_iter().collect());
            }
            Step::Unregister(instance) => {
                let id = format!("w-{instance}");
                let held = self.held(&id);
                let left = self.fleet.instances.unregister(&id, None).await.unwrap();
                if self.members.remove(&id).is_some() {
                    assert_eq!(left.tasks_reassigned, held.len() as u64);
                    self.expect_gone(&id, &held, 0).await;
                }
            }
            Step::Lose(instance) => {
                let id = format!("w-{instance}");
                if self.members.remove(&id).is_some() {
                    let held = self.held(&id);
                    self.fleet.expire(&id).await;
                    let swept = self.fleet.instances.sweep(16).await.unwrap();
                    let failed = self.expect_gone(&id, &held, 1).await;
                    assert_eq!(swept.lost[0].tasks_reassigned, held.len() as u64 - failed);
                }
            }
            Step::Begin(instance) => {
                let id = format!("w-{instance}");
                let held = self.held(&id);
                let moved = self.fleet.tasks.release(&id).await.unwrap();
                if let Some(member) = self.members.get_mut(&id)
                    && !held.is_empty()
                {
                    member.capacity = 0;
                    let failed = self.expect_gone(&id, &held, 1).await;
                    assert_eq!(moved, held.len() as u64 - failed);
                }
            }
            Step::Retire(instance) => {
                let id = format!("w-{instance}");
                self.fleet.tasks.retire(&id).await.unwrap();
                if let Some(member) = self.members.get_mut(&id) {
                    member.capacity = 0;
                }
            }
            Step::Complete(task) => {
                let id = format!("t-{task}");
                if let Some(assignment) = self.assignment(&id) {
                    let done = self.fleet.tasks.complete(&assignment, &[0xc0], &[]).await;
                    done.unwrap();
                    assert!(self.completed.insert(id.clone()), "{id} completed twice");
                    assert_eq!(self.fleet.task(&id).await.status, Status::Completed);
                }
            }
            Step::Fail(task, retryable) => {
                let id = format!("t-{task}");
                if let Some(assignment) = self.assignment(&id) {
                    let was = self.tasks[&id].clone();
                    let status = self.fleet.tasks.fail(&assignment, "no", retryable).await;
                    let is = self.fleet.task(&id).await;
                    let status = status.unwrap();
                    assert_eq!(is.status, status);
                    self.failures.push((assignment, status));
                    let last = !retryable || was.attempt == was.max_attempts;
                    assert_eq!(is.status == Status::Failed, last);
                    let again = u32::from(is.status == Status::Assigned);
                    assert_eq!(is.attempt, was.attempt + again);
                }
            }
            Step::Repeat(index) => {
                if !self.failures.is_empty() {
                    let (assignment, told) = index.get(&self.failures).clone();
                    let before = self.fleet.task(&assignment.task).await;
                    let again = self.fleet.tasks.fail(&assignment, "again", true).await;
                    assert_eq!(again.unwrap(), told);
                    assert_eq!(self.fleet.task(&assignment.task).await, before);
                }
            }
            Step::Cancel(task) => {
                let id = format!("t-{task}");
                let cancelled = self.fleet.tasks.cancel(&id, "why").await;
                match self.tasks.get(&id).map(|task| task.status) {
                    None => assert!(matches!(cancelled, Err(CoordinationError::NotFound(_)))),
                    Some(Status::Completed | Status::Failed) => assert!(matches!(
                        cancelled,
                        Err(CoordinationError::FailedPrecondition(_))
                    )),
                    Some(_) => {
                        cancelled.unwrap();
                        let is = self.fleet.task(&id).await;
                        assert_eq!(is.status, Status::Cancelled);
                        assert_eq!(is.reason.as_deref(), Some("why"));
                    }
                }
            }
            Step::Stale(index, complete) => {
                let current: BTreeSet<Option<u64>> =
                    self.tasks.values().map(|task| task.fence).collect();
                let mut old: Vec<(u64, (String, String))> =
                    self.fences.clone().into_iter().collect();
                old.retain(|(fence, _)| !current.contains(&Some(*fence)));
                old.sort();
                if !old.is_empty() {
                    let (fence, (task, instance)) = index.get(&old).clone();
                    let assignment = Assignment {
                        task,
                        instance,
                        fence,
                    };
                    let before = self.fleet.task(&assignment.task).await;
                    let tasks = &self.fleet.tasks;
                    if complete {
                        let refused = tasks.complete(&assignment, &[0xc0], &[]).await;
                        assert!(matches!(refused, Err(CoordinationError::Aborted(_))));
                    } else {
                        let failed = self.failures.iter().find(|(known, _)| *known == assignment);
                        match (tasks.fail(&assignment, "late", true).await, failed) {
                            (Ok(status), Some((_, told))) => assert_eq!(status, *told),
                            (Err(CoordinationError::Aborted(_)), None) => {}
                            other => panic!("{other:?}"),
                        }
                    }
                    assert_eq!(self.fleet.task(&assignment.task).await, before);
                }
            }
            Step::Look => {
                let found = self.fleet.tasks.assign_waiting().await.unwrap();
                assert!(found.is_empty(), "left waiting: {found:?}");
            }
        }
        self.check().await;
    }

    fn held(&self, instance: &str) -> Vec<String> {
        let held = self.tasks.values().filter(|task| {
            task.status == Status::Assigned && task.instance.as_deref() == Some(instance)
        });
        held.map(|task| task.id.clone()).collect()
    }

    fn assignment(&self, task: &str) -> Option<Assignment> {
        let task = self.tasks.get(task)?;
        (task.status == Status::Assigned).then(|| Assignment {
            task: task.id.clone(),
            instance: task.instance.clone().unwrap(),
            fence: task.fence.unwrap(),
        })
    }

    /// What an instance held went to others, waits, or failed if that used its last attempt up.
    async fn expect_gone(&self, instance: &str, held: &[String], cost: u32) -> u64 {
        let mut failed = 0;
        for id in held {
            let (was, is) = (&self.tasks[id], self.fleet.task(id).await);
            let last = cost > 0 && was.attempt == was.max_attempts;
            assert_eq!(is.status == Status::Failed, last, "{is:?}");
            failed += u64::from(last);
            if !last {
                assert_ne!(is.instance.as_deref(), Some(instance));
                let again = u32::from(is.status == Status::Assigned);
                assert_eq!(is.attempt, was.attempt - (1 - cost) + again);
            }
        }
        failed
    }

    async fn check(&mut self) {
        let all = self.fleet.tasks.list(None, 1000).await.unwrap();
        assert_eq!(all.len(), self.tasks.len());
        let mut load: BTreeMap<String, u32> = BTreeMap::new();
        for task in &all {
            let before = &self.tasks[&task.id];
            assert!(
                task.fence >= before.fence,
                "a fence fell: {before:?} {task:?}"
            );
            assert!(task.attempt <= task.max_attempts);
            let ended = |status| !matches!(status, Status::Pending | Status::Assigned);
            if ended(before.status) {
                assert_eq!(before, task, "what has ended stays so");
            }
            if task.status == Status::Assigned {
                let holder = task.instance.clone().unwrap();
                assert!(self.members.contains_key(&holder), "{holder} is gone");
                *load.entry(holder.clone()).or_default() += 1;
                let assigned = (task.id.clone(), holder);
                let known = self.fences.entry(task.fence.unwrap());
                assert_eq!(known.or_insert_with(|| assigned.clone()), &assigned);
            }
        }
        for (id, member) in &self.members {
            let held = load.get(id).copied().unwrap_or(0);
            let before = self.held(id).len() as u32;
            assert!(held <= member.capacity.max(before), "{id} holds {held}");
            assert_eq!(self.fleet.slot(id).await, (held, member.capacity), "{id}");
            // Nothing waits that a member with room can take.
            if held < member.capacity {
                let waits = all.iter().filter(|t| t.status == Status::Pending);
                let left: Vec<&Task> = waits.filter(|task| member.fits(task)).collect();
                assert!(left.is_empty(), "{id} has room for {left:?}");
            }
        }
        let counts = self.fleet.tasks.counts().await.unwrap();
        let count = |status| all.iter().filter(|t| t.status == status).count() as u64;
        assert_eq!(counts.pending, count(Status::Pending));
        assert_eq!(counts.assigned, count(Status::Assigned));
        assert_eq!(counts.completed, count(Status::Completed));
        assert_eq!(counts.failed, count(Status::Failed));
        assert_eq!(counts.cancelled, count(Status::Cancelled));
        let bytes: Option<u64> = self.fleet.ask("HGET cb:tasks:counts waiting").await;
        assert_eq!(bytes.unwrap_or(0), counts.pending, "a byte of payload each");
        self.tasks = all
            .into_iter()
            .map(|task| (task.id.clone(), task))
            .collect();
    }

    /// What was told and delivered agrees with what became of the tasks.
    async fn finish(mut self) {
        let facts = self.fleet.facts().await;
        let mut told: Vec<(String, String)> = facts
            .into_iter()
            .filter(|(kind, _)| kind.starts_with("task."))
            .map(|(kind, fact)| (kind, fact["task_id"].as_str().unwrap().to_owned()))
            .collect();
        told.sort();
        let ended = self.tasks.values().filter_map(|task| match task.status {
            Status::Completed => Some(("task.completed".to_owned(), task.id.clone())),
            Status::Failed => Some(("task.failed".to_owned(), task.id.clone())),
            Status::Cancelled => Some(("task.cancelled".to_owned(), task.id.clone())),
            _ => None,
        });
        let mut ended: Vec<_> = ended.collect();
        ended.sort();
        assert_eq!(told, ended);
        let mut delivered = BTreeSet::new();
        for number in 0..5 {
            let id = format!("w-{number}");
            for event in self.fleet.inbox(&id).await {
                let fence = event["fence"].as_u64().unwrap();
                let task = event["task_id"].as_str().unwrap().to_owned();
                assert!(delivered.insert(fence), "a fence was delivered twice");
                if let Some(seen) = self.fences.get(&fence) {
                    assert_eq!(seen, &(task, id.clone()));
                }
            }
        }
        assert!(self.fences.keys().all(|fence| delivered.contains(fence)));
    }
}

#[test]
fn whatever_happens_each_task_has_one_holder_nobody_too_many_and_none_waits_beside_room() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut runner = TestRunner::new(Config {
        cases: 60,
        failure_persistence: None,
        ..Config::default()
    });
    let steps = prop::collection::vec(step(), 1..60);
    let checked = runner.run(&steps, |steps| {
        runtime.block_on(async {
            let mut model = Model {
                fleet: Fleet::start().await,
                members: BTreeMap::new(),
                tasks: BTreeMap::new(),
                fences: HashMap::new(),
                completed: BTreeSet::new(),
                failures: Vec::new(),
            };
            for step in steps {
                model.run(step).await;
            }
            model.finish().await;
        });
        Ok(())
    });
    checked.unwrap_or_else(|error| panic!("{error}"));
}
