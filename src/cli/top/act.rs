//! What the person at the keyboard can have done to the row under the cursor: said first, asked, told.

use super::panel::Panel;
use crate::cli::output;
use crate::cli::request::result;
use crate::cli::{Session, who};
use convoke::client::publish::Outgoing;
use convoke::client::request::RequestError;
use convoke::protocol::event::EntryId;
use serde_json::{Value, json};
use std::time::Duration;

/// How long an answer is waited for.
const WAIT: Duration = Duration::from_secs(5);
/// How long a pause lasts. Who wants another says so with `convoke pause`.
const PAUSE_MINUTES: u64 = 20;

/// Something that can be done to a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// A worker finishes what it runs, and leaves.
    Drain(String),
    /// A worker reads nothing more.
    Quiet(String),
    /// A task is taken away.
    Cancel(String),
    /// A wait for the events of a scope (`type:…`, `domain:…`).
    Pause(String),
    /// An end of their wait.
    Resume(String),
    /// An end for a batch.
    CancelBatch(String),
    /// Dead letters of a stream are published again, by workers: those from one entry to another.
    Replay {
        stream: String,
        from: EntryId,
        to: EntryId,
        /// How many there are.
        count: u64,
        /// Of a single one: its type and why it died.
        about: String,
    },
}

impl Act {
    /// What a key does to a row of that panel: of a handler the id is its type, of a stream the domain of its
    /// events.
    pub(super) fn of(panel: Panel, key: char, id: &str) -> Option<Self> {
        let id = id.to_owned();
        match (panel, key) {
            (Panel::Instances, 'd') => Some(Act::Drain(id)),
            (Panel::Instances, 'u') => Some(Act::Quiet(id)),
            (Panel::Tasks, 'c') => Some(Act::Cancel(id)),
            (Panel::Handlers, 'z') => Some(Act::Pause(format!("type:{id}"))),
            (Panel::Handlers, 'a') => Some(Act::Resume(format!("type:{id}"))),
            (Panel::Streams, 'z') => Some(Act::Pause(format!("domain:{id}"))),
            (Panel::Streams, 'a') => Some(Act::Resume(format!("domain:{id}"))),
            (Panel::Batches, 'c') => Some(Act::CancelBatch(id)),
            _ => None,
        }
    }

    /// The keys that do something to a panel's rows.
    pub(super) const fn hints(panel: Panel) -> &'static str {
        match panel {
            Panel::Instances => "d drains · u quiets · ",
            Panel::Handlers | Panel::Streams => "z pauses · a goes on · ",
            Panel::Tasks | Panel::Batches => "c cancels · ",
            Panel::Dead => "e replays all of it · ",
            _ => "",
        }
    }

    /// What would happen.
    pub(super) fn question(&self) -> String {
        match self {
            Act::Drain(id) => {
                format!("drain {id}? It finishes what it runs, and leaves")
            }
            Act::Quiet(id) => {
                format!(
                    "quiet {id}? It finishes what it runs, and reads nothing more until it is scaled"
                )
            }
            Act::Cancel(id) => {
                format!("cancel task {id}? What its holder completes later is discarded")
            }
            Act::Pause(scope) => format!(
                "pause {scope} for {PAUSE_MINUTES} minutes? Its events wait in order, who asks is refused"
            ),
            Act::Resume(scope) => format!("have {scope} go on? What waits comes first"),
            Act::CancelBatch(id) => {
                format!("cancel batch {id}? What it finished stays, and nobody goes on with it")
            }
            Act::Replay {
                stream,
                from,
                about,
                ..
            } if !about.is_empty() => {
                format!("replay {from} of {stream}, {about}? Unless it was three times")
            }
            Act::Replay { stream, count, .. } => {
                let letters = output::count(*count, "letter", "letters");
                format!("replay the {letters} of {stream}? Not those replayed three times")
            }
        }
    }

    fn asked(&self) -> (&'static str, Value) {
        match self {
            Act::Drain(id) => ("system.drain", json!({"instance_id": id})),
            Act::Quiet(id) => ("system.drain", json!({"instance_id": id, "quiet": true})),
            Act::Cancel(id) => (
                "task.cancel",
                json!({"task_id": id, "reason": "cancelled in top"}),
            ),
            Act::Pause(scope) => {
                let pause = json!({"reason": "paused in top", "for_ms": PAUSE_MINUTES * 60_000});
                ("system.policy.set", json!({"scope": scope, "pause": pause}))
            }
            Act::Resume(scope) => (
                "system.policy.clear",
                json!({"scope": scope, "parts": ["pause"]}),
            ),
            Act::CancelBatch(id) => (
                "system.batch.cancel",
                json!({"batch_id": id, "reason": "cancelled in top"}),
            ),
            Act::Replay {
                stream,
                from,
                to,
                count,
                ..
            } => {
                let pair = |id: &EntryId| json!([id.ms, id.seq]);
                let stretch = json!({"stream": stream, "from": pair(from), "to": pair(to)});
                let plan = json!({"stretches": [stretch]});
                let name = format!("top-{:08x}", fastrand::u32(..));
                (
                    "system.repair.start",
                    json!({"name": name, "plan": plan, "why": "replayed in top", "total": count}),
                )
            }
        }
    }

    fn done(&self, said: &Value) -> String {
        match self {
            Act::Drain(id) => format!("{id} drains"),
            Act::Quiet(id) => format!("{id} is quiet"),
            Act::Cancel(id) => format!(
                "task {id} is {}",
                said["status"].as_str().unwrap_or("cancelled")
            ),
            Act::Pause(scope) => format!("{scope} is paused for {PAUSE_MINUTES} minutes"),
            Act::Resume(scope) if said["version"] == 0 => format!("{scope} was not paused"),
            Act::Resume(scope) => format!("{scope} goes on"),
            Act::CancelBatch(id) => format!(
                "batch {id} is {}",
                said["status"].as_str().unwrap_or("cancelled")
            ),
            Act::Replay { .. } => format!(
                "handed to the workers: convoke replay follow {}",
                said["name"].as_str().unwrap_or_default()
            ),
        }
    }

    /// Has it done; what became of it, in one line.
    pub(super) async fn run(&self, session: &Session) -> String {
        let told = async {
            let (kind, data) = self.asked();
            let client = session.client()?;
            let request = Outgoing::new(kind, &data).source(who());
            let answer = client.request(request, WAIT).await;
            client.close().await;
            Ok::<_, anyhow::Error>(match answer {
                Ok(reply) => self.done(&result(&reply)?),
                Err(RequestError::Remote(error)) => {
                    format!("refused: {}: {}", error.code.as_str(), error.message)
                }
                Err(error) => format!("not known: {error}"),
            })
        };
        told.await
            .unwrap_or_else(|error| format!("failed: {error:#}"))
    }
}
