//! How far a request's handler is, on stderr.

use crate::cli::output::{self, printable};
use convoke::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use std::io::{self, IsTerminal};

/// Where a total is known, and where it is not.
const FORMS: [&str; 2] = [
    "{wide_bar} {human_pos}/{human_len} {msg}",
    "{spinner} {human_pos} {msg}",
];

/// Shows it as it is told.
pub(super) enum Shown {
    /// To a person.
    Bar(ProgressBar),
    /// To whatever reads text.
    Lines,
    /// To a program.
    Json,
}

impl Shown {
    pub(super) fn new(json: bool) -> Self {
        match json {
            true => Self::Json,
            false if io::stderr().is_terminal() => {
                let target = ProgressDrawTarget::stderr();
                Self::Bar(ProgressBar::with_draw_target(None, target))
            }
            false => Self::Lines,
        }
    }

    pub(super) fn show(&self, progress: &Progress) {
        match self {
            Self::Bar(bar) => {
                let form = FORMS[usize::from(progress.total.is_none())];
                if let Ok(style) = ProgressStyle::with_template(form) {
                    bar.set_style(style);
                }
                if let Some(total) = progress.total {
                    bar.set_length(total);
                }
                let note = progress.note.as_deref().unwrap_or_default();
                bar.set_message(printable(note).into_owned());
                bar.set_position(progress.done);
            }
            Self::Lines => output::complain_line(&line(progress)),
            Self::Json => output::complain_line(&output::json(&json!({ "progress": progress }))),
        }
    }

    /// Leaves the place to the result.
    pub(super) fn end(&self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

fn line(progress: &Progress) -> String {
    let mut line = match progress.total {
        Some(total) => format!("{} of {total}", progress.done),
        None => progress.done.to_string(),
    };
    if let Some(note) = &progress.note {
        line.push(' ');
        line.push_str(&printable(note));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_is_known_and_drives_no_terminal() {
        assert_eq!(line(&Progress::new(3)), "3");
        assert_eq!(line(&Progress::new(3).of(8)), "3 of 8");
        let noted = Progress::new(3).note("rows\u{1b}[2J");
        assert_eq!(line(&noted), "3 rows\\u{1b}[2J");
    }
}
