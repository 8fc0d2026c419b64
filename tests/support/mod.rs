//! Starts real servers for tests: each on a free port, in a directory of its own, stopped by pid.
//!
//! Every server has the users of `deploy/users.acl`. What is tested logs in as one of them; the
//! default user is there for the test's own seeding and looking.

#![allow(dead_code)] // Each test binary uses a part.

pub(crate) mod ballots;
pub(crate) mod between;
pub(crate) mod certificates;
pub(crate) mod cluster;
pub(crate) mod fleet;
pub(crate) mod links;
pub(crate) mod mcp;
pub(crate) mod patterns;
pub(crate) mod postgres;
pub(crate) mod proxy;
pub(crate) mod router;
pub(crate) mod sentinel;
pub(crate) mod store;
pub(crate) mod tagged;
pub(crate) mod torture;
pub(crate) mod users;

use convoke::protocol::keys::Keys;
use std::collections::HashMap;
use std::fs;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, UNIX_EPOCH};

/// A `redis-server` of one test's own.
pub(crate) struct Redis {
    port: u16,
    dir: PathBuf,
    child: Option<Child>,
    options: Vec<String>,
    environment: Vec<(&'static str, String)>,
    /// Whether what is tested is expected to try what it may not.
    may_refuse: bool,
    /// It is a node of a cluster in the place of a server.
    cluster: Option<OnCluster>,
}

/// `TEST_CLUSTER` has each test use a cluster in the place of a server.
struct OnCluster {
    /// Where tests look by plain names.
    router: router::Router,
    /// The other nodes.
    others: Vec<Redis>,
}

/// Of how many nodes the cluster is that takes a server's place: `TEST_CLUSTER` says it.
fn nodes() -> Option<usize> {
    let told = std::env::var("TEST_CLUSTER").ok()?;
    Some(told.parse().expect("TEST_CLUSTER: how many nodes"))
}

/// The names of keys as the servers of this run have them.
pub(crate) fn keys() -> Keys {
    match nodes() {
        None => Keys::new("cb").expect("a namespace"),
        Some(_) => Keys::tagged("cb", 1).expect("a namespace"),
    }
}

/// The name of a key as the servers of this run have it; of what each slot has, in the slot of a domain's first
/// partition.
pub(crate) fn name(domain: &str, plain: &str) -> String {
    let tag = format!("{{cb:{domain}:0}}");
    let tag = Some(tag.as_str()).filter(|_| !["system", "task", "inbox"].contains(&domain));
    match nodes() {
        None => plain.to_owned(),
        Some(_) => tagged::tagged(plain, tag),
    }
}

/// The name of a key in the slot of a domain's first partition, whatever it is of: for what one step shall write to.
pub(crate) fn beside(domain: &str, plain: &str) -> String {
    in_slot(&format!("{{cb:{domain}:0}}"), plain)
}

/// The same in the slot of the control plane.
pub(crate) fn beside_control(plain: &str) -> String {
    in_slot("{cb}", plain)
}

fn in_slot(tag: &str, plain: &str) -> String {
    match plain.strip_prefix("cb:").filter(|_| is_cluster()) {
        Some(rest) => format!("{tag}:{rest}"),
        None => plain.to_owned(),
    }
}

/// How many processes a server of this run is.
pub(crate) fn size() -> usize {
    nodes().unwrap_or(1)
}

/// Whether this run's servers are clusters.
pub(crate) fn is_cluster() -> bool {
    nodes().is_some()
}

/// How many runs a worker is to have room for, so that there is room for that many in each lane of events: on a cluster
/// each domain has a lane of its own, and they share what there is.
pub(crate) fn room(each: usize, domains: usize) -> usize {
    match nodes() {
        None => each,
        Some(_) => each * domains,
    }
}

/// Whether this run's servers are clusters. What does not apply there is skipped then, and says why.
pub(crate) fn skip_on_cluster(why: &str) -> bool {
    let skipped = is_cluster();
    if skipped {
        eprintln!("skipped on a cluster: {why}");
    }
    skipped
}

impl Redis {
    /// A server without persistence.
    pub(crate) fn start() -> Self {
        Self::bus(&["--save", "", "--appendonly", "no"])
    }

    /// A server, or a cluster in its place.
    pub(crate) fn bus(options: &[&str]) -> Self {
        let Some(count) = nodes() else {
            return Self::with(options);
        };
        let cluster = cluster::Cluster::of(count, options);
        let mut nodes = cluster.nodes;
        let ports = nodes.iter().map(Redis::port).collect();
        let mut first = nodes.remove(0);
        first.cluster = Some(OnCluster {
            router: router::Router::to(ports),
            others: nodes,
        });
        first
    }

    /// A server that survives `kill -9`: everything acknowledged is in its append-only file. With
    /// `everysec` it is not where the disk is at an fsync: the server puts off its writes for that long.
    pub(crate) fn durable() -> Self {
        Self::bus(&[
            "--save",
            "",
            "--appendonly",
            "yes",
            "--appendfsync",
            "always",
        ])
    }

    /// A server with further options of the command line.
    pub(crate) fn with(options: &[&str]) -> Self {
        let mut redis = Self {
            port: free_port(),
            dir: new_directory("test"),
            child: None,
            options: options.iter().map(|&option| option.to_owned()).collect(),
            environment: Vec::new(),
            may_refuse: false,
            cluster: None,
        };
        fs::write(redis.dir.join("users.acl"), users::with_admin()).expect("the users");
        redis.restart();
        redis
    }

    /// A server whose clock can be set.
    pub(crate) fn with_a_clock() -> Self {
        Self::start().clocked()
    }

    /// The same server, started again with a clock that can be set.
    pub(crate) fn clocked(self) -> Self {
        let mut redis = self;
        let (library, offset) = (redis.dir.join("clock.so"), redis.dir.join("clock"));
        let built = Command::new("cc")
            .args(["-O1", "-shared", "-fPIC", "-o"])
            .arg(&library)
            .arg(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/tests/support/clock.c"
            ))
            .status();
        assert!(built.expect("cc runs").success(), "clock.c is built");
        redis.environment = vec![
            ("LD_PRELOAD", library.display().to_string()),
            ("CLOCK_OFFSET", offset.display().to_string()),
        ];
        redis.show_clock([0, 0]);
        let environment = redis.environment.clone();
        for other in redis.others_mut() {
            other.environment = environment.clone();
        }
        redis.restart();
        redis
    }

    /// Has the server's clock be ahead by this many seconds from now on.
    pub(crate) fn set_clock(&self, seconds: i64) {
        self.show_clock([seconds, 0]);
    }

    /// Has the server's clock stand still at that time (Unix microseconds) from now on.
    pub(crate) fn stop_clock(&self, micros: u64) {
        self.show_clock([0, micros as i64]);
    }

    fn show_clock(&self, shown: [i64; 2]) {
        use std::os::unix::fs::FileExt;
        let mut file = fs::OpenOptions::new();
        let file = file.write(true).create(true).truncate(false);
        let file = file.open(self.dir.join("clock")).expect("the clock");
        // In place: the server has it mapped.
        file.write_all_at(shown.map(i64::to_ne_bytes).as_flattened(), 0)
            .expect("the clock");
    }

    /// The same, once the server shows it: Valkey looks at the clock a moment later.
    pub(crate) async fn step_clock(&self, seconds: i64) {
        self.set_clock(seconds);
        let connection = self.connection().await;
        until("the server's clock stepped", || async {
            let mut connection = connection.clone();
            let shown: (i64, i64) = redis::cmd("TIME")
                .query_async(&mut connection)
                .await
                .expect("the server's time");
            let ours = UNIX_EPOCH.elapsed().expect("a clock after 1970").as_secs() as i64;
            (shown.0 - ours - seconds).abs() < 60
        })
        .await;
    }

    /// Starts the server again on the same port and directory.
    pub(crate) fn restart(&mut self) {
        self.restart_without_scripts();
        self.load_scripts();
    }

    /// The same, and leaves it to workers and operators to load scripts.
    pub(crate) fn restart_without_scripts(&mut self) {
        self.spawn();
        let port = self.port;
        eventually("redis-server answers", || answers(port, b"+PONG"));
        if self.cluster.is_some() {
            eventually("the cluster serves all slots", || {
                [&*self]
                    .into_iter()
                    .chain(self.others())
                    .all(cluster::serves)
            });
        }
    }

    fn others(&self) -> &[Redis] {
        self.cluster.as_ref().map_or(&[], |mode| &mode.others)
    }

    fn others_mut(&mut self) -> &mut [Redis] {
        match &mut self.cluster {
            Some(mode) => &mut mode.others,
            None => &mut [],
        }
    }

    /// The same, and waits only until it loads its data.
    pub(crate) fn restart_and_load(&mut self) {
        self.spawn();
        let port = self.port;
        eventually("redis-server loads", || answers(port, b"-LOADING"));
    }

    fn spawn(&mut self) {
        self.kill();
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.join("log"))
            .expect("a log file");
        let child = Command::new("redis-server")
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1"])
            .args([
                "--daemonize",
                "no",
                "--enable-debug-command",
                "yes",
                "--dir",
            ])
            .arg(&self.dir)
            .arg("--aclfile")
            .arg(self.dir.join("users.acl"))
            .args(&self.options)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .expect("redis-server starts (scripts/test installs it)");
        self.child = Some(child);
        self.others_mut().iter_mut().for_each(Redis::restart);
    }

    /// Does for those who may not what a worker does for all: most tests of publishers have none.
    fn load_scripts(&self) {
        let mut connection = self.connect();
        for script in convoke::coordination::scripts::called_by_others() {
            // A server that a test starts as a replica, or without scripts, has none.
            script.load(&mut connection).ok();
        }
        if users::lack("TIME") {
            for tag in ["cb", "{cb}"] {
                users::make_clock(tag).exec(&mut connection).ok();
            }
        }
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
        self.others_mut().iter_mut().for_each(Redis::kill);
    }

    /// `redis://…` for a worker.
    pub(crate) fn url(&self) -> String {
        self.url_for(users::WORKER)
    }

    /// `redis://…` for a user of `deploy/users.acl`.
    pub(crate) fn url_for(&self, user: &str) -> String {
        match &self.cluster {
            None => url_at(self.port, user),
            Some(mode) => {
                let others = mode.others.iter();
                let others = others.map(|node| format!(",127.0.0.1:{}", node.port));
                let url = url_at(self.port, user).replacen("redis://", "redis+cluster://", 1);
                url + &others.collect::<String>()
            }
        }
    }

    /// `redis://…` for who runs that command.
    pub(crate) fn url_for_command(&self, words: &[&str]) -> String {
        let of_nobody = || {
            let login = format!("nobody:{}@", users::PASSWORD);
            self.url_for("nobody").replace(&login, "")
        };
        users::of_command(words).map_or_else(of_nobody, |user| self.url_for(user))
    }

    /// `redis://…` for the test itself, which may do everything.
    pub(crate) fn admin_url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.look_port())
    }

    /// The port for the test's own connections.
    fn look_port(&self) -> u16 {
        match &self.cluster {
            None => self.port,
            Some(mode) => mode.router.port(),
        }
    }

    /// Lets the users use that namespace as well.
    pub(crate) fn allow_namespace(&self, namespace: &str) {
        let mut connection = self.connect();
        for command in users::commands(namespace) {
            command.exec(&mut connection).expect("a user");
        }
    }

    /// The test wants something refused, so that it is refused is no failure.
    pub(crate) fn expect_refusals(&mut self) {
        self.may_refuse = true;
        self.others_mut()
            .iter_mut()
            .for_each(Redis::expect_refusals);
    }

    /// What the server refused to the users since it started, or since the last look.
    pub(crate) fn refused(&self) -> Vec<String> {
        // A test may have taken the server or the user away.
        let client = redis::Client::open(self.admin_url()).expect("a valid url");
        let connection = answers(self.port, b"+PONG").then(|| client.get_connection());
        let Some(Ok(mut connection)) = connection else {
            return Vec::new();
        };
        let log: redis::RedisResult<Vec<HashMap<String, redis::Value>>> =
            redis::cmd("ACL").arg("LOG").query(&mut connection);
        redis::cmd("ACL")
            .arg(&["LOG", "RESET"])
            .exec(&mut connection)
            .ok();
        let text = |value: &redis::Value| match value {
            redis::Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            other => format!("{other:?}"),
        };
        let log = log.unwrap_or_default();
        let log = log.iter().map(|entry| {
            let part = |name: &str| entry.get(name).map(text).unwrap_or_default();
            (part("username"), part("reason"), part("object"))
        });
        let taken = users::taken_away();
        log.filter(|(user, reason, _)| reason != "auth" && users::ALL.contains(&user.as_str()))
            .filter(|(_, _, object)| {
                let command = object.split('|').next().unwrap_or_default();
                !taken.iter().any(|taken| taken == command)
            })
            // A client finds out by trying, once, that its user may load no script.
            .filter(|(user, _, object)| {
                object != "script|load" || [users::WORKER, users::OPERATOR].contains(&user.as_str())
            })
            .map(|(user, reason, object)| format!("{user}: {reason} {object}"))
            .collect()
    }

    /// What an option of the command line says.
    pub(crate) fn option(&self, name: &str) -> Option<&str> {
        let mut options = self.options.iter();
        options.find(|option| *option == name)?;
        options.next().map(String::as_str)
    }

    /// The port.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Where its files are.
    pub(crate) fn dir(&self) -> &std::path::Path {
        &self.dir
    }

    /// Whether it is a cluster, in the place of a server.
    pub(crate) fn is_cluster(&self) -> bool {
        self.cluster.is_some()
    }

    /// The ports of all nodes, where it is a cluster.
    pub(crate) fn ports(&self) -> Vec<u16> {
        let others = self.others().iter();
        others.fold(vec![self.port], |ports, node| {
            [ports, node.ports()].concat()
        })
    }

    /// Sends a signal to it, or to all nodes.
    pub(crate) fn signal(&self, name: &str) {
        signal(self.pid(), name);
        self.others().iter().for_each(|node| node.signal(name));
    }

    /// The process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("the server runs").id()
    }

    /// The process id, and on a cluster those of all nodes.
    pub(crate) fn pids(&self) -> Vec<u32> {
        let nodes = [self].into_iter().chain(self.others());
        nodes.map(Redis::pid).collect()
    }

    /// A blocking connection for looking at the server.
    pub(crate) fn connect(&self) -> redis::Connection {
        redis::Client::open(self.admin_url())
            .expect("a valid url")
            .get_connection()
            .expect("a connection")
    }

    /// An async connection for looking, with a long answer time.
    pub(crate) async fn connection(&self) -> redis::aio::MultiplexedConnection {
        self.open(self.admin_url()).await
    }

    /// An async connection of a user of `deploy/users.acl`.
    pub(crate) async fn connection_for(&self, user: &str) -> redis::aio::MultiplexedConnection {
        self.open(url_at(self.look_port(), user)).await
    }

    async fn open(&self, url: String) -> redis::aio::MultiplexedConnection {
        let config = redis::AsyncConnectionConfig::new()
            .set_response_timeout(Some(Duration::from_secs(30)))
            .set_connection_timeout(Some(Duration::from_secs(30)));
        redis::Client::open(url)
            .expect("a valid url")
            .get_multiplexed_async_connection_with_config(&config)
            .await
            .expect("a connection")
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let refused = match self.child.is_some() && !self.may_refuse {
            true => self.refused(),
            false => Vec::new(),
        };
        self.kill();
        if !refused.is_empty() {
            eprintln!("refused by deploy/users.acl: {refused:#?}");
        }
        if std::thread::panicking()
            && let Ok(log) = fs::read_to_string(self.dir.join("log"))
        {
            let tail: Vec<&str> = log.lines().rev().take(40).collect();
            eprintln!("--- redis-server on port {} ---", self.port);
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        }
        fs::remove_dir_all(&self.dir).ok();
        assert!(
            refused.is_empty() || std::thread::panicking(),
            "deploy/users.acl refused what the product sends"
        );
    }
}

/// `redis://…` for a user of `deploy/users.acl`, at any port of this machine.
pub(crate) fn url_at(port: u16, user: &str) -> String {
    format!("redis://{user}:{}@127.0.0.1:{port}", users::PASSWORD)
}

/// Whether the answer to a `PING` begins so.
fn answers(port: u16, answer: &[u8]) -> bool {
    use std::io::{Read, Write};
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else {
        return false;
    };
    let mut reply = vec![0; answer.len()];
    stream
        .set_read_timeout(Some(Duration::from_secs(1)))
        .is_ok()
        && stream.write_all(b"PING\r\n").is_ok()
        && stream.read_exact(&mut reply).is_ok()
        && reply == answer
}

/// A new directory of one test's own. A process id is given again while the directory of a test that was killed is
/// still there, so it is not enough for a name.
pub(crate) fn new_directory(kind: &str) -> PathBuf {
    loop {
        let (process, number) = (std::process::id(), fastrand::u32(..));
        let dir = std::env::temp_dir().join(format!("convoke-{kind}-{process}-{number:08x}"));
        match fs::create_dir(&dir) {
            Ok(()) => return dir,
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => panic!("{}: {error}", dir.display()),
        }
    }
}

/// A port that nobody listens on, and that no other test is given while this process lives.
pub(crate) fn free_port() -> u16 {
    // Below the ephemeral range, so that no outgoing connection of another test takes it first.
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Who has the UDP port of that number may listen on it later, and again after its server was killed: another
    // test's server there would answer in its place.
    static HELD: Mutex<Vec<UdpSocket>> = Mutex::new(Vec::new());
    loop {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 10_000 + ((std::process::id().wrapping_mul(97) + step * 7) % 20_000) as u16;
        let held = UdpSocket::bind(("127.0.0.1", port));
        if let (Ok(held), Ok(_)) = (held, TcpListener::bind(("127.0.0.1", port))) {
            HELD.lock().expect("no panic").push(held);
            return port;
        }
    }
}

/// Waits until `condition` holds; fails after a minute.
#[track_caller]
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "not within a minute: {what}"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until `condition` holds; fails after a minute.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let start = Instant::now();
    while !condition().await {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "not within a minute: {what}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// How many events of a domain are unread, pending and waiting for their time, all at one moment; -1 where
/// that cannot be told. What its runs published and is not in its stream yet waits, too.
pub(crate) async fn left(
    connection: &mut redis::aio::MultiplexedConnection,
    domain: &str,
) -> (i64, i64, i64) {
    let mut look = redis::pipe();
    look.atomic();
    look.cmd("XINFO")
        .arg(&["GROUPS", &format!("cb:events:{domain}")]);
    look.cmd("ZCARD").arg(format!("cb:delayed:{domain}"));
    look.cmd("XLEN").arg(name(domain, "cb:outbox"));
    type Seen = (Vec<HashMap<String, redis::Value>>, i64, i64);
    let seen: Result<Seen, _> = look.query_async(connection).await;
    let (groups, delayed, outbox) = seen.unwrap_or_else(|_| (Vec::new(), -1, 0));
    let waiting = delayed + outbox;
    let number = |field: &str| match groups.first().and_then(|group| group.get(field)) {
        Some(redis::Value::Int(number)) => *number,
        _ => -1,
    };
    (number("lag"), number("pending"), waiting)
}

/// Sends a signal to a process of this test.
pub(crate) fn signal(pid: u32, signal: &str) {
    let status = Command::new("kill")
        .args([&format!("-{signal}"), &pid.to_string()])
        .status()
        .expect("kill runs");
    assert!(status.success(), "kill -{signal} {pid}");
}
