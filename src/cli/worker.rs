//! `convoke worker`: runs a worker with the built-in handlers and commands as handlers.

mod pipes;

use super::{Exit, Misuse, Session};
use clap::{Args, ValueHint};
use convoke::Worker;
use convoke::builtin::exec;
use convoke::protocol::keys;
use convoke::protocol::pattern::Patterned;
use convoke::worker::vital::probe;
use pipes::PipeFlags;
use serde::{Serialize, Serializer};
use std::collections::HashSet;
use std::time::Duration;

/// How long the end of the process waits for its threads.
const END: Duration = Duration::from_secs(5);

const EXAMPLES: &str = "\
Examples:
  convoke worker
  convoke worker --role worker,gpu --capacity 4 --exec 'a.b=./run.sh'
  convoke worker --pipe 'text.upper=python3 upper.py' --pipe-workers 2
  convoke worker --exec 'a.b=./run.sh' --limit a.b=2,rate:10/s,timeout:5s
  convoke worker --config convoke.toml --log-format json
  CONVOKE_REDIS_URL_FILE=/run/secrets/redis-url convoke worker --id w-1

Commands of --exec:
  A command runs once per event, by sh -c. It gets the payload as one line of JSON on its standard
  input, and CONVOKE_EVENT_ID, CONVOKE_EVENT_TYPE and CONVOKE_EVENT_ATTEMPT in its environment (no
  other CONVOKE_* variable). What it prints on standard output is the result, as one JSON value;
  nothing printed is null. The end of what it writes on standard error is the message of a failure;
  of a success it is logged.

  exit 0            success; output that is not one JSON value is a permanent failure
  exit 64 or 65     internal, permanent
  exit 75           unavailable, tried again
  a signal, 129-192 internal, tried again (a shell makes 128 + n of signal n)
  any other         internal, tried again

  A command cannot report progress: a requester sees its result alone.

  The status counts once the command has exited, also if a child of it holds the output open; that
  child lives on. A run that is given up (time-out, lost lease, shutdown) is killed with all its
  children, and so is what runs when the worker dies; on Linux also children that left its process
  group.

  JSON is exact in both directions. What it lacks is written as a map with one name:
  {\"$bin\": \"<hex>\"} bytes, {\"$ext\": [type, \"<hex>\"]}, {\"$float\": \"nan\"|\"inf\"|\"-inf\"},
  {\"$str\": \"<hex>\"} a string that is not UTF-8, {\"$map\": [[name, value], …]} a map whose names are
  not strings, or stand twice, or that would look like one of these. Integers beyond 64 bits, a name
  that stands twice and an id with a NUL are refused, with the place.

Programs of --pipe:
  A program is started once, by sh -c, and stays. Each event is one line of JSON on its standard
  input, {\"id\", \"type\", \"attempt\", \"subject\"?, \"deadline_ms\"?, \"data\"}; it answers in any order
  with lines on standard output:

  {\"id\": …, \"ok\": RESULT}
  {\"id\": …, \"error\": {\"code\": \"internal\", \"message\": \"…\", \"retryable\": true}}
  {\"id\": …, \"progress\": {\"done\": 1, \"total\": 8, \"note\": \"…\"}}
  {\"id\": …, \"publish\": {\"type\": \"a.b\", \"data\": …, \"subject\": \"…\"}}

  What it writes on standard error is logged with its event. When it dies, or writes what is no
  answer, what it held fails and is tried again; a run that times out ends it. What it needs to
  start counts for the run that it is given first (--handler-timeout). At the worker's end its input
  is closed, and 5 s later it is killed. The whole contract: convoke docs protocol.

SIGTERM, SIGINT and SIGHUP end the worker: it stops reading, finishes what runs (--drain-timeout), \
exits 0. Should a part of it fail, it does the same and exits 1. As the first process of a container it \
reaps orphans.";

/// Run a worker
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Flags {
    /// A command that handles a type of event; may be repeated
    #[arg(long, value_name = "TYPE=CMD", value_parser = command)]
    exec: Vec<(String, String)>,
    #[command(flatten)]
    pipes: PipeFlags,
    #[command(flatten)]
    pub(crate) settings: SettingFlags,
}

/// The settings that only a worker has as flags. Durations stay text: the settings parse them, so
/// that all sources are held to the same form.
#[derive(Args, Serialize)]
#[command(next_help_heading = "Settings")]
pub(super) struct SettingFlags {
    /// The instance's id [default: made from the host name and a random part]
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    /// A role that the instance holds; may be repeated [default: worker]
    #[arg(long, value_name = "ROLE", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    role: Vec<String>,
    /// A type that nobody needs to handle, or a domain's, such as image.*; may be repeated. Events of it that
    /// nobody asked an answer for are acknowledged instead of becoming dead letters
    #[arg(long, value_name = "TYPE", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ignore: Vec<String>,
    /// Of which events the ledger keeps outcomes: DOMAIN=all, DOMAIN=1/N or DOMAIN=none, * for the other domains; may be
    /// repeated [default: of none]
    #[arg(long, value_name = "DOMAIN=HOW", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ledger_outcomes: Vec<String>,
    /// How long it keeps them [default: 30d]
    #[arg(long, value_name = "DURATION")]
    #[serde(skip_serializing_if = "Option::is_none")]
    ledger_outcomes_retention: Option<String>,
    /// Tasks that may be assigned to it at a time [default: 10]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    capacity: Option<u32>,
    /// Handlers that may be waiting at a time [default: 64]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    concurrency: Option<usize>,
    /// How much of it the runs of one event type may hold, in percent of what others leave [default: 75]
    #[arg(long, value_name = "PERCENT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    type_share: Option<u8>,
    /// By what the handler of a type is limited; may be repeated: mail.send=4 is a concurrency,
    /// mail.send=concurrency:4,total:9,rate:10/s,per:source,timeout:5s,attempts:3,circuit:5/30s has all of them,
    /// where total counts the runs in all workers
    #[arg(long, value_name = "TYPE=LIMITS")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    limit: Vec<String>,
    /// The consumer group [default: workers]
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<String>,
    /// How long it counts as alive after a pulse; it pulses every third of it [default: 30s]
    #[arg(long, value_name = "DURATION")]
    #[serde(skip_serializing_if = "Option::is_none")]
    heartbeat_ttl: Option<String>,
    /// How long an entry may be idle before anyone takes it over [default: 1m]
    #[arg(long, value_name = "DURATION")]
    #[serde(skip_serializing_if = "Option::is_none")]
    claim_idle: Option<String>,
    /// How long a handler may run [default: 30s]
    #[arg(long, value_name = "DURATION")]
    #[serde(skip_serializing_if = "Option::is_none")]
    handler_timeout: Option<String>,
    /// Tries of an event whose failures are retryable, the first included [default: 5]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_attempts: Option<u32>,
    /// Deliveries of an event that is never committed before it counts as poison [default: 5]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_deliveries: Option<u32>,
    /// The upper bound of the wait before the second try; doubled for each further one
    /// [default: 500ms]
    #[arg(long, value_name = "DURATION")]
    #[serde(skip_serializing_if = "Option::is_none")]
    backoff_base: Option<String>,
    /// The longest wait between tries [default: 1m]
    #[arg(long, value_name = "DURATION")]
    #[serde(skip_serializing_if = "Option::is_none")]
    backoff_cap: Option<String>,
    /// Bytes in a payload [default: 1048576]
    #[arg(long, value_name = "BYTES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_payload: Option<usize>,
    /// How long shutdown waits for running handlers [default: 30s]
    #[arg(long, value_name = "DURATION")]
    #[serde(skip_serializing_if = "Option::is_none")]
    drain_timeout: Option<String>,
    /// How long the holder of a batch keeps it without progress [default: 30s]
    #[arg(long, value_name = "DURATION")]
    #[serde(skip_serializing_if = "Option::is_none")]
    batch_lease: Option<String>,
    /// Entries that capped streams keep, about [default: 10000]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    stream_history: Option<u64>,
    /// How long a published id is remembered for deduplication [default: 1h]
    #[arg(long, value_name = "DURATION")]
    #[serde(skip_serializing_if = "Option::is_none")]
    dedup_window: Option<String>,
    /// How long a reply stream outlives its last reply [default: 1h]
    #[arg(long, value_name = "DURATION")]
    #[serde(skip_serializing_if = "Option::is_none")]
    reply_ttl: Option<String>,
    /// Keep the ledger there: postgres://… without a password, sqlite:PATH, or sqlite: for a file
    /// under the state directory [default: none is kept]
    #[arg(long, value_name = "URL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    database_url: Option<String>,
    /// The file that holds that URL, which may have a password; it is read again for new connections
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    #[serde(skip_serializing_if = "Option::is_none")]
    database_url_file: Option<String>,
    /// How long the ledger keeps a fact; 0s: for good [default: 1y]
    #[arg(long, value_name = "DURATION")]
    #[serde(skip_serializing_if = "Option::is_none")]
    ledger_retention: Option<String>,
    /// An MCP server's command, for health to check: it speaks over standard input and output
    #[arg(long, value_name = "CMD")]
    #[serde(skip_serializing_if = "Option::is_none")]
    mcp_server: Option<String>,
    /// The file that holds that command, which may have a token
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    #[serde(skip_serializing_if = "Option::is_none")]
    mcp_server_file: Option<String>,
    /// In which pattern a system event is answered where the bus says nothing, such as
    /// health=distributed; may be repeated. See `convoke docs patterns`
    #[arg(long = "pattern", value_name = "EVENT=PATTERN", value_parser = pattern)]
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "table")]
    patterns: Vec<(String, String)>,
    /// The directory of the socket that `convoke probe` asks [default: $RUNTIME_DIRECTORY,
    /// $XDG_RUNTIME_DIR/convoke, or /tmp/convoke-UID]
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    runtime_dir: Option<String>,
    /// Write the metrics of the bus there every 15 s, for the textfile collector: a name that ends in .prom
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    #[serde(skip_serializing_if = "Option::is_none")]
    metrics_file: Option<String>,
    /// What this version of the program is called; `convoke drain --version` finds workers by it
    /// [default: that of convoke]
    #[arg(long, value_name = "VERSION")]
    #[serde(skip_serializing_if = "Option::is_none")]
    app_version: Option<String>,
    /// Add spans, metrics and the log for OpenTelemetry there, as JSON lines of OTLP; -: standard output.
    /// {id} in the name stands for the instance's id
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    #[serde(skip_serializing_if = "Option::is_none")]
    telemetry_file: Option<String>,
    /// Which part of the traces that begin at this worker is told, 0 to 1 [default: 1]
    #[arg(long, value_name = "PART")]
    #[serde(skip_serializing_if = "Option::is_none")]
    telemetry_sample: Option<f64>,
    /// Bytes of that file, at which it is put aside as FILE.1 [default: 67108864]
    #[arg(long, value_name = "BYTES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    telemetry_size: Option<u64>,
}

fn command(text: &str) -> Result<(String, String), String> {
    let (kind, command) = text
        .split_once('=')
        .ok_or("write it as TYPE=CMD, such as image.resize=./resize.sh")?;
    keys::check_event_type(kind).map_err(|error| error.to_string())?;
    if command.trim().is_empty() {
        return Err(format!("no command for {kind}"));
    }
    Ok((kind.to_owned(), command.to_owned()))
}

fn pattern(text: &str) -> Result<(String, String), String> {
    let (event, pattern) = text
        .split_once('=')
        .ok_or("write it as EVENT=PATTERN, such as health=distributed")?;
    let event = Patterned::named(event)?;
    let pattern = event.pattern(pattern)?;
    Ok((event.to_string(), pattern.to_string()))
}

fn table<S: Serializer>(pairs: &[(String, String)], to: S) -> Result<S::Ok, S::Error> {
    to.collect_map(pairs.iter().map(|(name, value)| (name, value)))
}

/// Runs the command.
pub(super) fn run(session: Session, flags: &Flags) -> anyhow::Result<Exit> {
    let mut kinds = HashSet::new();
    let mut commands = flags.exec.iter();
    if let Some((kind, _)) = commands.find(|(kind, _)| !kinds.insert(kind.as_str())) {
        return Err(Misuse::error(format_args!(
            "--exec: {kind} has two commands"
        )));
    }
    let max_output = session.settings.max_payload;
    let mut settings = session.settings;
    flags.pipes.add_to(&mut settings)?;
    let limited = flags
        .settings
        .limit
        .iter()
        .flat_map(|limit| limit.split(','));
    let limited = limited.filter_map(|limit| Some(limit.split_once('=')?.0.trim()));
    for kind in limited {
        if !kinds.contains(kind) && !settings.pipe.contains_key(kind) {
            return Err(Misuse::error(format_args!(
                "--limit: no --exec and no --pipe for {kind}"
            )));
        }
    }
    if settings.runtime_dir.is_empty() {
        settings.runtime_dir = probe::directory().display().to_string();
    }
    let mut builder = Worker::builder().settings(settings);
    for (kind, command) in &flags.exec {
        builder = builder.register(exec::registration(kind, command, max_output));
    }
    let worker = builder.build()?;
    let runtime = super::threads()?;
    let ended = runtime.block_on(worker.run());
    // Not for ever: what hangs must not keep the process.
    runtime.shutdown_timeout(END);
    ended?;
    Ok(Exit::Done)
}
