//! Tasks that workers take by themselves into their inboxes.

use crate::fleet::Fleet;
use convoke::connect::connector::Connector;
use convoke::coordination::instances::Instances;
use convoke::coordination::instances::instance::Registering;
use convoke::coordination::nudge::{nudge, nudge_waiting};
use convoke::coordination::tasks::pull::{MAX_PULLED, NUDGE};
use convoke::coordination::tasks::task::{NewTask, TaskStatus};
use convoke::protocol::event::{Event, Limits};
use convoke::settings::RedisUrl;
use convoke::streams::read::entries_of;

/// A worker of a process of its own that has said that it takes its work by itself.
async fn puller(fleet: &Fleet, id: &str, capacity: u32) -> Instances {
    let connector = Connector::new(&RedisUrl::new(fleet.redis.url()), 2).unwrap();
    let process = format!("process of {id}");
    let instances = Instances::of_process(connector, fleet.keys.clone(), &process);
    let mut registering = Registering::new(id, ["worker"]);
    registering.capacity = capacity;
    registering.capabilities = vec!["a.b".to_owned()];
    registering.announces = true;
    let registered = instances.register(&registering).await.unwrap();
    assert_eq!(registered.assigned, [""; 0], "it only announces itself");
    instances
}

async fn pull(fleet: &Fleet, id: &str, by_itself: bool) -> Vec<String> {
    let process = format!("process of {id}");
    let pulled = fleet.tasks.pull(id, &process, by_itself).await.unwrap();
    pulled.expect("it is alive").tasks
}

async fn create(fleet: &Fleet, id: &str, priority: u8) -> TaskStatus {
    let mut task = NewTask::new(id, "a.b");
    task.priority = priority;
    fleet.tasks.create(&task).await.unwrap().status
}

#[tokio::test]
async fn a_worker_takes_the_most_urgent_into_its_inbox_and_never_above_its_capacity() {
    let mut fleet = Fleet::start().await;
    for (id, priority) in [("low", 10), ("old", 50), ("young", 50), ("high", 90)] {
        assert_eq!(create(&fleet, id, priority).await, TaskStatus::Pending);
    }
    puller(&fleet, "w-1", 3).await;
    assert_eq!(pull(&fleet, "w-1", true).await, ["high", "old", "young"]);
    assert_eq!(pull(&fleet, "w-1", true).await, [""; 0], "it is full");
    assert_eq!(fleet.slot("w-1").await, (3, 3));
    let told = fleet.inbox("w-1").await;
    let told: Vec<_> = told.iter().map(|told| &told["task_id"]).collect();
    assert_eq!(told, ["high", "old", "young"]);
    // Room alone gives it nothing: it takes.
    fleet.complete("high").await;
    assert_eq!(fleet.task("low").await.status, TaskStatus::Pending);
    assert_eq!(fleet.inbox("w-1").await.len(), 3);
    assert_eq!(pull(&fleet, "w-1", true).await, ["low"]);
    // Nor does a task that comes, until it says that it is given its work again.
    fleet.complete("old").await;
    assert_eq!(create(&fleet, "next", 50).await, TaskStatus::Pending);
    assert_eq!(pull(&fleet, "w-1", false).await, ["next"]);
    fleet.complete("young").await;
    assert_eq!(create(&fleet, "last", 50).await, TaskStatus::Assigned);
    assert_eq!(fleet.inbox("w-1").await.len(), 6);
}

#[tokio::test]
async fn only_the_workers_own_process_takes_and_a_part_at_a_time() {
    let fleet = Fleet::start().await;
    puller(&fleet, "w-1", 100).await;
    assert_eq!(pull(&fleet, "w-1", true).await, [""; 0]);
    for number in 0..2 * MAX_PULLED {
        create(&fleet, &format!("t-{number}"), 50).await;
    }
    assert_eq!(pull(&fleet, "w-1", true).await.len(), MAX_PULLED);
    let stranger = fleet.tasks.pull("w-1", "another process", true).await;
    assert_eq!(stranger.unwrap(), None);
    let nobody = fleet.tasks.pull("w-2", "process of w-2", true).await;
    assert_eq!(nobody.unwrap(), None);
}

#[tokio::test]
async fn who_restarts_under_its_id_and_is_given_its_work_is_given_it_at_once() {
    let fleet = Fleet::start().await;
    puller(&fleet, "w-1", 2).await;
    assert_eq!(pull(&fleet, "w-1", true).await, [""; 0]);
    assert_eq!(create(&fleet, "t-1", 50).await, TaskStatus::Pending);
    // Its lease is not over, and it says nothing of how it comes by its work.
    let registered = fleet.worker("w-1", 2, &["a.b"]).await;
    assert_eq!(registered.assigned, ["t-1"]);
    assert_eq!(create(&fleet, "t-2", 50).await, TaskStatus::Assigned);
}

#[tokio::test]
async fn what_a_lost_worker_took_waits_for_whoever_takes_it_with_a_higher_fence() {
    let mut fleet = Fleet::start().await;
    puller(&fleet, "w-1", 2).await;
    puller(&fleet, "w-2", 2).await;
    for id in ["w-1", "w-2"] {
        assert_eq!(pull(&fleet, id, true).await, [""; 0]);
    }
    create(&fleet, "t-1", 50).await;
    assert_eq!(pull(&fleet, "w-1", true).await, ["t-1"]);
    let before = fleet.assignment("t-1").await;
    fleet.expire("w-1").await;
    fleet.instances.sweep(100).await.unwrap();
    assert_eq!(fleet.task("t-1").await.status, TaskStatus::Pending);
    assert_eq!(pull(&fleet, "w-2", true).await, ["t-1"]);
    let after = fleet.assignment("t-1").await;
    assert!(after.fence > before.fence);
    assert_eq!(after.instance, "w-2");
    let late = fleet.tasks.complete(&before, &[0xc0], &[]).await;
    assert!(late.is_err(), "{late:?}");
}

#[tokio::test]
async fn an_operator_gives_a_worker_that_takes_by_itself_a_task_and_its_inbox_tells() {
    let mut fleet = Fleet::start().await;
    puller(&fleet, "w-1", 2).await;
    assert_eq!(pull(&fleet, "w-1", true).await, [""; 0]);
    create(&fleet, "t-1", 50).await;
    fleet.tasks.assign("t-1", "w-1", "e-1").await.unwrap();
    assert_eq!(fleet.inbox("w-1").await[0]["task_id"], "t-1");
}

#[tokio::test]
async fn who_has_room_and_a_handler_is_nudged_and_nobody_else() {
    let mut fleet = Fleet::start().await;
    puller(&fleet, "w-1", 1).await;
    puller(&fleet, "w-2", 1).await;
    for id in ["w-1", "w-2"] {
        fleet.run(&format!("XADD cb:inbox:{id} * type a.b")).await;
        pull(&fleet, id, true).await;
    }
    create(&fleet, "t-1", 50).await;
    assert_eq!(pull(&fleet, "w-1", true).await, ["t-1"]);
    create(&fleet, "t-2", 50).await;
    nudge_waiting(&fleet.instances, &fleet.tasks).await.unwrap();
    nudge(&fleet.instances, &fleet.tasks, "a.b").await.unwrap();
    nudge(&fleet.instances, &fleet.tasks, "c.d").await.unwrap();
    let lengths: (u64, u64) = (
        fleet.ask("XLEN cb:inbox:w-1").await,
        fleet.ask("XLEN cb:inbox:w-2").await,
    );
    // Beside what opened the inboxes: one task, two nudges.
    assert_eq!(lengths, (2, 3));
    // A nudge is an event that a worker can read: an empty map.
    let reply = fleet.ask("XREVRANGE cb:inbox:w-2 + - COUNT 1").await;
    let nudge = entries_of(reply).unwrap().remove(0);
    let inbox = fleet.keys.inbox("w-2");
    let nudge = Event::parse(nudge, &Limits::default(), &fleet.keys, &inbox).unwrap();
    assert_eq!(nudge.kind(), NUDGE);
    let says: serde_json::Value = rmp_serde::from_slice(nudge.data()).unwrap();
    assert_eq!(says, serde_json::json!({}));
}
