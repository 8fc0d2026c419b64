//! The ledger: SQL for what must outlive Redis.
//!
//! | for | look at |
//! |---|---|
//! | a handler's own SQL, once, however often its event runs | [`Context::once`](crate::Context::once), [`migrate`] |
//! | a service's SQL and the event that announces it, in one transaction | [`Post`]; a worker with that `database_url` publishes it, or a [`Relay`] of your own |
//! | what happened: instances, tasks, batches, decisions, dead letters, what operators did | [`Database`], [`Filter`], [`Fact`] |
//!
//! Pools and transactions are those of [`sqlx`].
//!
//! A worker that has a `database_url` writes what happened there, as the consumer group `ledger`: one transaction a batch,
//! acknowledged after the commit, each entry once; and deletes what is older than the retention.
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
#[doc(hidden)]
pub mod outcomes;
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
