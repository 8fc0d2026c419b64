//! Draws the state: the same state and size always give the same frame. Colours are the terminal's
//! own and nothing sets a background, so it can be read on a light one as well.

use super::columns;
use super::panels;
use super::row::{Cell, Column, Content, Row, Tone, rate};
use super::state::{Mode, Panel, State};
use crate::cli::output::{number, printable, wrapped};
use crate::cli::table::clip;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use unicode_width::UnicodeWidthStr;

/// From that size on all panels are shown at once.
const GRID: (u16, u16) = (140, 34);
/// Rows of a panel on a page.
const PAGE_ROWS: usize = 30;
/// Between two pieces of the header.
const BETWEEN: &str = "  ";

const SPARKS: [&str; 8] = ["▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"];

const HINTS: &str =
    "Tab panel · ↑↓ move · Enter open · s sort · / filter · p pause · ? help · q quit";

const HELP: &str = "\
Tab, 1 to 7    another panel             s    sort by the next column
↑ ↓ j k        another row               r    the other way round
PgUp PgDn      a page of rows            /    only rows with a text
Enter          open a row, Esc closes    p    pause and go on
? or h         this                      q    quit, as do Esc and Ctrl-C

IN/S, OUT/S  entries added to the stream and settled by the group, a second
LAG          entries that nobody was given yet
PENDING      entries that were given out and not acknowledged
OLDEST       since when the oldest of both waits
WAITING      how many of both there were lately, the latest on the right
P50, P99     of the last half minute; faint: of all runs, if there were none
CALLS/S      of the last half minute, once there are 5 seconds of it
BUSY         the load for the capacity
CIRCUIT      the worst of any instance: open lets nothing through

Nothing here changes anything on the bus.";

/// How much was to be seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drawn {
    /// Rows of the panel that has the keys, or lines of what is open.
    pub page: usize,
    /// How far what is open can be scrolled.
    pub scroll: usize,
}

/// A brush: whether it may colour.
#[derive(Clone, Copy, Debug)]
pub struct Brush {
    pub colours: bool,
}

type Piece = (String, Style);

/// Draws a frame.
pub fn draw(state: &State, brush: Brush, area: Rect, buffer: &mut Buffer) -> Drawn {
    let mut drawn = Drawn::default();
    if area.width == 0 || area.height == 0 {
        return drawn;
    }
    let (mut top, bottom) = (area.y, area.bottom() - 1);
    for line in brush.header(state, area.width) {
        if top < bottom {
            brush.line(buffer, area, top, &line);
            top += 1;
        }
    }
    brush.line(buffer, area, bottom, &[brush.footer(state)]);
    let body = |top: u16| Rect {
        y: top,
        height: bottom.saturating_sub(top),
        ..area
    };
    match state.mode {
        Mode::Helping => {
            let lines: Vec<Vec<Piece>> = HELP
                .lines()
                .map(|line| vec![(line.to_owned(), Style::new())])
                .collect();
            drawn = brush.lines(buffer, body(top + 1), &lines, 0);
        }
        Mode::Opened { scroll } => {
            let lines = brush.details(state, area.width);
            drawn = brush.lines(buffer, body(top), &lines, scroll);
        }
        Mode::Looking | Mode::Filtering if area.width >= GRID.0 && area.height >= GRID.1 => {
            drawn.page = brush.grid(state, body(top), buffer);
        }
        Mode::Looking | Mode::Filtering => {
            if top < bottom {
                brush.line(buffer, area, top, &brush.tabs(state, area.width));
                let rows = state.rows(state.panel);
                drawn.page = brush.table(state, state.panel, &rows, true, body(top + 1), buffer);
            }
        }
    }
    drawn
}

/// Everything on one page of that width, as text.
pub fn page(state: &State, width: u16) -> String {
    let brush = Brush { colours: false };
    let width = width.max(20);
    let header = brush.header(state, width);
    let parts: Vec<(Panel, Vec<Row>, usize)> = Panel::ALL
        .iter()
        .map(|&panel| {
            let mut rows = state.rows(panel);
            let more = rows.len().saturating_sub(PAGE_ROWS);
            rows.truncate(PAGE_ROWS);
            (panel, rows, more)
        })
        .collect();
    let height = |(_, rows, more): &(Panel, Vec<Row>, usize)| match rows.len() {
        0 => 2,
        rows => 3 + rows + usize::from(*more > 0),
    };
    let problems = state.sample().map_or(&[][..], |sample| &sample.problems);
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
        say(y, title(state, *panel));
        let height = 1 + rows.len() as u16;
        if *more > 0 {
            say(y + 1 + height, format!("… and {more} more"));
        }
        let place = Rect::new(0, y + 1, width, height);
        brush.table(state, *panel, rows, false, place, &mut buffer);
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
pub fn text_of(buffer: &Buffer) -> String {
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

/// A panel's title, with how much there is.
fn title(state: &State, panel: Panel) -> String {
    format!("{} {}", panel.title(), state.count(panel))
}

fn nothing(panel: Panel) -> String {
    match panel {
        Panel::Dead => "no dead letters".to_owned(),
        panel => format!("no {}", panel.title().to_lowercase()),
    }
}

impl Brush {
    fn style(self, tone: Tone) -> Style {
        let colour = |colour: Color| match self.colours {
            true => Style::new().fg(colour),
            false => Style::new(),
        };
        match tone {
            Tone::Plain => Style::new(),
            Tone::Faint => Style::new().add_modifier(Modifier::DIM),
            Tone::Good => colour(Color::Green),
            Tone::Warn => colour(Color::Yellow),
            Tone::Bad => colour(Color::Red).add_modifier(Modifier::BOLD),
        }
    }

    fn piece(self, tone: Tone, text: impl Into<String>) -> Piece {
        (text.into(), self.style(tone))
    }

    /// Writes pieces after each other, cut at the edge.
    fn line(self, buffer: &mut Buffer, area: Rect, y: u16, pieces: &[Piece]) {
        let mut x = area.x;
        for (text, style) in pieces {
            let room = usize::from(area.right().saturating_sub(x));
            if room == 0 || y >= area.bottom() {
                return;
            }
            let (end, _) = buffer.set_stringn(x, y, clip(text, room), room, *style);
            x = end;
        }
    }

    fn lines(self, buffer: &mut Buffer, area: Rect, lines: &[Vec<Piece>], from: usize) -> Drawn {
        let page = usize::from(area.height);
        let scroll = lines.len().saturating_sub(page);
        let shown = lines.iter().skip(from.min(scroll)).take(page);
        for (y, line) in (area.y..).zip(shown) {
            self.line(buffer, area, y, line);
        }
        Drawn { page, scroll }
    }

    fn header(self, state: &State, width: u16) -> [Vec<Piece>; 2] {
        let bold = Style::new().add_modifier(Modifier::BOLD);
        let mut first = vec![(format!("convoke top {}", printable(&state.namespace)), bold)];
        if state.paused {
            first.push(self.piece(Tone::Warn, "PAUSED"));
        }
        let Some(sample) = state.sample() else {
            first.push(self.piece(Tone::Faint, "waiting for the first look"));
            return [fit(first, width), Vec::new()];
        };
        let census = &sample.census;
        let lost = census.recently_lost;
        let suspect = census.suspect + census.expired;
        let at_least = |how_many: u64, tone: Tone| if how_many > 0 { tone } else { Tone::Plain };
        let healthy = match census.healthy() {
            0 => Tone::Bad,
            _ => Tone::Good,
        };
        first.push(self.piece(healthy, format!("{} healthy", number(census.healthy()))));
        first.push(self.piece(
            at_least(suspect, Tone::Warn),
            format!("{} suspect", number(suspect)),
        ));
        first.push(self.piece(at_least(lost, Tone::Bad), format!("{} lost", number(lost))));
        if census.partition {
            first.push(self.piece(Tone::Bad, "PARTITION"));
        }
        match &sample.leader {
            Some(leader) => {
                first.push(self.piece(Tone::Plain, format!("leader {}", printable(leader))))
            }
            None => first.push(self.piece(Tone::Warn, "no leader")),
        }
        let (rate_in, rate_out) = state.totals();
        let said = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), rate);
        let waiting: u64 = state.backlog();
        let dead = state.dead_letters();
        let tasks = &sample.tasks;
        let second = vec![
            self.piece(Tone::Plain, format!("in {}/s", said(rate_in))),
            self.piece(Tone::Plain, format!("out {}/s", said(rate_out))),
            self.piece(Tone::Plain, format!("{} waiting", number(waiting))),
            self.piece(at_least(dead, Tone::Bad), format!("{} dead", number(dead))),
            self.piece(
                Tone::Plain,
                format!("{} in flight", number(sample.global.in_flight)),
            ),
            self.piece(
                Tone::Plain,
                format!("{} tasks open", number(tasks.pending + tasks.assigned)),
            ),
            self.piece(
                Tone::Plain,
                format!("{} MiB", number(sample.global.memory_bytes >> 20)),
            ),
            self.piece(
                Tone::Plain,
                format!(
                    "{} events processed",
                    number(sample.global.sums.events_processed)
                ),
            ),
        ];
        [fit(first, width), fit(second, width)]
    }

    fn footer(self, state: &State) -> Piece {
        let filter = printable(state.filter(state.panel));
        if state.mode == Mode::Filtering {
            let text = format!("filter: {filter}_   Enter keeps it, Esc ends it");
            return self.piece(Tone::Warn, text);
        }
        if let Some(trouble) = &state.trouble {
            return self.piece(Tone::Bad, format!("no news: {}", printable(trouble)));
        }
        let problem = state.sample().and_then(|sample| sample.problems.first());
        if let Some(problem) = problem {
            return self.piece(Tone::Warn, format!("not seen: {}", printable(problem)));
        }
        match state.mode {
            Mode::Opened { .. } => self.piece(Tone::Faint, "↑↓ scroll · Esc back · q quit"),
            Mode::Helping => self.piece(Tone::Faint, "any key goes back · q quit"),
            _ => {
                let mut told = String::new();
                if !filter.is_empty() {
                    told = format!("filter: {filter} (Esc ends it) · ");
                }
                if let (Some(column), _) = state.order(state.panel) {
                    let column = panels::columns(state.panel)[column].heading;
                    told.push_str(&format!("sorted by {column} · "));
                }
                self.piece(Tone::Faint, told + HINTS)
            }
        }
    }

    fn tabs(self, state: &State, width: u16) -> Vec<Piece> {
        let tabs = |long: bool| -> Vec<Piece> {
            let mut pieces = Vec::new();
            for (at, panel) in Panel::ALL.into_iter().enumerate() {
                let text = match long {
                    true => format!(" {} {} ", at + 1, title(state, panel)),
                    false => format!(" {} {} ", at + 1, panel.title()),
                };
                pieces.push((text, self.title_style(state, panel)));
            }
            pieces
        };
        let long = tabs(true);
        let needs: usize = long.iter().map(|(text, _)| text.width()).sum();
        match needs <= usize::from(width) {
            true => long,
            false => tabs(false),
        }
    }

    fn title_style(self, state: &State, panel: Panel) -> Style {
        match state.panel == panel {
            true => Style::new().add_modifier(Modifier::BOLD | Modifier::REVERSED),
            false => Style::new().add_modifier(Modifier::BOLD),
        }
    }

    /// All panels: streams and instances on the left, the others on the right.
    fn grid(self, state: &State, area: Rect, buffer: &mut Buffer) -> usize {
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
            let all: Vec<Vec<Row>> = panels.iter().map(|panel| state.rows(*panel)).collect();
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
                let title = format!(" {at} {} ", title(state, *panel));
                let style = self.title_style(state, *panel);
                self.line(buffer, place, place.y + 1, &[(title, style)]);
                let place = Rect {
                    y: place.y + 2,
                    height: height - 2,
                    ..place
                };
                let focused = state.panel == *panel;
                let shown = self.table(state, *panel, rows, focused, place, buffer);
                if focused {
                    page = shown;
                }
            }
        }
        page
    }

    /// Headings and rows; says how many rows there is room for.
    fn table(
        self,
        state: &State,
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
            let text = match state.filter(panel) {
                "" if state.sample().is_none() => String::new(),
                "" => nothing(panel),
                _ => "no row passes the filter".to_owned(),
            };
            self.line(buffer, area, area.y, &[self.piece(Tone::Faint, text)]);
            return 0;
        }
        let columns = panels::columns(panel);
        let headings = headings(columns, state.order(panel));
        let room = usize::from(area.height) - 1;
        let selected = state.selected(panel, rows).filter(|_| focused);
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

    /// What is known of the row that is open.
    fn details(self, state: &State, width: u16) -> Vec<Vec<Piece>> {
        let Some(focus) = state.focus() else {
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
        let rows = panels::rows(state, focus.panel);
        let Some(row) = rows.iter().find(|row| row.id == focus.id) else {
            lines.push(vec![self.piece(Tone::Faint, "it is not there any more")]);
            return lines;
        };
        for (column, cell) in panels::columns(focus.panel).iter().zip(&row.cells) {
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
        let opened = state.sample().and_then(|sample| sample.opened.as_ref());
        let told = opened.filter(|opened| opened.focus == focus);
        if told.is_some_and(|opened| !opened.lines.is_empty()) {
            lines.push(Vec::new());
        }
        for line in told.iter().flat_map(|opened| &opened.lines) {
            let wrapped = wrapped(&printable(line), 0, Some(usize::from(width)));
            lines.extend(wrapped.into_iter().map(|line| vec![(line, Style::new())]));
        }
        lines
    }
}

/// As many pieces as there is room for, with space between them.
fn fit(pieces: Vec<Piece>, width: u16) -> Vec<Piece> {
    let mut line: Vec<Piece> = Vec::new();
    let mut used = 0;
    for (text, style) in pieces {
        let gap = if line.is_empty() { "" } else { BETWEEN };
        used += gap.len() + text.width();
        if used > usize::from(width) && !line.is_empty() {
            break;
        }
        line.push((gap.to_owned(), Style::new()));
        line.push((text, style));
    }
    line
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

/// Writes into so many columns.
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

/// The last values, the highest of them as high as can be.
fn spark(values: &[f64], width: u16) -> String {
    let shown = &values[values.len().saturating_sub(usize::from(width))..];
    let highest = shown.iter().copied().fold(0.0, f64::max);
    let level = |value: &f64| match highest {
        highest if highest > 0.0 => (value / highest * 7.0).round().clamp(0.0, 7.0) as usize,
        _ => 0,
    };
    shown.iter().map(|value| SPARKS[level(value)]).collect()
}

/// `█████░░░░░  50%`
fn bar(part: f64, width: u16) -> String {
    let percent = format!(" {:3.0}%", (part * 100.0).floor());
    let room = usize::from(width).saturating_sub(percent.len());
    let full = (part * room as f64).floor() as usize;
    format!("{}{}{percent}", "█".repeat(full), "░".repeat(room - full))
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
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn graphs_are_as_wide_as_they_may_be() {
        assert_eq!(spark(&[0.0, 3.5, 7.0], 8), "▁▅█");
        assert_eq!(spark(&[9.0, 0.0, 3.5, 7.0], 3), "▁▅█");
        assert_eq!(spark(&[0.0, 0.0], 8), "▁▁");
        assert_eq!(bar(0.5, 15), "█████░░░░░  50%");
        assert_eq!(bar(0.999, 15), "█████████░  99%");
        assert_eq!(bar(1.0, 15), "██████████ 100%");
        assert_eq!(bar(1.0, 3), " 100%");
    }

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
