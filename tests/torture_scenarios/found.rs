//! The steps of failures that random scenarios found, shrunk. What fails next is added here.

use crate::run::{Step, these};
use crate::world::{DAY, HOUR, MINUTE, SECOND};
use crate::{batches, delays, members, tasks};
use Step::{Clock, Do, Lost, Restart};

fn register(instance: u8, capacity: u32) -> tasks::Step {
    tasks::Step::Register {
        instance,
        capacity,
        kinds: 1,
        roles: 1,
    }
}

fn create(task: u8, priority: u8) -> tasks::Step {
    tasks::Step::Create {
        task,
        kind: 0,
        role: 0,
        priority,
        attempts: 3,
        requires: 0,
    }
}

#[test]
fn a_report_of_a_failure_that_is_repeated_was_answered_aborted() {
    these::<tasks::Scene>(&[
        Do(register(0, 1)),
        Do(register(1, 1)),
        Do(create(0, 50)),
        Lost(tasks::Step::Fail(0, true)),
        Restart,
        Do(tasks::Step::Repeat(0)),
    ]);
}

#[test]
fn a_new_task_passed_those_of_a_higher_priority() {
    these::<tasks::Scene>(&[
        Do(register(0, 3)),
        Clock(HOUR),
        // Nobody is alive.
        Do(create(0, 100)),
        Do(tasks::Step::Pulse(0)),
        Do(create(1, 0)),
    ]);
}

#[test]
fn who_claims_never_got_what_it_could_take_only_since_it_registered_again() {
    let register = |kinds| tasks::Step::Register {
        instance: tasks::EXTERNAL,
        capacity: 1,
        kinds,
        roles: 1,
    };
    let requires = tasks::Step::Create {
        task: 0,
        kind: 0,
        role: 0,
        priority: 50,
        attempts: 3,
        requires: 2,
    };
    these::<tasks::Scene>(&[
        Do(register(1)),
        Do(tasks::Step::Claim(1, 0)),
        Do(requires),
        Do(register(3)),
        Do(tasks::Step::Claim(1, 0)),
    ]);
}

#[test]
fn an_id_was_forgotten_before_its_event_was_due() {
    let publish = delays::Step::Publish {
        id: 0,
        when: delays::When::After(7200),
        dedup: true,
    };
    these::<delays::Scene>(&[
        Do(publish.clone()),
        Clock(HOUR + 1),
        Do(publish.clone()),
        Clock(HOUR),
        Do(delays::Step::Promote { most: 100 }),
        Do(publish),
    ]);
}

#[test]
fn a_clock_that_jumped_lost_all_who_live() {
    let register = members::Step::Register {
        id: 0,
        by: 0,
        ttl: 0,
        roles: 0,
        named: members::Named::Nothing,
        begins: true,
    };
    let sweep = members::Step::Sweep {
        judges: true,
        most: 16,
    };
    let beat = members::Step::Beat {
        id: 0,
        by: 0,
        named: members::Named::Last,
    };
    these::<members::Scene>(&[
        Do(register),
        Do(sweep.clone()),
        Clock(HOUR),
        Do(sweep.clone()),
        Clock(SECOND),
        Do(sweep.clone()),
        // It goes on as who it was.
        Do(beat),
        // It is silent for as long as it may be, and is lost.
        Clock(7 * MINUTE),
        Do(sweep),
    ]);
}

#[test]
fn an_item_was_counted_twice_when_a_batch_was_to_be_forgotten() {
    let progress = |from, count| batches::Step::Progress {
        batch: 0,
        who: 2,
        from,
        count,
        fails: false,
    };
    these::<batches::Scene>(&[
        Do(batches::Step::Acquire {
            batch: 0,
            who: 2,
            event: 0,
            delivery: 1,
            may_hold: true,
        }),
        Clock(7 * DAY),
        Do(progress(9, 3)),
        Do(progress(9, 1)),
    ]);
}

#[test]
fn a_task_waited_beside_one_who_names_nothing_and_came_back() {
    these::<tasks::Scene>(&[
        Do(tasks::Step::Register {
            instance: 0,
            capacity: 1,
            kinds: 0,
            roles: 1,
        }),
        Clock(40 * SECOND),
        Lost(create(0, 0)),
        Clock(-20 * SECOND),
        Do(tasks::Step::Look),
    ]);
}
