//! The inbox: a handler's own SQL takes effect once.
//!
//! The effect and the event's identity are written in one transaction. A second run of the same
//! event (after a crash between that transaction and the commit on the bus, or by a worker that was
//! paused and overtaken) finds the identity and changes nothing; it returns the first one's result.

mod batch;

use super::dialect::{Dialect, Identity, NOTHING};
use super::schema::lacks_table;
use crate::HandlerError;
use crate::handler::context::Context;
use crate::protocol::event::Event;
use crate::protocol::keys::Keys;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::Pool;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How long an event waits whose run was given no connection.
const TAKEN: Duration = Duration::from_millis(500);

impl Context {
    /// Runs `effect` in a transaction of its own, once for this event: if an earlier run of it was
    /// committed, nothing is run and that run's result is returned.
    ///
    /// An event is known by its type, its `source` and its `id`. If `effect` fails, its transaction
    /// is rolled back and the event may be tried again. Runs of one event wait for each other. On
    /// SQLite, await nothing in `effect` but the database: it holds the only lock for writing.
    ///
    /// The database needs the ledger's schema: [`ledger::migrate`](super::migrate), or
    /// `convoke ledger migrate`. Ids are forgotten after the ledger's
    /// retention, at the earliest after 30 days, where a worker with that `database_url` runs.
    ///
    /// ```no_run
    /// use convoke::sqlx::{self, PgPool};
    /// use convoke::{Context, HandlerError, Worker};
    ///
    /// async fn charge(context: Context, cents: i64) -> Result<i64, HandlerError> {
    ///     let pool = context.state::<PgPool>()?;
    ///     context
    ///         .once(pool, async |transaction| {
    ///             sqlx::query("UPDATE account SET balance = balance - $1")
    ///                 .bind(cents)
    ///                 .execute(transaction)
    ///                 .await?;
    ///             Ok(cents)
    ///         })
    ///         .await
    /// }
    ///
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let pool = PgPool::connect("postgres://localhost/shop").await?;
    /// let worker = Worker::builder().handler("account.charge", charge).state(pool).build()?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// What `effect` returns. `internal`, not retryable, for a second call in a run whose first one
    /// took effect or is under way: all effects of an event go into one call. `unavailable` if the database
    /// cannot be reached, `internal` if it refuses. `failed_precondition`, not retryable, where the ledger's
    /// schema is missing; and for an event without an id on a bus that splits its domain into partitions:
    /// there an entry id names nothing for good. `invalid_argument` for an id or a source with a U+0000.
    pub async fn once<DB, T, F>(&self, pool: &Pool<DB>, effect: F) -> Result<T, HandlerError>
    where
        DB: Dialect,
        T: Serialize + DeserializeOwned,
        F: AsyncFnOnce(&mut DB::Connection) -> Result<T, HandlerError>,
    {
        let Some(once) = Effect::begin(self.effect()) else {
            return Err(HandlerError::internal(
                "once: called a second time in one run, which would take the first one's result \
                 for its own: put all effects of the event into one",
            )
            .permanent());
        };
        let identity = identity(self.event(), self.keys())?;
        let begun = pool.begin_with(DB::BEGIN).await;
        let mut transaction = begun.map_err(|error| match error {
            // All are taken, and nothing has been done yet.
            sqlx::Error::PoolTimedOut => HandlerError::later(TAKEN, error.to_string()),
            error => unavailable(error),
        })?;
        let done = async {
            let first = DB::receive(&mut transaction, &identity).await;
            if !first.map_err(unavailable)? {
                let result = DB::received(&mut transaction, &identity).await;
                let result = result.map_err(unavailable)?.unwrap_or_default();
                return rmp_serde::from_slice(&result).map_err(|error| {
                    let message =
                        format!("the result of the event's earlier run cannot be read: {error}");
                    HandlerError::internal(message).permanent()
                });
            }
            let result = effect(&mut transaction).await?;
            let encoded = rmp_serde::to_vec_named(&result).map_err(|error| {
                let message = format!("the result cannot be encoded: {error}");
                HandlerError::internal(message).permanent()
            })?;
            if encoded != NOTHING {
                let kept = DB::keep(&mut transaction, &identity, encoded).await;
                kept.map_err(unavailable)?;
            }
            Ok(result)
        }
        .await;
        let ended = DB::end(transaction, done.is_ok()).await;
        let done = done?;
        // Without an answer it may have been committed: the next run finds out.
        ended.map_err(unavailable)?;
        once.took();
        Ok(done)
    }
}

/// The event's own SQL in a run; dropped, it was undone.
struct Effect<'a>(Option<&'a AtomicBool>);

impl<'a> Effect<'a> {
    /// Begins it; `None` if it was begun in this run already, and not undone.
    fn begin(effect: &'a AtomicBool) -> Option<Self> {
        let begun = effect.swap(true, Ordering::AcqRel);
        (!begun).then_some(Self(Some(effect)))
    }

    /// Notes that it is committed.
    fn took(mut self) {
        self.0 = None;
    }
}

impl Drop for Effect<'_> {
    fn drop(&mut self) {
        if let Some(effect) = self.0 {
            effect.store(false, Ordering::Release);
        }
    }
}

fn identity(event: &Event, keys: &Keys) -> Result<Identity, HandlerError> {
    if event.given_id().is_none() && keys.partitions(event.domain()) > 1 {
        let message =
            "id: missing; on a partitioned bus an event whose effect is to happen once needs one";
        return Err(HandlerError::failed_precondition(message));
    }
    let (source, id) = (event.source().unwrap_or_default(), event.id());
    for (field, value) in [("source", source), ("id", id.as_str())] {
        // PostgreSQL has no text with it.
        if value.contains('\0') {
            let message = format!("{field}: {value:?} has a U+0000, which cannot be stored");
            return Err(HandlerError::invalid_argument(message));
        }
    }
    Ok(Identity {
        namespace: keys.namespace().to_owned(),
        kind: event.kind().to_owned(),
        source: source.to_owned(),
        event: id,
    })
}

fn unavailable(error: sqlx::Error) -> HandlerError {
    if lacks_table(&error) {
        return HandlerError::failed_precondition(format!(
            "the database lacks what `once` needs ({error}): run `convoke ledger migrate`, or call convoke::ledger::migrate"
        ));
    }
    match super::LedgerError::from(error) {
        error @ (super::LedgerError::Sql(_) | super::LedgerError::Refused(_)) => {
            HandlerError::internal(error.to_string())
        }
        error => HandlerError::unavailable(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::event::{Entry, EntryId, Limits};

    fn event(fields: &[(&str, &str)]) -> Event {
        let words = fields
            .iter()
            .flat_map(|(name, value)| [name.as_bytes().to_vec(), value.as_bytes().to_vec()]);
        let entry = Entry::new(EntryId { ms: 7, seq: 1 }, words);
        Event::parse(entry, &Limits::default(), &Keys::new("cb").unwrap(), "").unwrap()
    }

    #[test]
    fn an_event_is_the_same_on_its_next_attempt() {
        let keys = Keys::new("cb").unwrap();
        let first = event(&[("type", "a.b"), ("source", "shop")]);
        let again = Entry::new(EntryId { ms: 9, seq: 0 }, first.next_attempt());
        let again = Event::parse(again, &Limits::default(), &keys, "").unwrap();
        assert_eq!(
            identity(&first, &keys).unwrap(),
            identity(&again, &keys).unwrap()
        );
        let other = event(&[("type", "a.b"), ("source", "bank"), ("id", "7-1")]);
        assert_ne!(
            identity(&first, &keys).unwrap(),
            identity(&other, &keys).unwrap()
        );
    }

    #[test]
    fn in_partitions_an_entry_id_names_nothing_for_good() {
        let keys = Keys::tagged("cb", 2).unwrap();
        let refused = identity(&event(&[("type", "a.b")]), &keys).unwrap_err();
        assert!(refused.message.starts_with("id:"), "{refused}");
        assert!(identity(&event(&[("type", "a.b"), ("id", "e")]), &keys).is_ok());
        assert!(identity(&event(&[("type", "system.x")]), &keys).is_ok());
    }
}
