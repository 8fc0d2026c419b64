//! A worker in this process, against a real server.

#[path = "../support/mod.rs"]
mod support;

mod admission;
mod answers;
mod asking;
mod bad_input;
mod ballots;
mod basics;
mod batch_handlers;
mod batch_takeover;
mod batches;
mod blocking;
mod clocks;
mod cores;
mod doubt;
mod failures;
mod fences;
mod fields;
mod handover;
mod history;
mod kept;
mod leaving;
mod lifecycle;
mod metrics;
mod once;
mod order;
mod orders;
mod outages;
mod pairs;
mod patterns;
mod places;
mod poor;
mod probe;
mod progress;
mod rig;
mod schedules;
mod state;
mod takeover;
mod task_words;
mod tasks;
mod telemetry;
mod turns;
mod unbegun;
mod values;
mod whole;
