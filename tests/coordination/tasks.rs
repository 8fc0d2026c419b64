//! Tasks: creating, whom they go to, completing, failing, looking.

mod ends;

use crate::fleet::Fleet;
use convoke::coordination::error::CoordinationError;
use convoke::coordination::instances::instance::Registering;
use convoke::coordination::tasks::KEPT;
use convoke::coordination::tasks::task::{NewTask, TaskStatus};
use serde_json::json;

fn aborted(result: Result<impl std::fmt::Debug, CoordinationError>) -> String {
    match result {
        Err(CoordinationError::Aborted(message)) => message,
        other => panic!("not aborted: {other:?}"),
    }
}

#[tokio::test]
async fn a_task_goes_to_whoever_is_free_in_the_step_that_creates_it() {
    let mut fleet = Fleet::start().await;
    fleet.worker("w-1", 2, &["a.b"]).await;
    let mut task = NewTask::new("t-1", "a.b");
    task.payload = rmp_serde::to_vec_named(&json!({"n": 7, "deep": [{"x": "é"}]})).unwrap();
    let created = fleet.tasks.create(&task).await.unwrap();
    assert_eq!(created.status, TaskStatus::Assigned);
    assert_eq!(created.assigned_to.as_deref(), Some("w-1"));
    let fence = fleet.assignment("t-1").await.fence;
    let event = json!({
        "task_id": "t-1", "kind": "a.b", "payload": {"n": 7, "deep": [{"x": "é"}]},
        "fence": fence, "attempt": 1
    });
    assert_eq!(fleet.inbox("w-1").await, [event]);
    assert_eq!(fleet.slot("w-1").await, (1, 2));
    let is = fleet.task("t-1").await;
    assert_eq!((is.priority, is.attempt, is.max_attempts), (50, 1, 3));
    assert_eq!((is.kind.as_str(), is.role.as_str()), ("a.b", "worker"));
    assert!(is.created_at > 1_700_000_000_000 && is.changed_at == is.created_at);
}

#[tokio::test]
async fn the_same_task_again_changes_nothing_and_another_of_its_id_is_refused() {
    let mut fleet = Fleet::start().await;
    fleet.worker("w-1", 5, &["a.b", "c.d"]).await;
    let mut task = NewTask::new("t-1", "a.b");
    task.requires = vec!["c.d".into(), "a.b".into(), "c.d".into()];
    for _ in 0..3 {
        let created = fleet.tasks.create(&task).await.unwrap();
        assert_eq!(created.assigned_to.as_deref(), Some("w-1"));
    }
    assert_eq!(fleet.inbox("w-1").await.len(), 1);
    assert_eq!(fleet.slot("w-1").await.0, 1);
    let changes: [fn(&mut NewTask); 6] = [
        |t| t.kind = "c.d".into(),
        |t| t.payload = vec![1],
        |t| t.priority = 51,
        |t| t.role = "other".into(),
        |t| t.requires = vec!["a.b".into()],
        |t| t.max_attempts = 4,
    ];
    for change in changes {
        let mut other = task.clone();
        change(&mut other);
        let refused = fleet.tasks.create(&other).await.unwrap_err();
        assert!(
            matches!(&refused, CoordinationError::AlreadyExists(m) if m.contains("t-1")),
            "{refused}"
        );
    }
    fleet.complete("t-1").await;
    let again = fleet.tasks.create(&task).await.unwrap();
    assert_eq!(
        (again.status, again.assigned_to),
        (TaskStatus::Completed, None)
    );
    assert_eq!(fleet.tasks.counts().await.unwrap().completed, 1);
}

#[tokio::test]
async fn the_lowest_load_for_its_capacity_gets_it_and_nobody_more_than_the_capacity() {
    let mut fleet = Fleet::start().await;
    for (id, capacity) in [("w-0", 0), ("w-1", 1), ("w-2", 2), ("w-4", 4)] {
        fleet.worker(id, capacity, &["a.b"]).await;
    }
    let mut given = Vec::new();
    for number in 0..8 {
        let created = fleet.create(&format!("t-{number}")).await;
        given.push(created.assigned_to);
    }
    let given: Vec<_> = given.iter().map(|to| to.as_deref()).collect();
    // At equal loads the id decides; w-4 at 1/4 comes before w-2 at 1/2.
    let loads = [
        Some("w-1"),
        Some("w-2"),
        Some("w-4"),
        Some("w-4"),
        Some("w-2"),
        Some("w-4"),
        Some("w-4"),
        None,
    ];
    assert_eq!(given, loads);
    for (id, capacity) in [("w-1", 1), ("w-2", 2), ("w-4", 4)] {
        assert_eq!(fleet.slot(id).await, (capacity, capacity));
    }
    assert_eq!(fleet.task("t-7").await.status, TaskStatus::Pending);
}

#[tokio::test]
async fn it_goes_only_to_the_living_with_the_role_and_all_capabilities() {
    let mut fleet = Fleet::start().await;
    let register = async |id: &str, roles: &[&str], kinds: &[&str]| {
        let mut registering = Registering::new(id, roles.iter().copied());
        registering.capabilities = kinds.iter().map(|&kind| kind.to_owned()).collect();
        fleet.instances.register(&registering).await.unwrap();
    };
    register("dead", &["worker"], &["a.b", "c.d", "e.f"]).await;
    register("other-role", &["gpu"], &["a.b", "c.d"]).await;
    register("no-kind", &["worker"], &["c.d", "e.f"]).await;
    register("no-requirement", &["worker"], &["a.b", "c.d"]).await;
    register("says-nothing", &["worker"], &[]).await;
    register("z-has-all", &["gpu", "worker"], &["a.b", "c.d", "e.f"]).await;
    fleet.expire("dead").await;
    let mut task = NewTask::new("t-1", "a.b");
    task.requires = vec!["c.d".into(), "e.f".into()];
    let created = fleet.tasks.create(&task).await.unwrap();
    assert_eq!(created.assigned_to.as_deref(), Some("z-has-all"));
    // Of a kind that nobody has, only who says nothing takes it.
    let created = fleet.tasks.create(&NewTask::new("t-2", "x.y")).await;
    let to = created.unwrap().assigned_to;
    assert_eq!(to.as_deref(), Some("says-nothing"));
    let mut demanding = NewTask::new("t-3", "x.y");
    demanding.requires = vec!["x.z".into()];
    let created = fleet.tasks.create(&demanding).await.unwrap();
    assert_eq!(created.status, TaskStatus::Pending);
    let mut gpu = NewTask::new("t-4", "a.b");
    gpu.role = "gpu".into();
    let created = fleet.tasks.create(&gpu).await.unwrap();
    assert_eq!(created.assigned_to.as_deref(), Some("other-role"));
}

#[tokio::test]
async fn one_who_alone_has_the_capability_is_found_behind_many_of_lower_load() {
    let fleet = Fleet::start().await;
    for number in 0..40 {
        fleet.worker(&format!("w-{number:02}"), 4, &["a.b"]).await;
    }
    fleet.worker("x-1", 4, &["rare.kind", "a.b"]).await;
    let created = fleet.tasks.create(&NewTask::new("t-1", "rare.kind")).await;
    let to = created.unwrap().assigned_to;
    assert_eq!(to.as_deref(), Some("x-1"));
}

#[tokio::test]
async fn those_that_wait_go_by_priority_then_age_as_room_appears() {
    let fleet = Fleet::start().await;
    fleet.worker("w-1", 1, &["a.b", "c.d"]).await;
    fleet.create("first").await;
    let wait = async |id: &str, kind: &str, priority| {
        let mut task = NewTask::new(id, kind);
        task.priority = priority;
        let created = fleet.tasks.create(&task).await.unwrap();
        assert_eq!(created.status, TaskStatus::Pending);
    };
    wait("low", "a.b", 0).await;
    wait("old", "a.b", 50).await;
    wait("young", "c.d", 50).await;
    wait("older-lane", "a.b", 50).await;
    wait("high", "c.d", 100).await;
    let queued = fleet
        .tasks
        .list(Some(TaskStatus::Pending), 10)
        .await
        .unwrap();
    let queued: Vec<&str> = queued.iter().map(|task| task.id.as_str()).collect();
    assert_eq!(queued, ["high", "old", "young", "older-lane", "low"]);
    let mut at = "first".to_owned();
    let mut order = Vec::new();
    for _ in 0..5 {
        fleet.complete(&at).await;
        let held = fleet
            .tasks
            .list(Some(TaskStatus::Assigned), 10)
            .await
            .unwrap();
        assert_eq!(held.len(), 1);
        at = held[0].id.clone();
        order.push(at.clone());
    }
    assert_eq!(order, ["high", "old", "young", "older-lane", "low"]);
}

#[tokio::test]
async fn a_task_that_nobody_can_take_stops_none_of_another_lane() {
    let fleet = Fleet::start().await;
    fleet.worker("w-1", 1, &["a.b"]).await;
    fleet.create("first").await;
    for number in 0..200 {
        let mut stuck = NewTask::new(format!("stuck-{number}"), "no.body");
        stuck.priority = 90;
        stuck.requires = vec![format!("lane.l{}", number % 60)];
        fleet.tasks.create(&stuck).await.unwrap();
    }
    fleet.create("second").await;
    fleet.complete("first").await;
    assert_eq!(fleet.task("second").await.status, TaskStatus::Assigned);
}

#[tokio::test]
async fn lists_are_by_status_and_bounded() {
    let fleet = Fleet::start().await;
    fleet.worker("w-1", 3, &["a.b"]).await;
    for number in 0..6 {
        fleet.create(&format!("t-{number}")).await;
    }
    fleet.complete("t-0").await;
    fleet.fail("t-1", "no", false).await;
    let list = async |status: Option<TaskStatus>, limit| {
        let tasks = fleet.tasks.list(status, limit).await.unwrap();
        let ids: Vec<String> = tasks.into_iter().map(|task| task.id).collect();
        ids.join(" ")
    };
    assert_eq!(list(Some(TaskStatus::Assigned), 9).await, "t-2 t-3 t-4");
    assert_eq!(list(Some(TaskStatus::Pending), 9).await, "t-5");
    assert_eq!(list(Some(TaskStatus::Completed), 9).await, "t-0");
    assert_eq!(list(Some(TaskStatus::Failed), 9).await, "t-1");
    let all = list(None, 100).await;
    let mut all: Vec<&str> = all.split(' ').collect();
    // Two that ended in the same millisecond may come either way.
    all[4..].sort_unstable();
    assert_eq!(all, ["t-2", "t-3", "t-4", "t-5", "t-0", "t-1"]);
    assert_eq!(list(None, 2).await, "t-2 t-3");
    assert_eq!(list(None, 0).await, "");
    let counts = fleet.tasks.counts().await.unwrap();
    let counts = (
        counts.pending,
        counts.assigned,
        counts.completed,
        counts.failed,
    );
    assert_eq!(counts, (1, 3, 1, 1));
    let refused = fleet.tasks.list(None, 1001).await.unwrap_err();
    assert!(refused.to_string().starts_with("limit: 1001"), "{refused}");
    assert_eq!(fleet.tasks.get("t-9").await.unwrap(), None);
}

#[tokio::test]
async fn finished_tasks_are_kept_up_to_a_number_an_age_and_a_size() {
    let mut fleet = Fleet::start().await;
    fleet.worker("w-1", 100, &["a.b"]).await;
    let none = fleet.tasks.list(None, 100).await.unwrap();
    assert!(none.is_empty());
    let kept = async |fleet: &Fleet, id: &str| fleet.tasks.get(id).await.unwrap().is_some();
    // Too many: the oldest goes.
    fleet.create("t-old").await;
    fleet.complete("t-old").await;
    let done = fleet.keys.tasks().done;
    let mut fill = redis::cmd("ZADD");
    fill.arg(&done);
    for number in 1..KEPT {
        fill.arg(9_000_000_000_000u64)
            .arg(format!("other-{number}"));
    }
    fill.exec_async(&mut fleet.connection).await.unwrap();
    assert!(kept(&fleet, "t-old").await);
    fleet.create("t-new").await;
    fleet.complete("t-new").await;
    assert!(!kept(&fleet, "t-old").await && kept(&fleet, "t-new").await);
    assert_eq!(fleet.ask::<usize>(&format!("ZCARD {done}")).await, KEPT);
    // Too old: whoever looks at what waits removes it.
    fleet
        .run(&format!("ZREMRANGEBYSCORE {done} 9000000000000 +inf"))
        .await;
    fleet.tasks.assign_waiting().await.unwrap();
    assert!(kept(&fleet, "t-new").await);
    fleet.run(&format!("ZADD {done} 1000 t-new")).await;
    fleet.tasks.assign_waiting().await.unwrap();
    assert!(!kept(&fleet, "t-new").await);
    let counts = fleet.keys.tasks().counts;
    let bytes = async |fleet: &mut Fleet| fleet.ask::<i64>(&format!("HGET {counts} bytes")).await;
    assert_eq!(bytes(&mut fleet).await, 0);
    // Too large together.
    for id in ["t-1", "t-2"] {
        fleet.create(id).await;
        fleet.complete(id).await;
    }
    assert_eq!(bytes(&mut fleet).await, 4);
    fleet
        .run(&format!("ZADD {done} XX 2000000000000 t-2"))
        .await;
    fleet
        .run(&format!("HSET {counts} bytes {}", (64 << 20) + 1))
        .await;
    fleet.tasks.assign_waiting().await.unwrap();
    assert!(!kept(&fleet, "t-1").await && kept(&fleet, "t-2").await);
    let mut keys = fleet.all_keys().await;
    keys.retain(|key| key.starts_with("cb:tasks"));
    let left = [
        "cb:tasks",
        "cb:tasks:counts",
        "cb:tasks:data",
        "cb:tasks:done",
        "cb:tasks:free",
        "cb:tasks:slots",
    ];
    assert_eq!(keys, left);
    assert_eq!(
        fleet.ask::<Vec<String>>("HKEYS cb:tasks:data").await,
        ["t-2", "t-2 result"]
    );
}

#[tokio::test]
async fn a_full_memory_refuses_a_task_whole() {
    let mut fleet = Fleet::start().await;
    fleet.worker("w-1", 1, &["a.b"]).await;
    fleet.run("CONFIG SET maxmemory 1").await;
    let refused = fleet.tasks.create(&NewTask::new("t-1", "a.b")).await;
    assert!(
        matches!(&refused, Err(CoordinationError::Bus(bus)) if bus.code() == Some("OOM")),
        "{refused:?}"
    );
    fleet.run("CONFIG SET maxmemory 0").await;
    assert_eq!(fleet.tasks.get("t-1").await.unwrap(), None);
    assert_eq!(fleet.slot("w-1").await, (0, 1));
}

#[tokio::test]
async fn an_inbox_that_no_group_reads_is_capped_and_one_with_a_group_loses_nothing() {
    let mut fleet = Fleet::start().await;
    let all = 10_900;
    for (id, group) in [("program", false), ("worker", true)] {
        let inbox = fleet.keys.inbox(id);
        let mut old = redis::pipe();
        for _ in 0..all {
            old.cmd("XADD")
                .arg(&inbox)
                .arg(&["*", "type", "a.b"])
                .ignore();
        }
        if group {
            old.cmd("XGROUP").arg("CREATE").arg(&inbox);
            old.arg(&["workers", "0"]).ignore();
        }
        old.exec_async(&mut fleet.connection).await.unwrap();
        fleet.worker(id, 1, &[]).await;
        fleet.create(&format!("for-{id}")).await;
        let mut length = redis::cmd("XLEN");
        let length = length.arg(&inbox).query_async(&mut fleet.connection);
        let length: usize = length.await.unwrap();
        match group {
            true => assert_eq!(length, all + 1),
            false => assert!((10_000..10_200).contains(&length), "{length}"),
        }
    }
}

#[tokio::test]
async fn an_inbox_that_is_no_stream_gets_nothing() {
    let mut fleet = Fleet::start().await;
    fleet.worker("w-1", 1, &["a.b"]).await;
    fleet.worker("w-2", 1, &["a.b"]).await;
    fleet.run("SET cb:inbox:w-1 text").await;
    assert_eq!(
        fleet.create("t-1").await.assigned_to.as_deref(),
        Some("w-2")
    );
    assert_eq!(fleet.create("t-2").await.status, TaskStatus::Pending);
    fleet.complete("t-1").await;
    assert_eq!(fleet.task("t-2").await.instance.as_deref(), Some("w-2"));
}

/// What somebody deleted by hand keeps no other task from its end.
#[tokio::test]
async fn a_finished_task_without_a_record_is_forgotten_like_the_others() {
    let mut fleet = Fleet::start().await;
    fleet.worker("w-1", 10, &["a.b"]).await;
    for id in ["t-1", "t-2"] {
        fleet.create(id).await;
        fleet.complete(id).await;
    }
    fleet.run("HDEL cb:tasks t-1").await;
    fleet.run("ZADD cb:tasks:done XX 1000 t-1").await;
    fleet.create("t-3").await;
    fleet.complete("t-3").await;
    let mut left: Vec<String> = fleet.ask("ZRANGE cb:tasks:done 0 -1").await;
    // The clock may have stepped back between their ends.
    left.sort_unstable();
    assert_eq!(left, ["t-2", "t-3"]);
}
