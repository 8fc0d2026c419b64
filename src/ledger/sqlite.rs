//! What SQLite is told.

use super::dialect::Dialect;
use super::error::LedgerError;
use super::fact::Fact;
use sqlx::{Sqlite, SqlitePool};

const INSERT: &str = "\
INSERT INTO convoke_facts
    (namespace, stream, at, seq, kind, time, source, subject, instance, reason, data, fields)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO NOTHING";

/// Inserts facts, each once, in one transaction.
pub async fn insert(writer: &SqlitePool, facts: &[Fact]) -> Result<u64, LedgerError> {
    let mut transaction = writer.begin_with(Sqlite::BEGIN).await?;
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
            .execute(&mut *transaction)
            .await?;
        new += done.rows_affected();
    }
    transaction.commit().await?;
    Ok(new)
}
