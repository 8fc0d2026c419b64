//! Any bytes as a payload: what the scan lets through decodes, within bounds; and nothing crashes.

#![no_main]

use convoke::bus::json;
use convoke::bus::msgpack::{PayloadLimits, scan};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let limits = PayloadLimits::default();
    let scanned = scan(data, &limits);
    let shown = json::to_json(data);
    if scanned.is_ok() {
        let mut rest = data;
        rmpv::decode::read_value(&mut rest).expect("what was scanned decodes");
        assert!(rest.is_empty(), "the scan left a rest");
        assert!(shown.is_ok(), "what was scanned can be shown");
    }
});
