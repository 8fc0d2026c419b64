//! What operators find: streams, pending entries, dead letters.

use crate::support::{self, Redis};
use convoke::protocol::json;
use serde_json::Value;

/// Sends one command, its words apart.
pub(crate) fn send(redis: &Redis, words: &[&[u8]]) -> redis::Value {
    let mut command = redis::cmd(std::str::from_utf8(words[0]).unwrap());
    for word in &words[1..] {
        command.arg(*word);
    }
    command.query(&mut redis.connect()).unwrap()
}

/// Sends one command, its words separated by spaces.
pub(crate) fn say(redis: &Redis, command: &str) -> redis::Value {
    let words: Vec<&[u8]> = command.split(' ').map(str::as_bytes).collect();
    send(redis, &words)
}

/// Adds an event with that payload and those further fields; its id is given.
pub(crate) fn add(redis: &Redis, key: &str, id: &str, kind: &str, data: &Value, fields: &str) {
    let data = json::from_json(data);
    let mut words: Vec<&[u8]> = vec![b"XADD", key.as_bytes(), id.as_bytes()];
    words.extend([&b"type"[..], kind.as_bytes(), b"data", &data]);
    words.extend(
        fields
            .split(' ')
            .filter(|w| !w.is_empty())
            .map(str::as_bytes),
    );
    send(redis, &words);
}

/// Adds a dead letter of `cb:events:image`.
pub(crate) fn bury(redis: &Redis, id: &str, kind: &str, reason: &str, data: &Value, fields: &str) {
    let told = format!(
        "{fields} deadreason {reason} deadmessage broken deadattempts 5 deaddeliveries 1 \
         deadstream cb:events:image deadentry 7-{} deadinstance w-1 deadtime 1700000000000",
        id.split('-').next().unwrap()
    );
    add(redis, "cb:dead:image", id, kind, data, &told);
}

/// Gives all that is new on `cb:events:image` to a consumer.
pub(crate) fn deliver(redis: &Redis, consumer: &str) {
    redis::cmd("XGROUP")
        .arg(&["CREATE", "cb:events:image", "workers", "0", "MKSTREAM"])
        .exec(&mut redis.connect())
        .ok();
    let read = format!("XREADGROUP GROUP workers {consumer} STREAMS cb:events:image >");
    say(redis, &read);
}

/// The ids and fields of a stream's entries.
pub(crate) fn entries(redis: &Redis, key: &str) -> Vec<convoke::protocol::event::Entry> {
    let reply = say(redis, &format!("XRANGE {key} - +"));
    convoke::streams::read::entries_of(reply).unwrap()
}

/// One field of an entry as text.
pub(crate) fn text(entry: &convoke::protocol::event::Entry, name: &str) -> String {
    String::from_utf8_lossy(entry.get(name).unwrap_or_default()).into_owned()
}

/// JSON lines.
pub(crate) fn lines(out: &str) -> Vec<Value> {
    let parsed = out.lines().map(|line| serde_json::from_str(line).unwrap());
    parsed.collect()
}

/// The names in an object, which are part of the contract.
pub(crate) fn names(object: &Value) -> Vec<&str> {
    let object = object.as_object().unwrap();
    object.keys().map(String::as_str).collect()
}

/// An instance that lives.
pub(crate) async fn register(redis: &Redis, id: &str) {
    use convoke::connect::connector::Connector;
    use convoke::coordination::instances::Instances;
    use convoke::coordination::instances::instance::Registering;
    use convoke::settings::RedisUrl;
    let connector = Connector::new(&RedisUrl::new(redis.url()), 1).unwrap();
    let instances = Instances::of_process(connector, support::keys(), "test");
    instances
        .register(&Registering::new(id, ["worker"]))
        .await
        .unwrap();
}
