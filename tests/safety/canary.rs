//! A secret in every place that can hold one, every way of failing forced, everything logged: nobody
//! sees it.

mod seen;

use crate::support::certificates::Authority;
use crate::support::postgres::Postgres;
use crate::support::{Redis, eventually, free_port, signal, users};
use convoke::connect::connector::Connector;
use convoke::settings::{DatabaseUrl, RedisUrl, Settings};
use convoke::{Context, HandlerError, Worker};
use seen::{DATABASE, Dir, PASSWORD, Seen, TOKEN, bare, dump, family, holds, look, rows};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Stdio};

/// A worker that ends with its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn a_worker_with_secrets_everywhere_shows_none_whatever_happens_to_it() {
    for format in ["text", "json"] {
        let dir = Dir::new();
        let mut redis = Redis::start();
        let mut postgres = Postgres::start();
        set_password(&redis, PASSWORD);
        let url = format!(
            "redis://convoke-worker:{PASSWORD}@127.0.0.1:{}",
            redis.port()
        );
        // Whoever can log in is what pg_hba says; the password travels in the URL all the same.
        let database = format!(
            "postgres://postgres:{DATABASE}@127.0.0.1:{}/postgres",
            postgres.port()
        );
        let (log, out) = (dir.file("log"), dir.file("out"));
        let mut seen = Seen::default();
        let note = |name: &str| {
            let file = dir.file(name);
            format!("env > {file}; tr '\\0' ' ' < /proc/$PPID/cmdline >> {file}.argv")
        };
        let mut command = bare(&[
            "worker",
            "--id=w-1",
            "--log=trace",
            "--log-format",
            format,
            "--heartbeat-ttl=2s",
            "--max-attempts=2",
            "--backoff-base=10ms",
        ]);
        command
            .args(["--exec", &format!("leak.env={}; cat", note("exec"))])
            .args(["--exec", "leak.fail=env >&2; exit 3"])
            .args(["--exec", "leak.crash=kill -9 $$"])
            .env("CONVOKE_REDIS_URL", &url)
            .env("CONVOKE_DATABASE_URL", &database)
            .env(
                "CONVOKE_MCP_SERVER",
                format!("TOKEN={TOKEN}; export TOKEN; {}; sleep 600", note("mcp")),
            )
            .stdout(fs::File::create(&out).unwrap())
            .stderr(fs::File::create(&log).unwrap());
        let mut worker = Running(command.spawn().unwrap());
        let pid = worker.0.id();
        let ask = |seen: &mut Seen, words: &[&str]| {
            let mut command = bare(words);
            command.env("CONVOKE_REDIS_URL", redis.url_for_command(words));
            look(seen, &mut command)
        };
        eventually("the worker answers", || {
            let mut first = Seen::default();
            ask(&mut first, &["request", "leak.env", "--timeout=2s"]) == 0
        });
        // The canary is there, or nothing of this proves anything.
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap();
        for secret in [PASSWORD, DATABASE, TOKEN] {
            assert!(holds(&environment, secret));
        }
        for words in [
            &["request", "leak.env", "--data", "7"][..],
            &["request", "leak.fail"],
            &["publish", "leak.crash"],
            &["health"],
            &["health", "--format=json"],
            &["state", "--format=json"],
            &["metrics", "--detailed"],
            &["metrics", "--format=prometheus"],
            &["discover", "--format=json"],
            &["instances", "--format=json"],
            &["top", "--once"],
            &["task", "create", "leak.env", "--data=1", "--wait"],
            &["batch", "run", "leak.fail", "--items=[1,2]", "--id=b"],
            &["streams", "--format=json"],
            &["pending"],
            &["dead", "list", "--entries", "--format=json"],
            &["tail", "broadcast", "--since", "1h", "--no-follow"],
            &["doctor", "--all", "--format=json"],
        ] {
            ask(&mut seen, words);
        }
        // The MCP server is handed its token; it has a file of its own to show it.
        eventually("the MCP server was started", || {
            let last = fs::read(dir.file("mcp.argv"));
            last.is_ok_and(|argv| !argv.is_empty())
        });
        assert!(holds(&fs::read(dir.file("mcp")).unwrap(), TOKEN));
        let handed = fs::read_to_string(dir.file("mcp")).unwrap();
        for line in handed.lines().filter(|line| !line.starts_with("TOKEN=")) {
            seen.add("environment of the MCP server", line);
        }
        seen.add(
            "environment of a handler",
            fs::read(dir.file("exec")).unwrap(),
        );
        for process in family(pid) {
            let argv = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
            seen.add("arguments of processes", argv);
        }
        seen.add("arguments", fs::read(dir.file("exec.argv")).unwrap());
        seen.add("arguments", fs::read(dir.file("mcp.argv")).unwrap());
        dump(&mut seen, &redis);
        eventually("the ledger has rows", || {
            postgres.sql("select count(*) from convoke_facts").trim() != "0"
        });
        rows(&mut seen, &postgres);

        // Everything fails: the database, the password, the server.
        postgres.kill();
        ask(&mut seen, &["health", "--format=json"]);
        ask(&mut seen, &["publish", "leak.env"]);
        postgres.restart();
        set_password(&redis, "another");
        let text = |path: &str| fs::read_to_string(path).unwrap();
        let before = text(&log).len();
        redis::cmd("CLIENT")
            .arg(&["KILL", "USER", users::WORKER])
            .exec(&mut redis.connect())
            .unwrap();
        eventually("the wrong password is told", || {
            let new = text(&log).split_off(before);
            new.contains("WRONGPASS") || new.contains("uthentication failed")
        });
        redis.kill();
        let before = text(&log).len();
        eventually("the missing server is told, or it has given up", || {
            text(&log).len() > before || worker.0.try_wait().unwrap().is_some()
        });
        // Credentials that are refused end a worker; else it waits for its server.
        if worker.0.try_wait().unwrap().is_none() {
            signal(pid, "TERM");
            worker.0.wait().unwrap();
        }
        seen.add("log", text(&log));
        seen.add("output", text(&out));
        let told = text(&log);
        assert!(told.contains("TRACE") || told.contains("\"level\":\"TRACE\""));
        assert!(!told.is_empty() && told.len() > 10_000, "{}", told.len());
        seen.must_be_clean(40);
    }
}

fn set_password(redis: &Redis, password: &str) {
    redis::cmd("ACL")
        .arg(&[
            "SETUSER",
            users::WORKER,
            "resetpass",
            &format!(">{password}"),
        ])
        .exec(&mut redis.connect())
        .unwrap();
}

/// The commands that connect to a server.
const COMMANDS: [&[&str]; 18] = [
    &["publish", "a.b"],
    &["request", "a.b", "--timeout=100ms"],
    &["health", "--timeout=100ms"],
    &["state", "--timeout=100ms"],
    &["metrics", "--timeout=100ms"],
    &["discover", "--timeout=100ms"],
    &["instances"],
    &["streams"],
    &["pending"],
    &["tail", "broadcast", "--no-follow"],
    &["top", "--once"],
    &["dead", "list"],
    &["dead", "drop", "--id=1-1", "--yes"],
    &["replay", "dead", "--yes"],
    &["task", "list", "--timeout=100ms"],
    &["batch", "list"],
    &["vote", "list"],
    &["doctor", "--all"],
];

#[test]
fn no_command_shows_a_secret_whatever_is_wrong_with_where_it_leads() {
    let redis = Redis::start();
    let closed = free_port();
    let at = |port: u16| format!("redis://convoke-worker:{PASSWORD}@127.0.0.1:{port}");
    let wrong = [
        ("a wrong password", at(redis.port())),
        ("nobody there", at(closed)),
        (
            "no TLS there",
            format!("rediss://:{PASSWORD}@127.0.0.1:{closed}"),
        ),
        ("another scheme", format!("http://:{PASSWORD}@h")),
        ("no host", format!("redis://:{PASSWORD}@")),
        ("no scheme", format!(":{PASSWORD}@h")),
        ("a bad port", format!("redis://:{PASSWORD}@h:{PASSWORD}")),
        (
            "a bad database",
            format!("redis://:{PASSWORD}@127.0.0.1:{}/x", redis.port()),
        ),
        (
            "no such database",
            format!("redis://:{PASSWORD}@127.0.0.1:{}/99", redis.port()),
        ),
        ("no such socket", format!("unix:///nowhere?pass={PASSWORD}")),
        (
            "a slash inside",
            format!("redis://u:{PASSWORD}/x@127.0.0.1:{closed}"),
        ),
    ];
    let mut seen = Seen::default();
    for (why, url) in &wrong {
        for words in COMMANDS {
            let mut command = bare(words);
            command
                .args(["--log", "trace"])
                .env("CONVOKE_REDIS_URL", url)
                .env("CONVOKE_MCP_SERVER", format!("TOKEN={TOKEN} true"));
            let code = look(&mut seen, &mut command);
            assert_ne!(code, 0, "{why}: {words:?}");
        }
    }
    // A worker waits for a server that is not there; it is ended once it has said so.
    for (why, url) in &wrong {
        let dir = Dir::new();
        let log = dir.file("log");
        let mut command = bare(&["worker", "--log=trace"]);
        command
            .env("CONVOKE_REDIS_URL", url)
            .env("CONVOKE_MCP_SERVER", format!("TOKEN={TOKEN} true"))
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log).unwrap());
        let mut worker = Running(command.spawn().unwrap());
        let text = || fs::read_to_string(&log).unwrap();
        eventually(why, || {
            text().contains("WARN") || worker.0.try_wait().unwrap().is_some()
        });
        seen.add(format!("log of a worker with {why}"), text());
    }
    let authority = Authority::new();
    let key = authority.file("ca.key");
    for (name, value) in [
        (
            "CONVOKE_DATABASE_URL",
            format!("postgres://u:{DATABASE}@127.0.0.1:{closed}/db"),
        ),
        (
            "CONVOKE_DATABASE_URL",
            format!("postgres://u:{DATABASE}@h:port/db"),
        ),
        ("CONVOKE_DATABASE_URL", format!("mysql://u:{DATABASE}@h/db")),
        (
            "CONVOKE_DATABASE_URL",
            format!("postgres://127.0.0.1:{closed}/db?password={DATABASE}&sslmode={DATABASE}"),
        ),
    ] {
        for words in [
            &["history"][..],
            &["ledger", "migrate"],
            &["ledger", "status"],
        ] {
            let mut command = bare(words);
            command.args(["--log", "trace"]).env(name, &value);
            assert_ne!(look(&mut seen, &mut command), 0, "{words:?}");
        }
    }
    let mut command = bare(&["streams", "--log=trace"]);
    command
        .env(
            "CONVOKE_REDIS_URL",
            format!("rediss://:{PASSWORD}@127.0.0.1:{closed}"),
        )
        .env("CONVOKE_TLS_CERT", &key)
        .env("CONVOKE_TLS_KEY", &key);
    assert_ne!(look(&mut seen, &mut command), 0);
    let private = fs::read_to_string(&key).unwrap();
    let line = private.lines().nth(1).unwrap();
    assert!(!seen.0.values().any(|bytes| holds(bytes, line)));
    seen.must_be_clean(50);
}

#[test]
fn a_secret_in_an_argument_is_refused_and_not_repeated() {
    let mut seen = Seen::default();
    let urls = [
        format!("--redis-url=redis://:{PASSWORD}@h"),
        format!("--redis-url=redis://u:{PASSWORD}@h:1/0"),
        format!("--redis-url=unix:///s?pass={PASSWORD}"),
        format!("--redis-url=http://:{PASSWORD}@h"),
    ];
    for url in &urls {
        for words in COMMANDS.into_iter().chain([&["worker"][..]]) {
            let mut command = bare(words);
            let ended = command.arg(url).output().unwrap();
            // The place is named by the arguments, which hold it here.
            seen.add(format!("{words:?}"), ended.stdout);
            seen.add(format!("{words:?}"), &ended.stderr);
            assert_eq!(ended.status.code(), Some(2), "{words:?}");
            assert!(holds(
                &ended.stderr,
                "everyone on this machine can read arguments"
            ));
        }
    }
    for url in [
        format!("--database-url=postgres://u:{DATABASE}@h/db"),
        format!("--database-url=postgres://h/db?password={DATABASE}"),
    ] {
        for words in [&["history"][..], &["worker"]] {
            let ended = bare(words).arg(&url).output().unwrap();
            seen.add(format!("{words:?}"), &ended.stderr);
            assert_eq!(ended.status.code(), Some(2), "{words:?}");
        }
    }
    seen.must_be_clean(COMMANDS.len());
}

#[test]
fn help_manual_pages_and_completions_show_no_setting_that_is_set() {
    let dir = Dir::new();
    let mut seen = Seen::default();
    let set = |words: &[&str]| {
        let mut command = bare(words);
        command
            .env("CONVOKE_REDIS_URL", format!("redis://:{PASSWORD}@h"))
            .env(
                "CONVOKE_DATABASE_URL",
                format!("postgres://u:{DATABASE}@h/db"),
            )
            .env("CONVOKE_MCP_SERVER", format!("TOKEN={TOKEN} x"));
        command
    };
    let mut help = vec![vec!["--help"], vec!["-h"], vec!["help"]];
    help.extend(COMMANDS.map(|words| vec![words[0], "--help"]));
    help.push(vec!["worker", "--help"]);
    for words in help {
        assert_eq!(look(&mut seen, &mut set(&words)), 0, "{words:?}");
    }
    look(&mut seen, &mut set(&["--version"]));
    let pages = dir.file("man");
    assert_eq!(look(&mut seen, &mut set(&["man", "--dir", &pages])), 0);
    for page in fs::read_dir(&pages).unwrap() {
        let page = page.unwrap().path();
        seen.add(page.to_string_lossy(), fs::read(&page).unwrap());
    }
    for shell in ["bash", "zsh", "fish"] {
        look(&mut seen, &mut set(&["completions", shell]));
    }
    seen.must_be_clean(60);
}

#[test]
fn a_file_with_a_password_that_everyone_can_read_is_warned_about() {
    let dir = Dir::new();
    let redis = Redis::start();
    let url = redis.url_for(users::MONITOR);
    let closed = format!("redis_url = {url:?}\n");
    let open = dir.write("open.toml", &closed, 0o644);
    let own = dir.write("own.toml", &closed, 0o600);
    let harmless = dir.write("harmless.toml", "namespace = \"cb\"\n", 0o644);
    let warned = |file: &str| {
        let mut command = bare(&["streams", "--config", file]);
        let ended = command.env("CONVOKE_REDIS_URL", &url).output().unwrap();
        let said = String::from_utf8(ended.stderr).unwrap();
        assert!(ended.status.success(), "{said}");
        assert!(!said.contains(users::PASSWORD), "{said}");
        said.contains(&format!("chmod 600 {file}"))
    };
    assert!(warned(&open));
    assert!(!warned(&own));
    assert!(!warned(&harmless));

    // A private key no less.
    let authority = Authority::new();
    authority.sign("client", "DNS:client");
    for (mode, warns) in [(0o644, true), (0o600, false)] {
        let key = authority.file("client.key");
        fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
        let mut command = bare(&["streams"]);
        command
            .env(
                "CONVOKE_REDIS_URL",
                format!("rediss://127.0.0.1:{}", free_port()),
            )
            .env("CONVOKE_TLS_CERT", authority.file("client.pem"))
            .env("CONVOKE_TLS_KEY", &key);
        let said = String::from_utf8(command.output().unwrap().stderr).unwrap();
        assert_eq!(said.contains("chmod 600"), warns, "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_a_library_user_can_print_shows_a_secret() {
    let redis = Redis::start();
    set_password(&redis, PASSWORD);
    let settings = Settings {
        redis_url: RedisUrl::new(format!(
            "redis://convoke-worker:{PASSWORD}@127.0.0.1:{}",
            redis.port()
        )),
        database_url: DatabaseUrl::new(format!("postgres://u:{DATABASE}@h/db")),
        mcp_server: format!("TOKEN={TOKEN} x").into(),
        ..Settings::default()
    };
    let mut seen = Seen::default();
    seen.add("settings", format!("{settings:?} {settings:#?}"));
    let connector = Connector::of(&settings, 1).unwrap();
    seen.add("connector", format!("{connector:?}"));
    let wire = connector.wire().await.unwrap();
    seen.add("wire", format!("{wire:?}"));
    let pooled = connector.pooled().await.unwrap();
    drop(pooled);
    let database = convoke::ledger::Database::new(&settings.database_url).unwrap();
    seen.add("database", format!("{database:?}"));
    let quiet = Settings {
        database_url: DatabaseUrl::default(),
        mcp_server: Default::default(),
        ..settings.clone()
    };
    let explode = async |_: Context, _: u32| -> Result<u32, HandlerError> { panic!("it broke") };
    let builder = Worker::builder().settings(quiet).handler("a.b", explode);
    seen.add("builder", format!("{builder:?}"));
    let worker = builder.build().unwrap();
    seen.add("worker", format!("{worker:?}"));
    seen.must_be_clean(6);
}
