//! What `convoke replay` is given.

use crate::cli::choose::Filters;
use crate::cli::dead::Which;
use crate::cli::pending::Held;
use crate::cli::{Misuse, input};
use clap::{Args, Subcommand};
use convoke::operator::replay::mending::Mend;
use convoke::operator::replay::repair::MAX_MENDS;
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  convoke replay dead image --dry-run                  what would happen
  convoke replay dead image --reason unavailable       asks, then does it
  convoke replay dead --id 1700000000000-0 --edit      mend its payload first
  convoke replay dead --edit-with 'jq -c .v=2'         mend them all
  convoke replay pending image --idle 10m --yes        nobody works on these
  convoke replay range image --since 2h --until 1h     finished ones, once more
  convoke replay dead image --set v=2 --detach         the workers do it
  convoke replay follow                                how far they are

Each dead letter or pending entry leaves where it was in the step that publishes it again, so a \
replay can be interrupted at any moment and run again: nothing is lost, nothing is doubled.";

/// Publish dead letters, pending entries or a part of a stream again
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(in crate::cli) struct Flags {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Subcommand)]
pub(super) enum Command {
    Dead(Dead),
    Pending(Pending),
    Range(Range),
    Follow(Follow),
    List(List),
    Cancel(Cancel),
}

/// Show how far a replay is, of the workers or of a terminal with a program, until it has ended
#[derive(Args)]
#[command(after_help = "\
Examples:
  convoke replay follow                        the one that was begun last
  convoke replay follow 0199-order-v2 --format json

From any terminal; Ctrl-C ends only the looking. Where a terminal does it (--edit-with) and is gone, \
says how far it was and how to go on. Exits 1 then, if entries were left alone, or it was cancelled.")]
pub(super) struct Follow {
    /// Its name [default: the one that was begun last]
    #[arg(value_name = "NAME", value_parser = run_name)]
    pub(super) name: Option<String>,
}

/// List the replays that workers do, or terminals with a program
#[derive(Args)]
#[command(after_help = "\
Examples:
  convoke replay list
  convoke history --type repair.changed        also those of long ago

The last 100. How far one was is known for 30 days after its last step.")]
pub(super) struct List {}

/// End a replay of the workers, or of a terminal with a program: what is not replayed stays
#[derive(Args)]
#[command(after_help = "\
Examples:
  convoke replay cancel 0199-order-v2

What was replayed stays so. The same command as before replays the rest, under another name; \
not a range with --force, which would copy all of it again.")]
pub(super) struct Cancel {
    /// Its name
    #[arg(value_name = "NAME", value_parser = run_name)]
    pub(super) name: String,
    /// How long to wait for the answer
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "5s")]
    pub(super) timeout: Duration,
}

/// Publish dead letters again
#[derive(Args)]
#[command(after_help = "\
Examples:
  convoke replay dead --dry-run
  convoke replay dead image --type image.resize --reason unavailable --rate 100
  convoke replay dead image --where user.name=ada --yes
  convoke replay dead --id 1700000000000-0 --edit
  convoke replay dead order --edit-with 'jq -c .version=2' --dry-run
  convoke replay dead order --type order.craete --to-type order.create
  convoke replay dead order --set version=2 --rename customer.id=customer_id
  convoke replay dead order --set version=2 --detach --follow --yes

--edit-with runs the command once for each, with CONVOKE_EVENT_ID and CONVOKE_EVENT_TYPE in its environment; where it \
fails, or prints no JSON, the event is left where it is. An event that was mended says by whom (`edited`). An event goes back to the stream that it stood on, keeps its id and its fields, and begins with its \
first attempt. Whoever asked for it was answered when it died: it gets no second reply, and a \
deadline that has passed is taken off. One that was replayed 3 times already is left alone, unless \
--force; its field `replays` counts. Other consumer groups of the stream get it again as well.

With --detach the workers do it, in steps: this terminal may go, a worker may die, and `convoke replay \
follow` shows from any terminal how far they are. --edit and --edit-with stay with the terminal: what comes over \
the bus is never run as a command. A replay by --edit-with is followed and cancelled from any terminal all the same; \
where it was interrupted, or its terminal is gone, the same command with its --run goes on.")]
pub(super) struct Dead {
    #[command(flatten)]
    pub(super) which: Which,
    #[command(flatten)]
    pub(super) act: Act,
    #[command(flatten)]
    pub(super) over: HandOver,
}

/// Handing it to the workers.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "By the workers")]
pub(super) struct HandOver {
    /// Have the workers do it, and end
    #[arg(long, conflicts_with_all = ["edit", "edit_with"])]
    pub(super) detach: bool,
    /// Show how far they are, until they are done
    #[arg(long, requires = "detach")]
    pub(super) follow: bool,
    /// Why, for whoever looks at it
    #[arg(long, value_name = "TEXT", requires = "detach", default_value = "")]
    pub(super) why: String,
    /// How long to wait until a worker has taken it
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "5s")]
    pub(super) timeout: Duration,
}

/// Publish pending entries again, and take them from whoever holds them
#[derive(Args)]
#[command(after_help = "\
Examples:
  convoke replay pending --dry-run
  convoke replay pending image --consumer w-1
  convoke replay pending image --idle 10m --min-deliveries 2 --yes
  convoke replay pending image --set v=2 --detach --yes    the workers do it

Only what an instance holds that was lost or has unregistered, and what nobody renewed for --idle \
(default: the setting claim_idle): a running handler renews its entry. --force takes any. The old \
delivery is acknowledged in the same step, and its owner is fenced: whatever it still commits of it \
is discarded. The copy stands at the end of the stream and was delivered to nobody yet. With --detach the workers \
do it, as `convoke replay dead --help` says; what becomes pending after that is not met.")]
pub(super) struct Pending {
    /// Streams of events, or domains [default: all]
    #[arg(value_name = "STREAM")]
    pub(super) streams: Vec<String>,
    #[command(flatten)]
    pub(super) held: Held,
    #[command(flatten)]
    pub(super) filters: Filters,
    #[command(flatten)]
    pub(super) act: Act,
    #[command(flatten)]
    pub(super) over: HandOver,
}

/// Publish copies of events that the group is done with
#[derive(Args)]
#[command(after_help = "\
Examples:
  convoke replay range image --since 2026-11-24T03:00Z --until 2h --dry-run
  convoke replay range image --since 1h --type image.resize --limit 10
  convoke replay range image --id 1700000000000-0,1700000000000-1 --yes
  convoke replay range image --since 2h --detach --follow  the workers do it

Only entries that are still in the stream (stream_history), and that the group has acknowledged: \
the others run anyway. Of an event that was retried or replayed, only its first entry. The originals \
stay, and whoever asked for them gets no second reply. A marker for each entry is kept for 24h, so a run that \
was interrupted can be repeated, and copies nothing twice; --force copies again what an earlier run \
copied. A forced run that was interrupted, not cancelled, is continued with the --run that it printed. With --detach the workers \
do it, as `convoke replay dead --help` says: each is copied once, whoever dies.")]
pub(super) struct Range {
    /// Streams of events, or domains
    #[arg(value_name = "STREAM", required = true)]
    pub(super) streams: Vec<String>,
    /// The consumer group that must be done with them [default: the setting, workers]
    #[arg(long, value_name = "GROUP")]
    pub(super) group: Option<String>,
    #[command(flatten)]
    pub(super) filters: Filters,
    #[command(flatten)]
    pub(super) act: Act,
    #[command(flatten)]
    pub(super) over: HandOver,
}

/// How to go about it.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "How")]
pub(super) struct Act {
    /// Only show what would happen
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Do not ask
    #[arg(long, short)]
    pub(super) yes: bool,
    /// At most this many a second
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) rate: Option<u32>,
    /// End after this many
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) limit: Option<u64>,
    /// Also what is left alone for its own good: replayed too often, malformed, held by a live owner
    #[arg(long)]
    pub(super) force: bool,
    /// Mend the payload as JSON in $EDITOR before; for a single entry
    #[arg(long, conflicts_with = "dry_run")]
    pub(super) edit: bool,
    /// Mend each payload by this command before: JSON on its standard input, what it is to be on its standard output
    #[arg(long, value_name = "CMD", conflicts_with = "edit")]
    pub(super) edit_with: Option<String>,
    /// Move what stands at one path of the payload to another (user.name, items.0), before --unset and --set
    #[arg(long, value_name = "PATH=PATH", value_parser = rename)]
    pub(super) rename: Vec<Mend>,
    /// Take this path out of the payload, before --set
    #[arg(long, value_name = "PATH", value_parser = unset)]
    pub(super) unset: Vec<Mend>,
    /// Set a path of the payload to this: JSON, or a text as it is
    #[arg(long, value_name = "PATH=VALUE", value_parser = set)]
    pub(super) set: Vec<Mend>,
    /// Publish them as events of this type
    #[arg(long, value_name = "TYPE", value_parser = input::event_type)]
    pub(super) to_type: Option<String>,
    /// The name under which the facts on the broadcast report it [default: one made up]
    #[arg(long, value_name = "NAME", value_parser = run_name)]
    pub(super) run: Option<String>,
}

impl Act {
    /// How payloads change, as data.
    pub(super) fn mends(&self) -> anyhow::Result<Vec<Mend>> {
        let mends = [&self.rename[..], &self.unset, &self.set].concat();
        match mends.len() > MAX_MENDS {
            true => Err(Misuse::error(format_args!(
                "--set, --unset and --rename: {} are over the limit of {MAX_MENDS}",
                mends.len()
            ))),
            false => Ok(mends),
        }
    }
}

fn checked(mend: Mend) -> Result<Mend, String> {
    mend.check().map(|()| mend)
}

fn rename(text: &str) -> Result<Mend, String> {
    let (from, to) = text.split_once('=').ok_or("not PATH=PATH")?;
    let (from, to) = (from.to_owned(), to.to_owned());
    checked(Mend::Rename { from, to })
}

fn unset(text: &str) -> Result<Mend, String> {
    let path = text.to_owned();
    checked(Mend::Unset { path })
}

fn set(text: &str) -> Result<Mend, String> {
    let (path, value) = text.split_once('=').ok_or("not PATH=VALUE")?;
    let value = match input::encode(value.as_bytes()) {
        Ok(data) => rmpv::decode::read_value(&mut &data[..]).map_err(|error| error.to_string())?,
        // What begins like JSON was meant to be that.
        Err(why) if value.starts_with(['{', '[', '"']) => return Err(why),
        Err(_) => value.into(),
    };
    let path = path.to_owned();
    checked(Mend::Set { path, value })
}

fn run_name(text: &str) -> Result<String, convoke::protocol::keys::NameError> {
    convoke::protocol::keys::check_name("run", text).map(|()| text.to_owned())
}
