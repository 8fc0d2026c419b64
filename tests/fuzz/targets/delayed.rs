//! Any bytes as a member of a delay queue.

#![no_main]

use convoke::streams::delay::{decode_member, encode_member};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Some((token, fields)) = decode_member(data, 1 << 20) {
        assert!(!fields.is_empty() && fields.len() % 2 == 0);
        let member = encode_member(&token, &fields);
        assert_eq!(decode_member(&member, 1 << 22), Some((token, fields)));
    }
});
