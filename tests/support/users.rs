//! The users of `deploy/users.acl`, as every server of a test knows them.

#![allow(dead_code)] // Each test binary uses a part.

use std::fs;
use std::path::Path;

/// What a worker logs in as.
pub(crate) const WORKER: &str = "convoke-worker";
/// What publishes and asks.
pub(crate) const PUBLISHER: &str = "convoke-publisher";
/// Who runs commands that look and change.
pub(crate) const OPERATOR: &str = "convoke-operator";
/// Who only looks.
pub(crate) const MONITOR: &str = "convoke-monitor";
/// What publishes to every domain but those of the control plane.
pub(crate) const DATA_PUBLISHER: &str = "convoke-data-publisher";
/// The same, that reads results and the broadcast besides.
pub(crate) const SERVICE: &str = "convoke-service";
/// A program that is an instance and no worker of ours.
pub(crate) const INSTANCE: &str = "convoke-instance";
/// All of them.
pub(crate) const ALL: [&str; 7] = [
    WORKER,
    PUBLISHER,
    DATA_PUBLISHER,
    SERVICE,
    INSTANCE,
    OPERATOR,
    MONITOR,
];
/// The password of each.
pub(crate) const PASSWORD: &str = "test";
const PASSWORD_SHA256: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

/// The user who has what a command needs, and no more. `None`: what measures a server has it for
/// itself.
pub(crate) fn of_command(words: &[&str]) -> Option<&'static str> {
    Some(match words {
        ["bench", ..] => return None,
        ["worker", ..] => WORKER,
        ["publish" | "request", ..] => PUBLISHER,
        [
            "doctor" | "instances" | "pending" | "streams" | "tail" | "top",
            ..,
        ] => MONITOR,
        ["batch" | "dead" | "vote", "list" | "show", ..] => MONITOR,
        _ => OPERATOR,
    })
}

/// The file as it is deployed: no password set, the default user off.
pub(crate) fn deployed() -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/users.acl");
    fs::read_to_string(file).expect("the file is there")
}

/// What the variable `POOR_REDIS` takes away from the users, such as `ROLE,INFO`: commands that some
/// servers which one can rent do not have. `scripts/test --matrix` sets it.
pub(crate) fn taken_away() -> Vec<String> {
    let names = std::env::var("POOR_REDIS").unwrap_or_default();
    let names = names.split(',').filter(|name| !name.is_empty());
    names.map(str::to_lowercase).collect()
}

/// Whether the users of this run lack that command.
pub(crate) fn lack(command: &str) -> bool {
    taken_away().contains(&command.to_lowercase())
}

/// The same, for a test of what only this command gives: it is skipped then, and says so.
pub(crate) fn skip_without(command: &str) -> bool {
    let lack = lack(command);
    if lack {
        eprintln!("skipped: this server has no {command}");
    }
    lack
}

/// Makes the key that tells the time in the slots of that tag, as a worker does where there is no `TIME`.
pub(crate) fn make_clock(tag: &str) -> redis::Cmd {
    let mut command = redis::cmd("SET");
    command.arg(format!("{tag}:clock")).arg("");
    command.arg("PXAT").arg(4_102_444_800_000_u64);
    command
}

/// Whether that is such a key.
pub(crate) fn is_clock(key: &str) -> bool {
    key.ends_with(":clock")
}

/// The file with passwords, for keys of that namespace.
pub(crate) fn with_passwords(namespace: &str) -> String {
    let users = deployed().replace(&"0".repeat(64), PASSWORD_SHA256);
    let users = users
        .replace("~cb:", &format!("~{namespace}:"))
        .replace("~{cb", &format!("~{{{namespace}"));
    let taken: String = taken_away()
        .iter()
        .map(|name| format!(" -{name}"))
        .collect();
    if taken.is_empty() {
        return users;
    }
    // Before the selectors, which have none of them.
    let poor = users.lines().map(|line| match line.split_once(" (") {
        _ if line == "user default off" => line.to_owned(),
        Some((root, selectors)) => format!("{root}{taken} ({selectors}"),
        None => format!("{line}{taken}"),
    });
    poor.map(|line| line + "\n").collect()
}

/// The same, with a default user who may do everything: for the test's own seeding and looking.
pub(crate) fn with_admin() -> String {
    let users = with_passwords("cb");
    let open = users.replace("user default off", "user default on nopass ~* &* +@all");
    assert_ne!(open, users);
    open
}

/// `ACL SETUSER` for each of the users, for keys of that namespace.
pub(crate) fn commands(namespace: &str) -> Vec<redis::Cmd> {
    let users = with_passwords(namespace);
    let lines = users.lines().filter(|line| !line.contains("user default"));
    let command = |line| {
        let mut command = redis::cmd("ACL");
        command.arg("SETUSER").arg(rules(line));
        command
    };
    lines.map(command).collect()
}

/// The words of a line after `user`; a selector in parentheses is one word.
fn rules(line: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut inside = false;
    for word in line.split_whitespace().skip(1) {
        match words.last_mut() {
            Some(last) if inside => {
                last.push(' ');
                last.push_str(word);
            }
            _ => words.push(word.to_owned()),
        }
        inside = (inside || word.starts_with('(')) && !word.ends_with(')');
    }
    words
}
