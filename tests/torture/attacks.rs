//! What a publisher with a shipped user may send: nonsense, forgeries, monsters.
//!
//! Left out is what an ACL cannot forbid and `deploy/README.md` says so: options of `XADD` that trim a
//! stream or use up its ids, dedup keys and replies of others, and names without end that only fill the
//! memory. What is made up here comes out of small sets, so that what *workers* make of it can be bounded.

use crate::support::Redis;
use fastrand::Rng;
use redis::Cmd;
use rmpv::Value;

/// Honest workers.
const WORKERS: u64 = 4;
/// Names of each kind that are made up.
const NAMES: u64 = 64;
/// Bytes of the largest value.
const MONSTER: usize = 4 << 20;

/// One thing that it sends.
pub(crate) fn draw(dice: &mut Rng, serial: u64) -> Cmd {
    match dice.u32(..100) {
        0..30 => control_plane(dice, serial),
        30..50 => nonsense(dice, serial),
        50..60 => astray(dice, serial),
        60..70 => with_reply(dice, serial),
        70..78 => later(dice, serial),
        78..80 => dedup_key(dice),
        80..82 if serial.is_multiple_of(4) => monster(dice, serial),
        82..84 => slow(serial),
        _ => honest_looking(dice, serial),
    }
}

fn add(stream: &str, fields: &[(&str, &[u8])]) -> Cmd {
    let mut command = redis::cmd("XADD");
    command.arg(stream).arg("*");
    for (name, value) in fields {
        command.arg(name).arg(value);
    }
    command
}

fn event(stream: &str, kind: &str, data: &Value, serial: u64) -> Cmd {
    add(
        stream,
        &[
            ("type", kind.as_bytes()),
            ("id", format!("x-{serial}").as_bytes()),
            ("data", &packed(data)),
        ],
    )
}

fn packed(value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    rmpv::encode::write_value(&mut bytes, value).unwrap();
    bytes
}

fn map(fields: &[(&str, Value)]) -> Value {
    let fields = fields.iter();
    Value::Map(
        fields
            .map(|(name, value)| (Value::from(*name), value.clone()))
            .collect(),
    )
}

fn bytes(dice: &mut Rng, most: usize) -> Vec<u8> {
    let length = dice.usize(..most);
    std::iter::repeat_with(|| dice.u8(..))
        .take(length)
        .collect()
}

fn made_up(dice: &mut Rng, what: &str) -> String {
    format!("{what}-{}", dice.u64(..NAMES))
}

/// A worker, or somebody made up.
fn somebody(dice: &mut Rng) -> String {
    match dice.bool() {
        true => format!("w-{}", 1 + dice.u64(..WORKERS)),
        false => made_up(dice, "ghost"),
    }
}

fn strings(list: &[String]) -> Value {
    list.iter()
        .map(|text| Value::from(text.as_str()))
        .collect::<Vec<_>>()
        .into()
}

/// Any value at all.
fn anything(dice: &mut Rng, depth: u32) -> Value {
    match dice.u32(..if depth == 0 { 8 } else { 10 }) {
        0 => Value::Nil,
        1 => dice.bool().into(),
        2 => dice.u64(..).into(),
        3 => dice.i64(..).into(),
        4 => f64::from_bits(dice.u64(..)).into(),
        5 => Value::Binary(bytes(dice, 40)),
        6 => "\u{0}\u{7f}ÿ".into(),
        7 => Value::Ext(dice.i8(..), bytes(dice, 9)),
        8 => Value::Array(
            (0..dice.u32(..4))
                .map(|_| anything(dice, depth - 1))
                .collect(),
        ),
        _ => Value::Map(
            (0..dice.u32(..4))
                .map(|_| (anything(dice, depth - 1), anything(dice, depth - 1)))
                .collect(),
        ),
    }
}

fn control_plane(dice: &mut Rng, serial: u64) -> Cmd {
    let who = somebody(dice);
    let named = Value::from(who.as_str());
    let system = |kind: &str, data| event("cb:events:system", kind, &data, serial);
    let task = |kind: &str, data| event("cb:events:task", kind, &data, serial);
    match dice.u32(..18) {
        0 => system(
            "system.register",
            map(&[("id", named), ("roles", strings(&["worker".into()]))]),
        ),
        1 => {
            let roles: Vec<String> = (0..32).map(|_| made_up(dice, "role")).collect();
            let kinds: Vec<String> = (0..64).map(|n| format!("made.up_{n}")).collect();
            system(
                "system.register",
                map(&[
                    ("id", named),
                    ("roles", strings(&roles)),
                    ("capabilities", strings(&kinds)),
                    ("capacity", 1_000_000.into()),
                    ("ttl_ms", 100.into()),
                ]),
            )
        }
        2 => system("system.unregister", map(&[("instance_id", named)])),
        3 => {
            let seen = (1..=WORKERS).map(|n| (format!("w-{n}").into(), "suspect".into()));
            let seen = Value::Map(seen.collect());
            system(
                "system.heartbeat",
                map(&[("instance_id", named), ("observed", seen)]),
            )
        }
        4 => {
            let huge = map(&[
                ("events_processed", u64::MAX.into()),
                ("process", "p".into()),
            ]);
            system(
                "system.heartbeat",
                map(&[
                    ("instance_id", named),
                    ("load", f64::INFINITY.into()),
                    ("metrics", huge),
                ]),
            )
        }
        5 => system("system.metrics", map(&[("detailed", true.into())])),
        6 => system("system.get_state", map(&[("recent", u64::MAX.into())])),
        7 => {
            let items = (0..20).map(|_| anything(dice, 2)).collect::<Vec<_>>();
            let kind = if dice.bool() { "made.up" } else { "load.work" };
            system(
                "system.batch.process",
                map(&[
                    ("batch_id", made_up(dice, "batch").into()),
                    ("item_type", kind.into()),
                    ("items", items.into()),
                    (
                        "mode",
                        if dice.bool() { "fan_out" } else { "exclusive" }.into(),
                    ),
                    ("lease_ms", 100.into()),
                ]),
            )
        }
        8 => system(
            "system.quorum.vote",
            map(&[
                ("decision", format!("d-{}", dice.u64(..10_000)).into()),
                ("instance_id", named),
                ("value", anything(dice, 3)),
            ]),
        ),
        9 | 10 => task(
            "task.create",
            map(&[
                (
                    "kind",
                    if dice.bool() { "load.work" } else { "made.up" }.into(),
                ),
                ("payload", anything(dice, 3)),
                ("priority", dice.u64(..101).into()),
                (
                    "role",
                    if dice.bool() {
                        "worker".into()
                    } else {
                        made_up(dice, "role").into()
                    },
                ),
                ("max_attempts", 1.into()),
            ]),
        ),
        11 => task(
            if dice.bool() {
                "task.complete"
            } else {
                "task.fail"
            },
            map(&[
                ("task_id", made_up(dice, "task").into()),
                ("instance_id", named),
                ("fence", dice.u64(..10).into()),
                ("error", "made up".into()),
            ]),
        ),
        12 => task(
            ["task.cancel", "task.unassign"][dice.usize(..2)],
            map(&[("task_id", made_up(dice, "task").into())]),
        ),
        13 => task("task.list", map(&[("limit", u64::MAX.into())])),
        17 => task(
            ["task.assign", "task.claim", "task.update"][dice.usize(..3)],
            map(&[
                ("task_id", made_up(dice, "task").into()),
                ("instance_id", named),
                ("limit", dice.u64(..60).into()),
                ("kinds", anything(dice, 2)),
                ("payload", anything(dice, 3)),
                ("metadata", anything(dice, 2)),
            ]),
        ),
        14 => system("system.discover", map(&[])),
        15 => system("system.health", map(&[])),
        _ => system("system.register", anything(dice, 4)),
    }
}

/// Bytes where fields, values and times should be.
fn nonsense(dice: &mut Rng, serial: u64) -> Cmd {
    let streams = [
        "cb:events:load",
        "cb:events:system",
        "cb:events:task",
        "cb:events:other",
    ];
    let stream = streams[dice.usize(..streams.len())];
    let id = format!("x-{serial}");
    match dice.u32(..8) {
        0 => add(stream, &[("", b"")]),
        1 => add(
            stream,
            &[("type", &bytes(dice, 200)), ("data", &bytes(dice, 200))],
        ),
        2 => add(
            stream,
            &[
                ("type", b"load.work"),
                ("id", id.as_bytes()),
                ("data", &bytes(dice, 100)),
            ],
        ),
        3 => event(stream, "load.work", &anything(dice, 5), serial),
        4 => add(
            stream,
            &[
                ("type", b"load.work"),
                ("id", b"\x00\r\n"),
                ("deadline", b"-1e99"),
                ("attempt", b"99999999999999999999"),
                ("replays", b"x"),
                ("time", &bytes(dice, 30)),
                ("traceparent", &bytes(dice, 60)),
                ("subject", &bytes(dice, 255)),
            ],
        ),
        5 => add(
            stream,
            &[
                ("type", b"load.work"),
                ("type", b"load.work"),
                ("data", b"\xc0"),
                ("data", b"\xc1"),
            ],
        ),
        6 => {
            let names: Vec<String> = (0..200).map(|n| format!("field{n}")).collect();
            let fields: Vec<_> = names
                .iter()
                .map(|name| (name.as_str(), &b"v"[..]))
                .collect();
            add(stream, &fields)
        }
        _ => add(
            stream,
            &[
                ("type", b"load.work"),
                ("id", id.as_bytes()),
                ("data", b"{\"n\": 1}"),
            ],
        ),
    }
}

/// Types where they do not belong, and of nobody.
fn astray(dice: &mut Rng, serial: u64) -> Cmd {
    let who = somebody(dice);
    let data = map(&[
        ("id", who.as_str().into()),
        ("instance_id", who.as_str().into()),
    ]);
    let pairs = [
        ("cb:events:load", "system.unregister"),
        ("cb:events:load", "system.register"),
        ("cb:events:load", "task.assigned"),
        ("cb:events:system", "load.work"),
        ("cb:events:system", "task.assigned"),
        ("cb:events:system", "instance.lost"),
        ("cb:events:task", "system.ping"),
        ("cb:events:load", "load.nobody"),
        ("cb:events:other", "other.nobody"),
    ];
    let (stream, kind) = pairs[dice.usize(..pairs.len())];
    event(stream, kind, &data, serial)
}

/// Answers that are to go where they must not, or where nobody is.
fn with_reply(dice: &mut Rng, serial: u64) -> Cmd {
    let ghost = made_up(dice, "cb:inbox:ghost");
    let made_up = made_up(dice, "cb:reply:ghost");
    let places = [
        "cb:events:load",
        "cb:events:system",
        "cb:dead:load",
        "cb:broadcast",
        "cb:inbox:w-1",
        "cb:instances:active",
        "other:reply:me",
        "cb:reply:",
        &ghost,
        &made_up,
    ];
    let place = places[dice.usize(..places.len())];
    let (stream, kind) = match dice.bool() {
        true => ("cb:events:load", "load.work"),
        false => ("cb:events:system", "system.health"),
    };
    add(
        stream,
        &[
            ("type", kind.as_bytes()),
            ("id", format!("x-{serial}").as_bytes()),
            ("replyto", place.as_bytes()),
            ("data", &packed(&work(serial, 0))),
        ],
    )
}

/// What a delay queue cannot move on.
fn later(dice: &mut Rng, serial: u64) -> Cmd {
    let queues = ["cb:delayed:load", "cb:delayed:system", "cb:delayed:task"];
    let scores = ["0", "-inf", "1", "-1e300"];
    let mut command = redis::cmd("ZADD");
    command.arg(queues[dice.usize(..queues.len())]);
    command.arg(scores[dice.usize(..scores.len())]);
    match dice.u32(..4) {
        0 => command.arg(bytes(dice, 100)),
        1 => command.arg(packed(&anything(dice, 4))),
        2 => command.arg(packed(&strings(&[
            "type".into(),
            "load.work".into(),
            "odd".into(),
        ]))),
        _ => command.arg(packed(&strings(&[
            "id".into(),
            format!("x-{serial}"),
            "type".into(),
            "system.unregister".into(),
        ]))),
    };
    command
}

fn dedup_key(dice: &mut Rng) -> Cmd {
    let mut command = redis::cmd("SET");
    command.arg(made_up(dice, "cb:dedup:load:x"));
    command.arg(bytes(dice, 60));
    command
}

/// Removes the keys that it wrote itself, and that no worker can know to be of no use.
pub(crate) async fn take_back(redis: &Redis) {
    let mut connection = redis.connection().await;
    for name in 0..NAMES {
        let mut command = redis::cmd("UNLINK");
        let command = command.arg(format!("cb:dedup:load:x-{name}"));
        command.exec_async(&mut connection).await.unwrap();
    }
}

fn monster(dice: &mut Rng, serial: u64) -> Cmd {
    let id = format!("x-{serial}");
    match dice.u32(..4) {
        0 => {
            let mut large = vec![0xc6];
            large.extend(((MONSTER - 16) as u32).to_be_bytes());
            large.resize(MONSTER - 16, 7);
            add(
                "cb:events:load",
                &[
                    ("type", b"load.work"),
                    ("id", id.as_bytes()),
                    ("data", &large),
                ],
            )
        }
        1 => {
            let names: Vec<String> = (0..12).map(|n| format!("field{n}")).collect();
            let large = vec![b'x'; MONSTER / 4];
            let mut fields = vec![("type", &b"load.work"[..])];
            fields.extend(names.iter().map(|name| (name.as_str(), &large[..])));
            add("cb:events:load", &fields)
        }
        2 => {
            let mut deep = vec![0x91; 100_000];
            deep.push(0xc0);
            add(
                "cb:events:system",
                &[("type", b"system.register"), ("data", &deep)],
            )
        }
        _ => {
            let wide = Value::Array(vec![Value::Nil; 70_000]);
            event("cb:events:task", "task.create", &wide, serial)
        }
    }
}

fn work(serial: u64, ms: u64) -> Value {
    // Beyond the numbers of the honest load.
    let n = (1 << 40) + serial;
    map(&[("n", n.into()), ("ms", ms.into()), ("fate", "Done".into())])
}

/// Events of a real type that take long and have no time-out.
fn slow(serial: u64) -> Cmd {
    let data = map(&[
        ("n", ((1u64 << 40) + serial).into()),
        ("ms", 2000.into()),
        ("manner", "Waits".into()),
    ]);
    event("cb:events:load", "load.long", &data, serial)
}

fn honest_looking(dice: &mut Rng, serial: u64) -> Cmd {
    event(
        "cb:events:load",
        "load.work",
        &work(serial, dice.u64(..25)),
        serial,
    )
}
