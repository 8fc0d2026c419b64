//! The one form that stands for all encodings of a MessagePack value, so that bytes can be compared.
//!
//! MessagePack writes the same value in many ways: `1` in one byte or in nine, a map's pairs in any
//! order. The canonical form has the shortest encoding of each integer, string, array and map, all
//! floats in 64 bits, no negative zero, and the pairs of maps in the order of their keys' bytes. The
//! types stay apart: 1, 1.0, "1" and the byte 0x31 are four values.

use crate::protocol::msgpack::{self, PayloadLimits, ScanError};
use rmpv::Value;

/// Why a value has no canonical form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CanonicalError {
    /// The bytes are not one value within the limits.
    #[error(transparent)]
    Malformed(#[from] ScanError),
    /// Not a number, which does not even equal itself.
    #[error("not a number (NaN) equals nothing")]
    NotANumber,
    /// A map that has a key twice: readers differ in which one they take.
    #[error("a map has the key {0} twice")]
    Twice(String),
}

/// The canonical form of exactly one value within the limits.
///
/// # Errors
/// See [`CanonicalError`].
pub fn canonical(data: &[u8], limits: &PayloadLimits) -> Result<Vec<u8>, CanonicalError> {
    msgpack::scan(data, limits)?;
    let mut rest = data;
    // What was scanned can be read.
    let value = rmpv::decode::read_value(&mut rest).unwrap_or(Value::Nil);
    Ok(encoded(&ordered(value)?))
}

fn encoded(value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A vector takes every write.
    rmpv::encode::write_value(&mut bytes, value).ok();
    bytes
}

/// No deeper than the scan allowed.
fn ordered(value: Value) -> Result<Value, CanonicalError> {
    Ok(match value {
        Value::F32(number) => float(f64::from(number))?,
        Value::F64(number) => float(number)?,
        Value::Array(items) => {
            let items: Result<Vec<_>, _> = items.into_iter().map(ordered).collect();
            Value::Array(items?)
        }
        Value::Map(pairs) => {
            let mut sorted = Vec::with_capacity(pairs.len());
            for (key, value) in pairs {
                let key = ordered(key)?;
                sorted.push((encoded(&key), key, ordered(value)?));
            }
            sorted.sort_by(|a, b| a.0.cmp(&b.0));
            if let Some(pair) = sorted.windows(2).find(|pair| pair[0].0 == pair[1].0) {
                return Err(CanonicalError::Twice(pair[0].1.to_string()));
            }
            let pairs = sorted.into_iter().map(|(_, key, value)| (key, value));
            Value::Map(pairs.collect())
        }
        other => other,
    })
}

fn float(number: f64) -> Result<Value, CanonicalError> {
    if number.is_nan() {
        return Err(CanonicalError::NotANumber);
    }
    // Adding 0 makes -0 a plain 0.
    Ok(Value::F64(number + 0.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(data: &[u8]) -> Result<Vec<u8>, CanonicalError> {
        canonical(data, &PayloadLimits::default())
    }

    #[test]
    fn all_encodings_of_a_value_come_to_one() {
        let one: [&[u8]; 4] = [
            &[0x01],
            &[0xcc, 1],
            &[0xcd, 0, 1],
            &[0xd3, 0, 0, 0, 0, 0, 0, 0, 1],
        ];
        for data in one {
            assert_eq!(of(data).unwrap(), [0x01]);
        }
        assert_eq!(of(&[0xd9, 1, b'a']).unwrap(), [0xa1, b'a']);
        assert_eq!(of(&[0xdc, 0, 1, 0xcc, 2]).unwrap(), [0x91, 2]);
        let half = encoded(&Value::F64(0.5));
        assert_eq!(of(&encoded(&Value::F32(0.5))).unwrap(), half);
        assert_eq!(
            of(&encoded(&Value::F64(-0.0))),
            of(&encoded(&Value::F64(0.0)))
        );
        let there = [0x82, 0xa1, b'a', 1, 0xa1, b'b', 2];
        assert_eq!(of(&[0x82, 0xa1, b'b', 2, 0xd9, 1, b'a', 1]).unwrap(), there);
    }

    #[test]
    fn values_of_different_types_stay_apart() {
        let values = [
            Value::from(1),
            Value::F64(1.0),
            Value::from("1"),
            Value::Binary(vec![b'1']),
            Value::Ext(1, vec![b'1']),
            Value::Boolean(true),
            Value::Nil,
            Value::Array(vec![]),
            Value::Map(vec![]),
        ];
        let mut forms: Vec<_> = values.iter().map(|v| of(&encoded(v)).unwrap()).collect();
        forms.sort();
        forms.dedup();
        assert_eq!(forms.len(), values.len());
    }

    #[test]
    fn what_can_not_be_compared_is_refused() {
        assert_eq!(
            of(&encoded(&Value::Array(vec![Value::F64(f64::NAN)]))),
            Err(CanonicalError::NotANumber)
        );
        let twice = of(&[0x82, 0xa1, b'a', 1, 0xd9, 1, b'a', 2]).unwrap_err();
        assert!(twice.to_string().contains("\"a\""), "{twice}");
        assert!(of(&[1, 2]).is_err());
    }

    fn shuffled() -> impl Strategy<Value = (Value, Value)> {
        let leaf = prop_oneof![
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<bool>().prop_map(Value::from),
            ".{0,8}".prop_map(Value::from),
        ]
        .prop_map(|value| (value.clone(), value));
        leaf.prop_recursive(4, 32, 6, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..6).prop_map(|pairs| {
                    let (a, b) = pairs.into_iter().unzip();
                    (Value::Array(a), Value::Array(b))
                }),
                proptest::collection::btree_map("[a-z]{1,4}", inner, 0..6).prop_map(|pairs| {
                    let one = |pick: fn(&(Value, Value)) -> &Value| {
                        let pairs = pairs.iter();
                        pairs.map(move |(k, v)| (Value::from(k.as_str()), pick(v).clone()))
                    };
                    let a = one(|v| &v.0).collect();
                    let b = one(|v| &v.1).rev().collect();
                    (Value::Map(a), Value::Map(b))
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn the_order_of_pairs_does_not_matter_and_the_form_is_its_own((a, b) in shuffled()) {
            let form = of(&encoded(&a)).unwrap();
            prop_assert_eq!(&form, &of(&encoded(&b)).unwrap());
            prop_assert_eq!(&form, &of(&form).unwrap());
        }
    }
}
