//! What `convoke replay` is given.

use crate::cli::choose::Filters;
use crate::cli::dead::Which;
use crate::cli::input;
use crate::cli::pending::Held;
use clap::{Args, Subcommand};

const EXAMPLES: &str = "\
Examples:
  convoke replay dead image --dry-run                  what would happen
  convoke replay dead image --reason unavailable       asks, then does it
  convoke replay dead --id 1700000000000-0 --edit      mend its payload first
  convoke replay dead --edit-with 'jq -c .v=2'         mend them all
  convoke replay pending image --idle 10m --yes        nobody works on these
  convoke replay range image --since 2h --until 1h     finished ones, once more

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

--edit-with runs the command once for each, with CONVOKE_EVENT_ID and CONVOKE_EVENT_TYPE in its environment; where it \
fails, or prints no JSON, the event is left where it is. An event that was mended says by whom (`edited`). An event goes back to the stream that it stood on, keeps its id and its fields, and begins with its \
first attempt. Whoever asked for it was answered when it died: it gets no second reply, and a \
deadline that has passed is taken off. One that was replayed 3 times already is left alone, unless \
--force; its field `replays` counts. Other consumer groups of the stream get it again as well.")]
pub(super) struct Dead {
    #[command(flatten)]
    pub(super) which: Which,
    #[command(flatten)]
    pub(super) act: Act,
}

/// Publish pending entries again, and take them from whoever holds them
#[derive(Args)]
#[command(after_help = "\
Examples:
  convoke replay pending --dry-run
  convoke replay pending image --consumer w-1
  convoke replay pending image --idle 10m --min-deliveries 2 --yes

Only what an instance holds that was lost or has unregistered, and what nobody renewed for --idle \
(default: the setting claim_idle): a running handler renews its entry. --force takes any. The old \
delivery is acknowledged in the same step, and its owner is fenced: whatever it still commits of it \
is discarded. The copy stands at the end of the stream and was delivered to nobody yet.")]
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
}

/// Publish copies of events that the group is done with
#[derive(Args)]
#[command(after_help = "\
Examples:
  convoke replay range image --since 2026-11-24T03:00Z --until 2h --dry-run
  convoke replay range image --since 1h --type image.resize --limit 10
  convoke replay range image --id 1700000000000-0,1700000000000-1 --yes

Only entries that are still in the stream (stream_history), and that the group has acknowledged: \
the others run anyway. Of an event that was retried or replayed, only its first entry. The originals \
stay, and whoever asked for them gets no second reply. A marker for each entry is kept for 24h, so a run that \
was interrupted can be repeated, and copies nothing twice; --force copies again what an earlier run \
copied. A forced run that was interrupted is continued with the --run that it printed.")]
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
    /// Publish them as events of this type
    #[arg(long, value_name = "TYPE", value_parser = input::event_type)]
    pub(super) to_type: Option<String>,
    /// The name under which the facts on the broadcast report it [default: one made up]
    #[arg(long, value_name = "NAME", value_parser = run_name)]
    pub(super) run: Option<String>,
}

fn run_name(text: &str) -> Result<String, convoke::protocol::keys::NameError> {
    convoke::protocol::keys::check_name("run", text).map(|()| text.to_owned())
}
