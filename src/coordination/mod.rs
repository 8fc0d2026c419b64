//! State that instances share. Each rule is one Lua script beside the Rust that calls it: atomic,
//! idempotent, on the server's clock.

mod answer;
pub mod answered;
pub mod ballots;
pub mod batches;
mod bounds;
pub mod catalog;
pub mod error;
pub mod flow;
pub mod instances;
pub mod leader;
pub mod limits;
pub mod metrics;
pub mod nudge;
mod outbox;
pub mod own_report;
pub mod patterns;
pub mod policies;
pub mod repairs;
pub mod schedules;
pub mod scripts;
pub mod seats;
mod store;
pub mod tasks;
pub mod totals;
pub mod view;
