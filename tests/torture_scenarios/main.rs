//! Random scenarios of what instances share, each against a small model of the rule, with faults between
//! any two steps. What fails is shrunk; the steps that remain are kept in `found.rs`.
//!
//! A step is a call of the library, on a real server whose clock stands still unless a step moves it: so
//! the model says what every answer must be, to the millisecond. After each step the invariants are
//! checked. Faults: an answer is lost and the call repeated; the server forgets its scripts; its clock goes
//! an hour or a day, forth or back; it is killed and starts again from its append-only file. That an
//! instance dies, or was stopped and comes back with what it had, is a step of its own in each scenario.

#[path = "../support/mod.rs"]
mod support;

mod ballots;
mod batches;
mod delays;
mod found;
mod members;
mod run;
mod states;
mod tasks;
mod world;

#[test]
fn a_task_is_in_one_place_with_one_holder_and_ends_once() {
    run::all::<tasks::Scene>();
}

#[test]
fn a_batch_has_one_holder_a_fence_and_counts_each_item_once() {
    run::all::<batches::Scene>();
}

#[test]
fn a_ballot_decides_at_most_once_for_the_electorate_that_it_began_with() {
    run::all::<ballots::Scene>();
}

#[test]
fn an_instance_is_lost_once_and_never_while_it_is_alive() {
    run::all::<members::Scene>();
}

#[test]
fn what_is_delayed_comes_out_once_and_not_before_its_time() {
    run::all::<delays::Scene>();
}

#[test]
fn what_is_shown_is_what_is() {
    run::all::<states::Scene>();
}
