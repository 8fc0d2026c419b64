//! MessagePack ⇄ JSON, for people and for programs that speak only JSON: exact in both directions.
//!
//! What JSON has no word for is written as a map with one name, a tag:
//!
//! | MessagePack | JSON |
//! |---|---|
//! | bytes | `{"$bin": "<hex>"}` |
//! | an extension type | `{"$ext": [type, "<hex>"]}` |
//! | NaN and the infinities | `{"$float": "nan"}`, `"inf"`, `"-inf"` |
//! | a string that is not UTF-8 | `{"$str": "<hex>"}` |
//! | a map with a name that is not a string, with one name twice, or that looks like a tag | `{"$map": [[name, value], …]}` |
//!
//! [`parse`] reads the same form and refuses what would change: integers beyond 64 bits, a name that
//! stands twice, a tag that is malformed. Numbers with a fraction or an exponent are 64-bit floats.

mod text;

pub use text::{Inexact, parse};

use crate::protocol::msgpack::{self, PayloadLimits, ScanError};
use rmpv::Value as Packed;
use serde_json::{Map, Number, Value, json};
use std::collections::HashSet;

const BIN: &str = "$bin";
const EXT: &str = "$ext";
const FLOAT: &str = "$float";
const STR: &str = "$str";
const MAP: &str = "$map";

fn is_tag(name: &str) -> bool {
    matches!(name, BIN | EXT | FLOAT | STR | MAP)
}

/// One MessagePack value as JSON.
///
/// # Errors
/// The bytes are not exactly one value within the default limits (with the bytes unbounded).
pub fn to_json(data: &[u8]) -> Result<Value, ScanError> {
    let limits = PayloadLimits {
        bytes: usize::MAX,
        ..PayloadLimits::default()
    };
    msgpack::scan(data, &limits)?;
    let mut rest = data;
    // What was scanned can be read.
    let value = rmpv::decode::read_value(&mut rest).unwrap_or(Packed::Nil);
    Ok(unpack(value))
}

fn unpack(value: Packed) -> Value {
    match value {
        Packed::Nil => Value::Null,
        Packed::Boolean(truth) => Value::Bool(truth),
        Packed::Integer(number) => match (number.as_u64(), number.as_i64()) {
            (Some(number), _) => number.into(),
            (None, Some(number)) => number.into(),
            // Every integer of MessagePack is one of the two.
            (None, None) => Value::Null,
        },
        Packed::F32(number) => float(f64::from(number)),
        Packed::F64(number) => float(number),
        Packed::String(text) => match text.as_str() {
            Some(text) => Value::String(text.to_owned()),
            None => tagged(STR, hex(text.as_bytes()).into()),
        },
        Packed::Binary(binary) => tagged(BIN, hex(&binary).into()),
        Packed::Array(items) => items.into_iter().map(unpack).collect(),
        Packed::Map(pairs) if is_plain(&pairs) => {
            let fields = pairs.into_iter().filter_map(|(name, value)| {
                // All names are strings, as was just seen.
                Some((name.as_str()?.to_owned(), unpack(value)))
            });
            Value::Object(fields.collect())
        }
        Packed::Map(pairs) => {
            let pairs = pairs.into_iter();
            let pairs = pairs.map(|(name, value)| json!([unpack(name), unpack(value)]));
            tagged(MAP, pairs.collect())
        }
        Packed::Ext(kind, binary) => tagged(EXT, json!([kind, hex(&binary)])),
    }
}

/// Whether JSON can say this map as it is.
fn is_plain(pairs: &[(Packed, Packed)]) -> bool {
    let mut names = HashSet::with_capacity(pairs.len());
    let plain = pairs
        .iter()
        .all(|(name, _)| name.as_str().is_some_and(|name| names.insert(name)));
    plain && !(pairs.len() == 1 && names.iter().any(|name| is_tag(name)))
}

fn float(number: f64) -> Value {
    let name = || match number {
        number if number.is_nan() => "nan",
        number if number > 0.0 => "inf",
        _ => "-inf",
    };
    Number::from_f64(number).map_or_else(|| tagged(FLOAT, name().into()), Value::Number)
}

fn tagged(tag: &str, value: Value) -> Value {
    Value::Object(Map::from_iter([(tag.to_owned(), value)]))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text
        .chars()
        .map(|digit| Some(digit.to_digit(16)? as u8))
        .collect();
    let digits = digits.filter(|digits| digits.len().is_multiple_of(2))?;
    let pairs = digits.chunks_exact(2);
    Some(pairs.map(|pair| pair[0] << 4 | pair[1]).collect())
}

/// JSON of this program's own as one MessagePack value: what [`to_json`] made comes back as it was. A
/// map that only looks like a tag stays a map; what people wrote goes through [`parse`].
pub fn from_json(value: &Value) -> Vec<u8> {
    encode(&pack(value))
}

fn encode(value: &Packed) -> Vec<u8> {
    let mut data = Vec::new();
    // A vector takes every write.
    rmpv::encode::write_value(&mut data, value).ok();
    data
}

fn pack(value: &Value) -> Packed {
    match value {
        Value::Null => Packed::Nil,
        Value::Bool(truth) => Packed::Boolean(*truth),
        Value::Number(number) => match (number.as_u64(), number.as_i64(), number.as_f64()) {
            (Some(number), _, _) => number.into(),
            (None, Some(number), _) => number.into(),
            (None, None, number) => number.unwrap_or(f64::NAN).into(),
        },
        Value::String(text) => text.as_str().into(),
        Value::Array(items) => Packed::Array(items.iter().map(pack).collect()),
        Value::Object(fields) => {
            let pairs = fields
                .iter()
                .map(|(name, value)| (name.as_str().into(), pack(value)));
            untagged(pairs.collect()).unwrap_or_else(|(_, pairs)| Packed::Map(pairs))
        }
    }
}

/// What a map means: itself, or what its tag says.
///
/// # Errors
/// The tag of a malformed one, and the map.
#[expect(
    clippy::type_complexity,
    reason = "the pairs of a map, as rmpv has them"
)]
fn untagged(pairs: Vec<(Packed, Packed)>) -> Result<Packed, (&'static str, Vec<(Packed, Packed)>)> {
    let [(name, value)] = pairs.as_slice() else {
        return Ok(Packed::Map(pairs));
    };
    let (tag, meant) = match name.as_str() {
        Some(BIN) => (BIN, value.as_str().and_then(unhex).map(Packed::Binary)),
        Some(STR) => (STR, value.as_str().and_then(unhex).map(string)),
        Some(FLOAT) => (FLOAT, value.as_str().and_then(special)),
        Some(EXT) => (EXT, extension(value)),
        Some(MAP) => (MAP, map(value)),
        _ => return Ok(Packed::Map(pairs)),
    };
    meant.ok_or((tag, pairs))
}

fn string(bytes: Vec<u8>) -> Packed {
    // Only a string's reader makes one that is not UTF-8: a marker with a length of four bytes.
    let length = (bytes.len() as u32).to_be_bytes();
    let written = [&[0xdb], length.as_slice(), &bytes].concat();
    rmpv::decode::read_value(&mut written.as_slice()).unwrap_or(Packed::Nil)
}

fn special(name: &str) -> Option<Packed> {
    Some(Packed::F64(match name {
        "nan" => f64::NAN,
        "inf" => f64::INFINITY,
        "-inf" => f64::NEG_INFINITY,
        _ => return None,
    }))
}

fn extension(value: &Packed) -> Option<Packed> {
    let [kind, bytes] = value.as_array()?.as_slice() else {
        return None;
    };
    let kind = i8::try_from(kind.as_i64()?).ok()?;
    Some(Packed::Ext(kind, unhex(bytes.as_str()?)?))
}

fn map(value: &Packed) -> Option<Packed> {
    let pairs = value.as_array()?.iter().map(|pair| {
        let [name, value] = pair.as_array()?.as_slice() else {
            return None;
        };
        Some((name.clone(), value.clone()))
    });
    Some(Packed::Map(pairs.collect::<Option<_>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_json_lacks_is_tagged() {
        let cases: [(&[u8], Value); 9] = [
            (&[0xc4, 1, 0xff], json!({"$bin": "ff"})),
            (&[0xc4, 1, b'x'], json!({"$bin": "78"})),
            (&[0xd4, 7, 0xab], json!({"$ext": [7, "ab"]})),
            (&[0xa1, 0xff], json!({"$str": "ff"})),
            (&[0x81, 7, 8], json!({"$map": [[7, 8]]})),
            (
                &[0x82, 1, 7, 0xa1, b'1', 8],
                json!({"$map": [[1, 7], ["1", 8]]}),
            ),
            (
                &[0x82, 0xa1, b'a', 1, 0xa1, b'a', 2],
                json!({"$map": [["a", 1], ["a", 2]]}),
            ),
            (b"\x81\xa4$bin\xa2ff", json!({"$map": [["$bin", "ff"]]})),
            (b"\x81\xa4$ref\xa2ff", json!({"$ref": "ff"})),
        ];
        for (data, value) in cases {
            assert_eq!(to_json(data).unwrap(), value);
        }
        for (number, name) in [
            (f64::NAN, "nan"),
            (f64::INFINITY, "inf"),
            (f64::NEG_INFINITY, "-inf"),
        ] {
            let data = rmp_serde::to_vec(&number).unwrap();
            assert_eq!(to_json(&data).unwrap(), json!({"$float": name}));
        }
        assert!(to_json(&[0xc1]).is_err());
        assert!(to_json(&[1, 2]).is_err());
    }

    fn any_packed() -> impl Strategy<Value = Packed> {
        let name = prop_oneof![
            Just("$bin"),
            Just("$map"),
            Just("$float"),
            Just("a"),
            Just("")
        ];
        let leaf = prop_oneof![
            Just(Packed::Nil),
            any::<bool>().prop_map(Packed::from),
            any::<u64>().prop_map(Packed::from),
            any::<i64>().prop_map(Packed::from),
            any::<f64>()
                .prop_filter("NaN is not equal to itself", |number| !number.is_nan())
                .prop_map(Packed::from),
            Just(Packed::F64(f64::INFINITY)),
            name.prop_map(Packed::from),
            "\\PC{0,12}".prop_map(Packed::from),
            Just(string(vec![0xff, 0xfe])),
            proptest::collection::vec(any::<u8>(), 0..20).prop_map(Packed::from),
            (any::<i8>(), proptest::collection::vec(any::<u8>(), 0..20))
                .prop_map(|(kind, bytes)| Packed::Ext(kind, bytes)),
        ];
        leaf.prop_recursive(4, 64, 4, |inner| {
            let pair = (inner.clone(), inner.clone());
            prop_oneof![
                proptest::collection::vec(inner, 0..6).prop_map(Packed::Array),
                proptest::collection::vec(pair, 0..4).prop_map(Packed::Map),
            ]
        })
    }

    proptest! {
        #[test]
        fn every_value_comes_back_as_it_was(value in any_packed()) {
            let data = encode(&value);
            let json = to_json(&data).unwrap();
            prop_assert_eq!(&from_json(&json), &data, "{}", json);
            prop_assert_eq!(&parse(json.to_string().as_bytes()).unwrap(), &data, "{}", json);
        }

        #[test]
        fn no_bytes_panic(data in proptest::collection::vec(any::<u8>(), 0..64)) {
            to_json(&data).ok();
        }
    }
}
