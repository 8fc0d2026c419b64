//! `convoke tail`: follows streams without taking anything from anyone.

use super::output::{self, Output, printable};
use super::{Misuse, Outcome, Session};
use clap::Args;
use convoke::bus::connect::{BLOCK, Connector, reconnect_delay};
use convoke::bus::error::{BusError, Reaction};
use convoke::bus::event::{Entry, EntryId};
use convoke::bus::json;
use convoke::bus::keys::{self, Keys};
use convoke::bus::read::{last_id, read_after};
use jiff::Timestamp;
use redis::aio::MultiplexedConnection;
use serde_json::{Map, Value, json};
use std::io;
use tracing::warn;

/// Entries of a stream in one read: bounds the memory that a read may take.
const COUNT: usize = 64;
/// Bytes shown of a payload that is no MessagePack.
const SHOWN: usize = 64;

const EXAMPLES: &str = "\
Examples:
  convoke tail                                    what is broadcast: lifecycle, progress, decisions
  convoke tail events:image results:image         work and its results
  convoke tail dead:image --since 0               all dead letters of a domain, then new ones
  convoke tail events:system --type 'system.*beat' --limit 10
  convoke tail cb:inbox:w-1 --format json | jq .data

A STREAM is a whole key (cb:events:image) or a short name: broadcast, events:<domain>,
results:<domain>, dead:<domain>, inbox:<instance>. Nothing is taken from the workers.";

/// Follow streams, decoded
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Flags {
    /// Streams to follow [default: broadcast]
    #[arg(value_name = "STREAM")]
    streams: Vec<String>,
    /// Only types like this: * stands for any characters, ? for one
    #[arg(long = "type", value_name = "GLOB")]
    kind: Option<String>,
    /// Begin after this entry id; 0 is the stream's beginning, $ its end
    #[arg(long, value_name = "ID|0|$", value_parser = since, default_value = "$")]
    since: Since,
    /// End after so many entries
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
enum Since {
    End,
    After(EntryId),
}

fn since(text: &str) -> Result<Since, String> {
    match text {
        "$" => Ok(Since::End),
        id => id
            .parse()
            .map(Since::After)
            .map_err(|error: convoke::bus::event::ParseEntryIdError| error.to_string()),
    }
}

/// Runs the command.
pub async fn run(session: Session, flags: Flags) -> anyhow::Result<Outcome> {
    let keys = session.settings.keys()?;
    let mut streams = Vec::new();
    for name in &flags.streams {
        for key in stream_keys(&keys, name)? {
            if !streams.contains(&key) {
                streams.push(key);
            }
        }
    }
    if streams.is_empty() {
        streams.push(keys.broadcast());
    }
    let mut follower = Follower::start(session.connector()?, streams, flags.since).await?;
    let mut left = flags.limit.unwrap_or(u64::MAX);
    loop {
        for (stream, entry) in follower.read().await? {
            let kind = String::from_utf8_lossy(entry.get("type").unwrap_or_default());
            if flags.kind.as_deref().is_some_and(|glob| !fits(glob, &kind)) {
                continue;
            }
            print(&session.output, &stream, &entry)?;
            left -= 1;
            if left == 0 {
                return Ok(Outcome::Done);
            }
        }
    }
}

/// The keys that a name on the command line means: one, or one per partition.
fn stream_keys(keys: &Keys, name: &str) -> anyhow::Result<Vec<String>> {
    let namespace = keys.namespace();
    let rest = name.strip_prefix('{').unwrap_or(name);
    if rest
        .strip_prefix(namespace)
        .is_some_and(|rest| rest.starts_with([':', '}']))
    {
        return Ok(vec![name.to_owned()]);
    }
    let of_domain = |domain: &str, key: fn(&Keys, &str, u16) -> String| {
        let partitions = 0..keys.partitions(domain);
        partitions.map(|n| key(keys, domain, n)).collect()
    };
    let found: Option<Vec<String>> = match name.split_once(':') {
        None if name == "broadcast" => Some(vec![keys.broadcast()]),
        Some((kind, part)) if keys::is_name(part) => match kind {
            "events" => Some(of_domain(part, Keys::events)),
            // The inboxes are no domain: theirs lie with the control plane.
            "results" if part == "inbox" => Some(vec![keys.inbox_route(part).results]),
            "dead" if part == "inbox" => Some(vec![keys.inbox_route(part).dead]),
            "results" => Some(of_domain(part, Keys::results)),
            "dead" => Some(of_domain(part, Keys::dead)),
            "inbox" => Some(vec![keys.inbox(part)]),
            _ => None,
        },
        _ => None,
    };
    found.ok_or_else(|| {
        Misuse::error(format_args!(
            "{name:?} is no stream: write broadcast, events:<domain>, results:<domain>, \
             dead:<domain>, inbox:<instance>, or a whole key that begins with {namespace}:"
        ))
    })
}

/// Reads streams from where they were left, through cut connections.
struct Follower {
    connector: Connector,
    connection: MultiplexedConnection,
    streams: Vec<(String, EntryId)>,
}

impl Follower {
    async fn start(
        connector: Connector,
        names: Vec<String>,
        since: Since,
    ) -> Result<Self, BusError> {
        let mut connection = connector.blocking(BLOCK).await?;
        let mut streams = Vec::with_capacity(names.len());
        for name in names {
            let after = match since {
                Since::After(id) => id,
                Since::End => last_id(&mut connection, &name).await?,
            };
            streams.push((name, after));
        }
        Ok(Self {
            connector,
            connection,
            streams,
        })
    }

    /// What came since the last time; nothing if nothing came for a while.
    async fn read(&mut self) -> Result<Vec<(String, Entry)>, BusError> {
        let from: Vec<(&str, EntryId)> = self
            .streams
            .iter()
            .map(|(name, after)| (name.as_str(), *after))
            .collect();
        let batches = match read_after(&mut self.connection, &from, COUNT, BLOCK).await {
            Ok(batches) => batches,
            Err(error) if error.reaction() == Reaction::GiveUp => return Err(error),
            Err(error) => {
                warn!(%error, "reading failed; trying again");
                self.reconnect().await?;
                return Ok(Vec::new());
            }
        };
        let mut entries = Vec::new();
        for batch in batches {
            let (name, after) = &mut self.streams[batch.stream];
            for entry in batch.entries {
                *after = entry.id;
                entries.push((name.clone(), entry));
            }
        }
        // Streams are read one after the other; people read by time.
        entries.sort_by_key(|(_, entry)| entry.id);
        Ok(entries)
    }

    async fn reconnect(&mut self) -> Result<(), BusError> {
        for failures in 0.. {
            tokio::time::sleep(reconnect_delay(failures)).await;
            match self.reopen().await {
                Ok(()) => break,
                Err(error) if error.reaction() == Reaction::GiveUp => return Err(error),
                Err(_) => {}
            }
        }
        Ok(())
    }

    async fn reopen(&mut self) -> Result<(), BusError> {
        self.connection = self.connector.blocking(BLOCK).await?;
        for (name, after) in &mut self.streams {
            // After a loss of data a stream may begin again below what was read.
            if last_id(&mut self.connection, name).await? < *after {
                *after = EntryId::default();
            }
        }
        Ok(())
    }
}

/// Whether the type is like the pattern.
fn fits(glob: &str, kind: &str) -> bool {
    let (glob, kind) = (glob.as_bytes(), kind.as_bytes());
    let (mut g, mut k) = (0, 0);
    // Where to go on when what follows the last * did not fit.
    let mut again: Option<(usize, usize)> = None;
    while k < kind.len() {
        match glob.get(g) {
            Some(b'*') => {
                again = Some((g, k));
                g += 1;
            }
            Some(&b) if b == b'?' || b == kind[k] => {
                g += 1;
                k += 1;
            }
            _ => match again {
                Some((star, from)) => {
                    again = Some((star, from + 1));
                    g = star + 1;
                    k = from + 1;
                }
                None => return false,
            },
        }
    }
    glob[g..].iter().all(|&b| b == b'*')
}

fn print(output: &Output, stream: &str, entry: &Entry) -> io::Result<()> {
    let data = entry.get("data").map(decode);
    let mut kind = None;
    let mut fields = Map::new();
    for (name, value) in entry.pairs() {
        let value = || Value::from(String::from_utf8_lossy(value));
        match name {
            b"data" => {}
            b"type" if kind.is_none() => kind = Some(value()),
            name => {
                let name = String::from_utf8_lossy(name).into_owned();
                fields.entry(name).or_insert_with(value);
            }
        }
    }
    if output.is_json() {
        let mut object = json!({
            "stream": stream,
            "entry": entry.id.to_string(),
            "type": kind,
            "fields": fields,
        });
        match data {
            None => object["data"] = Value::Null,
            Some(Ok(value)) => object["data"] = value,
            Some(Err(undecodable)) => object["undecodable"] = undecodable.described(),
        }
        return output.json(&object);
    }
    let time = i64::try_from(entry.id.ms).map(Timestamp::from_millisecond);
    let time = match time {
        Ok(Ok(time)) => format!("{time:.3}"),
        _ => "?".to_owned(),
    };
    let head = format!("{time} {} {}", printable(stream), entry.id);
    let kind = kind.as_ref().and_then(Value::as_str).unwrap_or("?");
    let mut line = format!("{} {}", output.faint(&head), output.bold(&printable(kind)));
    for (name, value) in &fields {
        let value = value.as_str().unwrap_or_default();
        let quoted;
        let value = if value.is_empty() || value.contains([' ', '"']) {
            quoted = output::json(&value.into());
            quoted.as_str()
        } else {
            value
        };
        line.push_str(&format!(" {}={}", printable(name), printable(value)));
    }
    match data {
        None => {}
        Some(Ok(value)) => line.push_str(&format!(" {}", output::json(&value))),
        Some(Err(undecodable)) => line.push_str(&output.red(&format!(" {undecodable}"))),
    }
    output.line(&line)
}

/// A payload that is not one MessagePack value.
struct Undecodable {
    bytes: usize,
    hex: String,
    error: String,
}

impl Undecodable {
    fn described(&self) -> Value {
        json!({ "error": self.error, "bytes": self.bytes, "hex": self.hex })
    }
}

impl std::fmt::Display for Undecodable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let more = if self.hex.len() < 2 * self.bytes {
            "…"
        } else {
            ""
        };
        let error = printable(&self.error);
        write!(f, "0x{}{more} ({} bytes, {error})", self.hex, self.bytes)
    }
}

fn decode(data: &[u8]) -> Result<Value, Undecodable> {
    json::to_json(data).map_err(|error| Undecodable {
        bytes: data.len(),
        hex: data
            .iter()
            .take(SHOWN)
            .map(|b| format!("{b:02x}"))
            .collect(),
        error: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_types() {
        for (glob, kind) in [
            ("*", ""),
            ("*", "a.b"),
            ("image.*", "image.resize"),
            ("*.re*e", "image.resize"),
            ("i?age.resize", "image.resize"),
            ("**", "a"),
            ("a*b*c", "a.b.b.c"),
        ] {
            assert!(fits(glob, kind), "{glob} {kind}");
        }
        for (glob, kind) in [
            ("", "a"),
            ("image", "image.resize"),
            ("*.x", "image.resize"),
            ("?", ""),
            ("a*b", "a.b.c"),
        ] {
            assert!(!fits(glob, kind), "{glob} {kind}");
        }
    }

    #[test]
    fn short_names_and_whole_keys_mean_streams() {
        let keys = Keys::new("cb").unwrap();
        for (name, key) in [
            ("broadcast", "cb:broadcast"),
            ("events:image", "cb:events:image"),
            ("results:image", "cb:results:image"),
            ("dead:image", "cb:dead:image"),
            ("inbox:w-1", "cb:inbox:w-1"),
            ("cb:reply:me", "cb:reply:me"),
        ] {
            assert_eq!(stream_keys(&keys, name).unwrap(), [key]);
        }
        for name in ["image", "events:", "other:events:image", "cbx:events:image"] {
            assert!(stream_keys(&keys, name).is_err(), "{name}");
        }
        let keys = Keys::tagged("cb", 2).unwrap();
        assert_eq!(
            stream_keys(&keys, "events:image").unwrap(),
            ["{cb:image:0}:events", "{cb:image:1}:events"]
        );
        assert_eq!(
            stream_keys(&keys, "dead:inbox").unwrap(),
            ["{cb}:dead:inbox"]
        );
        assert_eq!(
            stream_keys(&keys, "{cb:image:1}:reply:me").unwrap(),
            ["{cb:image:1}:reply:me"]
        );
    }
}
