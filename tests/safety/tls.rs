//! Connections by TLS, with certificates on both sides, to a real server; and what is said when one
//! of them is wrong.

use crate::support::certificates::Authority;
use crate::support::{Redis, free_port, users};
use convoke::client::publish::Outgoing;
use convoke::client::{Client, ClientOptions};
use convoke::connect::connector::Connector;
use convoke::connect::error::BusError;
use convoke::settings::{RedisUrl, Settings};
use convoke::{Context, HandlerError, Worker};
use std::process::Command;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const HERE: &str = "IP:127.0.0.1,DNS:localhost";

/// A server that speaks TLS on a second port and wants to see a certificate.
struct Server {
    redis: Redis,
    port: u16,
    authority: Authority,
}

impl Server {
    /// One whose own certificate is made by `sign`.
    fn with(sign: impl FnOnce(&Authority)) -> Self {
        let authority = Authority::new();
        sign(&authority);
        authority.sign("client", "DNS:worker");
        let port = free_port();
        let redis = Redis::with(&[
            "--save",
            "",
            "--tls-port",
            &port.to_string(),
            "--tls-cert-file",
            &authority.file("server.pem"),
            "--tls-key-file",
            &authority.file("server.key"),
            "--tls-ca-cert-file",
            &authority.file("ca.pem"),
            "--tls-auth-clients",
            "yes",
        ]);
        Self {
            redis,
            port,
            authority,
        }
    }

    fn start() -> Self {
        Self::with(|authority| authority.sign("server", HERE))
    }

    fn url(&self, user: &str) -> String {
        let password = users::PASSWORD;
        format!("rediss://{user}:{password}@127.0.0.1:{}", self.port)
    }

    /// The settings of that user with every certificate as it must be.
    fn settings(&self, user: &str) -> Settings {
        Settings {
            redis_url: RedisUrl::new(self.url(user)),
            tls_ca: self.authority.file("ca.pem"),
            tls_cert: self.authority.file("client.pem"),
            tls_key: self.authority.file("client.key"),
            ..Settings::default()
        }
    }
}

/// What every kind of connection says: dedicated, pooled, for looking, and the hand-written one.
async fn refusals(settings: &Settings) -> Vec<String> {
    let connector = Connector::of(settings, 2).unwrap();
    let said = |outcome: Result<(), BusError>| match outcome {
        Err(error) => error.to_string(),
        Ok(()) => "connected".to_owned(),
    };
    vec![
        said(connector.dedicated().await.map(drop)),
        said(connector.unchecked().await.map(drop)),
        said(connector.ping().await.map(drop)),
        said(connector.wire().await.map(drop)),
        said(connector.blocking_wire(Duration::ZERO).await.map(drop)),
    ]
}

#[track_caller]
fn all_say(said: &[String], advice: &[&str]) {
    assert_eq!(said.len(), 5);
    for message in said {
        for part in advice {
            assert!(message.contains(part), "{part:?} is not in {message:?}");
        }
    }
}

/// The command with those settings in its environment.
fn convoke(settings: &Settings, words: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_convoke"));
    command
        .args(words)
        .env("CONVOKE_REDIS_URL", settings.redis_url.expose())
        .env("CONVOKE_TLS_CA", &settings.tls_ca)
        .env("CONVOKE_TLS_CERT", &settings.tls_cert)
        .env("CONVOKE_TLS_KEY", &settings.tls_key);
    let done = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let code = done.status.code().expect("not killed");
    (code, text(&done.stdout), text(&done.stderr))
}

async fn double(_: Context, n: u32) -> Result<u32, HandlerError> {
    Ok(2 * n)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_a_client_and_the_commands_work_with_certificates_on_both_sides() {
    let server = Server::start();
    all_say(
        &refusals(&server.settings(users::WORKER)).await,
        &["connected"],
    );
    let worker = Worker::builder()
        .settings(server.settings(users::WORKER))
        .handler("number.double", double)
        .build()
        .unwrap();
    let drain = CancellationToken::new();
    let running = tokio::spawn(worker.run_until(drain.clone()));
    let settings = server.settings(users::PUBLISHER);
    let connector = Connector::of(&settings, 2).unwrap();
    let options = ClientOptions::from(&settings);
    let client = Client::new(connector, settings.keys().unwrap(), options).unwrap();
    for n in 0..20_u32 {
        let asked = Outgoing::new("number.double", &n);
        let reply = client
            .request(asked, Duration::from_secs(30))
            .await
            .unwrap();
        assert_eq!(reply.decode::<u32>().unwrap(), 2 * n);
    }
    client.close().await;
    for (user, words, says) in [
        (
            users::PUBLISHER,
            &["request", "number.double", "--data", "21"][..],
            "42",
        ),
        (users::MONITOR, &["streams"], "cb:events:number"),
        (users::OPERATOR, &["health"], "healthy"),
        (users::OPERATOR, &["doctor", "--all"], "encryption: TLS"),
    ] {
        let settings = server.settings(user);
        let (code, out, err) = tokio::task::spawn_blocking(move || convoke(&settings, words))
            .await
            .unwrap();
        assert!(code == 0 || words[0] == "doctor", "{words:?}: {err}");
        assert!(out.contains(says), "{words:?}: {out}");
        // Whether anybody gets in without a login was tried by TLS as well.
        assert!(!out.contains("could not be tried"), "{out}");
    }
    drain.cancel();
    running.await.unwrap().unwrap();
}

#[tokio::test]
async fn flags_and_a_file_give_the_same_settings_as_the_environment() {
    let server = Server::start();
    let settings = server.settings(users::MONITOR);
    let bare = Settings {
        tls_ca: String::new(),
        tls_cert: String::new(),
        tls_key: String::new(),
        ..settings.clone()
    };
    let flags = [
        "streams",
        "--tls-ca",
        &settings.tls_ca,
        "--tls-cert",
        &settings.tls_cert,
        "--tls-key",
        &settings.tls_key,
    ];
    assert_eq!(convoke(&bare, &flags).0, 0);
    let file = server.authority.file("convoke.toml");
    let text = format!(
        "tls_ca = {:?}\ntls_cert = {:?}\ntls_key = {:?}\n",
        settings.tls_ca, settings.tls_cert, settings.tls_key
    );
    std::fs::write(&file, text).unwrap();
    assert_eq!(convoke(&bare, &["streams", "--config", &file]).0, 0);
    assert_eq!(convoke(&bare, &["streams"]).0, 1);
}

#[tokio::test]
async fn a_server_of_an_authority_that_is_not_trusted_is_refused() {
    let server = Server::start();
    let stranger = Authority::new();
    let mut settings = server.settings(users::WORKER);
    settings.tls_ca = stranger.file("ca.pem");
    all_say(&refusals(&settings).await, &["tls_ca"]);
    let (code, _, said) = convoke(&settings, &["streams"]);
    assert!(code == 1 && said.contains("tls_ca"), "{said}");
}

#[tokio::test]
async fn a_server_with_the_certificate_of_another_name_is_refused() {
    let server = Server::with(|authority| authority.sign("server", "DNS:elsewhere"));
    let settings = server.settings(users::WORKER);
    all_say(&refusals(&settings).await, &["another name", "redis_url"]);
    let (code, _, said) = convoke(&settings, &["streams"]);
    assert!(code == 1 && said.contains("another name"), "{said}");
}

#[tokio::test]
async fn a_server_whose_certificate_has_expired_is_refused() {
    let server = Server::with(|authority| authority.sign_expired("server", HERE));
    let settings = server.settings(users::WORKER);
    all_say(&refusals(&settings).await, &["has expired: renew it"]);
    let (code, _, said) = convoke(&settings, &["streams"]);
    assert!(
        code == 1 && said.contains("has expired: renew it"),
        "{said}"
    );
}

#[tokio::test]
async fn without_a_client_certificate_the_server_refuses_and_the_settings_are_named() {
    let server = Server::start();
    let mut settings = server.settings(users::WORKER);
    (settings.tls_cert, settings.tls_key) = (String::new(), String::new());
    all_say(&refusals(&settings).await, &["set tls_cert and tls_key"]);
    let (code, _, said) = convoke(&settings, &["streams"]);
    assert!(code == 1 && said.contains("tls_cert and tls_key"), "{said}");
}

#[tokio::test]
async fn a_client_certificate_that_the_server_does_not_take_is_named() {
    let server = Server::start();
    let stranger = Authority::new();
    stranger.sign("client", "DNS:worker");
    let mut settings = server.settings(users::WORKER);
    settings.tls_cert = stranger.file("client.pem");
    settings.tls_key = stranger.file("client.key");
    all_say(&refusals(&settings).await, &["tls_cert"]);

    server.authority.sign_expired("old", "DNS:worker");
    settings.tls_cert = server.authority.file("old.pem");
    settings.tls_key = server.authority.file("old.key");
    all_say(&refusals(&settings).await, &["tls_cert has expired"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_does_not_speak_tls_is_not_spoken_to() {
    let server = Server::start();
    let mut settings = server.settings(users::WORKER);
    // Redis waits for the end of the line that it takes the greeting for.
    let plain = server.redis.port().to_string();
    let url = server.url(users::WORKER);
    settings.redis_url = RedisUrl::new(url.replace(&server.port.to_string(), &plain));
    let connector = Connector::of(&settings, 1).unwrap();
    assert!(connector.wire().await.is_err());
    // Others answer at once.
    let talkative = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = talkative.local_addr().unwrap().port().to_string();
    std::thread::spawn(move || {
        for client in talkative.incoming() {
            std::io::Write::write_all(&mut client.unwrap(), b"SSH-2.0-other\r\n").unwrap();
        }
    });
    settings.redis_url = RedisUrl::new(url.replace(&server.port.to_string(), &port));
    all_say(&refusals(&settings).await, &["does not speak TLS"]);
}

#[test]
fn files_that_can_not_be_used_are_wrong_usage_and_named() {
    let authority = Authority::new();
    authority.sign("one", "DNS:one");
    authority.sign("two", "DNS:two");
    let empty = authority.file("empty.pem");
    std::fs::write(&empty, "nothing\n").unwrap();
    let good = Settings {
        redis_url: RedisUrl::new("rediss://127.0.0.1:1"),
        tls_ca: authority.file("ca.pem"),
        tls_cert: authority.file("one.pem"),
        tls_key: authority.file("one.key"),
        ..Settings::default()
    };
    assert!(Connector::of(&good, 1).is_ok());
    let dir = authority.dir().to_string_lossy().into_owned();
    type Change<'a> = Box<dyn Fn(&mut Settings) + 'a>;
    let changes: [(&str, Change<'_>); 6] = [
        ("tls_ca: ", Box::new(|s| s.tls_ca = "/nowhere.pem".into())),
        ("tls_ca: ", Box::new(|s| s.tls_ca = empty.clone())),
        (
            "tls_cert: ",
            Box::new(|s| s.tls_cert = authority.file("one.key")),
        ),
        (
            "tls_key: ",
            Box::new(|s| s.tls_key = authority.file("one.pem")),
        ),
        ("tls_key: ", Box::new(|s| s.tls_key = dir.clone())),
        (
            "the key is not the certificate's",
            Box::new(|s| s.tls_key = authority.file("two.key")),
        ),
    ];
    for (says, change) in changes {
        let mut settings = good.clone();
        change(&mut settings);
        let message = Connector::of(&settings, 1).unwrap_err().to_string();
        assert!(message.contains(says), "{message}");
        let (code, _, said) = convoke(&settings, &["streams"]);
        assert!(code == 1 && said.contains(says), "{said}");
    }
}
