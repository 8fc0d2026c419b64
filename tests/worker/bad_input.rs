//! Bytes that are no event, beside events that are.

use crate::rig::{Rig, text};
use crate::support::until;
use convoke::protocol::msgpack::{PayloadLimits, scan};
use convoke::{Context, HandlerError};
use redis::aio::MultiplexedConnection;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::cmp::Reverse;

#[derive(Serialize, Deserialize, JsonSchema)]
struct Job {
    n: u32,
    #[serde(default)]
    tags: Vec<String>,
}

async fn work(_: Context, job: Job) -> Result<u32, HandlerError> {
    Ok(job.n + job.tags.len() as u32)
}

type Fields = Vec<(Vec<u8>, Vec<u8>)>;

fn event(data: &[u8]) -> Fields {
    vec![
        (b"type".to_vec(), b"job.do".to_vec()),
        (b"data".to_vec(), data.to_vec()),
    ]
}

fn with(name: &[u8], value: &[u8]) -> Fields {
    let mut fields = event(&[0x81, 0xa1, b'n', 1]);
    fields.retain(|(known, _)| known != name);
    fields.push((name.to_vec(), value.to_vec()));
    fields
}

fn deep(opening: &[u8], depth: usize) -> Vec<u8> {
    let mut data = opening.repeat(depth);
    data.push(0xc0);
    data
}

/// Everything that is not a good event; all must become dead letters.
fn bad() -> Vec<Fields> {
    let good = rmp_serde::to_vec_named(&Job {
        n: 7,
        tags: vec!["a".into(), "b".into()],
    })
    .unwrap();
    let mut bad: Vec<Fields> = Vec::new();
    // Each first byte alone: nil alone lacks the field, all others are no map or cut short.
    bad.extend((0..=255u8).map(|byte| event(&[byte])));
    bad.extend((0..good.len()).map(|end| event(&good[..end])));
    bad.push(event(&[&good[..], &[0]].concat()));
    bad.push(event(&[&good[..], &good[..]].concat()));
    for depth in [33, 1024, 100_000] {
        bad.push(event(&deep(&[0x91], depth)));
        bad.push(event(&deep(&[0x81, 0xa1, b'n'], depth)));
    }
    for bomb in [0xdd, 0xdf, 0xdb, 0xc6, 0xc9] {
        bad.push(event(&[bomb, 0xff, 0xff, 0xff, 0xff]));
        bad.push(event(&[0x81, 0xa1, b'n', bomb, 0xff, 0xff, 0xff, 0xff, 0]));
    }
    bad.push(event(
        &[vec![0xdd, 0, 1, 0, 1], vec![0xc0; 65_537]].concat(),
    ));
    bad.push(event(
        &[vec![0xdd, 0, 0x0f, 0xff, 0xfb], vec![0xc0; (1 << 20) - 5]].concat(),
    ));
    let mut large = vec![0xc6, 0, 0x10, 0, 0];
    large.resize((1 << 20) + 1, 0);
    bad.push(event(&large));
    // rmp-serde would take a struct by position.
    bad.push(event(&[0x92, 7, 0x90]));
    bad.push(event(&[0x81, 0xa1, b'n', 0xa1, b'x']));
    bad.push(vec![(b"data".to_vec(), good.clone())]);
    for kind in [
        &b""[..],
        b"job",
        b"job.",
        b".do",
        b"job.*",
        b"job.{do}",
        b"job.do\n",
        b"job.\xff",
        b"Job.do",
        &[b'a'; 200],
    ] {
        bad.push(with(b"type", kind));
    }
    for (name, value) in [
        (&b"id"[..], &b""[..]),
        (b"id", b"\xff\xfe"),
        (b"id", &[b'x'; 257]),
        (b"source", b"\xff"),
        (b"subject", &[b'x'; 300]),
        (b"deadline", b"soon"),
        (b"deadline", b"-1"),
        (b"attempt", b"0"),
        (b"attempt", b"4294967296"),
        (b"replyto", b"cb:events:job"),
        (b"replyto", b"cb:broadcast"),
        (b"replyto", b"other:reply:me"),
        (b"replyto", b"cb:reply:*"),
        (b"replyto", b"cb:reply:{x}"),
        (b"replyto", b"\xff"),
        (&[b'x'; 65], b""),
    ] {
        bad.push(with(name, value));
    }
    bad.push([event(&good), event(&good)].concat());
    let many = (0..40).map(|n| (format!("f{n}").into_bytes(), b"v".to_vec()));
    bad.push(event(&good).into_iter().chain(many).collect());
    let fields = (0..10_000).map(|n| (format!("f{n}").into_bytes(), b"v".to_vec()));
    bad.push(event(&good).into_iter().chain(fields).collect());
    bad
}

async fn add(connection: &mut MultiplexedConnection, fields: &Fields) {
    let mut command = redis::cmd("XADD");
    command.arg("cb:events:job").arg("*");
    for (name, value) in fields {
        command.arg(name).arg(value);
    }
    command.exec_async(connection).await.unwrap();
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_becomes_dead_letters_with_its_fields_and_good_events_beside_it_go_on() {
    let rig = Rig::new().await;
    let worker = rig.start(rig.builder().handler("job.do", work));
    let mut connection = rig.connection.clone();
    let bad = bad();
    let good = rmp_serde::to_vec_named(&Job { n: 1, tags: vec![] }).unwrap();
    let mut before = 0;
    for round in 0..3 {
        for fields in &bad {
            add(&mut connection, fields).await;
            add(&mut connection, &event(&good)).await;
        }
        let count = bad.len() * (round + 1);
        rig.wait_for("cb:dead:job", count).await;
        rig.wait_for("cb:results:job", count).await;
        if round == 0 {
            before = resident_kib();
        }
    }
    let dead = rig.entries("cb:dead:job").await;
    assert_eq!(dead.len(), bad.len() * 3);
    assert_eq!(rig.entries("cb:results:job").await.len(), bad.len() * 3);
    for letter in &dead {
        assert_eq!(text(letter, "deadreason"), "invalid_argument");
        assert!(!text(letter, "deadmessage").is_empty());
    }
    // In whatever order: those that take long to decode are on other threads.
    let mut left: Vec<_> = dead.iter().collect();
    let mut sent: Vec<&Fields> = bad.iter().cycle().take(dead.len()).collect();
    // One may have the fields of another one, and more.
    sent.sort_by_key(|fields| Reverse(fields.len()));
    for fields in sent {
        let pairs = || fields.iter().map(|(n, v)| (n.as_slice(), v.as_slice()));
        let at = left
            .iter()
            .position(|letter| letter.pairs().take(fields.len()).eq(pairs()));
        let at = at.unwrap_or_else(|| panic!("no letter of {:?}", fields[0]));
        left.swap_remove(at);
    }
    until("nothing is pending", || async {
        rig.pending("cb:events:job").await == 0
    })
    .await;
    // The server's answers to this test are in this process too; what must not be is growth by rounds.
    let grown = resident_kib().saturating_sub(before);
    assert!(
        grown < 200 * 1024,
        "{grown} KiB more after three rounds than after one"
    );
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_that_asks_for_a_reply_gets_one_that_names_the_field() {
    let rig = Rig::new().await;
    let worker = rig.start(rig.builder().handler("job.do", work));
    let mut connection = rig.connection.clone();
    let asking = |fields: Fields| {
        let mut fields = fields;
        fields.push((b"replyto".to_vec(), b"cb:reply:test".to_vec()));
        fields.push((b"id".to_vec(), b"q".to_vec()));
        fields
    };
    let cases = [
        (event(&[0xc1]), "data"),
        (event(&[0x81, 0xa1, b'n', 0xa1, b'x']), "n: "),
        (event(&[0x80]), "`n`"),
        (with(b"deadline", b"soon"), "deadline"),
        (event(&[0x93, 1, 2, 3]), "data"),
    ];
    for (at, (fields, named)) in cases.into_iter().enumerate() {
        add(&mut connection, &asking(fields)).await;
        let replies = rig.wait_for("cb:reply:test", at + 1).await;
        let reply = &replies[at];
        assert_eq!(text(reply, "status"), "invalid_argument");
        assert_eq!(text(reply, "correlationid"), "q");
        let said: serde_json::Value = rmp_serde::from_slice(reply.get("data").unwrap()).unwrap();
        assert_eq!(said["code"], "invalid_argument");
        assert_eq!(said["retryable"], false);
        assert!(said["message"].as_str().unwrap().contains(named), "{said}");
    }
    worker.stop().await;
    // Somebody was answered for each.
    assert!(!rig.exists("cb:dead:job").await);
}

#[test]
fn depth_32_is_within_the_limits_and_33_is_not() {
    let limits = PayloadLimits::default();
    assert!(scan(&deep(&[0x91], 31), &limits).is_ok());
    assert!(scan(&deep(&[0x91], 32), &limits).is_ok());
    assert!(scan(&deep(&[0x91], 33), &limits).is_err());
}
