//! What PostgreSQL is told.

use super::error::LedgerError;
use super::fact::Fact;
use sqlx::{PgConnection, Postgres, Transaction};

/// One statement whatever the number of rows: it is prepared once.
const INSERT: &str = "\
INSERT INTO convoke_facts
    (namespace, stream, at, seq, kind, time, source, subject, instance, reason, data, fields)
SELECT namespace, stream, at, seq, kind, time, source, subject, instance, reason, data::jsonb, fields::jsonb
FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::text[], $6::bigint[], $7::text[],
    $8::text[], $9::text[], $10::text[], $11::text[], $12::text[])
    AS row (namespace, stream, at, seq, kind, time, source, subject, instance, reason, data, fields)
ON CONFLICT DO NOTHING";

/// Inserts facts, each once. One statement is a transaction of its own.
pub async fn insert(connection: &mut PgConnection, facts: &[Fact]) -> Result<u64, LedgerError> {
    fn column<'a, T>(facts: &'a [Fact], pick: impl Fn(&'a Fact) -> T) -> Vec<T> {
        facts.iter().map(pick).collect()
    }
    let done = sqlx::query(INSERT)
        .bind(column(facts, |fact| fact.namespace.as_str()))
        .bind(column(facts, |fact| fact.stream.as_str()))
        .bind(column(facts, |fact| fact.at))
        .bind(column(facts, |fact| fact.seq))
        .bind(column(facts, |fact| fact.kind.as_str()))
        .bind(column(facts, |fact| fact.time))
        .bind(column(facts, |fact| fact.source.as_deref()))
        .bind(column(facts, |fact| fact.subject.as_deref()))
        .bind(column(facts, |fact| fact.instance.as_deref()))
        .bind(column(facts, |fact| fact.reason.as_deref()))
        .bind(column(facts, |fact| fact.data.to_string()))
        .bind(column(facts, |fact| fact.fields.to_string()))
        .execute(connection)
        .await?;
    Ok(done.rows_affected())
}

/// Ends a transaction.
pub async fn end(
    transaction: Transaction<'static, Postgres>,
    commit: bool,
) -> Result<(), sqlx::Error> {
    match commit {
        true => transaction.commit().await,
        false => transaction.rollback().await,
    }
}
