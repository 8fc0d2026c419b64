//! Votes over the bus, from a client that knows nothing but the protocol.

use crate::rig::{Rig, text};
use convoke::protocol::error::Code;
use convoke::protocol::event::Entry;
use rmpv::Value;
use serde_json::json;

/// A client that speaks Redis commands and MessagePack, and has no library of ours.
struct Foreign {
    connection: redis::Connection,
    asked: u32,
}

impl Foreign {
    fn new(rig: &Rig) -> Self {
        Self {
            connection: rig.redis.connect(),
            asked: 0,
        }
    }

    /// Publishes a request and reads the reply: its status and its data.
    fn ask(&mut self, kind: &str, data: &Value) -> (String, Value) {
        self.asked += 1;
        let id = format!("f-{}", self.asked);
        let mailbox = format!("cb:reply:foreign-{}", self.asked);
        let mut payload = Vec::new();
        rmpv::encode::write_value(&mut payload, data).unwrap();
        redis::cmd("XADD")
            .arg(&["cb:events:system", "*", "type", kind, "id", &id])
            .arg(&["replyto", &mailbox, "data"])
            .arg(payload)
            .exec(&mut self.connection)
            .unwrap();
        let mut reply = None;
        crate::support::eventually("a reply", || {
            let answer = redis::cmd("XRANGE")
                .arg(&[&mailbox, "-", "+"])
                .query(&mut self.connection)
                .unwrap();
            let entries: Vec<Entry> = convoke::streams::read::entries_of(answer).unwrap();
            reply = entries.into_iter().next();
            reply.is_some()
        });
        let reply = reply.unwrap();
        assert_eq!(text(&reply, "correlationid"), id);
        let data = rmpv::decode::read_value(&mut reply.get("data").unwrap()).unwrap();
        (text(&reply, "status"), data)
    }

    fn vote(&mut self, voter: &str, value: Value) -> (String, Value) {
        let data = map(&[
            ("decision", "colour".into()),
            ("instance_id", voter.into()),
            ("value", value),
            ("role", "voter".into()),
        ]);
        self.ask("system.quorum.vote", &data)
    }
}

fn map(pairs: &[(&str, Value)]) -> Value {
    let pairs = pairs
        .iter()
        .map(|(name, value)| ((*name).into(), value.clone()));
    Value::Map(pairs.collect())
}

fn field<'a>(map: &'a Value, name: &str) -> Option<&'a Value> {
    let pairs = map.as_map().expect("a map");
    let pair = pairs.iter().find(|(key, _)| key.as_str() == Some(name));
    pair.map(|(_, value)| value)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_client_votes_by_raw_commands() {
    let rig = Rig::new().await;
    let worker = rig.start(rig.builder());
    let mut foreign = Foreign::new(&rig);
    for id in ["v-1", "v-2", "v-3"] {
        let data = map(&[
            ("id", id.into()),
            ("roles", Value::Array(vec!["voter".into()])),
        ]);
        assert_eq!(foreign.ask("system.register", &data).0, "ok");
    }
    let red = Value::Ext(5, vec![255, 0, 0]);
    let (status, first) = foreign.vote("v-1", red.clone());
    assert_eq!(status, "ok");
    let expected = [
        ("voted", Value::from(true)),
        ("quorum_reached", false.into()),
        ("vote_count", 1.into()),
        ("quorum", 2.into()),
        ("electorate", 3.into()),
        ("status", "open".into()),
    ];
    assert_eq!(first, map(&expected));
    // The same again, another one, a stranger's, one that is malformed.
    assert_eq!(foreign.vote("v-1", red.clone()), ("ok".into(), first));
    let (status, error) = foreign.vote("v-1", "blue".into());
    assert_eq!(status, "already_exists");
    assert_eq!(field(&error, "retryable"), Some(&false.into()));
    assert_eq!(foreign.vote("v-9", red.clone()).0, "failed_precondition");
    assert_eq!(foreign.vote("v 9", red.clone()).0, "invalid_argument");
    let (status, error) = foreign.ask(
        "system.quorum.vote",
        &map(&[("decision", "colour".into()), ("instance_id", "v-2".into())]),
    );
    assert_eq!(status, "invalid_argument");
    assert!(
        field(&error, "message")
            .unwrap()
            .to_string()
            .contains("value")
    );

    let (_, second) = foreign.vote("v-2", red.clone());
    assert_eq!(field(&second, "status"), Some(&"decided".into()));
    assert_eq!(field(&second, "quorum_reached"), Some(&true.into()));
    assert_eq!(field(&second, "final_decision"), Some(&red));
    let (status, late) = foreign.vote("v-3", Value::Nil);
    assert_eq!(status, "ok");
    assert_eq!(field(&late, "voted"), Some(&false.into()));
    assert_eq!(field(&late, "final_decision"), Some(&red));
    let facts = rig.entries("cb:broadcast").await;
    let decided = |fact: &&Entry| fact.get("type") == Some(b"quorum.decided");
    assert_eq!(facts.iter().filter(decided).count(), 1);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_decision_of_nil_is_a_decision() {
    let rig = Rig::new().await;
    let worker = rig.start(rig.builder().settings(convoke::settings::Settings {
        id: "w-1".into(),
        ..rig.settings()
    }));
    let vote = json!({"decision": "d", "instance_id": "w-1", "value": null});
    let reply = rig.ask("system.quorum.vote", &vote).await.unwrap();
    let voted: serde_json::Value = reply.decode().unwrap();
    assert_eq!(voted["status"], "decided");
    assert_eq!(voted.get("final_decision"), Some(&serde_json::Value::Null));
    let missing = json!({"decision": "d", "instance_id": "w-1"});
    let error = rig.refused("system.quorum.vote", &missing).await;
    assert_eq!(error.code, Code::InvalidArgument);
    worker.stop().await;
}
