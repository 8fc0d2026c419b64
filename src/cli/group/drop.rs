//! `convoke group drop`: a group that nobody needs any more.

use super::{Seen, list, look};
use crate::cli::confirm::confirm;
use crate::cli::output::{self, count, number, printable};
use crate::cli::{Exit, Misuse, Session};
use clap::Args;
use convoke::operator::inspect;
use redis::aio::ConnectionLike;
use serde_json::json;

/// Drop a consumer group: it reads no more, and holds no entry back
#[derive(Args)]
#[command(after_help = "\
Examples:
  convoke group drop reports --dry-run
  convoke group drop reports
  convoke group drop reports image --yes

Says first what the group has not settled. Refused while somebody reads for it, and up to a minute after: a worker makes its group again, \
and all that is still in the stream runs again. The entries stay in their streams until they are trimmed, and other groups \
are not touched; what was pending can be replayed as long as it is there (replay range). Who dropped it is told on the \
broadcast (operator.group_dropped).")]
pub(super) struct Flags {
    /// The group
    #[arg(value_name = "GROUP")]
    group: String,
    /// Streams, or domains [default: all that have it]
    #[arg(value_name = "STREAM")]
    streams: Vec<String>,
    /// Only show what would be lost
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

pub(super) async fn run(
    session: &Session,
    connection: &mut impl ConnectionLike,
    flags: &Flags,
) -> anyhow::Result<Exit> {
    let now = inspect::now(connection).await?;
    let seen = look(session, connection, &flags.streams, Some(&flags.group)).await?;
    let group = printable(&flags.group).into_owned();
    if seen.is_empty() {
        anyhow::bail!(
            "{group}: no stream has a group of that name; `convoke group list` shows them"
        );
    }
    if flags.dry_run || !session.output.is_json() {
        list::show(session, &seen, now)?;
    }
    refuse_under_readers(&group, &seen)?;
    let pending: u64 = seen.iter().map(|one| one.group.pending).sum();
    let lost: Option<u64> = seen.iter().map(Seen::waiting).sum();
    let lost = lost.map_or_else(
        || format!("{} pending and an unknown number unread", number(pending)),
        |all| {
            format!(
                "{} pending, {} unread",
                number(pending),
                number(all - pending)
            )
        },
    );
    let streams = count(seen.len() as u64, "stream", "streams");
    if flags.dry_run {
        if !session.output.is_json() {
            output::complain_line(&format!("{group} would be dropped from {streams}: {lost}"));
        }
        return Ok(Exit::Done);
    }
    let again = match flags.group == session.settings.group {
        true => {
            " The next worker of this group makes it again, and runs all that is in its streams."
        }
        false => "",
    };
    let question =
        format!("Drop the group {group} from {streams}? What it did not settle: {lost}.{again}");
    if !confirm(&question, flags.yes)? {
        output::complain_line("nothing was dropped");
        return Ok(Exit::Failed);
    }
    // Whoever came while it was asked would make the group again.
    let seen = look(session, connection, &flags.streams, Some(&flags.group)).await?;
    refuse_under_readers(&group, &seen)?;
    let operator = session.operator(None)?;
    let mut dropped = 0;
    for one in &seen {
        let key = &one.stream.name.key;
        let done = operator.drop_group(connection, key, &flags.group).await?;
        dropped += u64::from(done.is_some());
    }
    match session.output.is_json() {
        true => session
            .output
            .json(&json!({ "dropped": dropped, "run": operator.run() }))?,
        false => session.output.line(&format!(
            "dropped {group} from {}",
            count(dropped, "stream", "streams")
        ))?,
    }
    Ok(Exit::Done)
}

fn refuse_under_readers(group: &str, seen: &[Seen]) -> anyhow::Result<()> {
    let readers = seen.iter().flat_map(|one| &one.readers);
    let Some(reader) = readers.min() else {
        return Ok(());
    };
    let reader = printable(reader);
    Err(Misuse::error(format_args!(
        "{group}: {reader} reads for it, and would make it again at the beginning of its streams; stop it, and wait a minute"
    )))
}
