//! The shared rules against a real server: every transition of `coordination::instances` and
//! `coordination::tasks`.

#[path = "../support/mod.rs"]
mod support;

mod ballots;
mod batches;
mod catalog;
mod collecting;
mod cost;
mod fleet;
mod gossip;
mod leader;
mod metrics;
mod neighbours;
mod patterns;
mod policies;
mod register;
mod repairs;
mod repairs_of_events;
mod schedules;
mod sealed;
mod seats;
mod stepped;
mod sweep;
mod tasks;
mod tasks_cancelled;
mod tasks_claimed;
mod tasks_found;
mod tasks_moving;
mod tasks_pulled;
mod tasks_words;
mod told;
mod transitions;
mod version;
mod worst;
