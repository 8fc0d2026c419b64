//! `convoke group reset`: a group that goes on from another place of its stream.

use super::{Seen, look};
use crate::cli::choose::{self, Moment};
use crate::cli::confirm::confirm;
use crate::cli::output::{self, Column, Table, number, printable};
use crate::cli::{Exit, Session};
use clap::Args;
use convoke::operator::browse::{Pages, Sight};
use convoke::operator::groups::Reset;
use convoke::operator::inspect;
use convoke::protocol::event::EntryId;
use redis::aio::ConnectionLike;
use serde_json::json;

/// Entries between two places that are counted one by one.
const COUNTED: u64 = 10_000;

/// Move a consumer group to another place of its stream: entries are delivered again, or left out
#[derive(Args)]
#[command(after_help = "\
Examples:
  convoke group reset audit image --to start --dry-run
  convoke group reset audit image --to 2026-11-24T03:00Z
  convoke group reset audit image --to end --yes

Says first how many entries are delivered again, or never. A group goes back only to where nothing behind is pending: \
what somebody still holds would be run twice. An event that is delivered again runs again, also where it was answered, and once for each of its entries if it was \
retried. Until the group has caught up, the server may not know its lag. \
Who moved the group is told on the broadcast (operator.group_reset).")]
pub(super) struct Flags {
    /// The group
    #[arg(value_name = "GROUP")]
    group: String,
    /// Streams, or domains
    #[arg(value_name = "STREAM", required = true)]
    streams: Vec<String>,
    /// The place: start, end, the last entry that counts as delivered, or a time
    #[arg(long, value_name = "start|end|ENTRY|TIME", value_parser = place)]
    to: Place,
    /// Only show what would happen
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    Start,
    End,
    At(Moment),
}

fn place(text: &str) -> Result<Place, String> {
    match text {
        "start" => Ok(Place::Start),
        "end" => Ok(Place::End),
        text => choose::moment(text)
            .map(Place::At)
            .map_err(|why| format!("not start, not end, and {why}")),
    }
}

impl Place {
    /// The last entry that counts as delivered.
    fn before(self, one: &Seen, now: u64) -> EntryId {
        // Farther than the stream's end would leave out what is to come.
        let end = one.stream.last.max(one.group.delivered);
        let place = match self {
            Place::Start => EntryId::default(),
            Place::End => one.stream.last,
            Place::At(Moment::Entry(id)) => id,
            Place::At(moment) => EntryId {
                ms: moment.first(now).ms.saturating_sub(1),
                seq: u64::MAX,
            },
        };
        place.min(end)
    }
}

/// What would become of one group.
struct Plan<'a> {
    seen: &'a Seen,
    to: EntryId,
    /// Entries that are delivered again, or left out.
    count: u64,
}

impl Plan<'_> {
    fn goes_back(&self) -> bool {
        self.to < self.seen.group.delivered
    }

    fn shown(&self) -> String {
        match self.count > COUNTED {
            true => format!("over {}", number(COUNTED)),
            false => number(self.count),
        }
    }
}

pub(super) async fn run(
    session: &Session,
    connection: &mut impl ConnectionLike,
    flags: &Flags,
) -> anyhow::Result<Exit> {
    let now = inspect::now(connection).await?;
    let sight = session.sight()?;
    let seen = look(session, connection, &flags.streams, Some(&flags.group)).await?;
    let group = printable(&flags.group).into_owned();
    if seen.is_empty() {
        anyhow::bail!(
            "{group}: none of these streams has a group of that name; `convoke group list` shows them"
        );
    }
    let mut plans = Vec::new();
    for seen in &seen {
        let to = flags.to.before(seen, now);
        let count = between(&sight, seen, to).await?;
        plans.push(Plan { seen, to, count });
    }
    show(session, &plans)?;
    if flags.dry_run {
        return Ok(Exit::Done);
    }
    if !confirm(&format!("Move the group {group}?"), flags.yes)? {
        output::complain_line("nothing was moved");
        return Ok(Exit::Failed);
    }
    let operator = session.operator(None)?;
    let mut stays = false;
    for plan in &plans {
        let key = &plan.seen.stream.name.key;
        let seen = plan.seen.group.delivered;
        let done = operator
            .reset_group(connection, key, &flags.group, seen, plan.to)
            .await?;
        let why = match done {
            Some(Reset::Moved { .. }) => None,
            Some(Reset::Held { entry }) => Some(format!(
                "{entry} behind that place is pending; let it finish, or `convoke replay pending`"
            )),
            Some(Reset::WentOn { delivered }) => {
                Some(format!("it went on to {delivered} meanwhile; look again"))
            }
            Some(_) | None => Some("the group is gone".to_owned()),
        };
        stays |= why.is_some();
        match &why {
            _ if session.output.is_json() => session.output.json(&json!({
                "stream": key,
                "moved": why.is_none(),
                "why": why,
                "run": operator.run(),
            }))?,
            None => session
                .output
                .line(&format!("{key}: moved to {}", plan.to))?,
            Some(why) => output::complain_line(&format!("{key}: not moved: {why}")),
        }
    }
    Ok(match stays {
        true => Exit::Failed,
        false => Exit::Done,
    })
}

/// How many entries lie between where the group is and where it will be, up to a little more than are counted.
async fn between(sight: &Sight, seen: &Seen, to: EntryId) -> anyhow::Result<u64> {
    let (low, high) = match to < seen.group.delivered {
        true => (to, seen.group.delivered),
        false => (seen.group.delivered, to.min(seen.stream.last)),
    };
    if low >= high {
        return Ok(0);
    }
    let mut pages = Pages::new(sight, &seen.stream.name.key, low.next(), high);
    let mut count = 0;
    while count <= COUNTED {
        let page = pages.next().await?;
        if page.is_empty() {
            break;
        }
        count += page.len() as u64;
    }
    Ok(count)
}

fn show(session: &Session, plans: &[Plan<'_>]) -> anyhow::Result<()> {
    if session.output.is_json() {
        for plan in plans {
            session.output.json(&json!({
                "stream": plan.seen.stream.name.key,
                "group": plan.seen.group.name,
                "from": plan.seen.group.delivered.to_string(),
                "to": plan.to.to_string(),
                "again": plan.goes_back().then_some(plan.count),
                "left_out": (!plan.goes_back()).then_some(plan.count),
                "pending": plan.seen.group.pending,
            }))?;
        }
        return Ok(());
    }
    let columns = vec![
        Column::new("STREAM").shrinks(8),
        Column::new("FROM"),
        Column::new("TO"),
        Column::number("AGAIN"),
        Column::number("LEFT OUT"),
        Column::number("PENDING"),
    ];
    let mut table = Table::new(&session.output, columns);
    for plan in plans {
        let (again, left) = match plan.goes_back() {
            true => (plan.shown(), String::new()),
            false => (String::new(), plan.shown()),
        };
        table.row(vec![
            choose::short(&plan.seen.stream.name).into(),
            plan.seen.group.delivered.to_string().into(),
            plan.to.to_string().into(),
            again.into(),
            left.into(),
            number(plan.seen.group.pending).into(),
        ])?;
    }
    Ok(table.finish()?)
}
