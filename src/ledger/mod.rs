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

pub mod database;
pub mod dialect;
pub mod error;
pub mod fact;
#[cfg(feature = "ledger-sqlite")]
mod file;
pub mod fill;
pub mod history;
pub mod inbox;
pub mod outbox;
#[cfg(feature = "ledger-postgres")]
mod postgres;
#[cfg(feature = "ledger-postgres")]
pub mod probe;
pub mod relay;
pub mod retention;
pub mod schema;
#[cfg(feature = "ledger-sqlite")]
mod sqlite;
mod store;

pub use database::Database;
pub use error::LedgerError;
pub use schema::migrate;
