//! Programs that stay alive (`worker --pipe`), in whatever language there is.

use super::rig::{entries, text};
use super::worker::Worker;
use super::{File, convoke, run, run_with_input};
use crate::support::{self, Redis, torture};
use convoke::protocol::json;
use serde_json::Value;
use std::collections::BTreeMap;
use std::process::Command;

/// What each program of these tests begins with: it answers what its function `handle` returns.
const PYTHON: &str = r#"
import json, os, sys, time
def say(**answer):
    print(json.dumps(answer), flush=True)
def each(handle):
    for line in sys.stdin:
        event = json.loads(line)
        say(id=event["id"], **handle(event))
"#;

fn program(name: &str, text: &str) -> File {
    File::new(&format!("{name}.py"), &format!("{PYTHON}{text}"))
}

fn worker(redis: &Redis, pipe: &str, flags: &[&str]) -> Worker {
    let mut command = convoke(redis, &["worker", "--id=w-1", "--pipe", pipe]);
    Worker::start(redis, "w-1", command.args(flags))
}

fn request(redis: &Redis, kind: &str, data: &str) -> super::Ended {
    run(redis, &["request", kind, "--data", data, "--timeout=60s"])
}

/// The results of a domain's events, by the event's id: how many, and the last.
fn results(redis: &Redis, domain: &str) -> BTreeMap<String, (usize, Value)> {
    let mut found = BTreeMap::new();
    for entry in entries(redis, &format!("cb:results:{domain}")) {
        let result = json::to_json(entry.get("data").unwrap_or(&[0xc0])).unwrap();
        let counted = found.entry(text(&entry, "correlationid"));
        let (count, last) = counted.or_insert((0, Value::Null));
        (*count, *last) = (*count + 1, result);
    }
    found
}

/// Publishes one event for each line.
fn publish_lines(redis: &Redis, kind: &str, lines: &str) {
    let args = ["publish", kind, "--data=-", "--lines"];
    run_with_input(redis, &args, lines.as_bytes()).done();
}

fn there_is(program: &str) -> bool {
    let asked = Command::new(program).arg("--version").output();
    asked.is_ok_and(|asked| asked.status.success())
}

#[test]
fn the_examples_in_other_languages_work() {
    for (program, file) in [
        ("python3", "piped.py"),
        ("node", "piped.mjs"),
        ("sh", "piped.sh"),
    ] {
        // Not everyone has Node.
        if program == "node" && !there_is(program) {
            eprintln!("{program} is not installed: {file} was not run");
            continue;
        }
        let redis = Redis::start();
        let file = format!("{}/tests/examples/{file}", env!("CARGO_MANIFEST_DIR"));
        let pipe = format!("text.upper={program} {file}");
        let worker = worker(&redis, &pipe, &["--pipe-workers=2"]);
        for (data, upper) in [(r#""abc""#, "\"ABC\"\n"), (r#""x y""#, "\"X Y\"\n")] {
            assert_eq!(
                request(&redis, "text.upper", data).done().out,
                upper,
                "{program}"
            );
        }
        let refused = run(
            &redis,
            &["request", "text.upper", "--data", "7", "--format=json"],
        );
        let error: Value = serde_json::from_str(&refused.err).unwrap();
        assert_eq!(error["retryable"], false, "{program}: {error}");
        worker.stop().done();
    }
}

#[test]
fn a_program_publishes_if_it_succeeds_and_what_it_says_on_stderr_names_the_event() {
    let redis = Redis::start();
    let program = program(
        "publishes",
        r#"
def handle(event):
    print("looking at", event["data"], file=sys.stderr, flush=True)
    if "subject" in event:
        say(id=event["id"], progress={"done": 1, "total": 2})
    say(id="nobody's", ok=1)
    say(id=event["id"], publish={"type": "audit.seen", "data": event["data"], "subject": "s-1"})
    if event["data"] == "bad":
        return {"error": {"code": "not_found", "message": "no such thing"}}
    if event["data"] == "odd":
        say(id=event["id"], publish={"type": "nodot"})
    return {"ok": [event["type"], event["attempt"], event["data"]]}
each(handle)
"#,
    );
    let pipe = format!("demo.look=python3 {}", program.path());
    let worker = worker(&redis, &pipe, &[]);
    let good = request(&redis, "demo.look", r#"{"$bin":"00ff"}"#).done();
    assert_eq!(good.out, "[\"demo.look\",1,{\"$bin\":\"00ff\"}]\n");
    request(&redis, "demo.look", r#""bad""#).failed(1, &["no such thing"]);
    request(&redis, "demo.look", r#""odd""#).failed(1, &["nodot"]);
    support::eventually("what it published is there", || {
        !entries(&redis, "cb:events:audit").is_empty()
    });
    let seen = entries(&redis, "cb:events:audit");
    assert_eq!(seen.len(), 1);
    assert_eq!(text(&seen[0], "subject"), "s-1");
    assert_eq!(seen[0].get("data"), Some(&[0xc4, 2, 0, 0xff][..]));
    run(
        &redis,
        &["publish", "demo.look", "--id=e-7", "--data=\"good\""],
    )
    .done();
    support::eventually("it is looked at", || {
        results(&redis, "demo").contains_key("e-7")
    });
    let args = [
        "request",
        "demo.look",
        "--data=1",
        "--subject=a",
        "--progress",
        "--format=json",
    ];
    // The reply waits for it, for a second.
    support::eventually("its progress is told", || {
        run(&redis, &args).done().err.contains("\"done\":1")
    });
    let log = worker.stop().done().err;
    let line = log.lines().find(|line| line.contains("looking at good"));
    assert!(line.is_some_and(|line| line.contains("e-7")), "{log}");
    assert!(log.contains("does not hold"), "{log}");
}

#[test]
fn a_program_speaks_messagepack_if_it_likes() {
    let redis = Redis::start();
    let program = program(
        "packed",
        r#"
while True:
    length = sys.stdin.buffer.read(4)
    if not length:
        break
    event = sys.stdin.buffer.read(int.from_bytes(length, "big"))
    at = event.index(b"\xa2id") + 3
    id = event[at:at + 1 + (event[at] & 31)]
    if event[at] == 0xd9:
        id = event[at:at + 2 + event[at + 1]]
    data = event[event.rindex(b"\xa4data") + 5:]
    answer = b"\x82\xa2id" + id + b"\xa2ok" + data
    sys.stdout.buffer.write(len(answer).to_bytes(4, "big") + answer)
    sys.stdout.buffer.flush()
"#,
    );
    let pipe = format!("demo.echo=python3 {}", program.path());
    let worker = worker(&redis, &pipe, &["--pipe-format=demo.echo=msgpack"]);
    for data in [r#"{"$float":"nan"}"#, r#"{"a":[1,"é"]}"#] {
        let echoed = request(&redis, "demo.echo", data).done();
        assert_eq!(echoed.out, format!("{data}\n"));
    }
    worker.stop().done();
}

#[test]
fn processes_that_die_lose_and_double_nothing() {
    // Each dies in the middle of its sixteenth event.
    let kills = torture::size("TORTURE_PIPE_KILLS", 9, 100) as usize;
    let events = 16 * (kills + 1);
    let redis = Redis::start();
    let program = program(
        "dies",
        r#"
count = 0
def handle(event):
    global count
    count += 1
    say(id=event["id"], publish={"type": "audit.seen", "data": event["id"]})
    if count == 16:
        os.kill(os.getpid(), 9)
    return {"ok": event["data"]}
each(handle)
"#,
    );
    let pipe = format!("demo.count=exec python3 {}", program.path());
    let flags = [
        "--max-attempts=100",
        "--backoff-base=1ms",
        "--backoff-cap=20ms",
    ];
    let worker = worker(&redis, &pipe, &[&flags[..], &["--pipe-workers=2"]].concat());
    let lines: String = (0..events).map(|n| format!("{n}\n")).collect();
    publish_lines(&redis, "demo.count", &lines);
    // A part at a time: each death costs a pause.
    for part in 1..=kills + 1 {
        support::eventually("some more are handled", || {
            results(&redis, "demo").len() >= 16 * part
        });
    }
    let log = worker.stop().done().err;
    let mut counted: Vec<u64> = Vec::new();
    for (id, (count, result)) in results(&redis, "demo") {
        assert_eq!(count, 1, "{id}");
        counted.push(result.as_u64().unwrap());
    }
    counted.sort_unstable();
    assert_eq!(counted, (0..events as u64).collect::<Vec<_>>());
    let mut seen = BTreeMap::new();
    for entry in entries(&redis, "cb:events:audit") {
        let id = json::to_json(entry.get("data").unwrap()).unwrap();
        *seen.entry(id.to_string()).or_insert(0) += 1;
    }
    assert_eq!(seen.len(), events);
    assert!(seen.values().all(|count| *count == 1), "{seen:?}");
    assert_eq!(entries(&redis, "cb:dead:demo").len(), 0);
    let deaths = log.matches("signal: 9").count();
    // Two processes run, and the last death of each is still to come.
    assert!(deaths + 1 >= kills, "{deaths}");
    torture::Report::default()
        .fault(
            deaths as u64,
            "kills of piped processes in the middle of an event",
        )
        .event(events as u64, "their events, each once")
        .tell("pipe");
}

#[test]
fn an_event_that_ends_its_process_takes_the_others_along_once() {
    let redis = Redis::start();
    let program = program(
        "poisoned",
        r#"
def handle(event):
    if event["data"] == "poison":
        print("I cannot take this", file=sys.stderr, flush=True)
        os._exit(3)
    return {"ok": event["attempt"]}
each(handle)
"#,
    );
    let pipe = format!("demo.take=exec python3 {}", program.path());
    let flags = [
        "--pipe-outstanding=8",
        "--max-attempts=3",
        "--backoff-base=1ms",
        "--backoff-cap=5ms",
    ];
    let worker = worker(&redis, &pipe, &flags);
    let lines = "\"poison\"\n1\n2\n3\n4\n5\n6\n7\n";
    publish_lines(&redis, "demo.take", lines);
    support::eventually("all are handled", || {
        let dead = entries(&redis, "cb:dead:demo");
        results(&redis, "demo").len() == 7 && !dead.is_empty()
    });
    let dead = entries(&redis, "cb:dead:demo");
    assert_eq!(dead.len(), 1);
    for (id, (_, attempt)) in results(&redis, "demo") {
        assert!(attempt == 1 || attempt == 2, "{id}: {attempt}");
    }
    assert_eq!(dead[0].get("data"), Some(&b"\xa6poison"[..]));
    let why = text(&dead[0], "deadmessage");
    assert!(
        why.contains("exit status: 3") && why.contains("I cannot take this"),
        "{why}"
    );
    worker.stop().done();
}

#[test]
fn a_run_that_takes_too_long_ends_its_process_and_no_other_run_spends_an_attempt() {
    let redis = Redis::start();
    let mark = format!("{}", 400_000 + u32::from(redis.port()));
    let program = program(
        "hangs",
        r#"
import subprocess
def handle(event):
    if event["data"] == "hang":
        subprocess.run(["sleep", sys.argv[1]])
    return {"ok": event["attempt"]}
each(handle)
"#,
    );
    let pipe = format!("demo.try=python3 {} {mark}; true", program.path());
    let flags = [
        "--pipe-outstanding=4",
        "--max-attempts=1",
        "--handler-timeout=20s",
    ];
    let worker = worker(&redis, &pipe, &flags);
    run(
        &redis,
        &["publish", "demo.try", "--id=hangs", "--data=\"hang\""],
    )
    .done();
    let sleeps = || {
        let found = Command::new("pgrep")
            .args(["-f", &format!("^sleep {mark}")])
            .output();
        !found.unwrap().stdout.is_empty()
    };
    support::eventually("it hangs", sleeps);
    // Given to the same process, which cannot answer; its own time is over long after the other's.
    std::thread::sleep(std::time::Duration::from_secs(3));
    assert_eq!(request(&redis, "demo.try", "1").done().out, "1\n");
    support::eventually("it timed out", || {
        !entries(&redis, "cb:dead:demo").is_empty()
    });
    let dead = entries(&redis, "cb:dead:demo");
    assert_eq!(dead.len(), 1);
    assert_eq!(text(&dead[0], "id"), "hangs");
    assert_eq!(text(&dead[0], "deadreason"), "deadline_exceeded");
    support::eventually("its children have ended", || !sleeps());
    worker.stop().done();
}

#[test]
fn a_drained_program_answers_what_it_holds_sees_the_end_and_may_clear_up() {
    let redis = Redis::start();
    let (begun, left) = (File::new("begun", ""), File::new("left", ""));
    let program = program(
        "drained",
        r#"
def handle(event):
    open(sys.argv[1], "w").write("yes")
    time.sleep(1)
    return {"ok": "done"}
each(handle)
# Its output is closed; it has time all the same.
os.dup2(2, 1)
time.sleep(1)
open(sys.argv[2], "w").write("in order")
"#,
    );
    let (program, begins) = (program.path(), begun.path());
    let pipe = format!("demo.slow=exec python3 {program} {begins} {}", left.path());
    let worker = worker(&redis, &pipe, &[]);
    run(&redis, &["publish", "demo.slow", "--id=e-1"]).done();
    support::eventually("it has begun", || {
        !std::fs::read_to_string(begins).unwrap().is_empty()
    });
    worker.stop().done();
    assert_eq!(results(&redis, "demo")["e-1"], (1, "done".into()));
    assert_eq!(std::fs::read_to_string(left.path()).unwrap(), "in order");
}

#[test]
fn a_result_beyond_a_limit_fails_its_event_alone_and_names_the_limit() {
    let redis = Redis::start();
    let program = program(
        "limits",
        r#"
deep = 1
for _ in range(40):
    deep = [deep]
results = {
    "deep": deep,
    "many": [0] * 70000,
    "long": "x" * (1 << 20),
    # Within the limits, and longer than them as JSON.
    "bytes": {"$bin": "00" * 600000},
    "process": os.getpid(),
}
def handle(event):
    return {"ok": results[event["data"]]}
each(handle)
"#,
    );
    let pipe = format!("demo.give=python3 {}", program.path());
    let worker = worker(&redis, &pipe, &[]);
    let process = request(&redis, "demo.give", "\"process\"").done().out;
    for (result, limit) in [
        ("\"deep\"", "deeper than 32"),
        ("\"many\"", "more than 65536 values"),
        ("\"long\"", "over the limit of 1048576"),
    ] {
        request(&redis, "demo.give", result).failed(1, &[limit]);
    }
    let bytes = request(&redis, "demo.give", "\"bytes\"").done().out;
    assert_eq!(
        bytes,
        format!("{{\"$bin\":\"{}\"}}\n", "00".repeat(600_000))
    );
    let same = request(&redis, "demo.give", "\"process\"").done().out;
    assert_eq!(same, process);
    worker.stop().done();
}

#[test]
fn what_is_no_answer_ends_the_process_with_the_reason() {
    let redis = Redis::start();
    let pipe = "demo.noise=while read -r line; do echo Processing; done";
    let flags = ["--max-attempts=1", "--max-payload=1000"];
    let worker = worker(
        &redis,
        pipe,
        &[&flags[..], &["--pipe", "demo.much=cat /dev/zero"]].concat(),
    );
    request(&redis, "demo.noise", "1").failed(1, &["no answer", "Processing"]);
    support::eventually("what is too much is refused", || {
        let asked = request(&redis, "demo.much", "1");
        asked.code == 1 && asked.err.contains("a message of more than 71536 bytes")
    });
    worker.stop().done();
}

#[test]
fn what_makes_no_sense_of_a_pipe_is_refused() {
    let redis = Redis::start();
    let worker = |args: &[&str]| run(&redis, &[&["worker"], args].concat());
    worker(&["--pipe", "cat"]).failed(2, &["--pipe", "TYPE=CMD"]);
    worker(&["--pipe", "a.b=cat", "--pipe", "a.b=true"]).failed(2, &["a.b has two commands"]);
    worker(&["--pipe-workers", "a.b=2"]).failed(2, &["--pipe-workers", "no --pipe for a.b"]);
    worker(&["--pipe", "a.b=cat", "--pipe-workers", "0"]).failed(2, &["workers: 0"]);
    worker(&["--pipe", "a.b=cat", "--pipe-format", "xml"]).failed(2, &["json or msgpack"]);
    worker(&["--pipe", "a.b=cat", "--exec", "a.b=cat"]).failed(1, &["a.b has two handlers"]);
    let file = File::new(
        "pipe.toml",
        "[pipe.\"a.b\"]\ncommand = \"cat\"\nworkers = 300\n",
    );
    worker(&["--config", file.path()]).failed(2, &["a.b: workers: 300"]);
}
