//! Replies, as RESP: token by token out of the bytes, and where a reply ends.

use crate::connect::error::BusError;
use redis::{ErrorKind, RedisError};

/// One value of a reply; an array is followed by its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token<'a> {
    /// `+`
    Status(&'a [u8]),
    /// `-`
    Error(&'a [u8]),
    /// `:`
    Int(i64),
    /// `$`
    Bulk(&'a [u8]),
    /// `*`, with the number of values that follow.
    Array(usize),
    /// A bulk string or an array that is not there.
    Nil,
}

/// Bytes that are no RESP, or end early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoResp;

#[doc(hidden)]
impl From<NoResp> for BusError {
    fn from(_: NoResp) -> Self {
        BusError::Redis(RedisError::from((
            ErrorKind::Parse,
            "the server answered what is no RESP",
        )))
    }
}

/// The values of one reply, in order.
#[derive(Clone, Debug)]
pub struct Tokens<'a>(&'a [u8]);

impl<'a> Tokens<'a> {
    /// The tokens in `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The next one.
    ///
    /// # Errors
    /// The bytes end, or are no RESP.
    pub fn token(&mut self) -> Result<Token<'a>, NoResp> {
        if let Some((length, head)) = short(self.0) {
            let bulk = self.0.get(head..head + length).ok_or(NoResp)?;
            self.0 = self.0.get(head + length + 2..).ok_or(NoResp)?;
            return Ok(Token::Bulk(bulk));
        }
        let (head, rest) = line(self.0).ok_or(NoResp)?;
        let (&kind, text) = head.split_first().ok_or(NoResp)?;
        let token = match kind {
            b'+' => Token::Status(text),
            b'-' => Token::Error(text),
            b':' => Token::Int(number(text).ok_or(NoResp)?),
            b'*' | b'$' => match number(text).ok_or(NoResp)? {
                -1 => Token::Nil,
                length if kind == b'*' => {
                    Token::Array(usize::try_from(length).map_err(|_| NoResp)?)
                }
                length => {
                    let length = usize::try_from(length).map_err(|_| NoResp)?;
                    let bulk = rest.get(..length).ok_or(NoResp)?;
                    self.0 = rest.get(length + 2..).ok_or(NoResp)?;
                    return Ok(Token::Bulk(bulk));
                }
            },
            _ => return Err(NoResp),
        };
        self.0 = rest;
        Ok(token)
    }

    /// Passes over the next value, whatever it holds.
    ///
    /// # Errors
    /// As [`Tokens::token`].
    pub fn skip(&mut self) -> Result<(), NoResp> {
        let mut left = 1_usize;
        while left > 0 {
            left -= 1;
            if let Token::Array(length) = self.token()? {
                left = left.checked_add(length).ok_or(NoResp)?;
            }
        }
        Ok(())
    }

    /// What is left.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.0
    }
}

/// The length of a string of less than 100 bytes that begins here, and that of the line before it: most values are such
/// strings.
fn short(bytes: &[u8]) -> Option<(usize, usize)> {
    match *bytes {
        [b'$', digit @ b'0'..=b'9', b'\r', b'\n', ..] => Some((usize::from(digit - b'0'), 4)),
        [
            b'$',
            ten @ b'0'..=b'9',
            digit @ b'0'..=b'9',
            b'\r',
            b'\n',
            ..,
        ] => Some((usize::from(ten - b'0') * 10 + usize::from(digit - b'0'), 5)),
        _ => None,
    }
}

/// The bytes up to the first line's end, and those after it; `None` if there is no end.
pub(super) fn line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|&b| b == b'\r')?;
    match bytes.get(end + 1)? {
        b'\n' => Some((&bytes[..end], &bytes[end + 2..])),
        _ => None,
    }
}

pub(crate) fn number(text: &[u8]) -> Option<i64> {
    // Most are lengths of one to three digits.
    if (1..=9).contains(&text.len()) && text.iter().all(u8::is_ascii_digit) {
        return Some(
            text.iter()
                .fold(0, |number, digit| number * 10 + i64::from(digit - b'0')),
        );
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Finds the end of a reply in bytes that arrive bit by bit, looking at each byte once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    pub(super) at: usize,
    left: u64,
}

impl Extent {
    pub(super) const START: Extent = Extent { at: 0, left: 1 };

    /// The end, if it is within `bytes`.
    pub(super) fn find(&mut self, bytes: &[u8]) -> Result<Option<usize>, NoResp> {
        while self.left > 0 {
            let Some(rest) = bytes.get(self.at..) else {
                return Ok(None);
            };
            if let Some((length, head)) = short(rest) {
                self.at += head + length + 2;
                self.left -= 1;
                continue;
            }
            let Some(end) = rest.iter().position(|&b| b == b'\n') else {
                return Ok(None);
            };
            let head = rest[..end].strip_suffix(b"\r").ok_or(NoResp)?;
            let (&kind, text) = head.split_first().ok_or(NoResp)?;
            self.at += end + 1;
            self.left -= 1;
            match kind {
                b'+' | b'-' | b':' => {}
                b'*' | b'$' => {
                    let length = number(text).filter(|n| *n >= -1).ok_or(NoResp)?;
                    match u64::try_from(length) {
                        Ok(length) if kind == b'*' => {
                            self.left = self.left.checked_add(length).ok_or(NoResp)?;
                        }
                        Ok(length) => {
                            let length = usize::try_from(length).map_err(|_| NoResp)?;
                            self.at = self.at.checked_add(length + 2).ok_or(NoResp)?;
                        }
                        Err(_) => {}
                    }
                }
                _ => return Err(NoResp),
            }
        }
        Ok((self.at <= bytes.len()).then_some(self.at))
    }
}
