//! Everything that is known of the row that is open.

use super::brush::{Brush, Piece, bar, spark};
use super::model::Model;
use super::row::{Content, Tone};
use super::{panel, panels};
use crate::cli::output::{printable, wrapped};
use ratatui::style::{Modifier, Style};

impl Brush {
    /// What is known of the row that is open.
    pub(super) fn details(self, model: &Model, width: u16) -> Vec<Vec<Piece>> {
        let Some(focus) = model.focus() else {
            return Vec::new();
        };
        let bold = Style::new().add_modifier(Modifier::BOLD);
        let mut lines = vec![
            vec![(
                format!("{} {}", focus.panel.title(), printable(&focus.id)),
                bold,
            )],
            Vec::new(),
        ];
        let rows = panels::rows(model, focus.panel);
        let Some(row) = rows.iter().find(|row| row.id == focus.id) else {
            lines.push(vec![self.piece(Tone::Faint, "it is not there any more")]);
            return lines;
        };
        for (column, cell) in panel::columns(focus.panel).iter().zip(&row.cells) {
            let room = width.saturating_sub(18).clamp(1, 60);
            let text = match &cell.content {
                Content::Text(text) => text.clone(),
                Content::Spark(values) => spark(values, room).trim_start().to_owned(),
                Content::Bar(part) => bar(*part, room.min(40)),
            };
            let heading = format!("{:16}  ", column.heading.to_lowercase());
            lines.push(vec![
                self.piece(Tone::Faint, heading),
                self.piece(cell.tone, text),
            ]);
        }
        for (heading, text) in &row.more {
            lines.push(vec![
                self.piece(Tone::Faint, format!("{heading:16}  ")),
                self.piece(Tone::Plain, text.as_str()),
            ]);
        }
        let opened = model.sample().and_then(|sample| sample.opened.as_ref());
        let told = opened.filter(|opened| opened.focus == focus);
        if told.is_some_and(|opened| !opened.lines.is_empty()) {
            lines.push(Vec::new());
        }
        if let Some(letters) = model.letters() {
            let marked = model.letter();
            for (at, line) in letters.iter().enumerate() {
                let line = printable(line);
                let mark = if Some(at) == marked { "> " } else { "  " };
                let room = usize::from(width).saturating_sub(mark.len());
                let shown = match Some(at) == marked {
                    true => wrapped(&line, 0, Some(room)),
                    false => vec![line.chars().take(room).collect()],
                };
                lines.extend(shown.into_iter().enumerate().map(|(nth, line)| {
                    let mark = if nth == 0 { mark } else { "  " };
                    vec![(format!("{mark}{line}"), Style::new())]
                }));
            }
            return lines;
        }
        for line in told.iter().flat_map(|opened| &opened.lines) {
            let wrapped = wrapped(&printable(line), 0, Some(usize::from(width)));
            lines.extend(wrapped.into_iter().map(|line| vec![(line, Style::new())]));
        }
        lines
    }
}
