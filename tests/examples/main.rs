//! Every example runs against a server of its own, and prints what it is to print.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use convoke::testing::Server;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

/// What each prints that runs by itself.
const PRINTS: [(&str, &str); 9] = [
    (
        "batch",
        "completed: 2 went well, 1 failed\nitem 2: too large\n",
    ),
    ("layer", "text.upper succeeded: true\nHELLO\n"),
    ("once", "runs\n70 left\nruns\n70 left\n"),
    ("outbox", "order 2 was placed\n"),
    (
        "service",
        "3 left\nfailed_precondition: only 3 are left\nada: 7 pieces\n",
    ),
    ("tasks", "completed: 42\n"),
    (
        "tower_layers",
        "HELLO\nnot_found: no text\nunavailable: a layer: request timed out\n",
    ),
    ("trial", "cancelled in time\n"),
    (
        "vote",
        "1 of 3, open: nothing\n2 of 3, open: nothing\n3 of 3, decided: blue\n",
    ),
];
/// Those that belong together.
const PAIR: [&str; 2] = ["client", "worker"];

/// Where cargo puts an example: beside the directory of this test. `cargo test` builds them all.
fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let built = test.parent().unwrap().parent().unwrap();
    let program = built.join("examples").join(name);
    assert!(
        program.exists(),
        "{}: cargo build --examples",
        program.display()
    );
    program
}

/// Where an example has its files.
fn room(name: &str) -> PathBuf {
    let room = format!("convoke-example-{}-{name}", std::process::id());
    let room = std::env::temp_dir().join(room);
    fs::create_dir_all(&room).unwrap();
    room
}

fn start(name: &str, server: &Server) -> Child {
    // A process id is given again: what an earlier process left is not this example's.
    fs::remove_dir_all(room(name)).unwrap();
    let mut command = Command::new(program(name));
    command.arg(server.url()).stdin(Stdio::null());
    command.env("CONVOKE_REDIS_URL", server.url());
    command.env("TMPDIR", room(name));
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// What it printed, and what it said on stderr.
fn both(name: &str, output: Output) -> (String, String) {
    fs::remove_dir_all(room(name)).unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{name}: {}: {said}", output.status);
    (String::from_utf8(output.stdout).unwrap(), said)
}

fn printed(name: &str, output: Output) -> String {
    both(name, output).0
}

fn prints(name: &str) {
    let server = Server::start().unwrap();
    let output = start(name, &server).wait_with_output().unwrap();
    let (_, expected) = PRINTS.iter().find(|(of, _)| *of == name).unwrap();
    assert_eq!(printed(name, output), *expected, "{name}");
}

#[test]
fn each_item_of_a_batch_counts() {
    prints("batch");
}

#[test]
fn a_layer_sees_each_run() {
    prints("layer");
}

#[test]
fn sql_takes_effect_once() {
    prints("once");
}

#[test]
fn what_was_committed_is_told() {
    prints("outbox");
}

#[test]
fn a_service_does_all_of_it() {
    prints("service");
}

#[test]
fn towers_own_layers_fit() {
    prints("tower_layers");
}

#[test]
fn a_task_is_done() {
    prints("tasks");
}

#[test]
fn a_handler_is_tested_without_a_server() {
    prints("trial");
}

#[test]
fn a_vote_decides() {
    prints("vote");
}

#[test]
fn a_client_has_its_answers_from_a_worker() {
    let server = Server::start().unwrap();
    let worker = start("worker", &server);
    let client = start("client", &server).wait_with_output().unwrap();
    let ended = Command::new("kill").arg(worker.id().to_string()).status();
    assert!(ended.unwrap().success());
    let (worker, said) = both("worker", worker.wait_with_output().unwrap());
    assert_eq!(
        printed("client", client),
        "stored again: false, then true\nwaits: true\n6400 pixels\n\
         invalid_argument: width: more than 10000\n"
    );
    let mut worker: Vec<&str> = worker.lines().collect();
    worker.sort_unstable();
    assert_eq!(worker, ["-: 80 wide", "cat: 640 wide"]);
    assert!(said.contains(" INFO "), "nobody else took its logs: {said}");
}

#[test]
fn a_worker_of_the_environment_says_which_variable_is_wrong() {
    let of = |variable: &str, value: &str| {
        let mut worker = Command::new(program("worker"));
        let ended = worker.env(variable, value).output().unwrap();
        assert!(!ended.status.success());
        String::from_utf8(ended.stderr).unwrap()
    };
    for (variable, value) in [
        ("CONVOKE_CAPACTY", "7"),
        ("CONVOKE_CAPACITY", "seven"),
        ("CONVOKE_CONFIG", "/no/such/file"),
    ] {
        let said = of(variable, value);
        let expected = if variable == "CONVOKE_CONFIG" {
            value
        } else {
            variable
        };
        assert!(said.contains(expected), "{said}");
    }
}

#[test]
fn every_example_is_run_says_what_it_shows_and_is_short() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/examples");
    let mut found = Vec::new();
    for file in fs::read_dir(dir).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        // tests/cli runs those in other languages.
        if name == "main" || path.extension().is_none_or(|is| is != "rs") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("//! "), "{name}");
        assert!(
            text.lines().count() <= 60,
            "{name}: {}",
            text.lines().count()
        );
        assert!(
            text.contains(&format!("cargo run --example {name}")),
            "{name}"
        );
        found.push(name);
    }
    found.sort();
    let mut known = PRINTS.map(|(name, _)| name).to_vec();
    known.extend(PAIR);
    known.sort_unstable();
    assert_eq!(found, known);
}
