//! Rows in columns that fit the terminal.
//!
//! The first rows decide how wide the columns are; those that come later are written as they come,
//! so a table of any length takes little memory. Where no person reads, nothing is cut. A last column that
//! wraps is never left out: it goes on in more lines, beside the others or below them.

use super::output::{BOLD, Output, Style, printable};
use std::io;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Rows that decide the widths.
const FIRST: usize = 200;
/// Between two columns.
const GAP: usize = 2;
/// A column that wraps stands below the others where it would be narrower beside them.
const BESIDE: usize = 30;
/// How far it is set in there.
const INDENT: usize = 4;

/// One column.
#[derive(Clone, Copy, Debug)]
pub(super) struct Column {
    heading: &'static str,
    right: bool,
    least: Option<usize>,
    optional: bool,
    wraps: bool,
}

impl Column {
    /// A column that is as wide as what stands in it.
    pub(super) fn new(heading: &'static str) -> Self {
        Self {
            heading,
            right: false,
            least: None,
            optional: false,
            wraps: false,
        }
    }

    /// A column of numbers.
    pub(super) fn number(heading: &'static str) -> Self {
        Self {
            right: true,
            ..Self::new(heading)
        }
    }

    /// On a terminal it is left out where nothing stands in it.
    pub(super) fn optional(mut self) -> Self {
        self.optional = true;
        self
    }

    /// The last column: on a terminal it goes on in more lines where it is too long.
    pub(super) fn wraps(mut self) -> Self {
        self.wraps = true;
        self
    }

    /// Where the terminal is too narrow, it may shrink to this many characters.
    pub(super) fn shrinks(mut self, least: usize) -> Self {
        self.least = Some(least);
        self
    }
}

/// One cell.
#[derive(Clone, Debug)]
pub(super) struct Cell {
    text: String,
    style: Option<Style>,
}

impl Cell {
    /// Text in a style.
    pub(super) fn styled(text: impl Into<String>, style: Style) -> Self {
        Self {
            text: text.into(),
            style: Some(style),
        }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self {
            text: text.into(),
            style: None,
        }
    }
}

/// A table that is being written.
pub(super) struct Table<'a> {
    output: &'a Output,
    columns: Vec<Column>,
    layout: Option<Layout>,
    waiting: Vec<Vec<Cell>>,
}

impl<'a> Table<'a> {
    pub(super) fn new(output: &'a Output, columns: Vec<Column>) -> Self {
        Self {
            output,
            columns,
            layout: None,
            waiting: Vec::new(),
        }
    }

    /// Adds a row: one cell for each column.
    pub(super) fn row(&mut self, mut row: Vec<Cell>) -> io::Result<()> {
        for cell in &mut row {
            if let std::borrow::Cow::Owned(safe) = printable(&cell.text) {
                cell.text = safe;
            }
        }
        self.waiting.push(row);
        match self.waiting.len() < FIRST {
            true => Ok(()),
            false => self.flush(),
        }
    }

    fn leave_out_empty_columns(&mut self) {
        for index in (0..self.columns.len()).rev() {
            let is_empty = |row: &Vec<Cell>| row[index].text.is_empty();
            if self.columns[index].optional && self.waiting.iter().all(is_empty) {
                self.columns.remove(index);
                for row in &mut self.waiting {
                    row.remove(index);
                }
            }
        }
    }

    /// Writes what waits.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        let mut text = String::new();
        let layout = match self.layout.take() {
            Some(layout) => layout,
            None => {
                let layout = Layout::of(&self.columns, &self.waiting, self.output.width());
                let headings = self.columns.iter().map(|c| Cell::styled(c.heading, BOLD));
                let headings: Vec<Cell> = headings.collect();
                self.row_of(&mut text, &headings, &layout);
                layout
            }
        };
        for row in &self.waiting {
            self.row_of(&mut text, row, &layout);
        }
        self.waiting.clear();
        self.layout = Some(layout);
        text.pop();
        self.output.line(&text)
    }

    /// Writes the rest.
    pub(super) fn finish(mut self) -> io::Result<()> {
        if self.layout.is_none() && self.output.width().is_some() {
            self.leave_out_empty_columns();
        }
        if self.layout.is_none() || !self.waiting.is_empty() {
            self.flush()?;
        }
        Ok(())
    }

    /// A row: one line, and more where its last cell wraps.
    fn row_of(&self, text: &mut String, row: &[Cell], layout: &Layout) {
        let Some((last, others)) = row.split_last().filter(|_| layout.wraps.is_some()) else {
            self.line(text, row, &layout.widths);
            return;
        };
        let (at, width) = layout.wraps.unwrap_or_default();
        self.line(text, others, &layout.widths);
        let beside = at == layout.used() + GAP && !layout.widths.is_empty();
        let style = |line: &str| match last.style {
            Some(style) => self.output.in_style(style, line),
            None => line.to_owned(),
        };
        for (number, line) in fold(&last.text, width).iter().enumerate() {
            let blanks = match beside && number == 0 {
                true => {
                    // It goes on in the line that was just written.
                    text.pop();
                    let line = text.rsplit('\n').next().unwrap_or_default();
                    at.saturating_sub(shown_width(line))
                }
                false => at,
            };
            if !line.is_empty() {
                text.extend(std::iter::repeat_n(' ', blanks));
                text.push_str(&style(line));
            }
            text.push('\n');
        }
    }

    fn line(&self, text: &mut String, row: &[Cell], widths: &[usize]) {
        let cut = self.output.width().is_some();
        let mut pad = 0;
        for ((cell, column), &width) in row.iter().zip(&self.columns).zip(widths) {
            let shown = match cut {
                true => clip(&cell.text, width),
                false => cell.text.clone(),
            };
            let room = width.saturating_sub(shown.width());
            if column.right {
                pad += room;
            }
            if !shown.is_empty() {
                text.extend(std::iter::repeat_n(' ', pad));
                pad = 0;
                match cell.style {
                    Some(style) => text.push_str(&self.output.in_style(style, &shown)),
                    None => text.push_str(&shown),
                }
            }
            pad += GAP + if column.right { 0 } else { room };
        }
        text.push('\n');
    }
}

/// Where the columns stand.
struct Layout {
    /// How wide they are; all but one that wraps.
    widths: Vec<usize>,
    /// Where the one begins that wraps, and how wide it is.
    wraps: Option<(usize, usize)>,
}

impl Layout {
    fn of(columns: &[Column], rows: &[Vec<Cell>], terminal: Option<usize>) -> Self {
        let (Some(terminal), Some((last, others))) = (
            terminal,
            columns.split_last().filter(|(last, _)| last.wraps),
        ) else {
            let widths = widths(columns, rows, terminal);
            return Self {
                widths,
                wraps: None,
            };
        };
        let mut layout = Self {
            widths: match others {
                [] => Vec::new(),
                others => widths(others, rows, Some(terminal)),
            },
            wraps: None,
        };
        let texts = rows.iter().filter_map(|row| Some(row.last()?.text.width()));
        let needs = texts.chain([last.heading.width()]).max().unwrap_or(0);
        let at = layout.used() + GAP;
        let room = terminal.saturating_sub(at);
        layout.wraps = Some(match room >= needs.min(BESIDE) {
            true => (at, room),
            false => (INDENT, terminal.saturating_sub(INDENT).max(20)),
        });
        layout
    }

    /// How wide the columns are that do not wrap.
    fn used(&self) -> usize {
        self.widths.iter().sum::<usize>() + GAP * self.widths.len().saturating_sub(1)
    }
}

/// How much of a line a terminal shows.
fn shown_width(line: &str) -> usize {
    let mut width = 0;
    let mut rest = line.chars();
    while let Some(c) = rest.next() {
        match c {
            // A style, which ends with an m.
            '\x1b' => while rest.next().is_some_and(|c| c != 'm') {},
            c => width += c.width().unwrap_or(0),
        }
    }
    width
}

/// Text in lines of this many columns, broken at blanks where there are any; one line at the least.
fn fold(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut used = 0;
    for word in text.split(' ') {
        let needs = word.width() + usize::from(used > 0);
        if used > 0 && used + needs > width {
            lines.push(String::new());
            used = 0;
        }
        let blank = usize::from(used > 0);
        for c in std::iter::repeat_n(' ', blank).chain(word.chars()) {
            let wide = c.width().unwrap_or(0);
            if used + wide > width.max(1) {
                lines.push(String::new());
                used = 0;
            }
            if let Some(line) = lines.last_mut() {
                line.push(c);
                used += wide;
            }
        }
    }
    lines
}

/// How wide each column is; columns at the end that find no room are left out.
fn widths(columns: &[Column], rows: &[Vec<Cell>], terminal: Option<usize>) -> Vec<usize> {
    let needs = |index: usize| {
        let cells = rows.iter().map(|row| row[index].text.width());
        cells
            .chain([columns[index].heading.width()])
            .max()
            .unwrap_or(0)
    };
    let mut widths: Vec<usize> = (0..columns.len()).map(needs).collect();
    let Some(terminal) = terminal else {
        return widths;
    };
    let total = |widths: &[usize]| widths.iter().sum::<usize>() + GAP * (widths.len() - 1);
    while total(&widths) > terminal {
        let shrinkable = |&(index, &width): &(usize, &usize)| {
            columns[index]
                .least
                .is_some_and(|least| width > least.max(1))
        };
        let widest = widths.iter().enumerate().filter(shrinkable);
        match widest
            .max_by_key(|(_, width)| **width)
            .map(|(index, _)| index)
        {
            Some(index) => widths[index] -= 1,
            None if widths.len() > 1 => {
                widths.pop();
            }
            None => {
                widths[0] = terminal.max(1);
                break;
            }
        }
    }
    widths
}

/// Text in this many columns of a terminal.
pub(super) fn clip(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut clipped = String::new();
    let mut room = width.saturating_sub(1);
    for c in text.chars() {
        let wide = c.width().unwrap_or(0);
        if wide > room {
            break;
        }
        room -= wide;
        clipped.push(c);
    }
    clipped.push('…');
    clipped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(texts: &[&[&str]]) -> Vec<Vec<Cell>> {
        let row = |texts: &&[&str]| texts.iter().map(|text| Cell::from(*text)).collect();
        texts.iter().map(row).collect()
    }

    #[test]
    fn a_table_fits_the_terminal() {
        let columns = [
            Column::new("ID"),
            Column::new("TYPE").shrinks(4),
            Column::new("DATA").shrinks(4),
        ];
        let rows = rows(&[&["17-0", "image.resize", &"x".repeat(100)]]);
        assert_eq!(widths(&columns, &rows, None), [4, 12, 100]);
        assert_eq!(widths(&columns, &rows, Some(80)), [4, 12, 60]);
        assert_eq!(widths(&columns, &rows, Some(20)), [4, 6, 6]);
        assert_eq!(widths(&columns, &rows, Some(12)), [4, 4]);
        assert_eq!(widths(&columns, &rows, Some(3)), [3]);
    }

    #[test]
    fn a_last_column_that_wraps_goes_on_beside_the_others_or_below_them() {
        let columns = [
            Column::new("ENTRY"),
            Column::new("TYPE").shrinks(4),
            Column::new("MESSAGE").wraps(),
        ];
        let rows = rows(&[&[
            "17-0",
            "image.resize",
            "no such file or directory: /srv/images/17",
        ]]);
        let layout = |terminal| {
            let layout = Layout::of(&columns, &rows, Some(terminal));
            (layout.widths, layout.wraps)
        };
        assert_eq!(layout(80), (vec![5, 12], Some((21, 59))));
        assert_eq!(layout(60), (vec![5, 12], Some((21, 39))));
        assert_eq!(layout(40), (vec![5, 12], Some((4, 36))));
        assert_eq!(
            fold("no such file or directory: /srv/images/17", 20),
            ["no such file or", "directory:", "/srv/images/17"]
        );
        assert_eq!(fold("abcdefgh", 3), ["abc", "def", "gh"]);
        assert_eq!(fold("", 3), [""]);
        assert_eq!(shown_width("\x1b[31mred\x1b[0m!"), 4);
    }

    #[test]
    fn cells_are_cut_by_what_a_terminal_shows() {
        assert_eq!(clip("image", 5), "image");
        assert_eq!(clip("images", 5), "imag…");
        assert_eq!(clip("日本語", 5), "日本…");
        assert_eq!(clip("日本語", 4), "日…");
        assert_eq!(clip("ab", 1), "…");
    }
}
