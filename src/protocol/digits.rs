//! Numbers and ids as text, without an allocation.
//!
//! An id is two numbers in one buffer, written in place: a crate for digits would write each into its own, to be
//! copied from there.

use crate::protocol::entry::EntryId;
use std::fmt;

/// The decimal digits of a number, without an allocation.
#[derive(Clone, Copy)]
pub struct Digits {
    bytes: [u8; 20],
    begin: usize,
}

impl Digits {
    /// The digits of `number`.
    pub fn of(mut number: u64) -> Self {
        let mut digits = Self {
            bytes: [0; 20],
            begin: 20,
        };
        loop {
            digits.begin -= 1;
            digits.bytes[digits.begin] = b'0' + (number % 10) as u8;
            number /= 10;
            if number == 0 {
                return digits;
            }
        }
    }
}

impl AsRef<[u8]> for Digits {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[self.begin..]
    }
}

/// An entry id as text, without an allocation.
#[derive(Clone, Copy)]
pub struct IdText {
    bytes: [u8; 41],
    length: usize,
}

impl From<EntryId> for IdText {
    fn from(id: EntryId) -> Self {
        let mut text = Self {
            bytes: [0; 41],
            length: 0,
        };
        let (ms, seq) = (Digits::of(id.ms), Digits::of(id.seq));
        for part in [ms.as_ref(), b"-", seq.as_ref()] {
            text.bytes[text.length..][..part.len()].copy_from_slice(part);
            text.length += part.len();
        }
        text
    }
}

impl IdText {
    /// The text.
    pub fn as_str(&self) -> &str {
        // It is digits.
        std::str::from_utf8(self.as_ref()).unwrap_or_default()
    }
}

impl AsRef<[u8]> for IdText {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(IdText::from(*self).as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn digits_are_those_of_the_number(number in any::<u64>()) {
            let digits = Digits::of(number);
            let text = number.to_string();
            prop_assert_eq!(digits.as_ref(), text.as_bytes());
        }

        #[test]
        fn an_ids_text_is_the_ids(ms in any::<u64>(), seq in any::<u64>()) {
            let id = EntryId { ms, seq };
            let text = format!("{}-{}", id.ms, id.seq);
            prop_assert_eq!(id.to_string(), text.clone());
            let id = IdText::from(id);
            prop_assert_eq!(id.as_ref(), text.as_bytes());
            prop_assert_eq!(id.as_str(), text);
        }
    }
}
