//! A message-bus worker for Redis Streams.
//!
//! | feature | brings |
//! |---|---|
//! | none (`default-features = false`) | a client, a worker, the built-in handlers |
//! | `ledger-sqlite` | the ledger in SQLite; [`once`](Context::once) and the outbox for a service's own SQLite |
//! | `ledger-postgres` | the same with PostgreSQL |
//! | `mcp` | the health of an MCP server |
//! | `operator` | looking at a bus and putting it right: [`operator`] |
//! | `testing` | a handler's test without a server: [`testing`] |
//! | `cli` (default) | all of these, and the program |

#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used))]

pub mod builtin;
pub mod client;
pub mod connect;
pub mod coordination;
pub mod docs;
pub mod handler;
#[cfg(any(feature = "ledger-sqlite", feature = "ledger-postgres"))]
pub mod ledger;
#[cfg(feature = "operator")]
pub mod operator;
pub mod protocol;
pub mod settings;
pub mod streams;
#[cfg(feature = "testing")]
pub mod testing;
pub mod worker;

pub use client::Client;
pub use client::publish::Outgoing as Event;
pub use handler::context::Context;
pub use handler::policy::Policy;
pub use handler::state::State;
pub use protocol::error::HandlerError;
pub use settings::Settings;
#[cfg(any(feature = "ledger-sqlite", feature = "ledger-postgres"))]
pub use sqlx;
pub use worker::Worker;
// Their types stand in signatures.
pub use {redis, rmpv, schemars, tokio_util, tower};
