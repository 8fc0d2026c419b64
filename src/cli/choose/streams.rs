//! Which streams the names on the command line mean.

use super::fits;
use crate::cli::Misuse;
use crate::cli::within::Within;
use convoke::protocol::event::EntryId;
use convoke::protocol::keys::{self, Keys, StreamKind, StreamName};

/// The streams that names on the command line mean; without names, all of these kinds.
///
/// A name without a kind (`image`) is a domain, and means its stream of the first kind; a `*` stands
/// for any characters. What lies on a node that is away is left out.
pub(in crate::cli) async fn streams(
    within: &Within,
    keys: &Keys,
    names: &[String],
    kinds: &[StreamKind],
) -> anyhow::Result<Vec<StreamName>> {
    let wild = names.iter().any(|name| name.contains(['*', '?']));
    let there = match names.is_empty() || wild {
        true => within.streams(keys).await?,
        false => Vec::new(),
    };
    within.of(named(keys, names, kinds, &there)?).await
}

/// The same of those that are there.
pub(in crate::cli) fn named(
    keys: &Keys,
    names: &[String],
    kinds: &[StreamKind],
    there: &[StreamName],
) -> anyhow::Result<Vec<StreamName>> {
    let mut found: Vec<StreamName> = Vec::new();
    if names.is_empty() {
        let there = there.iter().filter(|name| kinds.contains(&name.kind));
        return Ok(there.cloned().collect());
    }
    for name in names {
        let full = match name.contains(':') || name == "broadcast" {
            true => name.clone(),
            false => format!("{}:{name}", kinds[0].as_str()),
        };
        if full.contains(['*', '?']) {
            let fitting = there
                .iter()
                .filter(|s| fits(&full, &s.key) || fits(&full, &plain(s)));
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
pub(in crate::cli) async fn any_streams(
    within: &Within,
    keys: &Keys,
    names: &[String],
) -> anyhow::Result<Vec<StreamName>> {
    use StreamKind::{Broadcast, Dead, Events, Inbox, Reply, Results};
    let kinds = [Events, Inbox, Dead, Results, Broadcast, Reply];
    let there = within.streams(keys).await?;
    named(keys, names, &kinds, &there)
}

/// A stream, with the first and the last id that may fit.
#[derive(Clone, Debug)]
pub(in crate::cli) struct Span {
    pub(crate) stream: StreamName,
    pub(crate) from: EntryId,
    pub(crate) to: EntryId,
}

/// A stream's name without the namespace, as tables show it and all commands take it. A partition
/// keeps its whole key: its short name means all of them.
pub(in crate::cli) fn short(stream: &StreamName) -> String {
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
pub(in crate::cli) fn stream_keys(keys: &Keys, name: &str) -> anyhow::Result<Vec<String>> {
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
