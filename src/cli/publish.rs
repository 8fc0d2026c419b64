//! `convoke publish`: stores events.

use super::output;
use super::output::printable;
use super::{Exit, Misuse, Session, input};
use clap::Args;
use convoke::client::publish::{Outgoing, PublishError, Published};
use convoke::client::{Client, MAX_CONFIRM};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};
use std::io::{self, BufRead, BufReader, Read};
use std::time::{Duration, SystemTime};
use tokio::sync::mpsc;

/// Lines that are read ahead and published in one round trip, at most and at least.
const LINES: (usize, usize) = (512, 16);
/// About how many bytes of payload may be read ahead, however long the lines are.
const READ_AHEAD: usize = 64 << 20;

const EXAMPLES: &str = "\
Examples:
  convoke publish image.resize --data '{\"width\": 80}'
  convoke publish mail.send --data @mail.json --id order-17 --dedup
  convoke publish report.make --delay 10m
  convoke publish report.make --at 2030-01-31T06:00:00Z
  jq -c '.[]' jobs.json | convoke publish image.resize --data - --lines

Prints the entry id; with --format json {\"entry\": …, \"duplicate\": …}. An event that is not stored is \
either `not stored` for certain or `may be stored`: then publish it again with the same --id and \
--dedup, and it is stored once.";

/// Publish an event and print its entry id
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Flags {
    /// The event type, such as image.resize
    #[arg(value_name = "TYPE", value_parser = input::event_type)]
    kind: String,
    /// The payload: JSON, @FILE, or - for standard input; without it nil
    #[arg(long, value_name = "JSON|@FILE|-")]
    data: Option<String>,
    /// One event per line of standard input; blank lines are skipped
    #[arg(long, conflicts_with_all = ["id", "dedup"])]
    lines: bool,
    /// The event's unique id [default: the entry id]
    #[arg(long)]
    id: Option<String>,
    /// The ordering and partition key
    #[arg(long, value_name = "KEY")]
    subject: Option<String>,
    /// Who publishes it
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// The stream that gets the reply: a reply stream or an inbox, as its whole key
    #[arg(long, value_name = "STREAM")]
    reply_to: Option<String>,
    /// Do not run it later than this from now
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    deadline: Option<Duration>,
    /// Store it once, however often it is published with this --id
    #[arg(long, requires = "id")]
    dedup: bool,
    /// Run it no sooner than this from now
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, conflicts_with = "at")]
    delay: Option<Duration>,
    /// Run it no sooner than at this time: RFC 3339, or Unix milliseconds
    #[arg(long, value_name = "TIME", value_parser = unix_ms)]
    at: Option<u64>,
    /// Count it as stored only when this many replicas have it
    #[arg(long, value_name = "REPLICAS", value_parser = clap::value_parser!(u32).range(1..))]
    confirm: Option<u32>,
    /// How long --confirm waits, at most 10s
    #[arg(long, value_name = "DURATION", value_parser = confirm_within, default_value = "2s", requires = "confirm")]
    confirm_within: Duration,
    #[command(flatten)]
    pub(crate) settings: SettingFlags,
}

#[derive(Args, Serialize)]
#[command(next_help_heading = "Settings")]
pub(super) struct SettingFlags {
    /// Bytes in a payload [default: 1048576]
    #[arg(long, value_name = "BYTES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_payload: Option<usize>,
    /// How long --dedup remembers an id [default: 1h]
    #[arg(long, value_name = "DURATION")]
    #[serde(skip_serializing_if = "Option::is_none")]
    dedup_window: Option<String>,
}

pub(super) fn unix_ms(text: &str) -> Result<u64, String> {
    if let Ok(ms) = text.parse() {
        return Ok(ms);
    }
    let time: Timestamp = text
        .parse()
        .map_err(|error| format!("{error}; write 2030-01-31T06:00:00Z or Unix milliseconds"))?;
    u64::try_from(time.as_millisecond()).map_err(|_| "lies before 1970".to_owned())
}

fn confirm_within(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(within) if (Duration::from_millis(1)..=MAX_CONFIRM).contains(&within) => Ok(within),
        Ok(_) => Err("not 1ms to 10s".into()),
        Err(error) => Err(error.to_string()),
    }
}

/// Runs the command.
pub(super) async fn run(session: Session, flags: Flags) -> anyhow::Result<Exit> {
    if flags.lines {
        if flags.data.as_deref() != Some("-") {
            return Err(Misuse::error("--lines: needs --data -"));
        }
        return publish_lines(&session, flags).await;
    }
    let limit = session.settings.max_payload;
    let data = flags
        .data
        .as_deref()
        .map(|data| input::payload(data, limit));
    let event = flags.event(data.transpose()?);
    match session.client()?.publish(&event).await {
        Ok(published) => {
            if session.output.is_json() {
                session.output.json(&described(published))?;
            } else {
                session.output.line(&shown(published))?;
            }
            Ok(Exit::Done)
        }
        Err(error) => {
            complain(&session, None, &error);
            Ok(Exit::Failed)
        }
    }
}

impl Flags {
    fn event(&self, data: Option<Vec<u8>>) -> Outgoing {
        let mut event = match data {
            Some(data) => Outgoing::encoded(&self.kind, data),
            None => Outgoing::bare(&self.kind),
        };
        if let Some(id) = &self.id {
            event = event.id(id);
        }
        if let Some(subject) = &self.subject {
            event = event.subject(subject);
        }
        if let Some(source) = &self.source {
            event = event.source(source);
        }
        if let Some(stream) = &self.reply_to {
            event = event.reply_to(stream);
        }
        if let Some(within) = self.deadline {
            event = event.deadline(after(within));
        }
        if let Some(delay) = self.delay {
            event = event.delay(delay);
        }
        if let Some(at) = self.at {
            event = event.at(at);
        }
        if let Some(replicas) = self.confirm {
            event = event.confirm(replicas, self.confirm_within);
        }
        event.dedup(self.dedup)
    }
}

fn after(within: Duration) -> u64 {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(now.saturating_add(within).as_millis()).unwrap_or(u64::MAX)
}

fn shown(published: Published) -> String {
    match published {
        Published::Stored { entry, .. } => entry.to_string(),
        Published::Scheduled { due_ms, .. } => {
            let due = i64::try_from(due_ms).map(Timestamp::from_millisecond);
            match due {
                Ok(Ok(due)) => format!("scheduled for {due:.3}"),
                _ => format!("scheduled for {due_ms} (Unix ms)"),
            }
        }
    }
}

fn described(published: Published) -> Value {
    match published {
        Published::Stored { entry, duplicate } => {
            json!({ "entry": entry.to_string(), "duplicate": duplicate })
        }
        Published::Scheduled { due_ms, duplicate } => {
            json!({ "entry": null, "due_ms": due_ms, "duplicate": duplicate })
        }
    }
}

/// Says on stderr why an event is not known to be stored.
fn complain(session: &Session, line: Option<usize>, error: &PublishError) {
    let status = match error {
        PublishError::Rejected { .. } => "rejected",
        PublishError::Unknown { .. } => "unknown",
    };
    complain_of(session, line, status, &error.to_string());
}

fn complain_of(session: &Session, line: Option<usize>, status: &str, message: &str) {
    if session.output.is_json() {
        let mut object = json!({ "error": status, "message": message });
        if let Some(line) = line {
            object["line"] = line.into();
        }
        output::complain_line(&output::json(&object));
    } else {
        let place = line.map_or_else(String::new, |line| format!("line {line}: "));
        output::complain_line(&format!("convoke: {place}{}", printable(message)));
    }
}

/// What one line of standard input came to.
type Line = (usize, Result<Vec<u8>, String>);

/// Publishes line by line, many in one round trip when they come faster than the answers.
async fn publish_lines(session: &Session, flags: Flags) -> anyhow::Result<Exit> {
    let client = session.client()?;
    let limit = session.settings.max_payload;
    let ahead = (READ_AHEAD / limit).clamp(LINES.1, LINES.0);
    let (sender, mut receiver) = mpsc::channel(ahead);
    // Standard input blocks, so it has a thread of its own; the process does not wait for it.
    let reader = std::thread::spawn(move || read_lines(io::stdin(), limit, &sender));
    let mut report = Report {
        session,
        failed: false,
        unread: false,
    };
    let mut lines = Vec::with_capacity(ahead);
    while receiver.recv_many(&mut lines, ahead).await > 0 {
        report.publish(&client, &flags, lines.drain(..)).await?;
    }
    match reader.join() {
        Ok(read) => read?,
        Err(_) => anyhow::bail!("reading standard input failed"),
    }
    match report.failed {
        true => Ok(Exit::Failed),
        false => Ok(Exit::Done),
    }
}

fn read_lines(from: impl Read, limit: usize, to: &mpsc::Sender<Line>) -> io::Result<()> {
    let limit = limit.saturating_mul(input::TEXT_PER_BYTE) as u64;
    let mut from = BufReader::new(from);
    for number in 1.. {
        let mut line = Vec::new();
        if from.by_ref().take(limit + 1).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        let encoded = if line.len() as u64 > limit {
            if line.last() != Some(&b'\n') {
                from.skip_until(b'\n')?;
            }
            Err(format!("over {limit} bytes"))
        } else if line.trim_ascii().is_empty() {
            continue;
        } else {
            input::encode(&line)
        };
        if to.blocking_send((number, encoded)).is_err() {
            break;
        }
    }
    Ok(())
}

/// What is said of each line, in their order.
struct Report<'a> {
    session: &'a Session,
    failed: bool,
    /// Nobody reads the output any more. What was read from the input is published all the same.
    unread: bool,
}

impl Report<'_> {
    async fn publish(
        &mut self,
        client: &Client,
        flags: &Flags,
        lines: impl Iterator<Item = Line>,
    ) -> io::Result<()> {
        let (mut events, mut numbers) = (Vec::new(), Vec::new());
        let mut broken = Vec::new();
        for (number, data) in lines {
            match data {
                Ok(data) => {
                    events.push(flags.event(Some(data)));
                    numbers.push(number);
                }
                Err(problem) => broken.push((number, problem)),
            }
        }
        let results = client.publish_many(&events).await;
        let mut broken = broken.into_iter().peekable();
        for (number, result) in numbers.into_iter().zip(results) {
            while let Some((line, problem)) = broken.next_if(|(line, _)| *line < number) {
                self.refuse(line, &problem);
            }
            match result {
                Ok(published) => self.print(number, published)?,
                Err(error) => {
                    self.failed = true;
                    complain(self.session, Some(number), &error);
                }
            }
        }
        broken.for_each(|(line, problem)| self.refuse(line, &problem));
        Ok(())
    }

    fn refuse(&mut self, line: usize, problem: &str) {
        self.failed = true;
        complain_of(self.session, Some(line), "rejected", problem);
    }

    fn print(&mut self, line: usize, published: Published) -> io::Result<()> {
        if self.unread {
            return Ok(());
        }
        let output = &self.session.output;
        let printed = if output.is_json() {
            let mut object = described(published);
            object["line"] = line.into();
            output.json(&object)
        } else {
            output.line(&shown(published))
        };
        match printed {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.unread = true,
            printed => return printed,
        }
        Ok(())
    }
}
