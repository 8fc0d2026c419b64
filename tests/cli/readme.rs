//! What the README has people type does what it says.

use super::{bare, convoke};
use crate::support::{self, Redis, eventually, signal, users};
use std::process::{Child, Command, Output, Stdio};

const README: &str = include_str!("../../README.md");
/// Why a program in Python is not run on a cluster.
const PLAIN: &str = "the program asks one server, by plain names";

/// The blocks of one language, as they stand.
fn blocks(language: &str) -> impl Iterator<Item = &'static str> {
    let begin = format!("```{language}\n");
    let blocks = README
        .split("```\n\n")
        .flat_map(move |text| text.split_once(&begin));
    blocks.map(|(_, block)| block)
}

struct Worker(Child);

impl Worker {
    fn start(redis: &Redis, handlers: &[&str]) -> Self {
        let mut worker = convoke(redis, &["worker", "--id", "w-1"]);
        worker.args(handlers.iter().flat_map(|handler| ["--exec", handler]));
        worker.stdout(Stdio::null()).stderr(Stdio::null());
        let worker = Self(worker.spawn().unwrap());
        let mut there = redis.connect();
        eventually("the worker is there", || {
            let mut exists = redis::cmd("EXISTS");
            let alive: bool = exists.arg("cb:instance:w-1").query(&mut there).unwrap();
            alive
        });
        worker
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        signal(self.0.id(), "TERM");
        self.0.wait().ok();
    }
}

fn out(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn the_publisher_in_python_gets_its_reply() {
    if support::skip_on_cluster(PLAIN) {
        return;
    }
    let redis = Redis::start();
    let _worker = Worker::start(
        &redis,
        &[r#"image.resize=sed 's/.*/{"url": "cat.png?width=640"}/'"#],
    );
    let code = blocks("python").next().unwrap();
    let url = redis.url_for(users::PUBLISHER);
    let code = code.replace("redis.Redis()", &format!("redis.Redis.from_url({url:?})"));
    assert!(code.contains("from_url"), "{code}");
    let ran = Command::new("/usr/bin/python3")
        .args(["-c", &code])
        .output();
    assert_eq!(out(&ran.unwrap()), "ok {'url': 'cat.png?width=640'}\n");
}

#[test]
fn the_publisher_in_python_shows_all_that_an_event_may_say() {
    if support::skip_on_cluster(PLAIN) {
        return;
    }
    let redis = Redis::start();
    let handlers = [
        "text.upper=tr '[:lower:]' '[:upper:]'",
        "text.fail=echo no such text >&2; exit 65",
    ];
    let _worker = Worker::start(&redis, &handlers);
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/examples/publisher.py");
    let text = std::fs::read_to_string(program).unwrap();
    assert!(handlers.iter().all(|handler| text.contains(handler)));
    let mut ran = Command::new("/usr/bin/python3");
    let ran = ran.args([program, &redis.url()]).output().unwrap();
    assert_eq!(
        out(&ran),
        "CAT\ninternal: no such text\nLATER\nONCE 1\ninternal no such text\n"
    );
}

#[test]
fn fifty_lines_without_a_library_ask_register_vote_and_take_a_task() {
    if support::skip_on_cluster(PLAIN) {
        return;
    }
    let redis = Redis::start();
    let _worker = Worker::start(&redis, &["text.echo=cat"]);
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/examples/raw.py");
    let mut ran = Command::new("/usr/bin/python3");
    let ran = ran.args([program, &redis.port().to_string()]).output();
    assert_eq!(
        out(&ran.unwrap()),
        "published True\nasked ('ok', 'hello')\nregistered ok\npulsed True\nvoted True\n\
         created assigned\ncompleted 3\nleft True\n"
    );
}

#[test]
fn the_commands_do_what_they_say() {
    let redis = Redis::start();
    let block = blocks("sh").find(|block| block.contains("--exec")).unwrap();
    let lines = block
        .lines()
        .filter(|line| !line.starts_with("cargo ") && !line.starts_with("export "));
    let script: Vec<&str> = lines.chain(["kill $!", "wait"]).collect();
    assert_eq!(script.len(), 4, "{script:?}");
    let program = bare().get_program().to_owned();
    let path = std::path::Path::new(&program).parent().unwrap();
    let paths = std::env::var("PATH").unwrap();
    let ran = Command::new("bash")
        .args(["-c", &script.join("\n")])
        .env("PATH", format!("{}:{paths}", path.display()))
        .env("CONVOKE_REDIS_URL", redis.url())
        .stdin(Stdio::null())
        .output();
    assert_eq!(out(&ran.unwrap()), "\"HELLO\"\n");
}
