//! Whoever fits is found, who waits goes first, and what nobody can take costs the others nothing.

use crate::fleet::Fleet;
use convoke::coordination::instances::instance::Registering;
use convoke::coordination::tasks::task::{NewTask, TaskStatus};
use std::collections::HashMap;

/// A look at what waits, as often as it takes to get that task to somebody; who that is.
async fn found(fleet: &Fleet, task: &str) -> String {
    for _ in 0..100 {
        if let Some(holder) = fleet.task(task).await.instance {
            return holder;
        }
        fleet.tasks.assign_waiting().await.unwrap();
    }
    panic!("nobody was found for {task}");
}

#[tokio::test]
async fn who_has_the_kind_comes_before_who_names_nothing() {
    let fleet = Fleet::start().await;
    fleet.worker("a-anything", 100, &[]).await;
    fleet.worker("w-1", 2, &["a.b"]).await;
    let mut holders = Vec::new();
    for number in 0..3 {
        holders.extend(fleet.create(&format!("t-{number}")).await.assigned_to);
    }
    assert_eq!(holders, ["w-1", "w-1", "a-anything"]);
}

#[tokio::test]
async fn one_that_names_nothing_is_found_behind_many_that_do_not_fit() {
    let fleet = Fleet::start().await;
    for number in 0..300 {
        fleet.worker(&format!("w-{number}"), 9, &["c.d"]).await;
    }
    let mut any = Registering::new("z-any", ["worker"]);
    any.capacity = 1;
    fleet.instances.register(&any).await.unwrap();
    let created = fleet.create("t-1").await;
    assert_eq!(created.assigned_to.as_deref(), Some("z-any"));
    // And by what waits, when it has room again: whether or not somebody else might take it.
    for (id, kind) in [("waits", "a.b"), ("busy", "c.d")] {
        fleet.tasks.create(&NewTask::new(id, kind)).await.unwrap();
    }
    fleet.complete("t-1").await;
    assert_eq!(fleet.assignment("waits").await.instance, "z-any");
}

#[tokio::test]
async fn the_one_with_kind_and_requirement_is_found_behind_very_many_with_one_of_them() {
    let fleet = Fleet::start().await;
    for number in 0..300 {
        fleet.worker(&format!("a-{number}"), 9, &["a.b"]).await;
        fleet.worker(&format!("c-{number}"), 9, &["c.d"]).await;
    }
    fleet.worker("m-both", 9, &["a.b", "c.d"]).await;
    let mut task = NewTask::new("t-1", "a.b");
    task.requires = vec!["c.d".into()];
    fleet.tasks.create(&task).await.unwrap();
    assert_eq!(found(&fleet, "t-1").await, "m-both");
}

#[tokio::test]
async fn lanes_that_nobody_can_take_cost_nothing_until_somebody_comes() {
    let mut fleet = Fleet::start().await;
    fleet.worker("w-1", 1, &["a.b"]).await;
    fleet.create("first").await;
    let looks = async |fleet: &mut Fleet, prefix: &str| {
        fleet.run("CONFIG RESETSTAT").await;
        for number in 0..20 {
            fleet.create(&format!("{prefix}-{number}")).await;
        }
        for _ in 0..20 {
            let held = fleet
                .tasks
                .list(Some(TaskStatus::Assigned), 9)
                .await
                .unwrap();
            fleet.complete(&held[0].id).await;
        }
        commands(fleet).await
    };
    let before = looks(&mut fleet, "b").await;
    for number in 0..300 {
        let mut stuck = NewTask::new(format!("stuck-{number}"), format!("no.body{number}"));
        stuck.priority = 90;
        if number % 3 == 0 {
            stuck.kind = "a.b".into();
            stuck.requires = vec![format!("lane.l{number}")];
        }
        fleet.tasks.create(&stuck).await.unwrap();
    }
    let after = looks(&mut fleet, "c").await;
    // One more look at most for each step that a parked lane could be in.
    assert!(
        after <= before + before / 10,
        "{before} before, {after} with lanes that nobody can take"
    );
    // Whoever comes finds them, each of a lane of its own.
    let kinds = ["a.b", "lane.l0", "no.body1", "no.body299"];
    let registered = fleet.worker("w-2", 9, &kinds).await;
    let mut given = registered.assigned;
    given.sort();
    assert_eq!(given, ["stuck-0", "stuck-1", "stuck-299"]);
}

/// Commands that scripts called since the statistics were reset.
async fn commands(fleet: &mut Fleet) -> u64 {
    let stats: String = fleet.ask("INFO commandstats").await;
    let counts = stats.lines().filter_map(|line| {
        let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(':')?;
        let calls = rest.strip_prefix("calls=")?.split(',').next()?;
        (name != "evalsha").then(|| calls.parse::<u64>().unwrap())
    });
    counts.sum()
}

#[tokio::test]
async fn a_lane_that_was_parked_is_found_by_a_later_look_at_what_waits() {
    let mut fleet = Fleet::start().await;
    // Too many of a kind for a registration to look at all of them.
    for number in 0..300 {
        let mut task = NewTask::new(format!("t-{number:03}"), "a.b");
        task.requires = vec![format!("no.b{number:03}")];
        fleet.tasks.create(&task).await.unwrap();
    }
    let first: Vec<String> = fleet.ask("ZRANGEBYLEX cb:tasks:heads [! (#").await;
    assert_eq!(first.len(), 300, "all are parked");
    let registered = fleet.worker("w-1", 9, &["a.b", "no.b299"]).await;
    assert!(registered.assigned.is_empty());
    assert_eq!(found(&fleet, "t-299").await, "w-1");
    let parked: Vec<String> = fleet.ask("ZRANGEBYLEX cb:tasks:heads [! (#").await;
    assert_eq!(parked.len(), 299);
}

#[tokio::test]
async fn a_lane_is_parked_once_the_last_who_could_take_it_is_gone() {
    let mut fleet = Fleet::start().await;
    fleet.worker("w-1", 0, &["a.b"]).await;
    fleet.create("t-1").await;
    let parked = async |fleet: &mut Fleet| {
        fleet.tasks.assign_waiting().await.unwrap();
        let parked: Vec<String> = fleet.ask("ZRANGEBYLEX cb:tasks:heads [! (#").await;
        parked.len()
    };
    assert_eq!(parked(&mut fleet).await, 0);
    fleet.instances.unregister("w-1", None).await.unwrap();
    assert_eq!(parked(&mut fleet).await, 1);
    // Not by its room alone: it may come.
    fleet.worker("w-2", 0, &["a.b"]).await;
    assert_eq!(parked(&mut fleet).await, 0);
    assert_eq!(fleet.worker("w-2", 1, &["a.b"]).await.assigned, ["t-1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_does_not_overtake_who_waits_while_an_instance_fills() {
    let fleet = Fleet::start().await;
    for number in 0..400 {
        let mut urgent = NewTask::new(format!("urgent-{number}"), "a.b");
        urgent.priority = 100;
        fleet.tasks.create(&urgent).await.unwrap();
    }
    let instances = fleet.instances.clone();
    let filling = tokio::spawn(async move {
        let mut registering = Registering::new("w-1", ["worker"]);
        registering.capacity = 300;
        registering.capabilities = vec!["a.b".into(), "c.d".into()];
        instances.register(&registering).await.unwrap()
    });
    let mut low = 0;
    while !filling.is_finished() {
        // In the same lane, and in another one.
        let mut task = NewTask::new(format!("low-{low}"), ["a.b", "c.d"][low % 2]);
        task.priority = 0;
        fleet.tasks.create(&task).await.unwrap();
        low += 1;
    }
    filling.await.unwrap();
    let held = fleet
        .tasks
        .list(Some(TaskStatus::Assigned), 1000)
        .await
        .unwrap();
    assert_eq!(held.len(), 300);
    let mut by_priority: HashMap<u8, usize> = HashMap::new();
    for task in held {
        *by_priority.entry(task.priority).or_default() += 1;
    }
    assert_eq!(
        by_priority,
        HashMap::from([(100, 300)]),
        "{low} came meanwhile"
    );
}
