//! The command line: one file a command.

mod batch;
mod bench;
mod cancel;
mod choose;
mod completions;
mod confirm;
mod dead;
mod delayed;
mod discover;
mod docs;
mod doctor;
mod domain;
mod drain;
mod group;
mod health;
mod history;
mod input;
mod instances;
mod ledger;
mod listing;
mod man;
mod metrics;
mod output;
mod owners;
mod pattern;
mod payload;
mod pending;
mod policy;
mod probe;
mod publish;
mod replay;
mod request;
mod schedule;
mod settings;
mod state;
mod streams;
mod table;
mod tail;
mod task;
mod top;
mod trace;
mod vote;
mod within;
mod worker;

use clap::builder::styling::{AnsiColor, Styles};
use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use convoke::client::{Client, ClientOptions};
use convoke::connect::connector::{Connector, Pooled};
use convoke::connect::reach::Reach;
use convoke::coordination::instances::Instances;
use convoke::coordination::scripts;
use convoke::operator::browse::Sight;
use convoke::operator::replay::Operator;
use convoke::protocol::keys::Keys;
use convoke::settings::Settings;
use convoke::settings::sources::{self, given};
use convoke::streams::domains::Domains;
use convoke::worker::logs;
use output::Output;
use owners::Owners;
use settings::BusFlags;
use std::ffi::OsString;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::OnceCell;
use uuid::Uuid;
use within::{Missing, Within};

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default())
    .placeholder(AnsiColor::Cyan.on_default());

const EXAMPLES: &str = "\
Examples:
  convoke worker --exec 'image.resize=./resize.sh'    a command as a handler
  convoke publish image.resize --data '{\"width\":80}'  prints the entry id
  convoke request image.resize --data @job.json       prints the result
  convoke tail events:image results:image             follow streams, decoded
  convoke health && echo fine                         ask the workers
  convoke doctor; convoke streams; convoke dead list  something is wrong
  convoke history --since 7d --dead                   what went wrong last week

Every setting has one name in all its forms, and the later one wins: the default, `heartbeat_ttl` \
in the file of --config, CONVOKE_HEARTBEAT_TTL in the environment, --heartbeat-ttl. \
Durations are written 500ms, 2s, 1m. \
--redis-url redis+sentinel://10.0.0.1:26379,10.0.0.2:26379,10.0.0.3:26379/SERVICE follows the primary \
through failovers. A Redis password belongs into CONVOKE_REDIS_URL or the file, \
never into an argument, which everyone on the machine can read.

Exit codes: 0 done, 1 failed or an error reply (printed on stderr), 2 wrong usage.";

/// A message-bus worker for Redis Streams: at least once run, exactly once committed.
#[derive(Parser)]
#[command(name = "convoke", version, after_help = EXAMPLES, styles = STYLES)]
pub(crate) struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

#[derive(Args)]
#[command(next_help_heading = "Options of every command")]
struct Common {
    #[command(flatten)]
    bus: BusFlags,
    /// A TOML file of settings
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "CONVOKE_CONFIG",
        value_parser = clap::value_parser!(OsString),
        value_hint = ValueHint::FilePath
    )]
    config: Option<OsString>,
    /// Text for people or JSON lines for programs; metrics knows prometheus and openmetrics as well
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text")]
    format: Format,
    /// Times as dates, not as `3m12s ago`
    #[arg(long, global = true)]
    absolute: bool,
    /// How logs are written, on stderr
    #[arg(
        long,
        global = true,
        value_name = "FORMAT",
        default_value = "text",
        env = "CONVOKE_LOG_FORMAT"
    )]
    log_format: LogFormat,
    /// What is logged: error, warn, info, debug, trace, or a filter such as convoke::worker=debug
    /// [default: info for a worker, else warn]
    #[arg(long, global = true, value_name = "LEVEL", env = "CONVOKE_LOG")]
    log: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
    #[value(hide = true)]
    Prometheus,
    #[value(name = "openmetrics", hide = true)]
    OpenMetrics,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Subcommand)]
enum Command {
    Worker(Box<worker::Flags>),
    Publish(publish::Flags),
    Request(request::Flags),
    Tail(tail::Flags),
    Health(health::Flags),
    Probe(probe::Flags),
    State(state::Flags),
    Metrics(metrics::Flags),
    Instances(instances::Flags),
    History(history::Flags),
    Ledger(ledger::Flags),
    Pattern(pattern::Flags),
    Pause(policy::Pause),
    Resume(policy::Resume),
    Limit(policy::Limit),
    Policy(policy::Flags),
    Cancel(cancel::Flags),
    Drain(drain::Drain),
    Quiet(drain::Quiet),
    Scale(drain::Scale),
    Schedule(schedule::Flags),
    Task(task::Flags),
    Streams(streams::Flags),
    Pending(pending::Flags),
    Trace(trace::Flags),
    Dead(dead::Flags),
    Delayed(delayed::Flags),
    Group(group::Flags),
    Replay(replay::Flags),
    Top(top::Flags),
    Doctor(doctor::Flags),
    Domain(domain::Flags),
    Batch(batch::Flags),
    Discover(discover::Flags),
    Vote(vote::Flags),
    Bench(bench::Flags),
    Completions(completions::Flags),
    Docs(docs::Flags),
    Man(man::Flags),
}

/// How a command ended, as its exit code tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// 0
    Done,
    /// 1: it failed, or the reply was an error.
    Failed,
    /// 2: wrong usage.
    Misused,
}

/// Wrong usage, found after parsing.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Misuse(String);

impl Misuse {
    fn error(message: impl std::fmt::Display) -> anyhow::Error {
        Misuse(message.to_string()).into()
    }
}

/// Runs one command and prints why it failed.
pub(crate) fn run(cli: Cli) -> Exit {
    let format = cli.common.format;
    match execute(cli) {
        Ok(outcome) => outcome,
        Err(error) if is_closed_pipe(&error) => Exit::Done,
        Err(error) => {
            output::complain(format, &whole(&error));
            match error.is::<Misuse>() {
                true => Exit::Misused,
                false => Exit::Failed,
            }
        }
    }
}

/// An error and its causes, each said once: some tell their cause themselves.
fn whole(error: &anyhow::Error) -> String {
    let mut said = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !said.contains(&cause) {
            let colon = if said.is_empty() { "" } else { ": " };
            said = said + colon + &cause;
        }
    }
    said
}

fn execute(cli: Cli) -> anyhow::Result<Exit> {
    let Cli { common, command } = cli;
    let works = matches!(command, Command::Worker(_));
    let quiet = if works { "info" } else { "warn" };
    let filter = common.log.as_deref().unwrap_or(quiet);
    let form = match common.log_format {
        LogFormat::Text => logs::Form::Text,
        LogFormat::Json => logs::Form::Json,
    };
    let _logs = logs::start(filter, form, works)
        .map_err(|error| Misuse::error(format_args!("--log {filter:?}: {error}")))?;
    if works {
        logs::tell_panics();
    }
    let session = Session::new(&common, &command)?;
    let runtime = runtime()?;
    let session = match command.asks_the_bus() {
        true => runtime.block_on(session.found())?,
        false => session,
    };
    let missing = session.missing.clone();
    let outcome = ran(session, command, &runtime);
    // A part is no answer to who asked for all.
    missing.tell();
    match missing.is_any() {
        true => outcome.map(|exit| match exit {
            Exit::Done => Exit::Failed,
            exit => exit,
        }),
        false => outcome,
    }
}

fn ran(session: Session, command: Command, runtime: &Runtime) -> anyhow::Result<Exit> {
    match command {
        Command::Worker(flags) => worker::run(session, &flags),
        Command::Publish(flags) => runtime.block_on(publish::run(session, flags)),
        Command::Request(flags) => runtime.block_on(request::run(session, flags)),
        Command::Tail(flags) => runtime.block_on(tail::run(session, flags)),
        Command::Health(flags) => runtime.block_on(health::run(session, flags)),
        Command::Probe(flags) => probe::run(&session, &flags),
        Command::Metrics(flags) => runtime.block_on(metrics::run(session, flags)),
        Command::Streams(flags) => runtime.block_on(streams::run(session, flags)),
        Command::Trace(flags) => runtime.block_on(trace::run(session, flags)),
        Command::Pending(flags) => runtime.block_on(pending::run(session, flags)),
        Command::Dead(flags) => runtime.block_on(dead::run(session, flags)),
        Command::Group(flags) => runtime.block_on(group::run(session, flags)),
        Command::Delayed(flags) => runtime.block_on(delayed::run(session, flags)),
        Command::Replay(flags) => runtime.block_on(replay::run(session, flags)),
        Command::Top(flags) => runtime.block_on(top::run(session, flags)),
        Command::Doctor(flags) => runtime.block_on(doctor::run(session, flags)),
        Command::Domain(flags) => runtime.block_on(domain::run(session, flags)),
        Command::Bench(flags) => bench::run(session, &flags),
        Command::Completions(flags) => completions::run(session, &flags),
        Command::Docs(flags) => docs::run(session, &flags),
        Command::Man(flags) => man::run(session, &flags),
        Command::History(flags) => runtime.block_on(history::run(session, flags)),
        Command::Ledger(flags) => runtime.block_on(ledger::run(session, flags)),
        Command::Batch(flags) => runtime.block_on(batch::run(session, flags)),
        Command::State(flags) => runtime.block_on(state::run(session, flags)),
        Command::Instances(flags) => runtime.block_on(instances::run(session, &flags)),
        Command::Discover(flags) => runtime.block_on(discover::run(session, flags)),
        Command::Vote(flags) => runtime.block_on(vote::run(session, flags)),
        Command::Pattern(flags) => runtime.block_on(pattern::run(session, flags)),
        Command::Pause(flags) => runtime.block_on(policy::pause(session, flags)),
        Command::Resume(flags) => runtime.block_on(policy::resume(session, flags)),
        Command::Limit(flags) => runtime.block_on(policy::limit(session, flags)),
        Command::Policy(flags) => runtime.block_on(policy::run(session, flags)),
        Command::Cancel(flags) => runtime.block_on(cancel::run(session, flags)),
        Command::Drain(flags) => runtime.block_on(drain::drain(session, flags)),
        Command::Quiet(flags) => runtime.block_on(drain::quiet(session, flags)),
        Command::Scale(flags) => runtime.block_on(drain::scale(session, flags)),
        Command::Schedule(flags) => runtime.block_on(schedule::run(session, flags)),
        Command::Task(flags) => runtime.block_on(task::run(session, flags)),
    }
}

impl Command {
    /// Whether it asks the bus that the settings name: others need none, or find it themselves.
    fn asks_the_bus(&self) -> bool {
        match self {
            Command::Worker(_)
            | Command::Probe(_)
            | Command::Bench(_)
            | Command::Completions(_)
            | Command::Docs(_)
            | Command::Man(_)
            | Command::History(_) => false,
            Command::Ledger(flags) => flags.asks_the_bus(),
            _ => true,
        }
    }
}

/// Connections that a command holds at a time at the most.
const POOLED: usize = 4;

/// What a command works with.
struct Session {
    settings: Settings,
    output: Output,
    /// Whether it loads the scripts that others call: an operator's commands do.
    loads: bool,
    /// Whether it looks at many slots of a cluster, one after the other.
    looks: bool,
    /// The way to the server, for all that the command asks.
    connector: OnceLock<Connector>,
    /// Which nodes of a cluster answer, once they were asked.
    reach: Arc<OnceCell<Reach>>,
    /// What was left out since its node is away.
    missing: Missing,
}

impl Session {
    fn new(common: &Common, command: &Command) -> anyhow::Result<Self> {
        let of_metrics = match common.format {
            Format::Prometheus => Some("prometheus"),
            Format::OpenMetrics => Some("openmetrics"),
            Format::Text | Format::Json => None,
        };
        if let Some(format) = of_metrics
            && !matches!(command, Command::Metrics(_))
        {
            return Err(Misuse::error(format_args!(
                "--format {format} is for metrics only"
            )));
        }
        let own = match command {
            Command::Worker(flags) => given(&flags.settings)?,
            Command::Publish(flags) => given(&flags.settings)?,
            Command::History(flags) => given(&flags.database)?,
            Command::Trace(flags) => given(&flags.database)?,
            Command::Ledger(flags) => given(flags.database())?,
            _ => Default::default(),
        };
        let mut flags = given(&common.bus)?;
        if matches!(command, Command::Domain(flags) if flags.sets()) {
            // It has the same name, and says how many there are to be.
            flags.remove("partitions");
        }
        flags.extend(own);
        // An empty variable counts as not set, as it does for the settings.
        let file = common.config.as_deref().filter(|path| !path.is_empty());
        let settings = sources::load(file.map(Path::new), flags).map_err(Misuse::error)?;
        Ok(Self {
            settings,
            output: Output::new(common.format, common.absolute),
            loads: matches!(
                command,
                Command::Health(_)
                    | Command::Metrics(_)
                    | Command::State(_)
                    | Command::Discover(_)
                    | Command::Task(_)
                    | Command::Pattern(_)
                    | Command::Schedule(_)
                    | Command::Pause(_)
                    | Command::Resume(_)
                    | Command::Limit(_)
                    | Command::Policy(_)
                    | Command::Cancel(_)
                    | Command::Drain(_)
                    | Command::Quiet(_)
                    | Command::Scale(_)
                    | Command::Replay(_)
                    | Command::Streams(_)
                    | Command::Delayed(_)
                    | Command::Domain(_)
                    | Command::Group(_)
                    | Command::Trace(_)
            ),
            looks: matches!(
                command,
                Command::Streams(_)
                    | Command::Pending(_)
                    | Command::Dead(_)
                    | Command::Delayed(_)
                    | Command::Group(_)
                    | Command::Tail(_)
                    | Command::Top(_)
                    | Command::Trace(_)
                    | Command::Doctor(_)
                    | Command::Domain(_)
            ),
            connector: OnceLock::new(),
            reach: Arc::default(),
            missing: Missing::new(common.format),
        })
    }

    /// The same, once it is known whether its URL leads to a cluster.
    async fn found(mut self) -> anyhow::Result<Self> {
        // The command itself says in its words why nobody answers. What is connected here, it uses.
        let Ok(connector) = self.connector() else {
            return Ok(self);
        };
        if connector.is_in_doubt() {
            connector.pooled().await.ok();
        }
        if let Some(url) = connector.found_cluster()? {
            self.settings.redis_url = url;
            self.connector = OnceLock::new();
        }
        Ok(self)
    }

    fn connector(&self) -> anyhow::Result<Connector> {
        if let Some(connector) = self.connector.get() {
            return Ok(connector.clone());
        }
        let connector = Connector::of(&self.settings, POOLED)?;
        let connector = match self.loads {
            true => connector.loading(scripts::called_by_others()),
            false => connector,
        };
        let connector = match self.looks {
            true => connector.by_node(),
            false => connector,
        };
        Ok(self.connector.get_or_init(|| connector).clone())
    }

    /// What of the bus can be asked.
    fn within(&self) -> anyhow::Result<Within> {
        let (reach, missing) = (self.reach.clone(), self.missing.clone());
        Ok(Within::new(self.connector()?, reach, missing))
    }

    /// Looks at entries, of which no more is held than a worker would.
    fn sight(&self) -> anyhow::Result<Sight> {
        let limit = self.settings.limits().entry();
        Ok(Sight::new(self.connector()?, limit))
    }

    /// The key names, and what the bus says of its domains, as far as it does.
    async fn keys(&self) -> anyhow::Result<Keys> {
        let keys = self.settings.keys()?;
        let domains = Domains::new(self.connector()?, keys.clone());
        match domains.learn_all().await {
            Err(error) if error.code() == Some("NOPERM") => {
                tracing::warn!(%error, "how many partitions the domains have is not known: the setting counts");
            }
            Err(error) => {
                let within = self.within()?;
                // What has no node to tell it is as it is set, where others have something to tell.
                if within.reach().await.is_err() || !within.is_blind(&keys) {
                    return Err(error.into());
                }
            }
            Ok(_) => {}
        }
        Ok(keys)
    }

    /// A connection to look by: what is of no key is asked of a node that answers.
    async fn looking(&self) -> anyhow::Result<Pooled> {
        let connector = self.connector()?;
        match connector.pooled().await {
            Err(error) => {
                let within = self.within()?;
                match within.reach().await {
                    Ok(reach) if !reach.is_whole() => match reach.nodes().first() {
                        Some(node) => Ok(node.pooled().await?),
                        None => Err(error.into()),
                    },
                    _ => Err(error.into()),
                }
            }
            connection => Ok(connection?),
        }
    }

    /// Who lives; of nobody is that known while the node of the control plane is away.
    fn owners(&self) -> anyhow::Result<Owners> {
        let is_blind = self.within()?.is_blind(&self.settings.keys()?);
        let instances = self.instances()?;
        Ok(Owners::new((!is_blind).then_some(instances)))
    }

    fn instances(&self) -> anyhow::Result<Instances> {
        Ok(Instances::new(self.connector()?, self.settings.keys()?))
    }

    /// Who changes streams, under which name of the run.
    fn operator(&self, run: Option<&str>) -> anyhow::Result<Operator> {
        let run = run.map_or_else(|| Uuid::now_v7().to_string(), str::to_owned);
        Ok(Operator::new(self.settings.keys()?, run, who()))
    }

    fn client(&self) -> anyhow::Result<Client> {
        let options = ClientOptions::from(&self.settings);
        let client = Client::new(self.connector()?, self.settings.keys()?, options)?;
        Ok(client)
    }
}

/// The person at the keyboard, as facts name them.
fn who() -> String {
    let user = ["USER", "LOGNAME"]
        .into_iter()
        .find_map(|name| std::env::var(name).ok());
    let user = user.filter(|user| !user.is_empty()).unwrap_or_else(|| {
        let uid = std::fs::metadata("/proc/self").map(|process| process.uid());
        uid.map_or_else(|_| "unknown".into(), |uid| format!("uid-{uid}"))
    });
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let plain = |text: &str| -> String {
        let fits = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        text.chars().filter(fits).take(100).collect()
    };
    format!("{}@{}", plain(&user), plain(host.trim()))
}

/// Enough for a command that mostly waits.
fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

/// A thread per core, for a command that works.
fn threads() -> io::Result<Runtime> {
    Builder::new_multi_thread().enable_all().build()
}

/// Whoever read the output has gone, which is no failure.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<io::Error>();
    io.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
