//! PostgreSQL's.

use crate::settings::database_url::{DatabaseKind, DatabaseUrl};
use sqlx::postgres::PgConnectOptions;
use std::str::FromStr;

/// A server's URL. The parser's own message may quote what it stumbled over.
pub(crate) fn postgres(url: &DatabaseUrl) -> Result<DatabaseKind, String> {
    match PgConnectOptions::from_str(url.expose()) {
        Ok(_) => Ok(DatabaseKind::Postgres),
        Err(_) => Err(format!(
            "{url} is not a URL such as postgres://user@host:5432/name"
        )),
    }
}
