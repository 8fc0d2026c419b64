//! The users of `deploy/users.acl` may do what convoke does with them, and little else.

#[path = "../support/mod.rs"]
mod support;

use convoke::bus::client::{Client, ClientOptions};
use convoke::bus::connect::Connector;
use convoke::bus::keys::Keys;
use convoke::bus::publish::Outgoing;
use convoke::config::RedisUrl;
use std::fs;
use std::path::Path;
use std::time::Duration;
use support::Redis;

const PASSWORD: &str = "test";
const PASSWORD_SHA256: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

/// A server with the users of the file. Its default user, off in the file, looks on.
struct Guarded {
    redis: Redis,
}

impl Guarded {
    fn start() -> Self {
        let users =
            fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/users.acl"))
                .expect("the file is there");
        let open = users
            .replace("user default off", "user default on nopass ~* &* +@all")
            .replace(&"0".repeat(64), PASSWORD_SHA256);
        assert_ne!(open, users);
        let redis = Redis::with(&["--save", ""]);
        // The commands are those of an ACL file, one user a line.
        let mut connection = redis.connect();
        for line in open.lines() {
            let mut command = redis::cmd("ACL");
            command.arg("SETUSER");
            for word in rules(line) {
                command.arg(word);
            }
            command.exec(&mut connection).expect(line);
        }
        Self { redis }
    }

    fn url(&self, user: &str) -> RedisUrl {
        RedisUrl::new(format!(
            "redis://{user}:{PASSWORD}@127.0.0.1:{}",
            self.redis.port()
        ))
    }

    /// What the server refused since the last look.
    fn refused(&self) -> Vec<String> {
        let mut connection = self.redis.connect();
        let log: Vec<std::collections::HashMap<String, redis::Value>> = redis::cmd("ACL")
            .arg("LOG")
            .query(&mut connection)
            .expect("the log");
        redis::cmd("ACL")
            .arg("LOG")
            .arg("RESET")
            .exec(&mut connection)
            .expect("emptied");
        log.iter()
            .map(|entry| format!("{:?} {:?}", entry["reason"], entry["object"]))
            .collect()
    }

    /// Runs a command as that user; the error's code if there was one.
    fn try_as(&self, user: &str, words: &[&str]) -> Result<(), String> {
        let mut connection = redis::Client::open(self.url(user).expose())
            .and_then(|client| client.get_connection())
            .expect("a connection");
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        command
            .exec(&mut connection)
            .map_err(|error| error.code().unwrap_or("?").to_owned())
    }

    #[track_caller]
    fn must_refuse(&self, user: &str, commands: &[&str]) {
        for command in commands {
            let words: Vec<&str> = command.split(' ').collect();
            let refused = self.try_as(user, &words);
            assert_eq!(refused, Err("NOPERM".into()), "{user}: {command}");
        }
        self.refused();
    }
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

fn client(guarded: &Guarded, user: &str, keys: Keys) -> Client {
    let connector = Connector::new(&guarded.url(user), 2).expect("a url");
    let options = ClientOptions {
        name: Some("shop".into()),
        ..ClientOptions::default()
    };
    Client::new(connector, keys, options).expect("a name")
}

#[test]
fn the_file_loads_and_lets_nobody_in_before_passwords_are_set() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/users.acl");
    let users = fs::read_to_string(&file).expect("the file is there");
    assert!(users.lines().any(|line| line == "user default off"));
    for line in users.lines().filter(|line| *line != "user default off") {
        assert!(line.contains(&"0".repeat(64)), "{line}");
        assert!(!line.contains("nopass") && !line.contains('>'), "{line}");
    }
    // Only the default user is opened, so that the harness can see the server start.
    let copy = std::env::temp_dir().join(format!("convoke-users-{}.acl", std::process::id()));
    let open = users.replace("user default off", "user default on nopass ~* &* +@all");
    fs::write(&copy, open).expect("a copy");
    let redis = Redis::with(&["--save", "", "--aclfile", &copy.to_string_lossy()]);
    for user in ["convoke-worker", "convoke-publisher", "convoke-operator"] {
        let url = format!("redis://{user}:{PASSWORD}@127.0.0.1:{}", redis.port());
        let refused = redis::Client::open(url).and_then(|client| client.get_connection());
        assert!(refused.is_err(), "{user}");
    }
    fs::remove_file(&copy).ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_can_publish_and_ask_in_every_way() {
    for keys in [Keys::new("cb"), Keys::tagged("cb", 2)] {
        let keys = keys.expect("a namespace");
        let guarded = Guarded::start();
        let client = client(&guarded, "convoke-publisher", keys.clone());
        let event = || Outgoing::new("image.resize", &7);
        client.publish(&event()).await.expect("stored");
        for _ in 0..2 {
            let once = event().id("once").dedup(true);
            client.publish(&once).await.expect("stored once");
        }
        let later = event().delay(Duration::from_secs(60));
        client.publish(&later).await.expect("stored for later");
        let later = event().id("later").dedup(true).at(4_000_000_000_000);
        client.publish(&later).await.expect("stored for later");
        for stored in client.publish_many(&[event(), event()]).await {
            stored.expect("stored");
        }
        let confirmed = event().confirm(1, Duration::from_millis(1));
        let doubt = client.publish(&confirmed).await.expect_err("no replica");
        assert!(doubt.to_string().contains("replica"), "{doubt}");

        let asked = Outgoing::new("system.health", &()).id("asked");
        let (reply, ()) = tokio::join!(
            client.request(asked, Duration::from_secs(30)),
            answer(&guarded, &keys)
        );
        assert_eq!(reply.expect("a reply").correlation_id, "asked");
        client.close().await;
        assert_eq!(guarded.refused(), Vec::<String>::new());
    }
}

/// Answers the one request for `system.health`, as the server's owner.
async fn answer(guarded: &Guarded, keys: &Keys) {
    let mut connection = guarded.redis.connection().await;
    let events = keys.events("system", 0);
    support::until("the request arrives", || {
        let mut connection = connection.clone();
        let events = &events;
        async move {
            let length: i64 = redis::cmd("XLEN")
                .arg(events)
                .query_async(&mut connection)
                .await
                .expect("a length");
            length == 1
        }
    })
    .await;
    redis::cmd("XADD")
        .arg(keys.reply("system", 0, "shop"))
        .arg("*")
        .arg(&["correlationid", "asked", "type", "system.health.result"])
        .arg(&["status", "ok", "data"])
        .arg(b"\xc0")
        .exec_async(&mut connection)
        .await
        .expect("answered");
}

#[test]
fn a_publisher_can_neither_read_events_nor_settle_them_nor_look_around() {
    let guarded = Guarded::start();
    guarded.must_refuse(
        "convoke-publisher",
        &[
            "XREAD STREAMS cb:events:image 0",
            "XRANGE cb:events:image - +",
            "XREADGROUP GROUP workers me STREAMS cb:events:image >",
            "XACK cb:events:image workers 1-1",
            "XDEL cb:events:image 1-1",
            "XTRIM cb:events:image MAXLEN 0",
            "XGROUP CREATE cb:events:image other 0 MKSTREAM",
            "XADD cb:broadcast * type instance.lost",
            "XADD cb:results:image * status ok",
            "XADD cbx:events:image * type image.resize",
            "XADD {cbx}:events:image * type image.resize",
            "ZADD cb:instances:active 1 w-1",
            "UNLINK cb:events:image",
            "DEL cb:instance:w-1",
            "EVAL return 0",
            "KEYS *",
            "SCAN 0",
            "FLUSHALL",
            "CONFIG GET *",
            "CLIENT LIST",
            "CLIENT KILL ID 1",
            "ACL WHOAMI",
            "DEBUG SLEEP 0",
            "SHUTDOWN NOSAVE",
        ],
    );
}
