//! Somebody's word about a task, and what an instance takes by itself.

use super::{EXTERNAL, KINDS, Member, Scene, has_ended, picked, worker};
use crate::world::World;
use convoke::coordination::error::CoordinationError;
use convoke::coordination::tasks::claim::{Claim, Claimed};
use convoke::coordination::tasks::moves::Placed;
use convoke::coordination::tasks::task::{Task, TaskStatus};
use convoke::coordination::tasks::update::TaskChange;
use std::collections::BTreeSet;

/// Claims of an instance that can be repeated.
const REPEATED: usize = 8;

type Done = Result<Placed, CoordinationError>;

impl Scene {
    fn word(&mut self) -> String {
        self.words += 1;
        format!("e-{}", self.words)
    }

    /// Whether an instance could take another task.
    fn has_room(&self, id: &str, member: &Member, world: &World) -> bool {
        member.expires > world.now && (self.held(id).len() as u32) < member.capacity
    }

    /// That a task which nobody may touch any more, or which is not there, was refused; else how it was.
    fn standing(&self, id: &str, done: &Done) -> Option<Task> {
        let was = self.tasks.get(id).cloned();
        match &was {
            None => assert!(matches!(done, Err(CoordinationError::NotFound(_)))),
            Some(was) if has_ended(was.status) => {
                assert!(matches!(
                    done,
                    Err(CoordinationError::FailedPrecondition(_))
                ));
            }
            Some(_) => return was,
        }
        None
    }

    pub(super) async fn update(
        &mut self,
        id: &str,
        priority: u8,
        requires: Option<u8>,
        lost: bool,
    ) {
        let asked = self.word();
        let change = TaskChange {
            priority: Some(priority),
            payload: Some(vec![priority / 50]),
            requires: requires.map(|bits| picked(&KINDS, bits).collect()),
            metadata: None,
        };
        if lost {
            self.service.update(id, &change, &asked).await.ok();
        }
        let done = self.service.update(id, &change, &asked).await;
        let Some(was) = self.standing(id, &done) else {
            return;
        };
        let is = self.task(id).await;
        if was.status == TaskStatus::Assigned {
            assert!(matches!(
                done,
                Err(CoordinationError::FailedPrecondition(_))
            ));
            assert_eq!(is, was);
            return;
        }
        let placed = done.unwrap();
        assert_eq!(placed.status, is.status);
        assert_eq!(is.priority, priority);
        let wanted = change.requires.unwrap_or(was.requires);
        assert_eq!(is.requires, wanted);
        let again = u32::from(is.status == TaskStatus::Assigned);
        assert_eq!(is.attempt, was.attempt + again);
    }

    pub(super) async fn assign(&mut self, world: &World, id: &str, to: &str, lost: bool) {
        let asked = self.word();
        if lost {
            self.service.assign(id, to, &asked).await.ok();
        }
        let done = self.service.assign(id, to, &asked).await;
        let Some(was) = self.standing(id, &done) else {
            return;
        };
        let same = was.status == TaskStatus::Assigned && was.instance.as_deref() == Some(to);
        let member = self.members.get(to);
        let may = member.is_some_and(|it| it.fits(&was) && self.has_room(to, it, world));
        let is = self.task(id).await;
        if !same && !may {
            assert!(
                matches!(done, Err(CoordinationError::FailedPrecondition(_))),
                "{done:?}"
            );
            assert_eq!(is, was);
            return;
        }
        let placed = done.unwrap();
        assert_eq!(is.instance.as_deref(), Some(to));
        assert_eq!(placed.fence, is.fence);
        if same {
            assert_eq!(is, was);
            return;
        }
        assert!(is.fence > was.fence);
        let first = u32::from(was.status == TaskStatus::Pending);
        assert_eq!(is.attempt, was.attempt + first);
        self.out_of_turn = Some(id.to_owned());
        if self.members[to].claims {
            let assigned = (id.to_owned(), to.to_owned());
            self.fences.insert(is.fence.unwrap(), assigned);
        }
    }

    pub(super) async fn unassign(&mut self, world: &World, id: &str, lost: bool) {
        let asked = self.word();
        if lost {
            self.service.unassign(id, &asked).await.ok();
        }
        let done = self.service.unassign(id, &asked).await;
        let Some(was) = self.standing(id, &done) else {
            return;
        };
        let placed = done.unwrap();
        let is = self.task(id).await;
        assert_eq!(
            (placed.status, &placed.assigned_to),
            (is.status, &is.instance)
        );
        if was.status == TaskStatus::Pending {
            assert_eq!(is, was);
            return;
        }
        let holder = was.instance.as_deref().unwrap();
        assert_ne!(is.instance.as_deref(), Some(holder));
        let again = u32::from(is.status == TaskStatus::Assigned);
        assert_eq!(is.attempt, was.attempt - 1 + again);
        let mut others = self.members.iter();
        let other = others.any(|(other, member)| {
            other != holder
                && !member.claims
                && member.fits(&was)
                && self.has_room(other, member, world)
        });
        if !self.unseen {
            assert_eq!(is.status == TaskStatus::Assigned, other, "{is:?}");
        }
        // Its holder may get it at the next look.
        self.unseen |= is.status == TaskStatus::Pending;
    }

    pub(super) async fn claim(&mut self, world: &World, limit: usize, kinds: u8, lost: bool) {
        let (id, asked) = (worker(EXTERNAL), self.word());
        let only: Vec<String> = picked(&KINDS, kinds).collect();
        let first = match lost {
            true => self
                .service
                .claim(Claim::new(&id, limit, &only, &asked))
                .await
                .ok(),
            false => None,
        };
        let done = self
            .service
            .claim(Claim::new(&id, limit, &only, &asked))
            .await;
        let Some(member) = self.members.get(&id).filter(|it| it.expires > world.now) else {
            assert!(matches!(
                done,
                Err(CoordinationError::FailedPrecondition(_))
            ));
            return;
        };
        let claimed = done.unwrap();
        if let Some(first) = first {
            assert_eq!(first, claimed, "the same claim");
        }
        // What it holds and was not told, then what waits.
        let mine = self.tasks.values().filter(|task| {
            let held = task.status == TaskStatus::Assigned && task.instance.as_ref() == Some(&id);
            held && !self.told.contains(&task.fence.unwrap())
        });
        let old = mine.map(|task| task.id.clone()).take(limit);
        let mut expected: Vec<String> = old.collect();
        let held = self.held(&id).len();
        let room = (member.capacity as usize).saturating_sub(held);
        let mut waits: Vec<&Task> = self.tasks.values().collect();
        waits.retain(|task| {
            let wanted = only.is_empty() || only.contains(&task.kind);
            task.status == TaskStatus::Pending && member.fits(task) && wanted
        });
        waits.sort_by_key(|task| (100 - task.priority, self.serials[&task.id]));
        let left = (limit - expected.len()).min(room);
        expected.extend(waits.into_iter().take(left).map(|task| task.id.clone()));
        let ids: Vec<&str> = claimed.iter().map(|task| task.task.as_str()).collect();
        assert_eq!(ids, expected);
        for task in &claimed {
            assert!(self.told.insert(task.fence), "told twice: {task:?}");
            let assigned = (task.task.clone(), id.clone());
            self.fences.insert(task.fence, assigned);
            let is = self.task(&task.task).await;
            assert_eq!((is.fence, is.attempt), (Some(task.fence), task.attempt));
            assert_eq!(is.instance.as_ref(), Some(&id));
        }
        self.members.get_mut(&id).unwrap().claims = true;
        let answered = claimed.into_iter().map(|task| (task.task, task.fence));
        let answered: Vec<_> = answered.collect();
        // One that took nothing is not known again.
        if !answered.is_empty() {
            self.claims.push((asked, answered));
        }
        if self.claims.len() > REPEATED {
            self.claims.remove(0);
        }
    }

    pub(super) async fn claim_again(&mut self, world: &World, index: u8) {
        let id = worker(EXTERNAL);
        let alive = self
            .members
            .get(&id)
            .is_some_and(|it| it.expires > world.now);
        if self.claims.is_empty() || !alive {
            return;
        }
        let (asked, answered) = &self.claims[usize::from(index) % self.claims.len()];
        let again = self
            .service
            .claim(Claim::new(&id, 50, &[], asked))
            .await
            .unwrap();
        let held: BTreeSet<(String, u64)> = self
            .held(&id)
            .into_iter()
            .map(|task| (task.clone(), self.tasks[&task].fence.unwrap()))
            .collect();
        let told = |task: &Claimed| (task.task.clone(), task.fence);
        let again: Vec<(String, u64)> = again.iter().map(told).collect();
        let mut still = answered.clone();
        still.retain(|task| held.contains(task));
        assert_eq!(again, still);
    }
}
