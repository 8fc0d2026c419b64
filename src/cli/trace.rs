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
use convoke::ledger::outcomes::OutcomeFilter;
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
  convoke trace --subject shop-7 --since 30d --ledger

Each step in the order of time: published, delivered and held by whom, tried again and why, settled, answered, dead, \
changed by whom; of one that was replayed, how often (its id before that leads to who did it). Under a single event stand those that its \
runs published, and theirs. With --ledger also the outcomes that the setting ledger_outcomes keeps: each run, by whom, how \
long, how it ended. What a stream has trimmed is not in Redis any more (stream_history); of an event of which \
only its answer or its death is left, that is shown. Nothing is changed.";

/// Events that are followed at the most.
const EVENTS: u64 = 1000;
/// Generations of events that are followed.
const DEPTH: usize = 16;
/// Outcomes that the ledger is asked for at a time.
const OUTCOMES: u32 = 10_000;
/// Events whose runs' events are asked for at a time.
const CAUSES: usize = 1000;

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
    /// Ask the ledger as well
    #[arg(long)]
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
    let mut connection = session.looking().await?;
    let now = inspect::now(&mut connection).await?;
    let mut gathering = Gathering::begin(&session, &flags, connection, now).await?;
    gathering.events().await?;
    gathering.delayed().await?;
    gathering.parked().await?;
    gathering.dead().await?;
    gathering.answers().await?;
    gathering.deeds_of_operators().await?;
    let cut = gathering.is_cut();
    let mut steps = gathering.finish();
    if flags.ledger {
        let told: BTreeSet<_> = steps.iter().map(Step::place).collect();
        let mut kept = ledger(&session, &flags, now).await?;
        kept.retain(|step| step.deed == Deed::Ran || !told.contains(&step.place()));
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
    let mut tree = Tree::of(&order, &events);
    for event in &order {
        if tree.is_root(event) {
            tree.tell(&session, event, 0)?;
        }
    }
    // What goes in a circle has no root.
    for event in &order {
        tree.tell(&session, event, 0)?;
    }
    if cut {
        output::complain_line(&format!(
            "there are more than {}: narrow it by --since, --in",
            count(flags.limit, "event", "events")
        ));
    }
    Ok(Exit::Done)
}

/// Events, each under the one whose run published it.
struct Tree<'a> {
    events: &'a BTreeMap<String, Vec<Step>>,
    /// What the runs of an event published.
    children: BTreeMap<&'a str, Vec<&'a str>>,
    /// Events that are not told yet.
    left: BTreeSet<&'a str>,
}

impl<'a> Tree<'a> {
    fn of(order: &'a [String], events: &'a BTreeMap<String, Vec<Step>>) -> Self {
        let mut children: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for event in order {
            if let Some(cause) = cause_of(&events[event]) {
                children.entry(cause).or_default().push(event);
            }
        }
        Self {
            events,
            children,
            left: order.iter().map(String::as_str).collect(),
        }
    }

    fn is_root(&self, event: &str) -> bool {
        let cause = cause_of(&self.events[event]);
        cause.is_none_or(|cause| !self.events.contains_key(cause))
    }

    /// The story of an event, for people, then those of what its runs published.
    fn tell(&mut self, session: &Session, event: &str, depth: usize) -> anyhow::Result<()> {
        let mut waiting = vec![(event, depth)];
        while let Some((event, depth)) = waiting.pop() {
            if !self.left.remove(event) {
                continue;
            }
            tell(session, event, &self.events[event], depth)?;
            let children = self.children.get(event).into_iter().flatten().rev();
            waiting.extend(children.map(|child| (*child, depth + 1)));
        }
        Ok(())
    }
}

fn cause_of(steps: &[Step]) -> Option<&str> {
    steps.iter().find_map(|step| step.cause.as_deref())
}

/// The story of one event, for people.
fn tell(session: &Session, event: &str, steps: &[Step], depth: usize) -> anyhow::Result<()> {
    let output = &session.output;
    let kind = steps.iter().find_map(|step| step.kind.clone());
    let inset = "  ".repeat(depth.min(DEPTH));
    let title = format!("{event} {}", kind.unwrap_or_default());
    let title = output.bold(&printable(title.trim_end()));
    output.line(&format!("{inset}{title}"))?;
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
        output.line(&format!("{inset}  {time}  {said}  {place}"))?;
    }
    Ok(())
}

/// What the ledger holds about the events that are meant: the deaths of a single one, and the outcomes that are kept.
async fn ledger(session: &Session, flags: &Flags, now: u64) -> anyhow::Result<Vec<Step>> {
    let database = history::open(session)?;
    let namespace = session.settings.namespace.clone();
    let mut steps = Vec::new();
    if let Some(id) = &flags.id {
        let filter = Filter {
            namespace: namespace.clone(),
            event: Some(id.clone()),
            oldest_first: true,
            ..Filter::default()
        };
        let asked = database.history(&filter, 1000).await;
        let facts = asked.map_err(|error| history::named(session, error))?;
        steps.extend(facts.iter().map(|fact| Step::of_fact(id, fact)));
    }
    let mut filter = OutcomeFilter {
        namespace: namespace.clone(),
        event: flags.id.clone(),
        entry: flags.entry(),
        subject: flags.subject.clone(),
        source: flags.source.clone(),
        since: flags.since.map(|at| at.first(now).ms.cast_signed()),
        ..OutcomeFilter::default()
    };
    let mut known = BTreeSet::new();
    for _ in 0..=DEPTH {
        let asked = database.outcomes(&filter, OUTCOMES).await;
        let found = asked.map_err(|error| history::named(session, error))?;
        let mut causes = Vec::new();
        for outcome in &found {
            steps.push(Step::published(outcome));
            steps.push(Step::of_outcome(outcome));
            if known.insert(outcome.event.clone()) {
                causes.push(outcome.event.clone());
            }
        }
        // What else the events of a subject brought about is another story.
        if causes.is_empty() || flags.id.is_none() {
            break;
        }
        causes.truncate(CAUSES);
        filter = OutcomeFilter {
            namespace: namespace.clone(),
            causes,
            ..OutcomeFilter::default()
        };
    }
    database.close().await;
    Ok(steps)
}
