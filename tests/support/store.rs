//! A database of either kind.

#![allow(dead_code)] // Each test binary uses a part.

use super::new_directory;
use super::postgres::Postgres;
use convoke::ledger::Database;
use convoke::settings::DatabaseUrl;
use std::path::PathBuf;

/// A database of one test's own.
pub(crate) enum Store {
    File(PathBuf),
    Server(Postgres),
}

impl Store {
    pub(crate) fn file() -> Self {
        Self::File(new_directory("ledger").join("state/ledger.db"))
    }

    pub(crate) fn server() -> Self {
        Self::Server(Postgres::start())
    }

    pub(crate) fn both() -> [Self; 2] {
        [Self::file(), Self::server()]
    }

    pub(crate) fn url(&self) -> DatabaseUrl {
        DatabaseUrl::new(match self {
            Store::File(path) => format!("sqlite:{}", path.display()),
            Store::Server(postgres) => postgres.url(),
        })
    }

    pub(crate) fn database(&self) -> Database {
        Database::new(&self.url()).unwrap()
    }

    /// A connection of the test's own.
    pub(crate) async fn run(&self, sql: &'static str) {
        use convoke::sqlx::{self, Connection};
        match self {
            Store::File(path) => {
                let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
                let mut connection = sqlx::SqliteConnection::connect_with(&options)
                    .await
                    .unwrap();
                sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
                connection.close().await.unwrap();
            }
            Store::Server(postgres) => {
                postgres.sql(sql);
            }
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if let Store::File(path) = self {
            let ours = path.ancestors().nth(2);
            std::fs::remove_dir_all(ours.unwrap()).ok();
        }
    }
}
