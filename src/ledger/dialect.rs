//! What the inbox and the outbox say to each of the two databases, on a connection of the caller's.

use sqlx::Transaction;

/// The result of a run that returns `()`, in MessagePack: what an event is noted with, so that most need no second statement.
pub const NOTHING: &[u8] = &[0xc0];

/// What names an event for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The bus.
    pub namespace: String,
    /// The event type.
    pub kind: String,
    /// Its publisher; empty if it named none.
    pub source: String,
    /// Its id.
    pub event: String,
}

/// A row of the outbox that is to be inserted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Posting {
    /// The event's id.
    pub event: String,
    /// The event type.
    pub kind: String,
    /// The ordering key.
    pub subject: Option<String>,
    /// Who publishes it.
    pub source: Option<String>,
    /// The trace context.
    pub traceparent: Option<String>,
    /// One MessagePack value.
    pub data: Vec<u8>,
}

/// A database that can hold an inbox and an outbox: SQLite or PostgreSQL.
pub trait Dialect: sqlx::Database {
    /// How a transaction begins that will write.
    const BEGIN: &'static str;

    /// Ends a transaction: commits it, or takes it back.
    fn end(
        transaction: Transaction<'static, Self>,
        commit: bool,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Brings the ledger's schema up to date.
    fn migrate(
        pool: &sqlx::Pool<Self>,
    ) -> impl Future<Output = Result<(), sqlx::migrate::MigrateError>> + Send;

    /// Notes an event, with [`NOTHING`] as its result; false if it was noted before. Waits for a transaction that is noting it.
    #[doc(hidden)]
    fn receive(
        connection: &mut Self::Connection,
        identity: &Identity,
    ) -> impl Future<Output = Result<bool, sqlx::Error>> + Send;

    /// The result that was kept with a noted event.
    #[doc(hidden)]
    fn received(
        connection: &mut Self::Connection,
        identity: &Identity,
    ) -> impl Future<Output = Result<Option<Vec<u8>>, sqlx::Error>> + Send;

    /// Keeps a result with a noted event.
    #[doc(hidden)]
    fn keep(
        connection: &mut Self::Connection,
        identity: &Identity,
        result: Vec<u8>,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Takes a note back.
    #[doc(hidden)]
    fn forget(
        connection: &mut Self::Connection,
        identity: &Identity,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Notes many events of one type, in that order, with [`NOTHING`] as their results: whether each was noted for the
    /// first time.
    #[doc(hidden)]
    fn receive_all(
        connection: &mut Self::Connection,
        identities: &[Identity],
    ) -> impl Future<Output = Result<Vec<bool>, sqlx::Error>> + Send {
        async move {
            let mut firsts = Vec::with_capacity(identities.len());
            for identity in identities {
                firsts.push(Self::receive(connection, identity).await?);
            }
            Ok(firsts)
        }
    }

    /// Keeps a result with each of many noted events of one type.
    #[doc(hidden)]
    fn keep_all(
        connection: &mut Self::Connection,
        results: Vec<(Identity, Vec<u8>)>,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send {
        async move {
            for (identity, result) in results {
                Self::keep(connection, &identity, result).await?;
            }
            Ok(())
        }
    }

    /// Puts an event into the outbox.
    #[doc(hidden)]
    fn post(
        connection: &mut Self::Connection,
        letter: &Posting,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;
}

/// Has a database of sqlx's hold them: how its transactions begin and end, how it writes parameters.
macro_rules! dialect {
    ($database:ty, $connection:ty, $begin:literal, $end:path, $migrations:path, [$a:literal, $b:literal, $c:literal, $d:literal, $e:literal, $f:literal], $nothing:literal $(, { $($own:tt)* })?) => {
        impl $crate::ledger::dialect::Dialect for $database {
            const BEGIN: &'static str = $begin;

            async fn end(transaction: sqlx::Transaction<'static, Self>, commit: bool) -> Result<(), sqlx::Error> {
                $end(transaction, commit).await
            }

            async fn migrate(pool: &sqlx::Pool<Self>) -> Result<(), sqlx::migrate::MigrateError> {
                $migrations.run(pool).await
            }

            async fn receive(connection: &mut $connection, identity: &$crate::ledger::dialect::Identity) -> Result<bool, sqlx::Error> {
                let done = sqlx::query(concat!(
                    "INSERT INTO convoke_inbox (namespace, kind, source, event, result) VALUES (",
                    $a, ", ", $b, ", ", $c, ", ", $d, ", ", $nothing, ") ON CONFLICT DO NOTHING"
                ))
                .bind(&identity.namespace)
                .bind(&identity.kind)
                .bind(&identity.source)
                .bind(&identity.event)
                .execute(connection)
                .await?;
                Ok(done.rows_affected() == 1)
            }

            async fn received(
                connection: &mut $connection,
                identity: &$crate::ledger::dialect::Identity,
            ) -> Result<Option<Vec<u8>>, sqlx::Error> {
                let row = sqlx::query(concat!(
                    "SELECT result FROM convoke_inbox WHERE namespace = ", $a, " AND kind = ", $b,
                    " AND source = ", $c, " AND event = ", $d
                ))
                .bind(&identity.namespace)
                .bind(&identity.kind)
                .bind(&identity.source)
                .bind(&identity.event)
                .fetch_one(connection)
                .await?;
                sqlx::Row::try_get(&row, 0)
            }

            async fn keep(
                connection: &mut $connection,
                identity: &$crate::ledger::dialect::Identity,
                result: Vec<u8>,
            ) -> Result<(), sqlx::Error> {
                sqlx::query(concat!(
                    "UPDATE convoke_inbox SET result = ", $a, " WHERE namespace = ", $b, " AND kind = ", $c,
                    " AND source = ", $d, " AND event = ", $e
                ))
                .bind(result)
                .bind(&identity.namespace)
                .bind(&identity.kind)
                .bind(&identity.source)
                .bind(&identity.event)
                .execute(connection)
                .await?;
                Ok(())
            }

            async fn forget(
                connection: &mut $connection,
                identity: &$crate::ledger::dialect::Identity,
            ) -> Result<(), sqlx::Error> {
                sqlx::query(concat!(
                    "DELETE FROM convoke_inbox WHERE namespace = ", $a, " AND kind = ", $b,
                    " AND source = ", $c, " AND event = ", $d
                ))
                .bind(&identity.namespace)
                .bind(&identity.kind)
                .bind(&identity.source)
                .bind(&identity.event)
                .execute(connection)
                .await?;
                Ok(())
            }

            $($($own)*)?

            async fn post(connection: &mut $connection, letter: &$crate::ledger::dialect::Posting) -> Result<(), sqlx::Error> {
                sqlx::query(concat!(
                    "INSERT INTO convoke_outbox (event, kind, subject, source, traceparent, data) VALUES (",
                    $a, ", ", $b, ", ", $c, ", ", $d, ", ", $e, ", ", $f, ")"
                ))
                .bind(&letter.event)
                .bind(&letter.kind)
                .bind(&letter.subject)
                .bind(&letter.source)
                .bind(&letter.traceparent)
                .bind(&letter.data)
                .execute(connection)
                .await?;
                Ok(())
            }
        }
    };
}

pub(super) use dialect;
