//! Keeps what stands in a stream from filling the reader's memory.
//!
//! Who may add to a stream may add entries of any size, and the server sends them whole. A [`Sieve`] takes the
//! reply to a read as it arrives and passes it on, except for the fields of entries that are over a bound: of
//! those it keeps enough to tell what they were and who asked. It holds no more than one
//! line of the reply by itself.

use crate::connect::resp::wire::{NoResp, Token, Tokens, number};

/// Fields that are kept of an entry that is over the bound.
const FIELDS: u64 = 32;
/// Bytes that are kept of such a field's name, and of its value: one more than either may have, so that
/// what was cut is never taken for whole.
const NAME: usize = 65;
const VALUE: usize = 257;
/// The longest line that is no status and no error: a marker and a number.
const LINE: usize = 32;

/// How deep in a reply the fields of entries are.
#[derive(Clone, Copy, Debug)]
pub enum Shape {
    /// `XRANGE`: entries.
    Entries,
    /// `XREADGROUP`: streams, each with its entries.
    Streams,
}

impl Shape {
    fn depth(self) -> usize {
        match self {
            Shape::Entries => 3,
            Shape::Streams => 5,
        }
    }
}

/// Passes on one reply. Behind the fields of an entry that were cut stands a status: how many bytes they
/// had.
#[derive(Debug)]
pub struct Sieve {
    depth: usize,
    limit: usize,
    /// Values still to come in each open array, outermost first.
    open: Vec<u64>,
    /// The line that has begun to arrive.
    line: Vec<u8>,
    /// The string that is arriving.
    body: Option<Body>,
    /// The fields that are arriving.
    fields: Option<Fields>,
    done: bool,
}

#[derive(Debug)]
struct Body {
    /// Bytes still to come, the line's end included.
    left: usize,
    /// Of those, how many are passed on.
    keep: usize,
    /// Whether a line's end is to be added: the string's own is not passed on.
    cut: bool,
}

#[derive(Debug)]
struct Fields {
    /// Where they begin in what was passed on.
    begin: usize,
    words: u64,
    seen: u64,
    /// Bytes of the words so far.
    bytes: u64,
    cut: bool,
}

impl Sieve {
    /// For a reply of that shape; the fields of one entry may take `limit` bytes of it.
    pub fn new(shape: Shape, limit: usize) -> Self {
        Self {
            depth: shape.depth(),
            limit,
            open: Vec::with_capacity(shape.depth()),
            line: Vec::new(),
            body: None,
            fields: None,
            done: false,
        }
    }

    /// Whether the reply has arrived.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Takes what arrived and passes it on; returns how much of it belongs to the reply.
    ///
    /// # Errors
    /// The bytes are no RESP.
    pub fn pass(&mut self, arrived: &[u8], on: &mut Vec<u8>) -> Result<usize, NoResp> {
        let mut rest = arrived;
        while !self.done && !rest.is_empty() {
            if let Some(body) = &mut self.body {
                let part = body.left.min(rest.len());
                let kept = body.keep.min(part);
                on.extend_from_slice(&rest[..kept]);
                body.keep -= kept;
                body.left -= part;
                rest = &rest[part..];
                if body.left == 0 {
                    if body.cut {
                        on.extend_from_slice(b"\r\n");
                    }
                    self.body = None;
                    self.ended(on);
                }
                continue;
            }
            let Some(end) = rest.iter().position(|&b| b == b'\n') else {
                self.line.extend_from_slice(rest);
                if self.line.len() > LINE && !matches!(self.line[0], b'+' | b'-') {
                    return Err(NoResp);
                }
                return Ok(arrived.len());
            };
            let (now, later) = rest.split_at(end + 1);
            rest = later;
            if self.line.is_empty() {
                self.begun(now, on)?;
            } else {
                let mut line = std::mem::take(&mut self.line);
                line.extend_from_slice(now);
                self.begun(&line, on)?;
                line.clear();
                self.line = line;
            }
        }
        Ok(arrived.len() - rest.len())
    }

    /// A value begins with that line.
    fn begun(&mut self, line: &[u8], on: &mut Vec<u8>) -> Result<(), NoResp> {
        let head = line.strip_suffix(b"\r\n").ok_or(NoResp)?;
        let (&kind, text) = head.split_first().ok_or(NoResp)?;
        if !matches!(kind, b'*' | b'$') {
            on.extend_from_slice(line);
            self.ended(on);
            return Ok(());
        }
        let length = number(text).filter(|n| *n >= -1).ok_or(NoResp)?;
        let length = usize::try_from(length).ok();
        match (kind, length) {
            (b'$', Some(length)) => self.string(line, length, on),
            (b'*', Some(values @ 1..)) => {
                let begin = on.len();
                on.extend_from_slice(line);
                self.open.push(values as u64);
                if self.open.len() == self.depth {
                    self.fields = Some(Fields {
                        begin,
                        words: values as u64,
                        seen: 0,
                        bytes: 0,
                        cut: false,
                    });
                }
                // Nothing that is read here is nested deeper than fields are.
                if self.open.len() > self.depth {
                    return Err(NoResp);
                }
                Ok(())
            }
            _ => {
                on.extend_from_slice(line);
                self.ended(on);
                Ok(())
            }
        }
    }

    /// A string of that length begins.
    fn string(&mut self, line: &[u8], length: usize, on: &mut Vec<u8>) -> Result<(), NoResp> {
        let left = length.checked_add(2).ok_or(NoResp)?;
        let Some(fields) = &mut self.fields else {
            on.extend_from_slice(line);
            let keep = left;
            let cut = false;
            self.body = Some(Body { left, keep, cut });
            return Ok(());
        };
        let number = fields.seen;
        fields.seen += 1;
        fields.bytes += length as u64;
        let takes = on.len() - fields.begin + line.len();
        if !fields.cut && takes.saturating_add(left) > self.limit {
            fields.cut = true;
            let whole = on.split_off(fields.begin);
            // What was taken for it so far is given back.
            on.shrink_to(on.len() + on.len() / 2);
            cut(&whole, fields.words, on)?;
        }
        let body = match fields.cut {
            false => {
                on.extend_from_slice(line);
                let (keep, cut) = (left, false);
                Body { left, keep, cut }
            }
            true => {
                let cut = number < 2 * FIELDS;
                let keep = if cut { kept(number, length) } else { 0 };
                if cut {
                    on.extend_from_slice(format!("${keep}\r\n").as_bytes());
                }
                Body { left, keep, cut }
            }
        };
        self.body = Some(body);
        Ok(())
    }

    /// A value has ended, and perhaps the arrays around it.
    fn ended(&mut self, on: &mut Vec<u8>) {
        while let Some(left) = self.open.last_mut() {
            *left -= 1;
            if *left > 0 {
                return;
            }
            if self.open.len() == self.depth
                && let Some(fields) = self.fields.take()
                && fields.cut
            {
                on.extend_from_slice(format!("+{}\r\n", fields.bytes).as_bytes());
            }
            self.open.pop();
        }
        self.done = true;
    }
}

/// Bytes that are kept of the word of that number.
fn kept(number: u64, length: usize) -> usize {
    length.min(if number.is_multiple_of(2) {
        NAME
    } else {
        VALUE
    })
}

/// Writes what is kept of fields of which a part has arrived.
fn cut(arrived: &[u8], words: u64, on: &mut Vec<u8>) -> Result<(), NoResp> {
    let mut tokens = Tokens::new(arrived);
    tokens.token()?;
    on.extend_from_slice(format!("*{}\r\n", words.min(2 * FIELDS)).as_bytes());
    let mut number = 0;
    while number < 2 * FIELDS && !tokens.rest().is_empty() {
        let Token::Bulk(word) = tokens.token()? else {
            return Err(NoResp);
        };
        let word = &word[..kept(number, word.len())];
        on.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        on.extend_from_slice(word);
        on.extend_from_slice(b"\r\n");
        number += 1;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bulk(word: &[u8]) -> Vec<u8> {
        [format!("${}\r\n", word.len()).as_bytes(), word, b"\r\n"].concat()
    }

    fn array(values: &[Vec<u8>]) -> Vec<u8> {
        [
            format!("*{}\r\n", values.len()).into_bytes(),
            values.concat(),
        ]
        .concat()
    }

    fn entry(id: &str, words: &[Vec<u8>]) -> Vec<u8> {
        let words: Vec<Vec<u8>> = words.iter().map(|word| bulk(word)).collect();
        array(&[bulk(id.as_bytes()), array(&words)])
    }

    fn streams(entries: &[Vec<u8>]) -> Vec<u8> {
        array(&[array(&[bulk(b"cb:events:a"), array(entries)])])
    }

    /// What comes through of a reply in parts of that size, and how much the sieve held.
    fn sifted(shape: Shape, limit: usize, reply: &[u8], step: usize) -> Vec<u8> {
        let mut sieve = Sieve::new(shape, limit);
        let mut on = Vec::new();
        let more = [reply, b"+NEXT\r\n"].concat();
        let mut used = 0;
        for part in more.chunks(step) {
            used += sieve.pass(part, &mut on).unwrap();
            assert!(sieve.line.len() <= LINE);
            if sieve.is_done() {
                break;
            }
        }
        assert!(sieve.is_done());
        assert_eq!(used, reply.len());
        on
    }

    #[test]
    fn what_is_within_the_bound_comes_through_as_it_is() {
        let words = [
            b"type".to_vec(),
            b"a.b".to_vec(),
            b"data".to_vec(),
            vec![7; 500],
        ];
        let entries = [
            entry("1-1", &words),
            entry("1-2", &[]),
            entry("1-3", &words),
        ];
        let gone = array(&[bulk(b"1-4"), b"*-1\r\n".to_vec()]);
        for step in [1, 3, 7, 64, 10_000] {
            let reply = streams(&[&entries[..], std::slice::from_ref(&gone)].concat());
            assert_eq!(sifted(Shape::Streams, 1000, &reply, step), reply);
            let reply = array(&entries);
            assert_eq!(sifted(Shape::Entries, 1000, &reply, step), reply);
            for reply in [
                &b"*-1\r\n"[..],
                b"-NOGROUP no such group\r\n",
                b"*0\r\n",
                b"$-1\r\n",
            ] {
                assert_eq!(sifted(Shape::Streams, 1000, reply, step), reply);
            }
        }
    }

    #[test]
    fn what_is_over_it_is_cut_and_says_how_much_it_was() {
        let words = |data: usize| {
            let mut words = vec![b"data".to_vec(), vec![7; data]];
            words.extend([
                b"type".to_vec(),
                b"a.b".to_vec(),
                vec![b'n'; 70],
                b"x".to_vec(),
            ]);
            words.extend((0..100).flat_map(|n| [format!("f{n}").into_bytes(), vec![1; 3]]));
            words
        };
        let small = [b"type".to_vec(), b"c.d".to_vec()];
        let large = words(5000);
        let bytes: usize = large.iter().map(Vec::len).sum();
        let first = large[..64].iter().enumerate();
        let words: Vec<Vec<u8>> = first
            .map(|(at, word)| word[..kept(at as u64, word.len())].to_vec())
            .collect();
        let told = format!("+{bytes}\r\n").into_bytes();
        let cut = [entry("1-1", &words), told].concat();
        for step in [1, 5, 300, 100_000] {
            let reply = streams(&[entry("1-1", &large), entry("1-2", &small)]);
            let want = streams(&[cut.clone(), entry("1-2", &small)]);
            assert_eq!(sifted(Shape::Streams, 1000, &reply, step), want);
        }
        // It goes over the bound with its last word.
        let late = [
            b"type".to_vec(),
            b"a.b".to_vec(),
            b"data".to_vec(),
            vec![7; 990],
        ];
        let want = [
            entry(
                "1-1",
                &[
                    late[0].clone(),
                    late[1].clone(),
                    late[2].clone(),
                    vec![7; VALUE],
                ],
            ),
            b"+1001\r\n".to_vec(),
        ];
        let reply = array(&[entry("1-1", &late)]);
        assert_eq!(
            sifted(Shape::Entries, 1000, &reply, 9),
            array(&[want.concat()])
        );
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(
            prop_oneof![Just(b'*'), Just(b'$'), Just(b'1'), Just(b'3'), Just(b'\r'), Just(b'\n'), any::<u8>()], 0..80),
            step in 1usize..20) {
            let mut sieve = Sieve::new(Shape::Entries, 10);
            let mut on = Vec::new();
            for part in bytes.chunks(step) {
                if sieve.pass(part, &mut on).is_err() {
                    break;
                }
            }
        }
    }
}
