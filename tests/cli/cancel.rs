//! `convoke cancel`.

use super::rig::{add, deliver, entries, lines, text};
use super::worker::{Worker, sleepers};
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

/// Has a worker with those flags run `job.hold`, whose run becomes some processes that sleep, cancels it, and sees to it
/// that they end, that the event is gone, and that the worker goes on with what comes then.
fn its_processes_end(flags: &[&str], seconds: u32, redis: &Redis, processes: usize) {
    let start = [&["worker", "--id=w-1", "--exec=job.echo=cat"], flags].concat();
    let worker = Worker::start(redis, "w-1", &mut convoke(redis, &start));
    run(redis, &["publish", "job.hold", "--id=h-1"]).done();
    eventually("it runs", || sleepers(seconds) == processes);
    let words = ["cancel", "h-1", "--yes", "--reason=harm", "--format=json"];
    let told = lines(&run(redis, &words).done().out);
    let of = (&told[0]["state"], &told[0]["cancelled"]);
    assert_eq!(of, (&json!("running"), &json!(true)), "{told:?}");
    eventually("its processes have ended", || sleepers(seconds) == 0);
    assert_eq!(entries(redis, "cb:events:job").len(), 0);
    assert_eq!(entries(redis, "cb:results:job").len(), 0);
    assert_eq!(entries(redis, "cb:dead:job").len(), 0);
    let asked = ["request", "job.echo", "--data=1", "--timeout=60s"];
    assert_eq!(run(redis, &asked).done().json(), json!(1));
    run(redis, &["publish", "job.hold", "--id=h-2"]).done();
    eventually("the next one runs", || sleepers(seconds) == processes);
    run(redis, &["cancel", "h-2", "--yes"]).done();
    eventually("it has ended", || sleepers(seconds) == 0);
    worker.stop().done();
}

#[test]
fn a_command_that_is_cancelled_ends_with_all_its_children() {
    let redis = Redis::start();
    let seconds = 400_000 + u32::from(redis.port());
    // One stays, one leaves the process group.
    let hold = format!("--exec=job.hold=setsid sleep {seconds} & sleep {seconds}; true");
    its_processes_end(&[&hold], seconds, &redis, 2);
}

#[test]
fn a_piped_program_whose_run_is_cancelled_ends_with_its_children_and_is_started_again() {
    let redis = Redis::start();
    let seconds = 500_000 + u32::from(redis.port());
    // It answers nothing: what it was given is the run.
    let hold = format!("--pipe=job.hold=read event; sleep {seconds} & sleep {seconds}; true");
    its_processes_end(&[&hold], seconds, &redis, 2);
}
