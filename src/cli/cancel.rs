//! `convoke cancel`: takes events away that wait, are delayed or run.

use super::confirm::confirm;
use super::output::{self, Cell, Column, FAINT, GREEN, RED, Table, count, printable};
use super::within::Within;
use super::{Exit, Misuse, Session, who};
use clap::Args;
use convoke::operator::inspect;
use convoke::protocol::entry::EntryId;
use convoke::protocol::keys::{Keys, StreamKind, is_control};
use convoke::streams::cancel::{Canceller, Fate, Name, Order, Standing};
use serde_json::{Value, json};
use std::collections::{BTreeSet, HashSet};

const EXAMPLES: &str = "\
Examples:
  convoke cancel order-4711 --reason 'ticket 17'
  convoke cancel @ids.txt --domain image --dry-run
  convoke cancel @ids.txt --domain image --keep --yes
  convoke cancel 1700000000000-0 --entry --domain image --yes

Whatever waits in its stream, is parked or delayed, waits for its next try, or runs is taken away in one step; whoever \
asked for it is told `cancelled` with the reason. What still runs is told to stop, the processes of its command are \
ended, and whatever it does is not committed. With --keep the events are dead letters afterwards, which can be \
replayed. Each cancellation is told on the broadcast (event.cancelled), and known for a day: the same call \
again says so.

Exits 1 if one of them is not cancelled: it had ended, or nobody knows it; and where a node of a cluster is away: \
what it has is named and left alone.";

/// Events that are named at the most.
const MOST: usize = 100_000;
/// Events that are cancelled before it is said what became of them.
const STEP: usize = 200;
/// Bytes of a file of ids at the most.
const FILE: u64 = 64 << 20;

/// Cancel events that wait, are delayed or run
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Flags {
    /// The events, by their ids; @FILE: one a line
    #[arg(value_name = "ID|@FILE", required = true)]
    ids: Vec<String>,
    /// Only in this domain: the type up to its first dot [default: wherever they are found]
    #[arg(long, value_name = "DOMAIN")]
    domain: Option<String>,
    /// The ids are those of entries, not of events
    #[arg(long, requires = "domain")]
    entry: bool,
    /// Why: whoever asked is told
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    /// Have them become dead letters
    #[arg(long)]
    keep: bool,
    /// Only show how they stand
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

/// Runs the command.
pub(super) async fn run(session: Session, flags: Flags) -> anyhow::Result<Exit> {
    let names = names(&flags)?;
    let keys = session.keys().await?;
    let within = session.within()?;
    let reach = within.reach().await?.clone();
    let domains = match &flags.domain {
        Some(domain) => {
            for partition in 0..keys.partitions(domain) {
                within.reaches(&keys.events(domain, partition)).await?;
            }
            vec![domain.clone()]
        }
        None => domains(&within, &keys).await?,
    };
    // Before anything is done with the rest.
    session.missing.tell();
    let canceller = Canceller::new(session.connector()?, keys, &session.settings).within(reach);
    let now = inspect::now(&mut session.looking().await?).await?;
    let mut open = names;
    if flags.dry_run || !flags.yes {
        let (mut shown, mut live) = (Shown::new(&session, now, true), 0);
        let mut all = true;
        for some in open.chunks(STEP) {
            for (domain, fate) in look(&canceller, &domains, some).await? {
                live += u64::from(fate.state > Standing::Finished && !fate.several);
                all &= fate.state > Standing::Finished || fate.cancelled;
                // What is done is shown behind the question.
                if flags.dry_run || !session.output.is_json() {
                    shown.add(&domain, &fate)?;
                }
            }
        }
        shown.finish()?;
        let events = count(live, "event", "events");
        if flags.dry_run {
            if !session.output.is_json() {
                output::complain_line(&format!("{events} would be cancelled"));
            }
            return Ok(Exit::Done);
        }
        if live == 0 {
            return Ok(if all { Exit::Done } else { Exit::Failed });
        }
        if !confirm(&format!("Cancel {events} for good?"), false)? {
            output::complain_line("nothing was cancelled");
            return Ok(Exit::Failed);
        }
    }
    let order = Order {
        by: who(),
        reason: flags.reason.clone(),
        keep: flags.keep,
    };
    let mut shown = Shown::new(&session, now, false);
    let (mut cancelled, mut left) = (0, 0);
    while !open.is_empty() {
        let some: Vec<Name> = open.drain(..open.len().min(STEP)).collect();
        for (domain, fate) in act(&canceller, &domains, &some, &order).await? {
            cancelled += u64::from(fate.cancelled && fate.earlier.is_none());
            left += u64::from(!fate.cancelled);
            shown.add(&domain, &fate)?;
        }
    }
    shown.finish()?;
    if !session.output.is_json() {
        let events = count(cancelled, "event", "events");
        output::complain_line(&format!("cancelled {events}"));
    }
    Ok(if left == 0 { Exit::Done } else { Exit::Failed })
}

/// The events that are named, each once.
fn names(flags: &Flags) -> anyhow::Result<Vec<Name>> {
    let mut words = Vec::new();
    for id in &flags.ids {
        match id.strip_prefix('@') {
            None => words.push(id.clone()),
            Some(path) => {
                let wrong = |error| Misuse::error(format_args!("{path}: {error}"));
                let size = std::fs::metadata(path).map_err(wrong)?.len();
                if size > FILE {
                    anyhow::bail!(
                        "{path}: {} is too much for a file of ids",
                        output::bytes(size)
                    );
                }
                let text = std::fs::read_to_string(path).map_err(wrong)?;
                let lines = text.lines().map(str::trim);
                words.extend(lines.filter(|line| !line.is_empty()).map(str::to_owned));
            }
        }
    }
    let mut seen = HashSet::new();
    words.retain(|word| seen.insert(word.clone()));
    if words.is_empty() {
        return Err(Misuse::error("no ids"));
    }
    if words.len() > MOST {
        return Err(Misuse::error(format_args!(
            "{} ids: at most {MOST} at a time",
            words.len()
        )));
    }
    let name = |word: String| match flags.entry {
        false => Ok(Name::Id(word)),
        true => match word.parse::<EntryId>() {
            Ok(entry) => Ok(Name::Entry(entry)),
            Err(error) => Err(Misuse::error(error)),
        },
    };
    words.into_iter().map(name).collect()
}

/// The domains of which something is there.
async fn domains(within: &Within, keys: &Keys) -> anyhow::Result<Vec<String>> {
    let streams = within.streams(keys).await?;
    let queues = within.queues(keys).await?;
    let streams = streams
        .into_iter()
        .chain(queues.into_iter().map(|queue| queue.stream));
    let events = streams.filter(|stream| stream.kind == StreamKind::Events);
    let domains: BTreeSet<String> = events.map(|stream| stream.part).collect();
    Ok(domains
        .into_iter()
        .filter(|domain| !is_control(domain))
        .collect())
}

/// How they stand: all that is alive of each, in any of the domains; else what is known of it.
async fn look(
    canceller: &Canceller,
    domains: &[String],
    names: &[Name],
) -> anyhow::Result<Vec<(String, Fate)>> {
    let mut all: Vec<Vec<(String, Fate)>> = vec![Vec::new(); names.len()];
    for domain in domains {
        let fates = canceller.look(domain, names, usize::MAX).await?;
        for (known, fate) in all.iter_mut().zip(fates) {
            take_in(known, domain, fate);
        }
    }
    Ok(told(all, names))
}

/// The same, once they are cancelled.
async fn act(
    canceller: &Canceller,
    domains: &[String],
    names: &[Name],
    order: &Order,
) -> anyhow::Result<Vec<(String, Fate)>> {
    let mut all: Vec<Vec<(String, Fate)>> = vec![Vec::new(); names.len()];
    for domain in domains {
        let fates = canceller.cancel(domain, names, order, usize::MAX).await?;
        for (known, fate) in all.iter_mut().zip(fates) {
            take_in(known, domain, fate);
        }
    }
    Ok(told(all, names))
}

/// Whether it is one that is cancelled by this call, or would be.
fn counts(fate: &Fate) -> bool {
    fate.state > Standing::Finished || fate.cancelled && fate.earlier.is_none()
}

/// Keeps each one that counts; without one, what is known best.
fn take_in(known: &mut Vec<(String, Fate)>, domain: &str, fate: Fate) {
    let rank = |fate: &Fate| (counts(fate), fate.state, fate.cancelled);
    match known.last().map(|(_, before)| before) {
        Some(before) if counts(before) && counts(&fate) => {}
        Some(before) if rank(before) >= rank(&fate) => return,
        _ => known.clear(),
    }
    known.push((domain.to_owned(), fate));
}

/// Without a domain nobody knows any of them.
fn told(all: Vec<Vec<(String, Fate)>>, names: &[Name]) -> Vec<(String, Fate)> {
    let all = all.into_iter().zip(names);
    all.flat_map(|(known, name)| match known.is_empty() {
        true => vec![(String::new(), Fate::of(name))],
        false => known,
    })
    .collect()
}

/// What became of them, one by one.
struct Shown<'a> {
    session: &'a Session,
    table: Table<'a>,
    now: u64,
    /// Whether nothing was done.
    looks: bool,
    rows: u64,
}

impl<'a> Shown<'a> {
    fn new(session: &'a Session, now: u64, looks: bool) -> Self {
        let columns = vec![
            Column::new("ID").shrinks(10),
            Column::new("TYPE").shrinks(10),
            Column::new("STATE"),
            Column::new("ON").shrinks(6).optional(),
            Column::new(if looks { "WOULD BE" } else { "BECAME" }).wraps(),
        ];
        Self {
            session,
            table: Table::new(&session.output, columns),
            now,
            looks,
            rows: 0,
        }
    }

    fn add(&mut self, domain: &str, fate: &Fate) -> anyhow::Result<()> {
        self.rows += 1;
        if self.session.output.is_json() {
            return Ok(self.session.output.json(&described(domain, fate))?);
        }
        let text =
            |text: &Option<String>| printable(text.as_deref().unwrap_or_default()).into_owned();
        let row: Vec<Cell> = vec![
            printable(&fate.name.to_string()).into_owned().into(),
            text(&fate.kind).into(),
            fate.state.as_str().into(),
            text(&fate.instance).into(),
            self.became(fate),
        ];
        Ok(self.table.row(row)?)
    }

    fn became(&self, fate: &Fate) -> Cell {
        if let Some(earlier) = &fate.earlier {
            let by = printable(&earlier.by);
            let mut said = format!(
                "cancelled {} by {by}",
                self.session.output.moment(earlier.at, self.now)
            );
            if !earlier.reason.is_empty() {
                said.push_str(&format!(": {}", printable(&earlier.reason)));
            }
            return Cell::styled(said, FAINT);
        }
        if fate.several {
            let said =
                "left alone: entries of several partitions are called so; give the event's own id";
            return Cell::styled(said, RED);
        }
        match (fate.cancelled, fate.state) {
            (true, _) if fate.told == Some(false) => {
                Cell::styled("cancelled; who asked could not be told", GREEN)
            }
            (true, _) => Cell::styled("cancelled", GREEN),
            (false, Standing::Finished) => Cell::styled("left: it has ended", FAINT),
            (false, Standing::Unknown) if self.session.missing.is_any() => {
                Cell::styled("left: no node that answers knows it", RED)
            }
            (false, Standing::Unknown) => Cell::styled("left: nobody knows it", RED),
            (false, _) if self.looks => "cancelled".into(),
            (false, _) => Cell::styled("left: it moves all the time; try again", RED),
        }
    }

    fn finish(self) -> anyhow::Result<()> {
        if self.rows > 0 && !self.session.output.is_json() {
            self.table.finish()?;
        }
        Ok(())
    }
}

/// What became of an event, as JSON.
fn described(domain: &str, fate: &Fate) -> Value {
    let mut object = json!({
        "name": fate.name.to_string(),
        "domain": domain,
        "state": fate.state.as_str(),
        "cancelled": fate.cancelled,
    });
    let entry = fate.entry.map(|entry| entry.to_string());
    let known = [
        ("id", json!(fate.id)),
        ("type", json!(fate.kind)),
        ("entry", json!(entry)),
        ("instance", json!(fate.instance)),
        ("told", json!(fate.told)),
        ("earlier", json!(fate.earlier)),
    ];
    for (name, value) in known.into_iter().filter(|(_, value)| !value.is_null()) {
        object[name] = value;
    }
    if fate.several {
        object["several"] = true.into();
    }
    object
}
