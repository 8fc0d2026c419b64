//! TLS to every node of a cluster, each with a certificate of its own, and the users of `deploy/users.acl` on each.

use crate::rig::{Running, counted_in, double, settings, start};
use crate::support::certificates::Authority;
use crate::support::cluster::{Cluster, node_with};
use crate::support::{free_port, until, users};
use convoke::client::Client;
use convoke::client::publish::Outgoing;
use convoke::connect::connector::Connector;
use convoke::connect::error::BusError;
use convoke::settings::{RedisUrl, Settings};
use convoke::{Context, HandlerError, Worker};
use serde_json::Value;
use std::process::Command;
use std::time::Duration;

const PARTITIONS: u16 = 3;
const EVENTS: u32 = 40;

/// Three primaries that speak TLS, with clients and among themselves, and want to see a certificate.
struct Encrypted {
    cluster: Cluster,
    authority: Authority,
    hosts: String,
}

impl Encrypted {
    fn start() -> Self {
        let authority = Authority::new();
        authority.sign("client", "DNS:worker");
        let ports: Vec<String> = (0..3).map(|_| free_port().to_string()).collect();
        let node = |port: &String| {
            let name = format!("node-{port}");
            authority.sign(&name, "IP:127.0.0.1");
            let options = [
                ["--tls-port", port],
                ["--tls-cluster", "yes"],
                ["--tls-cert-file", &authority.file(&format!("{name}.pem"))],
                ["--tls-key-file", &authority.file(&format!("{name}.key"))],
                ["--tls-ca-cert-file", &authority.file("ca.pem")],
                ["--tls-auth-clients", "yes"],
            ];
            node_with(15_000, options.as_flattened())
        };
        let cluster = Cluster::joined(ports.iter().map(node).collect(), ports.len());
        let hosts = ports.iter().map(|port| format!("127.0.0.1:{port}"));
        let hosts = hosts.collect::<Vec<_>>().join(",");
        Self {
            cluster,
            authority,
            hosts,
        }
    }

    fn settings(&self, user: &str) -> Settings {
        let (password, hosts) = (users::PASSWORD, &self.hosts);
        Settings {
            redis_url: RedisUrl::new(format!("rediss+cluster://{user}:{password}@{hosts}")),
            tls_ca: self.authority.file("ca.pem"),
            tls_cert: self.authority.file("client.pem"),
            tls_key: self.authority.file("client.key"),
            // Each handshake takes a debug build long.
            heartbeat_ttl: Duration::from_secs(60),
            claim_idle: Duration::from_secs(60),
            ..settings(&self.cluster, PARTITIONS)
        }
    }

    fn worker(&self) -> Running {
        let builder = Worker::builder().settings(self.settings(users::WORKER));
        start(
            builder
                .handler("near.double", double)
                .handler("near.tell", tells),
        )
    }

    /// What a command prints, line by line.
    async fn told(&self, user: &str, words: &[&str]) -> Vec<Value> {
        let settings = self.settings(user);
        let mut command = Command::new(env!("CARGO_BIN_EXE_convoke"));
        command
            .args(words)
            .args(["--format", "json"])
            .env("CONVOKE_REDIS_URL", settings.redis_url.expose())
            .env("CONVOKE_PARTITIONS", PARTITIONS.to_string())
            .env("CONVOKE_TLS_CA", &settings.tls_ca)
            .env("CONVOKE_TLS_CERT", &settings.tls_cert)
            .env("CONVOKE_TLS_KEY", &settings.tls_key);
        let done = tokio::task::spawn_blocking(move || command.output().unwrap());
        let done = done.await.unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let (out, err) = (text(done.stdout), text(done.stderr));
        // It found something, as it does on every server of a test.
        let found = words[0] == "doctor" && done.status.code() == Some(1);
        assert!(done.status.success() || found, "{words:?}: {out}{err}");
        let lines = out.lines();
        lines
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

/// Publishes into another slot.
async fn tells(context: Context, number: u32) -> Result<u32, HandlerError> {
    context.publish("far.seen", &number)?;
    Ok(number)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "handshakes of a debug build take long beside other work: scripts/torture runs it"]
async fn workers_clients_and_commands_speak_tls_with_every_node_as_their_users() {
    let encrypted = Encrypted::start();
    let worker = encrypted.worker();
    let client = Client::of(&encrypted.settings(users::PUBLISHER)).unwrap();
    for number in 0..EVENTS {
        for kind in ["near.double", "near.tell"] {
            let asked = Outgoing::new(kind, &number).subject(format!("s-{number}"));
            let reply = client.request(asked, Duration::from_secs(60)).await;
            let reply = reply.unwrap().decode::<u32>().unwrap();
            let factor = if kind == "near.double" { 2 } else { 1 };
            assert_eq!(reply, factor * number);
        }
    }
    client.close().await;
    let arrived = || counted_in(&encrypted.cluster, "far", PARTITIONS, "events", "data");
    until("what runs published arrived", || async {
        arrived().len() == EVENTS as usize
    })
    .await;
    assert!(arrived().values().all(|count| *count == 1), "doubled");

    let streams = encrypted.told(users::MONITOR, &["streams", "events:near"]);
    assert_eq!(streams.await.len(), usize::from(PARTITIONS));
    let domains = encrypted.told(users::OPERATOR, &["domain", "list"]).await;
    assert_eq!(domains[0]["partitions"], PARTITIONS, "{domains:?}");
    let asked = ["request", "near.double", "--data", "21"];
    let reply = encrypted.told(users::PUBLISHER, &asked).await;
    assert!(reply[0].to_string().contains("42"), "{reply:?}");
    let findings = encrypted.told(users::OPERATOR, &["doctor", "--all"]).await;
    let tls = findings.iter().filter(|finding| {
        let what = finding["what"].as_str().unwrap();
        finding["check"] == "encryption" && what.contains("TLS")
    });
    assert_eq!(tls.count(), 3, "{findings:?}");
    // Whether anybody gets in without a login was tried by TLS as well.
    let tried = findings.iter().any(|it| {
        let what = it["what"].as_str().unwrap();
        what.contains("could not be tried")
    });
    assert!(!tried, "{findings:?}");
    worker.stop().await;
}

/// What each node says to every kind of connection that does not wait for the others.
async fn refusals(settings: &Settings, cluster: &Cluster) -> Vec<String> {
    let said = |outcome: Result<(), BusError>| match outcome {
        Err(error) => error.to_string(),
        Ok(()) => "connected".to_owned(),
    };
    let connector = Connector::of(settings, 2).unwrap();
    let mut all = Vec::new();
    for partition in 0..PARTITIONS {
        let key = format!("{{cb:near:{partition}}}:events");
        let there = connector.toward(&key);
        let at = cluster.owner(&key);
        for outcome in [
            there.dedicated().await.map(drop),
            there.wire().await.map(drop),
            there.blocking_wire(Duration::ZERO).await.map(drop),
        ] {
            all.push(format!("node {at}: {}", said(outcome)));
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_node_is_spoken_to_whose_authority_is_not_trusted_and_none_lets_a_stranger_in() {
    let encrypted = Encrypted::start();
    let good = encrypted.settings(users::WORKER);
    // On a busy machine a node may answer too late, and that is said.
    let asked = async |settings: &Settings, says: &str| {
        until(says, || async {
            let said = refusals(settings, &encrypted.cluster).await;
            let all = said.iter().all(|message| message.contains(says));
            if !all {
                eprintln!("{said:#?}");
            }
            all
        })
        .await;
    };
    asked(&good, "connected").await;
    // One node's plain URL leads to all of them as well.
    let (all, one) = (&encrypted.hosts, encrypted.hosts.split(',').next().unwrap());
    let plain = good.redis_url.expose().replace(all, one);
    let plain = RedisUrl::new(plain.replace("rediss+cluster://", "rediss://"));
    let found = std::sync::Mutex::new(None);
    until("it says that it is a node of a cluster", || async {
        let mut settings = good.clone();
        settings.redis_url = plain.clone();
        let asked = settings.found().await.ok();
        let is_found = asked.is_some();
        *found.lock().unwrap() = asked;
        is_found
    })
    .await;
    let found = found.into_inner().unwrap().unwrap();
    assert!(found.redis_url.is_cluster());
    asked(&found, "connected").await;
    let stranger = Authority::new();
    stranger.sign("client", "DNS:worker");
    let mut other = good.clone();
    other.tls_ca = stranger.file("ca.pem");
    asked(&other, "tls_ca").await;
    let mut other = good.clone();
    (other.tls_cert, other.tls_key) = (String::new(), String::new());
    asked(&other, "set tls_cert and tls_key").await;
    let mut other = good.clone();
    other.tls_cert = stranger.file("client.pem");
    other.tls_key = stranger.file("client.key");
    asked(&other, "tls_cert").await;
    let mut other = good.clone();
    other.redis_url = RedisUrl::new(good.redis_url.expose().replace(":test@", ":wrong@"));
    asked(&other, "password").await;
}
