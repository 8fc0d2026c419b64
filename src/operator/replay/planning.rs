//! What becomes of an entry that is to be replayed, and why one is left alone.

use super::mending::{Mend, mend};
use super::{
    Again, EDITED, Move, NoWayBack, STEP_BYTES, Source, WORDS, again, edit, set_field, way_back,
};
use crate::protocol::dead::Letter;
use crate::protocol::event::{Entry, EntryId, Event, Limits, payload_of};
use crate::protocol::keys::{Keys, StreamName, domain_of};
use std::borrow::Cow;

/// Replays after which an event came back too often.
pub const TOO_OFTEN: u32 = 3;

/// An entry that the conditions fit.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The stream where it is.
    pub stream: StreamName,
    /// The stream that it goes to.
    pub to: String,
    /// Its type.
    pub kind: String,
    /// How often it has been replayed then.
    pub replays: u32,
    /// What will be done.
    pub act: Move,
    /// Its payload before it was mended.
    pub before: Option<Vec<u8>>,
    /// Why it is left alone, if it is.
    pub left: Option<String>,
}

impl Candidate {
    /// Whether it may be part of the same step as those, of which there are `limit` at the most.
    pub fn goes_with(&self, step: &[Self], limit: usize) -> bool {
        let bytes = |one: &Self| one.act.fields.iter().map(Vec::len).sum::<usize>();
        let Some(first) = step.first() else {
            return true;
        };
        let size = step.iter().map(bytes).sum::<usize>() + bytes(self);
        step.len() < limit
            && size <= STEP_BYTES
            && first.stream == self.stream
            && first.to == self.to
    }
}

/// How events are changed on their way back, and which are left alone.
#[derive(Clone, Debug)]
pub struct Planner {
    /// The names of the keys.
    pub keys: Keys,
    /// What a worker takes.
    pub limits: Limits,
    /// Also what is left alone for its own good.
    pub force: bool,
    /// The type that the events get.
    pub to_type: Option<String>,
    /// What changes in their payloads.
    pub mends: Vec<Mend>,
    /// Who changes them.
    pub by: String,
}

impl Planner {
    /// What holds for all sources: whether it is an event, and how often it came back.
    pub fn check(&self, to: &str, fields: &[Vec<u8>], replays: u32) -> Option<String> {
        if fields.len() > WORDS {
            return Some("it has too many fields".into());
        }
        if let Some(kind) = &self.to_type
            && !self.keys.runs_from(kind, to)
        {
            return Some(format!("{kind} does not run from {to}"));
        }
        if self.force {
            return None;
        }
        if replays > TOO_OFTEN {
            return Some(format!("replayed {TOO_OFTEN} times already (--force)"));
        }
        let entry = Entry::new(EntryId::default(), fields);
        match Event::parse(entry, &self.limits, &self.keys, to) {
            Ok(event) if !self.keys.runs_from(event.kind(), to) => Some(format!(
                "no worker takes it: {} does not run from {to} (--force)",
                event.kind()
            )),
            Ok(_) => None,
            Err(bad) => Some(format!("no worker takes it: {} (--force)", bad.message)),
        }
    }

    /// An entry of a stream as it goes back; `left` says why it does not.
    pub fn candidate(
        &self,
        stream: &StreamName,
        entry: &Entry,
        to: String,
        mut again: Again,
        left: Option<String>,
    ) -> Candidate {
        let mut kind = String::from_utf8_lossy(entry.get("type").unwrap_or_default());
        if let Some(to_type) = &self.to_type {
            set_field(&mut again.fields, "type", to_type.as_bytes());
            set_field(&mut again.fields, EDITED, self.by.as_bytes());
            kind = to_type.into();
        }
        let mut left = left;
        let mut before = None;
        if !self.mends.is_empty() && left.is_none() {
            match self.mend(&mut again.fields) {
                Ok(was) => before = was,
                Err(why) => left = Some(why),
            }
        }
        Candidate {
            stream: stream.clone(),
            left: left.or_else(|| self.check(&to, &again.fields, again.replays)),
            to,
            kind: kind.into_owned(),
            replays: again.replays,
            before,
            act: Move {
                entry: entry.id,
                fields: again.fields,
                pending: None,
            },
        }
    }

    /// Mends a payload; returns what it was, if it is another one now.
    fn mend(&self, fields: &mut Vec<Vec<u8>>) -> Result<Option<Vec<u8>>, String> {
        let event = Entry::new(EntryId::default(), &*fields);
        let before = payload_of(&event).map_or_else(|| vec![0xc0], Cow::into_owned);
        let mended = mend(&before, &self.mends, &self.limits.payload)
            .map_err(|why| format!("it cannot be mended: {why}"))?;
        Ok(mended.map(|data| {
            edit(fields, &data, &self.by);
            before
        }))
    }

    /// A dead letter as it goes back.
    pub fn letter(
        &self,
        stream: &StreamName,
        entry: &Entry,
        mut letter: Letter,
        now_ms: u64,
    ) -> Candidate {
        if let Some(to_type) = &self.to_type {
            set_field(&mut letter.fields, "type", to_type.as_bytes());
        }
        // What never stood on a stream by itself has no entry that could serve as its id.
        let own_id = letter.entry.filter(|_| letter.attempts > 0);
        let again = again(&letter.fields, own_id, Source::Dead, now_ms);
        let way = way_back(&self.keys, stream, &letter);
        let (to, left) = match way.and_then(|to| self.of_type(to, stream)) {
            Ok(to) => (to, None),
            Err(why) => (String::new(), Some(why.to_string())),
        };
        self.candidate(stream, entry, to, again, too_large(entry).or(left))
    }

    /// The stream of the type that the events get: that of its domain.
    fn of_type(&self, to: String, dead: &StreamName) -> Result<String, NoWayBack> {
        let Some(kind) = &self.to_type else {
            return Ok(to);
        };
        if self.keys.runs_from(kind, &to) {
            return Ok(to);
        }
        let to = self.keys.events(domain_of(kind), dead.partition);
        match self.keys.share_slot(&to, &dead.key) {
            true => Ok(to),
            false => Err(NoWayBack::OtherDomain),
        }
    }
}

/// Why an entry that is larger than any event is left alone: only a part of it was read.
pub fn too_large(entry: &Entry) -> Option<String> {
    let size = entry.cut()? as f64 / f64::from(1 << 20);
    Some(format!(
        "too large: {size:.1} MiB, and no worker takes an event of that size"
    ))
}
