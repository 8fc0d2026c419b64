//! What the tests take the tasks and their holders to be, held against what they are.

use super::{EXTERNAL, Scene, worker};
use crate::world::World;
use convoke::coordination::error::CoordinationError;
use convoke::coordination::instances::Instances;
use convoke::coordination::tasks::Assignment;
use convoke::coordination::tasks::task::{Task, TaskStatus};
use std::collections::BTreeSet;

impl Scene {
    /// All, as they are after the step.
    pub(super) async fn all(&mut self) -> &[Task] {
        if self.seen.is_none() {
            self.seen = Some(self.service.snapshot(None, 1000).await.unwrap());
        }
        self.seen.as_ref().map_or(&[], |(_, all)| all)
    }

    pub(super) async fn task(&mut self, id: &str) -> Task {
        let mut all = self.all().await.iter();
        let found = all.find(|task| task.id == id);
        found.unwrap_or_else(|| panic!("no task {id}")).clone()
    }

    /// Through whom an instance registers, pulses and leaves.
    pub(super) fn registry(&self, instance: u8) -> &Instances {
        match instance {
            EXTERNAL => &self.asked,
            _ => &self.instances,
        }
    }

    pub(super) fn held(&self, instance: &str) -> Vec<String> {
        let held = self.tasks.values().filter(|task| {
            task.status == TaskStatus::Assigned && task.instance.as_deref() == Some(instance)
        });
        held.map(|task| task.id.clone()).collect()
    }

    pub(super) fn assignment(&self, task: &str) -> Option<Assignment> {
        let task = self.tasks.get(task)?;
        (task.status == TaskStatus::Assigned).then(|| Assignment {
            task: task.id.clone(),
            instance: task.instance.clone().unwrap(),
            fence: task.fence.unwrap(),
        })
    }

    /// What an instance held went to others, waits, or failed if that used its last attempt up.
    pub(super) async fn expect_gone(&mut self, instance: &str, held: &[String], cost: u32) -> u64 {
        let mut failed = 0;
        for id in held {
            let (was, is) = (self.tasks[id].clone(), self.task(id).await);
            let last = cost > 0 && was.attempt == was.max_attempts;
            assert_eq!(is.status == TaskStatus::Failed, last, "{is:?}");
            failed += u64::from(last);
            if !last {
                assert_ne!(is.instance.as_deref(), Some(instance));
                let again = u32::from(is.status == TaskStatus::Assigned);
                assert_eq!(is.attempt, was.attempt - (1 - cost) + again);
            }
        }
        failed
    }

    pub(super) async fn sweep(&mut self, world: &World, lost: bool) {
        if lost {
            self.instances.sweep(16).await.unwrap();
        }
        let swept = self.instances.sweep(16).await.unwrap();
        let late = self
            .members
            .iter()
            .filter(|(_, member)| member.expires <= world.now);
        let mut late: Vec<(u64, String)> = late
            .map(|(id, member)| (member.expires, id.clone()))
            .collect();
        late.sort();
        let mut expected = Vec::new();
        for (_, id) in late {
            self.members.remove(&id);
            let held = self.held(&id);
            let failed = self.expect_gone(&id, &held, 1).await;
            expected.push((id, held.len() as u64 - failed));
        }
        let swept = swept
            .lost
            .into_iter()
            .map(|lost| (lost.id, lost.tasks_reassigned));
        if !lost {
            // External ones have a list of their own: whether it comes first is not said.
            let (mut swept, outside) = (swept.collect::<Vec<_>>(), worker(EXTERNAL));
            swept.sort_by_key(|(id, _)| *id == outside);
            expected.sort_by_key(|(id, _)| *id == outside);
            assert_eq!(swept, expected);
        }
    }

    pub(super) async fn stale(&self, index: u16, complete: bool) {
        let current: BTreeSet<Option<u64>> = self.tasks.values().map(|task| task.fence).collect();
        let old = self
            .fences
            .iter()
            .filter(|(fence, _)| !current.contains(&Some(**fence)));
        let mut old: Vec<_> = old.collect();
        // Every other time of one that somebody holds again, if there is such.
        let again = |task: &str| {
            let is = self.tasks.get(task).map(|task| task.status);
            is == Some(TaskStatus::Assigned)
        };
        if index.is_multiple_of(2) && old.iter().any(|(_, (task, _))| again(task)) {
            old.retain(|(_, (task, _))| again(task));
        }
        if old.is_empty() {
            return;
        }
        let (fence, (task, instance)) = old[usize::from(index / 2) % old.len()];
        let (task, instance, fence) = (task.clone(), instance.clone(), *fence);
        let assignment = Assignment {
            task,
            instance,
            fence,
        };
        let known = self.tasks.get(&assignment.task);
        let done = match complete {
            true => self
                .service
                .complete(&assignment, &[0xc0], &[])
                .await
                .map(|()| None),
            false => self.service.fail(&assignment, "late", true).await.map(Some),
        };
        let failed = self
            .failures
            .iter()
            .find(|(failed, _)| *failed == assignment);
        match (done, failed.filter(|_| !complete)) {
            (Ok(Some(status)), Some((_, told))) => assert_eq!(status, *told),
            (Err(CoordinationError::Aborted(_)), None) => assert!(known.is_some()),
            (Err(CoordinationError::NotFound(_)), None) => assert!(known.is_none()),
            other => panic!("{other:?}"),
        }
    }
}
