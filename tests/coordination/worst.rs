//! The work of every script is bounded, whatever it is given: each is driven to its worst allowed input,
//! and what it then does is counted in commands, not in time.
//!
//! How long that takes a server is printed by
//!
//!     cargo nextest run --test coordination worst --run-ignored all --no-capture

mod crowd;
mod decisions;
mod meter;
mod queue;
mod seed;
mod streams;

use self::meter::{Longest, Meter, PARTS, files};
use crate::fleet::Fleet;
use std::collections::BTreeMap;

/// What a script may do at the most.
struct Bound {
    /// Commands of one run.
    calls: usize,
    /// Elements that one command asks for or is given.
    widest: usize,
    /// The commands that go through a whole key, and why that is small.
    whole: &'static [(&'static str, &'static str)],
}

const fn most(calls: usize, widest: usize) -> Bound {
    Bound {
        calls,
        widest,
        whole: &[],
    }
}

/// Of a script that gives tasks to instances.
const fn of_tasks(calls: usize, widest: usize) -> Bound {
    Bound {
        whole: &[("XINFO", "the groups of one inbox")],
        ..most(calls, widest)
    }
}

/// Times that each run is measured.
const ROUNDS: usize = 5;

/// Drives every script to its worst input.
async fn drive(timed: bool) -> BTreeMap<String, Longest> {
    let mut meter = Meter::new(timed);
    let mut fleet = Fleet::start().await;
    crowd::drive(&mut fleet, &mut meter).await;
    queue::drive(&mut fleet, &mut meter).await;
    decisions::drive(&mut fleet, &mut meter).await;
    streams::drive(&mut fleet, &mut meter).await;
    meter.longest
}

/// By file; where the server has no `TIME` a script asks once more. What a script asks for beyond its bound is split over calls.
const BOUNDS: &[(&str, Bound)] = &[
    (
        "add_quorum_vote.lua",
        Bound {
            whole: &[
                ("ZINTERSTORE", "an electorate: 5,000"),
                ("HGETALL", "the votes, if they fit into 32 KiB"),
                (
                    "ZREMRANGEBYSCORE",
                    "1,000 open ballots, 1,000 listed ones, an electorate",
                ),
                ("ZREMRANGEBYRANK", "one more than the listed ones"),
            ],
            ..most(45, 110)
        },
    ),
    ("assign_task_with_load_balancing.lua", of_tasks(450, 1000)),
    ("cancel_batch.lua", most(12, 24)),
    (
        "cancel.lua",
        Bound {
            whole: &[("XINFO", "the groups of one stream")],
            ..most(40, 90)
        },
    ),
    (
        "cancel_find.lua",
        Bound {
            whole: &[("XINFO", "the groups of one stream")],
            ..most(640, 70)
        },
    ),
    ("cancel_parked.lua", most(502, 6)),
    ("capable.lua", most(3, 130)),
    ("census.lua", most(16, 600)),
    (
        "collect_pulses.lua",
        Bound {
            whole: &[("DEL", "what 32 observers said of one peer")],
            ..most(270, 140)
        },
    ),
    ("commit.lua", most(580, 30)),
    (
        "count_votes.lua",
        Bound {
            whole: &[("HGETALL", "the votes, if they fit into 32 KiB")],
            ..most(25, 35)
        },
    ),
    (
        "coordinate_batch.lua",
        Bound {
            whole: &[
                ("DEL", "a bitmap of 8 KiB"),
                ("HGETALL", "100 failures of 256 bytes"),
                ("ZREMRANGEBYRANK", "one more than the listed ones"),
            ],
            ..most(620, 30)
        },
    ),
    ("delayed_change.lua", most(353, 12)),
    ("delayed_drop.lua", most(252, 12)),
    ("delayed_look.lua", most(252, 12)),
    ("delayed_run.lua", most(155, 135)),
    ("domain_keep.lua", most(4, 6)),
    ("domain_set.lua", most(9, 24)),
    ("drop.lua", most(52, 12)),
    ("first.lua", most(4, 6)),
    ("forget.lua", most(2, 4)),
    ("give.lua", most(4, 10)),
    (
        "group_drop.lua",
        Bound {
            whole: &[
                ("XINFO", "the groups of one stream"),
                ("XGROUP", "what was pending"),
            ],
            ..most(5, 12)
        },
    ),
    (
        "group_reset.lua",
        Bound {
            whole: &[("XINFO", "the groups of one stream")],
            ..most(6, 12)
        },
    ),
    ("heartbeat.lua", most(50, 1030)),
    ("hold.lua", most(202, 6)),
    ("lead.lua", most(6, 8)),
    ("limit.lua", most(3, 5)),
    ("lose.lua", of_tasks(570, 1030)),
    ("mode.lua", most(6, 8)),
    ("offered.lua", most(180, 205)),
    ("order.lua", most(9, 12)),
    ("own.lua", most(8, 12)),
    ("own_leave.lua", most(4, 8)),
    ("own_renew.lua", most(900, 8)),
    ("partition.lua", most(12, 510)),
    ("move.lua", most(102, 70)),
    (
        "promote.lua",
        Bound {
            whole: &[("ZREMRANGEBYRANK", "one member")],
            ..most(455, 135)
        },
    ),
    ("publish.lua", most(6, 80)),
    ("reader.lua", most(8, 130)),
    ("read_version.lua", most(20, 12)),
    (
        "register.lua",
        Bound {
            whole: &[
                (
                    "DEL",
                    "the hash of one instance, and what 32 observers said of it",
                ),
                ("XINFO", "the groups of one inbox"),
            ],
            ..most(285, 2060)
        },
    ),
    (
        "park.lua",
        Bound {
            whole: &[("XINFO", "the groups of one stream")],
            ..most(800, 12)
        },
    ),
    ("policy_put.lua", most(9, 14)),
    (
        "release.lua",
        Bound {
            whole: &[("XINFO", "the groups of one stream")],
            ..most(3000, 90)
        },
    ),
    (
        "remove.lua",
        Bound {
            whole: &[("XINFO", "the groups of one stream")],
            ..most(12, 10)
        },
    ),
    ("renew.lua", most(502, 10)),
    ("renew_batch.lua", most(5, 8)),
    ("repair_end.lua", most(6, 12)),
    ("repair_hold.lua", most(5, 5)),
    (
        "repair_put.lua",
        Bound {
            whole: &[("HGETALL", "100 states")],
            ..most(12, 12)
        },
    ),
    (
        "repair_step.lua",
        Bound {
            whole: &[("XINFO", "the ends of one stream")],
            ..most(360, 90)
        },
    ),
    ("replay_dead.lua", most(155, 90)),
    ("replay_pending.lua", most(155, 90)),
    ("replay_range.lua", most(155, 90)),
    ("schedule_delete.lua", most(9, 12)),
    ("schedule_fire.lua", most(10, 24)),
    ("schedule_put.lua", most(13, 12)),
    ("set_pattern.lua", most(9, 12)),
    (
        "seats.lua",
        Bound {
            whole: &[(
                "HGETALL",
                "the workers that have seats of one type, or wait",
            )],
            ..most(7, 130)
        },
    ),
    ("shorten.lua", most(1001, 6)),
    (
        "store_vote.lua",
        Bound {
            whole: &[
                ("ZINTERSTORE", "an electorate: 5,000"),
                (
                    "ZREMRANGEBYSCORE",
                    "1,000 open ballots, 1,000 listed ones, an electorate",
                ),
                ("ZREMRANGEBYRANK", "one more than the listed ones"),
            ],
            ..most(45, 110)
        },
    ),
    ("take.lua", most(210, 10)),
    ("task_assign.lua", of_tasks(300, 1000)),
    ("task_cancel.lua", of_tasks(370, 1000)),
    ("task_claim.lua", of_tasks(980, 1000)),
    ("task_complete.lua", of_tasks(920, 1000)),
    ("task_create.lua", of_tasks(255, 1000)),
    ("task_fail.lua", of_tasks(385, 1000)),
    (
        "task_list.lua",
        Bound {
            whole: &[("ZRANGE", "the tasks that ended within one millisecond")],
            ..most(15, 1010)
        },
    ),
    ("task_pull.lua", of_tasks(400, 1000)),
    ("task_release.lua", of_tasks(420, 1000)),
    ("task_retire.lua", of_tasks(5, 70)),
    ("task_unassign.lua", of_tasks(400, 1000)),
    ("task_update.lua", of_tasks(275, 1000)),
    (
        "trim.lua",
        Bound {
            whole: &[("XINFO", "the groups of one stream")],
            ..most(12, 1000)
        },
    ),
    ("undeliver.lua", most(502, 12)),
    ("unregister.lua", of_tasks(425, 1030)),
    (
        "update_gossip_health.lua",
        Bound {
            whole: &[
                ("HGETALL", "what 32 observers said"),
                ("DEL", "what 32 observers said"),
            ],
            ..most(230, 110)
        },
    ),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_script_does_more_than_so_much_at_its_worst_input() {
    let driven = drive(false).await;
    for (name, longest) in &driven {
        println!("{name:42} {longest:?}");
    }
    let mut wrong = Vec::new();
    for name in files().into_keys() {
        if PARTS.contains(&name.as_str()) {
            continue;
        }
        let bound = BOUNDS.iter().find(|(file, _)| *file == name);
        match (bound, driven.get(&name)) {
            (None, _) => wrong.push(format!("{name}: has no bound")),
            (_, None) => wrong.push(format!("{name}: was never run")),
            (Some((_, bound)), Some(longest)) => {
                let over = longest.calls > bound.calls || longest.widest > bound.widest;
                if over {
                    wrong.push(format!("{name}: over its bound: {longest:?}"));
                }
                let known = |name: &&String| !bound.whole.iter().any(|(known, _)| known == name);
                let whole: Vec<_> = longest.whole.iter().filter(known).collect();
                if !whole.is_empty() {
                    wrong.push(format!("{name}: goes through whole keys: {whole:?}"));
                }
            }
        }
    }
    let gone = BOUNDS
        .iter()
        .filter(|(file, _)| !files().contains_key(*file));
    wrong.extend(gone.map(|(file, _)| format!("{file}: is no script any more")));
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "prints a table"]
async fn how_long_each_script_takes_at_its_worst_input() {
    // The rounds are alike: what makes a run longer in one of them is the machine.
    let mut best: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for _ in 0..ROUNDS {
        for (name, driven) in drive(true).await {
            let runs = best.entry(name).or_default();
            runs.resize(runs.len().max(driven.micros.len()), u64::MAX);
            for (least, micros) in runs.iter_mut().zip(driven.micros) {
                *least = micros.min(*least);
            }
        }
    }
    println!("| script | µs of the longest run, each at its best of {ROUNDS} |\n|---|---|");
    for (name, runs) in best {
        println!("| {name} | {} |", runs.iter().max().unwrap_or(&0));
    }
}
