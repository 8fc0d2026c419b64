//! A message-bus worker for Redis Streams.

#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used))]

pub mod bus;
pub mod config;
pub mod coordination;
pub mod error;
pub mod handlers;
pub mod ledger;
pub mod registry;
pub mod worker;

pub use error::HandlerError;
pub use registry::context::Context;
pub use registry::policy::Policy;
pub use sqlx;
pub use worker::Worker;
