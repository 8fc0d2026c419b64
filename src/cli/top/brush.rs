//! The one place that knows colours, and the graphs of block characters.

use super::row::Tone;
use crate::cli::table::clip;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};

const SPARKS: [&str; 8] = ["▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"];

/// How much was to be seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Drawn {
    /// Rows of the panel that has the keys, or lines of what is open.
    pub(crate) page: usize,
    /// How far what is open can be scrolled.
    pub(crate) scroll: usize,
}

/// A brush: whether it may colour.
#[derive(Clone, Copy, Debug)]
pub(super) struct Brush {
    pub(crate) colours: bool,
}

/// Text in a style.
pub(super) type Piece = (String, Style);

impl Brush {
    pub(super) fn style(self, tone: Tone) -> Style {
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

    pub(super) fn piece(self, tone: Tone, text: impl Into<String>) -> Piece {
        (text.into(), self.style(tone))
    }

    /// Writes pieces after each other, cut at the edge.
    pub(super) fn line(self, buffer: &mut Buffer, area: Rect, y: u16, pieces: &[Piece]) {
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

    pub(super) fn lines(
        self,
        buffer: &mut Buffer,
        area: Rect,
        lines: &[Vec<Piece>],
        from: usize,
    ) -> Drawn {
        let page = usize::from(area.height);
        let scroll = lines.len().saturating_sub(page);
        let shown = lines.iter().skip(from.min(scroll)).take(page);
        for (y, line) in (area.y..).zip(shown) {
            self.line(buffer, area, y, line);
        }
        Drawn { page, scroll }
    }
}

/// The last values, the highest of them as high as can be.
pub(super) fn spark(values: &[f64], width: u16) -> String {
    let shown = &values[values.len().saturating_sub(usize::from(width))..];
    let highest = shown.iter().copied().fold(0.0, f64::max);
    let level = |value: &f64| match highest {
        highest if highest > 0.0 => (value / highest * 7.0).round().clamp(0.0, 7.0) as usize,
        _ => 0,
    };
    shown.iter().map(|value| SPARKS[level(value)]).collect()
}

/// `█████░░░░░  50%`
pub(super) fn bar(part: f64, width: u16) -> String {
    let percent = format!(" {:3.0}%", (part * 100.0).floor());
    let room = usize::from(width).saturating_sub(percent.len());
    let full = (part * room as f64).floor() as usize;
    format!("{}{}{percent}", "█".repeat(full), "░".repeat(room - full))
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
