//! What the ledger asks of a database. Each kind of database has a file of its own that answers.

use super::error::LedgerError;
use super::fact::Fact;
use super::history::{Extent, Filter};
use super::outcomes::{OutcomeExtent, OutcomeFilter};
use super::relay::Waiting;
use crate::protocol::outcome::EventOutcome;
use crate::settings::{DatabaseKind, DatabaseUrl};
use futures_util::future::BoxFuture;
use sqlx::error::DatabaseError;
use std::sync::Arc;
use std::time::Duration;

/// How long getting a connection may take.
pub(super) const ACQUIRE: Duration = Duration::from_secs(2);
/// How long one statement may take.
pub(super) const STATEMENT: Duration = Duration::from_secs(30);
/// How long a write waits for another one's lock.
pub(super) const LOCK: Duration = Duration::from_secs(5);
/// How long a connection is used: after a failover behind the same address, this long at most leads
/// to the old server.
pub(super) const LIFETIME: Duration = Duration::from_secs(5 * 60);
/// Connections of a pool that reads and writes.
pub(super) const CONNECTIONS: u32 = 4;

/// What opening finds.
pub(super) type Opened = Option<Result<Arc<dyn Store>, LedgerError>>;

/// A kind of database.
pub(super) struct Kind {
    /// Prepares for the database at a URL of that kind, connects nothing yet; `None` for another kind.
    pub(super) open: fn(&DatabaseUrl, &DatabaseKind) -> Opened,
    /// What one of its own errors means; `None` for another kind's.
    pub(super) meaning: fn(&dyn DatabaseError) -> Option<LedgerError>,
}

/// The kinds of databases that this build has.
pub(super) const KINDS: &[Kind] = &[
    #[cfg(feature = "ledger-sqlite")]
    super::sqlite::KIND,
    #[cfg(feature = "ledger-postgres")]
    super::postgres::KIND,
];

/// What a store answers.
pub(super) type Answer<'a, T> = BoxFuture<'a, Result<T, LedgerError>>;

/// What grows and is deleted when it is old.
#[derive(Clone, Copy, Debug)]
pub(super) enum Old {
    Facts,
    Received,
    Outcomes,
}

/// A database as the ledger sees it. Whoever asks bounds the time, except for [`insert`](Store::insert).
pub(super) trait Store: Send + Sync {
    /// `sqlite` or `postgres`.
    fn kind(&self) -> &'static str;

    /// Has new connections be made as the URL's file says now, where it stands in one.
    fn renew(&self, _: &DatabaseUrl) -> Result<(), LedgerError> {
        Ok(())
    }

    /// Closes all connections.
    fn close(&self) -> BoxFuture<'_, ()>;

    /// The version of its schema; 0 without one.
    fn version(&self) -> Answer<'_, i64>;

    /// Brings the schema up to date.
    fn migrate(&self) -> Answer<'_, ()>;

    /// Takes the schema back to an earlier version.
    fn revert(&self, version: i64) -> Answer<'_, ()>;

    /// Writes facts in one transaction, each once; how many were new. Bounds the time itself.
    fn insert<'a>(&'a self, facts: &'a [Fact]) -> Answer<'a, u64>;

    /// The first `limit` facts that the filter lets through.
    fn history<'a>(&'a self, filter: &'a Filter, limit: u32) -> Answer<'a, Vec<Fact>>;

    /// How much there is.
    fn extent(&self) -> Answer<'_, Extent>;

    /// Deletes up to `rows` of a namespace that are older than `before`; how many.
    fn delete<'a>(
        &'a self,
        old: Old,
        namespace: &'a str,
        before: i64,
        rows: i64,
    ) -> Answer<'a, u64>;

    /// Writes outcomes in one transaction, each once, and how many were lost before them.
    fn insert_outcomes<'a>(
        &'a self,
        namespace: &'a str,
        instance: &'a str,
        outcomes: &'a [EventOutcome],
        lost: u64,
    ) -> Answer<'a, ()>;

    /// The first `limit` outcomes that the filter lets through.
    fn outcomes<'a>(
        &'a self,
        filter: &'a OutcomeFilter,
        limit: u32,
    ) -> Answer<'a, Vec<EventOutcome>>;

    /// How many outcomes there are.
    fn outcomes_extent(&self) -> Answer<'_, OutcomeExtent>;

    /// The oldest rows of the outbox.
    fn waiting(&self) -> Answer<'_, Vec<Waiting>>;

    /// Deletes rows of the outbox.
    fn published<'a>(&'a self, ids: &'a [i64]) -> Answer<'a, ()>;

    /// Notes why a row of the outbox can never be published.
    fn refuse<'a>(&'a self, id: i64, why: &'a str) -> Answer<'a, ()>;
}

/// Bounds what talks to a database.
pub(super) async fn within<T>(
    limit: Duration,
    work: impl Future<Output = T>,
) -> Result<T, LedgerError> {
    let done = tokio::time::timeout(limit, work).await;
    done.map_err(|_| LedgerError::Slow(limit))
}
