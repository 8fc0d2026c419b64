//! `convoke group`.

use super::rig::{add, deliver, lines, names, register, say};
use super::run;
use crate::support::Redis;
use serde_json::json;

/// A stream of five entries; group `workers` holds three of them, group `old` read none.
fn groups() -> Redis {
    let redis = Redis::start();
    for n in 1..=3 {
        add(
            &redis,
            "cb:events:image",
            &format!("{n}-1"),
            "image.made",
            &json!(n),
            "",
        );
    }
    deliver(&redis, "w-1");
    for n in 4..=5 {
        add(
            &redis,
            "cb:events:image",
            &format!("{n}-1"),
            "image.made",
            &json!(n),
            "",
        );
    }
    say(&redis, "XGROUP CREATE cb:events:image old 0");
    redis
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_are_listed_with_who_reads_for_them() {
    let redis = groups();
    register(&redis, "w-1").await;
    let listed = lines(&run(&redis, &["group", "list", "--format=json"]).done().out);
    assert_eq!(
        names(&listed[0]),
        [
            "group",
            "stream",
            "readers",
            "lag",
            "pending",
            "last_delivered",
            "oldest_entry",
            "oldest_ms"
        ]
    );
    let of = |n: usize| {
        (
            &listed[n]["group"],
            &listed[n]["readers"],
            &listed[n]["pending"],
        )
    };
    assert_eq!(of(0), (&json!("old"), &json!([]), &json!(0)));
    assert_eq!(of(1), (&json!("workers"), &json!(["w-1"]), &json!(3)));
    let told = run(&redis, &["group", "list"]).done();
    assert!(
        told.out.contains("nobody") && told.err.contains("2 groups"),
        "{told:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_is_dropped_with_its_loss_said_first_and_never_under_its_readers() {
    let redis = groups();
    register(&redis, "w-1").await;
    run(&redis, &["group", "drop", "workers", "--yes"]).failed(2, &["w-1 reads for it", "stop it"]);
    run(&redis, &["group", "drop", "none", "--yes"]).failed(1, &["none: no stream has a group"]);
    let dry = run(&redis, &["group", "drop", "old", "--dry-run"]).done();
    assert!(
        dry.err
            .contains("old would be dropped from 1 stream: 0 pending"),
        "{}",
        dry.err
    );
    run(&redis, &["group", "drop", "old"]).failed(2, &["Drop the group old", "--yes"]);
    let dropped = run(&redis, &["group", "drop", "old", "image", "--yes"]).done();
    assert_eq!(
        dropped.out.lines().last(),
        Some("dropped old from 1 stream")
    );
    let left = lines(&run(&redis, &["group", "list", "--format=json"]).done().out);
    assert_eq!(left.len(), 1);
}

#[test]
fn a_group_is_moved_with_what_that_means_said_first() {
    let redis = groups();
    let reset = |to: &str, more: &[&str]| {
        let to = format!("--to={to}");
        let mut words = vec!["group", "reset", "workers", "image", to.as_str()];
        words.extend(more);
        run(&redis, &words)
    };
    let plan = lines(&reset("start", &["--dry-run", "--format=json"]).done().out);
    assert_eq!(
        (&plan[0]["again"], &plan[0]["left_out"]),
        (&json!(3), &json!(null))
    );
    let plan = lines(&reset("end", &["--dry-run", "--format=json"]).done().out);
    assert_eq!(
        (&plan[0]["again"], &plan[0]["left_out"]),
        (&json!(null), &json!(2))
    );
    reset("start", &["--yes"]).failed(1, &["not moved: 1-1 behind that place is pending"]);
    say(&redis, "XACK cb:events:image workers 1-1 2-1 3-1");
    reset("start", &[]).failed(2, &["Move the group workers?"]);
    let moved = reset("start", &["--yes"]).done();
    assert!(moved.out.contains("moved to 0-0"), "{}", moved.out);
    let moved = reset("end", &["--yes"]).done();
    assert!(moved.out.contains("moved to 5-1"), "{}", moved.out);
    reset("soon", &[]).failed(2, &["not start, not end"]);
    run(&redis, &["group", "reset", "other", "image", "--to=end"])
        .failed(1, &["has a group of that name"]);
}
