//! Keeps the streams at about their history; the busier this worker, the more often.
//!
//! The streams of the control plane are everybody's, so the leader's keeper trims them; with no
//! leader, or with two, they are trimmed a little later or twice, which does no harm.

use super::Chores;
use crate::streams::trim::{LIMIT, Trimmer};
use std::time::{Duration, Instant};

/// The longest pause between two trims of a quiet worker's streams.
const QUIET: Duration = Duration::from_secs(30);

/// What is trimmed, and how it went.
struct Trim<'a> {
    chores: &'a Chores,
    trimmer: Trimmer,
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
        Self {
            chores,
            trimmer: Trimmer::default(),
            committed: 0,
            at: None,
        }
    }

    /// The streams of this worker's own domains, and its inbox; those of the control plane are the leader's.
    fn streams(&self) -> Vec<(String, u64)> {
        let (history, leads) = (self.chores.settings.stream_history, self.chores.leads());
        let mut streams = Vec::new();
        if leads {
            streams.push((self.chores.broadcast.clone(), history));
        }
        for lane in self.chores.lanes.now().iter() {
            for (stream, route) in lane.routes.iter().enumerate() {
                let everybodys = lane.name == "control" && lane.inbox != Some(stream);
                if leads || !everybodys {
                    streams.push((route.events.clone(), history));
                    streams.push((route.results.clone(), history));
                }
            }
        }
        streams
    }

    /// A quiet worker trims now and then, a busy one each time.
    fn is_due(&mut self) -> bool {
        let now = self.chores.lanes.count(|counts| &counts.committed);
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
        let mut rest = self.streams();
        self.trimmer.forget_others(&rest);
        let full = |removed: u64| removed >= LIMIT / 2;
        while !rest.is_empty() {
            let names: Vec<&str> = rest.iter().map(|(stream, _)| stream.as_str()).collect();
            let mut more = Vec::new();
            for way in self.chores.connector.ways_to_nodes(&names) {
                let some: Vec<_> = way.places.iter().map(|at| rest[*at].clone()).collect();
                let Ok(mut connection) = way.connector.at_its_node().await else {
                    continue;
                };
                let results = self.trimmer.go_on(&mut connection, &some).await;
                let some = some.into_iter().zip(results);
                let some = some.filter(|(_, done)| done.as_ref().is_ok_and(|it| full(it.removed)));
                more.extend(some.map(|(stream, _)| stream));
            }
            rest = more;
        }
    }
}
