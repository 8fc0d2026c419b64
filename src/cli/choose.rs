//! Which streams and which entries a command is about, as people say it.

use super::{Misuse, output};
use clap::Args;
use convoke::operator::inspect;
use convoke::protocol::event::{Entry, EntryId, payload_of};
use convoke::protocol::json;
use convoke::protocol::keys::{self, Keys, StreamKind, StreamName};
use redis::aio::MultiplexedConnection;
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Which entries.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Which entries (all conditions must hold)")]
pub(super) struct Filters {
    /// Only these entry ids; from a file, or - for standard input, with blanks, commas or lines between them
    #[arg(long = "id", value_name = "ENTRY,…|@FILE|-", value_parser = ids)]
    pub(crate) ids: Vec<Ids>,
    /// Only types like this: * stands for any characters, ? for one
    #[arg(long = "type", value_name = "GLOB")]
    pub(crate) kind: Option<String>,
    /// Only entries from then on: 10m (ago), a date such as 2026-11-24T03:00Z, or an entry id
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub(crate) since: Option<Moment>,
    /// Only entries up to then
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub(crate) until: Option<Moment>,
    /// Only entries with this field, or with this value in it: of the payload (user.name=ada, width=80), or
    /// of the event itself (source=shop, subject, id, lasterror)
    #[arg(long = "where", value_name = "FIELD[=VALUE]", value_parser = condition)]
    pub(crate) payload: Vec<Condition>,
}

impl Filters {
    /// Whether nothing was said.
    pub(super) fn is_empty(&self) -> bool {
        self.ids.is_empty()
            && self.kind.is_none()
            && self.since.is_none()
            && self.until.is_none()
            && self.payload.is_empty()
    }

    /// The first and the last id that may fit.
    pub(super) fn bounds(&self, now: u64) -> (EntryId, EntryId) {
        let end = EntryId {
            ms: u64::MAX,
            seq: u64::MAX,
        };
        let mut from = self.since.map_or_else(EntryId::default, |at| at.first(now));
        let mut to = self.until.map_or(end, |at| at.last(now));
        let least = self.ids.iter().filter_map(|ids| ids.0.first()).min();
        let most = self.ids.iter().filter_map(|ids| ids.0.last()).max();
        if let (Some(least), Some(most)) = (least, most) {
            from = from.max(*least);
            to = to.min(*most);
        }
        (from, to)
    }

    /// Whether the id may fit.
    pub(super) fn fit_id(&self, id: EntryId) -> bool {
        self.ids.is_empty() || self.names(id)
    }

    /// Whether it was named by its id.
    pub(super) fn names(&self, id: EntryId) -> bool {
        self.ids.iter().any(|ids| ids.0.contains(&id))
    }

    /// Says which fields no entry has, so that a word that is misspelt is not taken for one that fits nothing.
    pub(super) fn complain(&self) {
        for condition in &self.payload {
            condition.complain();
        }
    }

    /// Whether an entry fits whose id does.
    pub(super) fn fit(&self, entry: &Entry) -> bool {
        if let Some(glob) = &self.kind {
            let kind = String::from_utf8_lossy(entry.get("type").unwrap_or_default());
            if !fits(glob, &kind) {
                return false;
            }
        }
        if self.payload.is_empty() {
            return true;
        }
        let data = payload_of(entry).map(|data| json::to_json(&data));
        let data = data.and_then(Result::ok).unwrap_or_default();
        // Each is asked, so that each knows whether its field is anywhere.
        let mut fit = true;
        for condition in &self.payload {
            fit &= condition.fits(entry, &data);
        }
        fit
    }
}

/// Entry ids.
#[derive(Clone, Debug)]
pub(super) struct Ids(BTreeSet<EntryId>);

/// Parses [`Ids`].
fn ids(text: &str) -> Result<Ids, String> {
    let mut named = String::new();
    if text == "-" {
        io::stdin()
            .read_to_string(&mut named)
            .map_err(|error| format!("standard input: {error}"))?;
    } else if let Some(path) = text.strip_prefix('@') {
        named = std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
    } else {
        named.push_str(text);
    }
    let words = named.split(|c: char| c.is_whitespace() || c == ',');
    let mut ids = BTreeSet::new();
    for word in words.filter(|word| !word.is_empty()) {
        let id = word.parse().map_err(|_| {
            let shown: String = word.chars().take(80).collect();
            format!("{shown:?} is no entry id such as 1700000000000-0")
        })?;
        ids.insert(id);
    }
    match ids.is_empty() {
        true => Err("no entry id is there".to_owned()),
        false => Ok(Ids(ids)),
    }
}

/// A point of time or of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    Ago(Duration),
    At(u64),
    Entry(EntryId),
}

impl Moment {
    /// The first id that is not before it.
    pub(super) fn first(self, now: u64) -> EntryId {
        match self {
            Moment::Entry(id) => id,
            _ => EntryId {
                ms: self.ms(now),
                seq: 0,
            },
        }
    }

    fn last(self, now: u64) -> EntryId {
        match self {
            Moment::Entry(id) => id,
            _ => EntryId {
                ms: self.ms(now),
                seq: u64::MAX,
            },
        }
    }

    fn ms(self, now: u64) -> u64 {
        match self {
            Moment::Ago(ago) => now.saturating_sub(ago.as_millis() as u64),
            Moment::At(ms) => ms,
            Moment::Entry(id) => id.ms,
        }
    }
}

/// Parses a [`Moment`].
pub(super) fn moment(text: &str) -> Result<Moment, String> {
    if text.contains('-') || text.bytes().all(|b| b.is_ascii_digit()) {
        match text.parse::<EntryId>() {
            Ok(id) if text.contains('-') || id.ms == 0 => return Ok(Moment::Entry(id)),
            Ok(id) => return Ok(Moment::At(id.ms)),
            Err(_) => {}
        }
    }
    let zoned = text.replace(' ', "T").replace('Z', ":00Z");
    for text in [text, &zoned] {
        if let Ok(time) = text.parse::<jiff::Timestamp>() {
            return Ok(Moment::At(
                u64::try_from(time.as_millisecond()).unwrap_or(0),
            ));
        }
    }
    if let Ok(day) = format!("{text}T00:00:00Z").parse::<jiff::Timestamp>() {
        return Ok(Moment::At(u64::try_from(day.as_millisecond()).unwrap_or(0)));
    }
    humantime::parse_duration(text)
        .map(Moment::Ago)
        .map_err(|_| {
            format!(
                "{text:?} is no time: write 10m (ago), 2026-11-24, 2026-11-24T03:00Z, \
             or an entry id such as 1700000000000-0"
            )
        })
}

/// What an entry must hold, in its payload or as a field of its own.
#[derive(Clone, Debug)]
pub(super) struct Condition {
    path: String,
    value: Option<String>,
    asked: Arc<AtomicBool>,
    found: Arc<AtomicBool>,
}

/// Parses a [`Condition`].
pub(super) fn condition(text: &str) -> Result<Condition, String> {
    let (path, value) = match text.split_once('=') {
        Some((path, value)) => (path, Some(value.to_owned())),
        None => (text, None),
    };
    if path.is_empty() || path.split('.').any(str::is_empty) {
        return Err(format!("{text:?} is not FIELD or FIELD=VALUE"));
    }
    Ok(Condition {
        path: path.to_owned(),
        value,
        asked: Arc::default(),
        found: Arc::default(),
    })
}

impl Condition {
    /// Whether an entry with that payload holds it. Where the payload has no such field, the event may.
    fn fits(&self, entry: &Entry, data: &Value) -> bool {
        self.asked.store(true, Ordering::Relaxed);
        let own = || {
            let text = String::from_utf8_lossy(entry.get(&self.path)?);
            Some(Value::from(text))
        };
        let of_payload = self.found_in(data).cloned();
        let Some(found) = of_payload.or_else(own) else {
            return false;
        };
        self.found.store(true, Ordering::Relaxed);
        self.holds(&found)
    }

    /// Says if it was asked of entries and none of them had the field.
    fn complain(&self) {
        let missed = !self.found.load(Ordering::Relaxed);
        if missed && self.asked.load(Ordering::Relaxed) {
            let path = output::printable(&self.path);
            output::complain_line(&format!(
                "--where {path}: none of the entries has a field of that name, in its payload or of its own"
            ));
        }
    }

    fn found_in<'a>(&self, data: &'a Value) -> Option<&'a Value> {
        let mut at = data;
        for name in self.path.split('.') {
            let next = match at {
                Value::Array(items) => name.parse().ok().and_then(|n: usize| items.get(n)),
                other => other.get(name),
            };
            at = next?;
        }
        Some(at)
    }

    fn holds(&self, found: &Value) -> bool {
        match (&self.value, found) {
            (None, _) => true,
            (Some(wanted), Value::String(text)) => {
                text == wanted || serde_json::from_str::<Value>(wanted).is_ok_and(|v| v == *found)
            }
            (Some(wanted), other) => {
                serde_json::from_str::<Value>(wanted).is_ok_and(|value| value == *other)
            }
        }
    }
}

/// The streams that names on the command line mean; without names, all of these kinds.
///
/// A name without a kind (`image`) is a domain, and means its stream of the first kind; a `*` stands
/// for any characters.
pub(super) async fn streams(
    connection: &mut MultiplexedConnection,
    keys: &Keys,
    names: &[String],
    kinds: &[StreamKind],
) -> anyhow::Result<Vec<StreamName>> {
    let mut found: Vec<StreamName> = Vec::new();
    let mut all = None;
    let wild = names.iter().any(|name| name.contains(['*', '?']));
    if names.is_empty() || wild {
        let there = inspect::streams(connection, keys).await?;
        if names.is_empty() {
            return Ok(there
                .into_iter()
                .filter(|name| kinds.contains(&name.kind))
                .collect());
        }
        all = Some(there);
    }
    for name in names {
        let full = match name.contains(':') || name == "broadcast" {
            true => name.clone(),
            false => format!("{}:{name}", kinds[0].as_str()),
        };
        let there = all.iter().flatten();
        if full.contains(['*', '?']) {
            let fitting = there.filter(|s| fits(&full, &s.key) || fits(&full, &plain(s)));
            found.extend(fitting.cloned());
            continue;
        }
        for key in stream_keys(keys, &full)? {
            let stream = keys
                .stream_name(&key)
                .ok_or_else(|| no_stream(keys, name))?;
            found.push(stream);
        }
    }
    if let Some(wrong) = found.iter().find(|stream| !kinds.contains(&stream.kind)) {
        let kinds: Vec<&str> = kinds.iter().map(|kind| kind.as_str()).collect();
        return Err(Misuse::error(format_args!(
            "{}: this command is about streams of {}",
            wrong.key,
            kinds.join(", ")
        )));
    }
    found.sort();
    found.dedup();
    Ok(found)
}

/// The streams of any kind that patterns on the command line mean.
pub(super) async fn any_streams(
    connection: &mut MultiplexedConnection,
    keys: &Keys,
    names: &[String],
) -> anyhow::Result<Vec<StreamName>> {
    use StreamKind::{Broadcast, Dead, Events, Inbox, Reply, Results};
    let kinds = [Events, Inbox, Dead, Results, Broadcast, Reply];
    streams(connection, keys, names, &kinds).await
}

/// A stream, with the first and the last id that may fit.
#[derive(Clone, Debug)]
pub(super) struct Span {
    pub(crate) stream: StreamName,
    pub(crate) from: EntryId,
    pub(crate) to: EntryId,
}

/// A stream's name without the namespace, as tables show it and all commands take it. A partition
/// keeps its whole key: its short name means all of them.
pub(super) fn short(stream: &StreamName) -> String {
    let partition = format!("}}:{}", stream.kind.as_str());
    match stream.key.ends_with(&partition) && stream.kind != StreamKind::Broadcast {
        true => stream.key.clone(),
        false => plain(stream),
    }
}

/// What a stream is called on the command line.
fn plain(stream: &StreamName) -> String {
    match stream.kind {
        StreamKind::Broadcast => "broadcast".to_owned(),
        kind => format!("{}:{}", kind.as_str(), stream.part),
    }
}

fn no_stream(keys: &Keys, name: &str) -> anyhow::Error {
    let namespace = keys.namespace();
    Misuse::error(format_args!(
        "{name:?} is no stream: write broadcast, events:<domain>, results:<domain>, \
         dead:<domain>, inbox:<instance>, or a whole key that begins with {namespace}:"
    ))
}

/// The keys that a name on the command line means: one, or one per partition.
pub(super) fn stream_keys(keys: &Keys, name: &str) -> anyhow::Result<Vec<String>> {
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
    found.ok_or_else(|| no_stream(keys, name))
}

/// Whether the type is like the pattern.
pub(super) fn fits(glob: &str, kind: &str) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

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

    #[test]
    fn moments_are_ages_dates_or_entries() {
        for (text, meant) in [
            ("10m", Moment::Ago(Duration::from_secs(600))),
            ("1700000000000", Moment::At(1_700_000_000_000)),
            ("2023-11-14T22:13:20Z", Moment::At(1_700_000_000_000)),
            ("2023-11-14T22:13Z", Moment::At(1_699_999_980_000)),
            ("2023-11-14 22:13Z", Moment::At(1_699_999_980_000)),
            ("2023-11-14", Moment::At(1_699_920_000_000)),
            ("17-3", Moment::Entry(EntryId { ms: 17, seq: 3 })),
            ("0", Moment::Entry(EntryId::default())),
        ] {
            assert_eq!(moment(text), Ok(meant), "{text}");
        }
        for text in ["", "yesterday", "10", "2023-13-14", "-"] {
            let is_wrong = moment(text).is_err();
            assert!(is_wrong || text == "10", "{text}");
        }
    }

    #[test]
    fn conditions_look_into_payloads_and_then_at_the_events_own_fields() {
        let data = json!({"user": {"name": "ada", "n": 7, "tags": ["x", "80"]}, "none": null});
        let own = [&b"source"[..], b"shop", b"attempt", b"2", b"user", b"no"];
        let entry = Entry::new(EntryId::default(), own.map(<[u8]>::to_vec));
        for text in [
            "source",
            "source=shop",
            "attempt=2",
            "user",
            "user.name=ada",
            "user.n=7",
            "user.tags.0=x",
            "user.tags.1=80",
            "none=null",
            "user.name=\"ada\"",
            "none",
        ] {
            assert!(condition(text).unwrap().fits(&entry, &data), "{text}");
        }
        for text in [
            "source=shop2",
            "user=no",
            "user.n=8",
            "user.name=Ada",
            "user.x",
            "user.tags.2",
            "user.name.x",
            "x=1",
        ] {
            assert!(!condition(text).unwrap().fits(&entry, &data), "{text}");
        }
        for text in ["", "=1", "a..b=1", ".a"] {
            assert!(condition(text).is_err(), "{text}");
        }
    }
}
