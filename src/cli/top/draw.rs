//! Draws the model: the same model and size always give the same frame. Colours are the terminal's
//! own and nothing sets a background, so it can be read on a light one as well.

use super::brush::{Brush, Drawn, Piece};
use super::header::title;
use super::listing::nothing;
use super::model::{Mode, Model};
use super::panel::Panel;
use super::row::Row;
use crate::cli::output::printable;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use unicode_width::UnicodeWidthStr;

/// From that size on all panels are shown at once.
const GRID: (u16, u16) = (140, 34);
/// Rows of a panel on a page.
const PAGE_ROWS: usize = 30;

const HELP: &str = "\
Tab, 1 to 7    another panel             s    sort by the next column
↑ ↓ j k        another row               r    the other way round
PgUp PgDn      a page of rows            /    only rows with a text
Enter          open a row, Esc closes    p    pause and go on
? or h         this                      q    quit, as does Ctrl-C

IN/S, OUT/S  entries added to the stream and settled by the group, a second
LAG          entries that nobody was given yet
PENDING      entries that were given out and not acknowledged
OLDEST       of a stream: since when the oldest of both waits
WAITING      how many of both there were lately, the latest on the right
P50, P99     of the last half minute; faint: of all runs, if there were none
RUNNING      runs that take their time; red: they hold all places of an instance
OLDEST       of a handler: for how long the oldest of its runs goes on
CALLS/S      of the last half minute, once there are 5 seconds of it
BUSY         the load for the capacity
CIRCUIT      the worst of any instance: open lets nothing through

d, u, c, e   drain or quiet an instance, cancel a task or a batch, replay dead
             letters; z, a: pause a type or domain, go on. y does what is said";

/// Draws a frame.
pub(super) fn draw(model: &Model, brush: Brush, area: Rect, buffer: &mut Buffer) -> Drawn {
    let mut drawn = Drawn::default();
    if area.width == 0 || area.height == 0 {
        return drawn;
    }
    let (mut top, bottom) = (area.y, area.bottom() - 1);
    for line in brush.header(model, area.width) {
        if top < bottom {
            brush.line(buffer, area, top, &line);
            top += 1;
        }
    }
    brush.line(buffer, area, bottom, &[brush.footer(model)]);
    let body = |top: u16| Rect {
        y: top,
        height: bottom.saturating_sub(top),
        ..area
    };
    match model.mode {
        Mode::Helping => {
            let lines: Vec<Vec<Piece>> = HELP
                .lines()
                .map(|line| vec![(line.to_owned(), Style::new())])
                .collect();
            drawn = brush.lines(buffer, body(top + 1), &lines, 0);
        }
        Mode::Opened { scroll } => {
            let lines = brush.details(model, area.width);
            drawn = brush.lines(buffer, body(top), &lines, scroll);
            if let Some(letters) = model.letters() {
                // The marked letter stays where the first one was.
                drawn.scroll = letters.len().saturating_sub(1);
            }
        }
        Mode::Looking | Mode::Filtering | Mode::Asking
            if area.width >= GRID.0 && area.height >= GRID.1 =>
        {
            drawn.page = brush.grid(model, body(top), buffer);
        }
        Mode::Looking | Mode::Filtering | Mode::Asking => {
            if top < bottom {
                brush.line(buffer, area, top, &brush.tabs(model, area.width));
                let rows = model.rows(model.panel);
                drawn.page = brush.table(model, model.panel, &rows, true, body(top + 1), buffer);
            }
        }
    }
    drawn
}

/// Everything on one page of that width, as text.
pub(super) fn page(model: &Model, width: u16) -> String {
    let brush = Brush { colours: false };
    let width = width.max(20);
    let header = brush.header(model, width);
    let parts: Vec<(Panel, Vec<Row>, usize)> = Panel::ALL
        .iter()
        .map(|&panel| {
            let mut rows = model.rows(panel);
            let more = rows.len().saturating_sub(PAGE_ROWS);
            rows.truncate(PAGE_ROWS);
            (panel, rows, more)
        })
        .collect();
    let height = |(_, rows, more): &(Panel, Vec<Row>, usize)| match rows.len() {
        0 => 2,
        rows => 3 + rows + usize::from(*more > 0),
    };
    let problems = model.sample().map_or(&[][..], |sample| &sample.problems);
    let all = header.len() + parts.iter().map(height).sum::<usize>() + problems.len();
    let area = Rect::new(0, 0, width, all as u16);
    let mut buffer = Buffer::empty(area);
    let mut y = 0;
    for line in &header {
        brush.line(&mut buffer, area, y, line);
        y += 1;
    }
    for (panel, rows, more) in &parts {
        y += 1;
        let mut say = |y: u16, text: String| {
            brush.line(&mut buffer, area, y, &[(text, Style::new())]);
        };
        if rows.is_empty() {
            say(y, nothing(*panel));
            y += 1;
            continue;
        }
        say(y, title(model, *panel));
        let height = 1 + rows.len() as u16;
        if *more > 0 {
            say(y + 1 + height, format!("… and {more} more"));
        }
        let place = Rect::new(0, y + 1, width, height);
        brush.table(model, *panel, rows, false, place, &mut buffer);
        y += 1 + height + u16::from(*more > 0);
    }
    for problem in problems {
        let text = format!("not seen: {}", printable(problem));
        brush.line(&mut buffer, area, y, &[(text, Style::new())]);
        y += 1;
    }
    text_of(&buffer)
}

/// The lines of a buffer, without the blanks at their ends.
pub(super) fn text_of(buffer: &Buffer) -> String {
    let area = buffer.area;
    let mut text = String::new();
    for y in area.top()..area.bottom() {
        let mut line = String::new();
        let mut x = area.left();
        while x < area.right() {
            let symbol = buffer.cell((x, y)).map_or(" ", |cell| cell.symbol());
            line.push_str(symbol);
            x += symbol.width().max(1) as u16;
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

impl Brush {
    /// All panels: streams and instances on the left, the others on the right.
    fn grid(self, model: &Model, area: Rect, buffer: &mut Buffer) -> usize {
        use Panel::{Ballots, Batches, Dead, Handlers, Instances, Streams, Tasks};
        let left = area.width / 2;
        let halves = [
            (
                Rect {
                    width: left - 1,
                    ..area
                },
                &[Streams, Instances, Dead][..],
            ),
            (
                Rect {
                    x: area.x + left + 1,
                    width: area.width - left - 1,
                    ..area
                },
                &[Handlers, Tasks, Batches, Ballots][..],
            ),
        ];
        let mut page = 0;
        for (half, panels) in halves {
            let all: Vec<Vec<Row>> = panels.iter().map(|panel| model.rows(*panel)).collect();
            // A blank line, the title, the headings.
            let wants: Vec<u16> = all
                .iter()
                .map(|rows| 3 + rows.len().max(1) as u16)
                .collect();
            let mut y = half.y;
            for ((panel, rows), height) in panels.iter().zip(&all).zip(share(&wants, half.height)) {
                let place = Rect { y, height, ..half };
                y += height;
                if height < 2 {
                    continue;
                }
                let at = 1 + *panel as usize;
                let title = format!(" {at} {} ", title(model, *panel));
                let style = self.title_style(model, *panel);
                self.line(buffer, place, place.y + 1, &[(title, style)]);
                let place = Rect {
                    y: place.y + 2,
                    height: height - 2,
                    ..place
                };
                let focused = model.panel == *panel;
                let shown = self.table(model, *panel, rows, focused, place, buffer);
                if focused {
                    page = shown;
                }
            }
        }
        page
    }
}

/// Shares a height out: nobody gets more than he wants, and who wants little gets it all.
fn share(wants: &[u16], all: u16) -> Vec<u16> {
    let mut shares = vec![0; wants.len()];
    let mut left = all;
    loop {
        let hungry: Vec<usize> = (0..wants.len())
            .filter(|at| shares[*at] < wants[*at])
            .collect();
        if left == 0 || hungry.is_empty() {
            return shares;
        }
        let each = (left / hungry.len() as u16).max(1);
        for at in hungry {
            let more = each.min(wants[at] - shares[at]).min(left);
            shares[at] += more;
            left -= more;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::share;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_height_is_shared_fairly(
            wants in proptest::collection::vec(0..50u16, 1..8),
            all in 0..120u16,
        ) {
            let shares = share(&wants, all);
            let total: u16 = shares.iter().sum();
            prop_assert_eq!(total, all.min(wants.iter().sum()));
            let highest = shares.iter().copied().max().unwrap_or(0);
            for (got, wanted) in shares.iter().zip(&wants) {
                prop_assert!(got <= wanted);
                prop_assert!(got == wanted || got + 1 >= highest);
            }
        }
    }
}
