//! State that instances share. Each rule is one Lua script beside the Rust that calls it: atomic,
//! idempotent, on the server's clock.

pub mod ballot;
pub mod ballots;
pub mod batch;
pub mod batches;
pub mod catalog;
pub mod error;
pub mod instance;
pub mod instances;
pub mod leases;
pub mod limits;
mod outbox;
pub mod roster;
mod store;
pub mod view;
