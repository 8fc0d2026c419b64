//! The instances against a real server: every transition of `coordination::instances`.

#[path = "../support/mod.rs"]
mod support;

mod ballot_model;
mod ballots;
mod batch_history;
mod batches;
mod catalog;
mod fleet;
mod register;
mod sweep;
mod transitions;
