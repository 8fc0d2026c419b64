//! JSON text as MessagePack: exact, or refused with the place.

use crate::protocol::json::{Packed, encode, untagged};
use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};
use std::collections::HashSet;
use std::fmt;

/// Text that is not JSON, or that would change on its way.
#[derive(Debug, thiserror::Error)]
pub enum Inexact {
    /// Not JSON, or a name that stands twice, or a malformed tag.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// An integer that 64 bits do not hold.
    #[error("{number} at byte {offset} is an integer beyond 64 bits: write it as a string")]
    TooLarge {
        /// Its digits, cut after 40.
        number: String,
        /// Where it begins.
        offset: usize,
    },
}

/// JSON text, in the form of [`to_json`](crate::protocol::json::to_json), as one MessagePack value.
///
/// # Errors
/// The text is not one JSON value, or no MessagePack value is exactly what it says.
pub fn parse(text: &[u8]) -> Result<Vec<u8>, Inexact> {
    let Exact(value) = serde_json::from_slice(text)?;
    match too_large(text) {
        None => Ok(encode(&value)),
        Some(refused) => Err(refused),
    }
}

/// The first integer of valid JSON that is neither a `u64` nor an `i64`: the parser makes a float of it.
fn too_large(text: &[u8]) -> Option<Inexact> {
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        match byte {
            b'"' => at = after_string(text, at),
            b'-' | b'0'..=b'9' => {
                let rest = &text[at..];
                let part = |b: &u8| matches!(b, b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9');
                let length = rest.iter().take_while(|b| part(b)).count();
                // What `part` lets through is ASCII.
                let number = std::str::from_utf8(&rest[..length]).unwrap_or_default();
                let whole = number.bytes().all(|b| b == b'-' || b.is_ascii_digit());
                if whole && number.parse::<u64>().is_err() && number.parse::<i64>().is_err() {
                    let number = number.chars().take(40).collect();
                    return Some(Inexact::TooLarge { number, offset: at });
                }
                at += length;
            }
            _ => at += 1,
        }
    }
    None
}

fn after_string(text: &[u8], begin: usize) -> usize {
    let mut at = begin + 1;
    while let Some(byte) = text.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    at
}

/// A value of which nothing was left out.
struct Exact(Packed);

impl<'de> Deserialize<'de> for Exact {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Reading).map(Exact)
    }
}

struct Reading;

impl<'de> Visitor<'de> for Reading {
    type Value = Packed;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<Packed, E> {
        Ok(Packed::Nil)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Packed, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Packed, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Packed, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Packed, E> {
        Ok(value.into())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Packed, E> {
        Ok(value.into())
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Packed, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Packed, A::Error> {
        let mut items = Vec::new();
        while let Some(Exact(item)) = from.next_element()? {
            items.push(item);
        }
        Ok(Packed::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Packed, A::Error> {
        let mut names = HashSet::new();
        let mut pairs = Vec::new();
        while let Some(name) = from.next_key::<String>()? {
            if names.contains(&name) {
                return Err(A::Error::custom(format_args!(
                    "the name {name:?} stands twice in one map"
                )));
            }
            let Exact(value) = from.next_value()?;
            pairs.push((Packed::from(name.as_str()), value));
            names.insert(name);
        }
        untagged(pairs).map_err(|(tag, _)| {
            let form = match tag {
                super::BIN | super::STR => "an even number of hexadecimal digits",
                super::EXT => "[a number from -128 to 127, hexadecimal digits]",
                super::FLOAT => "\"nan\", \"inf\" or \"-inf\"",
                _ => "[[name, value], …]",
            };
            A::Error::custom(format_args!(
                "{{\"{tag}\": …}} wants {form}; a map that only looks so is written \
                 {{\"$map\": [[\"{tag}\", …]]}}"
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Packed, String> {
        let data = parse(text.as_bytes()).map_err(|error| error.to_string())?;
        Ok(rmpv::decode::read_value(&mut data.as_slice()).unwrap())
    }

    #[test]
    fn numbers_come_as_they_are() {
        assert_eq!(parsed("18446744073709551615").unwrap(), u64::MAX.into());
        assert_eq!(parsed("-9223372036854775808").unwrap(), i64::MIN.into());
        assert_eq!(parsed("1.0").unwrap(), Packed::F64(1.0));
        assert_eq!(parsed("1e30").unwrap(), Packed::F64(1e30));
        assert_eq!(
            parsed(r#"["18446744073709551616", "\"5", 5]"#).unwrap(),
            Packed::Array(vec!["18446744073709551616".into(), "\"5".into(), 5.into()])
        );
    }

    #[test]
    fn what_would_change_is_refused_with_its_place() {
        let refused = [
            (
                r#"{"a": [18446744073709551616]}"#,
                "at byte 7 is an integer beyond 64 bits",
            ),
            ("-9223372036854775809", "-9223372036854775809 at byte 0"),
            (
                r#"{"a": 1, "a": 2}"#,
                r#""a" stands twice in one map at line 1 column 12"#,
            ),
            (r#"{"$bin": "f"}"#, "hexadecimal digits"),
            (r#"{"$bin": "+f"}"#, "hexadecimal digits"),
            (r#"{"$bin": 5}"#, r#"{"$map": [["$bin", …]]}"#),
            (r#"{"$ext": [200, "ff"]}"#, "-128 to 127"),
            (r#"{"$float": "NaN"}"#, r#""nan", "inf" or "-inf""#),
            (r#"{"$map": [["a"]]}"#, "[[name, value], …]"),
            ("1e400", "number out of range"),
            (r#""\ud800""#, "line 1"),
            ("1 2", "trailing characters"),
            ("", "EOF"),
        ];
        for (text, said) in refused {
            let error = parsed(text).unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn nesting_is_bounded() {
        let deep = "[".repeat(100_000);
        assert!(parsed(&deep).unwrap_err().contains("recursion limit"));
    }
}
