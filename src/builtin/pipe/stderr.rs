//! What a process writes on its standard error goes into the log, with the event that it holds for the longest.

use super::pool::Pool;
use crate::mutex::locked;
use crate::protocol::error::MAX_MESSAGE;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt;
use tokio::process::ChildStderr;

/// Bytes that one read brings at the most.
const CHUNK: usize = 8 * 1024;
/// Lines of one process that are logged in a second; the others are counted.
const LINES: u32 = 100;

/// The end of what a process said.
#[derive(Debug, Default)]
pub(super) struct Last(Mutex<Vec<u8>>);

impl Last {
    fn add(&self, said: &[u8]) {
        let mut kept = locked(&self.0);
        kept.extend_from_slice(said);
        let surplus = kept.len().saturating_sub(MAX_MESSAGE);
        kept.drain(..surplus);
    }

    /// As text.
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&locked(&self.0)).trim().to_owned()
    }
}

/// Logs until it ends.
pub(super) async fn log(mut from: ChildStderr, pool: &Pool, seat: usize, last: &Last) {
    let mut chunk = vec![0; CHUNK];
    let mut log = Log::new(pool, seat);
    while let Ok(count @ 1..) = from.read(&mut chunk).await {
        last.add(&chunk[..count]);
        log.add(&chunk[..count]);
        // One that says very much is to be heard on its output, too.
        tokio::task::yield_now().await;
    }
    log.end_line();
}

struct Log<'a> {
    pool: &'a Pool,
    seat: usize,
    /// The beginning of a line, as much as is logged of it.
    line: Vec<u8>,
    /// The second that it counts for.
    since: Instant,
    logged: u32,
    left_out: u64,
}

impl<'a> Log<'a> {
    fn new(pool: &'a Pool, seat: usize) -> Self {
        Self {
            pool,
            seat,
            line: Vec::new(),
            since: Instant::now(),
            logged: 0,
            left_out: 0,
        }
    }

    fn add(&mut self, mut said: &[u8]) {
        while let Some(end) = said.iter().position(|byte| *byte == b'\n') {
            self.keep(&said[..end]);
            self.end_line();
            said = &said[end + 1..];
        }
        self.keep(said);
    }

    fn keep(&mut self, part: &[u8]) {
        let room = MAX_MESSAGE.saturating_sub(self.line.len());
        self.line.extend_from_slice(&part[..part.len().min(room)]);
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        let said = String::from_utf8_lossy(&line);
        let said = said.trim_end();
        if said.is_empty() {
            return;
        }
        if self.since.elapsed() >= Duration::from_secs(1) {
            if self.left_out > 0 {
                let (kind, lines) = (&self.pool.kind, self.left_out);
                tracing::warn!(
                    kind,
                    lines,
                    "a piped process wrote more on stderr than is logged"
                );
            }
            (self.since, self.logged, self.left_out) = (Instant::now(), 0, 0);
        }
        if self.logged == LINES {
            self.left_out += 1;
            return;
        }
        self.logged += 1;
        let kind = &self.pool.kind;
        match self.pool.holds(self.seat) {
            Some((event, held)) => {
                tracing::info!(kind, event, held, stderr = said, "a piped process says")
            }
            None => tracing::info!(kind, stderr = said, "a piped process says"),
        }
    }
}
