//! What is printed, and in which form. What came over the bus is not trusted: it must not be able to
//! drive a terminal.

use super::Format;
use serde_json::Value;
use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};

/// Standard output.
pub struct Output {
    format: Format,
    terminal: bool,
}

impl Output {
    pub fn new(format: Format) -> Self {
        Self {
            format,
            terminal: io::stdout().is_terminal(),
        }
    }

    /// In which form.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Whether a program reads it.
    pub fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Whether a person reads it now.
    pub fn is_terminal(&self) -> bool {
        self.terminal && self.format == Format::Text
    }

    /// Lines, which must be printable already.
    pub fn text(&self, lines: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(lines.as_bytes())?;
        out.flush()
    }

    /// One line, which must be printable already.
    pub fn line(&self, line: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(line.as_bytes())?;
        out.write_all(b"\n")?;
        // Programs read a pipe line by line.
        out.flush()
    }

    /// A value on one line.
    pub fn json(&self, value: &Value) -> io::Result<()> {
        self.line(&json(value))
    }

    /// A value for whoever reads: indented on a terminal, else on one line.
    pub fn value(&self, value: &Value) -> io::Result<()> {
        if self.is_terminal() {
            self.line(&armoured(&format!("{value:#}"), escape_in_json))
        } else {
            self.json(value)
        }
    }

    /// Rows in aligned columns under their headings.
    pub fn table(&self, headings: &[&str], rows: &[Vec<String>]) -> io::Result<()> {
        let rows: Vec<Vec<Cow<'_, str>>> = rows
            .iter()
            .map(|row| row.iter().map(|cell| printable(cell)).collect())
            .collect();
        let width = |column: usize| {
            let cells = rows.iter().map(|row| row[column].chars().count());
            cells.chain([headings[column].len()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..headings.len()).map(width).collect();
        self.line(&self.bold(&aligned(headings.iter().copied(), &widths)))?;
        for row in &rows {
            self.line(&aligned(row.iter().map(|cell| &**cell), &widths))?;
        }
        Ok(())
    }

    /// Bold on a terminal.
    pub fn bold(&self, text: &str) -> String {
        self.styled("1", text)
    }

    /// Faint on a terminal.
    pub fn faint(&self, text: &str) -> String {
        self.styled("2", text)
    }

    /// Red on a terminal.
    pub fn red(&self, text: &str) -> String {
        self.styled("31", text)
    }

    fn styled(&self, style: &str, text: &str) -> String {
        if may_colour(self.is_terminal()) {
            format!("\x1b[{style}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

fn aligned<'a>(cells: impl Iterator<Item = &'a str>, widths: &[usize]) -> String {
    let mut line = String::new();
    for (cell, &width) in cells.zip(widths) {
        line.push_str(&format!("{cell:width$}  "));
    }
    line.truncate(line.trim_end().len());
    line
}

/// How long ago so many ms are.
pub fn ago(ms: u64) -> String {
    const MINUTE: u64 = 60_000;
    const HOUR: u64 = 60 * MINUTE;
    match ms {
        ..MINUTE => format!("{:.1}s ago", ms as f64 / 1000.0),
        MINUTE..HOUR => format!("{}m ago", ms / MINUTE),
        _ if ms < 48 * HOUR => format!("{}h ago", ms / HOUR),
        _ => format!("{}d ago", ms / (24 * HOUR)),
    }
}

/// Whether colours are wanted where a terminal reads.
pub fn may_colour(terminal: bool) -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    terminal && !refused && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Says on stderr what went wrong.
pub fn complain(format: Format, message: &str) {
    let line = match format {
        Format::Text | Format::Prometheus => format!("convoke: {}", printable(message)),
        Format::Json => json(&serde_json::json!({ "error": message })),
    };
    complain_line(&line);
}

/// Writes a printable line on stderr. That nobody reads it changes nothing.
pub fn complain_line(line: &str) {
    writeln!(io::stderr(), "{line}").ok();
}

/// A value on one line that no terminal takes for commands.
pub fn json(value: &Value) -> String {
    armoured(&value.to_string(), escape_in_json)
}

/// Text in which nothing but its characters reaches a terminal.
pub fn printable(text: &str) -> Cow<'_, str> {
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
    fn ages_are_told_in_the_unit_that_fits() {
        let told = [1_234, 59_999, 60_000, 3_599_999, 3_600_000, 172_800_000].map(ago);
        let expected = [
            "1.2s ago",
            "60.0s ago",
            "1m ago",
            "59m ago",
            "1h ago",
            "2d ago",
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn columns_are_aligned_without_trailing_spaces() {
        let line = aligned(["a", "é", ""].into_iter(), &[3, 2, 5]);
        assert_eq!(line, "a    é");
    }
}
