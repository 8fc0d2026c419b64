//! Points of time, as people say them.

use convoke::connect::clock::whole_ms;
use convoke::protocol::event::EntryId;
use std::time::Duration;

/// A point of time or of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Moment {
    Ago(Duration),
    At(u64),
    Entry(EntryId),
}

impl Moment {
    /// The first id that is not before it.
    pub(in crate::cli) fn first(self, now: u64) -> EntryId {
        match self {
            Moment::Entry(id) => id,
            _ => EntryId {
                ms: self.ms(now),
                seq: 0,
            },
        }
    }

    pub(super) fn last(self, now: u64) -> EntryId {
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
            Moment::Ago(ago) => now.saturating_sub(whole_ms(ago)),
            Moment::At(ms) => ms,
            Moment::Entry(id) => id.ms,
        }
    }
}

/// Parses a [`Moment`].
pub(in crate::cli) fn moment(text: &str) -> Result<Moment, String> {
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

/// A point of time that may lie ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Due {
    In(Duration),
    At(u64),
}

impl Due {
    /// In Unix ms.
    pub(in crate::cli) fn ms(self, now: u64) -> u64 {
        match self {
            Due::In(ahead) => now.saturating_add(whole_ms(ahead)),
            Due::At(ms) => ms,
        }
    }
}

/// Parses a [`Due`].
pub(in crate::cli) fn due(text: &str) -> Result<Due, String> {
    match moment(text) {
        Ok(Moment::Ago(ahead)) => Ok(Due::In(ahead)),
        Ok(Moment::At(ms)) => Ok(Due::At(ms)),
        Ok(Moment::Entry(_)) | Err(_) => Err(format!(
            "{text:?} is no time: write 10m (from now), 2030-01-31, 2030-01-31T06:00Z, or Unix milliseconds"
        )),
    }
}
