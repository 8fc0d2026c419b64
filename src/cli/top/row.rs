//! Rows, cells and columns, before they meet a terminal.

use crate::cli::output::{bytes, number, printable, span};
use std::cmp::Ordering;

/// Characters of one cell.
const LONGEST: usize = 300;

/// One column.
#[derive(Clone, Copy, Debug)]
pub(super) struct Column {
    /// Its heading.
    pub(crate) heading: &'static str,
    /// Numbers stand on the right.
    pub(crate) right: bool,
    /// Where there is no room the highest goes first; 0 stays.
    pub(crate) spare: u8,
    /// How narrow it may become, where it may.
    pub(crate) least: Option<u16>,
    /// Whether it takes the room that is left.
    pub(crate) grows: bool,
}

pub(super) const fn text(heading: &'static str, spare: u8) -> Column {
    Column {
        heading,
        right: false,
        spare,
        least: None,
        grows: false,
    }
}

pub(super) const fn name(heading: &'static str, spare: u8, least: u16) -> Column {
    Column {
        least: Some(least),
        ..text(heading, spare)
    }
}

pub(super) const fn count(heading: &'static str, spare: u8) -> Column {
    Column {
        right: true,
        ..text(heading, spare)
    }
}

pub(super) const fn graph(heading: &'static str, spare: u8, least: u16) -> Column {
    Column {
        grows: true,
        ..name(heading, spare, least)
    }
}

/// How a cell looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Tone {
    #[default]
    Plain,
    /// Matters less.
    Faint,
    /// Alive, fine.
    Good,
    /// Worth a look.
    Warn,
    /// Wrong, gone, dangerous.
    Bad,
}

/// What stands in a cell.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Content {
    Text(String),
    /// Values after each other, the latest last.
    Spark(Vec<f64>),
    /// A part of the whole.
    Bar(f64),
}

/// One cell.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Cell {
    pub(crate) content: Content,
    pub(crate) tone: Tone,
    rank: Rank,
}

impl Cell {
    pub(super) fn new(content: Content, rank: Rank) -> Self {
        Self {
            content,
            tone: Tone::Plain,
            rank,
        }
    }

    pub(super) fn text(text: &str) -> Self {
        let short: String = text.chars().take(LONGEST).collect();
        let text = printable(&short).into_owned();
        let rank = match text.is_empty() {
            true => Rank::Nothing,
            false => Rank::Text(text.clone()),
        };
        Self::new(Content::Text(text), rank)
    }

    pub(super) fn said(text: String, value: f64) -> Self {
        Self::new(Content::Text(text), Rank::Number(value))
    }

    pub(super) fn unknown() -> Self {
        Self::new(Content::Text("-".into()), Rank::Nothing).tone(Tone::Faint)
    }

    pub(super) fn number(value: u64) -> Self {
        Self::said(number(value), value as f64)
    }

    pub(super) fn rate(value: Option<f64>) -> Self {
        value.map_or_else(Self::unknown, |value| Self::said(rate(value), value))
    }

    pub(super) fn bytes(value: Option<u64>) -> Self {
        value.map_or_else(Self::unknown, |value| {
            Self::said(bytes(value), value as f64)
        })
    }

    /// How long ago; the oldest comes first.
    pub(super) fn age(at: u64, now: u64) -> Self {
        let ms = now.saturating_sub(at);
        Self::said(span(ms), ms as f64)
    }

    pub(super) fn spark(values: Vec<f64>) -> Self {
        let last = values.last().copied().unwrap_or(0.0);
        Self::new(Content::Spark(values), Rank::Number(last))
    }

    pub(super) fn bar(done: u64, total: u64) -> Self {
        let part = match total {
            0 => 1.0,
            total => done as f64 / total as f64,
        };
        Self::new(Content::Bar(part.clamp(0.0, 1.0)), Rank::Number(part))
    }

    pub(super) fn tone(mut self, tone: Tone) -> Self {
        self.tone = tone;
        self
    }

    /// With that tone if there is any.
    pub(super) fn warn_if(self, holds: bool, tone: Tone) -> Self {
        match holds {
            true => self.tone(tone),
            false => self,
        }
    }
}

/// One row.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row {
    /// Its name, which stays the same from sample to sample.
    pub(crate) id: String,
    /// A cell for each column.
    pub(crate) cells: Vec<Cell>,
    /// What is shown of it when it is opened, besides the cells.
    pub(crate) more: Vec<(&'static str, String)>,
}

impl Row {
    pub(super) fn new<const N: usize>(id: &str, cells: [Cell; N]) -> Self {
        Self {
            id: id.to_owned(),
            cells: cells.into(),
            more: Vec::new(),
        }
    }

    pub(super) fn more(mut self, name: &'static str, text: impl AsRef<str>) -> Self {
        let text = printable(text.as_ref()).into_owned();
        self.more.push((name, text));
        self
    }

    /// What it is sorted by in that column.
    pub(super) fn rank(&self, column: usize) -> &Rank {
        self.cells.get(column).map_or(&Rank::Nothing, |c| &c.rank)
    }

    /// Whether a text in small letters stands in it.
    pub(super) fn contains(&self, wanted: &str) -> bool {
        let texts = self.cells.iter().filter_map(|cell| match &cell.content {
            Content::Text(text) => Some(text),
            _ => None,
        });
        texts
            .into_iter()
            .any(|text| text.to_lowercase().contains(wanted))
    }
}

/// A row's sort key: of numbers the highest come first, of texts the first; nothing comes last.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Rank {
    Number(f64),
    Text(String),
    Nothing,
}

impl Rank {
    /// Which comes first.
    pub(super) fn compare(&self, other: &Rank) -> Ordering {
        let place = |rank: &Rank| match rank {
            Rank::Number(_) => 0,
            Rank::Text(_) => 1,
            Rank::Nothing => 2,
        };
        match (self, other) {
            (Rank::Number(a), Rank::Number(b)) => b.total_cmp(a),
            (Rank::Text(a), Rank::Text(b)) => a.cmp(b),
            (a, b) => place(a).cmp(&place(b)),
        }
    }
}

/// A rate as people read it.
pub(super) fn rate(value: f64) -> String {
    match value {
        0.0 => "0".to_owned(),
        value if value < 9.95 => format!("{value:.1}"),
        value => number(value.round() as u64),
    }
}

/// A latency as people read it.
pub(super) fn latency(ms: f64) -> String {
    match ms {
        ms if ms < 1.0 => format!("{:.0}µs", ms * 1000.0),
        ms if ms < 10.0 => format!("{ms:.1}ms"),
        ms => span(ms.round() as u64),
    }
}
