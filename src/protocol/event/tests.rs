use super::fields::slot;
use super::*;
use crate::protocol::keys::Keys;
use proptest::prelude::*;

fn entry(fields: &[(&str, &[u8])]) -> Entry {
    let words = fields
        .iter()
        .flat_map(|(name, value)| [name.as_bytes(), value]);
    Entry::new(EntryId { ms: 7, seq: 1 }, words)
}

fn parse(fields: &[(&str, &[u8])]) -> Result<Event, Box<Malformed>> {
    let keys = Keys::new("cb").unwrap();
    Event::parse(entry(fields), &Limits::default(), &keys, "cb:events:a")
}

fn refused(fields: &[(&str, &[u8])]) -> String {
    parse(fields).unwrap_err().message
}

#[test]
fn every_known_field_is_found() {
    for (index, name) in KNOWN.iter().enumerate() {
        assert_eq!(slot(name.as_bytes()), Some(index), "{name}");
    }
    for unknown in ["", "x", "typo", "datb", "subjecz", "Type"] {
        assert_eq!(slot(unknown.as_bytes()), None, "{unknown}");
    }
}

#[test]
fn an_event_with_only_a_type() {
    let event = parse(&[("type", b"a.b")]).unwrap();
    assert_eq!(event.kind(), "a.b");
    assert_eq!(event.domain(), "a");
    assert_eq!(event.id(), "7-1");
    assert_eq!(event.data(), NIL);
    assert_eq!(event.attempt(), 1);
    assert_eq!(event.reply_to(), None);
}

#[test]
fn the_next_attempt_keeps_unknown_fields_and_the_identity() {
    let event = parse(&[("x", b"\xff"), ("type", b"a.b"), ("data", &[1])]).unwrap();
    let keys = Keys::new("cb").unwrap();
    let again = Entry::new(EntryId { ms: 9, seq: 0 }, event.next_attempt());
    let again = Event::parse(again, &Limits::default(), &keys, "cb:events:a").unwrap();
    assert_eq!(again.attempt(), 2);
    assert_eq!(again.id(), "7-1");
    assert_eq!(again.entry().get("x"), Some(&b"\xff"[..]));
    assert_eq!(again.data(), [1]);
    let third = again.next_attempt();
    assert_eq!(third.iter().filter(|f| *f == b"attempt").count(), 1);
}

#[test]
fn a_retry_tells_why_and_keeps_when_it_failed_first() {
    let event = parse(&[("type", b"a.b")]).unwrap();
    let keys = Keys::new("cb").unwrap();
    let again = |fields| {
        let id = EntryId { ms: 9, seq: 0 };
        let entry = Entry::new(id, fields);
        Event::parse(entry, &Limits::default(), &keys, "cb:events:a").unwrap()
    };
    let second = again(event.next_attempt_after("internal: no", 100));
    let long = "é".repeat(300);
    let third = again(second.next_attempt_after(&long, 200));
    let told = |event: &Event, name: &str| {
        String::from_utf8(event.entry().get(name).unwrap().to_vec()).unwrap()
    };
    assert_eq!(told(&second, LAST_ERROR), "internal: no");
    assert_eq!(told(&third, LAST_ERROR), "é".repeat(100));
    assert_eq!(told(&third, FIRST_FAILED), "100");
    assert_eq!((third.attempt(), third.entry().words().count()), (3, 10));

    let mut full: Vec<_> = (0..30).map(|_| ("x", &b"y"[..])).collect();
    full.push(("type", b"a.b"));
    let full = parse(&full).unwrap();
    assert_eq!(
        full.next_attempt_after("no", 1).len(),
        full.next_attempt().len()
    );
}

#[test]
fn what_is_moved_keeps_the_name_of_the_entry_as_which_it_was_added() {
    let fields: [(&str, &[u8]); 3] = [("type", b"a.b"), ("id", b"e1"), ("dedup", b"1")];
    let first = parse(&fields).unwrap();
    assert!(first.asks_once());
    let keys = Keys::new("cb").unwrap();
    let mut event = first.clone();
    for (ms, fails) in [(8, true), (9, false), (10, true)] {
        let again = match fails {
            true => event.next_attempt_after("no", 1),
            false => event.same_attempt(),
        };
        let entry = Entry::new(EntryId { ms, seq: 0 }, again);
        event = Event::parse(entry, &Limits::default(), &keys, "cb:events:a").unwrap();
        assert_eq!((event.once(), event.asks_once()), (first.once(), true));
    }
    assert_eq!(event.once(), Some(EntryId { ms: 7, seq: 1 }));
    assert_eq!(parse(&fields[..2]).unwrap().once(), None);
    // It was moved by who did not note its name, or replayed.
    for (name, value) in [("attempt", b"2"), ("replays", b"1")] {
        let event = parse(&[&fields[..], &[(name, value)]].concat()).unwrap();
        assert!(!event.asks_once(), "{name}");
        let again = Entry::new(EntryId { ms: 8, seq: 0 }, event.same_attempt());
        let again = Event::parse(again, &Limits::default(), &keys, "cb:events:a").unwrap();
        assert!(!again.asks_once(), "{name}");
    }
}

#[test]
fn bad_fields_are_named() {
    assert!(refused(&[]).contains("no fields"));
    assert!(refused(&[("data", &[1])]).starts_with("type: missing"));
    assert!(refused(&[("type", b"a")]).starts_with("type:"));
    assert!(refused(&[("type", b"a.\xff")]).starts_with("type:"));
    assert!(refused(&[("type", b"inbox.a")]).contains("cannot be called"));
    assert!(refused(&[("type", b"a.b"), ("type", b"a.c")]).contains("given twice"));
    assert!(refused(&[("type", b"a.b"), ("id", b"\xff")]).starts_with("id:"));
    assert!(refused(&[("type", b"a.b"), ("id", b"")]).starts_with("id:"));
    assert!(refused(&[("type", b"a.b"), ("dedup", b"1")]).starts_with("dedup: needs"));
    for bad in [&b""[..], b"0", b"yes", b"7", b"07-1", b"7-"] {
        let said = refused(&[("type", b"a.b"), ("id", b"e"), ("dedup", bad)]);
        assert!(said.starts_with("dedup: \""), "{said}");
    }
    assert!(refused(&[("type", b"a.b"), ("deadline", b"-1")]).starts_with("deadline:"));
    assert!(refused(&[("type", b"a.b"), ("attempt", b"4294967296")]).starts_with("attempt:"));
    assert!(refused(&[("type", b"a.b"), ("attempt", b"0")]).starts_with("attempt:"));
    assert!(refused(&[("type", b"a.b"), ("replyto", b"cb:events:a")]).starts_with("replyto:"));
    assert!(refused(&[("type", b"a.b"), ("data", b"")]).starts_with("data:"));
    let long = [b'x'; 257];
    assert!(refused(&[("type", b"a.b"), ("other", &long)]).starts_with("other:"));
    let many: Vec<_> = (0..33).map(|_| ("x", &b"y"[..])).collect();
    assert!(refused(&many).contains("33 fields"));
}

#[test]
fn json_is_told_from_other_bad_bytes() {
    for json in [
        "{\"a\": 1}",
        "[1, 2]",
        "\"text\"",
        " {}\n",
        "12.5",
        "-1",
        "true",
        "null",
    ] {
        let said = refused(&[("type", b"a.b"), ("data", json.as_bytes())]);
        assert!(said.contains("looks like JSON"), "{json}: {said}");
    }
    for other in [&b"{\"a\": "[..], b"hello", b"\xc1", b"{}{}", b"\x92\x01"] {
        let said = refused(&[("type", b"a.b"), ("data", other)]);
        assert!(!said.contains("JSON"), "{said}");
    }
}

#[test]
fn what_is_malformed_can_still_be_answered() {
    let bad = parse(&[
        ("type", b"a.b"),
        ("id", b"e1"),
        ("replyto", b"cb:reply:me"),
        ("data", &[0xc1]),
    ])
    .unwrap_err();
    assert_eq!(bad.reply_to.as_deref(), Some("cb:reply:me"));
    assert_eq!(bad.kind.as_deref(), Some("a.b"));
    assert_eq!(bad.correlation_id(), "e1");
    let hostile = parse(&[("type", b"a.b"), ("replyto", b"cb:broadcast")]).unwrap_err();
    assert_eq!(hostile.reply_to, None);
}

proptest! {
    #[test]
    fn no_bytes_panic(fields in proptest::collection::vec(
        (prop_oneof![proptest::sample::select(&KNOWN[..]).prop_map(|n| n.as_bytes().to_vec()),
                     proptest::collection::vec(any::<u8>(), 0..70)],
         proptest::collection::vec(any::<u8>(), 0..40)), 0..40)) {
        let keys = Keys::new("cb").unwrap();
        let words = fields.into_iter().flat_map(|(n, v)| [n, v]);
        let entry = Entry::new(EntryId::default(), words);
        match Event::parse(entry.clone(), &Limits::default(), &keys, "cb:events:a") {
            Ok(event) => {
                prop_assert!(keys::is_event_type(event.kind().as_bytes()));
                prop_assert_eq!(event.entry(), &entry);
            }
            Err(bad) => {
                bad.correlation_id();
                prop_assert_eq!(bad.entry, entry);
            }
        }
    }
}
