//! What happens to tasks as instances come and go.

use crate::fleet::Fleet;
use convoke::coordination::error::CoordinationError;
use convoke::coordination::instances::instance::Registering;
use convoke::coordination::tasks::task::{NewTask, TaskStatus};
use convoke::protocol::keys::Keys;
use serde_json::json;

/// Creates tasks of `a.b`, numbered from 0.
async fn create(fleet: &Fleet, count: usize) {
    for number in 0..count {
        fleet.create(&format!("t-{number:03}")).await;
    }
}

async fn ids(fleet: &Fleet, status: TaskStatus) -> Vec<String> {
    let tasks = fleet.tasks.list(Some(status), 1000).await.unwrap();
    let mut ids: Vec<String> = tasks.into_iter().map(|task| task.id).collect();
    ids.sort();
    ids
}

#[tokio::test]
async fn whoever_registers_gets_what_waits_for_it_in_the_same_step() {
    let mut fleet = Fleet::start().await;
    create(&fleet, 5).await;
    let mut other = NewTask::new("other", "c.d");
    other.priority = 100;
    fleet.tasks.create(&other).await.unwrap();
    let registered = fleet.worker("w-1", 3, &["a.b"]).await;
    assert_eq!(registered.assigned, ["t-000", "t-001", "t-002"]);
    let inbox = fleet.inbox("w-1").await;
    let arrived: Vec<&str> = inbox
        .iter()
        .map(|e| e["task_id"].as_str().unwrap())
        .collect();
    assert_eq!(arrived, ["t-000", "t-001", "t-002"]);
    assert_eq!(fleet.slot("w-1").await, (3, 3));
    // Again: full. A higher capacity takes more; a lower one takes nothing away.
    assert!(fleet.worker("w-1", 3, &["a.b"]).await.assigned.is_empty());
    assert_eq!(fleet.worker("w-1", 4, &["a.b"]).await.assigned, ["t-003"]);
    assert!(fleet.worker("w-1", 1, &["a.b"]).await.assigned.is_empty());
    assert_eq!(fleet.slot("w-1").await, (4, 1));
    fleet.complete("t-000").await;
    assert_eq!(fleet.slot("w-1").await, (3, 1));
    assert_eq!(ids(&fleet, TaskStatus::Pending).await, ["other", "t-004"]);
    // Another capability, another role.
    assert_eq!(fleet.worker("w-2", 9, &["c.d"]).await.assigned, ["other"]);
    let none = fleet.register("w-3", &["gpu"]).await.assigned;
    assert!(none.is_empty());
}

#[tokio::test]
async fn a_large_instance_gets_all_that_waits_in_bounded_steps() {
    let mut fleet = Fleet::start().await;
    create(&fleet, 100).await;
    let registered = fleet.worker("w-1", 1000, &["a.b"]).await;
    assert!(registered.new);
    assert_eq!(registered.assigned.len(), 100);
    assert_eq!(fleet.slot("w-1").await, (100, 1000));
    let mut facts = fleet.fact_names().await;
    facts.retain(|fact| fact != "task.created");
    assert_eq!(facts, ["instance.registered"]);
}

#[tokio::test]
async fn who_unregisters_leaves_its_tasks_to_others_under_higher_fences() {
    let mut fleet = Fleet::start().await;
    fleet.worker("w-1", 4, &["a.b"]).await;
    create(&fleet, 4).await;
    let before = fleet.assignment("t-000").await;
    fleet.worker("w-2", 3, &["a.b"]).await;
    let left = fleet.instances.unregister("w-1", None).await.unwrap();
    assert_eq!((left.unregistered, left.tasks_reassigned), (true, 4));
    let after = fleet.assignment("t-000").await;
    assert_eq!(after.instance, "w-2");
    assert!(after.fence > before.fence);
    assert_eq!(ids(&fleet, TaskStatus::Pending).await, ["t-003"]);
    assert_eq!(
        (fleet.slot("w-1").await, fleet.slot("w-2").await),
        ((0, 0), (3, 3))
    );
    // It left properly: no attempt is used up.
    assert_eq!(fleet.task("t-000").await.attempt, 1);
    assert_eq!(fleet.task("t-003").await.attempt, 0);
    let late = fleet.tasks.complete(&before, &[0xc0], &[]).await;
    assert!(matches!(late, Err(CoordinationError::Aborted(_))));
    let fact = fleet.facts().await.last().unwrap().clone();
    assert_eq!(fact.1["tasks_reassigned"], json!(4));
    let again = fleet.instances.unregister("w-1", None).await.unwrap();
    assert_eq!(again.tasks_reassigned, 4);
}

#[tokio::test]
async fn a_loss_moves_tasks_on_and_fails_those_on_their_last_attempt() {
    let mut fleet = Fleet::start().await;
    fleet.worker("w-1", 4, &["a.b"]).await;
    create(&fleet, 2).await;
    let mut last = NewTask::new("t-last", "a.b");
    last.max_attempts = 1;
    fleet.tasks.create(&last).await.unwrap();
    let mut urgent = NewTask::new("z-urgent", "a.b");
    urgent.priority = 99;
    fleet.tasks.create(&urgent).await.unwrap();
    fleet.worker("w-2", 1, &["a.b"]).await;
    fleet.expire("w-1").await;
    let swept = fleet.instances.sweep(16).await.unwrap();
    assert_eq!(swept.lost[0].tasks_reassigned, 3);
    // The most urgent one got the only room.
    let urgent = fleet.task("z-urgent").await;
    assert_eq!(
        (urgent.instance.as_deref(), urgent.attempt),
        (Some("w-2"), 2)
    );
    assert_eq!(ids(&fleet, TaskStatus::Pending).await, ["t-000", "t-001"]);
    assert_eq!(fleet.task("t-000").await.attempt, 1);
    let failed = fleet.task("t-last").await;
    assert_eq!(failed.status, TaskStatus::Failed);
    assert!(failed.error.unwrap().contains("w-1"));
    let mut facts = fleet.facts().await;
    facts.retain(|(name, _)| name != "task.created");
    let names: Vec<&str> = facts.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names[2..], ["task.failed", "instance.lost"]);
    assert_eq!(facts[3].1["tasks_reassigned"], json!(3));
    // Back again it is a new one: what waits is for it too, what it lost is not its own.
    let back = fleet.worker("w-1", 4, &["a.b"]).await;
    assert_eq!(back.assigned, ["t-000", "t-001"]);
}

#[tokio::test]
async fn many_tasks_leave_in_bounded_steps_and_the_count_is_of_all() {
    for way in ["unregister", "loss", "release"] {
        let mut fleet = Fleet::start().await;
        fleet.worker("w-1", 500, &["a.b"]).await;
        create(&fleet, 130).await;
        for number in 0..10 {
            fleet.worker(&format!("x-{number}"), 9, &["a.b"]).await;
        }
        let moved = match way {
            "unregister" => {
                let left = fleet.instances.unregister("w-1", None).await;
                left.unwrap().tasks_reassigned
            }
            "loss" => {
                fleet.expire("w-1").await;
                let swept = fleet.instances.sweep(16).await.unwrap();
                swept.lost[0].tasks_reassigned
            }
            _ => {
                let moved = fleet.tasks.release("w-1").await.unwrap();
                assert_eq!(
                    fleet.slot("w-1").await,
                    (0, 0),
                    "nothing more before it registers"
                );
                moved
            }
        };
        assert_eq!(moved, 130, "{way}");
        let counts = fleet.tasks.counts().await.unwrap();
        assert_eq!((counts.pending, counts.assigned), (40, 90), "{way}");
        for number in 0..10 {
            assert_eq!(fleet.slot(&format!("x-{number}")).await, (9, 9), "{way}");
        }
        if way == "release" {
            // It is alive still, and registers.
            let back = fleet.worker("w-1", 500, &["a.b"]).await;
            assert_eq!((back.new, back.assigned.len()), (false, 40));
        }
    }
}

#[tokio::test]
async fn a_process_that_begins_anew_costs_what_it_held_an_attempt() {
    let fleet = Fleet::start().await;
    fleet.worker("w-1", 4, &["a.b"]).await;
    let mut task = NewTask::new("killer", "a.b");
    task.max_attempts = 2;
    fleet.tasks.create(&task).await.unwrap();
    let before = fleet.assignment("killer").await;
    assert_eq!(fleet.tasks.release("w-1").await.unwrap(), 1);
    let back = fleet.worker("w-1", 4, &["a.b"]).await;
    assert_eq!(back.assigned, ["killer"]);
    assert!(fleet.assignment("killer").await.fence > before.fence);
    assert_eq!(fleet.tasks.release("w-1").await.unwrap(), 0);
    assert_eq!(fleet.task("killer").await.status, TaskStatus::Failed);
    assert_eq!(fleet.tasks.release("nobody").await.unwrap(), 0);
}

#[tokio::test]
async fn an_expired_instance_that_registers_again_is_lost_first_if_it_holds_tasks() {
    let mut fleet = Fleet::start().await;
    let first = fleet.worker("w-1", 4, &["a.b"]).await;
    create(&fleet, 2).await;
    let before = fleet.assignment("t-000").await;
    fleet.expire("w-1").await;
    // The process itself goes on as who it was.
    let same = fleet.worker("w-1", 4, &["a.b"]).await;
    assert_eq!((same.new, same.incarnation), (false, first.incarnation));
    assert_eq!(fleet.assignment("t-000").await, before);
    fleet.expire("w-1").await;
    fleet.instances = Fleet::seen_from(&fleet.redis, &fleet.keys);
    let back = fleet.worker("w-1", 4, &["a.b"]).await;
    assert!(back.new && back.incarnation > first.incarnation);
    assert_eq!(back.assigned, ["t-000", "t-001"]);
    let after = fleet.assignment("t-000").await;
    assert!(after.instance == "w-1" && after.fence > before.fence);
    let facts = fleet.fact_names().await;
    assert_eq!(facts[3..], ["instance.lost", "instance.registered"]);
    // Without tasks it is not.
    fleet.complete("t-000").await;
    fleet.complete("t-001").await;
    fleet.expire("w-1").await;
    fleet.instances = Fleet::seen_from(&fleet.redis, &fleet.keys);
    fleet.worker("w-1", 4, &["a.b"]).await;
    assert_eq!(
        fleet.fact_names().await.last().unwrap(),
        "instance.registered"
    );
}

#[tokio::test]
async fn an_expired_holder_may_complete_until_it_is_lost_but_gets_nothing() {
    let mut fleet = Fleet::start().await;
    fleet.worker("w-1", 1, &["a.b"]).await;
    create(&fleet, 2).await;
    fleet.expire("w-1").await;
    fleet.complete("t-000").await;
    assert_eq!(fleet.task("t-001").await.status, TaskStatus::Pending);
    assert!(fleet.tasks.assign_waiting().await.unwrap().is_empty());
}

#[tokio::test]
async fn one_that_retires_gets_nothing_and_keeps_what_it_has() {
    let mut fleet = Fleet::start().await;
    fleet.worker("w-1", 2, &["a.b"]).await;
    create(&fleet, 1).await;
    fleet.tasks.retire("w-1").await.unwrap();
    fleet.tasks.retire("nobody").await.unwrap();
    assert_eq!(fleet.create("t-1").await.status, TaskStatus::Pending);
    fleet.complete("t-000").await;
    assert_eq!(fleet.task("t-1").await.status, TaskStatus::Pending);
    assert_eq!(fleet.slot("w-1").await, (0, 0));
    assert_eq!(fleet.slot("nobody").await, (0, 0));
    assert_eq!(fleet.worker("w-1", 2, &["a.b"]).await.assigned, ["t-1"]);
}

#[tokio::test]
async fn who_lost_its_id_to_another_process_takes_nothing_from_that_one() {
    let mut fleet = Fleet::start().await;
    let (old, new) = (fleet.process("old"), fleet.process("new"));
    let mut registering = Registering::new("w-1", ["worker"]);
    registering.ttl_ms = 600_000;
    registering.capacity = 4;
    registering.capabilities = ["a.b".to_owned()].into();
    old.0.register(&registering).await.unwrap();
    create(&fleet, 1).await;
    assert_eq!(new.1.release("w-1").await.unwrap(), 1);
    new.0.register(&registering).await.unwrap();
    create(&fleet, 2).await;
    let before = fleet.slot("w-1").await;
    assert_eq!(before, (2, 4));
    // The old one drains; and the new one's own call arrives a second time.
    old.1.retire("w-1").await.unwrap();
    assert_eq!(new.1.release("w-1").await.unwrap(), 0);
    assert_eq!(fleet.slot("w-1").await, before);
    new.1.retire("w-1").await.unwrap();
    assert_eq!(fleet.slot("w-1").await, (2, 0));
}

#[tokio::test]
async fn what_the_look_ahead_missed_is_found_by_looking_at_all_that_waits() {
    let fleet = Fleet::start().await;
    // More kinds ahead, for which one without room has handlers, than an instance looks at.
    let kinds: Vec<String> = (0..150).map(|number| format!("a.a{number:03}")).collect();
    let names: Vec<&str> = kinds.iter().map(String::as_str).collect();
    fleet
        .worker("w-0", 0, &[&names[..], &["a.b"]].concat())
        .await;
    for kind in &kinds {
        let stuck = NewTask::new(format!("stuck-{kind}"), kind);
        fleet.tasks.create(&stuck).await.unwrap();
    }
    create(&fleet, 3).await;
    assert!(fleet.worker("w-1", 2, &["a.b"]).await.assigned.is_empty());
    let assigned = fleet.tasks.assign_waiting().await.unwrap();
    assert_eq!(assigned, ["t-000", "t-001"]);
    assert!(fleet.tasks.assign_waiting().await.unwrap().is_empty());
    assert_eq!(fleet.tasks.counts().await.unwrap().pending, 151);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_at_once_give_each_task_once_and_nobody_too_much() {
    let mut fleet = Fleet::start().await;
    for number in 0..30 {
        fleet.worker(&format!("w-{number}"), 3, &["a.b"]).await;
    }
    let creators: Vec<_> = (0..8)
        .map(|creator| {
            let tasks = fleet.tasks.clone();
            tokio::spawn(async move {
                for number in 0..15 {
                    // Each is created by two of them.
                    let id = format!("t-{}-{number}", creator / 2);
                    tasks.create(&NewTask::new(id, "a.b")).await.unwrap();
                }
            })
        })
        .collect();
    for creator in creators {
        creator.await.unwrap();
    }
    let counts = fleet.tasks.counts().await.unwrap();
    assert_eq!((counts.assigned, counts.pending), (60, 0));
    let mut arrived = 0;
    for number in 0..30 {
        let id = format!("w-{number}");
        assert_eq!(fleet.slot(&id).await, (2, 3), "{id}");
        arrived += fleet.inbox(&id).await.len();
    }
    assert_eq!(arrived, 60);
}

#[tokio::test]
async fn losses_and_leaving_move_tasks_while_the_memory_is_full() {
    let mut fleet = Fleet::start().await;
    for id in ["w-1", "w-2"] {
        fleet.worker(id, 2, &["a.b"]).await;
    }
    create(&fleet, 4).await;
    fleet.worker("w-3", 9, &["a.b"]).await;
    fleet.expire("w-1").await;
    fleet.run("CONFIG SET maxmemory 1").await;
    let swept = fleet.instances.sweep(16).await.unwrap();
    assert_eq!(swept.lost[0].tasks_reassigned, 2);
    let left = fleet.instances.unregister("w-2", None).await.unwrap();
    assert_eq!(left.tasks_reassigned, 2);
    assert_eq!(fleet.slot("w-3").await, (4, 9));
}

#[tokio::test]
async fn under_hash_tags_all_task_keys_share_the_control_planes_slot() {
    let mut fleet = Fleet::with(Keys::tagged("cb", 8).unwrap()).await;
    let mut registering = Registering::new("w-1", ["worker"]);
    registering.capacity = 2;
    fleet.instances.register(&registering).await.unwrap();
    create(&fleet, 3).await;
    fleet.complete("t-000").await;
    fleet.create("t-9").await;
    fleet.instances.unregister("w-1", None).await.unwrap();
    let keys = fleet.all_names().await;
    assert!(keys.iter().all(|key| key.starts_with("{cb}:")), "{keys:?}");
    assert!(keys.len() > 8, "{keys:?}");
}

#[tokio::test]
async fn the_inbox_of_one_that_is_gone_goes_away_and_stays_if_it_comes_back() {
    let mut fleet = Fleet::start().await;
    for way in ["unregister", "loss"] {
        fleet.worker("w-1", 1, &["a.b"]).await;
        fleet.create(way).await;
        assert_eq!(fleet.ask::<i64>("PTTL cb:inbox:w-1").await, -1);
        match way {
            "unregister" => _ = fleet.instances.unregister("w-1", None).await.unwrap(),
            _ => {
                fleet.expire("w-1").await;
                fleet.instances.sweep(16).await.unwrap();
            }
        }
        assert!(
            fleet.ask::<i64>("PTTL cb:inbox:w-1").await > 80_000_000,
            "{way}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_leaves_in_parts_gets_nothing_between_them() {
    let fleet = Fleet::start().await;
    fleet.worker("w-1", 5000, &["a.b"]).await;
    create(&fleet, 1500).await;
    let instances = fleet.instances.clone();
    let leaving = tokio::spawn(async move { instances.unregister("w-1", None).await });
    while fleet.tasks.counts().await.unwrap().pending == 0 {
        tokio::task::yield_now().await;
    }
    let mut late = 0;
    while !leaving.is_finished() {
        fleet.create(&format!("late-{late}")).await;
        late += 1;
    }
    let left = leaving.await.unwrap().unwrap();
    assert_eq!(left.tasks_reassigned, 1500);
    for number in 0..late {
        let fence = fleet.task(&format!("late-{number}")).await.fence;
        assert_eq!(fence, None, "late-{number} of {late} was assigned");
    }
}
