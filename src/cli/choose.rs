//! Which streams and which entries a command is about, as people say it.

mod condition;
mod moment;
mod streams;
#[cfg(test)]
mod tests;

pub(super) use condition::{Condition, condition};
pub(super) use moment::{Due, Moment, due, moment};
pub(super) use streams::{Span, any_streams, named, short, stream_keys, streams};

use clap::Args;
pub(super) use convoke::operator::replay::wanted::fits;
use convoke::protocol::event::{Entry, EntryId, payload_of};
use convoke::protocol::json;
use std::collections::BTreeSet;
use std::io::{self, Read};

/// Which entries.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Which entries (all conditions must hold)")]
pub(super) struct Filters {
    /// Only these entry ids; from a file, or - for standard input, with blanks, commas or lines between them
    #[arg(long = "id", value_name = "ENTRY,…|@FILE|-", value_parser = ids)]
    pub(crate) ids: Vec<Ids>,
    #[command(flatten)]
    pub(crate) what: What,
    /// Only entries from then on: 10m (ago), a date such as 2026-11-24T03:00Z, or an entry id
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub(crate) since: Option<Moment>,
    /// Only entries up to then
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub(crate) until: Option<Moment>,
}

/// Which events, by what they hold.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Which entries (all conditions must hold)")]
pub(super) struct What {
    /// Only types like this: * stands for any characters, ? for one
    #[arg(long = "type", value_name = "GLOB")]
    pub(crate) kind: Option<String>,
    /// Only entries with this field, or with this value in it: of the payload (user.name=ada, width=80), or
    /// of the event itself (source=shop, subject, id, lasterror)
    #[arg(long = "where", value_name = "FIELD[=VALUE]", value_parser = condition)]
    pub(crate) payload: Vec<Condition>,
}

impl Filters {
    /// Whether nothing was said.
    pub(super) fn is_empty(&self) -> bool {
        self.ids.is_empty() && self.since.is_none() && self.until.is_none() && self.what.is_empty()
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

    /// Says which fields no entry has.
    pub(super) fn complain(&self) {
        self.what.complain();
    }

    /// Whether an entry fits whose id does.
    pub(super) fn fit(&self, entry: &Entry) -> bool {
        self.what.fit(entry)
    }
}

impl What {
    /// Whether nothing was said.
    pub(super) fn is_empty(&self) -> bool {
        self.kind.is_none() && self.payload.is_empty()
    }

    /// Says which fields no entry has, so that a word that is misspelt is not taken for one that fits nothing.
    pub(super) fn complain(&self) {
        for condition in &self.payload {
            condition.complain();
        }
    }

    /// Whether an entry fits.
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
pub(super) struct Ids(pub(crate) BTreeSet<EntryId>);

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
