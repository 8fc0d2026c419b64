//! Lines in which events wait for their turn, one for each name.

use crate::mutex::locked;
use crate::protocol::error::HandlerError;
use crate::protocol::event::EntryId;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::oneshot;

/// Who stands behind the head, the oldest entry first.
type Line = VecDeque<(EntryId, oneshot::Sender<()>)>;

/// A line for each name that somebody is at the head of; those behind the head wait in it.
///
/// A name is remembered only as long as someone has a place in its line.
#[derive(Debug, Default)]
pub struct Lines(Mutex<HashMap<Arc<str>, Line>>);

impl Lines {
    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Line>> {
        locked(&self.0)
    }

    /// Whether anyone has a place in that line.
    pub fn is_taken(&self, name: &str) -> bool {
        self.lock().contains_key(name)
    }

    /// Takes a place in that line, now: at its head if nobody is there, else behind what is older.
    pub fn join(self: &Arc<Self>, name: &str, entry: EntryId) -> InLine {
        let mut lines = self.lock();
        let (name, turn) = match lines.get_key_value(name) {
            None => {
                let name: Arc<str> = name.into();
                lines.insert(name.clone(), VecDeque::new());
                (name, None)
            }
            Some((key, _)) => {
                let name = key.clone();
                let (sender, turn) = oneshot::channel();
                let line = lines.entry(name.clone()).or_default();
                let at = line.partition_point(|(before, _)| *before <= entry);
                line.insert(at, (entry, sender));
                (name, Some(turn))
            }
        };
        InLine {
            lines: self.clone(),
            name,
            turn,
        }
    }
}

/// A place in a line: at its head (`turn` is `None`), or waiting for its turn.
#[derive(Debug)]
pub struct InLine {
    lines: Arc<Lines>,
    name: Arc<str>,
    turn: Option<oneshot::Receiver<()>>,
}

impl InLine {
    /// Whose line it is.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Waits until it is at the head.
    pub async fn head(&mut self) -> Result<(), HandlerError> {
        if let Some(turn) = &mut self.turn {
            // A sender goes away unused only with the whole line.
            turn.await
                .map_err(|_| HandlerError::unavailable("the line of its name is gone"))?;
            self.turn = None;
        }
        Ok(())
    }
}

impl Drop for InLine {
    fn drop(&mut self) {
        let mut lines = self.lines.lock();
        if let Some(turn) = &mut self.turn {
            // Turns are given under the lock: after this, either it was given and is passed on
            // below, or it never will be.
            turn.close();
            if turn.try_recv().is_err() {
                return;
            }
        }
        let Some(line) = lines.get_mut(&self.name) else {
            return;
        };
        while let Some((_, next)) = line.pop_front() {
            if next.send(()).is_ok() {
                return;
            }
        }
        lines.remove(&self.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    fn entry(seq: u64) -> EntryId {
        EntryId { ms: 1, seq }
    }

    fn at_head(place: &mut InLine) -> bool {
        place.head().now_or_never().is_some()
    }

    #[test]
    fn a_line_is_passed_on_by_age_and_forgotten_when_it_is_empty() {
        let lines = Arc::new(Lines::default());
        let mut first = lines.join("s", entry(5));
        let mut third = lines.join("s", entry(7));
        let mut second = lines.join("s", entry(6));
        let mut other = lines.join("t", entry(9));
        assert!(at_head(&mut first) && at_head(&mut other));
        assert!(!at_head(&mut second) && !at_head(&mut third));
        drop(first);
        assert!(!at_head(&mut third) && at_head(&mut second));
        drop(second);
        assert!(at_head(&mut third));
        assert!(lines.is_taken("s"));
        drop((third, other));
        assert!(lines.lock().is_empty());
    }

    #[test]
    fn who_goes_away_neither_blocks_nor_lets_anyone_in_early() {
        let lines = Arc::new(Lines::default());
        let first = lines.join("s", entry(1));
        let second = lines.join("s", entry(2));
        let mut third = lines.join("s", entry(3));
        let fourth = lines.join("s", entry(4));
        drop(second);
        assert!(!at_head(&mut third));
        drop(first);
        // The third holds the turn now; the fourth goes before it was looked at.
        drop(fourth);
        assert!(at_head(&mut third));
        let fifth = lines.join("s", entry(5));
        drop(third);
        // The turn was given to one that goes away without looking.
        let mut sixth = lines.join("s", entry(6));
        assert!(!at_head(&mut sixth));
        drop(fifth);
        assert!(at_head(&mut sixth));
        drop(sixth);
        assert!(lines.lock().is_empty());
    }
}
