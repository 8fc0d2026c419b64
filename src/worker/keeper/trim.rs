//! Keeps the streams at about their history; the busier this worker, the more often.
//!
//! The streams of the control plane are everybody's, so the leader's keeper trims them; with no
//! leader, or with two, they are trimmed a little later or twice, which does no harm.

use super::Chores;
use crate::streams::trim::{LIMIT, Trimmer};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// The longest pause between two trims of a quiet worker's streams.
const QUIET: Duration = Duration::from_secs(30);

/// What is trimmed, and how it went.
struct Trim<'a> {
    chores: &'a Chores,
    trimmer: Trimmer,
    /// The streams of this worker's own domains, and its inbox.
    own: Vec<(String, u64)>,
    /// Streams of the control plane.
    shared: Vec<(String, u64)>,
    committed: u64,
    at: Option<Instant>,
}

/// Trims about once a second while the worker is busy.
pub(super) async fn run(chores: &Chores) {
    let mut trim = Trim::new(chores);
    loop {
        tokio::time::sleep(Duration::from_millis(fastrand::u64(800..1200))).await;
        if trim.is_due() {
            trim.run_once().await;
        }
    }
}

impl<'a> Trim<'a> {
    fn new(chores: &'a Chores) -> Self {
        let history = chores.settings.stream_history;
        let mut own = Vec::new();
        let mut shared = vec![(chores.broadcast.clone(), history)];
        for lane in &chores.lanes {
            for (stream, route) in lane.routes.iter().enumerate() {
                let everybodys = lane.name == "control" && lane.inbox != Some(stream);
                let streams = if everybodys { &mut shared } else { &mut own };
                streams.push((route.events.clone(), history));
                streams.push((route.results.clone(), history));
            }
        }
        Self {
            chores,
            trimmer: Trimmer::default(),
            own,
            shared,
            committed: 0,
            at: None,
        }
    }

    /// A quiet worker trims now and then, a busy one each time.
    fn is_due(&mut self) -> bool {
        let counts = self.chores.lanes.iter().map(|lane| &lane.counts);
        let now: u64 = counts
            .map(|counts| counts.committed.load(Ordering::Relaxed))
            .sum();
        let least = (self.chores.settings.stream_history / 10).max(1);
        let quiet = now.saturating_sub(self.committed) < least;
        if quiet && self.at.is_some_and(|at| at.elapsed() < QUIET) {
            return false;
        }
        self.committed = now;
        self.at = Some(Instant::now());
        true
    }

    async fn run_once(&mut self) {
        let mut rest = self.own.clone();
        if self.chores.leads() {
            rest.extend_from_slice(&self.shared);
        }
        while !rest.is_empty() {
            let Ok(mut connection) = self.chores.connector.pooled().await else {
                break;
            };
            let results = self.trimmer.run_once(&mut connection, &rest).await;
            let full = |removed: u64| removed >= LIMIT / 2;
            rest = rest
                .into_iter()
                .zip(results)
                .filter(|(_, result)| result.as_ref().is_ok_and(|done| full(done.removed)))
                .map(|(stream, _)| stream)
                .collect();
        }
    }
}
