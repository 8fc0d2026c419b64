//! The ledger, on both databases.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../support/mod.rs"]
mod support;

mod fill;
mod full;
mod health;
mod history;
mod inbox;
mod mode;
mod outage;
mod outbox;
mod outcomes;
mod rig;
mod schema;
