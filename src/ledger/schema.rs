//! The schema: numbered migrations that ship in the binary, each with its way back.

use super::dialect::Dialect;
use super::error::LedgerError;
use sqlx::SqlSafeStr;
use sqlx::migrate::{Migration, MigrationType, Migrator};

/// Where the database notes which migrations it has had; not sqlx's own name, for the database may
/// be a service's that has migrations of its own.
const TABLE: &str = "convoke_migrations";

/// The latest version.
pub const VERSION: i64 = 5;

/// Asks which version a database has.
pub(super) const FOUND: &str =
    "SELECT CAST(coalesce(max(version), 0) AS bigint) FROM convoke_migrations WHERE success";

/// The migrations of one kind of database.
macro_rules! migrations {
    ($database:literal) => {
        std::sync::LazyLock::new(|| {
            $crate::ledger::schema::migrator([
                (
                    1,
                    "facts",
                    include_str!(concat!("migrations/", $database, "/1_facts.up.sql")),
                    include_str!(concat!("migrations/", $database, "/1_facts.down.sql")),
                ),
                (
                    2,
                    "inbox",
                    include_str!(concat!("migrations/", $database, "/2_inbox.up.sql")),
                    include_str!(concat!("migrations/", $database, "/2_inbox.down.sql")),
                ),
                (
                    3,
                    "outbox",
                    include_str!(concat!("migrations/", $database, "/3_outbox.up.sql")),
                    include_str!(concat!("migrations/", $database, "/3_outbox.down.sql")),
                ),
                (
                    4,
                    "cancelled",
                    include_str!(concat!("migrations/", $database, "/4_cancelled.up.sql")),
                    include_str!(concat!("migrations/", $database, "/4_cancelled.down.sql")),
                ),
                (
                    5,
                    "outcomes",
                    include_str!(concat!("migrations/", $database, "/5_outcomes.up.sql")),
                    include_str!(concat!("migrations/", $database, "/5_outcomes.down.sql")),
                ),
            ])
        })
    };
}

pub(super) use migrations;

pub(super) type Step = (i64, &'static str, &'static str, &'static str);

pub(super) fn migrator(steps: [Step; VERSION as usize]) -> Migrator {
    let migrations = steps.into_iter().flat_map(|(version, name, up, down)| {
        let migration = |direction, sql: &'static str| {
            Migration::new(version, name.into(), direction, sql.into_sql_str(), false)
        };
        [
            migration(MigrationType::ReversibleUp, up),
            migration(MigrationType::ReversibleDown, down),
        ]
    });
    let mut migrator = Migrator::with_migrations(migrations.collect());
    migrator.dangerous_set_table_name(TABLE);
    migrator
}

/// Brings the ledger's schema up to date in a database of your own, by its pool: `Context::once` and the outbox need it.
///
/// ```no_run
/// use convoke::sqlx::sqlite::{SqlitePool, SqlitePoolOptions};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let pool = SqlitePool::connect("sqlite:shop.db?mode=rwc").await?;
/// convoke::ledger::migrate(&pool).await?;
///
/// // A test's, in memory: with one connection, since each has a database of its own.
/// let one = SqlitePoolOptions::new().max_connections(1);
/// let pool = one.connect("sqlite::memory:").await?;
/// convoke::ledger::migrate(&pool).await?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// Whatever the database says.
pub async fn migrate<DB: Dialect>(pool: &sqlx::Pool<DB>) -> Result<(), LedgerError> {
    Ok(DB::migrate(pool).await?)
}

/// Fails unless the database has the version that this program needs.
pub(super) fn check(found: i64) -> Result<(), LedgerError> {
    let known = VERSION;
    match found {
        VERSION => Ok(()),
        found if found > VERSION => Err(LedgerError::Ahead { found, known }),
        found => Err(LedgerError::Behind { found, known }),
    }
}

/// What a database answered to [`FOUND`]; 0 without a schema.
pub(super) fn found(asked: Result<i64, sqlx::Error>) -> Result<i64, LedgerError> {
    match asked {
        Err(error) if lacks_table(&error) => Ok(0),
        asked => Ok(asked?),
    }
}

/// PostgreSQL's `undefined_table`, or what SQLite says in words only.
pub(super) fn lacks_table(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| {
        error.code().as_deref() == Some("42P01") || error.message().starts_with("no such table")
    })
}
