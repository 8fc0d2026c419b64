//! What is printed, and in which form. What came over the bus is not trusted: it must not be able to
//! drive a terminal.

use super::Format;
pub(super) use super::table::{Cell, Column, Table};
use convoke::worker::logs::may_colour;
use serde_json::Value;
use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};

/// How a piece of text looks on a terminal. Colours are the terminal's own, so they show on a light
/// background as well.
pub(super) type Style = &'static str;
/// Headings and what matters.
pub(super) const BOLD: Style = "1";
/// What matters less.
pub(super) const FAINT: Style = "2";
/// Wrong, gone, dangerous.
pub(super) const RED: Style = "31";
/// Alive, fine.
pub(super) const GREEN: Style = "32";
/// Worth a look.
pub(super) const YELLOW: Style = "33";

/// What stands under these headings is read word by word: it wraps where it is too long.
const PROSE: [&str; 4] = ["ERROR", "MESSAGE", "DATA", "DESCRIPTION"];

/// The width of a terminal that does not tell its own.
const WIDTH: usize = 80;

/// Standard output.
#[derive(Clone)]
pub(super) struct Output {
    format: Format,
    terminal: bool,
    absolute: bool,
    width: Option<usize>,
}

impl Output {
    pub(super) fn new(format: Format, absolute: bool) -> Self {
        let terminal = io::stdout().is_terminal();
        let reads = terminal && format == Format::Text;
        Self {
            format,
            terminal,
            absolute,
            width: reads.then(terminal_width),
        }
    }

    /// In which form.
    pub(super) fn format(&self) -> Format {
        self.format
    }

    /// Whether a program reads it.
    pub(super) fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Whether a person reads it now.
    pub(super) fn is_terminal(&self) -> bool {
        self.terminal && self.format == Format::Text
    }

    /// Lines, which must be printable already.
    pub(super) fn text(&self, lines: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(lines.as_bytes())?;
        out.flush()
    }

    /// One line, which must be printable already.
    pub(super) fn line(&self, line: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(line.as_bytes())?;
        out.write_all(b"\n")?;
        // Programs read a pipe line by line.
        out.flush()
    }

    /// A value on one line.
    pub(super) fn json(&self, value: &Value) -> io::Result<()> {
        self.line(&json(value))
    }

    /// A value for whoever reads: indented on a terminal, else on one line.
    pub(super) fn value(&self, value: &Value) -> io::Result<()> {
        if self.is_terminal() {
            self.line(&armoured(&format!("{value:#}"), escape_in_json))
        } else {
            self.json(value)
        }
    }

    /// Rows in aligned columns under their headings.
    pub(super) fn table(&self, headings: &[&'static str], rows: &[Vec<String>]) -> io::Result<()> {
        let columns = headings.iter().map(|heading| Column::new(heading));
        let mut columns: Vec<Column> = columns.collect();
        if let Some(heading) = headings.last().filter(|heading| PROSE.contains(heading)) {
            columns.pop();
            columns.push(Column::new(heading).wraps());
        }
        let mut table = Table::new(self, columns);
        for row in rows {
            table.row(row.iter().cloned().map(Cell::from).collect())?;
        }
        table.finish()
    }

    /// A moment, seen from another one, both in Unix ms: `3m12s ago`, or as a date on request.
    pub(super) fn moment(&self, at: u64, now: u64) -> String {
        if self.absolute {
            date(at)
        } else if at > now {
            format!("in {}", span(at - now))
        } else {
            format!("{} ago", span(now - at))
        }
    }

    /// A point of time that lies ahead, for people.
    pub(super) fn ahead(&self, at: u64, now: u64) -> String {
        if self.is_absolute() {
            return date(at);
        }
        match at.checked_sub(now) {
            Some(left) if left > 0 => format!("in {}", span(left)),
            _ => "now".into(),
        }
    }

    /// Whether times are wanted as dates.
    pub(super) fn is_absolute(&self) -> bool {
        self.absolute
    }

    /// How wide the terminal is; `None` where no person reads.
    pub(super) fn width(&self) -> Option<usize> {
        self.width
    }

    /// Bold on a terminal.
    pub(super) fn bold(&self, text: &str) -> String {
        self.styled(BOLD, text)
    }

    /// Faint on a terminal.
    pub(super) fn faint(&self, text: &str) -> String {
        self.styled(FAINT, text)
    }

    /// Red on a terminal.
    pub(super) fn red(&self, text: &str) -> String {
        self.styled(RED, text)
    }

    /// In a style on a terminal.
    pub(super) fn in_style(&self, style: Style, text: &str) -> String {
        self.styled(style, text)
    }

    fn styled(&self, style: &str, text: &str) -> String {
        if may_colour(self.is_terminal()) {
            format!("\x1b[{style}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

fn terminal_width() -> usize {
    let asked = || terminal_size::terminal_size().map(|(width, _)| usize::from(width.0));
    told_width()
        .or_else(asked)
        .filter(|&width| width > 0)
        .unwrap_or(WIDTH)
}

/// The width that the environment tells.
pub(super) fn told_width() -> Option<usize> {
    let told = std::env::var("COLUMNS").ok()?;
    told.parse().ok().filter(|&width| width > 0)
}

/// A length of time as people say it: `850ms`, `12s`, `3m12s`, `2h5m`, `4d3h`.
pub(super) fn span(ms: u64) -> String {
    let seconds = ms / 1000;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match () {
        () if ms < 1000 => format!("{ms}ms"),
        () if minutes == 0 => format!("{seconds}s"),
        () if minutes < 10 => format!("{minutes}m{}s", seconds % 60),
        () if hours == 0 => format!("{minutes}m"),
        () if hours < 10 => format!("{hours}h{}m", minutes % 60),
        () if days == 0 => format!("{hours}h"),
        () if days < 10 => format!("{days}d{}h", hours % 24),
        () => format!("{days}d"),
    }
}

/// A moment in Unix ms as a date.
pub(super) fn date(ms: u64) -> String {
    let time = i64::try_from(ms).map(jiff::Timestamp::from_millisecond);
    match time {
        Ok(Ok(time)) => format!("{time:.3}"),
        _ => "?".to_owned(),
    }
}

/// A number with its thousands apart: `1,000,000`.
pub(super) fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number of bytes: `512 B`, `1.5 KiB`, `340 MiB`.
pub(super) fn bytes(bytes: u64) -> String {
    let mut size = bytes as f64;
    let mut unit = "B";
    for larger in ["KiB", "MiB", "GiB", "TiB"] {
        // What would be rounded up to 1024.
        if size < 1023.5 {
            break;
        }
        size /= 1024.0;
        unit = larger;
    }
    match unit != "B" && size < 9.95 {
        true => format!("{size:.1} {unit}"),
        false => format!("{size:.0} {unit}"),
    }
}

/// A number of something: `1 entry`, `2,000 entries`.
pub(super) fn count(how_many: u64, one: &str, more: &str) -> String {
    let what = if how_many == 1 { one } else { more };
    format!("{} {what}", number(how_many))
}

/// Text in lines that are set in and, on a terminal, no wider than it is.
pub(super) fn wrapped(text: &str, indent: usize, width: Option<usize>) -> Vec<String> {
    let room = width.map_or(usize::MAX, |width| width.saturating_sub(indent).max(20));
    let mut lines = vec![String::new()];
    let mut used = 0;
    for word in text.split_whitespace() {
        let needs = word.chars().count() + usize::from(used > 0);
        if used > 0 && used + needs > room {
            lines.push(String::new());
            used = 0;
        }
        if let Some(line) = lines.last_mut() {
            if used > 0 {
                line.push(' ');
                used += 1;
            } else {
                line.push_str(&" ".repeat(indent));
            }
            line.push_str(word);
            used += word.chars().count();
        }
    }
    lines
}

/// Says on stderr what went wrong.
pub(super) fn complain(format: Format, message: &str) {
    let line = match format {
        Format::Text | Format::Prometheus | Format::OpenMetrics => {
            format!("convoke: {}", printable(message))
        }
        Format::Json => json(&serde_json::json!({ "error": message })),
    };
    complain_line(&line);
}

/// Writes a printable line on stderr. That nobody reads it changes nothing.
pub(super) fn complain_line(line: &str) {
    writeln!(io::stderr(), "{line}").ok();
}

/// A value on one line that no terminal takes for commands.
pub(super) fn json(value: &Value) -> String {
    armoured(&value.to_string(), escape_in_json)
}

/// Text in which nothing but its characters reaches a terminal.
pub(super) fn printable(text: &str) -> Cow<'_, str> {
    if text.chars().any(is_dangerous) {
        Cow::Owned(armoured(text, |c| c.escape_default().to_string()))
    } else {
        Cow::Borrowed(text)
    }
}

/// Control characters, line separators and those that reverse the direction of writing.
fn is_dangerous(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{061c}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn armoured(text: &str, escape: impl Fn(char) -> String) -> String {
    let mut armoured = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            c if is_dangerous(c) => armoured.push_str(&escape(c)),
            c => armoured.push(c),
        }
    }
    armoured
}

/// In encoded JSON a raw newline stands between values only; all others stand in strings.
fn escape_in_json(c: char) -> String {
    match c {
        '\n' => "\n".to_owned(),
        c => format!("\\u{:04x}", u32::from(c)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nothing_from_the_bus_drives_a_terminal() {
        let evil = "a\x1b[2J\u{9b}31m\r\n\x07\u{202e}\u{2028}é";
        assert_eq!(
            printable(evil),
            "a\\u{1b}[2J\\u{9b}31m\\r\\n\\u{7}\\u{202e}\\u{2028}é"
        );
        let line = json(&json!({ evil: evil }));
        assert!(!line.chars().any(is_dangerous), "{line}");
        let back: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(back, json!({ evil: evil }));
    }

    #[test]
    fn times_and_numbers_are_as_people_say_them() {
        for (ms, said) in [
            (0, "0ms"),
            (850, "850ms"),
            (12_999, "12s"),
            (192_000, "3m12s"),
            (646_000, "10m"),
            (7_500_000, "2h5m"),
            (40_000_000, "11h"),
            (8_640_000_000, "100d"),
            (356_400_000, "4d3h"),
        ] {
            assert_eq!(span(ms), said);
        }
        assert_eq!(date(1_700_000_000_123), "2023-11-14T22:13:20.123Z");
        assert_eq!(date(u64::MAX), "?");
        for (n, said) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(number(n), said);
        }
        for (n, said) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1_048_575, "1.0 MiB"),
            (104_857_600, "100 MiB"),
            (u64::MAX, "16777216 TiB"),
        ] {
            assert_eq!(bytes(n), said);
        }
        assert_eq!(count(1, "entry", "entries"), "1 entry");
        assert_eq!(count(2000, "entry", "entries"), "2,000 entries");
    }
}
