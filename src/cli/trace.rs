//! `convoke trace`: what became of an event, of all about a subject, or of all from a source.

mod gather;
mod step;

use super::choose::{Moment, moment};
use super::history;
use super::output::{self, count, printable};
use super::settings::DatabaseFlags;
use super::{Exit, Misuse, Session};
use clap::Args;
use convoke::ledger::history::Filter;
use convoke::operator::inspect;
use convoke::protocol::event::{Entry, EntryId};
use gather::Gathering;
use std::collections::{BTreeMap, BTreeSet};
use step::{Deed, Step};

const EXAMPLES: &str = "\
Examples:
  convoke trace order-4711                    one event, by its id or its entry
  convoke trace --subject shop-7 --since 1h   all about a subject
  convoke trace --source checkout --in image --since 10m --format json
  convoke trace order-4711 --ledger           also what was trimmed from Redis

Each step in the order of time: published, delivered and held by whom, tried again and why, settled, answered, dead, \
changed by whom; of one that was replayed, how often (its id before that leads to who did it). What a stream has trimmed is not in Redis any more (stream_history); of an event of which \
only its answer or its death is left, that is shown. Nothing is changed.";

/// Events that are followed at the most.
const EVENTS: u64 = 1000;

/// Show what became of an event, step by step
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Flags {
    /// The event's id, or its entry's
    #[arg(value_name = "ID")]
    id: Option<String>,
    /// All events about it
    #[arg(long, value_name = "KEY")]
    subject: Option<String>,
    /// All events that it published
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// Only in these streams of events, or domains
    #[arg(long = "in", value_name = "STREAM")]
    streams: Vec<String>,
    /// Only what was published from then on: 10m (ago), a date such as 2026-11-24T03:00Z, or an entry id
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: Option<Moment>,
    /// Follow this many events at the most, the first ones
    #[arg(long, value_name = "N", default_value_t = EVENTS, value_parser = clap::value_parser!(u64).range(1..=EVENTS))]
    limit: u64,
    /// Ask the ledger as well; for a single event
    #[arg(long, requires = "id")]
    ledger: bool,
    #[command(flatten)]
    pub(crate) database: DatabaseFlags,
}

impl Flags {
    /// Whether an event with those fields is meant; `entry` is what serves as the id of one without.
    fn fit(&self, event: &Entry, entry: &str) -> bool {
        let is = |name: &str, wanted: &str| event.get(name) == Some(wanted.as_bytes());
        let by_id = |id: &str| is("id", id) || entry == id;
        self.id.as_deref().is_none_or(by_id)
            && self.subject.as_deref().is_none_or(|key| is("subject", key))
            && self.source.as_deref().is_none_or(|name| is("source", name))
    }

    /// The entry that is named, if it is one.
    fn entry(&self) -> Option<EntryId> {
        self.id
            .as_deref()
            .filter(|id| id.contains('-'))?
            .parse()
            .ok()
    }
}

/// Runs the command.
pub(super) async fn run(session: Session, flags: Flags) -> anyhow::Result<Exit> {
    if flags.id.is_none() && flags.subject.is_none() && flags.source.is_none() {
        return Err(Misuse::error("say which: ID, --subject or --source"));
    }
    let mut connection = session.connector()?.pooled().await?;
    let now = inspect::now(&mut connection).await?;
    let mut gathering = Gathering::begin(&session, &flags, connection, now)?;
    gathering.events().await?;
    gathering.delayed().await?;
    gathering.dead().await?;
    gathering.answers().await?;
    gathering.deeds_of_operators().await?;
    let cut = gathering.is_cut();
    let mut steps = gathering.finish();
    if flags.ledger {
        let told: BTreeSet<_> = steps.iter().map(Step::place).collect();
        let mut kept = ledger(&session, &flags).await?;
        kept.retain(|step| !told.contains(&step.place()));
        steps.extend(kept);
    }
    if steps.is_empty() {
        let named = flags.id.as_deref().or(flags.subject.as_deref());
        let named = printable(named.or(flags.source.as_deref()).unwrap_or_default()).into_owned();
        let hint = match flags.id.is_some() && !flags.ledger {
            true => "; --ledger asks the ledger as well",
            false => "",
        };
        anyhow::bail!("{named}: nothing is known of it{hint}");
    }
    steps.sort_by_key(|step| (step.at, step.deed));
    let mut events: BTreeMap<String, Vec<Step>> = BTreeMap::new();
    let mut order = Vec::new();
    for step in steps {
        if session.output.is_json() {
            session.output.json(&step.described())?;
            continue;
        }
        let of = events.entry(step.event.clone()).or_default();
        if of.is_empty() {
            order.push(step.event.clone());
        }
        of.push(step);
    }
    for event in &order {
        tell(&session, event, &events[event])?;
    }
    if cut {
        output::complain_line(&format!(
            "there are more than {}: narrow it by --since, --in",
            count(flags.limit, "event", "events")
        ));
    }
    Ok(Exit::Done)
}

/// The story of one event, for people.
fn tell(session: &Session, event: &str, steps: &[Step]) -> anyhow::Result<()> {
    let output = &session.output;
    let kind = steps.iter().find_map(|step| step.kind.clone());
    let title = format!("{event} {}", kind.unwrap_or_default());
    output.line(&output.bold(&printable(title.trim_end())))?;
    for step in steps {
        let place = match step.entry {
            Some(entry) => format!("{} {entry}", step.stream),
            None => step.stream.clone(),
        };
        let said = printable(&step.said).into_owned();
        let said = match step.deed {
            Deed::Died => output.red(&said),
            _ => said,
        };
        let time = output.faint(&output::date(step.at));
        let place = output.faint(&printable(&place));
        output.line(&format!("  {time}  {said}  {place}"))?;
    }
    Ok(())
}

/// What the ledger holds about one event: its deaths.
async fn ledger(session: &Session, flags: &Flags) -> anyhow::Result<Vec<Step>> {
    let database = history::open(session)?;
    let filter = Filter {
        namespace: session.settings.namespace.clone(),
        event: flags.id.clone(),
        oldest_first: true,
        ..Filter::default()
    };
    let asked = database.history(&filter, 1000).await;
    let facts = asked.map_err(|error| history::named(session, error))?;
    database.close().await;
    let id = flags.id.as_deref().unwrap_or_default();
    Ok(facts.iter().map(|fact| Step::of_fact(id, fact)).collect())
}
