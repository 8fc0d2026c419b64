use super::*;
use crate::protocol::dead::Letter;

fn fields(pairs: &[(&str, &str)]) -> Vec<Vec<u8>> {
    let words = pairs.iter().flat_map(|(name, value)| [*name, *value]);
    words.map(|word| word.as_bytes().to_vec()).collect()
}

#[test]
fn an_event_begins_anew_and_stays_the_same_event() {
    let was = fields(&[
        ("type", "a.b"),
        ("attempt", "5"),
        ("x", "kept"),
        ("replyto", "cb:reply:me"),
        ("deadline", "100"),
        ("lasterror", "internal: no"),
        ("firstfailed", "7"),
    ]);
    let id = EntryId { ms: 7, seq: 1 };
    let dead = again(&was, Some(id), Source::Dead, 101);
    assert_eq!(dead.replays, 1);
    let expected = fields(&[
        ("type", "a.b"),
        ("x", "kept"),
        ("id", "7-1"),
        ("replays", "1"),
    ]);
    assert_eq!(dead.fields, expected);
    let soon = again(&was, Some(id), Source::Dead, 99);
    assert!(soon.fields.contains(&b"deadline".to_vec()));
    let pending = again(&was, Some(id), Source::Pending, 101);
    for kept in ["replyto", "deadline"] {
        assert!(pending.fields.contains(&kept.as_bytes().to_vec()), "{kept}");
    }
}

#[test]
fn replays_are_counted_and_an_id_is_kept() {
    let was = fields(&[("type", "a.b"), ("replays", "2"), ("id", "mine")]);
    let twice = again(&was, Some(EntryId::default()), Source::Range, 0);
    assert_eq!(twice.replays, 3);
    let expected = fields(&[("type", "a.b"), ("id", "mine"), ("replays", "3")]);
    assert_eq!(twice.fields, expected);
    let forged = fields(&[("type", "a.b"), ("replays", "many")]);
    let forged = again(&forged, None, Source::Range, 0);
    assert_eq!(forged.replays, u32::MAX);
}

#[test]
fn a_letter_goes_back_to_an_events_stream_only() {
    let keys = Keys::new("cb").unwrap();
    let dead = keys.stream_name("cb:dead:a").unwrap();
    let letter = |kind: &str, stream: &str| Letter {
        fields: fields(&[("type", kind)]),
        stream: Some(stream.to_owned()),
        ..Letter::default()
    };
    let back = |letter: Letter| way_back(&keys, &dead, &letter);
    assert_eq!(
        back(letter("a.b", "cb:events:other")).unwrap(),
        "cb:events:other"
    );
    assert_eq!(back(letter("a.b", "cb:leader")).unwrap(), "cb:events:a");
    assert_eq!(back(letter("a.b", "x:events:a")).unwrap(), "cb:events:a");
    assert_eq!(back(letter("a.b", "cb:inbox:w-1")), Err(NoWayBack::Inbox));
    assert_eq!(back(letter("a", "cb:events:a")), Err(NoWayBack::NoEvent));
    let mut reply = letter("a.b.result", "cb:results:a");
    reply.fields.extend(fields(&[("correlationid", "1")]));
    assert_eq!(back(reply), Err(NoWayBack::Reply));
    let keys = Keys::tagged("cb", 4).unwrap();
    let dead = keys.stream_name("{cb:a:1}:dead").unwrap();
    let other = way_back(&keys, &dead, &letter("a.b", "{cb:a:2}:events"));
    assert_eq!(other, Err(NoWayBack::OtherSlot));
}

#[test]
fn a_deadline_goes_when_it_has_passed_or_soon_will() {
    let left = |deadline: &str| {
        let fields = ["type", "a.b", "deadline", deadline, "x", "deadline"];
        let mut fields = fields.map(|word| word.as_bytes().to_vec()).to_vec();
        drop_deadline(&mut fields, 1000);
        fields.len()
    };
    assert_eq!((left("5"), left("61000")), (4, 4));
    assert_eq!((left("61001"), left("later")), (6, 6));
}
