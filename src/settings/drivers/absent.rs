//! A driver that this build does not have.

use crate::settings::check::lacks;
use crate::settings::database_url::{DatabaseKind, DatabaseUrl};

/// Refuses a server's URL.
#[cfg(not(feature = "ledger-postgres"))]
pub(crate) fn postgres(url: &DatabaseUrl) -> Result<DatabaseKind, String> {
    Err(format!("{url} {}", lacks("ledger-postgres")))
}

/// Refuses a file's.
#[cfg(not(feature = "ledger-sqlite"))]
pub(crate) fn sqlite(url: &DatabaseUrl, _: &str) -> Result<DatabaseKind, String> {
    Err(format!("{url} {}", lacks("ledger-sqlite")))
}
