//! The schema: numbered migrations that ship in the binary, each with its way back.

use super::error::LedgerError;
use sqlx::SqlSafeStr;
use sqlx::migrate::{Migration, MigrationType, Migrator};
use std::sync::LazyLock;

/// Where the database notes which migrations it has had; not sqlx's own name, for the database may
/// be a service's that has migrations of its own.
const TABLE: &str = "convoke_migrations";

/// The latest version.
pub const VERSION: i64 = 3;

macro_rules! migrations {
    ($database:literal) => {
        LazyLock::new(|| {
            migrator([
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
            ])
        })
    };
}

pub(super) static SQLITE: LazyLock<Migrator> = migrations!("sqlite");
pub(super) static POSTGRES: LazyLock<Migrator> = migrations!("postgres");

type Step = (i64, &'static str, &'static str, &'static str);

fn migrator(steps: [Step; VERSION as usize]) -> Migrator {
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

/// Fails unless the database has the version that this program needs.
pub(super) fn check(found: i64) -> Result<(), LedgerError> {
    let known = VERSION;
    match found {
        VERSION => Ok(()),
        found if found > VERSION => Err(LedgerError::Ahead { found, known }),
        found => Err(LedgerError::Behind { found, known }),
    }
}
