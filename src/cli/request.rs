//! `convoke request`: publishes an event and prints the reply.

mod progress;

use super::output;
use super::output::printable;
use super::{Exit, Session, input};
use clap::Args;
use convoke::client::publish::Outgoing;
use convoke::client::request::RequestError;
use convoke::protocol::json;
use convoke::protocol::reply::Reply;
use progress::Shown;
use serde_json::{Value, json};
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  convoke request image.resize --data '{\"width\": 80}'
  convoke request system.get_state | jq .leader
  convoke request report.make --data @report.json --timeout 5m --progress

Prints the result as JSON. With --progress, what the handler reports of its progress goes to stderr: as a bar \
on a terminal, else a line each time (with --format json an object {\"progress\": {done, total?, note?}}). An error reply is printed on stderr as `code: message` (with --format json \
as an object), and the exit code is 1.";

/// Publish an event and print the reply's result
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Flags {
    /// The event type, such as image.resize
    #[arg(value_name = "TYPE", value_parser = input::event_type)]
    kind: String,
    /// The payload: JSON, @FILE, or - for standard input; without it nil
    #[arg(long, value_name = "JSON|@FILE|-")]
    data: Option<String>,
    /// How long to wait for the reply; it is also the event's deadline
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "30s")]
    timeout: Duration,
    /// The event's unique id [default: one made up]
    #[arg(long)]
    id: Option<String>,
    /// The ordering and partition key
    #[arg(long, value_name = "KEY")]
    subject: Option<String>,
    /// Show how far the handler is, if it tells
    #[arg(long)]
    progress: bool,
}

/// Runs the command.
pub(super) async fn run(session: Session, flags: Flags) -> anyhow::Result<Exit> {
    let limit = session.settings.max_payload;
    let mut event = match &flags.data {
        Some(data) => Outgoing::encoded(&flags.kind, input::payload(data, limit)?),
        None => Outgoing::bare(&flags.kind),
    };
    if let Some(id) = flags.id {
        event = event.id(id);
    }
    if let Some(subject) = flags.subject {
        event = event.subject(subject);
    }
    let answer = match flags.progress {
        false => ask(&session, event, flags.timeout).await?,
        true => ask_and_watch(&session, event, flags.timeout).await?,
    };
    match answer {
        Ok(reply) => {
            session.output.value(&result(&reply)?)?;
            Ok(Exit::Done)
        }
        Err(error) => {
            complain(&session, &error);
            Ok(Exit::Failed)
        }
    }
}

/// Publishes a request and awaits its reply.
pub(super) async fn ask(
    session: &Session,
    event: Outgoing,
    timeout: Duration,
) -> anyhow::Result<Result<Reply, RequestError>> {
    let client = session.client()?;
    let answer = client.request(event, timeout).await;
    client.close().await;
    Ok(answer)
}

/// The same, and shows what the handler reports of its progress meanwhile.
async fn ask_and_watch(
    session: &Session,
    event: Outgoing,
    timeout: Duration,
) -> anyhow::Result<Result<Reply, RequestError>> {
    let client = session.client()?;
    let shown = Shown::new(session.output.is_json());
    let hear = |progress| shown.show(&progress);
    let answer = client.request_with_progress(event, timeout, hear).await;
    shown.end();
    client.close().await;
    Ok(answer)
}

/// The result that a reply carries.
pub(super) fn result(reply: &Reply) -> anyhow::Result<Value> {
    Ok(json::to_json(&reply.data)?)
}

/// Says on stderr why there is no result.
pub(super) fn complain(session: &Session, error: &RequestError) {
    let line = match error {
        RequestError::Remote(remote) if session.output.is_json() => {
            let mut object = json!({
                "code": remote.code.as_str(),
                "message": remote.message,
                "retryable": remote.retryable,
            });
            let mut details = Vec::new();
            if let Some(value) = &remote.details
                && rmpv::encode::write_value(&mut details, value).is_ok()
                && let Ok(value) = json::to_json(&details)
            {
                object["details"] = value;
            }
            if let Some(source) = &remote.source_instance {
                object["source"] = source.as_str().into();
            }
            output::json(&object)
        }
        RequestError::Remote(remote) => printable(&remote.to_string()).into_owned(),
        other if session.output.is_json() => {
            output::json(&json!({ "error": kind_of(other), "message": other.to_string() }))
        }
        other => format!("convoke: {}", printable(&other.to_string())),
    };
    output::complain_line(&line);
}

fn kind_of(error: &RequestError) -> &'static str {
    use convoke::client::publish::PublishError;
    match error {
        RequestError::Publish(PublishError::Rejected { .. }) => "rejected",
        RequestError::Publish(PublishError::Unknown { .. }) => "unknown",
        RequestError::TimedOut { .. } => "timeout",
        RequestError::Remote(_) => "remote",
        RequestError::Malformed(_) => "malformed",
        RequestError::Closed => "closed",
        _ => "failed",
    }
}
