//! The history: asking the ledger what happened, by type, instance, task, batch, decision and time.

use super::database::Database;
use super::error::LedgerError;
use super::fact::Fact;
use super::store::{ACQUIRE, STATEMENT, within};
use crate::protocol::event::EntryId;
use serde_json::Value;
use sqlx::{ColumnIndex, Decode, Encode, QueryBuilder, Row, Type};
use std::fmt;
use std::str::FromStr;

/// Which facts. Everything that is given must hold.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// The bus; empty: of every bus that writes into this database.
    pub namespace: String,
    /// Event types; `*` stands for any characters. One of them must fit. None: all.
    pub kinds: Vec<String>,
    /// What the instance did, or what became of it.
    pub instance: Option<String>,
    /// Facts about that task.
    pub task: Option<String>,
    /// Facts about that batch.
    pub batch: Option<String>,
    /// Facts about that decision.
    pub decision: Option<String>,
    /// The dead letter of the event with that id.
    pub event: Option<String>,
    /// Dead letters only.
    pub dead: bool,
    /// Not before that time, Unix ms.
    pub since: Option<i64>,
    /// Before that time, Unix ms.
    pub until: Option<i64>,
    /// Oldest first; else newest first.
    pub oldest_first: bool,
    /// What comes after that one in this order.
    pub after: Option<Cursor>,
}

/// A place in the order of facts: by time, then by stream. `1732431234567-0@cb:broadcast`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    at: i64,
    seq: i64,
    stream: String,
}

impl Cursor {
    /// Where a fact stands.
    pub fn of(fact: &Fact) -> Self {
        Self {
            at: fact.at,
            seq: fact.seq,
            stream: fact.stream.clone(),
        }
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}-{}@{}",
            self.at.cast_unsigned(),
            self.seq.cast_unsigned(),
            self.stream
        )
    }
}

impl FromStr for Cursor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('@').and_then(|(id, stream)| {
            let id = EntryId::parse(id.as_bytes())?;
            Some(Self {
                at: id.ms.cast_signed(),
                seq: id.seq.cast_signed(),
                stream: stream.to_owned(),
            })
        });
        parsed
            .ok_or_else(|| format!("{text:?} is not a place such as 1732431234567-0@cb:broadcast"))
    }
}

/// How much there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Extent {
    /// Rows.
    pub facts: i64,
    /// When the oldest was written to its stream, Unix ms.
    pub oldest: Option<i64>,
    /// When the newest was.
    pub newest: Option<i64>,
    /// Events in the outbox that wait to be published.
    pub outbox_waiting: i64,
    /// Events in the outbox that can never be published as they are.
    pub outbox_refused: i64,
}

pub(super) const EXTENT: &str = "\
SELECT (SELECT count(*) FROM convoke_facts), (SELECT min(at) FROM convoke_facts), (SELECT max(at) FROM convoke_facts),
    (SELECT count(*) FROM convoke_outbox WHERE refused IS NULL),
    (SELECT count(*) FROM convoke_outbox WHERE refused IS NOT NULL)";

impl Database {
    /// The first `limit` facts that the filter lets through.
    ///
    /// # Errors
    /// [`LedgerError::Behind`] and [`LedgerError::Ahead`], and whatever the database says.
    pub async fn history(&self, filter: &Filter, limit: u32) -> Result<Vec<Fact>, LedgerError> {
        self.check().await?;
        within(ACQUIRE + STATEMENT, self.store.history(filter, limit)).await?
    }

    /// How much there is. O(rows).
    pub async fn extent(&self) -> Result<Extent, LedgerError> {
        within(ACQUIRE + STATEMENT, self.store.extent()).await?
    }
}

/// What a database answered to [`EXTENT`].
pub(super) fn extent<R: Row>(row: &R) -> Result<Extent, sqlx::Error>
where
    usize: ColumnIndex<R>,
    for<'r> i64: Decode<'r, R::Database> + Type<R::Database>,
    for<'r> Option<i64>: Decode<'r, R::Database> + Type<R::Database>,
{
    Ok(Extent {
        facts: row.try_get(0)?,
        oldest: row.try_get(1)?,
        newest: row.try_get(2)?,
        outbox_waiting: row.try_get(3)?,
        outbox_refused: row.try_get(4)?,
    })
}

/// A `*` pattern as one of `LIKE`, whose own wildcards it may contain.
fn like(pattern: &str) -> String {
    let mut like = String::with_capacity(pattern.len());
    for c in pattern.chars() {
        match c {
            '*' => like.push('%'),
            '%' | '_' | '\\' => like.extend(['\\', c]),
            c => like.push(c),
        }
    }
    like
}

/// Asks for the first `limit` facts that the filter lets through.
pub(super) fn query<DB: sqlx::Database>(filter: &Filter, limit: u32) -> QueryBuilder<DB>
where
    for<'q> String: Encode<'q, DB> + Type<DB>,
    for<'q> i64: Encode<'q, DB> + Type<DB>,
{
    let mut query = QueryBuilder::new(
        "SELECT namespace, stream, at, seq, kind, time, source, subject, instance, reason, \
         CAST(data AS text) AS data, CAST(fields AS text) AS fields FROM convoke_facts WHERE 1 = 1",
    );
    if !filter.namespace.is_empty() {
        query
            .push(" AND namespace = ")
            .push_bind(filter.namespace.clone());
    }
    for (index, kind) in filter.kinds.iter().enumerate() {
        query.push(if index == 0 { " AND (" } else { " OR " });
        if kind.contains('*') {
            query
                .push("kind LIKE ")
                .push_bind(like(kind))
                .push(" ESCAPE '\\'");
        } else {
            query.push("kind = ").push_bind(kind.clone());
        }
    }
    if !filter.kinds.is_empty() {
        query.push(")");
    }
    if let Some(instance) = &filter.instance {
        query.push(" AND instance = ").push_bind(instance.clone());
    }
    let about = [
        ("task.%", &filter.task),
        ("batch.%", &filter.batch),
        ("quorum.%", &filter.decision),
    ];
    for (kinds, subject) in about {
        if let Some(subject) = subject {
            query
                .push(" AND reason IS NULL AND kind LIKE ")
                .push_bind(kinds.to_owned());
            query.push(" AND subject = ").push_bind(subject.clone());
        }
    }
    if let Some(event) = &filter.event {
        query.push(" AND subject = ").push_bind(event.clone());
    }
    if filter.dead || filter.event.is_some() {
        query.push(" AND reason IS NOT NULL");
    }
    if let Some(since) = filter.since {
        query.push(" AND at >= ").push_bind(since);
    }
    if let Some(until) = filter.until {
        query.push(" AND at < ").push_bind(until);
    }
    let (beyond, order) = match filter.oldest_first {
        true => (" > (", "ASC"),
        false => (" < (", "DESC"),
    };
    if let Some(Cursor { at, seq, stream }) = &filter.after {
        query.push(" AND (at, seq, stream)").push(beyond);
        query.push_bind(*at).push(", ").push_bind(*seq).push(", ");
        query.push_bind(stream.clone()).push(")");
    }
    query.push(format_args!(
        " ORDER BY at {order}, seq {order}, stream {order} LIMIT "
    ));
    query.push_bind(i64::from(limit));
    query
}

/// A fact of those that a database answered.
pub(super) fn fact<R: Row>(row: &R) -> Result<Fact, sqlx::Error>
where
    for<'i> &'i str: ColumnIndex<R>,
    for<'r> String: Decode<'r, R::Database> + Type<R::Database>,
    for<'r> i64: Decode<'r, R::Database> + Type<R::Database>,
    for<'r> Option<String>: Decode<'r, R::Database> + Type<R::Database>,
    for<'r> Option<i64>: Decode<'r, R::Database> + Type<R::Database>,
{
    let json = |column: &str| {
        let text: String = row.try_get(column)?;
        // Somebody may have written the row by hand.
        Ok::<_, sqlx::Error>(serde_json::from_str(&text).unwrap_or(Value::String(text)))
    };
    Ok(Fact {
        namespace: row.try_get("namespace")?,
        stream: row.try_get("stream")?,
        at: row.try_get("at")?,
        seq: row.try_get("seq")?,
        kind: row.try_get("kind")?,
        time: row.try_get("time")?,
        source: row.try_get("source")?,
        subject: row.try_get("subject")?,
        instance: row.try_get("instance")?,
        reason: row.try_get("reason")?,
        data: json("data")?,
        fields: json("fields")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_round_trips() {
        let cursor = Cursor {
            at: 7,
            seq: -1,
            stream: "cb:dead:a@b".into(),
        };
        assert_eq!(cursor.to_string(), "7-18446744073709551615@cb:dead:a@b");
        assert_eq!(cursor.to_string().parse(), Ok(cursor));
        for bad in ["", "7", "7-0", "x@cb:broadcast"] {
            assert!(bad.parse::<Cursor>().is_err(), "{bad}");
        }
    }

    #[test]
    fn only_the_star_is_a_wildcard() {
        assert_eq!(like("task.*_a%\\"), "task.%\\_a\\%\\\\");
    }
}
