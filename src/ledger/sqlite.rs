//! What SQLite is told.

use super::dialect::Dialect;
use super::error::LedgerError;
use super::fact::Fact;
use sqlx::{Sqlite, SqliteConnection, SqlitePool, Transaction};

const INSERT: &str = "\
INSERT INTO convoke_facts
    (namespace, stream, at, seq, kind, time, source, subject, instance, reason, data, fields)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO NOTHING";

/// Inserts facts, each once, in one transaction.
pub async fn insert(writer: &SqlitePool, facts: &[Fact]) -> Result<u64, LedgerError> {
    let mut transaction = writer.begin_with(Sqlite::BEGIN).await?;
    let done = insert_into(&mut transaction, facts).await;
    let ended = Sqlite::end(transaction, done.is_ok()).await;
    let new = done?;
    ended?;
    Ok(new)
}

/// Ends a transaction. SQLite takes one back by itself when there is no room; the driver, which
/// counts them, would never again begin one on that connection. So it is given one to take back.
pub async fn end(
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
