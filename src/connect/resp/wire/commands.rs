//! Commands, as RESP: written into one buffer, sent in one go.

use super::KEPT;
use crate::protocol::digits::Digits;

/// Bytes around a word at the most.
const AROUND: usize = 25;

/// Commands, ready to be sent.
#[derive(Default)]
pub struct Commands {
    pub(super) bytes: Vec<u8>,
    count: usize,
}

impl Commands {
    /// Adds a whole command.
    pub fn add(&mut self, words: &[&[u8]]) {
        self.begin(words.len());
        for word in words {
            self.word(word);
        }
    }

    /// Begins a command of this many words; [`Commands::word`] gives them.
    pub fn begin(&mut self, words: usize) {
        self.count += 1;
        self.bytes.push(b'*');
        self.bytes
            .extend_from_slice(Digits::of(words as u64).as_ref());
        self.bytes.extend_from_slice(b"\r\n");
    }

    /// The next word of the command that was begun.
    pub fn word(&mut self, word: &[u8]) {
        // One place is made for all of it: this is where publishing spends its time.
        self.bytes.reserve(word.len() + AROUND);
        match word.len() {
            length @ 0..10 => {
                self.bytes
                    .extend_from_slice(&[b'$', b'0' + length as u8, b'\r', b'\n'])
            }
            length @ 10..100 => self.bytes.extend_from_slice(&[
                b'$',
                b'0' + (length / 10) as u8,
                b'0' + (length % 10) as u8,
                b'\r',
                b'\n',
            ]),
            length => {
                self.bytes.push(b'$');
                self.bytes
                    .extend_from_slice(Digits::of(length as u64).as_ref());
                self.bytes.extend_from_slice(b"\r\n");
            }
        }
        self.bytes.extend_from_slice(word);
        self.bytes.extend_from_slice(b"\r\n");
    }

    /// How many commands there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The commands as they are sent.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Forgets them.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(KEPT);
        self.count = 0;
    }
}
