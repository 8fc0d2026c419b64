//! What stands above and below the panels.

use super::act::Act;
use super::brush::{Brush, Piece};
use super::model::{Mode, Model};
use super::panel::{self, Panel};
use super::row::{Tone, rate};
use super::sample::Sample;
use crate::cli::doctor::{FULL, TIGHT};
use crate::cli::output::{bytes, date, number, printable, span};
use ratatui::style::{Modifier, Style};
use unicode_width::UnicodeWidthStr;

/// Between two pieces of the header.
const BETWEEN: &str = "  ";

const HINTS: &str =
    "Tab panel · ↑↓ move · Enter open · s sort · / filter · p pause · ? help · q quit";

impl Brush {
    pub(super) fn header(self, model: &Model, width: u16) -> [Vec<Piece>; 2] {
        let bold = Style::new().add_modifier(Modifier::BOLD);
        let mut first = vec![(format!("convoke top {}", printable(&model.namespace)), bold)];
        if model.paused {
            first.push(self.piece(Tone::Warn, "PAUSED"));
        }
        if let Some(trouble) = &model.trouble {
            let away = format!("REDIS DOES NOT ANSWER for {}", span(trouble.for_ms));
            first.push(self.piece(Tone::Bad, away));
            if let Some(sample) = model.sample() {
                let last = format!("last news {}", date(sample.at));
                first.push(self.piece(Tone::Bad, last));
            }
            let why = format!("{}; what is shown is old", printable(&trouble.why));
            return [fit(first, width), vec![self.piece(Tone::Bad, why)]];
        }
        let Some(sample) = model.sample() else {
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
        for away in &sample.away {
            let text = format!("{} AWAY", printable(&away.node));
            first.push(self.piece(Tone::Bad, text));
        }
        match &sample.leader {
            Some(leader) => {
                first.push(self.piece(Tone::Plain, format!("leader {}", printable(leader))))
            }
            None => first.push(self.piece(Tone::Warn, "no leader")),
        }
        for (event, pattern) in &sample.patterns {
            first.push(self.piece(Tone::Plain, format!("{event} {pattern}")));
        }
        let (rate_in, rate_out) = model.totals();
        let said = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), rate);
        let waiting: u64 = model.backlog();
        let dead = model.dead_letters();
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
            self.redis(sample),
            self.piece(
                Tone::Plain,
                format!("workers {}", bytes(sample.global.memory_bytes)),
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

    /// What the server uses of its memory.
    fn redis(self, sample: &Sample) -> Piece {
        let Some(told) = &sample.memory else {
            return self.piece(Tone::Faint, "redis -");
        };
        let used = match told.memory.limit {
            0 => format!("redis {}", bytes(told.memory.used)),
            limit => format!("redis {} of {}", bytes(told.memory.used), bytes(limit)),
        };
        let Some(share) = told.share() else {
            return self.piece(Tone::Plain, used);
        };
        let tone = match share {
            share if share >= FULL => Tone::Bad,
            share if share >= TIGHT => Tone::Warn,
            _ => Tone::Plain,
        };
        let fullest = match told.fullest {
            None => String::new(),
            Some(_) => format!(", a node {:.0} %", share * 100.0),
        };
        self.piece(tone, used + &fullest)
    }

    pub(super) fn footer(self, model: &Model) -> Piece {
        let filter = printable(model.filter(model.panel));
        if model.mode == Mode::Filtering {
            let text = format!("filter: {filter}_   Enter keeps it, Esc ends it");
            return self.piece(Tone::Warn, text);
        }
        if let Some(question) = model.question() {
            let text = format!(
                "{}   y does it, any other key does not",
                printable(&question)
            );
            return self.piece(Tone::Warn, text);
        }
        if let Some(said) = &model.said {
            return self.piece(Tone::Warn, printable(said).into_owned());
        }
        let problem = model.sample().and_then(|sample| sample.problems.first());
        if let Some(problem) = problem {
            return self.piece(Tone::Warn, format!("not seen: {}", printable(problem)));
        }
        match model.mode {
            Mode::Opened { .. } => {
                let hints = match model.acts && model.letter().is_some() {
                    true => "↑↓ another letter · e replays it · Esc back · q quit",
                    false => "↑↓ scroll · Esc back · q quit",
                };
                self.piece(Tone::Faint, hints)
            }
            Mode::Helping => self.piece(Tone::Faint, "any key goes back · q quit"),
            _ => {
                let mut told = String::new();
                if model.is_cut(model.panel) {
                    told = "those with the most are shown, / finds any · ".to_owned();
                }
                if !filter.is_empty() {
                    told.push_str(&format!("filter: {filter} (Esc ends it) · "));
                }
                if let (Some(column), _) = model.order(model.panel) {
                    let column = panel::columns(model.panel)[column].heading;
                    told.push_str(&format!("sorted by {column} · "));
                }
                if model.acts {
                    told.push_str(Act::hints(model.panel));
                }
                self.piece(Tone::Faint, told + HINTS)
            }
        }
    }

    pub(super) fn tabs(self, model: &Model, width: u16) -> Vec<Piece> {
        let tabs = |long: bool| -> Vec<Piece> {
            let mut pieces = Vec::new();
            for (at, panel) in Panel::ALL.into_iter().enumerate() {
                let text = match long {
                    true => format!(" {} {} ", at + 1, title(model, panel)),
                    false => format!(" {} {} ", at + 1, panel.title()),
                };
                pieces.push((text, self.title_style(model, panel)));
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

    pub(super) fn title_style(self, model: &Model, panel: Panel) -> Style {
        match model.panel == panel {
            true => Style::new().add_modifier(Modifier::BOLD | Modifier::REVERSED),
            false => Style::new().add_modifier(Modifier::BOLD),
        }
    }
}

/// A panel's title, with how much there is.
pub(super) fn title(model: &Model, panel: Panel) -> String {
    format!("{} {}", panel.title(), model.count(panel))
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
