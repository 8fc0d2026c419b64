//! The database: SQLite or PostgreSQL behind one contract.

use super::error::LedgerError;
use super::fact::Fact;
use super::schema;
use super::store::{ACQUIRE, KINDS, STATEMENT, Store, within};
use crate::mutex::locked;
use crate::settings::DatabaseUrl;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// How long bringing the schema up to date may take.
const MIGRATION: Duration = Duration::from_secs(5 * 60);

/// A database that holds the ledger, an inbox, an outbox. Cheap to clone.
#[derive(Clone)]
pub struct Database {
    pub(super) store: Arc<dyn Store>,
    url: DatabaseUrl,
    /// When the schema was last found in order.
    checked: Arc<Mutex<Option<Instant>>>,
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Database({})", self.kind())
    }
}

impl Database {
    /// Prepares for the database at `url`; connects nothing yet. A file's directory is made.
    ///
    /// # Errors
    /// [`LedgerError::Url`].
    pub fn new(url: &DatabaseUrl) -> Result<Self, LedgerError> {
        let kind = url.kind().map_err(LedgerError::Url)?;
        let store = KINDS.iter().find_map(|one| (one.open)(url, &kind));
        let none = || LedgerError::Url(format!("{url} is of no kind that this program has"));
        Ok(Self {
            store: store.ok_or_else(none)??,
            url: url.clone(),
            checked: Arc::default(),
        })
    }

    /// Closes all connections.
    pub async fn close(&self) {
        self.store.close().await;
    }

    /// Which kind it is: `sqlite` or `postgres`.
    pub fn kind(&self) -> &'static str {
        self.store.kind()
    }

    /// The version of its schema; 0 without one.
    pub async fn version(&self) -> Result<i64, LedgerError> {
        self.store.renew(&self.url)?;
        within(ACQUIRE + STATEMENT, self.store.version()).await?
    }

    /// Fails unless the schema has the version that this program needs.
    pub async fn check(&self) -> Result<(), LedgerError> {
        schema::check(self.version().await?)
    }

    /// Brings the schema up to date; from which version.
    ///
    /// # Errors
    /// [`LedgerError::Ahead`] and whatever the database says.
    pub async fn migrate(&self) -> Result<i64, LedgerError> {
        let found = self.version().await?;
        match schema::check(found) {
            Ok(()) => return Ok(found),
            Err(LedgerError::Behind { .. }) => {}
            Err(error) => return Err(error),
        }
        within(MIGRATION, self.store.migrate()).await??;
        Ok(found)
    }

    /// Takes the schema back to an earlier version; what the later ones held is lost.
    pub async fn revert(&self, version: i64) -> Result<(), LedgerError> {
        self.store.revert(version).await
    }

    /// Has the schema be in order: checked now if the last check is older than `age`, or something
    /// failed since; brought up to date where it is behind.
    ///
    /// # Errors
    /// [`LedgerError::Ahead`] and whatever the database says.
    pub async fn ready(&self, age: Duration) -> Result<(), LedgerError> {
        let checked = *self.checked();
        if checked.is_some_and(|at| at.elapsed() < age) {
            return Ok(());
        }
        let found = self.migrate().await?;
        if found < schema::VERSION {
            let known = schema::VERSION;
            tracing::info!(
                from = found,
                to = known,
                "the database's schema was brought up to date"
            );
        }
        *self.checked() = Some(Instant::now());
        Ok(())
    }

    fn checked(&self) -> MutexGuard<'_, Option<Instant>> {
        locked(&self.checked)
    }

    /// Writes facts in one transaction, each once; how many were new.
    pub async fn insert(&self, facts: &[Fact]) -> Result<u64, LedgerError> {
        let written = self.store.insert(facts).await;
        if written.is_err() {
            *self.checked() = None;
        }
        written
    }
}
