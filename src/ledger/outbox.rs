//! The outbox: a service's own SQL and the event that announces it, in one transaction.
//!
//! A [`relay`](super::relay) publishes what was committed, and nothing that was rolled back. Any
//! program may insert rows into `convoke_outbox`; see the table's definition.

use super::dialect::{Dialect, Posting};
use crate::protocol::event::{Entry, EntryId, Event, Limits};
use crate::protocol::keys::Keys;
use serde::Serialize;
use uuid::Uuid;

/// Why an event is not in the outbox.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PostError {
    /// The row is no event; the message names the field.
    #[error("{0}")]
    Invalid(String),
    /// The database refused.
    #[error(transparent)]
    Sql(#[from] sqlx::Error),
}

/// An event for the outbox.
///
/// ```no_run
/// use convoke::ledger::outbox::Post;
/// use convoke::sqlx::{self, PgPool};
///
/// # async fn example(pool: PgPool) -> Result<(), Box<dyn std::error::Error>> {
/// let mut transaction = pool.begin().await?;
/// sqlx::query("INSERT INTO orders (id) VALUES (7)").execute(&mut *transaction).await?;
/// Post::new("order.placed", &7).subject("order-7").insert::<sqlx::Postgres>(&mut transaction).await?;
/// transaction.commit().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Post(Result<Posting, String>);

impl Post {
    /// An event with a payload; structs become maps. Its id is one made up, unless given.
    pub fn new<P: Serialize + ?Sized>(kind: impl Into<String>, payload: &P) -> Self {
        let data = rmp_serde::to_vec_named(payload);
        Self(match data {
            Ok(data) => Ok(Posting {
                event: Uuid::now_v7().to_string(),
                kind: kind.into(),
                subject: None,
                source: None,
                traceparent: None,
                data,
            }),
            Err(error) => Err(format!("data: cannot be encoded: {error}")),
        })
    }

    fn set(mut self, set: impl FnOnce(&mut Posting)) -> Self {
        if let Ok(letter) = &mut self.0 {
            set(letter);
        }
        self
    }

    /// The unique id, 1 to 256 bytes.
    #[must_use]
    pub fn id(self, id: impl Into<String>) -> Self {
        self.set(|letter| letter.event = id.into())
    }

    /// The ordering and partition key: events of one subject are published in the order in which
    /// they were inserted. That is the order of their commits where the service holds a lock for
    /// the subject when it inserts.
    #[must_use]
    pub fn subject(self, subject: impl Into<String>) -> Self {
        self.set(|letter| letter.subject = Some(subject.into()))
    }

    /// Who publishes it.
    #[must_use]
    pub fn source(self, source: impl Into<String>) -> Self {
        self.set(|letter| letter.source = Some(source.into()))
    }

    /// The W3C trace context that the handler's span belongs to.
    #[must_use]
    pub fn traceparent(self, traceparent: impl Into<String>) -> Self {
        self.set(|letter| letter.traceparent = Some(traceparent.into()))
    }

    /// Inserts it on a connection in the middle of a transaction.
    ///
    /// # Errors
    /// See [`PostError`].
    pub async fn insert<DB: Dialect>(
        self,
        connection: &mut DB::Connection,
    ) -> Result<(), PostError> {
        let letter = self.0.map_err(PostError::Invalid)?;
        check(&letter).map_err(PostError::Invalid)?;
        Ok(DB::post(connection, &letter).await?)
    }
}

/// The bus's own check, except for the size of the payload, which is the publisher's setting.
fn check(letter: &Posting) -> Result<(), String> {
    let mut limits = Limits::default();
    limits.payload.bytes = usize::MAX;
    let mut fields: Vec<Vec<u8>> = Vec::with_capacity(12);
    let mut put = |name: &str, value: &[u8]| fields.extend([name.into(), value.into()]);
    put("type", letter.kind.as_bytes());
    put("id", letter.event.as_bytes());
    put("data", &letter.data);
    let texts = [
        ("subject", &letter.subject),
        ("source", &letter.source),
        ("traceparent", &letter.traceparent),
    ];
    for (name, value) in texts {
        if let Some(value) = value {
            put(name, value.as_bytes());
        }
    }
    let id = EntryId::default();
    // The namespace matters to the field replyto only.
    let keys = Keys::new("cb").map_err(|error| error.to_string())?;
    match Event::parse(Entry::new(id, fields), &limits, &keys, "") {
        Ok(_) => Ok(()),
        Err(malformed) => Err(malformed.message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_bus_would_refuse_does_not_get_in() {
        let checked = |post: Post| post.0.and_then(|letter| check(&letter));
        assert_eq!(
            checked(Post::new("order.placed", &7).subject("o-1")),
            Ok(())
        );
        let bad = [
            ("type:", Post::new("order", &7)),
            ("id:", Post::new("order.placed", &7).id("")),
            (
                "subject:",
                Post::new("order.placed", &7).subject("x".repeat(257)),
            ),
        ];
        for (field, post) in bad {
            let error = checked(post).unwrap_err();
            assert!(error.starts_with(field), "{error}");
        }
    }
}
