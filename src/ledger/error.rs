//! What can go wrong with the database, and what it means.

use super::store::KINDS;
use sqlx::migrate::MigrateError;
use std::time::Duration;

/// A failure of the database.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LedgerError {
    /// The URL is not valid.
    #[error("database_url: {0}")]
    Url(String),
    /// Nobody answers there, or it is starting or stopping.
    #[error("the database cannot be reached: {0}")]
    Unreachable(String),
    /// The database took too long.
    #[error("the database did not answer within {}", humantime::format_duration(*.0))]
    Slow(Duration),
    /// The database takes no writes.
    #[error(
        "the database is read-only: a standby, a primary that was demoted, or a file without write permission"
    )]
    ReadOnly,
    /// The database has no room.
    #[error("the database is full: {0}")]
    Full(String),
    /// Somebody else holds its lock.
    #[error("the database is locked by another process")]
    Locked,
    /// Another transaction was in the way: a serialization failure or a deadlock.
    #[error("the database undid the transaction for another one: {0}")]
    Conflict(String),
    /// Its schema is newer than this program.
    #[error(
        "the database's schema has version {found}, and this version of convoke knows {known}: upgrade convoke"
    )]
    Ahead {
        /// The version that the database has.
        found: i64,
        /// The latest version that this program has.
        known: i64,
    },
    /// Its schema is older than this program.
    #[error(
        "the database's schema has version {found}, and {known} is needed: run `convoke ledger migrate`"
    )]
    Behind {
        /// The version that the database has; 0 without a schema.
        found: i64,
        /// The latest version that this program has.
        known: i64,
    },
    /// The database does not take these values, now or ever.
    #[error("the database refused a value: {0}")]
    Refused(String),
    /// A migration failed.
    #[error("migrating the database failed: {0}")]
    Migration(String),
    /// Anything else.
    #[error("database: {0}")]
    Sql(String),
}

impl LedgerError {
    /// Whether two failures are of the same kind, so that the second need not be told.
    pub(super) fn is_like(&self, other: &LedgerError) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }
}

impl From<MigrateError> for LedgerError {
    fn from(error: MigrateError) -> Self {
        match error {
            MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => {
                match LedgerError::from(error) {
                    LedgerError::Sql(error) => LedgerError::Migration(error),
                    other => other,
                }
            }
            other => LedgerError::Migration(other.to_string()),
        }
    }
}

impl From<sqlx::Error> for LedgerError {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::WorkerCrashed => {
                LedgerError::Unreachable(error.to_string())
            }
            sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed => {
                LedgerError::Unreachable("no connection in time".to_owned())
            }
            sqlx::Error::Database(database) => {
                let meaning = KINDS.iter().find_map(|one| (one.meaning)(&**database));
                meaning.unwrap_or_else(|| LedgerError::Sql(database.message().to_owned()))
            }
            _ => LedgerError::Sql(error.to_string()),
        }
    }
}
