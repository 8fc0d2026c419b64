//! What a shell and a pager get: completions, manual pages, quiet broken pipes.

use super::rig::say;
use super::{File, bare, convoke, end, run};
use crate::support::{Redis, name, users};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

const COMMANDS: [&str; 15] = [
    "worker",
    "publish",
    "request",
    "tail",
    "health",
    "instances",
    "streams",
    "pending",
    "dead",
    "replay",
    "doctor",
    "bench",
    "completions",
    "docs",
    "man",
];

#[test]
fn completions_name_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let script = end(bare().args(["completions", shell])).done().out;
        for command in COMMANDS {
            assert!(script.contains(command), "{shell}: {command}");
        }
    }
    end(bare().args(["completions", "tcsh"])).failed(2, &["tcsh"]);
}

#[test]
fn bash_completes() {
    let script = File::new(
        "complete",
        &end(bare().args(["completions", "bash"])).done().out,
    );
    let ask = r#"source "$0"; COMP_WORDS=(convoke rep); COMP_CWORD=1; _convoke convoke rep convoke; echo "${COMPREPLY[@]}""#;
    let done = Command::new("bash")
        .args(["-c", ask, script.path()])
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&done.stdout),
        "replay\n",
        "{done:?}"
    );
}

#[test]
fn manual_pages_are_written_for_every_command() {
    let dir = std::env::temp_dir().join(format!("convoke-man-{}", std::process::id()));
    let out = end(bare().args(["man", "--dir"]).arg(&dir)).done().out;
    for page in COMMANDS.map(|command| format!("convoke-{command}.1")) {
        assert!(out.contains(&page), "{page}: {out}");
    }
    assert!(
        out.contains("convoke-dead-list.1") && out.contains("convoke-replay-range.1"),
        "{out}"
    );
    let page = std::fs::read_to_string(dir.join("convoke-replay-dead.1")).unwrap();
    assert!(
        page.contains(".TH") && page.contains("replay dead"),
        "{page}"
    );
    std::fs::remove_dir_all(&dir).unwrap();
    let one = end(bare().args(["man", "dead", "list"])).done().out;
    assert!(one.contains("reason"), "{one}");
    end(bare().args(["man", "nothing"])).failed(2, &["nothing"]);
}

#[test]
fn the_pages_are_printed_whole() {
    let list = end(bare().args(["docs"])).done().out;
    for (name, says) in [
        ("protocol", "deaddeliveries"),
        ("architecture", "add_quorum_vote.lua"),
        ("security", "convoke-monitor"),
    ] {
        assert!(list.contains(name), "{list}");
        let page = end(bare().args(["docs", name])).done().out;
        assert!(page.starts_with("# ") && page.contains(says), "{page}");
    }
    end(bare().args(["docs", "recipes"])).failed(2, &["recipes", "protocol"]);
}

#[test]
fn a_pipe_that_closes_is_no_failure() {
    let redis = Redis::start();
    for n in 1..3000 {
        say(
            &redis,
            &format!("XADD cb:dead:image {n}-1 type image.resize deadreason internal"),
        );
    }
    for format in ["text", "json"] {
        let mut child = convoke(&redis, &["dead", "list", "--entries", "--format", format])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        out.read_line(&mut String::new()).unwrap();
        drop(out);
        let ended = child.wait_with_output().unwrap();
        assert_eq!(ended.status.code(), Some(0), "{format}");
        assert_eq!(String::from_utf8_lossy(&ended.stderr), "", "{format}");
    }
}

/// Runs a command on a terminal of 80 columns; what the terminal got.
fn on_a_terminal(redis: &Redis, command: &str, set: &[(&str, &str)]) -> String {
    let line = format!(
        "stty cols 80 rows 24; {} {command}",
        env!("CARGO_BIN_EXE_convoke")
    );
    let mut script = Command::new("script");
    script
        .args(["-qec", &line, "/dev/null"])
        .stdin(Stdio::null());
    script
        .env("CONVOKE_REDIS_URL", redis.url_for(users::OPERATOR))
        .env("TERM", "xterm")
        .env_remove("NO_COLOR");
    script.env_remove("COLUMNS").envs(set.iter().copied());
    String::from_utf8(script.output().unwrap().stdout).unwrap()
}

#[test]
fn tables_fit_the_terminal_and_colours_are_for_it_alone() {
    let redis = Redis::start();
    let long = "x".repeat(300);
    say(
        &redis,
        &format!("XADD cb:dead:image 1-1 type image.resize deadreason internal deadmessage {long}"),
    );
    let command = "dead list --entries";
    let shown = on_a_terminal(&redis, command, &[]);
    assert!(shown.contains("\x1b[31minternal\x1b[0m"), "{shown:?}");
    let plain = on_a_terminal(&redis, command, &[("NO_COLOR", "1")]);
    assert!(!plain.contains('\x1b'), "{plain:?}");
    // What it died of is all there, in as many lines as it takes.
    assert_eq!(plain.matches('x').count(), long.len(), "{plain:?}");
    for line in plain.lines() {
        assert!(line.trim_end().chars().count() <= 80, "{line:?}");
    }
    let piped = run(&redis, &["dead", "list", "--entries"]).done().out;
    assert!(
        piped.contains(&long) && !piped.contains('\x1b'),
        "{piped:?}"
    );
}

#[test]
fn a_person_is_asked_before_anything_changes() {
    let redis = Redis::start();
    say(
        &redis,
        "XADD cb:dead:image 1-1 type image.resize deadreason internal",
    );
    for (answer, left) in [("n", 1), ("", 1), ("y", 0)] {
        let line = format!("{} replay dead", env!("CARGO_BIN_EXE_convoke"));
        let mut child = Command::new("script")
            .args(["-qec", &line, "/dev/null"])
            .env("CONVOKE_REDIS_URL", redis.url_for(users::OPERATOR))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        std::io::Write::write_all(&mut stdin, format!("{answer}\n").as_bytes()).unwrap();
        let ended = child.wait_with_output().unwrap();
        let shown = String::from_utf8_lossy(&ended.stdout);
        let to = name("image", "cb:events:image");
        let asked = format!("Replay 1 dead letter (image.resize 1) to {to}? [y/N]");
        assert!(shown.contains(&asked), "{shown}");
        assert_eq!(ended.status.success(), left == 0, "{shown}");
        assert_eq!(
            super::rig::entries(&redis, "cb:dead:image").len(),
            left,
            "{shown}"
        );
    }
}
