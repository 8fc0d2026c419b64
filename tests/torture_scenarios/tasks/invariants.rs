//! What must hold of all tasks after each step, compared with how they were before it.

use super::{KEPT, Scene, has_ended, worker};
use crate::world::{Tail, World, fact};
use convoke::coordination::tasks::task::{Task, TaskStatus};
use convoke::protocol::event::Entry;
use std::collections::{BTreeSet, HashMap};

impl Scene {
    /// What ended a day ago is forgotten.
    pub(super) fn forget_the_old(&mut self, world: &World, all: &[Task]) {
        let there: BTreeSet<&str> = all.iter().map(|task| task.id.as_str()).collect();
        let gone = self
            .tasks
            .values()
            .filter(|task| !there.contains(task.id.as_str()));
        let gone: Vec<Task> = gone.cloned().collect();
        for task in gone {
            let is_old = has_ended(task.status) && task.changed_at + KEPT <= world.now;
            assert!(is_old, "forgotten: {task:?}");
            self.tasks.remove(&task.id);
            self.completed.remove(&task.id);
            self.failures
                .retain(|(assignment, _)| assignment.task != task.id);
        }
    }

    pub(super) fn arrived(&mut self, answers: &[redis::Value]) {
        for (number, answer) in answers.chunks(2).enumerate() {
            if answer[0] == redis::Value::Int(0) {
                self.inboxes[number] = Tail::default();
            }
            for entry in self.inboxes[number].read(answer[1].clone()) {
                let (_, data) = fact(&entry);
                let fence = data["fence"].as_u64().unwrap();
                let task = data["task_id"].as_str().unwrap().to_owned();
                assert!(self.delivered.insert(fence), "a fence was delivered twice");
                self.fences.insert(fence, (task, worker(number as u8)));
            }
        }
    }

    pub(super) fn compare(&mut self, all: &[Task]) {
        for task in all {
            let before = self.tasks.get(&task.id);
            if let Some(before) = before {
                assert!(
                    task.fence >= before.fence,
                    "a fence fell: {before:?} {task:?}"
                );
                if has_ended(before.status) {
                    assert_eq!(before, task, "what has ended stays so");
                }
            }
            assert!(task.attempt <= task.max_attempts);
            if task.status == TaskStatus::Assigned {
                let holder = task.instance.clone().unwrap();
                assert!(self.members.contains_key(&holder), "{holder} is gone");
                let assigned = (task.id.clone(), holder);
                let known = self.fences.get(&task.fence.unwrap());
                assert_eq!(
                    known,
                    Some(&assigned),
                    "what was not delivered, or to another"
                );
            }
        }
    }

    /// What was told is what was created and what ended since.
    pub(super) fn told(&self, facts: &[Entry], all: &[Task]) {
        let facts = facts
            .iter()
            .map(fact)
            .filter(|(kind, _)| kind.starts_with("task.") && kind != "task.unassigned");
        let mut told: Vec<(String, String)> = facts
            .map(|(kind, fact)| (kind, fact["task_id"].as_str().unwrap().to_owned()))
            .collect();
        told.sort();
        let new = all.iter().filter(|task| {
            let before = self.tasks.get(&task.id);
            has_ended(task.status) && before.is_none_or(|before| !has_ended(before.status))
        });
        let ended = new.map(|task| (format!("task.{}", task.status), task.id.clone()));
        let created = all.iter().filter(|task| !self.tasks.contains_key(&task.id));
        let created = created.map(|task| ("task.created".to_owned(), task.id.clone()));
        let mut happened: Vec<(String, String)> = created.chain(ended).collect();
        happened.sort();
        assert_eq!(told, happened, "what was told");
    }

    /// None was assigned past another one of its lane that waited already and comes first.
    pub(super) fn in_order(&self, all: &[Task]) {
        let lane = |task: &Task| (task.role.clone(), task.kind.clone(), task.requires.clone());
        let order = |task: &Task| (100 - task.priority, self.serials[&task.id]);
        let waits = all.iter().filter(|task| {
            let before = self.tasks.get(&task.id);
            task.status == TaskStatus::Pending
                && before.is_some_and(|b| b.status == TaskStatus::Pending)
        });
        for left in waits {
            let passed = all.iter().find(|task| {
                let before = self.tasks.get(&task.id);
                task.status == TaskStatus::Assigned
                    && self.out_of_turn.as_ref() != Some(&task.id)
                    && before.is_none_or(|before| before.fence != task.fence)
                    && lane(task) == lane(left)
                    && order(task) > order(left)
            });
            assert_eq!(passed, None, "it passed {left:?}");
        }
    }

    pub(super) fn have_room(
        &mut self,
        world: &World,
        all: &[Task],
        slots: &HashMap<String, String>,
    ) {
        let alive = self
            .members
            .iter()
            .filter(|(_, member)| member.expires > world.now);
        let alive: BTreeSet<String> = alive.map(|(id, _)| id.clone()).collect();
        self.unseen |= !alive.is_subset(&self.alive);
        assert!(
            slots.keys().all(|id| self.members.contains_key(id)),
            "{slots:?}"
        );
        for (id, member) in &self.members {
            let mine = all.iter().filter(|task| {
                task.status == TaskStatus::Assigned && task.instance.as_ref() == Some(id)
            });
            let held = mine.count() as u32;
            let before = self.held(id).len() as u32;
            assert!(held <= member.capacity.max(before), "{id} holds {held}");
            let mut words = slots[id]
                .split(' ')
                .map(|word| word.parse::<u32>().unwrap_or(0));
            let slot = (words.next(), words.next());
            assert_eq!(slot, (Some(held), Some(member.capacity)), "{id}");
            if held < member.capacity && alive.contains(id) && !member.claims && !self.unseen {
                let mut waits = all.iter().filter(|task| task.status == TaskStatus::Pending);
                let left = waits.find(|task| member.fits(task));
                assert_eq!(left, None, "{id} has room");
            }
        }
        self.alive = alive;
    }
}
