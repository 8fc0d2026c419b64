//! Dead letters: events that will not be retried, with everything that tells why.

use crate::protocol::event::{Entry, EntryId};

/// An event that will not be retried.
#[derive(Clone, Debug)]
pub struct DeadLetter {
    /// Its entry as it came.
    pub entry: Entry,
    /// A code of the protocol, or `poison`.
    pub reason: String,
    /// What happened.
    pub message: String,
    /// Tries so far.
    pub attempts: u32,
    /// Deliveries of this entry.
    pub deliveries: u32,
    /// The stream that it stood on, or was to enter.
    pub stream: String,
    /// Who gave it up.
    pub instance: String,
    /// When, in Unix milliseconds.
    pub time: u64,
}

/// The reason of an event that was delivered too often without ever being committed.
pub const POISON: &str = "poison";

impl DeadLetter {
    /// The fields of its entry: the event's own in their order, then those that begin with `dead`.
    pub fn fields(&self) -> Vec<Vec<u8>> {
        let DeadLetter { entry, .. } = self;
        let mut fields: Vec<Vec<u8>> = entry.words().map(<[u8]>::to_vec).collect();
        let mut add = |name: &str, value: &str| {
            fields.push(name.into());
            fields.push(value.into());
        };
        add("deadreason", &self.reason);
        add("deadmessage", &self.message);
        add("deadattempts", &self.attempts.to_string());
        add("deaddeliveries", &self.deliveries.to_string());
        add("deadstream", &self.stream);
        add("deadentry", &entry.id.to_string());
        add("deadinstance", &self.instance);
        add("deadtime", &self.time.to_string());
        fields
    }
}

/// The names of the fields that describe a death, as they follow the event's own.
const TOLD: [&str; 8] = [
    "deadreason",
    "deadmessage",
    "deadattempts",
    "deaddeliveries",
    "deadstream",
    "deadentry",
    "deadinstance",
    "deadtime",
];

/// A dead letter as it was read from its stream. What it tells was written by whoever may write there.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Letter {
    /// Names and values of the event's own fields in turn.
    pub fields: Vec<Vec<u8>>,
    /// A code of the protocol, or `poison`.
    pub reason: String,
    /// What happened.
    pub message: String,
    /// Tries of the event.
    pub attempts: u64,
    /// Deliveries of its last entry.
    pub deliveries: u64,
    /// The stream that it stood on.
    pub stream: Option<String>,
    /// Its entry there.
    pub entry: Option<EntryId>,
    /// Who gave it up.
    pub instance: Option<String>,
    /// When, in Unix ms.
    pub time: Option<u64>,
}

impl Letter {
    /// Takes an entry of a dead-letter stream apart. An event may have fields of the same names: those
    /// at the end are the bus's.
    pub fn read(entry: &Entry) -> Self {
        let mut letter = Self::default();
        let words: Vec<&[u8]> = entry.words().collect();
        let mut own = words.len() / 2;
        let mut seen = [false; TOLD.len()];
        for pair in words.chunks_exact(2).rev() {
            let name = pair[0];
            let Some(at) = TOLD.iter().position(|told| told.as_bytes() == name) else {
                break;
            };
            if std::mem::replace(&mut seen[at], true) {
                break;
            }
            own -= 1;
            letter.tell(TOLD[at], &String::from_utf8_lossy(pair[1]));
        }
        letter.fields = words[..2 * own].iter().map(|word| word.to_vec()).collect();
        letter
    }

    fn tell(&mut self, name: &str, value: &str) {
        match name {
            "deadreason" => self.reason = value.to_owned(),
            "deadmessage" => self.message = value.to_owned(),
            "deadattempts" => self.attempts = value.parse().unwrap_or(0),
            "deaddeliveries" => self.deliveries = value.parse().unwrap_or(0),
            "deadstream" => self.stream = Some(value.to_owned()),
            "deadentry" => self.entry = value.parse().ok(),
            "deadinstance" => self.instance = Some(value.to_owned()),
            "deadtime" => self.time = value.parse().ok(),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_letter_is_read_as_it_was_written() {
        let fields: Vec<Vec<u8>> = ["type", "a.b", "data", "x", "deadreason", "my own"]
            .iter()
            .map(|text| text.as_bytes().to_vec())
            .collect();
        let dead = DeadLetter {
            entry: Entry::new(EntryId { ms: 7, seq: 1 }, &fields),
            reason: POISON.into(),
            message: "it kills".into(),
            attempts: 3,
            deliveries: 6,
            stream: "cb:events:a".into(),
            instance: "w-1".into(),
            time: 99,
        };
        let letter = Letter::read(&Entry::new(EntryId::default(), dead.fields()));
        assert_eq!(letter.fields, fields);
        assert_eq!((&*letter.reason, &*letter.message), (POISON, "it kills"));
        assert_eq!((letter.attempts, letter.deliveries), (3, 6));
        assert_eq!(letter.stream.as_deref(), Some("cb:events:a"));
        assert_eq!(letter.entry, Some(EntryId { ms: 7, seq: 1 }));
        assert_eq!(letter.instance.as_deref(), Some("w-1"));
        assert_eq!(letter.time, Some(99));
        let event = Letter::read(&Entry::new(EntryId::default(), &fields[..4]));
        assert_eq!((event.reason.as_str(), event.fields.len()), ("", 4));
    }
}
