//! Somebody's word about a task: it is changed, given to an instance, taken from one.

use crate::fleet::Fleet;
use convoke::coordination::error::CoordinationError;
use convoke::coordination::instances::instance::Registering;
use convoke::coordination::tasks::MAX_WAITING_BYTES;
use convoke::coordination::tasks::task::{NewTask, TaskStatus};
use convoke::coordination::tasks::update::TaskChange;
use serde_json::json;

fn refused<T: std::fmt::Debug>(done: Result<T, CoordinationError>) -> String {
    match done {
        Err(CoordinationError::FailedPrecondition(message)) => message,
        other => panic!("it was not refused: {other:?}"),
    }
}

fn is_aborted<T: std::fmt::Debug>(done: Result<T, CoordinationError>) {
    assert!(
        matches!(done, Err(CoordinationError::Aborted(_))),
        "{done:?}"
    );
}

async fn waiting(fleet: &Fleet) -> Vec<String> {
    let waits = fleet
        .tasks
        .list(Some(TaskStatus::Pending), 100)
        .await
        .unwrap();
    waits.into_iter().map(|task| task.id).collect()
}

async fn with_priority(fleet: &Fleet, id: &str, priority: u8) {
    let mut task = NewTask::new(id, "a.b");
    task.priority = priority;
    fleet.tasks.create(&task).await.unwrap();
}

#[tokio::test]
async fn a_task_goes_to_whom_somebody_names_under_a_higher_fence() {
    let mut fleet = Fleet::start().await;
    fleet.worker("w-1", 1, &["a.b"]).await;
    fleet.create("t-1").await;
    fleet.create("t-2").await;
    let before = fleet.assignment("t-1").await;
    fleet.worker("w-2", 2, &["a.b"]).await;
    assert_eq!(fleet.assignment("t-2").await.instance, "w-2");
    let placed = fleet.tasks.assign("t-1", "w-2", "e-1").await.unwrap();
    assert_eq!(
        (placed.status, placed.assigned_to.as_deref()),
        (TaskStatus::Assigned, Some("w-2"))
    );
    assert!(placed.fence > Some(before.fence));
    assert_eq!(fleet.task("t-1").await.attempt, 1, "nobody failed");
    assert_eq!(fleet.slot("w-1").await, (0, 1));
    assert_eq!(fleet.slot("w-2").await, (2, 2));
    is_aborted(fleet.tasks.complete(&before, &[0xc0], &[]).await);
    is_aborted(fleet.tasks.fail(&before, "late", true).await);
    let arrived = fleet.inbox("w-2").await;
    assert_eq!(arrived.last().unwrap()["fence"], json!(placed.fence));
    let facts = fleet.facts().await;
    let told = facts.iter().find(|(kind, _)| kind == "task.unassigned");
    let fact = json!({"task_id": "t-1", "kind": "a.b", "instance_id": "w-1",
        "fence": before.fence, "attempt": 1});
    assert_eq!(told.unwrap().1, fact);
    // Who holds it already keeps it as it is.
    let again = fleet.tasks.assign("t-1", "w-2", "e-2").await.unwrap();
    assert_eq!(again, placed);
    fleet.complete("t-1").await;
    let ended = refused(fleet.tasks.assign("t-1", "w-1", "e-3").await);
    assert!(ended.contains("completed"), "{ended}");
    let nothing = fleet.tasks.assign("t-9", "w-1", "e-4").await;
    assert!(matches!(nothing, Err(CoordinationError::NotFound(_))));
}

#[tokio::test]
async fn who_had_the_task_gets_what_waits_in_the_same_step() {
    let mut fleet = Fleet::start().await;
    fleet.worker("w-1", 1, &["a.b", "c.d"]).await;
    fleet.create("t-1").await;
    fleet.worker("w-2", 1, &["a.b"]).await;
    let other = NewTask::new("t-2", "c.d");
    fleet.tasks.create(&other).await.unwrap();
    assert_eq!(waiting(&fleet).await, ["t-2"]);
    fleet.tasks.assign("t-1", "w-2", "").await.unwrap();
    assert_eq!(fleet.assignment("t-2").await.instance, "w-1");
    assert_eq!(fleet.slot("w-1").await, (1, 1));
}

#[tokio::test]
async fn room_role_and_capabilities_hold_against_everybodys_word_and_it_is_said_which() {
    let mut fleet = Fleet::start().await;
    fleet.worker("full", 1, &["a.b", "c.d"]).await;
    fleet.create("held").await;
    let register = async |id: &str, role: &str, kinds: &[&str]| {
        let mut registering = Registering::new(id, [role]);
        registering.capabilities = kinds.iter().map(|&kind| kind.to_owned()).collect();
        fleet.instances.register(&registering).await.unwrap();
    };
    register("other-role", "gpu", &["a.b", "c.d"]).await;
    register("no-kind", "worker", &["c.d"]).await;
    register("no-requirement", "worker", &["a.b"]).await;
    register("says-nothing", "worker", &[]).await;
    register("leaves", "worker", &["a.b", "c.d"]).await;
    register("gone", "worker", &["a.b", "c.d"]).await;
    fleet.tasks.retire("leaves").await.unwrap();
    fleet.expire("gone").await;
    let mut task = NewTask::new("t-1", "a.b");
    task.requires = vec!["c.d".into()];
    let created = fleet.tasks.create(&task).await.unwrap();
    assert_eq!(created.status, TaskStatus::Pending);
    for (instance, why) in [
        ("full", "no room: it holds as many tasks as its capacity, 1"),
        ("other-role", "the role"),
        ("no-kind", "the capability a.b"),
        ("no-requirement", "the capability c.d"),
        ("says-nothing", "the capability c.d"),
        ("leaves", "no more tasks"),
        ("gone", "not active"),
        ("unheard-of", "not active"),
    ] {
        let said = refused(fleet.tasks.assign("t-1", instance, "").await);
        assert!(
            said.starts_with("instance_id: ") && said.contains(why),
            "{said}"
        );
    }
    assert_eq!(fleet.task("t-1").await.status, TaskStatus::Pending);
    // One that named no capabilities takes any kind.
    fleet
        .tasks
        .assign("held", "says-nothing", "")
        .await
        .unwrap();
    assert_eq!(fleet.assignment("held").await.instance, "says-nothing");
    // And its room is for who waited.
    assert_eq!(fleet.assignment("t-1").await.instance, "full");
}

#[tokio::test]
async fn a_task_that_is_taken_away_goes_to_another_or_waits_and_its_holder_gets_what_waits() {
    let mut fleet = Fleet::start().await;
    fleet.worker("w-1", 1, &["a.b"]).await;
    fleet.create("t-1").await;
    fleet.create("t-2").await;
    let first = fleet.assignment("t-1").await;
    // Nobody else can take it: the holder gets the other one.
    let placed = fleet.tasks.unassign("t-1", "e-1").await.unwrap();
    assert_eq!(
        (placed.status, placed.assigned_to),
        (TaskStatus::Pending, None)
    );
    assert_eq!(fleet.assignment("t-2").await.instance, "w-1");
    assert_eq!(fleet.task("t-1").await.attempt, 0, "nobody failed");
    is_aborted(fleet.tasks.complete(&first, &[0xc0], &[]).await);
    // One that waits is left as it is.
    let same = fleet.tasks.unassign("t-1", "e-2").await.unwrap();
    assert_eq!(same.status, TaskStatus::Pending);
    // Then it is scheduled as usual.
    fleet.complete("t-2").await;
    let second = fleet.assignment("t-1").await;
    assert!(second.instance == "w-1" && second.fence > first.fence);
    fleet.worker("w-2", 5, &["a.b"]).await;
    let placed = fleet.tasks.unassign("t-1", "e-3").await.unwrap();
    assert_eq!(placed.assigned_to.as_deref(), Some("w-2"));
    assert!(placed.fence > Some(second.fence));
    is_aborted(fleet.tasks.complete(&second, &[0xc0], &[]).await);
    let facts = fleet.fact_names().await.into_iter();
    assert_eq!(facts.filter(|fact| fact == "task.unassigned").count(), 2);
    fleet.complete("t-1").await;
    let ended = refused(fleet.tasks.unassign("t-1", "e-4").await);
    assert!(ended.contains("completed"), "{ended}");
    let nothing = fleet.tasks.unassign("t-9", "").await;
    assert!(matches!(nothing, Err(CoordinationError::NotFound(_))));
}

#[tokio::test]
async fn one_that_nobody_else_can_take_is_not_given_back_before_the_next_look() {
    let fleet = Fleet::start().await;
    fleet.worker("w-1", 3, &["a.b"]).await;
    fleet.create("t-1").await;
    let first = fleet.assignment("t-1").await;
    fleet.tasks.unassign("t-1", "").await.unwrap();
    assert_eq!(waiting(&fleet).await, ["t-1"]);
    assert_eq!(fleet.tasks.assign_waiting().await.unwrap(), ["t-1"]);
    assert!(fleet.assignment("t-1").await.fence > first.fence);
}

#[tokio::test]
async fn the_same_word_again_does_not_undo_what_came_after_it() {
    let fleet = Fleet::start().await;
    fleet.worker("w-1", 1, &["a.b"]).await;
    fleet.create("t-1").await;
    fleet.worker("w-2", 1, &["a.b"]).await;
    fleet.worker("w-3", 1, &["a.b"]).await;
    fleet.tasks.assign("t-1", "w-2", "e-1").await.unwrap();
    fleet.tasks.assign("t-1", "w-3", "e-2").await.unwrap();
    let is = fleet.assignment("t-1").await;
    let late = fleet.tasks.assign("t-1", "w-2", "e-1").await.unwrap();
    assert_eq!(late.assigned_to.as_deref(), Some("w-3"));
    let taken = fleet.tasks.unassign("t-1", "e-3").await.unwrap();
    let now = fleet.assignment("t-1").await;
    assert!(now.fence > is.fence);
    for _ in 0..2 {
        assert_eq!(fleet.tasks.unassign("t-1", "e-3").await.unwrap(), taken);
    }
    assert_eq!(fleet.assignment("t-1").await, now);
    // Words have ids of their own.
    let other = fleet.tasks.unassign("t-1", "e-1").await.unwrap();
    assert!(other.fence > taken.fence);
}

#[tokio::test]
async fn a_new_priority_keeps_the_age() {
    let fleet = Fleet::start().await;
    for (id, priority) in [("a", 50), ("b", 10), ("c", 50), ("d", 90)] {
        with_priority(&fleet, id, priority).await;
    }
    assert_eq!(waiting(&fleet).await, ["d", "a", "c", "b"]);
    let to = |priority| TaskChange {
        priority: Some(priority),
        ..TaskChange::default()
    };
    let placed = fleet.tasks.update("b", &to(50), "e-1").await.unwrap();
    assert_eq!(placed.status, TaskStatus::Pending);
    assert_eq!(waiting(&fleet).await, ["d", "a", "b", "c"]);
    fleet.tasks.update("d", &to(0), "e-2").await.unwrap();
    assert_eq!(waiting(&fleet).await, ["a", "b", "c", "d"]);
    // Late, it undoes nothing.
    fleet.tasks.update("b", &to(99), "e-3").await.unwrap();
    fleet.tasks.update("b", &to(50), "e-1").await.unwrap();
    assert_eq!(waiting(&fleet).await, ["b", "a", "c", "d"]);
    fleet.worker("w-1", 1, &["a.b"]).await;
    for id in ["b", "a", "c", "d"] {
        fleet.complete(id).await;
    }
}

#[tokio::test]
async fn a_task_is_known_by_what_it_was_created_with_however_it_was_changed() {
    let fleet = Fleet::start().await;
    let mut task = NewTask::new("t-1", "a.b");
    task.payload = vec![7];
    task.requires = vec!["c.d".into()];
    fleet.tasks.create(&task).await.unwrap();
    let change = |priority, payload, requires: &str| TaskChange {
        priority: Some(priority),
        payload: Some(vec![payload]),
        requires: Some(vec![requires.into()]),
        metadata: None,
    };
    for (at, changed) in [change(70, 8, "e.f"), change(71, 9, "g.h")]
        .iter()
        .enumerate()
    {
        let id = format!("e-{at}");
        fleet.tasks.update("t-1", changed, &id).await.unwrap();
        let again = fleet.tasks.create(&task).await.unwrap();
        assert_eq!(again.status, TaskStatus::Pending);
        let is = fleet.tasks.get("t-1").await.unwrap().unwrap();
        assert_eq!(Some(is.task.priority), changed.priority);
        // As it is now it was not created.
        let mut other = task.clone();
        other.priority = is.task.priority;
        other.payload = is.payload;
        other.requires = is.task.requires;
        for other in [
            other,
            NewTask {
                max_attempts: 9,
                ..task.clone()
            },
        ] {
            let differs = fleet.tasks.create(&other).await;
            assert!(
                matches!(differs, Err(CoordinationError::AlreadyExists(_))),
                "{differs:?}"
            );
        }
    }
}

#[tokio::test]
async fn a_task_is_changed_while_it_waits_only() {
    let mut fleet = Fleet::start().await;
    fleet.create("t-1").await;
    let change = TaskChange {
        priority: Some(70),
        payload: Some(vec![7]),
        requires: Some(vec!["c.d".into(), "c.d".into()]),
        metadata: Some(vec![0x81, 0xa1, b'x', 1]),
    };
    fleet.tasks.update("t-1", &change, "e-1").await.unwrap();
    let is = fleet.tasks.get("t-1").await.unwrap().unwrap();
    assert_eq!(
        (is.task.priority, is.task.requires.as_slice()),
        (70, &["c.d".to_owned()][..])
    );
    assert_eq!(
        (is.payload, is.metadata),
        (vec![7], change.metadata.clone())
    );
    let bytes: u64 = fleet.ask("HGET cb:tasks:counts waiting").await;
    assert_eq!(bytes, 5, "a payload and its metadata");
    // What is left out stays; and whoever can take it as it is now gets it in the same step.
    assert!(fleet.worker("w-1", 1, &["a.b"]).await.assigned.is_empty());
    let free = TaskChange {
        requires: Some(vec![]),
        ..TaskChange::default()
    };
    let placed = fleet.tasks.update("t-1", &free, "e-2").await.unwrap();
    assert_eq!(placed.assigned_to.as_deref(), Some("w-1"));
    let arrived = fleet.inbox("w-1").await;
    assert_eq!(arrived[0]["payload"], json!(7));
    let bytes: u64 = fleet.ask("HGET cb:tasks:counts waiting").await;
    assert_eq!(bytes, 0);
    let said = refused(fleet.tasks.update("t-1", &change, "e-3").await);
    assert!(said.contains("w-1 holds t-1"), "{said}");
    // The same again is told how it is.
    assert_eq!(
        fleet.tasks.update("t-1", &free, "e-2").await.unwrap(),
        placed
    );
    fleet.complete("t-1").await;
    let said = refused(fleet.tasks.update("t-1", &change, "e-4").await);
    assert!(said.contains("completed"), "{said}");
    let nothing = fleet.tasks.update("t-9", &change, "").await;
    assert!(matches!(nothing, Err(CoordinationError::NotFound(_))));
    for (wrong, field) in [
        (
            TaskChange {
                priority: Some(101),
                ..TaskChange::default()
            },
            "priority",
        ),
        (
            TaskChange {
                payload: Some(vec![0xc1]),
                ..TaskChange::default()
            },
            "payload",
        ),
        (
            TaskChange {
                requires: Some(vec!["x".into()]),
                ..TaskChange::default()
            },
            "requires[0]",
        ),
        (
            TaskChange {
                metadata: Some(vec![7]),
                ..TaskChange::default()
            },
            "metadata",
        ),
    ] {
        let done = fleet.tasks.update("t-1", &wrong, "").await;
        let said = done.unwrap_err().to_string();
        assert!(said.starts_with(field), "{said}");
    }
    // What is kept of it goes with it.
    fleet.run("ZADD cb:tasks:done XX 1000 t-1").await;
    fleet.tasks.assign_waiting().await.unwrap();
    let left: Vec<String> = fleet.ask("HKEYS cb:tasks:data").await;
    assert_eq!(left, [""; 0]);
}

#[tokio::test]
async fn what_a_changed_task_leaves_is_no_place_in_any_lane() {
    let mut fleet = Fleet::start().await;
    for id in ["a", "b", "c"] {
        fleet.create(id).await;
    }
    let demands = TaskChange {
        requires: Some(vec!["x.y".into()]),
        ..TaskChange::default()
    };
    // The first of its lane, one in the middle, and the last.
    for id in ["a", "c", "b"] {
        fleet.tasks.update(id, &demands, "").await.unwrap();
    }
    assert!(fleet.worker("w-1", 9, &["a.b"]).await.assigned.is_empty());
    assert_eq!(fleet.ask::<u32>("ZCARD cb:tasks:waiting").await, 3);
    assert_eq!(fleet.ask::<u32>("ZCARD cb:tasks:heads").await, 1);
    let able = fleet.worker("w-2", 9, &["a.b", "x.y"]).await;
    assert_eq!(able.assigned, ["a", "b", "c"]);
    for key in ["waiting", "heads", "queue"] {
        assert_eq!(fleet.ask::<u32>(&format!("ZCARD cb:tasks:{key}")).await, 0);
    }
}

#[tokio::test]
async fn a_task_is_not_in_its_own_way_where_it_stood_before() {
    let mut fleet = Fleet::start().await;
    fleet.worker("w-1", 3, &["a.b"]).await;
    fleet.create("t-1").await;
    // It waits, though its holder has room.
    fleet.tasks.unassign("t-1", "").await.unwrap();
    let later = TaskChange {
        priority: Some(10),
        ..TaskChange::default()
    };
    let placed = fleet.tasks.update("t-1", &later, "").await.unwrap();
    assert_eq!(placed.assigned_to.as_deref(), Some("w-1"));
    assert_eq!(fleet.slot("w-1").await, (1, 3));
    assert_eq!(fleet.inbox("w-1").await.len(), 2);
    assert_eq!(fleet.task("t-1").await.attempt, 1);
    for key in ["waiting", "heads", "queue"] {
        assert_eq!(fleet.ask::<u32>(&format!("ZCARD cb:tasks:{key}")).await, 0);
    }
}

#[tokio::test]
async fn so_many_bytes_may_wait_after_a_change_too() {
    let fleet = Fleet::start().await;
    let mut task = NewTask::new("", "a.b");
    task.payload = [vec![0xc6, 0, 0x0f, 0, 0], vec![7; 0x0f_00_00]].concat();
    for number in 0..MAX_WAITING_BYTES / task.payload.len() {
        task.id = format!("t-{number}");
        fleet.tasks.create(&task).await.unwrap();
    }
    fleet.create("small").await;
    let grows = TaskChange {
        payload: Some(task.payload.clone()),
        ..TaskChange::default()
    };
    let done = fleet.tasks.update("small", &grows, "").await;
    let said = match done {
        Err(CoordinationError::Exhausted(said)) => said,
        other => panic!("{other:?}"),
    };
    assert!(said.starts_with("payload"), "{said}");
    assert_eq!(
        fleet.tasks.get("small").await.unwrap().unwrap().payload,
        [0xc0]
    );
    // One that shrinks always may.
    let shrinks = TaskChange {
        payload: Some(vec![1]),
        ..TaskChange::default()
    };
    fleet.tasks.update("t-0", &shrinks, "").await.unwrap();
    fleet.tasks.update("small", &grows, "").await.unwrap();
}
