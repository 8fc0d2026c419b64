//! The database: two small typed pools behind one contract.
//!
//! - **SQLite**: a file in WAL mode, one connection that writes, a few that read. Every write begins
//!   with `BEGIN IMMEDIATE`: a transaction that reads first and writes later fails at once when
//!   another process writes, without waiting.
//! - **PostgreSQL**: a pool with a limit on everything, whose connections are asked whether they may
//!   write before each use: a demoted primary answers pings all the same.

use super::error::LedgerError;
use super::fact::Fact;
use super::file;
use super::file::File;
use super::{postgres, schema, sqlite};
use crate::settings::{DatabaseKind, DatabaseUrl};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, PgPool, Postgres, Row, SqlitePool};
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tracing::log::LevelFilter;

/// How long getting a connection may take.
pub const ACQUIRE: Duration = Duration::from_secs(2);
/// How long one statement may take.
pub const STATEMENT: Duration = Duration::from_secs(30);
/// How long bringing the schema up to date may take.
const MIGRATION: Duration = Duration::from_secs(5 * 60);
/// How long a write waits for another one's lock.
pub(super) const LOCK: Duration = Duration::from_secs(5);
/// How long a connection is used: after a failover behind the same address, this long at most leads
/// to the old server.
pub(super) const LIFETIME: Duration = Duration::from_secs(5 * 60);
/// Connections of a pool that reads and writes.
pub(super) const CONNECTIONS: u32 = 4;

/// A database that holds the ledger, an inbox, an outbox. Cheap to clone.
#[derive(Clone)]
pub struct Database {
    pub(super) pools: Pools,
    /// When the schema was last found in order.
    checked: Arc<Mutex<Option<Instant>>>,
}

#[derive(Clone)]
pub(super) enum Pools {
    Sqlite {
        /// The only connection of this process that writes.
        writer: SqlitePool,
        /// Connections that cannot write.
        reader: SqlitePool,
        /// The file that both are to lead to.
        file: Arc<File>,
    },
    Postgres(PgPool),
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Database({})", self.kind())
    }
}

impl Database {
    /// Prepares for the database at `url`; connects nothing yet. A file's directory is made.
    ///
    /// # Errors
    /// [`LedgerError::Url`].
    pub fn new(url: &DatabaseUrl) -> Result<Self, LedgerError> {
        let pools = match url.kind().map_err(LedgerError::Url)? {
            DatabaseKind::Sqlite(path) => file::pools(path),
            DatabaseKind::Postgres => Pools::Postgres(postgres_at(url, CONNECTIONS)?),
        };
        Ok(Self {
            pools,
            checked: Arc::default(),
        })
    }

    /// Closes all connections.
    pub async fn close(&self) {
        match &self.pools {
            Pools::Sqlite { writer, reader, .. } => {
                reader.close().await;
                writer.close().await;
            }
            Pools::Postgres(pool) => pool.close().await,
        }
    }

    /// Which kind it is: `sqlite` or `postgres`.
    pub fn kind(&self) -> &'static str {
        match &self.pools {
            Pools::Sqlite { .. } => "sqlite",
            Pools::Postgres(_) => "postgres",
        }
    }

    /// The version of its schema; 0 without one.
    pub async fn version(&self) -> Result<i64, LedgerError> {
        const QUERY: &str = "SELECT CAST(coalesce(max(version), 0) AS bigint) FROM convoke_migrations WHERE success";
        let found = within(ACQUIRE + STATEMENT, async {
            match &self.pools {
                Pools::Sqlite { writer, file, .. } => {
                    file.make_private();
                    sqlx::query(QUERY).fetch_one(writer).await?.try_get(0)
                }
                Pools::Postgres(pool) => sqlx::query(QUERY).fetch_one(pool).await?.try_get(0),
            }
        });
        match found.await? {
            Ok(version) => Ok(version),
            Err(sqlx::Error::Database(error)) if is_no_table(&*error) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    /// Fails unless the schema has the version that this program needs.
    pub async fn check(&self) -> Result<(), LedgerError> {
        schema::check(self.version().await?)
    }

    /// Brings the schema up to date; from which version.
    ///
    /// # Errors
    /// [`LedgerError::Ahead`] and whatever the database says.
    pub async fn migrate(&self) -> Result<i64, LedgerError> {
        let found = self.version().await?;
        match schema::check(found) {
            Ok(()) => return Ok(found),
            Err(LedgerError::Behind { .. }) => {}
            Err(error) => return Err(error),
        }
        within(MIGRATION, async {
            match &self.pools {
                Pools::Sqlite { writer, .. } => {
                    let done = schema::SQLITE.run(writer).await;
                    // The only connection; it may be unusable, see `sqlite::end`.
                    if done.is_err()
                        && let Ok(connection) = writer.acquire().await
                    {
                        drop(connection.detach());
                    }
                    done
                }
                Pools::Postgres(pool) => schema::POSTGRES.run(pool).await,
            }
        })
        .await??;
        Ok(found)
    }

    /// Takes the schema back to an earlier version; what the later ones held is lost.
    pub async fn revert(&self, version: i64) -> Result<(), LedgerError> {
        match &self.pools {
            Pools::Sqlite { writer, .. } => schema::SQLITE.undo(writer, version).await?,
            Pools::Postgres(pool) => schema::POSTGRES.undo(pool, version).await?,
        }
        Ok(())
    }

    /// Has the schema be in order: checked now if the last check is older than `age`, or something
    /// failed since; brought up to date where it is behind.
    ///
    /// # Errors
    /// [`LedgerError::Ahead`] and whatever the database says.
    pub async fn ready(&self, age: Duration) -> Result<(), LedgerError> {
        let checked = *self.checked();
        if checked.is_some_and(|at| at.elapsed() < age) {
            return Ok(());
        }
        let found = self.migrate().await?;
        if found < schema::VERSION {
            let known = schema::VERSION;
            tracing::info!(
                from = found,
                to = known,
                "the database's schema was brought up to date"
            );
        }
        *self.checked() = Some(Instant::now());
        Ok(())
    }

    fn checked(&self) -> MutexGuard<'_, Option<Instant>> {
        self.checked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes facts in one transaction, each once; how many were new.
    pub async fn insert(&self, facts: &[Fact]) -> Result<u64, LedgerError> {
        let written = self.try_insert(facts).await;
        if written.is_err() {
            *self.checked() = None;
        }
        written
    }

    async fn try_insert(&self, facts: &[Fact]) -> Result<u64, LedgerError> {
        match &self.pools {
            Pools::Sqlite { writer, file, .. } => {
                file.make_private();
                let before = file.found();
                let done = within(ACQUIRE + STATEMENT, sqlite::insert(writer, facts)).await?;
                if before.is_some() && file.found() != before {
                    let gone = "its file was deleted or replaced".to_owned();
                    return Err(LedgerError::Unreachable(gone));
                }
                done
            }
            Pools::Postgres(pool) => {
                let mut connection = pool.acquire().await?;
                let written = within(STATEMENT, postgres::insert(&mut connection, facts)).await;
                settle(connection, written)
            }
        }
    }
}

/// Gives a connection back, unless what it did says that it is of no more use: it leads to a server
/// that takes no writes, or hangs.
fn settle<T>(
    connection: PoolConnection<Postgres>,
    done: Result<Result<T, LedgerError>, LedgerError>,
) -> Result<T, LedgerError> {
    let done = done.and_then(|done| done);
    if let Err(LedgerError::ReadOnly | LedgerError::Slow(_) | LedgerError::Unreachable(_)) = &done {
        // Dropped outside of the pool, it is closed without a farewell that might hang as well.
        drop(connection.detach());
    }
    done
}

/// Bounds what talks to a database.
pub(super) async fn within<T>(
    limit: Duration,
    work: impl Future<Output = T>,
) -> Result<T, LedgerError> {
    let done = tokio::time::timeout(limit, work).await;
    done.map_err(|_| LedgerError::Slow(limit))
}

fn is_no_table(error: &dyn sqlx::error::DatabaseError) -> bool {
    error.code().as_deref() == Some("42P01") || error.message().starts_with("no such table")
}

/// A pool for the server at `url`. Connects nothing yet.
pub(super) fn postgres_at(url: &DatabaseUrl, connections: u32) -> Result<PgPool, LedgerError> {
    let ms = |limit: Duration| limit.as_millis().to_string();
    let options = PgConnectOptions::from_str(url.expose())
        .map_err(|_| LedgerError::Url(format!("{url} cannot be parsed")))?
        .application_name("convoke")
        .options([
            ("statement_timeout", ms(STATEMENT - Duration::from_secs(1))),
            ("lock_timeout", ms(LOCK)),
            ("idle_in_transaction_session_timeout", ms(STATEMENT)),
        ])
        .log_statements(LevelFilter::Trace)
        .log_slow_statements(LevelFilter::Trace, STATEMENT);
    let pool = PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(ACQUIRE)
        .max_lifetime(LIFETIME)
        .idle_timeout(LIFETIME / 2)
        // It asks more than a ping does.
        .test_before_acquire(false)
        .before_acquire(|connection, _| {
            Box::pin(async move {
                let asked = sqlx::query("SHOW transaction_read_only").fetch_one(connection);
                match tokio::time::timeout(ACQUIRE / 2, asked).await {
                    Ok(answer) => Ok(answer?.try_get::<String, _>(0)? == "off"),
                    Err(_) => Ok(false),
                }
            })
        })
        .connect_lazy_with(options);
    Ok(pool)
}
