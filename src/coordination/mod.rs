//! State that instances share. Each rule is one Lua script beside the Rust that calls it: atomic,
//! idempotent, on the server's clock.

pub mod batch;
pub mod batches;
pub mod error;
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
mod store;
