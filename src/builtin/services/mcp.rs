//! An MCP server that speaks over its standard input and output: started at the first check, kept
//! between checks, started again after a growing pause when it ends or answers no more.

use crate::builtin::process::shell;
use crate::builtin::warden::{self, Watched};
use crate::mutex::locked;
use crate::settings::{CommandLine, Settings};
use rmcp::model::{ClientCapabilities, ClientConfig, ClientRequest, Implementation, PingRequest};
use rmcp::service::{RoleClient, RunningService, ServiceError, serve_client};
use rmcp::transport::TokioChildProcess;
use std::fmt;
use std::process::Stdio;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tokio::process::Command;
use tokio::sync::{mpsc, oneshot};

/// How long a server may take from its start to its answer to `initialize`.
const START: Duration = Duration::from_secs(30);
/// How long it may take to answer a `ping` before that counts as missed.
const PING: Duration = Duration::from_secs(5);
/// Missed pings in a row after which it is started again.
const MISSED: u32 = 3;
/// A server that ran so long is started again at once.
const STEADY: Duration = Duration::from_secs(60);
/// The pause before the second start in a row, doubled for each further one, up to a minute.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);
/// Checks that may wait at a time.
const WAITING: usize = 64;

type Answer = Result<Duration, String>;
type Asked = oneshot::Sender<Answer>;

/// Asks a server how it is.
pub(super) struct Mcp {
    command: CommandLine,
    keeper: Mutex<Option<mpsc::Sender<Asked>>>,
}

impl fmt::Debug for Mcp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mcp")
    }
}

impl Mcp {
    /// The server that the command line in the settings starts, if there is one. Starts nothing yet.
    pub(super) fn of(settings: &Settings) -> Option<Self> {
        let command = &settings.mcp_server;
        (!command.expose().trim().is_empty()).then(|| Self {
            command: command.clone(),
            keeper: Mutex::default(),
        })
    }

    /// Who owns the server; a new one where the last one is gone.
    fn keeper(&self) -> mpsc::Sender<Asked> {
        let mut keeper = locked(&self.keeper);
        match &*keeper {
            Some(keeper) if !keeper.is_closed() => keeper.clone(),
            _ => {
                let (sender, asked) = mpsc::channel(WAITING);
                tokio::spawn(Keeper::new(self.command.clone()).run(asked));
                keeper.insert(sender).clone()
            }
        }
    }

    /// How long it takes to answer a `ping`.
    ///
    /// # Errors
    /// It is not there, or did not answer within the limit.
    pub(super) async fn ask(&self, limit: Duration) -> Answer {
        let keeper = self.keeper();
        let (sender, answer) = oneshot::channel();
        if keeper.try_send(sender).is_err() {
            return Err("too many checks wait for it already".to_owned());
        }
        match tokio::time::timeout(limit, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err("the check was given up".to_owned()),
            Err(_) => Err(format!(
                "no answer within {}",
                humantime::format_duration(limit)
            )),
        }
    }
}

/// Owns the server. It ends, and the server with it, when nobody can ask any more.
struct Keeper {
    command: CommandLine,
    server: Option<Server>,
    failures: u32,
    not_before: Instant,
    trouble: String,
}

struct Server {
    service: RunningService<RoleClient, ClientConfig>,
    since: Instant,
    missed: u32,
    _watched: Option<Watched>,
}

impl Keeper {
    fn new(command: CommandLine) -> Self {
        Self {
            command,
            server: None,
            failures: 0,
            not_before: Instant::now(),
            trouble: String::new(),
        }
    }

    async fn run(mut self, mut asked: mpsc::Receiver<Asked>) {
        let mut waiting = Vec::new();
        while asked.recv_many(&mut waiting, WAITING).await > 0 {
            let answer = self.check().await;
            for asked in waiting.drain(..) {
                // Who gave up in the meantime does not want to know.
                asked.send(answer.clone()).ok();
            }
        }
    }

    async fn check(&mut self) -> Answer {
        if let Some(server) = &mut self.server {
            let answer = server.ping().await;
            if answer.is_ok() || server.missed < MISSED {
                return answer;
            }
            if server.since.elapsed() >= STEADY {
                self.failures = 0;
                self.not_before = Instant::now();
            } else {
                self.fail();
            }
            self.trouble = answer.err().unwrap_or_default();
            self.server = None;
            tracing::warn!(error = self.trouble, "the MCP server is started again");
        }
        let wait = self.not_before.saturating_duration_since(Instant::now());
        if !wait.is_zero() {
            let seconds = wait.as_secs() + 1;
            return Err(format!("{}; starting again in {seconds} s", self.trouble));
        }
        match start(self.command.now().trim()).await {
            Ok(mut server) => {
                let answer = server.ping().await;
                self.server = Some(server);
                answer
            }
            Err(trouble) => {
                self.fail();
                self.trouble = trouble.clone();
                Err(trouble)
            }
        }
    }

    fn fail(&mut self) {
        let pause = PAUSE.saturating_mul(1 << self.failures.min(6)).min(LONGEST);
        self.failures += 1;
        self.not_before = Instant::now() + pause;
    }
}

impl Server {
    async fn ping(&mut self) -> Answer {
        let began = Instant::now();
        let ping = ClientRequest::PingRequest(PingRequest::default());
        match tokio::time::timeout(PING, self.service.send_request(ping)).await {
            // Refusing is an answer as well.
            Ok(Ok(_) | Err(ServiceError::McpError(_))) => {
                self.missed = 0;
                Ok(began.elapsed())
            }
            Ok(Err(error)) => {
                // The way to it is broken: no further ping would get there.
                self.missed = MISSED;
                Err(format!("ping failed: {error}"))
            }
            Err(_) => {
                self.missed += 1;
                Err("no answer to ping".to_owned())
            }
        }
    }
}

async fn start(command: &str) -> Result<Server, String> {
    let refused = |error| format!("cannot be started: {error}");
    let mut run = shell_unseen(command);
    let mark = warden::mark(&mut run);
    let (transport, _) = TokioChildProcess::builder(run)
        .stderr(Stdio::null())
        .spawn()
        .map_err(refused)?;
    // Whatever becomes of the start, the processes end with this.
    let watched = match transport.id() {
        Some(leader) => Some(Watched::new(leader, mark).map_err(refused)?),
        None => None,
    };
    let me = Implementation::new(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
    let config = ClientConfig::new(ClientCapabilities::default(), me);
    match tokio::time::timeout(START, serve_client(config, transport)).await {
        Ok(Ok(service)) => Ok(Server {
            service,
            since: Instant::now(),
            missed: 0,
            _watched: watched,
        }),
        Ok(Err(error)) => Err(format!("initialize failed: {error}")),
        Err(_) => Err("no answer to initialize".to_owned()),
    }
}

/// Its command may hold a secret: everyone on this machine can read arguments, so it
/// goes through the environment of `sh`, which drops it before it begins.
fn shell_unseen(command: &str) -> Command {
    let mut run = shell("run=$CONVOKE_RUN; unset CONVOKE_RUN; eval \"$run\"");
    run.env("CONVOKE_RUN", command);
    run
}
