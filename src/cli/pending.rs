//! `convoke pending`: what is delivered and not acknowledged, decoded.

use super::choose;
use super::choose::Filters;
use super::output::{Cell, Column, GREEN, RED, Table, count, span};
use super::payload;
use super::{Exit, Session, output};
use clap::Args;
use convoke::connect::clock::whole_ms;
use convoke::operator::browse::{Contents, PendingPages};
use convoke::operator::inspect;
use convoke::protocol::event::{Entry, EntryId, FIRST_FAILED, LAST_ERROR, payload_of};
use convoke::protocol::keys::StreamKind;
use convoke::streams::claim::Pending;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  convoke pending                            all that is being run, or stuck
  convoke pending --stream image --idle 1m   what nobody renewed for a minute
  convoke pending --running 30s              what runs for that long
  convoke pending --min-deliveries 3         what may be killing its workers
  convoke pending --consumer w-1 --type 'image.*'
  convoke pending --where user.name=ada --format json | jq .entry

A running handler renews its entry: what is idle for long belongs to nobody any more. OWNER is the \
instance that holds the entry; DELIVERED, how often it was handed out; ERROR, why its last try \
failed. Nothing is changed: `convoke replay pending` does.";

/// Show what is delivered and not acknowledged, decoded
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Flags {
    /// Streams, or domains [default: all events and inboxes]
    #[arg(long = "stream", value_name = "STREAM")]
    streams: Vec<String>,
    #[command(flatten)]
    held: Held,
    /// Only what runs for so long, as the instances told with their last pulse (of each the 32 longest)
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, help_heading = "Which entries (all conditions must hold)")]
    running: Option<Duration>,
    #[command(flatten)]
    filters: Filters,
    /// End after this many entries
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
}

/// Which pending entries, by how they are held.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Which entries (all conditions must hold)")]
pub(super) struct Held {
    /// The consumer group [default: the setting, workers]
    #[arg(long, value_name = "GROUP")]
    pub(crate) group: Option<String>,
    /// Only what nobody renewed for so long
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) idle: Option<Duration>,
    /// Only what this instance holds
    #[arg(long, value_name = "ID")]
    pub(crate) consumer: Option<String>,
    /// Only what was handed out so often
    #[arg(long, value_name = "N")]
    pub(crate) min_deliveries: Option<u32>,
}

impl Held {
    /// Whether a pending entry fits.
    pub(super) fn fit(&self, pending: &Pending) -> bool {
        self.idle.is_none_or(|idle| pending.idle >= idle)
            && self.min_deliveries.is_none_or(|n| pending.deliveries >= n)
            && self
                .consumer
                .as_ref()
                .is_none_or(|c| *c == pending.consumer)
    }
}

/// Runs the command.
pub(super) async fn run(session: Session, flags: Flags) -> anyhow::Result<Exit> {
    let keys = session.keys().await?;
    let mut connection = session.looking().await?;
    let sight = session.sight()?;
    let kinds = [StreamKind::Events, StreamKind::Inbox];
    let streams = choose::streams(&session.within()?, &keys, &flags.streams, &kinds).await?;
    let group = flags.held.group.as_ref().unwrap_or(&session.settings.group);
    let mut owners = session.owners()?;
    let is_blind = session.within()?.is_blind(&keys);
    let runs = match flags.running.is_some() || session.output.is_json() && !is_blind {
        true => session.instances()?.metrics(false).await?.runs,
        false => Vec::new(),
    };
    let runs: HashMap<(String, EntryId), u64> = runs
        .into_iter()
        .map(|run| ((run.stream, run.entry), run.age_ms))
        .collect();
    let least = flags.running.map(whole_ms);
    let now = inspect::now(&mut connection).await?;
    let (from, to) = flags.filters.bounds(now);
    let mut waiting = Vec::new();
    for stream in streams {
        let stands = inspect::standing(&mut connection, &stream.key, group).await?;
        if stands.is_some_and(|group| group.pending > 0) {
            waiting.push(stream);
        }
    }
    let streams = waiting;
    let several = streams.len() > 1;
    let mut table = Table::new(&session.output, columns(several));
    let (mut shown, mut orphans) = (0u64, 0u64);
    let limit = flags.limit.unwrap_or(u64::MAX);
    'streams: for stream in &streams {
        let consumer = flags.held.consumer.as_deref();
        let mut pages = PendingPages::new(&stream.key, group, consumer, from, to);
        let mut contents = Contents::new(&sight);
        while let Some(page) = pages.next(&mut connection).await? {
            let runs_for = |id: EntryId| runs.get(&(stream.key.clone(), id)).copied();
            let runs_long = |id: EntryId| {
                least.is_none_or(|least| runs_for(id).is_some_and(|age| age >= least))
            };
            let fit =
                |p: &Pending| flags.held.fit(p) && flags.filters.fit_id(p.id) && runs_long(p.id);
            let page: Vec<Pending> = page.into_iter().filter(fit).collect();
            owners
                .learn(page.iter().map(|p| p.consumer.as_str()))
                .await?;
            let ids: Vec<EntryId> = page.iter().map(|pending| pending.id).collect();
            let mut at = 0;
            while at < page.len() {
                let entries = contents.read(&stream.key, &ids[at..]).await?;
                for (pending, entry) in page[at..].iter().zip(&entries) {
                    let nothing = Entry::default();
                    if !flags.filters.fit(entry.as_ref().unwrap_or(&nothing)) {
                        continue;
                    }
                    let alive = owners.lives(&pending.consumer);
                    let one = One {
                        pending,
                        entry: entry.as_ref(),
                        alive,
                        running_ms: runs_for(pending.id),
                    };
                    if session.output.is_json() {
                        session
                            .output
                            .json(&one.described(&stream.key, group, now))?;
                    } else {
                        table.row(one.row(several.then(|| choose::short(stream))))?;
                    }
                    shown += 1;
                    orphans += u64::from(alive == Some(false));
                    if shown == limit {
                        break 'streams;
                    }
                }
                at += entries.len();
            }
        }
    }
    if !session.output.is_json() && shown > 0 {
        table.finish()?;
    }
    flags.filters.complain();
    if session.output.is_json() {
        return Ok(Exit::Done);
    }
    let gone = match orphans {
        0 => String::new(),
        n => format!(", {} of an owner that is gone", output::number(n)),
    };
    output::complain_line(&format!(
        "{}{gone}",
        count(shown, "pending entry", "pending entries")
    ));
    Ok(Exit::Done)
}

fn columns(several: bool) -> Vec<Column> {
    let mut columns = vec![
        Column::new("ENTRY"),
        Column::new("TYPE").shrinks(10),
        Column::new("SUBJECT").shrinks(6).optional(),
        Column::new("OWNER").shrinks(10),
        Column::number("IDLE"),
        Column::number("RUNS").optional(),
        Column::number("DELIVERED"),
        Column::new("ERROR").shrinks(10).optional(),
        Column::new("PAYLOAD").shrinks(8),
    ];
    if several {
        columns.insert(0, Column::new("STREAM").shrinks(8));
    }
    columns
}

/// A pending entry with what is known about it.
struct One<'a> {
    pending: &'a Pending,
    /// `None`: it was deleted from its stream.
    entry: Option<&'a Entry>,
    alive: Option<bool>,
    /// How long it runs, if its instance told so.
    running_ms: Option<u64>,
}

impl One<'_> {
    fn text(&self, name: &str) -> Option<String> {
        let value = self.entry?.get(name)?;
        Some(String::from_utf8_lossy(value).into_owned())
    }

    fn row(&self, stream: Option<String>) -> Vec<Cell> {
        let owner = &self.pending.consumer;
        let owner = match self.alive {
            Some(true) => Cell::styled(owner.clone(), GREEN),
            Some(false) => Cell::styled(format!("{owner} (gone)"), RED),
            None => owner.clone().into(),
        };
        let payload = match self.entry {
            Some(entry) => match payload::too_large(entry) {
                Some(said) => Cell::styled(said, RED),
                None => payload::preview(payload_of(entry).as_deref()).into(),
            },
            None => Cell::styled("deleted from its stream: the event is lost", RED),
        };
        let mut row = vec![
            self.pending.id.to_string().into(),
            self.text("type").unwrap_or_default().into(),
            self.text("subject").unwrap_or_default().into(),
            owner,
            span(whole_ms(self.pending.idle)).into(),
            self.running_ms.map_or_else(String::new, span).into(),
            self.pending.deliveries.to_string().into(),
            self.text(LAST_ERROR).unwrap_or_default().into(),
            payload,
        ];
        if let Some(stream) = stream {
            row.insert(0, stream.into());
        }
        row
    }

    fn described(&self, stream: &str, group: &str, now: u64) -> Value {
        let number = |name| self.text(name).and_then(|text| text.parse::<u64>().ok());
        let mut object = json!({
            "stream": stream,
            "group": group,
            "entry": self.pending.id.to_string(),
            "type": self.text("type"),
            // Without an id of its own the entry's serves.
            "id": self.text("id").unwrap_or_else(|| self.pending.id.to_string()),
            "subject": self.text("subject"),
            "source": self.text("source"),
            "owner": self.pending.consumer,
            "owner_alive": self.alive,
            "idle_ms": whole_ms(self.pending.idle),
            "running_ms": self.running_ms,
            "age_ms": now.saturating_sub(self.pending.id.ms),
            "deliveries": self.pending.deliveries,
            "attempt": number("attempt").unwrap_or(1),
            "replays": number("replays").unwrap_or(0),
            "last_error": self.text(LAST_ERROR),
            "first_failed_at": number(FIRST_FAILED),
            "deleted": self.entry.is_none(),
        });
        payload::describe_entry(self.entry.unwrap_or(&Entry::default()), &mut object);
        object
    }
}
