//! A primary, two replicas and three Sentinels that watch them, on loopback.
//!
//! Each node is reached through a gate of its own: by clients, by the other nodes and by Sentinels,
//! who come from addresses of their own. So a node can be cut off from its peers while its clients
//! still reach it, which is what loses writes.

#![allow(dead_code)] // Each test binary uses a part.

use super::{Redis, eventually, free_port, new_directory, users};
use redis::Value;
use std::collections::HashMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// The name under which the Sentinels watch the primary.
pub(crate) const SERVICE: &str = "bus";
/// Who asks the Sentinels: it may do nothing else.
const USER: &str = "convoke-sentinel";
/// How long the primary may be silent.
pub(crate) const DOWN_AFTER: Duration = Duration::from_millis(1000);

/// What a gate lets through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Gate {
    /// Nodes and Sentinels are cut off: nothing arrives, nothing is refused.
    pub(crate) cut_from_peers: bool,
    /// Clients' connections below that number are half-open: dead, and nobody was told.
    pub(crate) dead_below: u32,
}

impl Gate {
    fn passes(self, from: IpAddr, number: u32) -> bool {
        let peer = matches!(from, IpAddr::V4(from) if from.octets()[2] == PEERS);
        match peer {
            true => !self.cut_from_peers,
            false => number >= self.dead_below,
        }
    }
}

/// Peers come from 127.0.1.*.
const PEERS: u8 = 1;

/// A server of the deployment.
pub(crate) struct Node {
    pub(crate) redis: Redis,
    /// The port that everyone connects to.
    pub(crate) port: u16,
    gate: watch::Sender<Gate>,
    accepted: std::sync::Arc<AtomicU32>,
}

impl Node {
    fn start(runtime: &Runtime, number: usize, primary: Option<u16>, options: &[&str]) -> Self {
        let port = free_port();
        let (front, source) = (port.to_string(), format!("127.0.{PEERS}.{}", number + 1));
        let primary = primary.map(|port| port.to_string());
        let mut all = vec!["--save", "", "--appendonly", "yes"];
        all.extend([
            "--appendfsync",
            "everysec",
            "--repl-diskless-sync-delay",
            "0",
        ]);
        all.extend(["--bind-source-addr", &source, "--repl-timeout", "5"]);
        all.extend(["--repl-ping-replica-period", "1"]);
        all.extend(["--replica-announce-ip", "127.0.0.1"]);
        all.extend(["--replica-announce-port", &front]);
        if let Some(primary) = &primary {
            all.extend(["--replicaof", "127.0.0.1", primary]);
        }
        all.extend(options);
        let redis = Redis::with(&all);
        let (gate, open) = watch::channel(Gate::default());
        let accepted = std::sync::Arc::new(AtomicU32::new(0));
        let (behind, counter) = (redis.port(), accepted.clone());
        let listener = std::net::TcpListener::bind(("127.0.0.1", port)).expect("a free port");
        listener.set_nonblocking(true).expect("not blocking");
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).expect("a listener");
            while let Ok((client, from)) = listener.accept().await {
                let number = counter.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(forward(client, from.ip(), number, behind, open.clone()));
            }
        });
        Self {
            redis,
            port,
            gate,
            accepted,
        }
    }

    /// Cuts it off from the other nodes and the Sentinels, or heals that.
    pub(crate) fn cut(&self, cut: bool) {
        self.gate.send_modify(|gate| gate.cut_from_peers = cut);
    }

    /// Every client's connection that there is becomes half-open, for good.
    pub(crate) fn break_connections(&self) {
        let number = self.accepted.load(Ordering::SeqCst);
        self.gate.send_modify(|gate| gate.dead_below = number);
    }

    /// A line of its `INFO`.
    pub(crate) fn info(&self, name: &str) -> String {
        let mut connection = self.redis.connect();
        let text: String = redis::cmd("INFO").query(&mut connection).expect("INFO");
        let mut lines = text.lines().filter_map(|line| line.split_once(':'));
        let found = lines.find(|(found, _)| *found == name);
        found.map_or_else(String::new, |(_, value)| value.trim().to_owned())
    }

    /// Runs a command given as words.
    pub(crate) fn run(&self, words: &str) -> Value {
        let answer = command(words).query(&mut self.redis.connect());
        answer.expect("an answer")
    }

    /// Waits until both replicas have all that was written.
    pub(crate) fn until_replicated(&self) {
        let mut connection = self.redis.connect();
        let sync = command("SET test:sync 1").query::<()>(&mut connection);
        sync.expect("stored");
        eventually("both replicas have it", || {
            let replicas: redis::RedisResult<u32> = command("WAIT 2 100").query(&mut connection);
            replicas.is_ok_and(|replicas| replicas == 2)
        });
    }
}

fn command(words: &str) -> redis::Cmd {
    let mut words = words.split(' ');
    let mut command = redis::cmd(words.next().expect("a command"));
    words.for_each(|word| {
        command.arg(word);
    });
    command
}

async fn forward(
    client: TcpStream,
    from: IpAddr,
    number: u32,
    port: u16,
    mut open: watch::Receiver<Gate>,
) {
    let passes = move |gate: &Gate| gate.passes(from, number);
    if open.wait_for(passes).await.is_err() {
        return;
    }
    let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await else {
        return;
    };
    client.set_nodelay(true).ok();
    server.set_nodelay(true).ok();
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    // Each direction ends by itself: whoever closes is noticed only through an open gate.
    let back = tokio::spawn(pump(from_server, to_client, open.clone(), from, number));
    pump(from_client, to_server, open, from, number).await;
    back.abort();
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut open: watch::Receiver<Gate>,
    peer: IpAddr,
    number: u32,
) {
    let mut bytes = vec![0; 65_536];
    loop {
        let read = from.read(&mut bytes).await.unwrap_or(0);
        let passes = |gate: &Gate| gate.passes(peer, number);
        if open.wait_for(passes).await.is_err() || read == 0 {
            return;
        }
        if to.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
}

/// A Sentinel.
pub(crate) struct Sentinel {
    pub(crate) port: u16,
    dir: PathBuf,
    child: Child,
}

impl Sentinel {
    fn start(number: usize, primary: u16) -> Self {
        let dir = new_directory("sentinel");
        let port = free_port();
        let config = format!(
            "port {port}\nbind 127.0.0.1\nbind-source-addr 127.0.{PEERS}.{}\ndir {}\n\
             sentinel announce-ip 127.0.0.1\n\
             user {USER} on >{} -@all +sentinel|master\n\
             sentinel monitor {SERVICE} 127.0.0.1 {primary} 2\n\
             sentinel down-after-milliseconds {SERVICE} {}\n\
             sentinel failover-timeout {SERVICE} 3000\nsentinel parallel-syncs {SERVICE} 2\n",
            number + 101,
            dir.display(),
            users::PASSWORD,
            DOWN_AFTER.as_millis(),
        );
        let file = dir.join("sentinel.conf");
        fs::write(&file, config).expect("a configuration");
        let log = fs::File::create(dir.join("log")).expect("a log file");
        let child = Command::new("redis-server")
            .arg(&file)
            .arg("--sentinel")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .expect("redis-server starts");
        eventually("a Sentinel answers", || super::answers(port, b"+PONG"));
        Self { port, dir, child }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Runs a command given as words.
    pub(crate) fn run(&self, words: &str) -> redis::RedisResult<Value> {
        self.run_within(words, Duration::from_secs(2))
    }

    fn run_within(&self, words: &str, patience: Duration) -> redis::RedisResult<Value> {
        let client = redis::Client::open(format!("redis://127.0.0.1:{}", self.port))?;
        let mut connection = client.get_connection_with_timeout(patience)?;
        connection.set_read_timeout(Some(patience))?;
        command(words).query(&mut connection)
    }

    /// What it says of the primary.
    pub(crate) fn primary(&self) -> HashMap<String, String> {
        let told = self.run(&format!("SENTINEL MASTER {SERVICE}"));
        let told = told.and_then(|value| Ok(redis::from_redis_value(value)?));
        told.unwrap_or_default()
    }

    fn kill(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking()
            && let Ok(log) = fs::read_to_string(self.dir.join("log"))
        {
            let tail: Vec<&str> = log.lines().rev().take(40).collect();
            eprintln!("--- Sentinel on port {} ---", self.port);
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        }
        fs::remove_dir_all(&self.dir).ok();
    }
}

/// Three nodes and three Sentinels.
pub(crate) struct Deployment {
    pub(crate) nodes: Vec<Node>,
    pub(crate) sentinels: Vec<Sentinel>,
    gates: Option<Runtime>,
}

impl Deployment {
    /// Started, and every Sentinel knows everyone.
    pub(crate) fn start() -> Self {
        Self::with(&[])
    }

    /// The same, with further options of the nodes.
    pub(crate) fn with(options: &[&str]) -> Self {
        let gates = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let mut nodes = vec![Node::start(&gates, 0, None, options)];
        for number in 1..3 {
            let primary = nodes[0].port;
            nodes.push(Node::start(&gates, number, Some(primary), options));
        }
        let replicated = || nodes[0].info("connected_slaves") == "2";
        eventually("the replicas follow", replicated);
        let primary = nodes[0].port;
        let sentinels = (0..3).map(|number| Sentinel::start(number, primary));
        let deployment = Self {
            sentinels: sentinels.collect(),
            nodes,
            gates: Some(gates),
        };
        deployment.until_whole();
        deployment
    }

    /// `redis+sentinel://…` for a worker.
    pub(crate) fn url(&self) -> String {
        self.url_for(users::WORKER)
    }

    /// `redis+sentinel://…` for a user of `deploy/users.acl`.
    pub(crate) fn url_for(&self, user: &str) -> String {
        let ports = self
            .sentinels
            .iter()
            .map(|s| format!("127.0.0.1:{}", s.port));
        let ports: Vec<String> = ports.collect();
        format!(
            "redis+sentinel://{user}:{password}@{}/{SERVICE}?sentinel_user={USER}&sentinel_password={password}",
            ports.join(","),
            password = users::PASSWORD,
        )
    }

    /// The node that all Sentinels name, if they do.
    pub(crate) fn named(&self) -> Option<usize> {
        let mut ports = self.sentinels.iter().map(|sentinel| {
            let told = sentinel.primary();
            told.get("port").and_then(|port| port.parse::<u16>().ok())
        });
        let port = ports.next()??;
        let all = ports.all(|other| other == Some(port));
        let at = self.nodes.iter().position(|node| node.port == port);
        at.filter(|_| all)
    }

    /// The primary; waits until all Sentinels name the same.
    pub(crate) fn primary(&self) -> usize {
        let mut found = None;
        eventually("the Sentinels agree", || {
            found = self.named();
            found.is_some()
        });
        found.expect("found")
    }

    /// Waits until another one than that is the primary.
    pub(crate) fn until_moved(&self, from: usize) -> usize {
        let mut found = None;
        eventually("another primary takes over", || {
            found = self.named().filter(|at| *at != from);
            found.is_some_and(|at| self.nodes[at].info("role") == "master")
        });
        found.expect("found")
    }

    /// Waits until the primary has two replicas that follow, and every Sentinel knows everyone.
    pub(crate) fn until_whole(&self) {
        eventually("two replicas follow", || {
            // Under load it may move again by itself.
            let Some(primary) = self.named() else {
                return false;
            };
            let node = &self.nodes[primary];
            let follows = |line: &str| {
                let line = node.info(line);
                line.contains("state=online") && (line.contains("lag=0") || line.contains("lag=1"))
            };
            node.info("connected_slaves") == "2" && follows("slave0") && follows("slave1")
        });
        eventually("every Sentinel knows everyone", || {
            self.sentinels.iter().all(|sentinel| {
                let told = sentinel.primary();
                let is = |name: &str, value: &str| told.get(name).is_some_and(|v| v == value);
                is("num-other-sentinels", "2") && is("num-slaves", "2") && is("flags", "master")
            })
        });
    }

    /// Has every Sentinel run a command given as words.
    pub(crate) fn tell(&self, words: &str) {
        for sentinel in &self.sentinels {
            let answer = sentinel.run_within(words, Duration::from_secs(30));
            answer.expect("an answer");
        }
    }

    /// Starts a node that was killed, as a replica of the primary: what its rewritten configuration
    /// would have made it.
    pub(crate) fn revive(&mut self, node: usize) {
        let primary = self.nodes[self.primary()].port;
        self.nodes[node].redis.restart();
        self.nodes[node].run(&format!("REPLICAOF 127.0.0.1 {primary}"));
    }
}

impl Drop for Deployment {
    fn drop(&mut self) {
        // Another runtime may be what drops it, and that must not wait.
        if let Some(gates) = self.gates.take() {
            gates.shutdown_background();
        }
    }
}
