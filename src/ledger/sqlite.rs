//! SQLite: a file in WAL mode, one connection that writes, a few that read. Every write begins with
//! `BEGIN IMMEDIATE`: a transaction that reads first and writes later fails at once when another
//! process writes, without waiting.

use super::dialect::{Dialect, dialect};
use super::error::LedgerError;
use super::fact::Fact;
use super::file::{self, File};
use super::history::{self, EXTENT, Extent, Filter};
use super::outcomes::{self, OutcomeExtent, OutcomeFilter};
use super::relay::{self, WAITING, Waiting};
use super::schema::{self, migrations};
use super::store::{ACQUIRE, Answer, Kind, Old, Opened, STATEMENT, Store, within};
use crate::protocol::outcome::EventOutcome;
use crate::settings::{DatabaseKind, DatabaseUrl};
use futures_util::future::BoxFuture;
use sqlx::migrate::Migrator;
use sqlx::{Sqlite, SqliteConnection, SqlitePool, Transaction};
use std::sync::{Arc, LazyLock};

pub(super) const KIND: Kind = Kind { open, meaning };

static MIGRATIONS: LazyLock<Migrator> = migrations!("sqlite");

const INSERT: &str = "\
INSERT INTO convoke_facts
    (namespace, stream, at, seq, kind, time, source, subject, instance, reason, data, fields)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO NOTHING";

const OLD_FACTS: &str = "DELETE FROM convoke_facts WHERE (stream, at, seq) IN (SELECT stream, at, seq FROM convoke_facts WHERE namespace = ? AND at < ? ORDER BY at LIMIT ?)";
const OLD_OUTCOMES: &str = "DELETE FROM convoke_outcomes WHERE (namespace, stream, at, seq) IN (SELECT namespace, stream, at, seq FROM convoke_outcomes WHERE namespace = ? AND ended < ? LIMIT ?)";
const OLD_RECEIVED: &str = "DELETE FROM convoke_inbox WHERE (namespace, kind, source, event) IN (SELECT namespace, kind, source, event FROM convoke_inbox WHERE namespace = ? AND at < ? LIMIT ?)";

/// The ways to one file.
pub(super) struct Pools {
    /// The only connection of this process that writes.
    pub(super) writer: SqlitePool,
    /// Connections that cannot write.
    pub(super) reader: SqlitePool,
    /// The file that both are to lead to.
    pub(super) file: Arc<File>,
}

fn open(_: &DatabaseUrl, kind: &DatabaseKind) -> Opened {
    match kind {
        DatabaseKind::Sqlite(path) => Some(Ok(Arc::new(file::pools(path.clone())))),
        DatabaseKind::Postgres => None,
    }
}

impl Store for Pools {
    fn kind(&self) -> &'static str {
        "sqlite"
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.reader.close().await;
            self.writer.close().await;
        })
    }

    fn version(&self) -> Answer<'_, i64> {
        Box::pin(async {
            self.file.make_private();
            let asked = sqlx::query_scalar(schema::FOUND).fetch_one(&self.writer);
            schema::found(asked.await)
        })
    }

    fn migrate(&self) -> Answer<'_, ()> {
        Box::pin(async {
            let done = MIGRATIONS.run(&self.writer).await;
            // The only connection; it may be unusable, see `end`.
            if done.is_err()
                && let Ok(connection) = self.writer.acquire().await
            {
                drop(connection.detach());
            }
            Ok(done?)
        })
    }

    fn revert(&self, version: i64) -> Answer<'_, ()> {
        Box::pin(async move { Ok(MIGRATIONS.undo(&self.writer, version).await?) })
    }

    fn insert<'a>(&'a self, facts: &'a [Fact]) -> Answer<'a, u64> {
        Box::pin(async move {
            self.file.make_private();
            let before = self.file.found();
            let done = within(ACQUIRE + STATEMENT, insert(&self.writer, facts)).await?;
            if before.is_some() && self.file.found() != before {
                let gone = "its file was deleted or replaced".to_owned();
                return Err(LedgerError::Unreachable(gone));
            }
            done
        })
    }

    fn history<'a>(&'a self, filter: &'a Filter, limit: u32) -> Answer<'a, Vec<Fact>> {
        Box::pin(async move {
            let mut query = history::query::<Sqlite>(filter, limit);
            let rows = query.build().fetch_all(&self.reader).await?;
            let facts: Result<Vec<_>, _> = rows.iter().map(history::fact).collect();
            Ok(facts?)
        })
    }

    fn extent(&self) -> Answer<'_, Extent> {
        Box::pin(async {
            let row = sqlx::query(EXTENT).fetch_one(&self.reader).await?;
            Ok(history::extent(&row)?)
        })
    }

    fn delete<'a>(
        &'a self,
        old: Old,
        namespace: &'a str,
        before: i64,
        rows: i64,
    ) -> Answer<'a, u64> {
        Box::pin(async move {
            let query = match old {
                Old::Facts => OLD_FACTS,
                Old::Received => OLD_RECEIVED,
                Old::Outcomes => OLD_OUTCOMES,
            };
            let query = sqlx::query(query).bind(namespace).bind(before).bind(rows);
            Ok(query.execute(&self.writer).await?.rows_affected())
        })
    }

    fn insert_outcomes<'a>(
        &'a self,
        namespace: &'a str,
        instance: &'a str,
        outcomes: &'a [EventOutcome],
        lost: u64,
    ) -> Answer<'a, ()> {
        Box::pin(async move {
            self.file.make_private();
            let mut transaction = self.writer.begin_with(Sqlite::BEGIN).await?;
            let done = insert_outcomes(&mut transaction, namespace, instance, outcomes, lost).await;
            let ended = end(transaction, done.is_ok()).await;
            done?;
            Ok(ended?)
        })
    }

    fn outcomes<'a>(
        &'a self,
        filter: &'a OutcomeFilter,
        limit: u32,
    ) -> Answer<'a, Vec<EventOutcome>> {
        Box::pin(async move {
            let mut query = outcomes::query::<Sqlite>(filter, limit);
            let rows = query.build().fetch_all(&self.reader).await?;
            let found: Result<Vec<_>, _> = rows.iter().map(outcomes::outcome).collect();
            Ok(found?)
        })
    }

    fn outcomes_extent(&self) -> Answer<'_, OutcomeExtent> {
        Box::pin(async move {
            let row = sqlx::query(outcomes::EXTENT)
                .fetch_one(&self.reader)
                .await?;
            Ok(outcomes::extent(&row)?)
        })
    }

    fn waiting(&self) -> Answer<'_, Vec<Waiting>> {
        Box::pin(async {
            let rows = sqlx::query(WAITING).fetch_all(&self.writer).await?;
            let waiting: Result<Vec<_>, _> = rows.iter().map(relay::row).collect();
            Ok(waiting?)
        })
    }

    fn published<'a>(&'a self, ids: &'a [i64]) -> Answer<'a, ()> {
        Box::pin(async move {
            let ids = serde_json::json!(ids).to_string();
            let query = "DELETE FROM convoke_outbox WHERE id IN (SELECT value FROM json_each(?))";
            sqlx::query(query).bind(ids).execute(&self.writer).await?;
            Ok(())
        })
    }

    fn refuse<'a>(&'a self, id: i64, why: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            let query = sqlx::query("UPDATE convoke_outbox SET refused = ? WHERE id = ?");
            query.bind(why).bind(id).execute(&self.writer).await?;
            Ok(())
        })
    }
}

dialect!(
    Sqlite,
    SqliteConnection,
    "BEGIN IMMEDIATE",
    end,
    MIGRATIONS,
    ["?1", "?2", "?3", "?4", "?5", "?6"],
    "x'c0'"
);

/// Inserts facts, each once, in one transaction.
async fn insert(writer: &SqlitePool, facts: &[Fact]) -> Result<u64, LedgerError> {
    let mut transaction = writer.begin_with(Sqlite::BEGIN).await?;
    let done = insert_into(&mut transaction, facts).await;
    let ended = end(transaction, done.is_ok()).await;
    let new = done?;
    ended?;
    Ok(new)
}

/// Ends a transaction. SQLite takes one back by itself when there is no room; the driver, which
/// counts them, would never again begin one on that connection. So it is given one to take back.
async fn end(
    mut transaction: Transaction<'static, Sqlite>,
    commit: bool,
) -> Result<(), sqlx::Error> {
    let end = if commit { "COMMIT" } else { "ROLLBACK" };
    let ended = sqlx::query(end).execute(&mut *transaction).await;
    // Refused while the first one goes on.
    sqlx::query("BEGIN").execute(&mut *transaction).await.ok();
    transaction.rollback().await?;
    ended.map(|_| ())
}

async fn insert_into(
    connection: &mut SqliteConnection,
    facts: &[Fact],
) -> Result<u64, sqlx::Error> {
    let mut new = 0;
    for fact in facts {
        let done = sqlx::query(INSERT)
            .bind(&fact.namespace)
            .bind(&fact.stream)
            .bind(fact.at)
            .bind(fact.seq)
            .bind(&fact.kind)
            .bind(fact.time)
            .bind(&fact.source)
            .bind(&fact.subject)
            .bind(&fact.instance)
            .bind(&fact.reason)
            .bind(fact.data.to_string())
            .bind(fact.fields.to_string())
            .execute(&mut *connection)
            .await?;
        new += done.rows_affected();
    }
    Ok(new)
}

async fn insert_outcomes(
    connection: &mut SqliteConnection,
    namespace: &str,
    instance: &str,
    outcomes: &[EventOutcome],
    lost: u64,
) -> Result<(), sqlx::Error> {
    for mut insert in outcomes::inserts::<Sqlite>(namespace, outcomes) {
        let insert = insert.build().persistent(false);
        insert.execute(&mut *connection).await?;
    }
    if lost > 0 {
        let mut insert = outcomes::insert_lost::<Sqlite>(namespace, instance, lost);
        insert.build().execute(&mut *connection).await?;
    }
    Ok(())
}

fn meaning(error: &dyn sqlx::error::DatabaseError) -> Option<LedgerError> {
    error.try_downcast_ref::<sqlx::sqlite::SqliteError>()?;
    let code = error.code().unwrap_or_default();
    Some(meaning_of(&code, error.message().to_owned()))
}

/// By result code; the extended ones carry the primary one in their low byte.
fn meaning_of(code: &str, message: String) -> LedgerError {
    match code.parse::<u32>().unwrap_or(0) & 0xff {
        5 | 6 => LedgerError::Locked,
        8 => LedgerError::ReadOnly,
        10 | 14 => LedgerError::Unreachable(message),
        13 => LedgerError::Full(message),
        18..=20 => LedgerError::Refused(message),
        _ => LedgerError::Sql(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_say_what_is_the_matter() {
        let meaning = |code: &str| meaning_of(code, String::new());
        assert!(matches!(meaning("5"), LedgerError::Locked));
        assert!(matches!(meaning("1032"), LedgerError::ReadOnly));
        assert!(matches!(meaning("13"), LedgerError::Full(_)));
        assert!(matches!(meaning("14"), LedgerError::Unreachable(_)));
        assert!(matches!(meaning("1811"), LedgerError::Refused(_)));
        assert!(matches!(meaning("1"), LedgerError::Sql(_)));
    }
}
