//! `convoke ledger`: the ledger's database.

use super::settings::DatabaseFlags;
use super::{Exit, Session, history, output};
use clap::{Args, Subcommand};
use convoke::coordination::instances::Instances;
use convoke::ledger::fill::{self, Lag};
use convoke::ledger::schema::VERSION;
use convoke::ledger::{Database, LedgerError};
use serde_json::json;

const EXAMPLES: &str = "\
Examples:
  convoke ledger status
  convoke ledger migrate
  CONVOKE_DATABASE_URL=$(cat /run/secrets/database-url) convoke ledger migrate

Workers with a database_url bring its schema up to date by themselves; migrate does it beforehand,
for instance as a user that may change tables. A password belongs into CONVOKE_DATABASE_URL, the
file of --config or ~/.pgpass, never into an argument. status exits with 1 when the ledger cannot
be used.";

/// Look at the ledger's database, or bring its schema up to date
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Flags {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Bring the schema up to date
    Migrate(DatabaseFlags),
    /// Show the schema's version, what is in the ledger, and what waits for it in Redis
    Status(DatabaseFlags),
}

impl Flags {
    /// The settings that were given as flags.
    pub(super) fn database(&self) -> &DatabaseFlags {
        match &self.command {
            Command::Migrate(flags) | Command::Status(flags) => flags,
        }
    }

    /// Whether it looks at the bus, besides the database.
    pub(super) fn asks_the_bus(&self) -> bool {
        matches!(self.command, Command::Status(_))
    }
}

/// Runs the command.
pub(super) async fn run(session: Session, flags: Flags) -> anyhow::Result<Exit> {
    match flags.command {
        Command::Migrate(_) => migrate(&session).await,
        Command::Status(_) => status(&session).await,
    }
}

async fn migrate(session: &Session) -> anyhow::Result<Exit> {
    let database = Database::new(&history::url(session))?;
    let from = database.migrate().await;
    let from = from.map_err(|error| history::named(session, error))?;
    database.close().await;
    if session.output.is_json() {
        session.output.json(&json!({"from": from, "to": VERSION}))?;
    } else if from == VERSION {
        session
            .output
            .line(&format!("the schema has version {VERSION} already"))?;
    } else {
        session
            .output
            .line(&format!("the schema went from version {from} to {VERSION}"))?;
    }
    Ok(Exit::Done)
}

async fn status(session: &Session) -> anyhow::Result<Exit> {
    let database = history::open(session)?;
    let named = |error| history::named(session, error);
    let found = database.version().await.map_err(named)?;
    let usable = database.check().await;
    let extent = match usable {
        Ok(()) => Some(database.extent().await.map_err(named)?),
        Err(_) => None,
    };
    let outcomes = match usable {
        Ok(()) => Some(database.outcomes_extent().await.map_err(named)?),
        Err(_) => None,
    };
    let waiting = waiting(session).await;
    let count = |pick: fn(&Lag) -> u64| {
        waiting
            .as_ref()
            .ok()
            .map(|w| w.iter().map(pick).sum::<u64>())
    };
    let (unread, pending) = (count(|lag| lag.unread), count(|lag| lag.pending));
    let url = history::name(session);
    if session.output.is_json() {
        session.output.json(&json!({
            "database": url,
            "kind": database.kind(),
            "schema": {"found": found, "known": VERSION},
            "facts": extent.map(|e| e.facts),
            "oldest": extent.and_then(|e| e.oldest),
            "newest": extent.and_then(|e| e.newest),
            "outbox": extent.map(|e| json!({"waiting": e.outbox_waiting, "refused": e.outbox_refused})),
            "outcomes": outcomes.map(|o| json!({"kept": o.rows, "lost": o.lost})),
            "backlog": {"unread": unread, "pending": pending},
            "error": usable.as_ref().err().map(LedgerError::to_string),
        }))?;
    } else {
        let time = |ms: Option<i64>| ms.map_or_else(|| "-".to_owned(), history::moment);
        let number = |n: Option<u64>| {
            n.map_or_else(|| "redis does not answer".to_owned(), |n| n.to_string())
        };
        let mut rows = vec![
            ("database", url),
            (
                "schema",
                format!("version {found}; this program knows {VERSION}"),
            ),
        ];
        if let Some(extent) = extent {
            rows.extend([
                ("facts", extent.facts.to_string()),
                ("oldest", time(extent.oldest)),
                ("newest", time(extent.newest)),
                (
                    "outbox",
                    format!(
                        "{} waiting, {} refused",
                        extent.outbox_waiting, extent.outbox_refused
                    ),
                ),
            ]);
        }
        if let Some(outcomes) = outcomes {
            let said = format!("{} kept, {} lost", outcomes.rows, outcomes.lost);
            rows.push(("outcomes", said));
        }
        rows.extend([("unread", number(unread)), ("pending", number(pending))]);
        for (name, value) in rows {
            let value = output::printable(&value);
            session.output.line(&format!("{name:10}{value}"))?;
        }
    }
    database.close().await;
    match usable {
        Ok(()) => Ok(Exit::Done),
        Err(error) => Err(named(error)),
    }
}

/// What waits in Redis for the ledger.
async fn waiting(session: &Session) -> anyhow::Result<Vec<Lag>> {
    let keys = session.keys().await?;
    let connector = session.connector()?;
    let domains = Instances::new(connector.clone(), keys.clone())
        .domains()
        .await?;
    let mut connection = connector.pooled().await?;
    let mut lags = Vec::new();
    for source in fill::sources(&keys, &[], &domains) {
        lags.extend(fill::lag(&mut connection, &source.stream).await?);
    }
    Ok(lags)
}
