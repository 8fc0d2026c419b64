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
pub mod testing;
pub mod worker;

pub use client::Client;
pub use client::publish::Outgoing as Event;
pub use handler::context::Context;
pub use handler::policy::Policy;
pub use handler::state::State;
pub use protocol::error::HandlerError;
pub use settings::Settings;
pub use sqlx;
pub use worker::Worker;
// Their types stand in signatures.
pub use {redis, rmpv, schemars, tokio_util, tower};
