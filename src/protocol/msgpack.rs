//! Checks MessagePack before anything decodes it.
//!
//! The bytes come from whoever may write to a stream. [`scan`] walks them once, without recursion
//! and without allocating more than the depth limit, and refuses what a decoder could choke on:
//! nesting that overflows a stack, lengths that claim more than is there, values without number,
//! the reserved byte, bytes after the value.

use std::fmt;

/// Bounds on one payload ([protocol](crate::docs::protocol#an-event)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PayloadLimits {
    /// Bytes in the payload.
    pub bytes: usize,
    /// Nested arrays and maps.
    pub depth: usize,
    /// Values in the payload, containers and map keys included.
    pub values: usize,
}

impl Default for PayloadLimits {
    fn default() -> Self {
        Self {
            bytes: 1024 * 1024,
            depth: 32,
            values: 65_536,
        }
    }
}

/// Why a payload was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScanError {
    /// More bytes than the limit.
    TooLong {
        /// Its length in bytes.
        bytes: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// No value at all.
    Empty,
    /// The value ends before its length says.
    Truncated {
        /// Where the value starts that is cut.
        offset: usize,
    },
    /// The byte 0xc1, which MessagePack reserves.
    Reserved {
        /// Where it stands.
        offset: usize,
    },
    /// Containers nested deeper than the limit.
    TooDeep {
        /// The limit.
        limit: usize,
    },
    /// More values than the limit.
    TooMany {
        /// The limit.
        limit: usize,
    },
    /// Bytes after the one value.
    Trailing {
        /// Where they begin.
        offset: usize,
    },
}

impl std::error::Error for ScanError {}

impl fmt::Display for ScanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            ScanError::TooLong { bytes, limit } => {
                write!(
                    f,
                    "data: payload of {bytes} bytes is over the limit of {limit}"
                )
            }
            ScanError::Empty => write!(f, "data: empty, not one MessagePack value"),
            ScanError::Truncated { offset } => {
                write!(
                    f,
                    "data: MessagePack ends inside the value at byte {offset}"
                )
            }
            ScanError::Reserved { offset } => {
                write!(f, "data: byte {offset} is 0xc1, which MessagePack reserves")
            }
            ScanError::TooDeep { limit } => {
                write!(f, "data: arrays and maps are nested deeper than {limit}")
            }
            ScanError::TooMany { limit } => write!(f, "data: more than {limit} values"),
            ScanError::Trailing { offset } => {
                write!(
                    f,
                    "data: bytes follow the MessagePack value at byte {offset}"
                )
            }
        }
    }
}

/// What follows a marker byte: bytes of its own, then values nested in it.
enum Shape {
    /// A value of that many bytes after the marker.
    Bytes(usize),
    /// A big-endian length of this many bytes, then that many bytes and this many more.
    LongBytes {
        width: usize,
        more: usize,
    },
    /// A container of that many values.
    Nested(usize),
    /// A big-endian count of this many bytes, then that many values, times this many.
    LongNested {
        width: usize,
        times: usize,
    },
    Reserved,
}

fn shape(marker: u8) -> Shape {
    match marker {
        0x00..=0x7f | 0xc0 | 0xc2 | 0xc3 | 0xe0..=0xff => Shape::Bytes(0),
        0x80..=0x8f => Shape::Nested(usize::from(marker & 0x0f) * 2),
        0x90..=0x9f => Shape::Nested(usize::from(marker & 0x0f)),
        0xa0..=0xbf => Shape::Bytes(usize::from(marker & 0x1f)),
        0xc1 => Shape::Reserved,
        0xc4 | 0xd9 => Shape::LongBytes { width: 1, more: 0 },
        0xc5 | 0xda => Shape::LongBytes { width: 2, more: 0 },
        0xc6 | 0xdb => Shape::LongBytes { width: 4, more: 0 },
        0xc7 => Shape::LongBytes { width: 1, more: 1 },
        0xc8 => Shape::LongBytes { width: 2, more: 1 },
        0xc9 => Shape::LongBytes { width: 4, more: 1 },
        0xcc | 0xd0 => Shape::Bytes(1),
        0xcd | 0xd1 => Shape::Bytes(2),
        0xca | 0xce | 0xd2 => Shape::Bytes(4),
        0xcb | 0xcf | 0xd3 => Shape::Bytes(8),
        0xd4 => Shape::Bytes(2),
        0xd5 => Shape::Bytes(3),
        0xd6 => Shape::Bytes(5),
        0xd7 => Shape::Bytes(9),
        0xd8 => Shape::Bytes(17),
        0xdc => Shape::LongNested { width: 2, times: 1 },
        0xdd => Shape::LongNested { width: 4, times: 1 },
        0xde => Shape::LongNested { width: 2, times: 2 },
        0xdf => Shape::LongNested { width: 4, times: 2 },
    }
}

fn big_endian(bytes: &[u8]) -> usize {
    bytes
        .iter()
        .fold(0, |number, &byte| (number << 8) | usize::from(byte))
}

/// Checks that `bytes` are exactly one MessagePack value within the limits.
///
/// Costs one pass; allocates only for nesting. Text is not checked for UTF-8: whoever decodes a
/// string does that.
pub fn scan(bytes: &[u8], limits: &PayloadLimits) -> Result<(), ScanError> {
    match first(bytes, limits)? {
        end if end == bytes.len() => Ok(()),
        end => Err(ScanError::Trailing { offset: end }),
    }
}

/// Where the first value of `bytes` ends, if it is one within the limits.
pub(crate) fn first(bytes: &[u8], limits: &PayloadLimits) -> Result<usize, ScanError> {
    if bytes.len() > limits.bytes {
        return Err(ScanError::TooLong {
            bytes: bytes.len(),
            limit: limits.bytes,
        });
    }
    if bytes.is_empty() {
        return Err(ScanError::Empty);
    }
    // Values still to come in the innermost open container, and in those around it, outermost first: most payloads have
    // one, and take no memory.
    let mut left = 0_usize;
    let mut around: Vec<usize> = Vec::new();
    let mut budget = limits.values;
    let mut at = 0;
    loop {
        let offset = at;
        let cut = ScanError::Truncated { offset };
        let marker = *bytes.get(at).ok_or(cut)?;
        at += 1;
        budget = budget.checked_sub(1).ok_or(ScanError::TooMany {
            limit: limits.values,
        })?;
        let mut skip = 0;
        let mut nested = None;
        match shape(marker) {
            Shape::Bytes(length) => skip = length,
            Shape::LongBytes { width, more } => {
                let length = bytes.get(at..at + width).ok_or(cut)?;
                skip = width + big_endian(length) + more;
            }
            Shape::Nested(count) => nested = Some(count),
            Shape::LongNested { width, times } => {
                let count = bytes.get(at..at + width).ok_or(cut)?;
                at += width;
                nested = Some(big_endian(count) * times);
            }
            Shape::Reserved => return Err(ScanError::Reserved { offset }),
        }
        if skip > bytes.len() - at {
            return Err(cut);
        }
        at += skip;
        if let Some(count) = nested {
            if around.len() + usize::from(left > 0) == limits.depth {
                return Err(ScanError::TooDeep {
                    limit: limits.depth,
                });
            }
            if count > bytes.len() - at {
                return Err(cut);
            }
            if count > 0 {
                if left > 0 {
                    around.push(left);
                }
                left = count;
                continue;
            }
        }
        loop {
            match left {
                0 => return Ok(at),
                1 => left = around.pop().unwrap_or(0),
                _ => {
                    left -= 1;
                    break;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(bytes: &[u8]) -> Result<(), ScanError> {
        scan(bytes, &PayloadLimits::default())
    }

    #[test]
    fn depth_is_counted_by_container() {
        let nested = |depth: usize| {
            let mut bytes = vec![0x91; depth];
            bytes.push(0xc0);
            bytes
        };
        assert_eq!(check(&nested(32)), Ok(()));
        assert_eq!(check(&nested(33)), Err(ScanError::TooDeep { limit: 32 }));
        assert_eq!(
            check(&nested(100_000)),
            Err(ScanError::TooDeep { limit: 32 })
        );
        let mut empty_inside = vec![0x91; 32];
        empty_inside.push(0x90);
        assert_eq!(check(&empty_inside), Err(ScanError::TooDeep { limit: 32 }));
    }

    #[test]
    fn length_bombs_are_cut_short() {
        for marker in [0xc6, 0xc9, 0xdb, 0xdd, 0xdf] {
            let bomb = [marker, 0xff, 0xff, 0xff, 0xff];
            assert_eq!(check(&bomb), Err(ScanError::Truncated { offset: 0 }));
        }
    }

    #[test]
    fn every_first_byte_is_answered() {
        for byte in 0..=255u8 {
            let result = check(&[byte]);
            assert_eq!(
                result.is_ok(),
                rmpv::decode::read_value(&mut [byte].as_slice()).is_ok() && byte != 0xc1,
                "{byte:#x}: {result:?}"
            );
        }
    }

    #[test]
    fn values_are_counted() {
        let limits = PayloadLimits {
            values: 4,
            ..PayloadLimits::default()
        };
        assert_eq!(scan(&[0x93, 1, 2, 3], &limits), Ok(()));
        assert_eq!(
            scan(&[0x94, 1, 2, 3, 4], &limits),
            Err(ScanError::TooMany { limit: 4 })
        );
    }

    #[test]
    fn size_and_rest_are_checked() {
        let limits = PayloadLimits {
            bytes: 3,
            ..PayloadLimits::default()
        };
        assert_eq!(scan(&[0xa2, b'h', b'i'], &limits), Ok(()));
        assert_eq!(
            scan(&[0xa3, b'h', b'e', b'y'], &limits),
            Err(ScanError::TooLong { bytes: 4, limit: 3 })
        );
        assert_eq!(check(&[1, 2]), Err(ScanError::Trailing { offset: 1 }));
        assert_eq!(check(&[]), Err(ScanError::Empty));
    }

    fn value() -> impl Strategy<Value = rmpv::Value> {
        let leaf = prop_oneof![
            Just(rmpv::Value::Nil),
            any::<bool>().prop_map(rmpv::Value::from),
            any::<i64>().prop_map(rmpv::Value::from),
            any::<u64>().prop_map(rmpv::Value::from),
            any::<f64>().prop_map(rmpv::Value::from),
            ".{0,40}".prop_map(rmpv::Value::from),
            proptest::collection::vec(any::<u8>(), 0..300).prop_map(rmpv::Value::from),
            (any::<i8>(), proptest::collection::vec(any::<u8>(), 0..40))
                .prop_map(|(kind, bytes)| rmpv::Value::Ext(kind, bytes)),
        ];
        leaf.prop_recursive(6, 64, 20, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..20).prop_map(rmpv::Value::Array),
                proptest::collection::vec((inner.clone(), inner), 0..20).prop_map(rmpv::Value::Map),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_an_encoder_writes_passes_and_no_prefix_of_it(value in value()) {
            let mut bytes = Vec::new();
            rmpv::encode::write_value(&mut bytes, &value).unwrap();
            prop_assert_eq!(check(&bytes), Ok(()));
            for end in 0..bytes.len() {
                prop_assert!(check(&bytes[..end]).is_err());
            }
            bytes.push(0xc0);
            prop_assert!(check(&bytes).is_err());
        }

        #[test]
        fn what_passes_can_be_decoded(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if check(&bytes).is_ok() {
                let mut rest = bytes.as_slice();
                prop_assert!(rmpv::decode::read_value(&mut rest).is_ok());
                prop_assert!(rest.is_empty());
            }
        }
    }
}
