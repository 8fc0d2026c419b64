//! Servers that do not take a client, or not yet: the reason is told, once.

use super::worker::Worker;
use super::{bare, convoke, end};
use crate::support::{self, Redis};
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::process::Stdio;

/// Commands that connect in different ways.
const COMMANDS: [&[&str]; 6] = [
    &["publish", "a.b"],
    &["request", "a.b"],
    &["instances"],
    &["tail"],
    &["doctor"],
    &["worker"],
];

#[test]
fn a_wrong_password_is_told_with_how_it_is_written() {
    let redis = Redis::start();
    for args in COMMANDS {
        let mut command = bare();
        let url = redis.url().replace("test@", "te%20st@");
        assert_ne!(url, redis.url());
        let ended = end(command.env("CONVOKE_REDIS_URL", url).args(args));
        let ended = ended.failed(1, &["redis_url", "percent"]);
        let times = ended.err.to_lowercase().matches("authentication").count();
        assert!(times <= 2 && ended.err.len() < 500, "{ended:?}");
    }
}

#[test]
fn a_server_without_room_says_so() {
    let redis = Redis::with(&["--save", "", "--maxclients", "20"]);
    let address = ("127.0.0.1", redis.port());
    let connect = || TcpStream::connect(address).unwrap();
    // Who has only just gone still has a place, and would leave it later.
    let mut first = redis.connect();
    support::eventually("nobody else is connected", || {
        let mut list = redis::cmd("CLIENT");
        let clients: String = list.arg("LIST").query(&mut first).unwrap();
        clients.lines().count() == 1
    });
    let crowd: Vec<TcpStream> = (1..20).map(|_| connect()).collect();
    support::eventually("the server has no room", || {
        let answer = redis::Client::open(redis.admin_url())
            .unwrap()
            .get_connection();
        answer.is_err()
    });
    for args in &COMMANDS[..5] {
        let ended = end(&mut convoke(&redis, args));
        let ended = ended.failed(1, &["max number of clients", "raise maxclients"]);
        assert_eq!(ended.err.matches("max number").count(), 1, "{ended:?}");
    }
    // A worker waits for room.
    let mut command = convoke(&redis, &["worker", "--id=w-1"]);
    let mut worker = command.stderr(Stdio::piped()).spawn().unwrap();
    let said = BufReader::new(worker.stderr.take().unwrap()).lines();
    let mut said = said.map(|line| line.unwrap());
    let line = said.next().unwrap();
    assert!(line.contains("raise maxclients"), "{line}");
    drop((first, crowd));
    assert!(said.any(|line| line.contains("INFO working")));
    worker.kill().unwrap();
    worker.wait().unwrap();
}

#[test]
fn that_a_server_loads_its_data_is_said_once() {
    let mut redis = Redis::with(&[
        "--save",
        "",
        "--key-load-delay",
        "3000",
        "--loading-process-events-interval-bytes",
        "1024",
    ]);
    // A worker that was there before.
    let mut command = convoke(&redis, &["worker", "--id=w-1"]);
    let before = Worker::start(&redis, "w-1", &mut command);
    for command in ["DEBUG POPULATE 8000", "SAVE"] {
        let words: Vec<&str> = command.split(' ').collect();
        let mut command = redis::cmd(words[0]);
        let said = command.arg(&words[1..]).exec(&mut redis.connect());
        said.unwrap();
    }
    redis.restart_and_load();
    // One that comes meanwhile. It loads until all have said so.
    let mut command = convoke(&redis, &["worker", "--id=w-2"]);
    let mut worker = command.stderr(Stdio::piped()).spawn().unwrap();
    for args in &COMMANDS[..5] {
        let ended = end(&mut convoke(&redis, args)).failed(1, &["is loading"]);
        assert_eq!(ended.err.matches("is loading").count(), 1, "{ended:?}");
    }
    let mut said = BufReader::new(worker.stderr.take().unwrap()).lines();
    let mut warnings = Vec::new();
    loop {
        let line = said.next().expect("it begins to work").unwrap();
        match line {
            line if line.contains("INFO working") => break,
            line if line.contains("WARN") => {
                warnings.push(line);
                let mut faster = redis::cmd("CONFIG");
                faster.arg(&["SET", "key-load-delay", "0"]);
                faster.exec(&mut redis.connect()).unwrap();
            }
            _ => {}
        }
    }
    assert_eq!(warnings.len(), 1, "{warnings:#?}");
    assert_eq!(warnings[0].matches("is loading").count(), 1, "{warnings:?}");
    worker.kill().unwrap();
    worker.wait().unwrap();
    support::eventually("the first worker is back", || {
        let out = super::run(&redis, &["instances", "--format", "json"]).out;
        out.contains("\"id\":\"w-1\"")
    });
    let ended = before.stop().done();
    let longest = ended.err.lines().map(str::len).max().unwrap();
    assert!(longest < 500, "{ended:?}");
}
