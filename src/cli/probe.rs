//! `convoke probe`: asks the worker on this machine how it is.

use super::{Exit, Misuse, Session};
use anyhow::{Context, anyhow};
use clap::{Args, ValueEnum};
use convoke::worker::vital::{Signs, probe};
use std::path::PathBuf;
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  convoke probe live                    is the process all right?
  convoke probe ready --id w-1          does it take work?
  exec: {command: [convoke, probe, ready]}   as Kubernetes asks

It asks the worker's own process, by a socket in --runtime-dir, and no server: while Redis is away a worker \
is live and not ready.

  started   it has joined the bus once
  live      no lane stands still for --stands-still; whoever restarts it by this restarts what hangs
  ready     started, live, not draining, and the server answered within two thirds of heartbeat_ttl

Exit code 0: yes; 1: no, or no worker answers. What it waits for stands on stderr.";

/// Ask the worker on this machine whether it lives, or takes work
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Flags {
    /// What to ask
    #[arg(value_name = "live|ready|started")]
    ask: Ask,
    /// Which instance, where this user runs several on this machine
    #[arg(long, value_name = "NAME")]
    id: Option<String>,
    /// The directory of its socket [default: $RUNTIME_DIRECTORY, $XDG_RUNTIME_DIR/convoke, or /tmp/convoke-UID]
    #[arg(long, value_name = "DIR")]
    runtime_dir: Option<PathBuf>,
    /// How long to wait for the answer
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "1s")]
    timeout: Duration,
    /// How long a lane may stand still because a handler holds its thread
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "1m")]
    stands_still: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Ask {
    Live,
    Ready,
    Started,
}

/// Runs the command.
pub(super) fn run(session: &Session, flags: &Flags) -> anyhow::Result<Exit> {
    let signs = asked(session, flags)?;
    let answer = match flags.ask {
        Ask::Live => signs.live(flags.stands_still),
        Ask::Ready => signs.ready(flags.stands_still),
        Ask::Started => signs.started(),
    };
    if session.output.is_json() {
        session.output.json(&serde_json::to_value(&signs)?)?;
    } else {
        session.output.line(&format!("{}: {signs}", signs.id))?;
    }
    answer.map_err(|why| anyhow!("{}: {why}", signs.id))?;
    Ok(Exit::Done)
}

fn asked(session: &Session, flags: &Flags) -> anyhow::Result<Signs> {
    let set = &session.settings.runtime_dir;
    let directory = match &flags.runtime_dir {
        Some(directory) => directory.clone(),
        None if set.is_empty() => probe::directory(),
        None => PathBuf::from(set),
    };
    let id = flags.id.as_deref().or(Some(&session.settings.id));
    let socket = match id.filter(|id| !id.is_empty()) {
        Some(id) => probe::socket(&directory, id),
        None => {
            let mut sockets = probe::sockets(&directory)
                .with_context(|| format!("{} cannot be read", directory.display()))?;
            // What a process that was killed left behind.
            if sockets.len() > 1 {
                sockets.retain(|socket| probe::ask(socket, flags.timeout).is_ok());
            }
            match &sockets[..] {
                [] => anyhow::bail!(
                    "no worker has a socket in {}: is one running as this user, with the same --runtime-dir?",
                    directory.display()
                ),
                [one] => one.clone(),
                several => {
                    let names = several.iter().filter_map(|path| path.file_stem());
                    let names: Vec<_> = names.map(|name| name.to_string_lossy()).collect();
                    return Err(Misuse::error(format_args!(
                        "several workers run here: name one by --id: {}",
                        names.join(", ")
                    )));
                }
            }
        }
    };
    probe::ask(&socket, flags.timeout)
        .with_context(|| format!("no worker answers at {}", socket.display()))
}
