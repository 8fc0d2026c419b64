//! A stream entry as it came: its id, its field names and values.

use std::fmt;
use std::str::FromStr;

/// A stream entry's id: milliseconds and a sequence number, by the server's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId {
    /// Unix milliseconds.
    pub ms: u64,
    /// Counts the entries of one millisecond.
    pub seq: u64,
}

impl EntryId {
    /// The id that follows this one.
    pub fn next(self) -> Self {
        match self.seq.checked_add(1) {
            Some(seq) => Self { ms: self.ms, seq },
            None => Self {
                ms: self.ms.saturating_add(1),
                seq: 0,
            },
        }
    }

    /// Reads one as the server writes it; `None` if it is another text.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let at = bytes.iter().position(|&byte| byte == b'-');
        let (ms, seq) = match at {
            Some(at) => (&bytes[..at], &bytes[at + 1..]),
            None => (bytes, &b"0"[..]),
        };
        match (number(ms), number(seq)) {
            (Some(ms), Some(seq)) => Some(Self { ms, seq }),
            _ => std::str::from_utf8(bytes).ok()?.parse().ok(),
        }
    }
}

/// The number that these digits are, if they are few enough to be one.
fn number(digits: &[u8]) -> Option<u64> {
    let is_number = (1..=19).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit);
    let value = |digits: &[u8]| {
        let add = |number, digit: &u8| number * 10 + u64::from(digit - b'0');
        digits.iter().fold(0, add)
    };
    is_number.then(|| value(digits))
}

/// Not an entry id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an entry id such as 1700000000000-0")]
pub struct ParseEntryIdError(String);

impl FromStr for EntryId {
    type Err = ParseEntryIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (ms, seq) = text.split_once('-').unwrap_or((text, "0"));
        match (ms.parse(), seq.parse()) {
            (Ok(ms), Ok(seq)) => Ok(Self { ms, seq }),
            _ => Err(ParseEntryIdError(text.chars().take(64).collect())),
        }
    }
}

/// One stream entry as it came: names and values in turn, all in one allocation.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Entry {
    /// The entry's id.
    pub id: EntryId,
    /// Each word with its length before it (u32, little-endian). An even number of words.
    words: Vec<u8>,
    /// How many bytes its words had, if they were cut; else 0.
    cut: u64,
}

/// Bytes of a word's length.
const LENGTH: usize = 4;

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the values: they may be large, and hold what must not be in a log.
        write!(f, "Entry({}, {} fields)", self.id, self.pairs().count())
    }
}

impl Entry {
    /// An entry of these names and values in turn. A name at the end without a value is left out.
    pub fn new(id: EntryId, fields: impl IntoIterator<Item: AsRef<[u8]>>) -> Self {
        let mut entry = Self {
            id,
            words: Vec::new(),
            cut: 0,
        };
        let mut fields = fields.into_iter();
        while let (Some(name), Some(value)) = (fields.next(), fields.next()) {
            entry.push(name.as_ref());
            entry.push(value.as_ref());
        }
        entry
    }

    /// An entry without fields yet, with room for this many bytes in this many words.
    pub(crate) fn with_capacity(id: EntryId, bytes: usize, words: usize) -> Self {
        Self {
            id,
            words: Vec::with_capacity(bytes + LENGTH * words),
            cut: 0,
        }
    }

    /// Notes that what it has are parts of fields that had this many bytes.
    pub(crate) fn was_cut(&mut self, bytes: u64) {
        self.cut = bytes;
    }

    /// How many bytes its fields had, if they are here in part.
    pub fn cut(&self) -> Option<u64> {
        (self.cut > 0).then_some(self.cut)
    }

    /// Bytes that its fields have in the stream, here or not.
    pub fn bytes(&self) -> u64 {
        self.cut
            .max(self.words().map(|word| word.len() as u64).sum())
    }

    /// Adds a word; whoever does sees to it that their number is even.
    pub(crate) fn push(&mut self, word: &[u8]) {
        // A server takes no word of 4 GiB.
        let length = u32::try_from(word.len()).unwrap_or(u32::MAX);
        self.words.extend_from_slice(&length.to_le_bytes());
        self.words.extend_from_slice(&word[..length as usize]);
    }

    /// Bytes that it takes in memory, about.
    pub fn size(&self) -> usize {
        self.words.len()
    }

    /// Whether it has no fields: its payload was deleted or trimmed.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// The value of the first field of that name.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.pairs()
            .find(|(field, _)| *field == name.as_bytes())
            .map(|(_, value)| value)
    }

    /// The fields in order.
    pub fn pairs(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.places().map(|(name, value, _)| (name, value))
    }

    /// Names and values in turn.
    pub fn words(&self) -> impl Iterator<Item = &[u8]> {
        self.pairs().flat_map(|(name, value)| [name, value])
    }

    /// The fields in order, each with the place from which [`Entry::word_at`] gives its value: never 0.
    pub(crate) fn places(&self) -> impl Iterator<Item = (&[u8], &[u8], u32)> {
        let mut at = 0;
        std::iter::from_fn(move || {
            if at == self.words.len() {
                return None;
            }
            let name = self.word_at(at as u32);
            let place = at + LENGTH + name.len();
            let value = self.word_at(place as u32);
            at = place + LENGTH + value.len();
            Some((name, value, place as u32))
        })
    }

    /// The word whose length stands at that place.
    pub(crate) fn word_at(&self, place: u32) -> &[u8] {
        let rest = &self.words[place as usize..];
        let Some((length, rest)) = rest.split_first_chunk::<LENGTH>() else {
            return &[];
        };
        &rest[..u32::from_le_bytes(*length) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_goes_in_comes_out(fields in proptest::collection::vec(
            proptest::collection::vec(any::<u8>(), 0..20), 0..12)) {
            let entry = Entry::new(EntryId::default(), &fields);
            let even = fields.len() / 2 * 2;
            let words: Vec<&[u8]> = entry.words().collect();
            prop_assert_eq!(words, &fields[..even]);
            prop_assert_eq!(entry.is_empty(), even == 0);
            for (_, value, place) in entry.places() {
                prop_assert!(place > 0);
                prop_assert_eq!(entry.word_at(place), value);
            }
        }

        #[test]
        fn entry_ids_round_trip(ms in any::<u64>(), seq in any::<u64>()) {
            let id = EntryId { ms, seq };
            prop_assert_eq!(id.to_string().parse::<EntryId>(), Ok(id));
            prop_assert_eq!(EntryId::parse(id.to_string().as_bytes()), Some(id));
        }
    }

    #[test]
    fn what_is_no_id_is_none() {
        let parse = |text: &str| EntryId::parse(text.as_bytes());
        for text in [
            "",
            "-",
            "7-",
            "-7",
            "7-x",
            "7-1-1",
            "18446744073709551616-0",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
        let most = "18446744073709551615-18446744073709551615";
        assert_eq!(parse(most), most.parse().ok());
        assert_eq!(parse("7"), Some(EntryId { ms: 7, seq: 0 }));
    }

    #[test]
    fn the_first_field_of_a_name_counts() {
        let entry = Entry::new(EntryId::default(), ["a", "1", "b", "2", "a", "3"]);
        assert_eq!(entry.get("a"), Some(&b"1"[..]));
        assert_eq!(entry.get("c"), None);
    }
}
