//! PostgreSQL: a pool with a limit on everything, whose connections are asked whether they may write
//! before each use: a demoted primary answers pings all the same.

use super::dialect::{Identity, dialect};
use super::error::LedgerError;
use super::fact::Fact;
use super::history::{self, EXTENT, Extent, Filter};
use super::outcomes::{self, OutcomeExtent, OutcomeFilter};
use super::relay::{self, WAITING, Waiting};
use super::schema::{self, migrations};
use super::store::{
    ACQUIRE, Answer, CONNECTIONS, Kind, LIFETIME, LOCK, Old, Opened, STATEMENT, Store, within,
};
use crate::protocol::outcome::EventOutcome;
use crate::settings::{DatabaseKind, DatabaseUrl};
use futures_util::future::BoxFuture;
use sqlx::migrate::Migrator;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgDatabaseError, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, PgConnection, PgPool, Postgres, Row, Transaction};
use std::collections::HashSet;
use std::str::FromStr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use tracing::log::LevelFilter;

pub(super) const KIND: Kind = Kind { open, meaning };

static MIGRATIONS: LazyLock<Migrator> = migrations!("postgres");

/// One statement whatever the number of rows: it is prepared once.
const INSERT: &str = "\
INSERT INTO convoke_facts
    (namespace, stream, at, seq, kind, time, source, subject, instance, reason, data, fields)
SELECT namespace, stream, at, seq, kind, time, source, subject, instance, reason, data::jsonb, fields::jsonb
FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::text[], $6::bigint[], $7::text[],
    $8::text[], $9::text[], $10::text[], $11::text[], $12::text[])
    AS row (namespace, stream, at, seq, kind, time, source, subject, instance, reason, data, fields)
ON CONFLICT DO NOTHING";

/// In the order in which they are given: who notes some of them at the same time waits, and nobody for each other.
const RECEIVE_ALL: &str = "\
INSERT INTO convoke_inbox (namespace, kind, source, event, result)
SELECT $1, $2, source, event, '\\xc0'::bytea FROM unnest($3::text[], $4::text[]) WITH ORDINALITY AS row (source, event, at) ORDER BY at
ON CONFLICT DO NOTHING RETURNING source, event";
/// What joins a table that grows fast is planned each time: a plan that is kept from when it was empty reads all of it
/// for each row, until the database next counts its rows.
const PLANNED_ONCE: bool = false;
const KEEP_ALL: &str = "\
UPDATE convoke_inbox AS inbox SET result = row.result
FROM unnest($3::text[], $4::text[], $5::bytea[]) AS row (source, event, result)
WHERE inbox.namespace = $1 AND inbox.kind = $2 AND inbox.source = row.source AND inbox.event = row.event";

const OLD_FACTS: &str = "DELETE FROM convoke_facts WHERE (stream, at, seq) IN (SELECT stream, at, seq FROM convoke_facts WHERE namespace = $1 AND at < $2 ORDER BY at LIMIT $3)";
const OLD_OUTCOMES: &str = "DELETE FROM convoke_outcomes WHERE (namespace, stream, at, seq) IN (SELECT namespace, stream, at, seq FROM convoke_outcomes WHERE namespace = $1 AND ended < $2 LIMIT $3)";
const OLD_RECEIVED: &str = "DELETE FROM convoke_inbox WHERE (namespace, kind, source, event) IN (SELECT namespace, kind, source, event FROM convoke_inbox WHERE namespace = $1 AND at < $2 LIMIT $3)";

fn open(url: &DatabaseUrl, kind: &DatabaseKind) -> Opened {
    match kind {
        DatabaseKind::Postgres => Some(pool_at(url, CONNECTIONS).map(|pool| Arc::new(pool) as _)),
        DatabaseKind::Sqlite(_) => None,
    }
}

/// A pool for the server at `url`. Connects nothing yet.
pub(super) fn pool_at(url: &DatabaseUrl, connections: u32) -> Result<PgPool, LedgerError> {
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
        .connect_lazy_with(options(url)?);
    Ok(pool)
}

fn options(url: &DatabaseUrl) -> Result<PgConnectOptions, LedgerError> {
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
    Ok(options)
}

/// Has new connections of the pool be made as the URL's file says now.
pub(super) fn renew(pool: &PgPool, url: &DatabaseUrl) -> Result<(), LedgerError> {
    if let Some(url) = url.now() {
        pool.set_connect_options(options(&url)?);
    }
    Ok(())
}

impl Store for PgPool {
    fn kind(&self) -> &'static str {
        "postgres"
    }

    fn renew(&self, url: &DatabaseUrl) -> Result<(), LedgerError> {
        renew(self, url)
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(PgPool::close(self))
    }

    fn version(&self) -> Answer<'_, i64> {
        Box::pin(async move {
            let asked = sqlx::query_scalar(schema::FOUND).fetch_one(self);
            schema::found(asked.await)
        })
    }

    fn migrate(&self) -> Answer<'_, ()> {
        Box::pin(async move { Ok(MIGRATIONS.run(self).await?) })
    }

    fn revert(&self, version: i64) -> Answer<'_, ()> {
        Box::pin(async move { Ok(MIGRATIONS.undo(self, version).await?) })
    }

    fn insert<'a>(&'a self, facts: &'a [Fact]) -> Answer<'a, u64> {
        Box::pin(async move {
            let mut connection = self.acquire().await?;
            let written = within(STATEMENT, insert(&mut connection, facts)).await;
            settle(connection, written)
        })
    }

    fn history<'a>(&'a self, filter: &'a Filter, limit: u32) -> Answer<'a, Vec<Fact>> {
        Box::pin(async move {
            let mut query = history::query::<Postgres>(filter, limit);
            let rows = query.build().fetch_all(self).await?;
            let facts: Result<Vec<_>, _> = rows.iter().map(history::fact).collect();
            Ok(facts?)
        })
    }

    fn extent(&self) -> Answer<'_, Extent> {
        Box::pin(async move {
            let row = sqlx::query(EXTENT).fetch_one(self).await?;
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
            Ok(query
                .persistent(PLANNED_ONCE)
                .execute(self)
                .await?
                .rows_affected())
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
            let mut connection = self.acquire().await?;
            let written = within(STATEMENT, async {
                let mut transaction = connection.begin().await?;
                insert_outcomes(&mut transaction, namespace, instance, outcomes, lost).await?;
                Ok(transaction.commit().await?)
            });
            let written = written.await;
            settle(connection, written)
        })
    }

    fn outcomes<'a>(
        &'a self,
        filter: &'a OutcomeFilter,
        limit: u32,
    ) -> Answer<'a, Vec<EventOutcome>> {
        Box::pin(async move {
            let mut query = outcomes::query::<Postgres>(filter, limit);
            let rows = query.build().fetch_all(self).await?;
            let found: Result<Vec<_>, _> = rows.iter().map(outcomes::outcome).collect();
            Ok(found?)
        })
    }

    fn outcomes_extent(&self) -> Answer<'_, OutcomeExtent> {
        Box::pin(async move {
            let row = sqlx::query(outcomes::EXTENT).fetch_one(self).await?;
            Ok(outcomes::extent(&row)?)
        })
    }

    fn waiting(&self) -> Answer<'_, Vec<Waiting>> {
        Box::pin(async move {
            let rows = sqlx::query(WAITING).fetch_all(self).await?;
            let waiting: Result<Vec<_>, _> = rows.iter().map(relay::row).collect();
            Ok(waiting?)
        })
    }

    fn published<'a>(&'a self, ids: &'a [i64]) -> Answer<'a, ()> {
        Box::pin(async move {
            let query = sqlx::query("DELETE FROM convoke_outbox WHERE id = ANY($1)");
            query.bind(ids).execute(self).await?;
            Ok(())
        })
    }

    fn refuse<'a>(&'a self, id: i64, why: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            let query = sqlx::query("UPDATE convoke_outbox SET refused = $1 WHERE id = $2");
            query.bind(why).bind(id).execute(self).await?;
            Ok(())
        })
    }
}

dialect!(
    Postgres,
    PgConnection,
    "BEGIN",
    end,
    MIGRATIONS,
    ["$1", "$2", "$3", "$4", "$5", "$6"],
    "'\\xc0'::bytea",
    {
        async fn receive_all(
            connection: &mut PgConnection,
            identities: &[Identity],
        ) -> Result<Vec<bool>, sqlx::Error> {
            let Some(Identity {
                namespace, kind, ..
            }) = identities.first()
            else {
                return Ok(Vec::new());
            };
            let names = identities.iter();
            let names = names.map(|one| (one.source.as_str(), one.event.as_str()));
            let (sources, events): (Vec<&str>, Vec<&str>) = names.clone().unzip();
            let noted: Vec<(String, String)> = sqlx::query_as(RECEIVE_ALL)
                .bind(namespace)
                .bind(kind)
                .bind(sources)
                .bind(events)
                .fetch_all(connection)
                .await?;
            let noted = noted
                .iter()
                .map(|(source, event)| (source.as_str(), event.as_str()));
            let noted: HashSet<(&str, &str)> = noted.collect();
            Ok(names.map(|name| noted.contains(&name)).collect())
        }

        async fn keep_all(
            connection: &mut PgConnection,
            results: Vec<(Identity, Vec<u8>)>,
        ) -> Result<(), sqlx::Error> {
            let Some((
                Identity {
                    namespace, kind, ..
                },
                _,
            )) = results.first().cloned()
            else {
                return Ok(());
            };
            let (identities, results): (Vec<Identity>, Vec<Vec<u8>>) = results.into_iter().unzip();
            let names = identities.into_iter().map(|one| (one.source, one.event));
            let (sources, events): (Vec<String>, Vec<String>) = names.unzip();
            sqlx::query(KEEP_ALL)
                .bind(namespace)
                .bind(kind)
                .bind(sources)
                .bind(events)
                .bind(results)
                .persistent(PLANNED_ONCE)
                .execute(connection)
                .await?;
            Ok(())
        }
    }
);

/// Inserts facts, each once. One statement is a transaction of its own.
async fn insert(connection: &mut PgConnection, facts: &[Fact]) -> Result<u64, LedgerError> {
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

/// Ends a transaction.
async fn end(transaction: Transaction<'static, Postgres>, commit: bool) -> Result<(), sqlx::Error> {
    match commit {
        true => transaction.commit().await,
        false => transaction.rollback().await,
    }
}

async fn insert_outcomes(
    connection: &mut PgConnection,
    namespace: &str,
    instance: &str,
    outcomes: &[EventOutcome],
    lost: u64,
) -> Result<(), sqlx::Error> {
    for mut insert in outcomes::inserts::<Postgres>(namespace, outcomes) {
        let insert = insert.build().persistent(false);
        insert.execute(&mut *connection).await?;
    }
    if lost > 0 {
        let mut insert = outcomes::insert_lost::<Postgres>(namespace, instance, lost);
        insert.build().execute(&mut *connection).await?;
    }
    Ok(())
}

fn meaning(error: &dyn sqlx::error::DatabaseError) -> Option<LedgerError> {
    error.try_downcast_ref::<PgDatabaseError>()?;
    let code = error.code().unwrap_or_default();
    Some(meaning_of(&code, error.message().to_owned()))
}

/// By SQLSTATE.
fn meaning_of(code: &str, message: String) -> LedgerError {
    match code {
        "25006" => LedgerError::ReadOnly,
        "53100" => LedgerError::Full(message),
        "55P03" => LedgerError::Locked,
        "57014" => LedgerError::Slow(STATEMENT),
        _ => match code.get(..2) {
            Some("40") => LedgerError::Conflict(message),
            Some("08" | "53" | "57" | "58") => LedgerError::Unreachable(message),
            Some("22" | "23") => LedgerError::Refused(message),
            _ => LedgerError::Sql(message),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_say_what_is_the_matter() {
        let meaning = |code: &str| meaning_of(code, String::new());
        assert!(matches!(meaning("25006"), LedgerError::ReadOnly));
        assert!(matches!(meaning("53100"), LedgerError::Full(_)));
        assert!(matches!(meaning("57P03"), LedgerError::Unreachable(_)));
        assert!(matches!(meaning("55P03"), LedgerError::Locked));
        assert!(matches!(meaning("57014"), LedgerError::Slow(_)));
        assert!(matches!(meaning("40001"), LedgerError::Conflict(_)));
        assert!(matches!(meaning("40P01"), LedgerError::Conflict(_)));
        assert!(matches!(meaning("22P05"), LedgerError::Refused(_)));
        assert!(matches!(meaning("42P01"), LedgerError::Sql(_)));
        assert!(matches!(meaning(""), LedgerError::Sql(_)));
    }
}
