//! `convoke cancel`.

use super::rig::{add, deliver, entries, lines, text};
use super::worker::Worker;
use super::{File, convoke, run};
use crate::support::{Redis, eventually};
use serde_json::json;

const EVENTS: &str = "cb:events:image";

/// Two that wait, one that is in hand, one that is delayed.
fn waiting() -> Redis {
    let redis = Redis::start();
    add(&redis, EVENTS, "7-1", "image.made", &json!(1), "id held");
    deliver(&redis, "w-9");
    add(&redis, EVENTS, "7-2", "image.made", &json!(1), "id one");
    add(&redis, EVENTS, "7-3", "image.made", &json!(1), "");
    let later = ["publish", "report.make", "--id=later", "--delay=1h"];
    run(&redis, &later).done();
    redis
}

#[test]
fn what_would_be_cancelled_is_shown_and_nobody_is_asked_where_nobody_is() {
    let redis = waiting();
    let shown = run(&redis, &["cancel", "held", "one", "later", "--dry-run"]).done();
    for part in ["running", "w-9", "waiting", "delayed", "report.make"] {
        assert!(shown.out.contains(part), "{part}: {}", shown.out);
    }
    assert!(
        shown.err.contains("3 events would be cancelled"),
        "{}",
        shown.err
    );
    run(&redis, &["cancel", "held"]).failed(2, &["--yes"]);
    run(&redis, &["cancel"]).failed(2, &["ID"]);
    run(&redis, &["cancel", "7-3", "--entry"]).failed(2, &["--domain"]);
    run(&redis, &["cancel", "x", "--domain=image", "--entry"]).failed(2, &["not an entry id"]);
    run(&redis, &["cancel", "x", "--domain=system", "--yes"]).failed(1, &["cannot be cancelled"]);
    run(&redis, &["cancel", "nobody"]).failed(1, &[]);
    assert_eq!(entries(&redis, EVENTS).len(), 3);
}

#[test]
fn events_are_cancelled_by_id_by_entry_and_from_a_file_and_each_is_told_apart() {
    let redis = waiting();
    let file = File::new("ids", "held\n\n one \nnobody\n");
    let named = format!("@{}", file.path());
    let words = [
        "cancel",
        &named,
        "later",
        "--yes",
        "--keep",
        "--format=json",
    ];
    let done = run(&redis, &[&words[..], &["--reason", "ticket 17"]].concat());
    assert_eq!(done.code, 1, "one of them is unknown: {done:?}");
    let told = lines(&done.out);
    let of = |n: usize| {
        let one = &told[n];
        (
            one["name"].as_str().unwrap(),
            one["state"].as_str().unwrap(),
            &one["cancelled"],
        )
    };
    assert_eq!(of(0), ("held", "running", &json!(true)));
    assert_eq!(of(1), ("one", "waiting", &json!(true)));
    assert_eq!(of(2), ("nobody", "unknown", &json!(false)));
    assert_eq!(of(3), ("later", "delayed", &json!(true)));
    assert_eq!(
        (&told[0]["instance"], &told[3]["domain"]),
        (&json!("w-9"), &json!("report"))
    );
    assert_eq!(entries(&redis, "cb:dead:image").len(), 2);
    let letter = &entries(&redis, "cb:dead:report")[0];
    assert_eq!(text(letter, "deadreason"), "cancelled");
    let by_entry = ["cancel", "7-3", "--entry", "--domain=image", "--yes"];
    let done = run(&redis, &by_entry).done();
    assert!(done.out.contains("cancelled"), "{}", done.out);
    assert!(done.err.contains("cancelled 1 event"), "{}", done.err);
    assert!(entries(&redis, EVENTS).is_empty());
    // Again: it says who did it.
    let again = run(&redis, &["cancel", "held", "one", "--yes"]).done();
    assert!(again.out.contains("ticket 17"), "{}", again.out);
    assert!(again.err.contains("cancelled 0 events"), "{}", again.err);
    run(&redis, &["cancel", "held", "--domain=image"]).done();
}

#[test]
fn the_processes_of_a_cancelled_command_are_ended_and_its_requester_is_told() {
    let redis = Redis::start();
    let file = File::new("pid", "");
    let command = format!("job.run=sleep 1000 & echo $! > {}; wait", file.path());
    let words = ["worker", "--id=w-1", "--exec", &command];
    let worker = Worker::start(&redis, "w-1", &mut convoke(&redis, &words));
    let asked = ["request", "job.run", "--id=long", "--timeout=60s"];
    let mut asked = convoke(&redis, &asked);
    asked.stdout(std::process::Stdio::piped());
    let asked = asked.stderr(std::process::Stdio::piped()).spawn().unwrap();
    let pid = || std::fs::read_to_string(file.path()).unwrap();
    eventually("the command runs", || pid().ends_with('\n'));
    let process = format!("/proc/{}", pid().trim());
    assert!(std::path::Path::new(&process).exists());
    run(&redis, &["cancel", "long", "--yes", "--reason=enough"]).done();
    eventually("the process is gone", || {
        !std::path::Path::new(&process).exists()
    });
    let answer = asked.wait_with_output().unwrap();
    assert_eq!(answer.status.code(), Some(1));
    let said = String::from_utf8(answer.stderr).unwrap();
    assert!(
        said.contains("cancelled: cancelled by") && said.contains("enough"),
        "{said}"
    );
    drop(worker);
}

#[test]
fn events_of_several_domains_that_have_one_id_are_all_shown_and_counted() {
    let redis = Redis::start();
    for domain in ["image", "mail"] {
        let (stream, kind) = (format!("cb:events:{domain}"), format!("{domain}.send"));
        add(&redis, &stream, "7-1", &kind, &json!(1), "id order");
    }
    let shown = run(&redis, &["cancel", "order", "--dry-run"]).done();
    for part in ["image.send", "mail.send"] {
        assert!(shown.out.contains(part), "{part}: {}", shown.out);
    }
    assert!(shown.err.contains("2 events would"), "{}", shown.err);
    let words = ["cancel", "order", "nobody", "--yes", "--format=json"];
    let done = run(&redis, &words);
    assert_eq!(done.code, 1, "{done:?}");
    let told = lines(&done.out);
    let domains: Vec<&str> = told
        .iter()
        .filter_map(|one| one["domain"].as_str())
        .collect();
    assert_eq!(domains[..2], ["image", "mail"], "{told:?}");
    assert_eq!(told.len(), 3, "{told:?}");
    let again = run(&redis, &["cancel", "order", "--yes"]).done();
    assert!(again.err.contains("cancelled 0 events"), "{}", again.err);
}
