//! Where settings come from.

use super::worker::Worker;
use super::{File, bare, convoke, end, run};
use crate::support::{self, Redis};

/// Where the command published, as the namespace of the stream's key tells.
fn stored_in(redis: &Redis, namespace: &str) -> bool {
    let mut connection = redis.connect();
    let length: u64 = redis::cmd("XLEN")
        .arg(match support::is_cluster() {
            false => format!("{namespace}:events:a"),
            true => format!("{{{namespace}:a:0}}:events"),
        })
        .query(&mut connection)
        .unwrap();
    length > 0
}

#[test]
fn flags_win_over_the_environment_over_the_file_over_defaults() {
    let redis = Redis::start();
    for namespace in ["from_file", "from_env", "from_flag"] {
        redis.allow_namespace(namespace);
    }
    let file = File::new("precedence.toml", "namespace = \"from_file\"\n");
    run(&redis, &["publish", "a.b"]).done();
    assert!(stored_in(&redis, "cb"));
    run(&redis, &["publish", "a.b", "--config", file.path()]).done();
    assert!(stored_in(&redis, "from_file"));
    let mut both = convoke(&redis, &["publish", "a.b", "--config", file.path()]);
    end(both.env("CONVOKE_NAMESPACE", "from_env")).done();
    assert!(stored_in(&redis, "from_env"));
    both.args(["--namespace", "from_flag"]);
    end(&mut both).done();
    assert!(stored_in(&redis, "from_flag"));
}

#[test]
fn what_looks_like_a_number_stays_text() {
    let redis = Redis::start();
    redis.allow_namespace("123");
    let mut command = convoke(&redis, &["publish", "a.b"]);
    end(command
        .env("CONVOKE_NAMESPACE", "123")
        .env("CONVOKE_ID", "7"))
    .done();
    assert!(stored_in(&redis, "123"));
}

#[test]
fn variables_of_other_parts_and_empty_ones_are_left_alone() {
    let redis = Redis::start();
    let mut command = convoke(&redis, &["publish", "a.b"]);
    command.env("CONVOKE_DATABASE_URL", "postgres://elsewhere");
    command.env("CONVOKE_CONFIG", "");
    command.env("CONVOKE_LOG", "info");
    command.env("CONVOKE_LOG_FORMAT", "json");
    command.env("CONVOKE_NO_SETTING", "");
    // A handler's command that publishes.
    for name in [
        "CONVOKE_EVENT_ID",
        "CONVOKE_EVENT_TYPE",
        "CONVOKE_EVENT_ATTEMPT",
        "CONVOKE_MARK",
    ] {
        command.env(name, "1");
    }
    // What Kubernetes says of Services called convoke and convoke-redis.
    for name in [
        "CONVOKE_SERVICE_HOST",
        "CONVOKE_SERVICE_PORT",
        "CONVOKE_SERVICE_PORT_METRICS",
        "CONVOKE_PORT",
        "CONVOKE_PORT_6379_TCP",
        "CONVOKE_PORT_6379_TCP_ADDR",
        "CONVOKE_REDIS_SERVICE_HOST",
        "CONVOKE_REDIS_PORT_6379_TCP_PROTO",
    ] {
        command.env(name, "1");
    }
    end(command.env("CONVOKE_NAMESPACE", "")).done();
    assert!(stored_in(&redis, "cb"));
}

#[test]
fn a_wrong_setting_is_told_with_its_source_and_value() {
    let publish = || {
        let mut command = bare();
        command.args(["publish", "a.b"]);
        command
    };
    let file = |name: &str, text: &str| File::new(name, text);
    end(publish().env("CONVOKE_CONCURRENCY", "many"))
        .failed(2, &["CONVOKE_CONCURRENCY", "\"many\""]);
    end(publish().env("CONVOKE_HEARTBEAT_TTL", "5ms"))
        .failed(2, &["CONVOKE_HEARTBEAT_TTL", "5ms", "100ms to 1h"]);
    end(publish().env("CONVOKE_ROLE", "worker, a b")).failed(2, &["CONVOKE_ROLE", "\"a b\""]);
    end(publish().env("CONVOKE_CAPACITY", "99999999999"))
        .failed(2, &["CONVOKE_CAPACITY", "99999999999"]);
    for (value, problem) in [
        ("half", "\"half\" is not a number"),
        ("1.5", "1.5 is not 0 to 1"),
    ] {
        end(publish().env("CONVOKE_TELEMETRY_SAMPLE", value))
            .failed(2, &["CONVOKE_TELEMETRY_SAMPLE", problem]);
    }
    end(publish().args(["--namespace", "UP"])).failed(2, &["--namespace", "UP"]);
    end(publish().args(["--dedup-window", "5x"])).failed(2, &["--dedup-window", "5x"]);
    end(publish().args(["--config", "/nowhere.toml"])).failed(2, &["/nowhere.toml"]);
    let unknown = file("unknown.toml", "heartbeat = \"5s\"\n");
    end(publish().args(["--config", unknown.path()]))
        .failed(2, &[unknown.path(), "\"heartbeat\"", "heartbeat_ttl"]);
    let wrong = file("wrong.toml", "\nclaim_idle = 5\n");
    end(publish().args(["--config", wrong.path()])).failed(2, &[wrong.path(), "claim_idle", "5"]);
    let range = file("range.toml", "max_attempts = 0\n");
    end(publish().args(["--config", range.path()]))
        .failed(2, &[range.path(), "max_attempts", "0", "1 to 1000"]);
}

#[test]
fn the_pattern_of_an_event_is_set_in_every_form_and_refused_with_what_there_is() {
    let redis = Redis::start();
    let file = File::new("patterns.toml", "[patterns]\nhealth = \"distributed\"\n");
    let shows = |name: &str, given: &dyn Fn(&mut std::process::Command), pattern: &str| {
        let mut command = convoke(&redis, &["worker", "--id", name]);
        given(&mut command);
        let worker = Worker::start(&redis, name, &mut command);
        let listed = run(&redis, &["pattern", "list", "--format=json"])
            .done()
            .out;
        let first = listed.lines().next().unwrap();
        let listed: serde_json::Value = serde_json::from_str(first).unwrap();
        assert_eq!(listed["pattern"], pattern, "{listed}");
        assert_eq!(listed["from"], "setting");
        worker.stop().done();
    };
    shows("w-1", &|_| {}, "centralized");
    let of_file = |command: &mut std::process::Command| {
        command.args(["--config", file.path()]);
    };
    shows("w-2", &of_file, "distributed");
    let of_both = |command: &mut std::process::Command| {
        of_file(command);
        command.env("CONVOKE_PATTERNS_HEALTH", "hybrid");
    };
    shows("w-3", &of_both, "hybrid");
    let of_all = |command: &mut std::process::Command| {
        of_both(command);
        command.args(["--pattern", "health=centralized"]);
    };
    shows("w-4", &of_all, "centralized");

    let worker = |words: &[&str]| {
        let mut command = bare();
        command.arg("worker").args(words);
        command
    };
    end(&mut worker(&["--pattern", "health=anarchic"])).failed(2, &["anarchic", "distributed"]);
    end(&mut worker(&["--pattern", "discover=hybrid"])).failed(2, &["discover", "health"]);
    end(worker(&[]).env("CONVOKE_PATTERNS_HEALTH", "anarchic"))
        .failed(2, &["CONVOKE_PATTERNS_HEALTH", "anarchic", "distributed"]);
    end(worker(&[]).env("CONVOKE_PATTERNS_HEALHT", "hybrid"))
        .failed(2, &["mean CONVOKE_PATTERNS_HEALTH?"]);
    let wrong = File::new("wrong-pattern.toml", "[patterns]\nhealth = \"anarchic\"\n");
    end(&mut worker(&["--config", wrong.path()]))
        .failed(2, &[wrong.path(), "patterns.health", "anarchic"]);
    end(&mut worker(&["--pattern", "state=distributed"]))
        .failed(2, &["there are centralized, hybrid"]);
    end(worker(&[]).env("CONVOKE_PATTERNS_STATE", "distributed")).failed(
        2,
        &["CONVOKE_PATTERNS_STATE", "there are centralized, hybrid"],
    );
    let unknown = File::new("no-pattern.toml", "[patterns]\ndiscover = \"hybrid\"\n");
    end(&mut worker(&["--config", unknown.path()])).failed(2, &[unknown.path(), "discover"]);
}

#[test]
fn an_unknown_setting_is_named_and_what_was_meant() {
    for (name, meant) in [
        ("CONVOKE_HEARTBEAT_TLL", "mean CONVOKE_HEARTBEAT_TTL?"),
        ("CONVOKE_CONCURENCY", "mean CONVOKE_CONCURRENCY?"),
        ("CONVOKE_heartbeat_ttl", "mean CONVOKE_HEARTBEAT_TTL?"),
        ("CONVOKE_LOGFORMAT", "mean CONVOKE_LOG_FORMAT?"),
        ("CONVOKE_SOMETHING_ELSE", "there are CONVOKE_"),
    ] {
        let mut command = bare();
        command.args(["publish", "a.b"]).env(name, "s3cret");
        let ended = end(&mut command).failed(2, &[name, meant]);
        assert!(!format!("{ended:?}").contains("s3cret"), "{ended:?}");
    }
    let file = File::new("meant.toml", "heartbeat_tll = \"3s\"\n");
    let mut command = bare();
    end(command.args(["publish", "a.b", "--config", file.path()]))
        .failed(2, &[file.path(), "heartbeat_tll", "mean heartbeat_ttl?"]);
}

#[test]
fn a_password_in_an_argument_is_refused_and_never_shown() {
    for url in [
        "redis://:s3cret@127.0.0.1:1",
        "redis://user:s3c/ret@127.0.0.1:1",
        "unix:///tmp/s?pass=s3cret",
    ] {
        let ended = end(bare().args(["publish", "a.b", "--redis-url", url]));
        let ended = ended.failed(2, &["--redis-url", "CONVOKE_REDIS_URL", "file"]);
        assert!(!format!("{ended:?}").contains("s3c"), "{ended:?}");
    }
}

#[test]
fn no_output_shows_a_password() {
    let closed = crate::support::free_port();
    let broken = File::new("secret-1.toml", "redis_url = \"redis://:s3cret@h\n");
    let typed = File::new("secret-2.toml", "redis_url = [\"redis://:s3cret@h\"]\n");
    let listed = File::new(
        "secret-3.toml",
        "group = \"a b\"\nredis_url = \"redis://:s3cret@h\"\n",
    );
    let unreachable = format!("redis://:s3cret@127.0.0.1:{closed}");
    let commands: [&[&str]; 4] = [
        &["publish", "a.b"],
        &["request", "a.b"],
        &["tail"],
        &["instances"],
    ];
    for args in commands {
        let mut ends = Vec::new();
        for url in [
            &*unreachable,
            "redis://:s3cret@",
            "http://:s3cret@h",
            ":s3cret@h",
        ] {
            let mut command = bare();
            command.args(args).args(["--log", "trace"]);
            ends.push(end(command.env("CONVOKE_REDIS_URL", url)));
        }
        for file in [&broken, &typed, &listed] {
            ends.push(end(bare().args(args).args(["--config", file.path()])));
        }
        for ended in ends {
            assert_ne!(ended.code, 0, "{ended:?}");
            assert!(!format!("{ended:?}").contains("s3cret"), "{ended:?}");
        }
    }
}
