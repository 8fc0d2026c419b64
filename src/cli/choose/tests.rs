use super::*;
use convoke::protocol::keys::Keys;
use serde_json::json;
use std::time::Duration;

#[test]
fn patterns_match_types() {
    for (glob, kind) in [
        ("*", ""),
        ("*", "a.b"),
        ("image.*", "image.resize"),
        ("*.re*e", "image.resize"),
        ("i?age.resize", "image.resize"),
        ("**", "a"),
        ("a*b*c", "a.b.b.c"),
    ] {
        assert!(fits(glob, kind), "{glob} {kind}");
    }
    for (glob, kind) in [
        ("", "a"),
        ("image", "image.resize"),
        ("*.x", "image.resize"),
        ("?", ""),
        ("a*b", "a.b.c"),
    ] {
        assert!(!fits(glob, kind), "{glob} {kind}");
    }
}

#[test]
fn short_names_and_whole_keys_mean_streams() {
    let keys = Keys::new("cb").unwrap();
    for (name, key) in [
        ("broadcast", "cb:broadcast"),
        ("events:image", "cb:events:image"),
        ("results:image", "cb:results:image"),
        ("dead:image", "cb:dead:image"),
        ("inbox:w-1", "cb:inbox:w-1"),
        ("cb:reply:me", "cb:reply:me"),
    ] {
        assert_eq!(stream_keys(&keys, name).unwrap(), [key]);
    }
    for name in ["image", "events:", "other:events:image", "cbx:events:image"] {
        assert!(stream_keys(&keys, name).is_err(), "{name}");
    }
    let keys = Keys::tagged("cb", 2).unwrap();
    assert_eq!(
        stream_keys(&keys, "events:image").unwrap(),
        ["{cb:image:0}:events", "{cb:image:1}:events"]
    );
    assert_eq!(
        stream_keys(&keys, "dead:inbox").unwrap(),
        ["{cb}:dead:inbox"]
    );
    assert_eq!(
        stream_keys(&keys, "{cb:image:1}:reply:me").unwrap(),
        ["{cb:image:1}:reply:me"]
    );
}

#[test]
fn moments_are_ages_dates_or_entries() {
    for (text, meant) in [
        ("10m", Moment::Ago(Duration::from_secs(600))),
        ("1700000000000", Moment::At(1_700_000_000_000)),
        ("2023-11-14T22:13:20Z", Moment::At(1_700_000_000_000)),
        ("2023-11-14T22:13Z", Moment::At(1_699_999_980_000)),
        ("2023-11-14 22:13Z", Moment::At(1_699_999_980_000)),
        ("2023-11-14", Moment::At(1_699_920_000_000)),
        ("17-3", Moment::Entry(EntryId { ms: 17, seq: 3 })),
        ("0", Moment::Entry(EntryId::default())),
    ] {
        assert_eq!(moment(text), Ok(meant), "{text}");
    }
    for text in ["", "yesterday", "10", "2023-13-14", "-"] {
        let is_wrong = moment(text).is_err();
        assert!(is_wrong || text == "10", "{text}");
    }
}

#[test]
fn conditions_look_into_payloads_and_then_at_the_events_own_fields() {
    let data = json!({"user": {"name": "ada", "n": 7, "tags": ["x", "80"]}, "none": null});
    let own = [&b"source"[..], b"shop", b"attempt", b"2", b"user", b"no"];
    let entry = Entry::new(EntryId::default(), own.map(<[u8]>::to_vec));
    for text in [
        "source",
        "source=shop",
        "attempt=2",
        "user",
        "user.name=ada",
        "user.n=7",
        "user.tags.0=x",
        "user.tags.1=80",
        "none=null",
        "user.name=\"ada\"",
        "none",
    ] {
        assert!(condition(text).unwrap().fits(&entry, &data), "{text}");
    }
    for text in [
        "source=shop2",
        "user=no",
        "user.n=8",
        "user.name=Ada",
        "user.x",
        "user.tags.2",
        "user.name.x",
        "x=1",
    ] {
        assert!(!condition(text).unwrap().fits(&entry, &data), "{text}");
    }
    for text in ["", "=1", "a..b=1", ".a"] {
        assert!(condition(text).is_err(), "{text}");
    }
}

#[test]
fn a_due_time_lies_ahead() {
    assert_eq!(due("10m"), Ok(Due::In(Duration::from_secs(600))));
    assert_eq!(Due::In(Duration::from_secs(600)).ms(1000), 601_000);
    let at = Due::At(1_896_048_000_000);
    for text in ["2030-01-31", "2030-01-31T00:00Z", "1896048000000"] {
        assert_eq!(due(text), Ok(at), "{text}");
    }
    assert_eq!(at.ms(5), 1_896_048_000_000);
    for text in ["1700000000000-0", "soon", ""] {
        assert!(due(text).unwrap_err().contains("from now"), "{text}");
    }
}
