//! The corpus: fields and payloads that no event should hold.

use rmpv::Value as Packed;
use serde_json::{Value, json};

/// A good payload of every event that the built-in handlers take.
pub(super) fn good() -> Vec<(&'static str, Value)> {
    vec![
        ("job.do", json!({"n": 7, "tags": ["a", "b"]})),
        (
            "system.register",
            json!({"id": "x-1", "roles": ["gpu"], "capacity": 3, "capabilities": ["a.b"], "metadata": {}}),
        ),
        (
            "system.heartbeat",
            json!({"instance_id": "x-1", "load": 1, "observed": {"w-1": "healthy"}, "metrics": {"memory_bytes": 1}}),
        ),
        ("system.health", json!({"detailed": true})),
        ("system.get_state", json!({"recent": 3})),
        ("system.metrics", json!({"detailed": true})),
        ("system.discover", json!({"domain": "job"})),
        (
            "system.batch.process",
            json!({"batch_id": "b-1", "item_type": "job.do", "items": [1, 2], "mode": "exclusive"}),
        ),
        (
            "system.quorum.vote",
            json!({"decision": "d", "instance_id": "w-1", "value": {"n": 1}}),
        ),
        (
            "task.create",
            json!({"task_id": "t-1", "kind": "no.body", "payload": 7, "priority": 50}),
        ),
        (
            "task.complete",
            json!({"task_id": "t-1", "instance_id": "w-1", "fence": 1, "result": 7}),
        ),
        (
            "task.fail",
            json!({"task_id": "t-1", "instance_id": "w-1", "fence": 1, "error": "x"}),
        ),
        ("task.cancel", json!({"task_id": "t-1", "reason": "x"})),
        (
            "task.update",
            json!({"task_id": "t-1", "priority": 5, "payload": 7, "requires": ["a.b"], "metadata": {"n": 1}}),
        ),
        (
            "task.assign",
            json!({"task_id": "t-1", "instance_id": "x-1"}),
        ),
        ("task.unassign", json!({"task_id": "t-1"})),
        (
            "task.claim",
            json!({"instance_id": "x-1", "limit": 2, "kinds": ["no.body"]}),
        ),
        ("task.get", json!({"task_id": "t-1"})),
        ("task.list", json!({"status": "pending", "limit": 10})),
        ("system.unregister", json!({"instance_id": "x-1"})),
    ]
}

pub(super) fn packed(value: &Packed) -> Vec<u8> {
    let mut bytes = Vec::new();
    rmpv::encode::write_value(&mut bytes, value).unwrap();
    bytes
}

pub(super) fn deep(opening: &[u8], depth: usize) -> Vec<u8> {
    let mut data = opening.repeat(depth);
    data.push(0xc0);
    data
}

/// Payloads that no handler is made for, whatever it takes.
pub(super) fn strange() -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    all.push(Vec::new());
    for depth in [31, 32, 33, 312, 1023, 1024, 100_000] {
        all.push(deep(&[0x91], depth));
        all.push(deep(&[0x81, 0xa1, b'n'], depth));
        all.push(deep(&[0x91, 0x81, 0xa1, b'n'], depth / 2));
        // Inside a field that nobody knows, and inside a key.
        all.push([&[0x81, 0xa1, b'?'][..], &deep(&[0x91], depth)].concat());
        all.push([&[0x81][..], &deep(&[0x91], depth), &[0xc0]].concat());
    }
    for kind in [0xdd, 0xdf, 0xdb, 0xc6, 0xc9] {
        all.push(vec![kind, 0xff, 0xff, 0xff, 0xff]);
        all.push(vec![kind, 0xff, 0xff, 0xff, 0xff, 0, 0, 0]);
    }
    for element in [&[0xc0_u8][..], &[0x90], &[0x80]] {
        // Behind their head, 64 Ki elements.
        all.push([&[0xdd, 0, 1, 0, 0][..], &element.repeat(65_536)].concat());
    }
    all.push([&[0xdd, 0, 0, 0x40, 1][..], &[0xc0; 16_385]].concat());
    let equal = [
        &[0xde, 0x27, 0x10][..],
        &[0xa2, b'i', b'd', 1].repeat(10_000),
    ]
    .concat();
    all.push(equal);
    all.push(vec![0x82, 0xa2, b'i', b'd', 1, 0xa2, b'i', b'd', 2]);
    for key in [
        Packed::Nil,
        Packed::from(1),
        Packed::from(true),
        Packed::from(1.5),
        Packed::Array(vec![]),
        Packed::Binary(vec![1]),
    ] {
        all.push(packed(&Packed::Map(vec![(key, Packed::Nil)])));
    }
    // Extensions; as times: before 1970, and with a billion nanoseconds.
    for (kind, data) in [
        (0_i8, vec![1]),
        (127, vec![0; 16]),
        (-1, vec![0xff; 4]),
        (
            -1,
            [
                &1_000_000_000_u32.to_be_bytes()[..],
                &(-1_i64).to_be_bytes(),
            ]
            .concat(),
        ),
        (
            -1,
            [&[0; 4][..], &253_402_300_799_i64.to_be_bytes()].concat(),
        ),
    ] {
        all.push(packed(&Packed::Ext(kind, data)));
    }
    for text in [
        "\0",
        "\u{202e}gnp.exe",
        "\u{200b}\u{feff}",
        "\u{1b}[2J\u{1b}]0;title\u{7}",
        "a\nb\rc",
    ] {
        all.push(packed(&Packed::from(text)));
    }
    // No UTF-8, and a surrogate alone.
    all.push(vec![0xa2, 0xff, 0xfe]);
    all.push(vec![0xa3, 0xed, 0xa0, 0x80]);
    all.push(b"{\"task_id\":\"json\"}".to_vec());
    all.push(b"\x1f\x8b\x08\0\0\0\0\0\0\x03packed".to_vec());
    all
}

/// Values that stand where another one should.
pub(super) fn wrong() -> Vec<Packed> {
    vec![
        Packed::Nil,
        Packed::from(true),
        Packed::from(0),
        Packed::from(-1),
        Packed::from(i64::MIN),
        Packed::from(i64::MAX),
        Packed::from(1_u64 << 63),
        Packed::from(u64::MAX),
        Packed::F64(f64::NAN),
        Packed::F64(f64::INFINITY),
        Packed::F64(f64::NEG_INFINITY),
        Packed::F64(-0.0),
        Packed::from(""),
        Packed::from("a b"),
        Packed::from("*"),
        Packed::from("{x}"),
        Packed::from("a:b\n"),
        Packed::from("\u{1b}[31m\u{202e}"),
        Packed::from("x".repeat(65_536)),
        Packed::Binary(vec![0xff; 10]),
        Packed::Array(vec![]),
        Packed::Array(vec![Packed::Nil; 5000]),
        Packed::Array(vec![Packed::from("a.b"); 5000]),
        Packed::Map(vec![]),
        Packed::Map(vec![(Packed::from(1), Packed::Nil); 100]),
        Packed::Ext(-1, vec![0xff; 12]),
    ]
}

/// Good payloads in which one thing is wrong: cut at every byte, each bit of each byte flipped, a
/// rest behind, twice; each field absent, twice there, or another value.
pub(super) fn damaged(good: &Value) -> Vec<Vec<u8>> {
    let bytes = rmp_serde::to_vec_named(good).unwrap();
    let mut all: Vec<Vec<u8>> = (0..bytes.len()).map(|end| bytes[..end].to_vec()).collect();
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << (at % 8);
        all.push(flipped);
    }
    all.push([&bytes[..], &[0]].concat());
    all.push([&bytes[..], &bytes].concat());
    let whole: Packed = rmp_serde::from_slice(&bytes).unwrap();
    let fields = whole.as_map().unwrap().clone();
    for at in 0..fields.len() {
        let mut absent = fields.clone();
        absent.remove(at);
        all.push(packed(&Packed::Map(absent)));
        let mut twice = fields.clone();
        twice.push(fields[at].clone());
        all.push(packed(&Packed::Map(twice)));
        for value in wrong() {
            let mut other = fields.clone();
            other[at].1 = value;
            all.push(packed(&Packed::Map(other)));
        }
    }
    all
}
