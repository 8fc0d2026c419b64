//! `convoke dead`.

use super::rig::{bury, entries, lines, names, say, text};
use super::{File, run, run_with_input};
use crate::support::{Redis, name, users};
use serde_json::json;

fn graveyard() -> Redis {
    let redis = Redis::start();
    let ada = json!({"user": {"name": "ada"}});
    bury(
        &redis,
        "1-1",
        "image.resize",
        "internal",
        &ada,
        "id e-1 subject s-1 firstfailed 1699999999000 x y",
    );
    bury(&redis, "2-1", "image.resize", "internal", &json!(2), "");
    bury(
        &redis,
        "3-1",
        "image.crop",
        "poison",
        &json!(3),
        "replays 2",
    );
    redis
}

#[test]
fn dead_letters_are_counted_by_reason_and_type() {
    let redis = graveyard();
    let sums = lines(&run(&redis, &["dead", "list", "--format=json"]).done().out);
    assert_eq!(
        names(&sums[0]),
        [
            "stream",
            "reason",
            "type",
            "count",
            "oldest_at",
            "newest_at",
            "message"
        ]
    );
    let of = |n: usize| (&sums[n]["reason"], &sums[n]["type"], &sums[n]["count"]);
    assert_eq!(sums.len(), 2);
    assert_eq!(
        of(0),
        (&json!("internal"), &json!("image.resize"), &json!(2))
    );
    assert_eq!(of(1), (&json!("poison"), &json!("image.crop"), &json!(1)));
    assert_eq!(sums[0]["oldest_at"], 1_700_000_000_000_u64);
    let text = run(&redis, &["dead", "list"]).done();
    assert!(
        text.out.contains("internal") && text.out.contains(" ago"),
        "{}",
        text.out
    );
    assert!(text.err.contains("3 dead letters"), "{}", text.err);
    let text = run(&redis, &["dead", "list", "--absolute"]).done().out;
    assert!(text.contains("2023-11-14T22:13:20.000Z"), "{text}");
    run(&Redis::start(), &["dead", "list"])
        .done()
        .failed(0, &["0 dead letters"]);
}

#[test]
fn dead_letters_are_listed_and_chosen() {
    let redis = graveyard();
    let out = run(
        &redis,
        &["dead", "list", "image", "--entries", "--format=json"],
    )
    .done()
    .out;
    let letters = lines(&out);
    assert_eq!(
        names(&letters[0]),
        [
            "stream",
            "entry",
            "type",
            "id",
            "reason",
            "message",
            "attempts",
            "deliveries",
            "instance",
            "from_stream",
            "from_entry",
            "first_failed_at",
            "died_at",
            "replays",
            "fields",
            "data"
        ]
    );
    for (field, value) in [
        ("entry", json!("1-1")),
        ("id", json!("e-1")),
        ("reason", json!("internal")),
        ("attempts", json!(5)),
        ("instance", json!("w-1")),
        ("from_stream", json!(name("image", "cb:events:image"))),
        ("from_entry", json!("7-1")),
        ("first_failed_at", json!(1_699_999_999_000_u64)),
        ("died_at", json!(1_700_000_000_000_u64)),
        ("data", json!({"user": {"name": "ada"}})),
    ] {
        assert_eq!(letters[0][field], value, "{field}");
    }
    assert_eq!(letters[0]["fields"]["x"], "y");
    assert_eq!(letters[2]["replays"], 2);
    // Without one of its own.
    assert_eq!(letters[1]["id"], "7-2");
    let shown = |args: &[&str]| {
        let args = [&["dead", "list", "--entries", "--format=json"], args].concat();
        let letters = lines(&run(&redis, &args).done().out);
        let ids = letters
            .iter()
            .map(|p| p["entry"].as_str().unwrap().to_owned());
        ids.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(shown(&["--reason", "poison"]), "3-1");
    assert_eq!(shown(&["--type", "*.resize", "--limit", "1"]), "1-1");
    assert_eq!(shown(&["--where", "user.name=ada"]), "1-1");
    // A field of the event's own, here of the first one only.
    assert_eq!(shown(&["--where", "x=y"]), "1-1");
    let misspelt = ["dead", "list", "--entries", "--where", "sorce=shop"];
    let told = run(&redis, &misspelt).done();
    assert!(
        told.err.contains("sorce: none of the entries has a field"),
        "{}",
        told.err
    );
    let there = ["dead", "list", "--entries", "--where", "user.name=nobody"];
    assert!(!run(&redis, &there).done().err.contains("none of"));
    assert_eq!(shown(&["--instance", "w-2"]), "");
    assert_eq!(shown(&["--since", "2-0"]), "2-1 3-1");
    let text = run(&redis, &["dead", "list", "--entries"]).done().out;
    assert!(text.contains("broken") && text.contains("TRIES"), "{text}");
}

#[test]
fn one_is_shown_with_its_whole_story() {
    let redis = graveyard();
    let text = run(&redis, &["dead", "show", "1-1"]).done().out;
    let (dead, from) = (
        name("image", "cb:dead:image"),
        name("image", "cb:events:image"),
    );
    for part in [
        &format!("{dead} 1-1 image.resize"),
        "internal: broken",
        "5; 1 delivery",
        "given up by w-1",
        &format!("{from} 7-1"),
        "e-1",
        "s-1",
        "first failed",
        r#"{"user":{"name":"ada"}}"#,
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let letter = run(&redis, &["dead", "show", "1-1", "image", "--format=json"])
        .done()
        .json();
    assert_eq!(letter["data"]["user"]["name"], "ada");
    run(&redis, &["dead", "show", "9-9"]).failed(1, &["9-9", "no such dead letter"]);
    run(&redis, &["dead", "show", "x"]).failed(2, &["x"]);
}

#[test]
fn dead_letters_are_dropped_after_a_question() {
    let redis = graveyard();
    run(&redis, &["dead", "drop"]).failed(2, &["--all"]);
    run(&redis, &["dead", "drop", "--reason", "poison"])
        .failed(2, &["Drop 1 dead letter", "--yes"]);
    let dry = run(&redis, &["dead", "drop", "--reason", "poison", "--dry-run"]).done();
    assert!(dry.out.contains("image.crop") && dry.err.contains("1 dead letter would be dropped"));
    assert_eq!(entries(&redis, "cb:dead:image").len(), 3);
    let done = run(
        &redis,
        &[
            "dead",
            "drop",
            "--reason",
            "poison",
            "--yes",
            "--format=json",
        ],
    )
    .done()
    .json();
    assert_eq!(
        (names(&done), &done["dropped"]),
        (vec!["dropped", "run"], &json!(1))
    );
    assert_eq!(entries(&redis, "cb:dead:image").len(), 2);
    let facts = entries(&redis, "cb:broadcast");
    assert_eq!(text(&facts[0], "type"), "operator.dropped");
    assert!(text(&facts[0], "source").contains('@'));
    run(&redis, &["dead", "drop", "--all", "--yes"]).done();
    assert!(entries(&redis, "cb:dead:image").is_empty());
    run(&redis, &["dead", "drop", "--all", "--yes"]).done();
}

#[test]
fn nothing_of_a_dead_letter_drives_a_terminal() {
    let redis = Redis::start();
    say(
        &redis,
        "XADD cb:dead:image 1-1 type \x1b[2J \x1b]0;x\x07 \u{202e} data \x01\x02 deadreason \x1b[m deadmessage \u{9b}2J deadinstance \x07",
    );
    for args in [
        &["dead", "list"][..],
        &["dead", "list", "--entries"],
        &["dead", "show", "1-1"],
        &["replay", "dead", "--dry-run"],
    ] {
        for format in ["text", "json"] {
            let ended = run(&redis, &[args, &["--format", format]].concat()).done();
            let bad = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
            assert!(
                !ended.out.contains(bad) && !ended.err.contains(bad),
                "{args:?}: {ended:?}"
            );
        }
    }
}

#[test]
fn twenty_thousand_ids_come_from_a_file_or_a_pipe() {
    let redis = graveyard();
    let ids: String = (0..20_000).map(|n| format!("{n}-1\n")).collect();
    let path = File::new("ids", &ids);
    let file = format!("@{}", path.path());
    let args = |id| ["dead", "list", "--entries", "--format=json", "--id", id];
    let named = run(&redis, &args(&file)).done().out;
    assert_eq!(lines(&named).len(), 3);
    let piped = run_with_input(&redis, &args("-"), b"2-1, 3-1\n");
    let piped = piped.done().out;
    assert_eq!(lines(&piped).len(), 2);
    run(&redis, &args("@/nowhere")).failed(2, &["/nowhere"]);
    run(&redis, &args("1-1,x")).failed(2, &["\"x\"", "entry id"]);
}

#[test]
fn on_a_narrow_terminal_the_whole_message_is_there() {
    let redis = Redis::start();
    let message = "the printer is out of paper and nobody is there who could bring any before noon";
    let entry = [
        "type",
        "image.resize",
        "deadreason",
        "failed_precondition",
        "deadinstance",
        "worker-of-the-second-floor-17",
        "deadmessage",
        message,
    ];
    redis::cmd("XADD")
        .arg(&["cb:dead:image", "1700000000000-0"])
        .arg(&entry)
        .exec(&mut redis.connect())
        .unwrap();
    let line = format!("{} dead list --entries", env!("CARGO_BIN_EXE_convoke"));
    let mut command = std::process::Command::new("script");
    command
        .args(["-qec", &format!("stty cols 80; {line}"), "/dev/null"])
        .env("CONVOKE_REDIS_URL", redis.url_for(users::MONITOR))
        .env("NO_COLOR", "1")
        .env_remove("COLUMNS")
        .stdin(std::process::Stdio::null());
    let out = command.output().expect("script runs");
    let out = String::from_utf8(out.stdout).unwrap();
    let words: Vec<&str> = out.split_whitespace().collect();
    let said: Vec<&str> = message.split(' ').collect();
    assert!(words.windows(said.len()).any(|part| part == said), "{out}");
    assert!(out.contains("failed_precondition"), "{out}");
    assert!(
        out.lines()
            .all(|line| line.trim_end().chars().count() <= 80),
        "{out}"
    );
}
