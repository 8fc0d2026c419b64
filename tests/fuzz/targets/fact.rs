//! Any fields as a fact or a dead letter, and any map as an instance's report: each becomes a row, a
//! letter, a report, and nothing that a database or a terminal cannot hold.

#![no_main]

mod fields;

use convoke::protocol::dead::Letter;
use convoke::protocol::event::{Entry, EntryId};
use convoke::coordination::metrics::Report;
use convoke::coordination::instances::roster::gone_in;
use convoke::ledger::fact::{Fact, Origin};
use libfuzzer_sys::fuzz_target;

const NAMES: [&str; 16] = [
    "type",
    "data",
    "id",
    "source",
    "time",
    "subject",
    "deadreason",
    "deadmessage",
    "deadattempts",
    "deaddeliveries",
    "deadstream",
    "deadentry",
    "deadinstance",
    "deadtime",
    "",
    "other",
];

fuzz_target!(|data: &[u8]| {
    if let Ok(map) = rmpv::decode::read_value_with_max_depth(&mut &data[..], 64) {
        Report::from_map(&map);
    }
    let words = fields::cut(&NAMES, data);
    let words = words
        .into_iter()
        .flat_map(|(name, value)| [name.as_bytes(), value]);
    let entry = Entry::new(
        EntryId {
            ms: u64::MAX,
            seq: 7,
        },
        words,
    );
    Letter::read(&entry);
    if let Some(id) = gone_in(&entry) {
        assert!((1..=128).contains(&id.len()));
    }
    for origin in [Origin::Broadcast, Origin::Dead] {
        let fact = Fact::of("cb", "cb:broadcast", origin, &entry, 1000);
        let texts = [
            Some(&fact.kind),
            fact.source.as_ref(),
            fact.subject.as_ref(),
            fact.instance.as_ref(),
            fact.reason.as_ref(),
        ];
        for text in texts.into_iter().flatten() {
            assert!(!text.contains('\0'), "PostgreSQL takes no NUL");
        }
        let shown = fact.data.to_string() + &fact.fields.to_string();
        // A backslash of the text itself is written as two.
        assert!(!shown.replace(r"\\", "").contains(r"\u0000"), "{shown}");
    }
});
