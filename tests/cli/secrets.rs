//! Settings that may hold a secret, in files of their own.

use super::worker::Worker;
use super::{File, bare, convoke, end, run};
use crate::support::{Redis, eventually, users};
use std::process::Command;

/// The command for a server that only a file names.
fn by_file(file: &File, args: &[&str]) -> Command {
    let mut command = bare();
    command
        .env("CONVOKE_REDIS_URL_FILE", file.path())
        .args(args);
    command
}

/// The name under which a settings file is made.
fn settings(name: &str, text: &str) -> File {
    File::new(&format!("secrets-{name}.toml"), text)
}

#[test]
fn a_url_that_stands_in_a_file_is_read_from_there_in_all_forms() {
    let redis = Redis::start();
    let url = redis.url_for(users::PUBLISHER);
    let secret = File::new("secrets-url", &format!("{url}\r\n"));
    end(&mut by_file(&secret, &["publish", "a.b"])).done();
    end(bare().args(["publish", "a.b", "--redis-url-file", secret.path()])).done();
    let named = settings("named", &format!("redis_url_file = {:?}\n", secret.path()));
    end(bare().args(["publish", "a.b", "--config", named.path()])).done();
    // The later source wins, in whichever form.
    let nowhere = File::new("secrets-nowhere", "redis://127.0.0.1:1");
    let elsewhere = settings(
        "elsewhere",
        &format!("redis_url_file = {:?}\n", nowhere.path()),
    );
    let mut plain = convoke(&redis, &["publish", "a.b", "--config", elsewhere.path()]);
    end(&mut plain).done();
    let plain = settings("plain", "redis_url = \"redis://127.0.0.1:1\"\n");
    end(&mut by_file(
        &secret,
        &["publish", "a.b", "--config", plain.path()],
    ))
    .done();
    let length: u64 = redis::cmd("XLEN")
        .arg("cb:events:a")
        .query(&mut redis.connect())
        .unwrap();
    assert_eq!(length, 5);
}

#[test]
fn a_file_that_is_of_no_use_is_named_and_what_it_holds_is_not_told() {
    let asked = ["publish", "a.b"];
    let url = File::new("secrets-both", "redis://u:s3cret@h");
    for setting in ["REDIS_URL", "DATABASE_URL", "MCP_SERVER"] {
        let (plain, in_file) = (
            format!("CONVOKE_{setting}"),
            format!("CONVOKE_{setting}_FILE"),
        );
        let both = end(bare()
            .args(asked)
            .env(&plain, "x")
            .env(&in_file, url.path()));
        let both = both.failed(2, &[&in_file, &format!("{plain} is set as well")]);
        assert!(!both.err.contains("s3cret"), "{both:?}");
        let none = end(bare().args(asked).env(&in_file, "/nowhere/url"));
        none.failed(2, &[&in_file, "/nowhere/url", "cannot be read"]);
        let empty = File::new("secrets-empty", "\n");
        let none = end(bare().args(asked).env(&in_file, empty.path()));
        none.failed(2, &[&in_file, empty.path(), "is empty"]);
    }
    for (setting, held) in [
        ("REDIS_URL", "pa55word"),
        ("REDIS_URL", "redis://u:pa55/word@h"),
        ("REDIS_URL", "redis://u:pa55word@h?x=pa55word"),
        ("DATABASE_URL", "pa55word"),
        ("DATABASE_URL", "postgres://u:pa55word@h:port"),
    ] {
        let file = File::new("secrets-held", held);
        let in_file = format!("CONVOKE_{setting}_FILE");
        let told = end(bare().args(asked).env(&in_file, file.path()));
        let told = told.failed(2, &[&in_file, file.path()]);
        assert!(!told.err.contains("pa55"), "{told:?}");
    }
    let wrong = settings("wrong", "redis_url_file = 3\n");
    let told = end(bare().args(asked).args(["--config", wrong.path()]));
    told.failed(2, &[wrong.path(), "redis_url_file", "not a path"]);
}

/// `redis://…` for a worker whose password is another one now.
fn with_password(redis: &Redis, password: &str) -> String {
    let url = redis.url_for(users::WORKER);
    url.replace(&format!(":{}@", users::PASSWORD), &format!(":{password}@"))
}

#[test]
fn a_password_that_is_rotated_is_used_at_the_next_connection() {
    let redis = Redis::start();
    let secret = File::new("secrets-rotated", &redis.url_for(users::WORKER));
    let mut command = by_file(&secret, &["worker", "--id=w-1", "--exec=demo.echo=cat"]);
    command.args(["--heartbeat-ttl", "2s", "--log-format", "json"]);
    let worker = Worker::start(&redis, "w-1", &mut command);
    run(&redis, &["request", "demo.echo", "--data", "1"]).done();
    let mut admin = redis.connect();
    let mut say = |words: &str| {
        let words: Vec<&str> = words.split(' ').collect();
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]).exec(&mut admin).unwrap();
    };
    let user = users::WORKER;
    for password in ["second", "third"] {
        // A file that is gone, or leads elsewhere, for a moment changes nothing.
        std::fs::remove_file(secret.path()).unwrap();
        say(&format!("CLIENT KILL USER {user}"));
        run(&redis, &["request", "demo.echo", "--data", "2"]).done();
        std::fs::write(secret.path(), "redis://elsewhere").unwrap();
        say(&format!("CLIENT KILL USER {user}"));
        run(&redis, &["request", "demo.echo", "--data", "3"]).done();
        let url = format!("{}\n", with_password(&redis, password));
        std::fs::write(secret.path(), url).unwrap();
        say(&format!("ACL SETUSER {user} resetpass >{password}"));
        say(&format!("CLIENT KILL USER {user}"));
        run(&redis, &["request", "demo.echo", "--data", "4"]).done();
    }
    // Whoever reads the file too late is refused, and not for the whole pause once it has the new one.
    say(&format!("ACL SETUSER {user} resetpass >fourth"));
    say(&format!("CLIENT KILL USER {user}"));
    eventually("it was refused", || {
        let log = redis::cmd("ACL").arg("LOG").query(&mut redis.connect());
        let log: Vec<redis::Value> = log.unwrap();
        !log.is_empty()
    });
    std::fs::write(secret.path(), with_password(&redis, "fourth")).unwrap();
    run(&redis, &["request", "demo.echo", "--data", "5"]).done();
    let ended = worker.stop();
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(ended.err.contains("cannot be read"), "{ended:?}");
    assert!(ended.err.contains("another place"), "{ended:?}");
    for password in ["second", "third", "fourth", ":test@"] {
        assert!(!ended.err.contains(password), "{ended:?}");
    }
    redis::cmd("ACL")
        .arg(&["LOG", "RESET"])
        .exec(&mut redis.connect())
        .unwrap();
}
