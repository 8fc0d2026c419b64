//! Tells systemd how the worker is: `READY=1` once it has joined the bus, `STOPPING=1` when it drains, a
//! status line, and `WATCHDOG=1` as long as its lanes go round.
//!
//! A lane stands still while a handler holds its thread. From a quarter of `WatchdogSec` on, nothing is told
//! any more; systemd ends the process once it has heard nothing for the whole of it. So a worker whose lane
//! hangs ends between three and five quarters of `WatchdogSec` later, and a handler that holds its thread
//! for less than three quarters of it never costs a worker its life. Below 8 s it is two seconds instead of a quarter,
//! since a lane that has nothing to do goes round once a second.

use super::{Stage, Vital};
use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// How often the status is told where no watchdog asks for more.
const STATUS: Duration = Duration::from_secs(10);
/// How often it is looked whether the stage is another one.
const LOOK: Duration = Duration::from_millis(250);
/// How long a lane that has nothing to do may take to go round, with room to spare.
const IDLE: Duration = Duration::from_secs(2);
/// The shortest pause from one word to the next.
const SHORTEST: Duration = Duration::from_millis(10);
/// How long it waits for systemd to read what it is told.
const READS: Duration = Duration::from_secs(1);

/// A thread that tells systemd; dropped, it ends.
#[derive(Debug)]
pub(in crate::worker) struct Notifier {
    over: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What systemd asked for in the environment.
struct Asked {
    socket: SocketAddr,
    watchdog: Option<Duration>,
}

impl Asked {
    fn of_environment() -> Option<Self> {
        Self::of(|name| std::env::var_os(name))
    }

    fn of(variable: impl Fn(&str) -> Option<OsString>) -> Option<Self> {
        let place = variable("NOTIFY_SOCKET")?;
        let socket = match place.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
            _ => SocketAddr::from_pathname(&place),
        };
        let number = |name: &str| -> Option<u64> { variable(name)?.to_str()?.parse().ok() };
        let ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|usec| ours && *usec > 0);
        Some(Self {
            socket: socket.ok()?,
            watchdog: watchdog.map(Duration::from_micros),
        })
    }

    /// How long a lane may stand still before nothing is told any more.
    fn patience(&self) -> Option<Duration> {
        self.watchdog.map(|time| (time / 4).max(IDLE))
    }

    /// From one word to the next.
    fn pause(&self) -> Duration {
        self.watchdog
            .map_or(STATUS, |time| (time / 8).clamp(SHORTEST, STATUS))
    }
}

impl Notifier {
    /// Starts if systemd asked for it.
    pub(in crate::worker) fn start(vital: &Vital) -> io::Result<Option<Self>> {
        let asked = Asked::of_environment();
        asked.map(|asked| Self::tell(asked, vital)).transpose()
    }

    fn tell(asked: Asked, vital: &Vital) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(READS))?;
        let (over, ends) = mpsc::channel::<()>();
        let vital = vital.clone();
        let tell = move || {
            let say = |text: &str| {
                let sent = socket.send_to_addr(text.as_bytes(), &asked.socket);
                sent.inspect_err(|error| tracing::debug!(%error, "systemd was not told"))
                    .is_ok()
            };
            let (patience, pause) = (asked.patience(), asked.pause());
            let (mut told, mut since) = (Stage::Starting, pause);
            loop {
                let signs = vital.signs();
                if signs.stage != told {
                    let word = match signs.stage {
                        Stage::Starting => "STATUS=starting",
                        Stage::Working => "READY=1",
                        Stage::Draining => "STOPPING=1",
                    };
                    if say(word) {
                        told = signs.stage;
                        since = pause;
                    }
                }
                if since >= pause {
                    since = Duration::ZERO;
                    say(&match patience.map(|patience| signs.live(patience)) {
                        None => format!("STATUS={signs}"),
                        Some(Ok(())) => format!("WATCHDOG=1\nSTATUS={signs}"),
                        Some(Err(why)) => format!("STATUS={why}"),
                    });
                }
                let look = LOOK.min(pause);
                match ends.recv_timeout(look) {
                    Err(RecvTimeoutError::Timeout) => since += look,
                    _ if told == Stage::Draining => return,
                    // It drained in no time, or failed.
                    _ => {
                        say("STOPPING=1");
                        return;
                    }
                }
            }
        };
        let thread = thread::Builder::new().name("systemd".to_owned());
        Ok(Self {
            thread: Some(thread.spawn(tell)?),
            over: Some(over),
        })
    }
}

impl Drop for Notifier {
    fn drop(&mut self) {
        drop(self.over.take());
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_says_where_and_how_often() {
        let asked = |pairs: &[(&str, &str)]| {
            Asked::of(|name| {
                let found = pairs.iter().find(|(is, _)| *is == name);
                found.map(|(_, value)| value.into())
            })
        };
        assert!(asked(&[]).is_none());
        let plain = asked(&[("NOTIFY_SOCKET", "/run/notify")]).unwrap();
        assert_eq!(
            plain.socket.as_pathname().unwrap().to_str(),
            Some("/run/notify")
        );
        assert_eq!(plain.watchdog, None);
        let pid = std::process::id().to_string();
        for (pid, watchdog) in [(&*pid, Some(Duration::from_secs(60))), ("1", None)] {
            let asked = asked(&[
                ("NOTIFY_SOCKET", "@notify"),
                ("WATCHDOG_USEC", "60000000"),
                ("WATCHDOG_PID", pid),
            ]);
            let asked = asked.unwrap();
            assert_eq!(asked.socket.as_abstract_name(), Some(&b"notify"[..]));
            assert_eq!(asked.watchdog, watchdog);
        }
    }

    #[test]
    fn an_idle_lane_is_alive_however_short_the_watchdog_is() {
        let of = |usec: &str| {
            let variable = |name: &str| match name {
                "NOTIFY_SOCKET" => Some("@notify".into()),
                "WATCHDOG_USEC" => Some(usec.into()),
                _ => None,
            };
            let asked = Asked::of(variable).unwrap();
            (asked.patience(), asked.pause())
        };
        let ms = Duration::from_millis;
        assert_eq!(of("60000000"), (Some(ms(15_000)), ms(7500)));
        assert_eq!(of("1000000"), (Some(IDLE), ms(125)));
        assert_eq!(of("1"), (Some(IDLE), SHORTEST));
        assert_eq!(of("0"), (None, STATUS));
    }

    #[test]
    fn who_reads_nothing_holds_no_worker_up() {
        let name = format!("convoke-notify-{}", std::process::id());
        let place = SocketAddr::from_abstract_name(name.as_bytes()).unwrap();
        let reads_nothing = UnixDatagram::bind_addr(&place).unwrap();
        // Each sends one: what may wait is bounded for a sender as well.
        let fills = || {
            let fills = UnixDatagram::unbound().unwrap();
            fills.set_nonblocking(true).unwrap();
            fills.send_to_addr(b"full", &place)
        };
        while fills().is_ok() {}
        let asked = Asked {
            socket: place,
            watchdog: None,
        };
        let ttl = Duration::from_secs(3);
        let vital = Vital::new("w-1", ttl, &crate::connect::silence::Answers::new(ttl));
        vital.drains();
        drop(Notifier::tell(asked, &vital).unwrap());
        drop(reads_nothing);
    }
}
