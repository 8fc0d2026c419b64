//! Outcomes of events: what became of each run that was committed, for as long as is set. Streams forget it when they are
//! trimmed.

use super::database::Database;
use super::error::LedgerError;
use super::store::{ACQUIRE, STATEMENT, within};
use crate::protocol::event::EntryId;
use crate::protocol::outcome::EventOutcome;
use sqlx::{ColumnIndex, Decode, Encode, QueryBuilder, Row, Type};

/// Rows that one statement inserts at the most: each value is a parameter, of which SQLite takes 32,766.
const ROWS: usize = 1000;

/// Which outcomes. Everything that is given must hold.
#[derive(Clone, Debug, Default)]
pub struct OutcomeFilter {
    /// The bus.
    pub namespace: String,
    /// Of the event with that id, and of those that its runs published.
    pub event: Option<String>,
    /// Of the entry that is named so, if it is one.
    pub entry: Option<EntryId>,
    /// Of events about it.
    pub subject: Option<String>,
    /// Of events that it published.
    pub source: Option<String>,
    /// Of events that runs of these published.
    pub causes: Vec<String>,
    /// Ended not before that time, Unix ms.
    pub since: Option<i64>,
}

/// How many outcomes there are, and how many were lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutcomeExtent {
    /// Rows.
    pub rows: i64,
    /// Outcomes that were not written, since they came faster than the database took them.
    pub lost: i64,
}

pub(super) const EXTENT: &str = "\
SELECT (SELECT count(*) FROM convoke_outcomes),
    (SELECT CAST(coalesce(sum(lost), 0) AS bigint) FROM convoke_outcomes_lost)";

impl Database {
    /// Writes outcomes in one transaction, each once, and how many were lost before them.
    ///
    /// # Errors
    /// Whatever the database says; then nothing is written.
    #[doc(hidden)]
    pub async fn insert_outcomes(
        &self,
        namespace: &str,
        instance: &str,
        outcomes: &[EventOutcome],
        lost: u64,
    ) -> Result<(), LedgerError> {
        let write = self
            .store
            .insert_outcomes(namespace, instance, outcomes, lost);
        within(ACQUIRE + STATEMENT, write).await?
    }

    /// The first `limit` outcomes that the filter lets through, in the order in which they ended.
    ///
    /// # Errors
    /// [`LedgerError::Behind`] and [`LedgerError::Ahead`], and whatever the database says.
    #[doc(hidden)]
    pub async fn outcomes(
        &self,
        filter: &OutcomeFilter,
        limit: u32,
    ) -> Result<Vec<EventOutcome>, LedgerError> {
        self.check().await?;
        within(ACQUIRE + STATEMENT, self.store.outcomes(filter, limit)).await?
    }

    /// How many there are. O(rows).
    ///
    /// # Errors
    /// Whatever the database says.
    #[doc(hidden)]
    pub async fn outcomes_extent(&self) -> Result<OutcomeExtent, LedgerError> {
        within(ACQUIRE + STATEMENT, self.store.outcomes_extent()).await?
    }
}

/// A text as both databases take it: PostgreSQL takes no NUL.
fn plain(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

/// Inserts outcomes, as few statements as the databases allow.
pub(super) fn inserts<DB: sqlx::Database>(
    namespace: &str,
    outcomes: &[EventOutcome],
) -> Vec<QueryBuilder<DB>>
where
    for<'q> String: Encode<'q, DB> + Type<DB>,
    for<'q> Option<String>: Encode<'q, DB> + Type<DB>,
    for<'q> i64: Encode<'q, DB> + Type<DB>,
{
    let chunks = outcomes.chunks(ROWS);
    let inserts = chunks.map(|chunk| {
        let mut query = QueryBuilder::new(
            "INSERT INTO convoke_outcomes (namespace, stream, at, seq, attempt, kind, event, subject, source, \
             cause, instance, deliveries, ended, took_us, outcome, code, message) ",
        );
        query.push_values(chunk, |mut row, one| {
            row.push_bind(namespace.to_owned())
                .push_bind(plain(&one.stream))
                .push_bind(one.entry.ms.cast_signed())
                .push_bind(one.entry.seq.cast_signed())
                .push_bind(i64::from(one.attempt))
                .push_bind(plain(&one.kind))
                .push_bind(plain(&one.event))
                .push_bind(one.subject.as_deref().map(plain))
                .push_bind(one.source.as_deref().map(plain))
                .push_bind(one.cause.as_deref().map(plain))
                .push_bind(plain(&one.instance))
                .push_bind(i64::from(one.deliveries))
                .push_bind(one.ended)
                .push_bind(one.took_us)
                .push_bind(plain(&one.outcome))
                .push_bind(one.code.as_deref().map(plain))
                .push_bind(one.message.as_deref().map(plain));
        });
        query.push(" ON CONFLICT DO NOTHING");
        query
    });
    inserts.collect()
}

/// Notes how many were lost.
pub(super) fn insert_lost<DB: sqlx::Database>(
    namespace: &str,
    instance: &str,
    lost: u64,
) -> QueryBuilder<DB>
where
    for<'q> String: Encode<'q, DB> + Type<DB>,
    for<'q> i64: Encode<'q, DB> + Type<DB>,
{
    let mut query =
        QueryBuilder::new("INSERT INTO convoke_outcomes_lost (namespace, instance, at, lost) ");
    let now = jiff::Timestamp::now().as_millisecond();
    query.push_values([lost], |mut row, lost| {
        row.push_bind(namespace.to_owned())
            .push_bind(instance.to_owned())
            .push_bind(now)
            .push_bind(i64::try_from(lost).unwrap_or(i64::MAX));
    });
    query
}

/// Asks for the first `limit` outcomes that the filter lets through.
pub(super) fn query<DB: sqlx::Database>(filter: &OutcomeFilter, limit: u32) -> QueryBuilder<DB>
where
    for<'q> String: Encode<'q, DB> + Type<DB>,
    for<'q> i64: Encode<'q, DB> + Type<DB>,
{
    let mut query = QueryBuilder::new(
        "SELECT stream, at, seq, attempt, kind, event, subject, source, cause, instance, deliveries, ended, took_us, \
         outcome, code, message FROM convoke_outcomes WHERE namespace = ",
    );
    query.push_bind(filter.namespace.clone());
    if let Some(event) = &filter.event {
        query.push(" AND (event = ").push_bind(event.clone());
        if let Some(EntryId { ms, seq }) = filter.entry {
            query.push(" OR (at = ").push_bind(ms.cast_signed());
            query.push(" AND seq = ").push_bind(seq.cast_signed());
            query.push(")");
        }
        query.push(")");
    }
    for (column, wanted) in [
        (" AND subject = ", &filter.subject),
        (" AND source = ", &filter.source),
    ] {
        if let Some(wanted) = wanted {
            query.push(column).push_bind(wanted.clone());
        }
    }
    if !filter.causes.is_empty() {
        query.push(" AND cause IN (");
        let mut causes = query.separated(", ");
        for cause in &filter.causes {
            causes.push_bind(cause.clone());
        }
        query.push(")");
    }
    if let Some(since) = filter.since {
        query.push(" AND ended >= ").push_bind(since);
    }
    query.push(" ORDER BY ended, at, seq LIMIT ");
    query.push_bind(i64::from(limit));
    query
}

/// An outcome of those that a database answered.
pub(super) fn outcome<R: Row>(row: &R) -> Result<EventOutcome, sqlx::Error>
where
    for<'i> &'i str: ColumnIndex<R>,
    for<'r> String: Decode<'r, R::Database> + Type<R::Database>,
    for<'r> i64: Decode<'r, R::Database> + Type<R::Database>,
    for<'r> Option<String>: Decode<'r, R::Database> + Type<R::Database>,
{
    let number = |column: &str| -> Result<u32, sqlx::Error> {
        let number: i64 = row.try_get(column)?;
        Ok(u32::try_from(number).unwrap_or(u32::MAX))
    };
    let (ms, seq): (i64, i64) = (row.try_get("at")?, row.try_get("seq")?);
    Ok(EventOutcome {
        stream: row.try_get("stream")?,
        entry: EntryId {
            ms: ms.cast_unsigned(),
            seq: seq.cast_unsigned(),
        },
        attempt: number("attempt")?,
        kind: row.try_get("kind")?,
        event: row.try_get("event")?,
        subject: row.try_get("subject")?,
        source: row.try_get("source")?,
        cause: row.try_get("cause")?,
        instance: row.try_get("instance")?,
        deliveries: number("deliveries")?,
        ended: row.try_get("ended")?,
        took_us: row.try_get("took_us")?,
        outcome: row.try_get("outcome")?,
        code: row.try_get("code")?,
        message: row.try_get("message")?,
    })
}

/// What a database answered to [`EXTENT`].
pub(super) fn extent<R: Row>(row: &R) -> Result<OutcomeExtent, sqlx::Error>
where
    usize: ColumnIndex<R>,
    for<'r> i64: Decode<'r, R::Database> + Type<R::Database>,
{
    Ok(OutcomeExtent {
        rows: row.try_get(0)?,
        lost: row.try_get(1)?,
    })
}
