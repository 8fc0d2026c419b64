//! What the task scripts cost the server, as the instances grow. Not a check: it prints a table.
//!
//!     cargo nextest run --test coordination cost --run-ignored only --no-capture

use crate::fleet::Fleet;
use convoke::coordination::instances::instance::Registering;
use convoke::coordination::tasks::Assignment;
use convoke::coordination::tasks::task::{NewTask, TaskStatus};

const TASKS: usize = 1000;

/// Scripts called since the last reset, and the server's µs for each.
async fn scripts(fleet: &mut Fleet) -> (u64, f64) {
    let stats: String = fleet.ask("INFO commandstats").await;
    let line = stats.lines().find(|l| l.starts_with("cmdstat_evalsha:"));
    let value = |name: &str| -> f64 {
        let text = line.and_then(|l| l.split([':', ',']).find(|p| p.starts_with(name)));
        text.map_or(0.0, |text| text[name.len()..].parse().unwrap())
    };
    (value("calls=") as u64, value("usec_per_call="))
}

/// Prints one row: operations, calls for each, the server's µs for each call and operation.
async fn row(fleet: &mut Fleet, instances: usize, what: &str, operations: usize) {
    let (calls, each) = scripts(fleet).await;
    println!(
        "| {instances} | {what} | {operations} | {:.2} | {each:.0} | {:.0} |",
        calls as f64 / operations as f64,
        each * calls as f64 / operations as f64
    );
    fleet.run("CONFIG RESETSTAT").await;
}

fn registering(number: usize, capacity: u32) -> Registering {
    let mut registering = Registering::new(format!("w-{number:04}"), ["worker"]);
    registering.capacity = capacity;
    let kinds = (0..20).map(|kind| format!("kind.k{kind}"));
    registering.capabilities = kinds.chain(["a.b".to_owned()]).collect();
    registering.ttl_ms = 3_600_000;
    registering
}

async fn complete_all(fleet: &Fleet) -> usize {
    let held = fleet
        .tasks
        .list(Some(TaskStatus::Assigned), 1000)
        .await
        .unwrap();
    for task in &held {
        let assignment = Assignment {
            task: task.id.clone(),
            instance: task.instance.clone().unwrap(),
            fence: task.fence.unwrap(),
        };
        fleet
            .tasks
            .complete(&assignment, &[0xc0], &[])
            .await
            .unwrap();
    }
    held.len()
}

#[tokio::test]
#[ignore = "prints a table"]
async fn the_cost_of_task_scripts() {
    println!("| instances | what | n | calls each | µs a call | µs each |");
    println!("|---|---|---|---|---|---|");
    for count in [10, 100, 1000] {
        let mut fleet = Fleet::start().await;
        let room = (2 * TASKS / count).max(10) as u32;
        for number in 0..count {
            let done = fleet.instances.register(&registering(number, room)).await;
            done.unwrap();
        }
        row(&mut fleet, count, "register, nothing waits", count).await;
        for number in 0..TASKS {
            fleet.create(&format!("t-{number}")).await;
        }
        row(&mut fleet, count, "create and assign", TASKS).await;
        let done = complete_all(&fleet).await;
        row(&mut fleet, count, "complete, nothing waits", done).await;
        for number in 0..count {
            fleet.tasks.retire(&format!("w-{number:04}")).await.unwrap();
        }
        row(&mut fleet, count, "retire", count).await;
        for number in 0..TASKS {
            fleet.create(&format!("u-{number}")).await;
        }
        row(&mut fleet, count, "create, nobody has room", TASKS).await;
        fleet.tasks.assign_waiting().await.unwrap();
        row(&mut fleet, count, "look at what waits", 1).await;
        let given = fleet.instances.register(&registering(0, 31)).await.unwrap();
        assert_eq!(given.assigned.len(), 31);
        row(&mut fleet, count, "register, gets 31 of 1000", 1).await;
        let done = complete_all(&fleet).await;
        row(&mut fleet, count, "complete, gets the next", done).await;
        // Others with room; those that wait are out of the way.
        for number in 1..count {
            let done = fleet.instances.register(&registering(number, 1000)).await;
            done.unwrap();
        }
        while complete_all(&fleet).await > 0 {}
        fleet
            .instances
            .register(&registering(0, 1000))
            .await
            .unwrap();
        for number in 1..count {
            fleet.tasks.retire(&format!("w-{number:04}")).await.unwrap();
        }
        for number in 0..50 {
            let mut task = NewTask::new(format!("v-{number}"), "a.b");
            task.payload = vec![7];
            fleet.tasks.create(&task).await.unwrap();
        }
        for number in 1..count {
            let done = fleet.instances.register(&registering(number, 1000)).await;
            done.unwrap();
        }
        fleet.expire("w-0000").await;
        fleet.run("CONFIG RESETSTAT").await;
        let swept = fleet.instances.sweep(16).await.unwrap();
        assert_eq!(swept.lost[0].tasks_reassigned, 50);
        row(&mut fleet, count, "lose with 50 tasks", 1).await;
    }
}
