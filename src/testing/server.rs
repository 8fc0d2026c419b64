//! A `redis-server` of a test's own.

use std::fs::{self, File};
use std::io;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long a server may take until it listens.
const PATIENCE: Duration = Duration::from_secs(30);
/// What a server logs once it listens.
const LISTENS: &str = "Ready to accept connections";

/// A `redis-server` of a test's own: on a free port of this machine, without persistence, stopped when it
/// is dropped.
///
/// ```no_run
/// use convoke::Client;
/// use convoke::testing::Server;
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let server = Server::start()?;
/// let client = Client::connect(server.url()).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Server {
    child: Child,
    dir: PathBuf,
    port: u16,
}

impl Server {
    /// Starts the `redis-server` that is found in `PATH`, and waits until it listens.
    ///
    /// # Errors
    /// No redis-server is found, or it does not start: what it said last.
    pub fn start() -> io::Result<Self> {
        let start = Instant::now();
        loop {
            let mut server = Self::spawn()?;
            // Between the look for a free port and the start, somebody else may have taken it.
            match server.listens(start) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                listens => return listens.map(|()| server),
            }
        }
    }

    fn spawn() -> io::Result<Self> {
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let dir = new_directory()?;
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--port", &port.to_string()]);
        command.args(["--save", "", "--appendonly", "no", "--dir"]);
        command.arg(&dir).stdin(Stdio::null()).stderr(Stdio::null());
        command.stdout(File::create(dir.join("log"))?);
        match command.spawn() {
            Ok(child) => Ok(Self { child, dir, port }),
            Err(error) => {
                fs::remove_dir_all(&dir).ok();
                let said = format!("redis-server cannot be started: {error}");
                Err(io::Error::new(error.kind(), said))
            }
        }
    }

    fn listens(&mut self, start: Instant) -> io::Result<()> {
        loop {
            let log = fs::read_to_string(self.dir.join("log"))?;
            if log.contains(LISTENS) {
                return Ok(());
            }
            let ended = self.child.try_wait()?.is_some();
            if ended && log.contains("Address already in use") {
                return Err(io::ErrorKind::AddrInUse.into());
            }
            if ended || start.elapsed() > PATIENCE {
                let last = log.lines().last().unwrap_or("nothing");
                return Err(io::Error::other(format!("redis-server said: {last}")));
            }
            sleep(Duration::from_millis(5));
        }
    }

    /// Its URL, for a worker, a client or a trial.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }
}

/// A process id is given again while the directory of a process that was killed is still there.
fn new_directory() -> io::Result<PathBuf> {
    loop {
        let (process, number) = (std::process::id(), fastrand::u32(..));
        let name = format!("convoke-server-{process}-{number:08x}");
        let dir = std::env::temp_dir().join(name);
        match fs::create_dir(&dir) {
            Ok(()) => return Ok(dir),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        fs::remove_dir_all(&self.dir).ok();
    }
}
