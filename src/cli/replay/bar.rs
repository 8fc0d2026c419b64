//! The bar that shows how far a replay is.

use crate::cli::output::number;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use std::fmt::Write;

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
