//! The state and what is drawn of it, without a bus and without a terminal.

use super::brush::Brush;
use super::draw;
use super::draw::text_of;
use super::flow::HISTORY;
use super::object;
use super::panels;
use super::row::{Content, Row};
use super::sample::{Focus, Opened, Others, Sample};
use super::state::{Key, Mode, Panel, State};
use crate::cli::output::printable;
use convoke::coordination::ballots::ballot::{Ballot, BallotStatus};
use convoke::coordination::batches::batch::Batch;
use convoke::coordination::instances::instance::Instance;
use convoke::coordination::instances::roster::{Census, Condition};
use convoke::coordination::metrics::HandlerSums;
use convoke::operator::inspect::{Group, Stream};
use convoke::protocol::event::EntryId;
use convoke::protocol::histogram::{Histogram, bucket_of};
use convoke::protocol::keys::Keys;
use proptest::prelude::*;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier};
use std::time::Duration;

const AT: u64 = 1_700_000_000_000;
const COLOURS: Brush = Brush { colours: true };

/// A stream with a group: added, delivered, pending.
fn stream(key: &str, added: u64, read: u64, pending: u64) -> Stream {
    let name = Keys::new("cb").unwrap().stream_name(key).unwrap();
    let group = Group {
        name: "workers".into(),
        consumers: 1,
        pending,
        lag: added.checked_sub(read),
        read: Some(read),
        delivered: EntryId::default(),
        oldest: (added + pending > read).then_some(EntryId { ms: AT, seq: 0 }),
    };
    Stream {
        groups: if key.contains(":dead:") {
            Vec::new()
        } else {
            vec![group]
        },
        name,
        length: added,
        first: Some(EntryId { ms: AT, seq: 0 }),
        last: EntryId { ms: AT, seq: 9 },
        added: Some(added),
    }
}

fn handler(calls: u64, errors: u64, each_us: u64) -> HandlerSums {
    let counts = [(bucket_of(each_us), calls)].into();
    HandlerSums {
        calls,
        errors,
        latency: Some(Histogram {
            counts,
            sum: calls * each_us,
        }),
        ..HandlerSums::default()
    }
}

/// Something of everything.
fn sample(at: u64) -> Sample {
    let mut sample = Sample {
        at,
        census: Census {
            at,
            active: 2,
            suspect: 1,
            ..Census::default()
        },
        leader: Some("w-1".into()),
        streams: vec![
            stream("cb:events:image", 100, 90, 5),
            stream("cb:events:report", 7, 7, 0),
            stream("cb:dead:image", 3, 0, 0),
        ],
        ..Sample::default()
    };
    for (id, condition, load) in [
        ("w-1", Condition::Healthy, 5.0),
        ("w-2", Condition::Suspect, 12.0),
    ] {
        let instance = Instance {
            id: id.into(),
            roles: vec!["worker".into()],
            capacity: 10,
            load,
            ttl_ms: 30_000,
            last_seen: at - 1_000,
            registered_at: at - 60_000,
            started_at: at - 60_000,
            sealed: true,
            ..Instance::default()
        };
        sample.instances.push((condition, instance));
    }
    let handlers = &mut sample.global.handlers;
    handlers.insert("image.resize".into(), handler(50, 2, 20_000));
    sample.global.circuits.insert("image.resize".into(), "open");
    sample.batches.push(Batch {
        id: "import-1".into(),
        item_type: "image.resize".into(),
        processed: 30,
        failed: 10,
        total: 80,
        expires_at: at + 1000,
        ..Batch::default()
    });
    sample.ballots.push(Ballot {
        decision: "upgrade-42".into(),
        status: BallotStatus::Open,
        role: None,
        vote_count: 1,
        leading: 1,
        quorum: 2,
        electorate: 3,
        opened_at: at - 5_000,
        expires_at: at + 60_000,
        ended_at: None,
        kept_until: at + 100_000,
        value: None,
    });
    sample
}

fn state() -> State {
    let mut state = State::new("cb");
    state.apply(sample(AT));
    state
}

fn ids(rows: &[Row]) -> Vec<&str> {
    rows.iter().map(|row| row.id.as_str()).collect()
}

fn press(state: &mut State, keys: &str) {
    for key in keys.chars() {
        assert!(!state.press(Key::Char(key), 10), "{key} ends it");
    }
}

fn drawn(state: &State, brush: Brush, width: u16, height: u16) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal
        .draw(|frame| {
            let area = frame.area();
            draw::draw(state, brush, area, frame.buffer_mut());
        })
        .unwrap();
    terminal.backend().buffer().clone()
}

fn frame(state: &State, width: u16, height: u16) -> String {
    text_of(&drawn(state, COLOURS, width, height))
}

#[test]
fn rates_are_what_came_between_two_samples() {
    let mut state = state();
    assert_eq!(state.totals(), (None, None));
    let mut next = sample(AT + 2_000);
    next.streams[0] = stream("cb:events:image", 150, 130, 15);
    state.apply(next);
    let flow = state.flow("cb:events:image workers").unwrap();
    // 50 came in 2 s; settled were 85, now 115.
    assert_eq!((flow.rate_in, flow.rate_out), (Some(25.0), Some(15.0)));
    assert_eq!(flow.waiting, [15.0, 35.0]);
    assert_eq!(state.totals(), (Some(25.0), Some(15.0)));
    assert_eq!(state.backlog(), 35);
    assert_eq!(state.dead_letters(), 3);
}

#[test]
fn a_counter_that_began_again_and_a_clock_that_went_back_give_no_rate() {
    let mut state = state();
    let mut next = sample(AT + 1_000);
    next.streams[0] = stream("cb:events:image", 1, 1, 0);
    state.apply(next);
    let flow = state.flow("cb:events:image workers").unwrap();
    assert_eq!((flow.rate_in, flow.rate_out), (None, None));
    for at in [AT + 1_000, AT] {
        state.apply(sample(at));
        assert_eq!(state.elapsed_ms(), None);
        assert_eq!(state.totals(), (None, None));
        assert_eq!(state.lately("image.resize").calls, None);
    }
}

#[test]
fn totals_are_of_all_streams_and_what_is_not_shown_is_said() {
    let mut state = state();
    let mut next = sample(AT + 2_000);
    next.others = Others {
        streams: 5_000,
        dead_streams: 100_000,
        waiting: 6_000,
        dead_letters: 100_000,
        rate_in: Some(7.0),
        rate_out: None,
    };
    state.apply(next);
    assert_eq!(state.totals(), (Some(7.0), Some(0.0)));
    assert_eq!((state.backlog(), state.dead_letters()), (6_015, 100_003));
    let shown = frame(&state, 200, 50);
    for part in [
        "6,015 waiting",
        "100,003 dead",
        "Streams 2 of 5,002",
        "Dead 100,003, 1 of 100,001 streams",
        "those with the most are shown, / finds any",
    ] {
        assert!(shown.contains(part), "{part} is not in\n{shown}");
    }
    let object = object::of(&state).unwrap();
    assert_eq!(object["streams_found"], 105_003);
}

#[test]
fn dead_letters_have_a_rate_whoever_reads_them() {
    let mut state = state();
    let read_by_a_ledger = |added: u64| {
        let mut dead = stream("cb:dead:image", added, 0, 0);
        dead.groups = stream("cb:events:x", added, added, 0).groups;
        dead
    };
    let mut rate = |at: u64, dead: Stream| {
        let mut next = sample(at);
        next.streams[2] = dead;
        state.apply(next);
        state
            .flow("cb:dead:image")
            .map(|flow| (flow.rate_in, flow.waiting.back().copied()))
    };
    let without = rate(AT + 1_000, stream("cb:dead:image", 13, 0, 0));
    assert_eq!(without, Some((Some(10.0), Some(13.0))));
    let with = rate(AT + 2_000, read_by_a_ledger(18));
    assert_eq!(with, Some((Some(5.0), Some(18.0))));
}

#[test]
fn what_is_gone_from_the_bus_is_forgotten() {
    let mut state = state();
    let mut next = sample(AT + 1_000);
    next.streams.remove(0);
    state.apply(next);
    assert!(state.flow("cb:events:image workers").is_none());
    assert!(state.flow("cb:events:report workers").is_some());
}

#[test]
fn quantiles_are_of_lately() {
    let mut state = state();
    let mut next = sample(AT + 10_000);
    let mut now = handler(50, 2, 20_000);
    // A hundred more, all slower.
    now.calls = 150;
    now.errors = 7;
    let slow = handler(100, 0, 800_000).latency.unwrap();
    now.latency.as_mut().unwrap().add(&slow);
    next.global.handlers.insert("image.resize".into(), now);
    state.apply(next);
    let lately = state.lately("image.resize");
    assert_eq!((lately.calls, lately.errors), (Some(10.0), Some(0.5)));
    let latency = lately.latency.unwrap();
    assert_eq!(latency.count(), 100);
    assert!((700.0..900.0).contains(&latency.quantile_ms(0.1)));
}

#[test]
fn a_pause_holds_what_is_shown() {
    let mut state = state();
    press(&mut state, "p");
    let shown = frame(&state, 80, 24);
    assert!(shown.contains("PAUSED"));
    let mut next = sample(AT + 1_000);
    next.streams.clear();
    state.apply(next);
    assert_eq!(frame(&state, 80, 24), shown);
    press(&mut state, "p");
    state.apply(sample(AT + 3_000));
    assert_eq!(state.elapsed_ms(), Some(3_000));
}

#[test]
fn the_selection_stays_with_its_row() {
    let mut state = state();
    assert_eq!(
        ids(&state.rows(Panel::Streams)),
        ["cb:events:image workers", "cb:events:report workers"]
    );
    state.press(Key::Down, 10);
    press(&mut state, "ssr");
    let rows = state.rows(Panel::Streams);
    assert_eq!(rows[1].id, "cb:events:image workers", "by group, reversed");
    let at = state.selected(Panel::Streams, &rows);
    assert_eq!(at, Some(0), "the second row went up");
    state.press(Key::End, 10);
    state.press(Key::Enter, 10);
    let focus = Focus {
        panel: Panel::Streams,
        id: "cb:events:image workers".into(),
    };
    assert_eq!(state.focus(), Some(focus));
    state.press(Key::Escape, 10);
    assert_eq!((state.focus(), state.mode), (None, Mode::Looking));
}

#[test]
fn every_column_sorts_and_then_none_does() {
    let mut state = state();
    press(&mut state, "2");
    // LOAD is the fourth column; the highest comes first.
    press(&mut state, "ssss");
    assert_eq!(ids(&state.rows(Panel::Instances)), ["w-2", "w-1"]);
    assert!(frame(&state, 80, 24).contains("LOAD▾"));
    press(&mut state, "r");
    assert_eq!(ids(&state.rows(Panel::Instances)), ["w-1", "w-2"]);
    assert!(frame(&state, 80, 24).contains("LOAD▴"));
    press(&mut state, "r");
    for _ in panels::columns(Panel::Instances).iter().skip(3) {
        press(&mut state, "s");
    }
    assert_eq!(state.order(Panel::Instances), (None, false));
}

#[test]
fn a_filter_leaves_what_contains_it() {
    let mut state = state();
    press(&mut state, "/RepQ");
    state.press(Key::Backspace, 10);
    assert!(frame(&state, 80, 24).contains("filter: Rep_"));
    assert_eq!(
        ids(&state.rows(Panel::Streams)),
        ["cb:events:report workers"]
    );
    state.press(Key::Enter, 10);
    // It is one panel's own, and Esc ends nothing else.
    assert_eq!(state.rows(Panel::Instances).len(), 2);
    assert_eq!(state.wish().filters, ["rep".to_owned(), String::new()]);
    assert!(!state.press(Key::Escape, 10));
    assert_eq!(state.rows(Panel::Streams).len(), 2);
    assert!(!state.press(Key::Escape, 10));
    press(&mut state, "/q");
    assert!(state.press(Key::Interrupt, 10), "Ctrl-C ends it always");
}

#[test]
fn a_small_terminal_shows_one_panel_and_the_keys_reach_all() {
    let mut state = state();
    state.apply(sample(AT + 1_000));
    for (key, parts) in [
        ("1", &["events:image", "workers", "LAG", "100"][..]),
        (
            "2",
            &["w-1", "healthy", "worker (leads)", "suspect", "1m0s"],
        ),
        ("3", &["image.resize", "19ms", "open"]),
        ("4", &["no tasks"]),
        ("5", &["import-1", "running", "50%"]),
        ("6", &["upgrade-42", "open", "33%"]),
        ("7", &["dead:image", "3"]),
    ] {
        press(&mut state, key);
        let shown = frame(&state, 80, 24);
        for part in parts {
            assert!(shown.contains(part), "{part} is not in\n{shown}");
        }
        assert_eq!(shown.lines().count(), 24);
        assert!(shown.contains("2 healthy") || shown.contains("1 healthy"));
        assert!(shown.ends_with("q quit\n"), "{shown}");
    }
}

#[test]
fn a_large_terminal_shows_everything_at_once() {
    let shown = frame(&state(), 200, 50);
    for part in [
        "1 Streams 2",
        "2 Instances 2",
        "3 Handlers 1",
        "4 Tasks 0 open",
        "5 Batches 1",
        "6 Ballots 1",
        "7 Dead 3",
        "events:image",
        "image.resize",
        "import-1",
        "upgrade-42",
        "dead:image",
    ] {
        assert!(shown.contains(part), "{part} is not in\n{shown}");
    }
}

#[test]
fn a_row_opens_with_everything_that_is_known() {
    let mut state = state();
    press(&mut state, "7");
    state.press(Key::Enter, 10);
    let mut next = sample(AT + 1_000);
    next.opened = Some(Opened {
        focus: state.focus().unwrap(),
        lines: vec!["7-1 image.resize: poison: \x1b[2Jit kills".into()],
    });
    state.apply(next);
    let shown = frame(&state, 80, 24);
    assert!(shown.contains("cb:dead:image"), "{shown}");
    assert!(shown.contains("poison: \\u{1b}[2Jit kills"), "{shown}");
    state.apply(Sample::default());
    assert!(frame(&state, 80, 24).contains("not there any more"));
}

#[test]
fn colours_are_the_terminals_own_and_nothing_sets_a_background() {
    let mut state = state();
    for key in "1234567".chars() {
        press(&mut state, &key.to_string());
        for (width, height) in [(80, 24), (200, 50)] {
            for cell in drawn(&state, COLOURS, width, height).content() {
                assert_eq!(cell.bg, Color::Reset);
                let own = [Color::Reset, Color::Red, Color::Green, Color::Yellow];
                assert!(own.contains(&cell.fg), "{:?}", cell.fg);
            }
            let plain = drawn(&state, Brush { colours: false }, width, height);
            assert!(plain.content().iter().all(|cell| cell.fg == Color::Reset));
            let reversed =
                |cell: &&ratatui::buffer::Cell| cell.modifier.contains(Modifier::REVERSED);
            assert!(plain.content().iter().any(|cell| reversed(&cell)));
        }
    }
}

#[test]
fn nothing_from_the_bus_drives_the_terminal() {
    let evil = "x\x1b[2J\u{202e}";
    let mut sample = sample(AT);
    sample.instances[0].1.id = evil.into();
    sample.leader = Some(evil.into());
    sample.batches[0].processor_id = evil.into();
    sample.problems.push(evil.into());
    sample.global.handlers.insert(evil.into(), handler(1, 0, 1));
    let mut state = State::new("cb");
    state.apply(sample);
    for key in "1234567".chars() {
        press(&mut state, &key.to_string());
        let shown = frame(&state, 200, 50);
        assert!(shown.contains("x\\u{1b}[2J\\u{202e}"), "{shown}");
        assert!(!shown.chars().any(|c| c == '\x1b' || c == '\u{202e}'));
        for row in state.rows(state.panel) {
            for cell in &row.cells {
                if let Content::Text(text) = &cell.content {
                    assert_eq!(*text, printable(text), "{}", row.id);
                }
            }
            for (name, text) in &row.more {
                assert_eq!(*text, printable(text), "{name} of {}", row.id);
            }
        }
    }
    let page = draw::page(&state, 80);
    assert!(page.ends_with("not seen: x\\u{1b}[2J\\u{202e}\n"), "{page}");
    assert!(!page.chars().any(|c| c == '\x1b' || c == '\u{202e}'));
}

#[test]
fn trouble_is_told_until_there_is_news() {
    let mut state = state();
    state.miss("connection refused".into(), Duration::from_secs(3));
    state.misses(Duration::from_secs(75));
    let shown = frame(&state, 120, 24);
    for part in [
        "REDIS DOES NOT ANSWER for 1m15s  last news 2023-11-14T22:13:20.000Z",
        "connection refused; what is shown is old",
    ] {
        assert!(shown.contains(part), "{part} is not in\n{shown}");
    }
    assert!(frame(&state, 80, 24).contains("REDIS DOES NOT ANSWER for 1m15s"));
    press(&mut state, "p");
    state.apply(sample(AT + 1_000));
    assert!(!frame(&state, 80, 24).contains("NOT ANSWER"));
}

#[test]
fn one_page_holds_every_panel() {
    let mut state = state();
    let mut next = sample(AT + 1_000);
    let many = (0..40).map(|n| stream(&format!("cb:events:d{n}"), 1, 1, 0));
    next.streams.extend(many);
    state.apply(next);
    for width in [1, 40, 80, 200] {
        let page = draw::page(&state, width);
        for part in ["Streams 42", "… and 12 more", "Dead 3", "no tasks"] {
            assert!(page.contains(part), "{part} is not in\n{page}");
        }
        assert!(
            page.lines()
                .all(|line| line.chars().count() <= usize::from(width.max(20)))
        );
    }
    let object = object::of(&state).unwrap();
    assert_eq!(object["streams"].as_array().unwrap().len(), 42);
    assert_eq!(object["dead_letters"], 3);
}

fn key() -> impl Strategy<Value = Key> {
    prop_oneof![
        6 => proptest::sample::select(vec![
            Key::Up, Key::Down, Key::PageUp, Key::PageDown, Key::Home, Key::End, Key::Tab,
            Key::BackTab, Key::Enter, Key::Backspace, Key::Escape,
        ]),
        4 => proptest::sample::select("1234567sr/p?jkGgx".chars().collect::<Vec<_>>())
            .prop_map(Key::Char),
    ]
}

/// What happens: a key, or a sample with this many streams so much later.
#[derive(Clone, Debug)]
enum Step {
    Press(Key),
    Apply {
        later: u64,
        streams: u8,
        added: u64,
        pending: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        key().prop_map(Step::Press),
        (0..20_000u64, 0..5u8, 0..1000u64, 0..100u64).prop_map(
            |(later, streams, added, pending)| Step::Apply {
                later,
                streams,
                added,
                pending
            }
        ),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_the_state_holds_together_and_can_be_drawn(
        steps in proptest::collection::vec(step(), 1..60),
        width in 0..220u16,
        height in 0..60u16,
    ) {
        let mut state = State::new("cb");
        let mut at = AT;
        for step in steps {
            match step {
                Step::Press(key) => {
                    if state.press(key, 5) {
                        break;
                    }
                }
                Step::Apply { later, streams, added, pending } => {
                    at += later;
                    let mut next = sample(at);
                    let names = (0..streams).map(|n| format!("cb:events:d{n}"));
                    next.streams = names.map(|key| stream(&key, added, added, pending)).collect();
                    state.apply(next);
                }
            }
            for panel in Panel::ALL {
                let rows = state.rows(panel);
                let selected = state.selected(panel, &rows);
                prop_assert_eq!(selected.is_none(), rows.is_empty());
                prop_assert!(selected.is_none_or(|at| at < rows.len()));
                for row in &rows {
                    for cell in &row.cells {
                        if let Content::Spark(values) = &cell.content {
                            prop_assert!(values.len() <= HISTORY);
                            prop_assert!(values.iter().all(|v| v.is_finite() && *v >= 0.0));
                        }
                    }
                }
            }
            prop_assert_eq!(state.focus().is_some(), matches!(state.mode, Mode::Opened { .. }));
        }
        let area = Rect::new(0, 0, width, height);
        let mut buffer = Buffer::empty(area);
        let drawn = draw::draw(&state, COLOURS, area, &mut buffer);
        prop_assert!(drawn.page <= usize::from(height));
    }
}
