//! How a task ends: its holder completes it, fails it, or lets it go to another.

use super::aborted;
use crate::fleet::Fleet;
use crate::support::beside_control;
use convoke::coordination::error::CoordinationError;
use convoke::coordination::tasks::Assignment;
use convoke::coordination::tasks::task::{NewTask, TaskStatus};
use convoke::streams::commit::Publication;
use serde_json::json;

#[tokio::test]
async fn completing_stores_result_fact_and_publications_in_one_step_and_once() {
    let mut fleet = Fleet::start().await;
    fleet.worker("w-1", 1, &["a.b"]).await;
    fleet.create("t-1").await;
    let assignment = fleet.assignment("t-1").await;
    let publication = |stream: &str, n: u8| Publication {
        stream: stream.to_owned(),
        fields: vec![b"type".into(), b"x.y".into(), b"data".into(), vec![n]],
    };
    let published = [
        publication(&fleet.keys.events("x", 0), 1),
        publication(&fleet.keys.events("y", 0), 2),
    ];
    let result = rmp_serde::to_vec_named(&json!({"size": 3})).unwrap();
    for _ in 0..2 {
        let done = fleet.tasks.complete(&assignment, &result, &published).await;
        done.unwrap();
    }
    let detail = fleet.tasks.get("t-1").await.unwrap().unwrap();
    assert_eq!(detail.task.status, TaskStatus::Completed);
    assert_eq!(detail.result, Some(result));
    fleet.move_published().await;
    assert_eq!(fleet.ask::<u32>("XLEN cb:events:x").await, 1);
    assert_eq!(fleet.ask::<u32>("XLEN cb:events:y").await, 1);
    let fact = json!({
        "task_id": "t-1", "kind": "a.b", "instance_id": "w-1", "fence": assignment.fence,
        "attempt": 1
    });
    let facts = fleet.facts().await;
    let created = json!({"task_id": "t-1", "kind": "a.b", "role": "worker", "priority": 50});
    let told = [
        ("task.created".into(), created),
        ("task.completed".into(), fact),
    ];
    assert_eq!(facts[1..], told);
    assert_eq!(fleet.slot("w-1").await, (0, 1));
    let counts = fleet.tasks.counts().await.unwrap();
    assert_eq!((counts.assigned, counts.completed), (0, 1));
}

#[tokio::test]
async fn what_can_not_be_published_completes_nothing() {
    let mut fleet = Fleet::start().await;
    fleet.worker("w-1", 1, &["a.b"]).await;
    fleet.create("t-1").await;
    let [good, bad] = ["cb:events:good", "cb:events:bad"].map(beside_control);
    fleet.run(&format!("SET {bad} text")).await;
    let publications = [&good, &bad].map(|stream| Publication {
        stream: stream.clone(),
        fields: vec![b"type".into(), b"x.y".into()],
    });
    let assignment = fleet.assignment("t-1").await;
    let refused = fleet.tasks.complete(&assignment, &[0xc0], &publications);
    match refused.await {
        Err(CoordinationError::FailedPrecondition(m)) => assert!(m.contains(&bad)),
        other => panic!("{other:?}"),
    }
    assert_eq!(fleet.task("t-1").await.status, TaskStatus::Assigned);
    let there: u32 = fleet.ask(&format!("EXISTS {good}")).await;
    assert_eq!(there, 0);
    let result = [vec![0xc6, 0, 0x10, 0, 0], vec![0; 0x10_0000]].concat();
    let refused = fleet.tasks.complete(&assignment, &result, &[]).await;
    assert!(matches!(refused, Err(CoordinationError::Invalid(m)) if m.starts_with("result: ")));
}

#[tokio::test]
async fn only_the_holder_with_its_fence_completes_or_fails_a_task() {
    let fleet = Fleet::start().await;
    fleet.worker("w-1", 1, &["a.b"]).await;
    fleet.worker("w-2", 1, &["a.b"]).await;
    fleet.create("t-1").await;
    let held = fleet.assignment("t-1").await;
    let stranger = Assignment {
        instance: "w-2".into(),
        ..held.clone()
    };
    let stale = Assignment {
        fence: held.fence - 1,
        ..held.clone()
    };
    for wrong in [&stranger, &stale] {
        let message = aborted(fleet.tasks.complete(wrong, &[0xc0], &[]).await);
        assert!(message.contains("assigned to w-1"), "{message}");
        aborted(fleet.tasks.fail(wrong, "no", true).await);
        assert!(!fleet.tasks.holds(wrong).await.unwrap());
    }
    assert!(fleet.tasks.holds(&held).await.unwrap());
    let unknown = Assignment {
        task: "t-9".into(),
        ..held.clone()
    };
    let missing = fleet.tasks.complete(&unknown, &[0xc0], &[]).await;
    assert!(matches!(missing, Err(CoordinationError::NotFound(m)) if m.contains("t-9")));
    let missing = fleet.tasks.fail(&unknown, "no", true).await;
    assert!(matches!(missing, Err(CoordinationError::NotFound(_))));
    assert!(!fleet.tasks.holds(&unknown).await.unwrap());
    // Failed on w-1, it is w-2's: the old fence is void, and completing it needs the new one.
    let status = fleet.tasks.fail(&held, "no", true).await.unwrap();
    assert_eq!(status, TaskStatus::Assigned);
    aborted(fleet.tasks.complete(&held, &[0xc0], &[]).await);
    let now = fleet.assignment("t-1").await;
    assert_eq!(now.instance, "w-2");
    assert!(now.fence > held.fence);
    fleet.complete("t-1").await;
    aborted(fleet.tasks.fail(&now, "no", true).await);
    aborted(fleet.tasks.complete(&held, &[0xc0], &[]).await);
}

#[tokio::test]
async fn a_failure_goes_to_another_then_waits_or_comes_back_and_in_the_end_is_final() {
    let mut fleet = Fleet::start().await;
    fleet.worker("w-1", 2, &["a.b"]).await;
    fleet.worker("w-2", 2, &["a.b"]).await;
    fleet.create("t-1").await;
    let first = fleet.assignment("t-1").await;
    assert_eq!(first.instance, "w-1");
    let fail = async |assignment: &Assignment| {
        let failed = fleet.tasks.fail(assignment, "no image", true).await;
        failed.unwrap()
    };
    assert_eq!(fail(&first).await, TaskStatus::Assigned);
    let second = fleet.assignment("t-1").await;
    assert_eq!(second.instance, "w-2");
    // The same again tells how it is, and changes nothing.
    assert_eq!(fail(&first).await, TaskStatus::Assigned);
    assert_eq!(fleet.assignment("t-1").await, second);
    // The other one is full: it comes back to the same.
    fleet.worker("w-1", 0, &["a.b"]).await;
    assert_eq!(fail(&second).await, TaskStatus::Assigned);
    let third = fleet.assignment("t-1").await;
    assert_eq!(
        (third.instance.as_str(), fleet.task("t-1").await.attempt),
        ("w-2", 3)
    );
    assert_eq!(fail(&third).await, TaskStatus::Failed);
    assert_eq!(fail(&third).await, TaskStatus::Failed);
    let is = fleet.task("t-1").await;
    assert_eq!(is.error.as_deref(), Some("no image"));
    let fact = json!({
        "task_id": "t-1", "kind": "a.b", "instance_id": "w-2", "fence": third.fence, "attempt": 3,
        "error": "no image"
    });
    assert_eq!(
        fleet.facts().await.last(),
        Some(&("task.failed".into(), fact))
    );
    assert_eq!(fleet.slot("w-2").await, (0, 2));
    assert_eq!(fleet.tasks.counts().await.unwrap().failed, 1);
}

#[tokio::test]
async fn a_permanent_failure_is_final_at_once_and_one_without_room_waits() {
    let mut fleet = Fleet::start().await;
    fleet.worker("w-1", 1, &["a.b", "c.d"]).await;
    fleet.create("t-1").await;
    let long = "é".repeat(2000);
    assert_eq!(fleet.fail("t-1", &long, false).await, TaskStatus::Failed);
    assert_eq!(fleet.task("t-1").await.error.unwrap().len(), 1024);
    // What waits with a higher priority gets the room that the failure makes.
    fleet.create("t-2").await;
    let mut urgent = NewTask::new("urgent", "c.d");
    urgent.priority = 60;
    fleet.tasks.create(&urgent).await.unwrap();
    assert_eq!(fleet.fail("t-2", "no", true).await, TaskStatus::Pending);
    assert_eq!(fleet.task("urgent").await.status, TaskStatus::Assigned);
    let is = fleet.task("t-2").await;
    assert_eq!((is.instance, is.attempt), (None, 1));
    assert_eq!(fleet.slot("w-1").await, (1, 1));
}
