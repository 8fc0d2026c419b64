//! Payloads and types that are put right on their way back.

use super::super::rig::{bury, deliver, entries, lines, say, text};
use super::super::{File, convoke, end, run};
use super::{DEAD, EVENTS, graveyard};
use crate::support;
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;

fn editor(name: &str, script: &str) -> File {
    let file = File::new(name, &format!("#!/bin/sh\n{script}\n"));
    std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    file
}

#[test]
fn a_payload_is_mended_in_the_editor() {
    let redis = graveyard(2);
    let mends = editor("mends", r#"sed -i 's/"n": 1/"n": "mended"/' "$1""#);
    let edit = |editor: &File, args: &[&str]| {
        let args = [&["replay", "dead", "--edit", "--yes"], args].concat();
        end(convoke(&redis, &args)
            .env("EDITOR", editor.path())
            .env_remove("VISUAL"))
    };
    edit(&mends, &[]).failed(2, &["single entry", "--id"]);
    edit(&mends, &["--id", "1-1"]).done();
    let data = |n: usize| -> Value {
        convoke::protocol::json::to_json(entries(&redis, EVENTS)[n].get("data").unwrap()).unwrap()
    };
    assert_eq!(data(0), json!({"n": "mended"}));
    assert!(text(&entries(&redis, EVENTS)[0], "edited").contains('@'));
    edit(&editor("fails", "exit 3"), &["--id", "2-1"]).failed(1, &["nothing was changed"]);
    edit(&editor("garbage", "echo '{' > \"$1\""), &["--id", "2-1"])
        .failed(2, &["the mended payload is not JSON"]);
    assert_eq!(entries(&redis, DEAD).len(), 1);
    // Bytes have a form of their own in JSON, and stay what they are.
    crate::rig::send(
        &redis,
        &[
            b"XADD",
            b"cb:dead:image",
            b"9-1",
            b"type",
            b"image.raw",
            b"data",
            b"\x81\xa3raw\xc4\x01\xff",
            b"deadreason",
            b"internal",
        ],
    );
    let adds = editor("adds", r#"sed -i '1s/{/{"n": 1,/' "$1""#);
    edit(&adds, &["--id", "9-1"]).done();
    assert_eq!(
        entries(&redis, EVENTS)[1].get("data").unwrap(),
        b"\x82\xa1n\x01\xa3raw\xc4\x01\xff"
    );
    // What could not be decoded is written again.
    crate::rig::send(
        &redis,
        &[
            b"XADD",
            b"cb:dead:image",
            b"10-1",
            b"type",
            b"image.raw",
            b"data",
            b"\xc1",
            b"deadreason",
            b"invalid_argument",
        ],
    );
    let renewed = editor("renewed", "echo 7 > \"$1\"");
    edit(&renewed, &["--id", "10-1", "--force"]).done();
    assert_eq!(data(2), json!(7));
    // What came as JSON text goes back as that: a reply is JSON too.
    let words = "XADD cb:dead:image 99-1 type image.raw data {\"n\":1} datacontenttype application/json \
                 deadreason internal";
    crate::rig::say(&redis, words);
    edit(&mends, &["--id", "99-1"]).done();
    let last = entries(&redis, EVENTS).pop().unwrap();
    assert_eq!(text(&last, "datacontenttype"), "application/json");
    assert_eq!(text(&last, "data"), r#"{"n":"mended"}"#);
}

#[test]
fn payloads_are_mended_by_a_program_and_what_it_cannot_mend_stays() {
    let redis = graveyard(30);
    let mend = "grep -v '\"n\":7}' | sed \"s/\\\"n\\\"/\\\"$CONVOKE_EVENT_ID\\\"/\" | grep . || { echo no seven >&2; exit 3; }";
    let with = format!("--edit-with={mend}");
    let dry = run(
        &redis,
        &["replay", "dead", "--format=json", "--dry-run", &with],
    )
    .done();
    let planned = lines(&dry.out);
    assert_eq!(planned.len(), 31);
    assert_eq!(
        (&planned[0]["before"], &planned[0]["data"]),
        (&json!({"n": 1}), &json!({"e-1": 1}))
    );
    assert_eq!(planned[6]["would"], "leave");
    assert_eq!(planned[30]["would_replay"], 29);
    assert_eq!(entries(&redis, DEAD).len(), 30);
    let told = run(&redis, &["replay", "dead", "--dry-run", "--limit=1", &with]).done();
    assert!(told.out.contains(r#"{"n":1} → {"e-1":1}"#), "{}", told.out);
    let done = run(&redis, &["replay", "dead", "--yes", &with]);
    let done = done.failed(1, &["1 left alone: --edit-with: exit status: 3: no seven"]);
    assert!(
        done.out.contains("replayed 29 dead letters"),
        "{}",
        done.out
    );
    let events = entries(&redis, EVENTS);
    assert_eq!(events.len(), 29);
    let of = |n: usize| {
        let data = convoke::protocol::json::to_json(events[n].get("data").unwrap()).unwrap();
        (
            text(&events[n], "id"),
            data,
            text(&events[n], "edited").is_empty(),
        )
    };
    assert_eq!(of(1), ("e-2".into(), json!({"e-2": 2}), false));
    let left = entries(&redis, DEAD);
    assert_eq!((left.len(), text(&left[0], "id")), (1, "e-7".into()));
    // What leaves it as it is edits nothing; what prints no JSON mends nothing.
    let same = ["replay", "dead", "--yes", "--edit-with=cat"];
    let no_json = ["replay", "dead", "--yes", "--edit-with=echo oops"];
    run(&redis, &no_json).failed(1, &["1 left alone: --edit-with: not JSON"]);
    run(&redis, &same).done();
    assert!(entries(&redis, EVENTS)[29].get("edited").is_none());
}

#[test]
fn a_misspelt_type_is_put_right_and_goes_to_its_domain() {
    let redis = graveyard(3);
    let to = |kind: &str, id: &str| {
        let (kind, id) = (format!("--to-type={kind}"), format!("--id={id}"));
        run(&redis, &["replay", "dead", "--yes", &kind, &id])
    };
    to("image.resized", "1-1").done();
    let event = &entries(&redis, EVENTS)[0];
    assert_eq!(
        (text(event, "type"), text(event, "edited").is_empty()),
        ("image.resized".into(), false)
    );
    let mailed = to("mail.send", "2-1").done();
    match support::is_cluster() {
        false => {
            let mail = &entries(&redis, "cb:events:mail")[0];
            assert_eq!(text(mail, "type"), "mail.send");
        }
        // A letter moves in one step, so what to do instead is said; it stays where it is.
        true => {
            assert!(mailed.err.contains("by `convoke publish`"), "{mailed:?}");
            let left = entries(&redis, DEAD);
            assert!(left.iter().any(|letter| letter.id.to_string() == "2-1"));
        }
    }
    to("nodot", "3-1").failed(2, &["nodot"]);
    bury(
        &redis,
        "9-1",
        "Image.Resize",
        "invalid_argument",
        &json!(9),
        "id e-9",
    );
    to("image.resize", "9-1").done();
    let put_right = entries(&redis, EVENTS).pop().unwrap();
    assert_eq!(
        (text(&put_right, "id"), text(&put_right, "type")),
        ("e-9".into(), "image.resize".into())
    );
    deliver(&redis, "w-1");
    let id = entries(&redis, EVENTS)[0].id;
    say(&redis, &format!("XACK cb:events:image workers {id}"));
    let range = [
        "replay",
        "range",
        "image",
        "--to-type=mail.send",
        "--force",
        "--dry-run",
    ];
    let dry = run(&redis, &range).done();
    assert!(
        dry.err.contains("0 finished events would be replayed"),
        "{dry:?}"
    );
}
