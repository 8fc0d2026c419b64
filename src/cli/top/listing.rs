//! One panel as a table.

use super::brush::{Brush, bar, spark};
use super::columns;
use super::model::Model;
use super::panel::{self, Panel};
use super::row::{Cell, Column, Content, Row, Tone};
use crate::cli::table::clip;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Modifier, Style};
use unicode_width::UnicodeWidthStr;

impl Brush {
    /// Headings and rows; says how many rows there is room for.
    pub(super) fn table(
        self,
        model: &Model,
        panel: Panel,
        rows: &[Row],
        focused: bool,
        area: Rect,
        buffer: &mut Buffer,
    ) -> usize {
        if area.height == 0 || area.width == 0 {
            return 0;
        }
        if rows.is_empty() {
            let text = match model.filter(panel) {
                "" if model.sample().is_none() => String::new(),
                "" => nothing(panel),
                _ => "no row passes the filter".to_owned(),
            };
            self.line(buffer, area, area.y, &[self.piece(Tone::Faint, text)]);
            return 0;
        }
        let columns = panel::columns(panel);
        let headings = headings(columns, model.order(panel));
        let room = usize::from(area.height) - 1;
        let selected = model.selected(panel, rows).filter(|_| focused);
        let from = selected.map_or(0, |at| (at + 1).saturating_sub(room));
        // All rows count, so that scrolling moves no column.
        let widths = columns::widths(columns, &headings, rows, area.width);
        let bold = Style::new().add_modifier(Modifier::BOLD);
        let mut x = area.x;
        for ((column, heading), width) in columns.iter().zip(&headings).zip(&widths) {
            if let Some(width) = width {
                put(buffer, (x, area.y), heading, *width, column.right, bold);
                x += width + columns::GAP;
            }
        }
        for (y, (at, row)) in (area.y + 1..area.bottom()).zip(rows.iter().enumerate().skip(from)) {
            let mut x = area.x;
            for ((column, cell), width) in columns.iter().zip(&row.cells).zip(&widths) {
                if let Some(width) = *width {
                    self.cell(buffer, (x, y), cell, width, column);
                    x += width + columns::GAP;
                }
            }
            if selected == Some(at) {
                let line = Rect {
                    y,
                    height: 1,
                    ..area
                };
                buffer.set_style(line, Style::new().add_modifier(Modifier::REVERSED));
            }
        }
        room
    }

    fn cell(self, buffer: &mut Buffer, at: (u16, u16), cell: &Cell, width: u16, column: &Column) {
        let style = self.style(cell.tone);
        match &cell.content {
            Content::Text(text) => put(buffer, at, text, width, column.right, style),
            Content::Spark(values) => put(buffer, at, &spark(values, width), width, true, style),
            Content::Bar(part) => put(buffer, at, &bar(*part, width), width, false, style),
        }
    }
}

pub(super) fn nothing(panel: Panel) -> String {
    match panel {
        Panel::Dead => "no dead letters".to_owned(),
        panel => format!("no {}", panel.title().to_lowercase()),
    }
}

/// Headings, with an arrow at the one that the rows are sorted by.
fn headings(columns: &[Column], (sort, reversed): (Option<usize>, bool)) -> Vec<String> {
    let heading = |(at, column): (usize, &Column)| match (sort == Some(at), reversed) {
        (true, false) => format!("{}▾", column.heading),
        (true, true) => format!("{}▴", column.heading),
        (false, _) => column.heading.to_owned(),
    };
    columns.iter().enumerate().map(heading).collect()
}

/// Writes into this many columns.
fn put(buffer: &mut Buffer, at: (u16, u16), text: &str, width: u16, right: bool, style: Style) {
    let room = usize::from(width);
    let text = clip(text, room);
    let pad = match right {
        true => room.saturating_sub(text.width()) as u16,
        false => 0,
    };
    let left = width - pad.min(width);
    if left > 0 {
        buffer.set_stringn(at.0 + pad, at.1, text, usize::from(left), style);
    }
}
