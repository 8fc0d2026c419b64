//! How workers come by their tasks, in each pattern of `system.register`.

use super::{ask, calm, choose_for, count, facts, health};
use crate::rig::Rig;
use crate::support::until;
use convoke::Worker;
use convoke::protocol::pattern::{Pattern, Patterned};
use serde_json::{Value, json};
use std::collections::BTreeSet;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_task_is_done_once_in_whatever_pattern_and_while_patterns_change() {
    const TASKS: usize = 60;
    let rig = Rig::new().await;
    let mut workers = Vec::new();
    for id in ["w-1", "w-2", "w-3"] {
        // Nobody looks by a clock while this runs, where it waits for a nudge.
        workers.push(rig.start(calm(&rig, id)));
    }
    until("all are there", || async {
        health(&rig).await["instances"]["healthy"] == 3
    })
    .await;
    let create = async |id: String| {
        let task = json!({"task_id": id, "kind": "load.work", "payload": 1});
        ask(&rig.client, "task.create", task).await
    };
    for pattern in [Pattern::Distributed, Pattern::Hybrid, Pattern::Centralized] {
        choose_for(&rig, Patterned::Register, pattern).await;
        for number in 0..TASKS / 6 {
            create(format!("{pattern}-{number}")).await;
        }
        let done = |told: &Vec<Value>| {
            let mine = |told: &&Value| {
                told["task_id"]
                    .as_str()
                    .unwrap()
                    .starts_with(pattern.as_str())
            };
            told.iter().filter(mine).count()
        };
        until("all are done", || async {
            done(&completed(&rig).await) == TASKS / 6
        })
        .await;
    }
    for number in 0..TASKS / 2 {
        if number % 5 == 0 {
            choose_for(&rig, Patterned::Register, Pattern::ALL[number / 5 % 3]).await;
        }
        create(format!("mixed-{number}")).await;
    }
    until("all are done", || async {
        completed(&rig).await.len() >= TASKS
    })
    .await;
    let told = completed(&rig).await;
    let ids: BTreeSet<_> = told
        .iter()
        .map(|told| told["task_id"].to_string())
        .collect();
    assert_eq!((told.len(), ids.len()), (TASKS, TASKS));
    assert!(told.iter().all(|told| told["attempt"] == 1), "{told:?}");
    let effects = rig.wait_for("cb:events:effect", TASKS).await;
    assert_eq!(effects.len(), TASKS);
    for worker in workers {
        worker.stop().await;
    }
}

async fn completed(rig: &Rig) -> Vec<Value> {
    facts(rig.wait_for_fact("task.completed", 0).await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_that_was_there_before_the_workers_goes_by_its_priority_in_each_pattern() {
    for pattern in Pattern::ALL {
        let rig = Rig::new().await;
        let start = |id: &str, handles: bool| {
            let mut settings = rig.settings();
            settings.id = id.into();
            settings.capacity = 1;
            settings.patterns.register = pattern;
            let builder = Worker::builder().settings(settings);
            rig.start(match handles {
                true => builder.handler("load.work", count),
                false => builder,
            })
        };
        let asked = start("w-asked", false);
        for (id, priority) in [("low", 10), ("middle", 50), ("high", 90)] {
            let task =
                json!({"task_id": id, "kind": "load.work", "payload": 1, "priority": priority});
            let created = ask(&rig.client, "task.create", task).await;
            assert_eq!(created["status"], "pending", "{created}");
        }
        let works = start("w-works", true);
        let told = facts(rig.wait_for_fact("task.completed", 3).await);
        let ids: Vec<_> = told.iter().map(|told| &told["task_id"]).collect();
        assert_eq!(ids, ["high", "middle", "low"], "{pattern}");
        works.stop().await;
        asked.stop().await;
    }
}
