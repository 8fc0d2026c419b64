//! Cancelling tasks, how many may wait, reports that are repeated, lists while tasks move.

use crate::fleet::Fleet;
use convoke::coordination::error::CoordinationError;
use convoke::coordination::tasks::task::{NewTask, TaskStatus};
use convoke::coordination::tasks::{MAX_WAITING, MAX_WAITING_BYTES};
use serde_json::json;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

#[tokio::test]
async fn a_task_that_waits_or_is_held_is_cancelled_once_with_its_fact() {
    let mut fleet = Fleet::start().await;
    fleet.worker("w-1", 1, &["a.b"]).await;
    for id in ["held", "waits", "next"] {
        fleet.create(id).await;
    }
    let assignment = fleet.assignment("held").await;
    for _ in 0..2 {
        fleet.tasks.cancel("waits", "").await.unwrap();
    }
    for _ in 0..2 {
        fleet.tasks.cancel("held", "ordered twice").await.unwrap();
    }
    let held = fleet.task("held").await;
    assert_eq!(held.status, TaskStatus::Cancelled);
    assert_eq!(held.reason.as_deref(), Some("ordered twice"));
    assert_eq!(fleet.task("waits").await.reason, None);
    // Its room went to who waited.
    assert_eq!(fleet.task("next").await.status, TaskStatus::Assigned);
    assert_eq!(fleet.slot("w-1").await, (1, 1));
    let late = fleet.tasks.complete(&assignment, &[0xc0], &[]).await;
    assert!(
        matches!(&late, Err(CoordinationError::Aborted(m)) if m.contains("cancelled")),
        "{late:?}"
    );
    let late = fleet.tasks.fail(&assignment, "no", true).await;
    assert!(matches!(late, Err(CoordinationError::Aborted(_))));
    let facts = fleet.facts().await.into_iter();
    let told: Vec<_> = facts.filter(|(kind, _)| kind == "task.cancelled").collect();
    assert_eq!(told.len(), 2);
    assert_eq!(told[0].1["task_id"], json!("waits"));
    assert_eq!(told[1].1["task_id"], json!("held"));
    assert_eq!(told[1].1["reason"], json!("ordered twice"));
    assert_eq!(told[1].1["instance_id"], json!("w-1"));
    assert_eq!(told[1].1["fence"], json!(assignment.fence));
    let counts = fleet.tasks.counts().await.unwrap();
    assert_eq!((counts.cancelled, counts.pending), (2, 0));
    let listed = fleet
        .tasks
        .list(Some(TaskStatus::Cancelled), 10)
        .await
        .unwrap();
    assert_eq!(listed.len(), 2);
}

#[tokio::test]
async fn what_has_ended_or_never_was_is_not_cancelled_and_a_full_memory_keeps_nobody_from_it() {
    let mut fleet = Fleet::start().await;
    fleet.worker("w-1", 1, &["a.b"]).await;
    fleet.create("done").await;
    fleet.complete("done").await;
    fleet.create("failed").await;
    fleet.fail("failed", "no", false).await;
    for (id, status) in [("done", "completed"), ("failed", "failed")] {
        let refused = fleet.tasks.cancel(id, "").await.unwrap_err();
        assert!(
            matches!(&refused, CoordinationError::FailedPrecondition(m) if m.contains(status)),
            "{refused}"
        );
    }
    let refused = fleet.tasks.cancel("nothing", "").await.unwrap_err();
    assert!(matches!(refused, CoordinationError::NotFound(_)));
    fleet.create("held").await;
    fleet.create("waits").await;
    fleet.run("CONFIG SET maxmemory 1").await;
    fleet.tasks.cancel("waits", "").await.unwrap();
    fleet.tasks.cancel("held", "").await.unwrap();
}

#[tokio::test]
async fn so_many_tasks_may_wait_and_one_that_need_not_is_taken_all_the_same() {
    let fleet = Fleet::start().await;
    let creators: Vec<_> = (0..4)
        .map(|creator| {
            let tasks = fleet.tasks.clone();
            tokio::spawn(async move {
                for number in 0..MAX_WAITING / 4 {
                    let task = NewTask::new(format!("t-{creator}-{number}"), "a.b");
                    tasks.create(&task).await.unwrap();
                }
            })
        })
        .collect();
    for creator in creators {
        creator.await.unwrap();
    }
    let over = NewTask::new("over", "a.b");
    let refused = fleet.tasks.create(&over).await.unwrap_err();
    assert!(
        matches!(&refused, CoordinationError::Exhausted(m) if m.contains("10000") && m.contains("over")),
        "{refused}"
    );
    assert!(fleet.tasks.get("over").await.unwrap().is_none());
    // The same again as one that is there.
    fleet.create("t-0-0").await;
    fleet.worker("w-1", 1, &["c.d"]).await;
    let other = NewTask::new("other", "c.d");
    let created = fleet.tasks.create(&other).await.unwrap();
    assert_eq!(created.status, TaskStatus::Assigned);
    fleet.tasks.cancel("t-0-0", "").await.unwrap();
    fleet.tasks.create(&over).await.unwrap();
}

#[tokio::test]
async fn so_many_bytes_may_wait() {
    let mut fleet = Fleet::start().await;
    let mut task = NewTask::new("", "a.b");
    task.payload = [vec![0xc6, 0, 0x0f, 0, 0], vec![7; 0x0f_00_00]].concat();
    let fit = MAX_WAITING_BYTES / task.payload.len();
    for number in 0..fit {
        task.id = format!("t-{number}");
        fleet.tasks.create(&task).await.unwrap();
    }
    task.id = "over".into();
    let refused = fleet.tasks.create(&task).await.unwrap_err();
    assert!(
        matches!(&refused, CoordinationError::Exhausted(m) if m.contains("payload")),
        "{refused}"
    );
    fleet.tasks.cancel("t-0", "").await.unwrap();
    fleet.tasks.create(&task).await.unwrap();
    // What goes to somebody waits no more.
    let registered = fleet.worker("w-1", 100, &["a.b"]).await;
    assert_eq!(registered.assigned.len(), fit);
    let bytes: u64 = fleet.ask("HGET cb:tasks:counts waiting").await;
    assert_eq!(bytes, 0);
}

#[tokio::test]
async fn a_failure_that_took_effect_is_answered_the_same_whatever_became_of_the_task() {
    let fleet = Fleet::start().await;
    fleet.worker("w-1", 1, &["a.b"]).await;
    fleet.create("t-1").await;
    let first = fleet.assignment("t-1").await;
    let fail = async |of: &_| fleet.tasks.fail(of, "no", true).await;
    assert_eq!(fail(&first).await.unwrap(), TaskStatus::Assigned);
    let second = fleet.assignment("t-1").await;
    assert_eq!(fail(&first).await.unwrap(), TaskStatus::Assigned);
    assert_eq!(fail(&second).await.unwrap(), TaskStatus::Assigned);
    assert_eq!(fail(&first).await.unwrap(), TaskStatus::Assigned);
    fleet.complete("t-1").await;
    for old in [&first, &second] {
        assert_eq!(fail(old).await.unwrap(), TaskStatus::Assigned);
    }
    assert_eq!(fleet.task("t-1").await.status, TaskStatus::Completed);
    assert_eq!(fleet.task("t-1").await.attempt, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_misses_no_task_and_has_none_twice_while_they_move() {
    let fleet = Fleet::start().await;
    fleet.worker("w-1", 5, &["a.b"]).await;
    for number in 0..300 {
        fleet.create(&format!("t-{number:03}")).await;
    }
    let tasks = fleet.tasks.clone();
    const LOOKS: usize = 4;
    let looks = Arc::new(AtomicUsize::new(0));
    let looked = looks.clone();
    let moving = tokio::spawn(async move {
        for turn in 0.. {
            // Who looks may not have been scheduled meanwhile.
            while looked.load(Ordering::Relaxed) < LOOKS.min(turn) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let held = tasks.list(Some(TaskStatus::Assigned), 5).await.unwrap();
            if held.is_empty() {
                return;
            }
            for task in held {
                let assignment = convoke::coordination::tasks::Assignment {
                    task: task.id,
                    instance: task.instance.unwrap(),
                    fence: task.fence.unwrap(),
                };
                tasks.complete(&assignment, &[0xc0], &[]).await.unwrap();
            }
        }
    });
    while !moving.is_finished() {
        let (counts, all) = fleet.tasks.snapshot(None, 1000).await.unwrap();
        let ids: BTreeSet<&String> = all.iter().map(|task| &task.id).collect();
        assert_eq!((ids.len(), all.len()), (300, 300));
        let pending = all.iter().filter(|task| task.status == TaskStatus::Pending);
        assert_eq!(counts.pending, pending.count() as u64);
        looks.fetch_add(1, Ordering::Relaxed);
    }
    moving.await.unwrap();
    let looks = looks.load(Ordering::Relaxed);
    assert!(looks >= LOOKS, "{looks} looks");
}

#[tokio::test]
async fn the_finished_of_one_status_are_found_behind_very_many_of_another() {
    let mut fleet = Fleet::start().await;
    fleet.worker("w-1", 9, &["a.b"]).await;
    fleet.create("failed").await;
    fleet.fail("failed", "no", false).await;
    // As if a thousand had been finished in the ms of each other.
    let load = "local r = redis.call('HGET', KEYS[1], 'failed') local t = cmsgpack.unpack(r) \
        t.status = 'completed' for i = 1, 3000 do redis.call('HSET', KEYS[1], 't-' .. i, cmsgpack.pack(t)) \
        redis.call('ZADD', KEYS[2], 9999999999999 + math.floor(i / 300), 't-' .. i) end";
    redis::cmd("EVAL")
        .arg(load)
        .arg(2)
        .arg("cb:tasks")
        .arg("cb:tasks:done")
        .exec_async(&mut fleet.connection)
        .await
        .unwrap();
    let failed = fleet
        .tasks
        .list(Some(TaskStatus::Failed), 10)
        .await
        .unwrap();
    let ids: Vec<&str> = failed.iter().map(|task| task.id.as_str()).collect();
    assert_eq!(ids, ["failed"]);
}
