//! State that instances share. Each rule is one Lua script beside the Rust that calls it: atomic,
//! idempotent, on the server's clock.

mod assignment;
pub mod ballot;
pub mod ballots;
pub mod batch;
pub mod batches;
pub mod catalog;
pub mod error;
pub mod flow;
pub mod gossip;
pub mod instance;
pub mod instances;
pub mod leader;
pub mod leases;
pub mod limits;
pub mod metrics;
mod outbox;
mod ping;
pub mod roster;
pub mod scripts;
mod store;
pub mod task;
pub mod task_list;
pub mod tasks;
pub mod view;
