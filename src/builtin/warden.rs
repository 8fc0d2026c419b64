//! Ends the processes of commands: a run that was given up, and all that run when the worker dies.
//!
//! A command must not go on beside its event's next run. So each process of ours has a warden, one `sh`
//! that reads from a pipe which commands run and outlives us by a moment: the pipe's end is the one sign
//! of death that `kill -9` cannot prevent. [`warden.sh`](warden.sh) says what it does.
//!
//! A command waits for a line on its input before it begins, and gets it after the warden was told: no
//! moment is left in which it runs and nobody would end it.

use crate::builtin::children::WaitedFor;
use crate::builtin::process::shell;
use crate::mutex::locked;
use crate::settings::variables::MARK;
use std::collections::HashMap;
use std::io::{self, Write};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::Mutex;

/// What a command of ours begins with: it waits until it is watched, and does not begin if we died.
pub(crate) const WAIT: &str = "read -r _ || exit 75\n";
/// The line that lets it begin.
pub(crate) const BEGIN: &[u8] = b"\n";

static WARDEN: Mutex<Option<Warden>> = Mutex::new(None);

struct Warden {
    process: Child,
    line: ChildStdin,
    /// The mark of each command that runs, by the leader of its group.
    running: HashMap<u32, String>,
}

impl Warden {
    fn start(running: HashMap<u32, String>) -> io::Result<Self> {
        let mut run = shell(include_str!("warden.sh")).into_std();
        run.stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut process = run.spawn()?;
        let Some(mut line) = process.stdin.take() else {
            return Err(io::Error::other("the warden has no pipe"));
        };
        for (leader, mark) in &running {
            writeln!(line, "+ {leader} {mark}")?;
        }
        Ok(Self {
            process,
            line,
            running,
        })
    }
}

/// Tells the warden, which is started if it was not yet or was killed.
fn tell(word: char, leader: u32, mark: &str) -> io::Result<()> {
    let mut warden = locked(&WARDEN);
    if let Some(it) = &mut *warden {
        match word {
            '+' => it.running.insert(leader, mark.to_owned()),
            _ => it.running.remove(&leader),
        };
        // One write below the size of a pipe's atomic ones.
        let told = it
            .line
            .write_all(format!("{word} {leader} {mark}\n").as_bytes());
        if told.is_ok() {
            return Ok(());
        }
        it.process.wait().ok();
    }
    let mut running = warden.take().map_or_else(HashMap::new, |it| it.running);
    if word == '+' {
        running.insert(leader, mark.to_owned());
    }
    let mut started = Warden::start(running)?;
    if word == '!' {
        started
            .line
            .write_all(format!("{word} {leader} {mark}\n").as_bytes())?;
    }
    *warden = Some(started);
    Ok(())
}

/// Has a command, and what it starts, known by a mark of its own.
pub(crate) fn mark(run: &mut tokio::process::Command) -> String {
    let mark = format!("{:016x}", fastrand::u64(..));
    run.env(MARK, &mark);
    mark
}

/// A command that is watched: dropped, its processes are ended.
#[derive(Debug)]
pub(crate) struct Watched {
    leader: u32,
    mark: String,
    _waited_for: WaitedFor,
}

impl Watched {
    /// Watches the command whose process group has that leader.
    ///
    /// # Errors
    /// The warden cannot be started.
    pub(crate) fn new(leader: u32, mark: String) -> io::Result<Self> {
        tell('+', leader, &mark)?;
        Ok(Self {
            leader,
            mark,
            _waited_for: WaitedFor::new(leader),
        })
    }

    /// Lets a command go that ended by itself. What it left in the background is its own matter.
    pub(crate) fn ended(mut self) {
        self.tell('-');
        self.leader = 0;
    }

    fn tell(&self, word: char) {
        if let Err(error) = tell(word, self.leader, &self.mark) {
            tracing::warn!(%error, leader = self.leader, "a command's processes could not be ended");
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if self.leader != 0 {
            self.tell('!');
        }
    }
}
