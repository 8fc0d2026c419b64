//! Many tasks: those that wait in as many lanes, those that one instance holds, those that are over.

use super::meter::Meter;
use super::seed::{FAR, KINDS, ROLES, Seed, Seeded, Waiting, kind, role};
use crate::fleet::Fleet;
use convoke::coordination::instances::SWEEP;
use convoke::coordination::instances::collecting::TOGETHER;
use convoke::coordination::instances::instance::Registering;
use convoke::coordination::tasks::claim::{Claim, MAX_CLAIMED, MAX_CLAIMS, MAX_KINDS};
use convoke::coordination::tasks::list::MAX_LISTED;
use convoke::coordination::tasks::task::{MAX_REQUIRES, NewTask, TaskStatus};
use convoke::coordination::tasks::update::TaskChange;
use convoke::coordination::tasks::{Assignment, KEPT};
use convoke::streams::commit::MAX_PUBLICATIONS;
use convoke::streams::commit::Publication;
use std::time::Duration;

/// Tasks that wait, each in a lane of its own: more than any call can look at.
const WAITING: usize = 3000;
/// Instances that have room and all but one of what is required.
const NEARLY: usize = 130;
/// Instances that have all, and are loaded more.
const FIT: usize = 8;
/// Tasks that an instance holds.
const HELD: usize = 120;

pub(super) async fn drive(fleet: &mut Fleet, meter: &mut Meter) {
    comes(fleet, meter).await;
    let mut seed = Seed::afresh(fleet).await;
    seed_waiting(&mut seed).await;
    seed_instances(&mut seed).await;
    seed.finished(KEPT + 2000, 0, 0).await;
    seed.done().await;
    ends(fleet, meter).await;
    for last_attempt in [true, false] {
        for way in [Leaves::Lost, Leaves::Unregisters, Leaves::BeginsAnew] {
            leaves(fleet, meter, way, last_attempt).await;
        }
    }
    creates(fleet, meter).await;
    claims(fleet, meter).await;
    pulls(fleet, meter).await;
    collects(fleet, meter).await;
    lists(fleet, meter).await;
}

fn kinds(count: usize) -> Vec<String> {
    (0..count).map(kind).collect()
}

fn roles() -> Vec<String> {
    (0..ROLES).map(role).collect()
}

/// What every task requires: the last capability of all is the one that most lack.
fn requires() -> Vec<String> {
    (KINDS - MAX_REQUIRES..KINDS).map(kind).collect()
}

/// Very many tasks that wait, each in a lane of its own, a part of the lanes parked.
async fn seed_waiting(seed: &mut Seed<'_>) {
    let requires = requires();
    for number in 0..WAITING {
        let (kind, role) = (kind(number / 16 % (KINDS - 100)), role(number % ROLES));
        let heads = if number % 4 == 3 { "\"" } else { "" };
        let some = &requires[number % MAX_REQUIRES..];
        let task = Waiting {
            requires: some,
            heads: Some(heads),
            ..Waiting::new(number, &kind, &role)
        };
        seed.waits(&task).await;
    }
}

async fn seed_instances(seed: &mut Seed<'_>) {
    let (roles, all, mut nearly) = (roles(), kinds(KINDS), requires());
    *nearly.last_mut().unwrap() = kind(1);
    for number in 0..NEARLY + FIT {
        let id = format!("i-{number:03}");
        let fits = number >= NEARLY;
        seed.instance(&Seeded {
            id: &id,
            roles: &roles,
            kinds: if fits { &all } else { &nearly },
            expires: FAR,
            assigned: if fits { 1 } else { 0 },
            capacity: 100,
        })
        .await;
    }
}

/// One comes that could take anything, where everything waits; then it is another one altogether.
async fn comes(fleet: &mut Fleet, meter: &mut Meter) {
    let mut seed = Seed::afresh(fleet).await;
    seed_waiting(&mut seed).await;
    seed.done().await;
    let mut one = Registering::new("w-0", roles());
    one.capabilities = kinds(KINDS);
    one.capacity = 70;
    let mut other = Registering::new("w-0", (0..ROLES).map(|n| format!("other-{n}")));
    other.capabilities = (0..KINDS).map(|n| format!("other.number_{n}")).collect();
    let mut silent = Registering::new("w-1", roles());
    silent.capacity = 70;
    meter
        .of(&fleet.redis, async {
            let first = fleet.instances.register(&one).await.unwrap();
            assert!(!first.assigned.is_empty());
            fleet.instances.register(&other).await.unwrap();
            fleet.instances.register(&one).await.unwrap();
            fleet.instances.register(&silent).await.unwrap();
            fleet.tasks.retire("w-0").await.unwrap();
        })
        .await;
}

fn demanding(id: &str) -> NewTask {
    NewTask {
        role: role(0),
        requires: requires(),
        max_attempts: 100,
        ..NewTask::new(id, kind(1))
    }
}

/// One is created that hardly anybody can take, and all that waits is looked at.
async fn creates(fleet: &mut Fleet, meter: &mut Meter) {
    meter
        .of(&fleet.redis, async {
            for number in 0..8 {
                let task = demanding(&format!("new-{number}"));
                fleet.tasks.create(&task).await.ok();
            }
            for number in 0..8u8 {
                let change = TaskChange {
                    priority: Some(number),
                    payload: Some(vec![7; 1]),
                    requires: Some(requires()),
                    metadata: Some(vec![0x80]),
                };
                let id = format!("t-{}", 1000 + usize::from(number));
                fleet.tasks.update(&id, &change, "e-3").await.ok();
            }
            for _ in 0..3 {
                fleet.tasks.assign_waiting().await.unwrap();
            }
        })
        .await;
}

/// One takes very much by itself: what it holds, what waits in one lane, and in very many.
async fn claims(fleet: &mut Fleet, meter: &mut Meter) {
    let mut seed = Seed::afresh(fleet).await;
    seed_waiting(&mut seed).await;
    let (kind, role) = (kind(1), role(0));
    for number in 0..2 * MAX_CLAIMED {
        let heads = (number == 0).then_some("");
        let task = Waiting {
            heads,
            ..Waiting::new(200_000 + number, &kind, &role)
        };
        seed.waits(&task).await;
    }
    let (roles, all) = (roles(), kinds(KINDS));
    seed.instance(&Seeded {
        id: "x-0",
        roles: &roles,
        kinds: &all,
        expires: FAR,
        assigned: HELD as u32,
        capacity: 1000,
    })
    .await;
    seed_held(&mut seed, "x-0", 1).await;
    seed.done().await;
    // It claimed very often and much, and holds nothing of that: there is much to forget.
    let mut log = Vec::new();
    let old: Vec<rmpv::Value> = (0..MAX_CLAIMS + 9).map(old_claim).collect();
    rmpv::encode::write_value(&mut log, &rmpv::Value::Array(old)).unwrap();
    let _: () = redis::cmd("HSET")
        .arg(fleet.keys.tasks().data)
        .arg("x-0 claims")
        .arg(log)
        .query_async(&mut fleet.connection.clone())
        .await
        .unwrap();
    let few = &all[KINDS - 200..][..MAX_KINDS];
    meter
        .of(&fleet.redis, async {
            for (number, kinds) in [&[][..], few, &[], &all[1..2], few, &[]].iter().enumerate() {
                let asked = format!("c-{number}");
                for _ in 0..2 {
                    let claimed = fleet
                        .tasks
                        .claim(Claim::new("x-0", MAX_CLAIMED, kinds, &asked));
                    claimed.await.unwrap();
                }
            }
        })
        .await;
}

/// Many pulses of workers that somebody suspects.
async fn collects(fleet: &mut Fleet, meter: &mut Meter) {
    for number in 0..TOGETHER {
        let id = format!("p-{number:03}");
        fleet.register(&id, &["worker"]).await;
        let suspects = fleet.keys.suspects();
        fleet
            .run(&format!("ZADD {suspects} 9999999999999 {id}"))
            .await;
        // Two milliseconds with the same expiry would be one pulse.
        let active = fleet.keys.active();
        fleet.run(&format!("ZINCRBY {active} -100 {id}")).await;
        let incarnation = fleet.register(&id, &["worker"]).await.incarnation;
        fleet.run(&format!("ZINCRBY {active} -100 {id}")).await;
        let sent = fleet.instances.send_pulse(&id, incarnation, 7.0, &[]);
        assert!(sent.await.unwrap().left.is_some());
    }
    meter
        .of(&fleet.redis, async {
            let collected = fleet
                .instances
                .collect_pulses(None, Duration::from_secs(60));
            assert_eq!(collected.await.unwrap().1, TOGETHER as u64);
        })
        .await;
}

/// A worker with much room takes what it can of very much.
async fn pulls(fleet: &mut Fleet, meter: &mut Meter) {
    let mut hash = redis::cmd("HSET");
    hash.arg(fleet.keys.instance("x-0")).arg("process").arg("p");
    let mut connection = fleet.connection.clone();
    hash.query_async::<()>(&mut connection).await.unwrap();
    meter
        .of(&fleet.redis, async {
            for by_itself in [true, true, false] {
                let pulled = fleet.tasks.pull("x-0", "p", by_itself).await.unwrap();
                assert!(pulled.is_some());
            }
        })
        .await;
}

fn old_claim(number: usize) -> rmpv::Value {
    let mut claim = vec![rmpv::Value::from(format!("old-{number}"))];
    for at in 0..MAX_CLAIMED {
        claim.extend([format!("gone-{at}").into(), 1.into()]);
    }
    rmpv::Value::Array(claim)
}

async fn seed_held(seed: &mut Seed<'_>, holder: &str, attempt: u32) {
    let (kind, requires, role) = (kind(1), requires(), role(0));
    for number in 0..HELD {
        let task = Waiting {
            requires: &requires,
            failures: 8,
            error: 1024,
            ..Waiting::new(500_000 + number, &kind, &role)
        };
        seed.held(&task, holder, attempt).await;
    }
}

fn held(number: usize) -> Assignment {
    Assignment {
        task: format!("t-{}", 500_000 + number),
        instance: "w-0".into(),
        fence: 7,
    }
}

async fn seed_holder(seed: &mut Seed<'_>, attempt: u32, expires: u64) {
    let (roles, kinds) = (roles(), kinds(KINDS));
    seed.instance(&Seeded {
        id: "w-0",
        roles: &roles,
        kinds: &kinds,
        expires,
        assigned: HELD as u32,
        capacity: HELD as u32,
    })
    .await;
    seed_held(seed, "w-0", attempt).await;
}

/// Tasks end, where very many have, and give way to what waits.
async fn ends(fleet: &mut Fleet, meter: &mut Meter) {
    let mut seed = Seed::more(fleet);
    seed_holder(&mut seed, 1, FAR).await;
    seed.done().await;
    let publications: Vec<Publication> = (0..MAX_PUBLICATIONS)
        .map(|n| Publication {
            stream: format!("cb:events:domain_{n}"),
            fields: ["type", "a.b", "n", "1"].map(|word| word.into()).to_vec(),
        })
        .collect();
    meter
        .of(&fleet.redis, async {
            for number in 0..4 {
                let held = held(number);
                let done = fleet.tasks.complete(&held, &[0xc0], &publications);
                done.await.unwrap();
            }
            for (number, again) in (4..12).zip([true, false].into_iter().cycle()) {
                let (held, error) = (held(number), "e".repeat(1024));
                let failed = fleet.tasks.fail(&held, &error, again);
                failed.await.unwrap();
            }
            for number in 12..16 {
                let task = held(number).task;
                fleet.tasks.cancel(&task, "enough").await.unwrap();
            }
            for number in 16..20 {
                let task = held(number).task;
                fleet.tasks.unassign(&task, "e-1").await.unwrap();
            }
            let fits = format!("i-{NEARLY:03}");
            for number in 20..24 {
                let task = held(number).task;
                fleet.tasks.assign(&task, &fits, "e-2").await.unwrap();
            }
        })
        .await;
}

#[derive(Clone, Copy, PartialEq)]
enum Leaves {
    Lost,
    Unregisters,
    BeginsAnew,
}

/// An instance goes that holds many tasks.
async fn leaves(fleet: &mut Fleet, meter: &mut Meter, way: Leaves, last_attempt: bool) {
    let mut seed = Seed::more(fleet);
    let expires = if way == Leaves::Lost { 1000 } else { FAR };
    let attempt = if last_attempt { 100 } else { 1 };
    seed_holder(&mut seed, attempt, expires).await;
    seed.done().await;
    let asked = fleet.asked();
    meter
        .of(&fleet.redis, async {
            match way {
                Leaves::Lost => {
                    let swept = fleet.instances.sweep(SWEEP).await.unwrap();
                    assert_eq!(swept.lost.len(), 1);
                }
                Leaves::Unregisters => {
                    let left = asked.unregister("w-0", None).await.unwrap();
                    assert!(left.unregistered);
                }
                Leaves::BeginsAnew => _ = fleet.tasks.release("w-0").await.unwrap(),
            }
        })
        .await;
}

/// The longest list, of the longest records.
async fn lists(fleet: &mut Fleet, meter: &mut Meter) {
    let mut seed = Seed::afresh(fleet).await;
    seed.finished(2 * MAX_LISTED, 8, 1024).await;
    let (kind, role) = (kind(1), role(0));
    for number in 0..MAX_LISTED {
        let task = Waiting {
            failures: 8,
            error: 1024,
            ..Waiting::new(number, &kind, &role)
        };
        seed.held(&task, "w-0", 99).await;
    }
    seed.done().await;
    meter
        .of(&fleet.redis, async {
            for status in [
                None,
                Some(TaskStatus::Assigned),
                Some(TaskStatus::Failed),
                Some(TaskStatus::Completed),
            ] {
                fleet.tasks.list(status, MAX_LISTED).await.unwrap();
            }
        })
        .await;
}
