//! What the screen is made of: the last sample, what changed since the ones before, and what the
//! person at the keyboard chose. Knows neither the bus nor the terminal.

use super::act::Act;
use super::flow::{Throughput, measured};
use super::lately::{Lately, Marks};
use super::panel::Panel;
use super::row::Row;
use super::sample::{Focus, LISTED, Sample, Wish};
use crate::cli::output::number;
use convoke::connect::clock::whole_ms;
use convoke::operator::inspect::Stream;
use convoke::protocol::event::EntryId;
use convoke::protocol::keys::StreamKind;
use std::collections::HashMap;
use std::time::Duration;

/// What the keys mean now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Keys move about.
    Looking,
    /// Keys are the text of a filter.
    Filtering,
    /// Keys scroll what was opened.
    Opened { scroll: usize },
    /// Any key ends the help.
    Helping,
    /// Y does what is asked, any other key does not.
    Asking,
}

/// How one panel is looked at.
#[derive(Clone, Debug, Default)]
pub(super) struct View {
    pub(super) sort: Option<usize>,
    pub(super) reversed: bool,
    pub(super) filter: String,
    pub(super) selected: Option<String>,
}

/// No answer from the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    /// Why.
    pub(crate) why: String,
    /// For how long there has been none, in ms.
    pub(crate) for_ms: u64,
}

/// Everything that a frame shows.
pub(super) struct Model {
    /// Whose streams.
    pub(crate) namespace: String,
    /// Which panel has the keys.
    pub(crate) panel: Panel,
    /// What the keys mean.
    pub(crate) mode: Mode,
    /// Whether new samples are dropped.
    pub(crate) paused: bool,
    /// Why there is no newer sample, and for how long.
    pub(crate) trouble: Option<Trouble>,
    /// Whether keys may change anything on the bus.
    pub(crate) acts: bool,
    /// What became of the last thing that was done.
    pub(crate) said: Option<String>,
    pub(super) asked: Option<Act>,
    pub(super) confirmed: Option<Act>,
    sample: Option<Sample>,
    elapsed_ms: Option<u64>,
    flows: HashMap<String, Throughput>,
    marks: Marks,
    pub(super) views: [View; Panel::ALL.len()],
}

impl Model {
    pub(super) fn new(namespace: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            panel: Panel::default(),
            mode: Mode::Looking,
            paused: false,
            trouble: None,
            acts: false,
            said: None,
            asked: None,
            confirmed: None,
            sample: None,
            elapsed_ms: None,
            flows: HashMap::new(),
            marks: Marks::default(),
            views: Default::default(),
        }
    }

    /// The last sample.
    pub(super) fn sample(&self) -> Option<&Sample> {
        self.sample.as_ref()
    }

    /// The time between the last two samples, in ms.
    pub(super) fn elapsed_ms(&self) -> Option<u64> {
        self.elapsed_ms
    }

    /// Takes a sample over, unless paused.
    pub(super) fn apply(&mut self, sample: Sample) {
        self.trouble = None;
        if self.paused {
            return;
        }
        let before = self.sample.as_ref().map(|before| before.at);
        self.elapsed_ms = before
            .and_then(|at| sample.at.checked_sub(at))
            .filter(|ms| *ms > 0);
        // What is not in the sample any more is forgotten.
        let mut flows = HashMap::new();
        for stream in &sample.streams {
            for (id, settled, waiting) in measured(stream) {
                let before = self.flows.remove(&id);
                let flow =
                    Throughput::after(before, stream.added, settled, waiting, self.elapsed_ms);
                flows.insert(id, flow);
            }
        }
        self.flows = flows;
        self.marks.apply(sample.at, &sample.global.handlers);
        self.sample = Some(sample);
    }

    /// Notes that there was no answer, and for how long there has been none.
    pub(super) fn miss(&mut self, why: String, since: Duration) {
        let for_ms = whole_ms(since);
        self.trouble = Some(Trouble { why, for_ms });
    }

    /// Notes that there is still no answer.
    pub(super) fn misses(&mut self, since: Duration) {
        if let Some(trouble) = &mut self.trouble {
            trouble.for_ms = whole_ms(since);
        }
    }

    /// What went through there.
    pub(super) fn flow(&self, id: &str) -> Option<&Throughput> {
        self.flows.get(id)
    }

    /// Entries added to all events and inboxes a second, and settled; `None`: not known.
    pub(super) fn totals(&self) -> (Option<f64>, Option<f64>) {
        let others = self.sample.as_ref().map(|sample| sample.others);
        let others = others.unwrap_or_default();
        let (mut rate_in, mut rate_out) = (others.rate_in, others.rate_out);
        for stream in self.sample.iter().flat_map(|sample| &sample.streams) {
            if !matches!(stream.name.kind, StreamKind::Events | StreamKind::Inbox) {
                continue;
            }
            for (at, (id, ..)) in measured(stream).enumerate() {
                let Some(flow) = self.flows.get(&id) else {
                    continue;
                };
                if let Some(rate) = flow.rate_in.filter(|_| at == 0) {
                    *rate_in.get_or_insert(0.0) += rate;
                }
                if let Some(rate) = flow.rate_out {
                    *rate_out.get_or_insert(0.0) += rate;
                }
            }
        }
        (rate_in, rate_out)
    }

    /// Entries of events and inboxes that were not settled yet.
    pub(super) fn backlog(&self) -> u64 {
        let streams = self.sample.iter().flat_map(|sample| &sample.streams);
        let work = streams
            .filter(|stream| matches!(stream.name.kind, StreamKind::Events | StreamKind::Inbox));
        let close: u64 = work.flat_map(measured).map(|(.., waiting)| waiting).sum();
        let others = self.sample.as_ref().map(|sample| sample.others.waiting);
        close + others.unwrap_or(0)
    }

    /// Dead letters of all streams.
    pub(super) fn dead_letters(&self) -> u64 {
        let streams = self.sample.iter().flat_map(|sample| &sample.streams);
        let dead = streams.filter(|stream| stream.name.kind == StreamKind::Dead);
        let close: u64 = dead.map(|stream| stream.length).sum();
        let others = self
            .sample
            .as_ref()
            .map(|sample| sample.others.dead_letters);
        close + others.unwrap_or(0)
    }

    /// How many of a panel's things there are, listed or not, as text.
    pub(super) fn count(&self, panel: Panel) -> String {
        let Some(sample) = &self.sample else {
            return "-".to_owned();
        };
        let streams = |dead: bool| {
            let kind = |stream: &&Stream| (stream.name.kind == StreamKind::Dead) == dead;
            sample.streams.iter().filter(kind).count()
        };
        let others = &sample.others;
        let part = |close: usize, others: usize| {
            let (close, all) = (close as u64, (close + others) as u64);
            match others {
                0 => number(all),
                _ => format!("{} of {}", number(close), number(all)),
            }
        };
        let tasks = &sample.tasks;
        match panel {
            Panel::Streams => part(streams(false), others.streams),
            Panel::Instances => number(sample.census.known()),
            Panel::Handlers => sample.global.handlers.len().to_string(),
            Panel::Tasks => format!("{} open", number(tasks.pending + tasks.assigned)),
            Panel::Batches => at_most(sample.batches.len()),
            Panel::Ballots => at_most(sample.ballots.len()),
            Panel::Dead if others.dead_streams > 0 => format!(
                "{}, {} streams",
                number(self.dead_letters()),
                part(streams(true), others.dead_streams)
            ),
            Panel::Dead => number(self.dead_letters()),
        }
    }

    /// Whether not all of a panel's streams are shown.
    pub(super) fn is_cut(&self, panel: Panel) -> bool {
        let others = self.sample.as_ref().map(|sample| sample.others);
        let others = others.unwrap_or_default();
        match panel {
            Panel::Streams => others.streams > 0,
            Panel::Dead => others.dead_streams > 0,
            _ => false,
        }
    }

    /// The domain whose events a row of the streams shows.
    pub(super) fn domain_of(&self, id: &str) -> Option<&str> {
        let streams = &self.sample.as_ref()?.streams;
        let events = |stream: &&Stream| stream.name.kind == StreamKind::Events;
        let shown = |stream: &&Stream| measured(stream).any(|(row, ..)| row == id);
        let stream = streams.iter().filter(events).find(shown)?;
        Some(&stream.name.part)
    }

    /// What a handler did lately.
    pub(super) fn lately(&self, kind: &str) -> Lately {
        let now = self.sample.as_ref();
        let now = now.and_then(|sample| Some((sample.at, sample.global.handlers.get(kind)?)));
        now.map_or_else(Lately::default, |(at, now)| self.marks.since(at, kind, now))
    }

    /// Where the selected one of these rows is; the first if it is gone.
    pub(super) fn selected(&self, panel: Panel, rows: &[Row]) -> Option<usize> {
        let id = self.views[panel as usize].selected.as_deref();
        let at = id.and_then(|id| rows.iter().position(|row| row.id == id));
        (!rows.is_empty()).then_some(at.unwrap_or(0))
    }

    /// By which column a panel is sorted, and whether backwards.
    pub(super) fn order(&self, panel: Panel) -> (Option<usize>, bool) {
        let view = &self.views[panel as usize];
        (view.sort, view.reversed)
    }

    /// The filter of a panel.
    pub(super) fn filter(&self, panel: Panel) -> &str {
        &self.views[panel as usize].filter
    }

    /// The row that is open.
    pub(super) fn focus(&self) -> Option<Focus> {
        matches!(self.mode, Mode::Opened { .. })
            .then(|| self.views[self.panel as usize].selected.clone())
            .flatten()
            .map(|id| Focus {
                panel: self.panel,
                id,
            })
    }

    /// What is wanted of the next sample.
    pub(super) fn wish(&self) -> Wish {
        let filter = |panel: Panel| self.filter(panel).to_lowercase();
        Wish {
            focus: self.focus(),
            filters: [filter(Panel::Streams), filter(Panel::Dead)],
        }
    }

    /// What is asked now.
    pub(super) fn question(&self) -> Option<String> {
        let asked = self.asked.as_ref().filter(|_| self.mode == Mode::Asking);
        asked.map(Act::question)
    }

    /// What is to be done now.
    pub(super) fn take_act(&mut self) -> Option<Act> {
        self.confirmed.take()
    }

    /// Notes what became of it.
    pub(super) fn tell(&mut self, said: String) {
        self.said = Some(said);
    }

    /// The dead letters that are shown, where a stream of such is open.
    pub(super) fn letters(&self) -> Option<&[String]> {
        let focus = self.focus().filter(|focus| focus.panel == Panel::Dead)?;
        let opened = self.sample()?.opened.as_ref()?;
        let is_it = opened.focus == focus && !opened.lines.is_empty();
        is_it.then_some(opened.lines.as_slice())
    }

    /// Which of them is marked.
    pub(super) fn letter(&self) -> Option<usize> {
        let Mode::Opened { scroll } = self.mode else {
            return None;
        };
        Some(scroll.min(self.letters()?.len() - 1))
    }

    /// What replays the letter that is marked.
    pub(super) fn replay_of_letter(&self) -> Option<Act> {
        let line = self.acts.then(|| self.letters()?.get(self.letter()?))??;
        let (entry, about) = line.split_once(' ')?;
        let entry: EntryId = entry.parse().ok()?;
        Some(Act::Replay {
            stream: self.focus()?.id,
            from: entry,
            to: entry,
            count: 1,
            about: about.chars().take(40).collect(),
        })
    }

    /// What replays the letters of a stream that are there now.
    pub(super) fn replay_of_all(&self, key: &str) -> Option<Act> {
        let mut streams = self.sample()?.streams.iter();
        let stream = streams.find(|stream| stream.name.key == key)?;
        (stream.length > 0).then(|| Act::Replay {
            stream: key.to_owned(),
            from: EntryId::default(),
            to: stream.last,
            count: stream.length,
            about: String::new(),
        })
    }

    /// Keeps what was opened from being scrolled out of sight.
    pub(super) fn bound_scroll(&mut self, most: usize) {
        if let Mode::Opened { scroll } = &mut self.mode {
            *scroll = (*scroll).min(most);
        }
    }
}

/// How many were listed; there may be more.
fn at_most(listed: usize) -> String {
    match listed {
        LISTED => format!("{listed}+"),
        listed => listed.to_string(),
    }
}
