//! Whether PostgreSQL answers: by a query, on connections of its own, within a time.

use super::error::LedgerError;
use super::postgres::{pool_at, renew};
use super::store::within;
use crate::settings::{DatabaseUrl, Settings};
use sqlx::{PgPool, Row};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Connections: a check that hangs does not hold the next one up.
const CONNECTIONS: u32 = 2;

/// Asks a PostgreSQL server how it is.
#[derive(Debug)]
pub struct Probe {
    url: DatabaseUrl,
    /// Made at the first question: a pool needs a runtime, and a worker may be built before there is
    /// one.
    pool: OnceLock<PgPool>,
}

impl Probe {
    /// A probe of the server that the settings name, if they do. Connects nothing yet.
    pub fn of(settings: &Settings) -> Option<Self> {
        let url = &settings.database_url;
        url.is_postgres().then(|| Self {
            url: url.clone(),
            pool: OnceLock::new(),
        })
    }

    fn pool(&self) -> Result<&PgPool, LedgerError> {
        if let Some(pool) = self.pool.get() {
            renew(pool, &self.url)?;
            return Ok(pool);
        }
        let made = pool_at(&self.url, CONNECTIONS)?;
        Ok(self.pool.get_or_init(|| made))
    }

    /// How long a query takes, connecting included where that was needed.
    ///
    /// # Errors
    /// No answer within the limit, a server that takes no writes, or a URL that is not valid.
    pub async fn ask(&self, limit: Duration) -> Result<Duration, LedgerError> {
        let began = Instant::now();
        let mut connection = within(limit, self.pool()?.acquire()).await??;
        let left = limit.saturating_sub(began.elapsed());
        let asked = sqlx::query("SELECT current_setting('transaction_read_only') = 'on'")
            .fetch_one(&mut *connection);
        let answer = match within(left, asked).await {
            Ok(Ok(row)) => match row.try_get(0) {
                Ok(false) => return Ok(began.elapsed()),
                Ok(true) => LedgerError::ReadOnly,
                Err(error) => error.into(),
            },
            Ok(Err(error)) => error.into(),
            Err(_) => LedgerError::Slow(limit),
        };
        // Not back into the pool: whatever is wrong may be wrong with this connection.
        drop(connection.detach());
        Err(answer)
    }
}
