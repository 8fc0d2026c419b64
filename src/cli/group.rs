//! `convoke group`: who reads which stream, and what of it nobody needs any more.

mod drop;
mod list;
mod reset;

use super::choose;
use super::owners::Owners;
use super::{Exit, Session};
use clap::{Args, Subcommand};
use convoke::operator::inspect::{self, Group, Stream};
use convoke::protocol::keys::{StreamKind, StreamName};
use redis::aio::ConnectionLike;

const EXAMPLES: &str = "\
Examples:
  convoke group list                              who reads what, and how far
  convoke group drop reports --dry-run            what would be lost
  convoke group drop reports image
  convoke group reset audit image --to 2026-11-24T03:00Z --dry-run";

/// Show consumer groups; drop them, or move them to another place of their stream
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Flags {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    List(list::Flags),
    Drop(drop::Flags),
    Reset(reset::Flags),
}

/// Streams that may have groups. An inbox is its instance's own.
const KINDS: [StreamKind; 4] = [
    StreamKind::Events,
    StreamKind::Dead,
    StreamKind::Results,
    StreamKind::Broadcast,
];

/// Whoever asked for something within this long, in ms, reads for a group. One that is full asks for nothing, so an
/// instance that lives is waited for longer: by then it reads for another group.
const ASKED_WITHIN_MS: (u64, u64) = (60_000, 600_000);

/// A group of a stream, with those of its consumers that read for it.
struct Seen {
    stream: Stream,
    group: Group,
    readers: Vec<String>,
}

impl Seen {
    /// What the group has not settled yet.
    fn waiting(&self) -> Option<u64> {
        Some(self.group.pending + self.group.lag?)
    }
}

/// The groups of these streams, sorted by name; all, or those of one name.
async fn look(
    session: &Session,
    connection: &mut impl ConnectionLike,
    streams: &[String],
    named: Option<&str>,
) -> anyhow::Result<Vec<Seen>> {
    let keys = session.keys().await?;
    let streams = choose::streams(&session.within()?, &keys, streams, &KINDS).await?;
    let mut owners = session.owners()?;
    let mut seen = Vec::new();
    for name in &streams {
        seen.extend(groups_of(connection, &mut owners, name, named).await?);
    }
    seen.sort_by(|a, b| {
        let key = |seen: &Seen| (seen.group.name.clone(), seen.stream.name.clone());
        key(a).cmp(&key(b))
    });
    Ok(seen)
}

async fn groups_of(
    connection: &mut impl ConnectionLike,
    owners: &mut Owners,
    name: &StreamName,
    named: Option<&str>,
) -> anyhow::Result<Vec<Seen>> {
    let mut seen = Vec::new();
    let Some(mut stream) = inspect::stream(connection, name).await? else {
        return Ok(seen);
    };
    for group in std::mem::take(&mut stream.groups) {
        if named.is_some_and(|named| named != group.name) {
            continue;
        }
        let consumers = inspect::consumers(connection, &name.key, &group.name).await?;
        owners
            .learn(consumers.iter().map(|one| one.name.as_str()))
            .await?;
        let (any, alive) = ASKED_WITHIN_MS;
        let reads = consumers.into_iter().filter(|one| {
            one.idle_ms < any || one.idle_ms < alive && owners.lives(&one.name) != Some(false)
        });
        let readers = reads.map(|one| one.name).collect();
        seen.push(Seen {
            stream: stream.clone(),
            group,
            readers,
        });
    }
    Ok(seen)
}

/// Runs the command.
pub(super) async fn run(session: Session, flags: Flags) -> anyhow::Result<Exit> {
    let mut connection = session.looking().await?;
    match flags.command {
        Command::List(flags) => list::run(&session, &mut connection, &flags).await,
        Command::Drop(flags) => drop::run(&session, &mut connection, &flags).await,
        Command::Reset(flags) => reset::run(&session, &mut connection, &flags).await,
    }
}
