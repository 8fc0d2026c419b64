//! `convoke history`: asks the ledger what happened.

use super::output;
use super::output::printable;
use super::settings::DatabaseFlags;
use super::{Exit, Misuse, Session};
use clap::Args;
use convoke::ledger::fact::Fact;
use convoke::ledger::history::{Cursor, Filter};
use convoke::ledger::{Database, LedgerError};
use convoke::settings::{DatabaseKind, DatabaseUrl};
use jiff::Timestamp;
use serde_json::{Value, json};

const EXAMPLES: &str = "\
Examples:
  convoke history                                 the last 50 facts
  convoke history --since 7d --type 'instance.*'  who came and went last week
  convoke history --decision budget-2027          who decided, and when
  convoke history --dead --since 2026-11-01 --format json | jq .reason
  convoke history --task t-17 --oldest-first
  convoke history --limit 1000 --after 1732431234567-0@cb:broadcast

A TIME is a duration before now (90s, 2h, 7d), a date or time as RFC 3339 writes it, or Unix ms.
With --format json each line has its place as `cursor`, for --after.";

/// Ask the ledger what happened
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Flags {
    /// Only types like this: * stands for any characters; may be repeated
    #[arg(long = "type", value_name = "GLOB")]
    kinds: Vec<String>,
    /// Only what that instance did, or what became of it
    #[arg(long, value_name = "ID")]
    instance: Option<String>,
    /// Only facts about that task
    #[arg(long, value_name = "ID", conflicts_with_all = ["batch", "decision", "event"])]
    task: Option<String>,
    /// Only facts about that batch
    #[arg(long, value_name = "ID", conflicts_with_all = ["decision", "event"])]
    batch: Option<String>,
    /// Only facts about that decision
    #[arg(long, value_name = "ID", conflicts_with = "event")]
    decision: Option<String>,
    /// Only the dead letter of the event with that id
    #[arg(long, value_name = "ID")]
    event: Option<String>,
    /// Only dead letters
    #[arg(long)]
    dead: bool,
    /// Only from then on
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<i64>,
    /// Only before then
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<i64>,
    /// Show the oldest first
    #[arg(long)]
    oldest_first: bool,
    /// Show this many
    #[arg(long, value_name = "N", default_value = "50", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    limit: u32,
    /// Go on after that place
    #[arg(long, value_name = "CURSOR")]
    after: Option<Cursor>,
    #[command(flatten)]
    pub(crate) database: DatabaseFlags,
}

fn time(text: &str) -> Result<i64, String> {
    if let Ok(ms) = text.parse::<i64>() {
        return Ok(ms);
    }
    if let Ok(ago) = humantime::parse_duration(text) {
        let ago = i64::try_from(ago.as_millis()).map_err(|_| "too long ago")?;
        return Ok(Timestamp::now().as_millisecond().saturating_sub(ago));
    }
    let date = format!("{text}T00:00:00Z");
    text.parse::<Timestamp>()
        .or_else(|_| date.parse())
        .map(Timestamp::as_millisecond)
        .map_err(|_| "write 2h, 2026-11-24, 2026-11-24T08:00:00Z or Unix ms".to_owned())
}

/// Runs the command.
pub(super) async fn run(session: Session, flags: Flags) -> anyhow::Result<Exit> {
    let filter = Filter {
        namespace: session.settings.namespace.clone(),
        kinds: flags.kinds,
        instance: flags.instance,
        task: flags.task,
        batch: flags.batch,
        decision: flags.decision,
        event: flags.event,
        dead: flags.dead,
        since: flags.since,
        until: flags.until,
        oldest_first: flags.oldest_first,
        after: flags.after,
    };
    let database = open(&session)?;
    let asked = database.history(&filter, flags.limit + 1).await;
    let mut facts = asked.map_err(|error| named(&session, error))?;
    let more = facts.len() > flags.limit as usize;
    facts.truncate(flags.limit as usize);
    for fact in &facts {
        if session.output.is_json() {
            session.output.json(&described(fact))?;
        } else {
            print(&session, fact)?;
        }
    }
    match facts.last() {
        None if !session.output.is_json() => output::complain_line("nothing in the ledger fits"),
        Some(last) if more && !session.output.is_json() => {
            let cursor = Cursor::of(last).to_string();
            output::complain_line(&format!("there is more: --after {}", printable(&cursor)));
        }
        _ => {}
    }
    database.close().await;
    Ok(Exit::Done)
}

/// The ledger's database: the one that is set, else the file under the state directory.
pub(super) fn url(session: &Session) -> DatabaseUrl {
    match &session.settings.database_url {
        url if url.is_empty() => DatabaseUrl::local(),
        url => url.clone(),
    }
}

/// Opens the ledger, which must be there.
pub(super) fn open(session: &Session) -> anyhow::Result<Database> {
    let url = url(session);
    if let Ok(DatabaseKind::Sqlite(path)) = url.kind()
        && !path.exists()
    {
        return Err(Misuse::error(format_args!(
            "there is no ledger at {}: set database_url as the workers have it",
            path.display()
        )));
    }
    Ok(Database::new(&url)?)
}

/// The database, as people are told: with the path that is the default.
pub(super) fn name(session: &Session) -> String {
    let url = url(session);
    match url.kind() {
        Ok(DatabaseKind::Sqlite(path)) => format!("sqlite:{}", path.display()),
        _ => url.to_string(),
    }
}

/// Says which database it is that fails.
pub(super) fn named(session: &Session, error: LedgerError) -> anyhow::Error {
    anyhow::Error::new(error).context(printable(&name(session)).into_owned())
}

/// A time in Unix ms, for people.
pub(super) fn moment(ms: i64) -> String {
    Timestamp::from_millisecond(ms).map_or_else(|_| ms.to_string(), |time| format!("{time:.3}"))
}

fn print(session: &Session, fact: &Fact) -> anyhow::Result<()> {
    let output = &session.output;
    let mut line = format!(
        "{} {}",
        output.faint(&moment(fact.at)),
        output.bold(&printable(&fact.kind))
    );
    if let Some(reason) = &fact.reason {
        line.push(' ');
        line.push_str(&output.red(&format!("dead: {}", printable(reason))));
    }
    let named = [
        (
            "event",
            fact.subject.as_ref().filter(|_| fact.reason.is_some()),
        ),
        (
            "instance",
            fact.instance.as_ref().filter(|_| fact.reason.is_some()),
        ),
        ("source", fact.source.as_ref()),
    ];
    for (name, value) in named {
        if let Some(value) = value {
            line.push_str(&format!(" {name}={}", printable(value)));
        }
    }
    if let Some(message) = fact.fields["deadmessage"].as_str() {
        line.push_str(&format!(" message={}", output::json(&message.into())));
    }
    line.push(' ');
    line.push_str(&output::json(&fact.data));
    Ok(output.line(&line)?)
}

fn described(fact: &Fact) -> Value {
    json!({
        "at": fact.at,
        "type": fact.kind,
        "stream": fact.stream,
        "entry": format!("{}-{}", fact.at.cast_unsigned(), fact.seq.cast_unsigned()),
        "time": fact.time,
        "source": fact.source,
        "subject": fact.subject,
        "instance": fact.instance,
        "reason": fact.reason,
        "data": fact.data,
        "fields": fact.fields,
        "cursor": Cursor::of(fact).to_string(),
    })
}
