//! The instances against a real server: every transition of `coordination::instances`.

#[path = "../support/mod.rs"]
mod support;

mod batch_history;
mod batches;
mod fleet;
mod gossip;
mod leader;
mod metrics;
mod register;
mod sweep;
mod transitions;
