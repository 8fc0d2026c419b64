//! `convoke doctor`: each misconfiguration is caused on a server of the test's own, and named.

mod clusters;
mod patient;
mod streams;

use super::{bare, end};
use crate::support::{Redis, free_port, users};
use patient::{Patient, examined, find, liar, replica};
use std::net::UdpSocket;
use std::path::Path;

#[test]
fn a_healthy_server_has_nothing_wrong() {
    let patient = Patient::healthy();
    let findings = patient.examined();
    assert_eq!(findings.bad(), Vec::<String>::new());
    assert_eq!((findings.code, findings.all.len()), (0, 42));
    assert_eq!(
        super::rig::names(&findings.all[0]),
        ["check", "status", "what", "why", "fix"]
    );
    let mut command = bare();
    let text = end(command.env("CONVOKE_REDIS_URL", &patient.url).arg("doctor"))
        .done()
        .out;
    assert_eq!(text, "0 dangerous, 0 warnings, 0 not checked, 42 fine\n");
}

#[test]
fn the_server_that_deploy_describes_has_nothing_wrong() {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
    let conf = std::fs::read_to_string(deploy.join("redis.conf")).unwrap();
    let settings = conf
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty());
    let words = settings.flat_map(|line| {
        let (name, value) = line.split_once(' ').unwrap();
        [format!("--{name}"), value.to_owned()]
    });
    let words: Vec<String> = words.chain(["--save".into(), String::new()]).collect();
    let redis = Redis::with(&words.iter().map(String::as_str).collect::<Vec<_>>());
    redis::cmd("ACL")
        .arg(&["SETUSER", "default", "off"])
        .exec(&mut redis.connect())
        .unwrap();
    for user in [users::OPERATOR, users::MONITOR] {
        let findings = examined(&redis.url_for(user));
        assert_eq!(findings.bad(), Vec::<String>::new(), "{user}");
    }
}

#[test]
fn a_memory_that_is_full_is_named_with_what_takes_it() {
    let patient = Patient::healthy();
    let large = "x".repeat(500_000);
    patient.say(&[
        "XADD",
        "cb:dead:image",
        "*",
        "type",
        "image.x",
        "data",
        &large,
    ]);
    patient.say(&[
        "XADD",
        "cb:results:image",
        "*",
        "type",
        "image.x",
        "data",
        "x",
    ]);
    let mut connection = redis::Client::open(patient.url.as_str())
        .unwrap()
        .get_connection()
        .unwrap();
    let info: String = redis::cmd("INFO")
        .arg("memory")
        .query(&mut connection)
        .unwrap();
    let used = info
        .lines()
        .find_map(|line| line.strip_prefix("used_memory:"));
    let used: u64 = used.unwrap().trim().parse().unwrap();
    patient.set("maxmemory", &(used + 1000).to_string());
    let findings = patient.examined();
    let memory = findings.of("memory");
    let what = memory["what"].as_str().unwrap();
    assert!(
        what.contains(&format!("({} bytes) are in use", used + 1000)),
        "{what}"
    );
    assert!(
        what.contains("the largest keys are cb:dead:image with 5"),
        "{what}"
    );
    assert!(
        memory["fix"]
            .as_str()
            .unwrap()
            .contains("convoke dead drop"),
        "{memory}"
    );
    patient.must_suffer(&["danger memory"]);
}

#[test]
fn users_who_may_do_more_than_they_need() {
    let patient = Patient::healthy();
    let rules = &["ACL", "SETUSER"][..];
    for words in [
        &["convoke-monitor", "+script|load"][..],
        &[
            "convoke-publisher-shop",
            "on",
            ">x",
            "~cb:*",
            "+xadd",
            "+del",
        ],
        // Nobody's that we know.
        &["admin", "on", ">x", "~*", "+@all"],
    ] {
        patient.say(&[rules, words].concat());
    }
    let findings = patient.examined();
    let what = findings.of("users")["what"].to_string();
    assert!(
        what.contains("convoke-monitor may SCRIPT LOAD x;"),
        "{what}"
    );
    assert!(what.contains("convoke-publisher-shop may"), "{what}");
    assert!(what.contains("DEL cb:"), "{what}");
    assert!(!what.contains("admin"), "{what}");
    patient.must_suffer(&["warning users"]);
}

#[test]
fn scripts_that_nobody_loaded() {
    let patient = Patient::healthy();
    patient.say(&["SCRIPT", "FLUSH"]);
    patient.must_suffer(&["warning scripts"]);
}

#[test]
fn a_server_that_is_too_old() {
    let patient = Patient::healthy();
    let url = liar(patient.redis.port(), |bytes| {
        if let Some(at) = find(bytes, b"redis_version:") {
            bytes[at + 14] = b'6';
        }
    });
    let patient = Patient { url, ..patient };
    patient.must_suffer(&["danger version"]);
}

#[test]
fn a_clock_that_is_off() {
    for (seconds, finding) in [(5, "warning clock"), (3600, "danger clock")] {
        let patient = Patient::healthy();
        let lie: fn(&mut [u8]) = match seconds {
            5 => |bytes| shift(bytes, 5),
            _ => |bytes| shift(bytes, 3600),
        };
        let url = liar(patient.redis.port(), lie);
        Patient { url, ..patient }.must_suffer(&[finding]);
    }
}

/// Moves the seconds of an answer to `TIME`.
fn shift(bytes: &mut [u8], by: u64) {
    let head = b"*2\r\n$10\r\n";
    if let Some(at) = find(bytes, head) {
        let digits = &mut bytes[at + head.len()..at + head.len() + 10];
        if let Ok(seconds) = std::str::from_utf8(digits)
            .unwrap_or_default()
            .parse::<u64>()
        {
            digits.copy_from_slice((seconds + by).to_string().as_bytes());
        }
    }
}

#[test]
fn settings_that_lose_events_or_hold_up_everything() {
    for (name, value, finding) in [
        ("maxmemory-policy", "allkeys-lru", "danger eviction"),
        ("appendonly", "no", "danger persistence"),
        ("appendfsync", "no", "warning fsync"),
        ("proto-max-bulk-len", "512mb", "warning bulk-length"),
        ("proto-max-bulk-len", "1mb", "danger bulk-length"),
        ("maxmemory", "0", "warning maxmemory"),
        ("busy-reply-threshold", "5000", "warning busy-scripts"),
        ("busy-reply-threshold", "0", "warning busy-scripts"),
        (
            "client-output-buffer-limit",
            "replica 0 0 0",
            "warning replica-buffer",
        ),
        (
            "client-output-buffer-limit",
            "replica 1mb 0 0",
            "warning replica-buffer",
        ),
        ("timeout", "30", "warning timeout"),
    ] {
        let patient = Patient::healthy();
        patient.set(name, value);
        patient.must_suffer(&[finding]);
    }
}

#[test]
fn replicas_that_do_not_protect() {
    let patient = Patient::healthy();
    let replica = replica(&patient);
    let findings = examined(&replica.admin_url());
    assert_eq!(findings.of("role")["status"], "danger");
    assert!(
        findings.of("role")["fix"]
            .as_str()
            .unwrap()
            .contains(&patient.redis.port().to_string())
    );
    patient.set("min-replicas-to-write", "1");
    assert_eq!(patient.examined().bad(), Vec::<String>::new());
    patient.set("appendonly", "no");
    assert_eq!(
        patient.examined().bad(),
        ["danger persistence", "danger empty-primary"]
    );
    patient.set("appendonly", "yes");
    patient.set("min-replicas-to-write", "0");
    patient.must_suffer(&["danger min-replicas"]);
}

#[test]
fn doors_that_are_open() {
    let patient = Patient::healthy();
    patient.say(&["ACL", "SETUSER", "default", "on", "nopass", "~*", "+@all"]);
    assert_eq!(patient.examined().bad(), ["warning default-user"]);
    patient.set("protected-mode", "no");
    patient.must_suffer(&["danger protected-mode", "warning default-user"]);

    let patient = Patient::healthy();
    patient.say(&["ACL", "SETUSER", "default", "on"]);
    patient.set("requirepass", "shared");
    patient.must_suffer(&["warning default-user"]);

    let patient = Patient::healthy();
    patient.say(&["ACL", "SETUSER", "op", "+flushall"]);
    patient.must_suffer(&["warning own-rights"]);
}

#[test]
fn a_worker_whose_commits_would_be_unfenced() {
    for denied in ["multi", "exec", "watch"] {
        let patient = Patient::healthy();
        let deny = format!("-{denied}");
        patient.say(&["ACL", "SETUSER", users::WORKER, &deny]);
        let findings = patient.examined();
        let fix = findings.of("transactions")["fix"].as_str().unwrap();
        assert!(
            fix.contains("SETUSER convoke-worker +multi +exec +watch"),
            "{fix}"
        );
        patient.must_suffer(&["danger transactions"]);
    }
}

#[test]
fn a_way_without_encryption() {
    in_the_clear().must_suffer(&["danger encryption"]);
}

/// A server that is reached by an address of this machine that others could reach too.
fn in_the_clear() -> Patient {
    let patient = Patient::healthy();
    patient.set("bind", "0.0.0.0");
    let port = patient.redis.port();
    // The address from which this machine would speak to others; nothing is sent.
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    let own = socket
        .connect("192.0.2.1:9")
        .and_then(|()| socket.local_addr());
    let own = own.map_or_else(|_| "0.0.0.0".into(), |address| address.ip().to_string());
    let url = format!("redis://op:test@{own}:{port}");
    Patient { url, ..patient }
}

/// What part 5 of our rules calls dangerous, each on a server on which nothing else is wrong but what
/// follows from it: what is done to it, and the check that must name it with its mending.
#[test]
fn every_misconfiguration_of_the_list_is_named_with_its_mending() {
    type Harm = fn() -> (Patient, Option<Redis>);
    fn set(name: &str, value: &str) -> (Patient, Option<Redis>) {
        let patient = Patient::healthy();
        patient.set(name, value);
        (patient, None)
    }
    fn told(lie: fn(&mut [u8])) -> (Patient, Option<Redis>) {
        let patient = Patient::healthy();
        let url = liar(patient.redis.port(), lie);
        (Patient { url, ..patient }, None)
    }
    fn said(words: &[&str]) -> (Patient, Option<Redis>) {
        let patient = Patient::healthy();
        patient.say(words);
        (patient, None)
    }
    fn older(bytes: &mut [u8]) {
        if let Some(at) = find(bytes, b"redis_version:") {
            bytes[at + 14] = b'6';
        }
    }
    const ANYONE: [&str; 7] = ["ACL", "SETUSER", "default", "on", "nopass", "~*", "+@all"];
    let list: [(&str, &str, Harm); 18] = [
        ("version", "7.0 or newer", || told(older)),
        ("eviction", "noeviction", || {
            set("maxmemory-policy", "allkeys-lru")
        }),
        ("persistence", "appendonly yes", || set("appendonly", "no")),
        ("fsync", "appendfsync everysec", || set("appendfsync", "no")),
        ("min-replicas", "min-replicas-to-write 1", || {
            let patient = Patient::healthy();
            let replica = replica(&patient);
            (patient, Some(replica))
        }),
        ("bulk-length", "proto-max-bulk-len", || {
            set("proto-max-bulk-len", "512mb")
        }),
        ("protected-mode", "protected-mode yes", || {
            let (patient, _) = said(&ANYONE);
            patient.set("protected-mode", "no");
            (patient, None)
        }),
        ("default-user", "ACL SETUSER default off", || said(&ANYONE)),
        ("encryption", "tls-port", || (in_the_clear(), None)),
        ("maxmemory", "maxmemory 1gb", || set("maxmemory", "0")),
        ("busy-scripts", "busy-reply-threshold 500", || {
            set("busy-reply-threshold", "5000")
        }),
        ("replica-buffer", "client-output-buffer-limit", || {
            set("client-output-buffer-limit", "replica 0 0 0")
        }),
        ("timeout", "timeout 0", || set("timeout", "1")),
        ("empty-primary", "appendonly yes", || {
            let (patient, _) = set("min-replicas-to-write", "1");
            let replica = replica(&patient);
            patient.set("appendonly", "no");
            (patient, Some(replica))
        }),
        ("clock", "set-ntp", || told(|bytes| shift(bytes, 5))),
        ("last-id", "XSETID", || {
            said(&[
                "XADD",
                "cb:results:image",
                "9999999999999-0",
                "status",
                "ok",
            ])
        }),
        ("own-rights", "deploy/users.acl", || {
            said(&["ACL", "SETUSER", "op", "+flushall"])
        }),
        ("transactions", "+multi", || {
            said(&["ACL", "SETUSER", users::WORKER, "-multi"])
        }),
    ];
    let mut named = 0;
    for (check, mending, harm) in list {
        let (patient, _replica) = harm();
        let findings = patient.examined();
        let finding = findings.of(check);
        assert!(
            ["warning", "danger"].contains(&finding["status"].as_str().unwrap()),
            "{check}: {:?}",
            findings.bad()
        );
        let fix = finding["fix"].as_str().unwrap();
        assert!(fix.contains(mending), "{check}: {fix}");
        named += 1;
    }
    println!("misconfigurations: {named} of {} named", list.len());
    assert!(named >= 15);
}

#[test]
fn what_it_may_not_look_at_is_named() {
    let patient = Patient::healthy();
    patient.say(&[
        "ACL",
        "SETUSER",
        "blind",
        "on",
        ">test",
        "-@all",
        "+@connection",
    ]);
    let url = format!("redis://blind:test@127.0.0.1:{}", patient.redis.port());
    let findings = examined(&url);
    assert_eq!(findings.code, 0);
    for finding in &findings.all {
        let check = finding["check"].as_str().unwrap();
        let status = match check {
            "encryption" | "confirm" => "fine",
            // What this user is not told, a worker that logs in as it is not told either.
            "primary-told" | "one-history" | "server-time" => "warning",
            _ => "unknown",
        };
        assert_eq!(finding["status"], status, "{finding}");
        let told = finding["what"].as_str().unwrap().contains("may not");
        assert!(status != "unknown" || told, "{finding}");
    }
    let text = end(bare().env("CONVOKE_REDIS_URL", &url).arg("doctor"))
        .done()
        .out;
    assert!(
        text.contains("unknown  version: the user may not run INFO"),
        "{text}"
    );
    assert!(
        text.ends_with("0 dangerous, 3 warnings, 37 not checked, 2 fine\n"),
        "{text}"
    );

    // Only a part: what can be seen is judged.
    patient.set("maxmemory-policy", "allkeys-lru");
    patient.say(&["ACL", "SETUSER", "blind", "+info"]);
    let findings = examined(&url);
    assert_eq!(
        (findings.code, &findings.of("eviction")["status"]),
        (1, &"danger".into())
    );
    assert_eq!(findings.of("timeout")["status"], "unknown");
}

#[test]
fn without_a_server_it_fails() {
    let url = format!("redis://127.0.0.1:{}", free_port());
    let ended = end(bare().env("CONVOKE_REDIS_URL", url).arg("doctor"));
    assert_eq!(ended.code, 1);
    assert!(ended.err.contains("onnect"), "{}", ended.err);
}
