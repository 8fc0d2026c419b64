//! The pace of a replay, and the bar that shows it.

use crate::cli::output::number;
use convoke::operator::replay::STEP;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use std::fmt::Write;
use std::time::{Duration, Instant};

/// Keeps to a rate: small steps, each at its time.
pub(super) struct Pace {
    pub(super) began: Instant,
    pub(super) rate: Option<u32>,
    pub(super) step: usize,
}

impl Pace {
    pub(super) fn new(rate: Option<u32>) -> Self {
        let step = rate.map_or(STEP, |rate| (rate as usize / 10).clamp(1, STEP));
        let began = Instant::now();
        Self { began, rate, step }
    }

    /// Waits until this many may have been done.
    pub(super) async fn wait(&self, done: u64) {
        if let Some(rate) = self.rate {
            let due = Duration::from_secs_f64(done as f64 / f64::from(rate));
            tokio::time::sleep(due.saturating_sub(self.began.elapsed())).await;
        }
    }
}

pub(super) fn bar(total: u64, hidden: bool) -> ProgressBar {
    let target = match hidden {
        true => ProgressDrawTarget::hidden(),
        false => ProgressDrawTarget::stderr(),
    };
    let bar = ProgressBar::with_draw_target(Some(total), target);
    let form = "{wide_bar} {human_pos}/{human_len}  {rate}  {eta} left";
    if let Ok(style) = ProgressStyle::with_template(form) {
        let rate = |state: &ProgressState, text: &mut dyn Write| {
            // Nobody who could be told that it cannot be written.
            write!(text, "{}/s", number(state.per_sec().round() as u64)).ok();
        };
        bar.set_style(style.with_key("rate", rate));
    }
    bar
}
