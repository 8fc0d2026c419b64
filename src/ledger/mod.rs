//! The ledger: SQL for what must outlive Redis.
//!
//! | part | what it does |
//! |---|---|
//! | [`fill`] | the consumer group `ledger` writes what happened into the database: one transaction a batch, acknowledged after the commit, each entry once |
//! | [`history`] | asks what happened |
//! | [`inbox`] | a handler's own SQL takes effect once, however often its event runs |
//! | [`outbox`], [`relay`] | a service's SQL and the event that announces it, in one transaction |
//! | [`retention`] | deletes what is older than a time |
//! | [`probe`] | whether PostgreSQL answers |
//!
//! A database that is down, slow, read-only, full or newer than this program delays the ledger and
//! loses nothing: what is not acknowledged stays in Redis, and trimming does not go past it.

#[doc(hidden)]
pub mod database;
#[doc(hidden)]
pub mod dialect;
#[doc(hidden)]
pub mod error;
#[doc(hidden)]
pub mod fact;
#[cfg(feature = "ledger-sqlite")]
mod file;
#[doc(hidden)]
pub mod fill;
#[doc(hidden)]
pub mod history;
#[doc(hidden)]
pub mod inbox;
#[doc(hidden)]
pub mod outbox;
#[cfg(feature = "ledger-postgres")]
mod postgres;
#[cfg(feature = "ledger-postgres")]
#[doc(hidden)]
pub mod probe;
#[doc(hidden)]
pub mod relay;
#[doc(hidden)]
pub mod retention;
#[doc(hidden)]
pub mod schema;
#[cfg(feature = "ledger-sqlite")]
mod sqlite;
mod store;

pub use database::Database;
pub use dialect::Dialect;
pub use error::LedgerError;
pub use fact::{Fact, Origin};
pub use history::{Cursor, Extent, Filter};
pub use outbox::{Post, PostError};
pub use relay::Relay;
pub use schema::migrate;
