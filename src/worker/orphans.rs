//! What a worker does as the first process of a container: it inherits processes whose parents ended, and
//! they stay zombies until it takes their exit status.
//!
//! A status that somebody waits for must not be taken. Those that commands are waited for by are known;
//! others who start processes wait for them at once. So only what was found dead twice is an orphan.

use crate::builtin::children::is_waited_for;
use rustix::process::{Pid, WaitOptions, waitpid};
use std::collections::HashSet;
use std::fs;
use std::time::Duration;

/// The pause between two looks.
const LOOK: Duration = Duration::from_secs(2);

/// A process that ended and still has its entry. A process id is used again, with another start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Dead {
    process: u32,
    start: u64,
}

/// Reaps orphans for ever, if this is the first process.
pub(super) async fn reap() {
    if std::process::id() != 1 {
        return std::future::pending().await;
    }
    let mut before = HashSet::new();
    loop {
        tokio::time::sleep(LOOK).await;
        let dead: HashSet<Dead> = dead_children(1);
        for orphan in dead.intersection(&before) {
            take(orphan.process);
        }
        before = dead;
    }
}

/// Takes its exit status.
fn take(process: u32) {
    let process = i32::try_from(process).ok().and_then(Pid::from_raw);
    let taken = process.map(|process| waitpid(Some(process), WaitOptions::NOHANG));
    if let Some(Err(error)) = taken {
        tracing::debug!(%error, "an orphan was reaped by someone else");
    }
}

/// The dead children of a process that nobody is known to wait for.
fn dead_children(parent: u32) -> HashSet<Dead> {
    let Ok(processes) = fs::read_dir("/proc") else {
        return HashSet::new();
    };
    let ids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let dead = ids.filter(|process| !is_waited_for(*process));
    dead.filter_map(|process: u32| {
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        let start = start_of_dead(&stat, parent)?;
        Some(Dead { process, start })
    })
    .collect()
}

/// When a process began, if it is a dead child of that one, by its `stat`.
fn start_of_dead(stat: &str, parent: u32) -> Option<u64> {
    // The name before may hold anything, brackets too.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let dead = fields.next()? == "Z";
    let child = fields.next()?.parse() == Ok(parent);
    (dead && child).then(|| fields.nth(17)?.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_dead_children_are_found() {
        let stat = |state: &str, parent: u32| {
            format!(
                "7 (a) b) {state} {parent} 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 4242 21 22"
            )
        };
        assert_eq!(start_of_dead(&stat("Z", 1), 1), Some(4242));
        assert_eq!(start_of_dead(&stat("S", 1), 1), None);
        assert_eq!(start_of_dead(&stat("Z", 2), 1), None);
        assert_eq!(start_of_dead("7", 1), None);
    }

    #[test]
    fn a_child_that_is_waited_for_is_none_of_them() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let me = std::process::id();
        let is_found = || {
            let mut dead = dead_children(me).into_iter();
            dead.any(|dead| dead.process == child.id())
        };
        let began = std::time::Instant::now();
        while !is_found() {
            assert!(began.elapsed() < Duration::from_secs(60));
            std::thread::sleep(Duration::from_millis(5));
        }
        let waited_for = crate::builtin::children::WaitedFor::new(child.id());
        assert!(!is_found());
        drop(waited_for);
        take(child.id());
        assert!(!is_found());
        assert!(child.wait().is_err(), "its status is taken");
    }
}
