//! What the drivers of this build make of a database's URL.

#[cfg(not(all(feature = "ledger-postgres", feature = "ledger-sqlite")))]
mod absent;
#[cfg(feature = "ledger-postgres")]
mod postgres;
#[cfg(feature = "ledger-sqlite")]
mod sqlite;

#[cfg(not(feature = "ledger-postgres"))]
pub(super) use absent::postgres;
#[cfg(not(feature = "ledger-sqlite"))]
pub(super) use absent::sqlite;
#[cfg(feature = "ledger-postgres")]
pub(super) use postgres::postgres;
#[cfg(feature = "ledger-sqlite")]
pub(super) use sqlite::sqlite;
