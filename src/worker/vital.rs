//! What a worker's process says of itself, to who runs it: `convoke probe` and systemd.
//!
//! It answers for this process alone and needs no server, so that an outage of Redis restarts nobody:
//!
//! | question | yes if |
//! |---|---|
//! | *live* | no lane stands still: a loop whose thread a handler holds takes nothing in any more |
//! | *ready* | it is live, it has registered and its lanes run, it does not drain, and the server answered within two thirds of the ttl |
//!
//! Threads of their own answer, so they do so too where every other one is held.

pub mod probe;
mod systemd;

pub(super) use systemd::Notifier;

use super::lane_list::LaneList;
use super::shared::Shared;
use crate::connect::clock::whole_ms;
use crate::connect::silence::Answers;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// How far a worker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Stage {
    /// The worker has not joined the bus yet.
    Starting,
    /// The worker reads and runs events.
    Working,
    /// The worker reads nothing more, and finishes what runs.
    Draining,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stage::Starting => "starting",
            Stage::Working => "working",
            Stage::Draining => "draining",
        })
    }
}

/// What a worker says of itself at one moment. Durations are in ms.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Signs {
    /// The instance id.
    pub id: String,
    /// Its process.
    pub pid: u32,
    /// The version of the program.
    pub version: String,
    /// How far it is.
    pub stage: Stage,
    /// How long the process has run as this worker.
    pub up_ms: u64,
    /// Entries that were read and not settled.
    pub in_flight: u64,
    /// Each lane, and how long ago its loop last went round.
    pub lanes: Vec<LaneSign>,
    /// How long ago the server answered last; absent before the first answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answered_ms: Option<u64>,
    /// How long the server may be silent before the worker is not ready.
    pub patience_ms: u64,
}

/// One lane's sign of life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LaneSign {
    /// Its name: `control`, `tasks`, `data`.
    pub name: String,
    /// How long ago its loop last went round; it does so once a second at the least.
    pub turned_ms: u64,
}

impl Signs {
    /// Why it is not live, if it is not: a lane has stood still for so long.
    ///
    /// # Errors
    /// What hangs, and for how long.
    pub fn live(&self, patience: Duration) -> Result<(), String> {
        let still = self.lanes.iter().max_by_key(|lane| lane.turned_ms);
        match still.filter(|lane| u128::from(lane.turned_ms) >= patience.as_millis()) {
            None => Ok(()),
            Some(lane) => Err(format!(
                "lane {} has stood still for {}: a handler holds its thread",
                lane.name,
                humantime::format_duration(Duration::from_millis(lane.turned_ms))
            )),
        }
    }

    /// Why it is still starting, if it is.
    ///
    /// # Errors
    /// That it has not joined the bus.
    pub fn started(&self) -> Result<(), String> {
        match self.stage {
            Stage::Starting => Err("it has not joined the bus yet".to_owned()),
            Stage::Working | Stage::Draining => Ok(()),
        }
    }

    /// Why it is not ready, if it is not.
    ///
    /// # Errors
    /// What it waits for.
    pub fn ready(&self, patience: Duration) -> Result<(), String> {
        self.started()?;
        match self.answered_ms {
            _ if self.stage == Stage::Draining => Err("it drains".to_owned()),
            Some(ms) if ms <= self.patience_ms => self.live(patience),
            Some(ms) => Err(format!(
                "the server has not answered for {}",
                humantime::format_duration(Duration::from_millis(ms))
            )),
            None => Err("the server has not answered yet".to_owned()),
        }
    }
}

impl fmt::Display for Signs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {} in flight", self.stage, self.in_flight)?;
        match self.answered_ms {
            Some(ms) => write!(
                f,
                ", the server answered {} ago",
                humantime::format_duration(Duration::from_millis(ms))
            ),
            None => f.write_str(", the server has not answered yet"),
        }
    }
}

/// Where a worker notes what it says of itself. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Vital(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    id: String,
    began: Instant,
    stage: AtomicU8,
    lanes: OnceLock<LaneList>,
    answers: Answers,
    patience: Duration,
}

impl Vital {
    /// Of a worker that starts.
    pub(super) fn new(id: &str, ttl: Duration, answers: &Answers) -> Self {
        Self(Arc::new(Inner {
            id: id.to_owned(),
            began: Instant::now(),
            stage: AtomicU8::new(0),
            lanes: OnceLock::new(),
            answers: answers.clone(),
            patience: ttl * 2 / 3,
        }))
    }

    /// Notes that these lanes run.
    pub(super) fn works(&self, lanes: &LaneList) {
        self.0.lanes.set(lanes.clone()).ok();
        self.0.stage.fetch_max(1, Ordering::Relaxed);
    }

    /// Notes that the worker was told to end.
    pub(super) fn drains(&self) {
        self.0.stage.fetch_max(2, Ordering::Relaxed);
    }

    /// What there is to say now.
    pub(super) fn signs(&self) -> Signs {
        let is = &*self.0;
        let lanes = is.lanes.get().map(LaneList::now).unwrap_or_default();
        let sign = |lane: &Arc<Shared>| LaneSign {
            name: lane.name.to_owned(),
            turned_ms: whole_ms(lane.turned.ago()),
        };
        Signs {
            id: is.id.clone(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            stage: match is.stage.load(Ordering::Relaxed) {
                0 => Stage::Starting,
                1 => Stage::Working,
                _ => Stage::Draining,
            },
            up_ms: whole_ms(is.began.elapsed()),
            in_flight: lanes.iter().map(|lane| lane.inflight.len() as u64).sum(),
            lanes: lanes.iter().map(sign).collect(),
            answered_ms: is.answers.age().map(whole_ms),
            patience_ms: whole_ms(is.patience),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn signs(stage: Stage, turned_ms: u64, answered_ms: Option<u64>) -> Signs {
        Signs {
            id: "w-1".to_owned(),
            pid: 1,
            version: "1".to_owned(),
            stage,
            up_ms: 1,
            in_flight: 0,
            lanes: vec![LaneSign {
                name: "data".to_owned(),
                turned_ms,
            }],
            answered_ms,
            patience_ms: 20_000,
        }
    }

    #[test]
    fn a_lane_that_stands_still_is_not_live_and_an_outage_is_no_reason() {
        for (signs, live, ready) in [
            (signs(Stage::Starting, 0, None), true, false),
            (signs(Stage::Working, 0, None), true, false),
            (signs(Stage::Working, 900, Some(19_999)), true, true),
            (signs(Stage::Working, 900, Some(20_001)), true, false),
            (signs(Stage::Working, 60_000, Some(1)), false, false),
            (signs(Stage::Draining, 10, Some(1)), true, false),
            (signs(Stage::Draining, 60_000, Some(1)), false, false),
        ] {
            assert_eq!(signs.live(PATIENCE).is_ok(), live, "{signs:?}");
            assert_eq!(signs.ready(PATIENCE).is_ok(), ready, "{signs:?}");
        }
        let still = signs(Stage::Working, 61_000, Some(1)).live(PATIENCE);
        assert_eq!(
            still.unwrap_err(),
            "lane data has stood still for 1m 1s: a handler holds its thread"
        );
    }
}
