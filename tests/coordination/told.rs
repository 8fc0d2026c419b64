//! Whatever a script of the coordination adds to a stream is an event that can be decoded.

use crate::batches::{asker, batches, failed, wanted};
use crate::fleet::Fleet;
use convoke::coordination::ballots::ballot::Vote;
use convoke::coordination::batches::Acquired;
use convoke::coordination::instances::orders::{What, Whom};
use convoke::coordination::schedules::Missed;
use convoke::coordination::tasks::task::NewTask;
use convoke::protocol::event::{Event, Limits};
use convoke::protocol::msgpack::{self, PayloadLimits};
use convoke::protocol::pattern::{Pattern, Patterned};
use convoke::streams::read::entries_of;
use std::collections::BTreeSet;
use std::path::Path;

/// The scripts that add entries. Whoever writes another one has its entries added below.
const SCRIPTS: [&str; 18] = [
    "ballot.lua",
    "cancel_batch.lua",
    "coordinate_batch.lua",
    "lead.lua",
    "lose.lua",
    "order.lua",
    "partition.lua",
    "policy_put.lua",
    "register.lua",
    "repair_end.lua",
    "repair_put.lua",
    "schedule_delete.lua",
    "schedule_fire.lua",
    "schedule_put.lua",
    "set_pattern.lua",
    "task_complete.lua",
    "tasks.lua",
    "unregister.lua",
];

/// What they tell, and where.
const TOLD: [&str; 24] = [
    "batch.cancelled",
    "batch.completed",
    "batch.progress",
    "batch.started",
    "instance.lost",
    "instance.ordered",
    "instance.registered",
    "instance.unregistered",
    "leader.elected",
    "partition.detected",
    "partition.healed",
    "pattern.changed",
    "policy.changed",
    "quorum.deadlocked",
    "quorum.decided",
    "repair.changed",
    "schedule.changed",
    "schedule.missed",
    "task.assigned",
    "task.cancelled",
    "task.completed",
    "task.created",
    "task.failed",
    "task.unassigned",
];

#[tokio::test]
async fn every_entry_that_a_script_adds_can_be_decoded() {
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src/coordination")];
    let adds = |path: &Path| {
        path.extension().is_some_and(|ending| ending == "lua")
            && std::fs::read_to_string(path).unwrap().contains("'XADD'")
    };
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for file in std::fs::read_dir(folder).unwrap() {
            let path = file.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if adds(&path) {
                found.push(path.file_name().unwrap().to_string_lossy().into_owned());
            }
        }
    }
    found.sort();
    assert_eq!(found, SCRIPTS);

    let mut fleet = Fleet::start().await;
    // Without roles, and with some.
    fleet.register("w-0", &[]).await;
    let mut incarnation = 0;
    for number in 1..=3 {
        let registered = fleet.worker(&format!("w-{number}"), 9, &["a.b"]).await;
        incarnation = registered.incarnation;
    }
    fleet
        .asked()
        .register(&convoke::coordination::instances::instance::Registering::new("x-1", ["worker"]))
        .await
        .unwrap();
    let whom = Whom::Id("w-3".into());
    fleet
        .asked()
        .order(&whom, What::Scale(7), "ann")
        .await
        .unwrap();
    fleet.instances.contend("w-3", incarnation).await.unwrap();
    for (decision, values) in [("d-1", [1, 1, 1]), ("d-2", [1, 2, 3])] {
        for (number, value) in values.into_iter().enumerate() {
            let vote = Vote {
                role: Some("worker".into()),
                ..Vote::new(decision, format!("w-{}", number + 1), vec![value])
            };
            // Of two for one value the third comes too late, which is no error.
            fleet.ballots.vote(&vote).await.unwrap();
        }
    }
    let batches = batches(&fleet);
    let Acquired::Held(progress, _) = batches
        .acquire(&wanted("b-1", 1), asker("w-1", "r-1"))
        .await
        .unwrap()
    else {
        panic!("it is nobody's");
    };
    batches
        .progress(
            &wanted("b-1", 1),
            progress.fence,
            &[failed(0, "no such thing")],
            &[],
        )
        .await
        .unwrap();
    batches
        .acquire(&wanted("b-2", 2), asker("w-1", "r-1"))
        .await
        .unwrap();
    fleet.run("HSET cb:batch:b-2 expires 1000").await;
    batches
        .acquire(&wanted("b-2", 2), asker("w-2", "r-2"))
        .await
        .unwrap();
    batches.cancel("b-2", "ann", "enough").await.unwrap();
    for id in ["t-1", "t-2", "t-3"] {
        let mut task = NewTask::new(id, "a.b");
        task.max_attempts = 1;
        task.payload = vec![0x81, 0xa1, b'x', 0xc0];
        fleet.tasks.create(&task).await.unwrap();
    }
    fleet.complete("t-1").await;
    fleet.fail("t-2", "no", false).await;
    fleet.tasks.unassign("t-3", "").await.unwrap();
    fleet.tasks.cancel("t-3", "for a test").await.unwrap();
    fleet.instances.unregister("w-0", None).await.unwrap();
    for id in ["w-1", "w-2"] {
        fleet.expire(id).await;
    }
    let patterns = crate::patterns::patterns(&fleet, Pattern::Centralized);
    let hybrid = Some(Pattern::Hybrid);
    patterns
        .choose(Patterned::Health, hybrid, None, "ann")
        .await
        .unwrap();
    let policies = crate::policies::policies(&fleet);
    let paused = crate::policies::paused("for a test");
    let scope = crate::policies::scope("domain:mail");
    policies.set(&scope, &paused, None, "ann").await.unwrap();
    let repairs = crate::repairs::repairs(&fleet);
    let draft = crate::repairs::draft("r-1");
    repairs.start(&draft, "ann").await.unwrap();
    repairs.cancel("r-1", "bob").await.unwrap();
    let schedules = crate::schedules::schedules(&fleet);
    let wanted = crate::schedules::each_second("s-1", Missed::Once);
    schedules.put(&wanted, None, "ann").await.unwrap();
    crate::schedules::miss(&mut fleet, "s-1").await;
    schedules.fire_due("w-3").await.unwrap();
    // Its event is what somebody wanted.
    let [stream, outbox] = [fleet.keys.events("a", 0), fleet.keys.outbox("system", 0)];
    fleet.run(&format!("DEL {stream} {outbox}")).await;
    schedules.delete("s-1", "ann").await.unwrap();
    fleet.instances.watch_partition().await.unwrap();
    fleet.instances.sweep(16).await.unwrap();
    for id in ["w-1", "w-2"] {
        fleet.register(id, &["worker"]).await;
    }
    fleet.instances.watch_partition().await.unwrap();

    let mut told = BTreeSet::new();
    for key in fleet.all_keys().await {
        let kind: String = fleet.ask(&format!("TYPE {key}")).await;
        if kind != "stream" {
            continue;
        }
        let reply: redis::Value = fleet.ask(&format!("XRANGE {key} - +")).await;
        for entry in entries_of(reply).unwrap() {
            let event = Event::parse(entry, &Limits::default(), &fleet.keys, &key).unwrap();
            let data = event.data();
            msgpack::scan(data, &PayloadLimits::default())
                .unwrap_or_else(|error| panic!("{key}: {}: {error}: {data:?}", event.kind()));
            let value = rmpv::decode::read_value(&mut &*data).unwrap();
            assert!(value.is_map(), "{}: {value}", event.kind());
            told.insert(event.kind().to_owned());
        }
    }
    assert_eq!(told.iter().map(String::as_str).collect::<Vec<_>>(), TOLD);
}
