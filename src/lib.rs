//! A message-bus worker for Redis Streams.

#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used))]

pub mod builtin;
pub mod client;
pub mod connect;
pub mod coordination;
pub mod docs;
pub mod handler;
pub mod ledger;
pub mod operator;
pub mod protocol;
pub mod settings;
pub mod streams;
pub mod worker;

pub use handler::context::Context;
pub use handler::policy::Policy;
pub use protocol::error::HandlerError;
pub use sqlx;
pub use worker::Worker;
