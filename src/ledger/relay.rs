//! Publishes what is in the outbox: at least once, in order per subject, deduplicated by id.
//!
//! Any number of relays may run. Each publishes a subject's events one after the other and stops at
//! the first that is not stored for sure; a second publish of the same id within the deduplication
//! window stores nothing. So whoever is first, an event never gets ahead of an earlier one of its
//! subject. Rows are deleted after they are published.

use super::database::Database;
use super::error::LedgerError;
use super::store::{ACQUIRE, STATEMENT, within};
use crate::client::publish::{Outgoing, PublishError};
use crate::client::{Client, ClientOptions};
use crate::connect::backoff::Backoff;
use crate::connect::connector::Connector;
use crate::connect::error::BusError;
use crate::protocol::json;
use crate::settings::Settings;
use futures_util::future::join_all;
use sqlx::{ColumnIndex, Decode, Row, Type};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Rows that are looked at at a time.
const ROWS: usize = 100;
/// How long an empty outbox is left alone.
const PAUSE: Duration = Duration::from_millis(500);
/// Connections for publishing.
const POOL: usize = 2;

/// Asks for the oldest [`ROWS`].
pub(super) const WAITING: &str = "\
SELECT id, event, kind, subject, source, traceparent, time, data, json FROM convoke_outbox
WHERE refused IS NULL ORDER BY id LIMIT 100";

/// A row that waits.
#[derive(Debug)]
pub(super) struct Waiting {
    id: i64,
    subject: Option<String>,
    event: Outgoing,
}

/// What became of a row.
enum Fate {
    Published,
    Refused(String),
}

/// Publishes from one database to one bus.
#[derive(Clone, Debug)]
pub struct Relay {
    database: Database,
    client: Client,
}

impl Relay {
    /// A relay from that database to the bus of the settings. Connects nothing yet.
    ///
    /// # Errors
    /// The URL or the names in the settings are not valid.
    pub fn new(database: Database, settings: &Settings) -> Result<Self, BusError> {
        let connector = Connector::of(settings, POOL)?;
        let options = ClientOptions::from(settings);
        let client = Client::new(connector, settings.keys()?, options)?;
        Ok(Self { database, client })
    }

    /// Publishes again and again until told to stop.
    pub async fn run(self, stop: CancellationToken) {
        let mut backoff = Backoff::default();
        loop {
            let pause = match self.run_once().await {
                Ok((_, false)) => {
                    backoff.worked();
                    Duration::ZERO
                }
                Ok((_, true)) => {
                    backoff.worked();
                    PAUSE.mul_f64(fastrand::f64() / 2.0 + 0.75)
                }
                Err(error) => {
                    if !backoff.is_failing() {
                        tracing::debug!(error, "the outbox waits");
                    }
                    PAUSE + backoff.failed()
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => break,
            }
        }
        self.client.close().await;
    }

    /// Publishes the oldest rows; how many, and whether none is left.
    ///
    /// # Errors
    /// What the database or Redis said; rows before it in its subject's order are published.
    pub async fn run_once(&self) -> Result<(usize, bool), String> {
        let text = |error: LedgerError| error.to_string();
        self.database
            .ready(Duration::from_secs(60))
            .await
            .map_err(text)?;
        let waiting = self.waiting().await.map_err(text)?;
        let count = waiting.len();
        let mut subjects: BTreeMap<(bool, String), Vec<Waiting>> = BTreeMap::new();
        for row in waiting {
            let lane = match &row.subject {
                Some(subject) => (true, subject.clone()),
                // No order among these.
                None => (false, row.id.to_string()),
            };
            subjects.entry(lane).or_default().push(row);
        }
        let lanes = subjects.into_values().map(|rows| self.publish(rows));
        let mut published: Vec<i64> = Vec::with_capacity(count);
        let mut refused = Vec::new();
        let mut failed = None;
        for (fates, error) in join_all(lanes).await {
            for (id, fate) in fates {
                match fate {
                    Fate::Published => published.push(id),
                    Fate::Refused(why) => refused.push((id, why)),
                }
            }
            failed = failed.or(error);
        }
        self.delete(&published).await.map_err(text)?;
        for (id, why) in refused {
            tracing::error!(id, why, "an event in the outbox can never be published");
            self.refuse(id, &why).await.map_err(text)?;
        }
        match failed {
            Some(error) => Err(error.to_string()),
            None => Ok((published.len(), count < ROWS)),
        }
    }

    /// Publishes rows one after the other, up to the first that is not stored for sure.
    async fn publish(&self, rows: Vec<Waiting>) -> (Vec<(i64, Fate)>, Option<PublishError>) {
        let mut fates = Vec::with_capacity(rows.len());
        for row in rows {
            if let Err(error) = self.client.check(&row.event) {
                fates.push((row.id, Fate::Refused(error.to_string())));
                continue;
            }
            match self.client.publish(&row.event).await {
                Ok(_) => fates.push((row.id, Fate::Published)),
                Err(error) => return (fates, Some(error)),
            }
        }
        (fates, None)
    }

    async fn waiting(&self) -> Result<Vec<Waiting>, LedgerError> {
        within(ACQUIRE + STATEMENT, self.database.store.waiting()).await?
    }

    async fn delete(&self, ids: &[i64]) -> Result<(), LedgerError> {
        if ids.is_empty() {
            return Ok(());
        }
        within(ACQUIRE + STATEMENT, self.database.store.published(ids)).await?
    }

    async fn refuse(&self, id: i64, why: &str) -> Result<(), LedgerError> {
        within(ACQUIRE + STATEMENT, self.database.store.refuse(id, why)).await?
    }
}

/// A row of what a database answered to [`WAITING`].
pub(super) fn row<R: Row>(row: &R) -> Result<Waiting, sqlx::Error>
where
    for<'i> &'i str: ColumnIndex<R>,
    for<'r> String: Decode<'r, R::Database> + Type<R::Database>,
    for<'r> i64: Decode<'r, R::Database> + Type<R::Database>,
    for<'r> Option<String>: Decode<'r, R::Database> + Type<R::Database>,
    for<'r> Option<Vec<u8>>: Decode<'r, R::Database> + Type<R::Database>,
{
    let id: i64 = row.try_get("id")?;
    let kind: String = row.try_get("kind")?;
    let data: Option<Vec<u8>> = row.try_get("data")?;
    let json: Option<String> = row.try_get("json")?;
    let event: Option<String> = row.try_get("event")?;
    let subject: Option<String> = row.try_get("subject")?;
    let time: i64 = row.try_get("time")?;
    let mut outgoing = match (data, json) {
        (Some(data), _) => Outgoing::encoded(kind, data),
        // Where it is not exactly one value, the empty payload is refused, and the row says so.
        (None, Some(json)) => {
            Outgoing::encoded(kind, json::parse(json.as_bytes()).unwrap_or_default())
        }
        (None, None) => Outgoing::bare(kind),
    };
    outgoing = outgoing
        // Other databases that feed this bus count their rows from 1 too: the number alone would make
        // their events look like repetitions of this one.
        .id(event.unwrap_or_else(|| format!("outbox-{id}-{time}")))
        .time(time.to_string())
        .dedup(true);
    if let Some(subject) = &subject {
        outgoing = outgoing.subject(subject);
    }
    if let Some(source) = row.try_get::<Option<String>, _>("source")? {
        outgoing = outgoing.source(source);
    }
    if let Some(traceparent) = row.try_get::<Option<String>, _>("traceparent")? {
        outgoing = outgoing.traceparent(traceparent);
    }
    Ok(Waiting {
        id,
        subject,
        event: outgoing,
    })
}
