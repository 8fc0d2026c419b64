//! Any bytes as a payload: what the scan lets through decodes, within bounds; and nothing crashes.

#![no_main]

use convoke::protocol::json;
use convoke::protocol::msgpack::{PayloadLimits, scan};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let limits = PayloadLimits::default();
    let scanned = scan(data, &limits);
    let shown = json::to_json(data);
    if scanned.is_ok() {
        let mut rest = data;
        rmpv::decode::read_value(&mut rest).expect("what was scanned decodes");
        assert!(rest.is_empty(), "the scan left a rest");
        let shown = shown.expect("what was scanned can be shown");
        let again = json::parse(shown.to_string().as_bytes()).expect("what is shown can be read");
        assert_eq!(again, json::from_json(&shown), "text and value say the same");
        assert_eq!(json::to_json(&again).ok(), Some(shown), "nothing changes on the way");
    }
});
