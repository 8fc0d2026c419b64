//! MessagePack ⇄ JSON, for people and for programs that speak only JSON.
//!
//! JSON lacks three things. Bytes that are UTF-8 become a string, others `{"$bin": "<hex>"}`;
//! extension types `{"$ext": [type, "<hex>"]}`; a map's key that is no string becomes its JSON text.
//! NaN and the infinities become null.

use super::msgpack::{self, PayloadLimits, ScanError};
use rmpv::Value as Packed;
use serde_json::{Map, Number, Value};

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
            (None, None) => Value::Null,
        },
        Packed::F32(number) => float(f64::from(number)),
        Packed::F64(number) => float(number),
        Packed::String(text) => bytes(text.into_bytes()),
        Packed::Binary(binary) => bytes(binary),
        Packed::Array(items) => items.into_iter().map(unpack).collect(),
        Packed::Map(pairs) => {
            let fields = pairs.into_iter().map(|(name, value)| {
                let name = match unpack(name) {
                    Value::String(name) => name,
                    other => other.to_string(),
                };
                (name, unpack(value))
            });
            Value::Object(fields.collect())
        }
        Packed::Ext(kind, binary) => tagged("$ext", serde_json::json!([kind, hex(&binary)])),
    }
}

fn float(number: f64) -> Value {
    Number::from_f64(number).map_or(Value::Null, Value::Number)
}

fn bytes(bytes: Vec<u8>) -> Value {
    match String::from_utf8(bytes) {
        Ok(text) => Value::String(text),
        Err(error) => tagged("$bin", hex(error.as_bytes()).into()),
    }
}

fn tagged(tag: &str, value: Value) -> Value {
    Value::Object(Map::from_iter([(tag.to_owned(), value)]))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// JSON as one MessagePack value.
pub fn from_json(value: &Value) -> Vec<u8> {
    let mut data = Vec::new();
    // A vector takes every write.
    rmpv::encode::write_value(&mut data, &pack(value)).ok();
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
            Packed::Map(pairs.collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn what_json_lacks_is_tagged() {
        assert_eq!(to_json(&[0xc4, 1, 0xff]).unwrap(), json!({"$bin": "ff"}));
        assert_eq!(to_json(&[0xc4, 1, b'x']).unwrap(), json!("x"));
        assert_eq!(
            to_json(&[0xd4, 7, 0xab]).unwrap(),
            json!({"$ext": [7, "ab"]})
        );
        assert_eq!(to_json(&[0x81, 7, 8]).unwrap(), json!({"7": 8}));
        let nan = rmp_serde::to_vec(&f64::NAN).unwrap();
        assert_eq!(to_json(&nan).unwrap(), Value::Null);
        assert!(to_json(&[0xc1]).is_err());
        assert!(to_json(&[1, 2]).is_err());
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            (-1e300f64..1e300).prop_map(Value::from),
            "\\PC{0,12}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 64, 8, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..8).prop_map(Value::from),
                proptest::collection::hash_map("\\PC{0,8}", inner, 0..8)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn json_round_trips(value in any_json()) {
            prop_assert_eq!(to_json(&from_json(&value)).unwrap(), value);
        }

        #[test]
        fn no_bytes_panic(data in proptest::collection::vec(any::<u8>(), 0..64)) {
            to_json(&data).ok();
        }
    }
}
