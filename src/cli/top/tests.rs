//! The model and what is drawn of it, without a bus and without a terminal.

mod drawn;

use super::act::Act;
use super::flow::HISTORY;
use super::keys::Key;
use super::model::{Mode, Model};
use super::panel::Panel;
use super::row::{Content, Row};
use super::sample::{Focus, Opened, Others, Sample};
use super::{draw, object, panel};
use convoke::coordination::ballots::ballot::{Ballot, BallotStatus};
use convoke::coordination::batches::batch::Batch;
use convoke::coordination::instances::instance::Instance;
use convoke::coordination::instances::roster::{Census, Condition};
use convoke::coordination::metrics::HandlerSums;
use convoke::operator::inspect::{Group, Stream};
use convoke::protocol::event::EntryId;
use convoke::protocol::histogram::{Histogram, bucket_of};
use convoke::protocol::keys::Keys;
use convoke::protocol::pattern::Pattern;
use drawn::{COLOURS, frame};
use proptest::prelude::*;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use std::time::Duration;

const AT: u64 = 1_700_000_000_000;

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
        pattern: Pattern::Hybrid,
    });
    sample
}

fn model() -> Model {
    let mut model = Model::new("cb");
    model.apply(sample(AT));
    model
}

fn ids(rows: &[Row]) -> Vec<&str> {
    rows.iter().map(|row| row.id.as_str()).collect()
}

fn press(model: &mut Model, keys: &str) {
    for key in keys.chars() {
        assert!(!model.press(Key::Char(key), 10), "{key} ends it");
    }
}

#[test]
fn rates_are_what_came_between_two_samples() {
    let mut model = model();
    assert_eq!(model.totals(), (None, None));
    let mut next = sample(AT + 2_000);
    next.streams[0] = stream("cb:events:image", 150, 130, 15);
    model.apply(next);
    let flow = model.flow("cb:events:image workers").unwrap();
    // 50 came in 2 s; settled were 85, now 115.
    assert_eq!((flow.rate_in, flow.rate_out), (Some(25.0), Some(15.0)));
    assert_eq!(flow.waiting, [15.0, 35.0]);
    assert_eq!(model.totals(), (Some(25.0), Some(15.0)));
    assert_eq!(model.backlog(), 35);
    assert_eq!(model.dead_letters(), 3);
}

#[test]
fn a_counter_that_began_again_and_a_clock_that_went_back_give_no_rate() {
    let mut model = model();
    let mut next = sample(AT + 1_000);
    next.streams[0] = stream("cb:events:image", 1, 1, 0);
    model.apply(next);
    let flow = model.flow("cb:events:image workers").unwrap();
    assert_eq!((flow.rate_in, flow.rate_out), (None, None));
    for at in [AT + 1_000, AT] {
        model.apply(sample(at));
        assert_eq!(model.elapsed_ms(), None);
        assert_eq!(model.totals(), (None, None));
        assert_eq!(model.lately("image.resize").calls, None);
    }
}

#[test]
fn totals_are_of_all_streams_and_what_is_not_shown_is_said() {
    let mut model = model();
    let mut next = sample(AT + 2_000);
    next.others = Others {
        streams: 5_000,
        dead_streams: 100_000,
        waiting: 6_000,
        dead_letters: 100_000,
        rate_in: Some(7.0),
        rate_out: None,
    };
    model.apply(next);
    assert_eq!(model.totals(), (Some(7.0), Some(0.0)));
    assert_eq!((model.backlog(), model.dead_letters()), (6_015, 100_003));
    let shown = frame(&model, 200, 50);
    for part in [
        "6,015 waiting",
        "100,003 dead",
        "Streams 2 of 5,002",
        "Dead 100,003, 1 of 100,001 streams",
        "those with the most are shown, / finds any",
    ] {
        assert!(shown.contains(part), "{part} is not in\n{shown}");
    }
    let object = object::of(&model).unwrap();
    assert_eq!(object["streams_found"], 105_003);
}

#[test]
fn dead_letters_have_a_rate_whoever_reads_them() {
    let mut model = model();
    let read_by_a_ledger = |added: u64| {
        let mut dead = stream("cb:dead:image", added, 0, 0);
        dead.groups = stream("cb:events:x", added, added, 0).groups;
        dead
    };
    let mut rate = |at: u64, dead: Stream| {
        let mut next = sample(at);
        next.streams[2] = dead;
        model.apply(next);
        model
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
    let mut model = model();
    let mut next = sample(AT + 1_000);
    next.streams.remove(0);
    model.apply(next);
    assert!(model.flow("cb:events:image workers").is_none());
    assert!(model.flow("cb:events:report workers").is_some());
}

#[test]
fn quantiles_are_of_lately() {
    let mut model = model();
    let mut next = sample(AT + 10_000);
    let mut now = handler(50, 2, 20_000);
    // A hundred more, all slower.
    now.calls = 150;
    now.errors = 7;
    let slow = handler(100, 0, 800_000).latency.unwrap();
    now.latency.as_mut().unwrap().add(&slow);
    next.global.handlers.insert("image.resize".into(), now);
    model.apply(next);
    let lately = model.lately("image.resize");
    assert_eq!((lately.calls, lately.errors), (Some(10.0), Some(0.5)));
    let latency = lately.latency.unwrap();
    assert_eq!(latency.count(), 100);
    assert!((700.0..900.0).contains(&latency.quantile_ms(0.1)));
}

#[test]
fn a_pause_holds_what_is_shown() {
    let mut model = model();
    press(&mut model, "p");
    let shown = frame(&model, 80, 24);
    assert!(shown.contains("PAUSED"));
    let mut next = sample(AT + 1_000);
    next.streams.clear();
    model.apply(next);
    assert_eq!(frame(&model, 80, 24), shown);
    press(&mut model, "p");
    model.apply(sample(AT + 3_000));
    assert_eq!(model.elapsed_ms(), Some(3_000));
}

#[test]
fn the_selection_stays_with_its_row() {
    let mut model = model();
    assert_eq!(
        ids(&model.rows(Panel::Streams)),
        ["cb:events:image workers", "cb:events:report workers"]
    );
    model.press(Key::Down, 10);
    press(&mut model, "ssr");
    let rows = model.rows(Panel::Streams);
    assert_eq!(rows[1].id, "cb:events:image workers", "by group, reversed");
    let at = model.selected(Panel::Streams, &rows);
    assert_eq!(at, Some(0), "the second row went up");
    model.press(Key::End, 10);
    model.press(Key::Enter, 10);
    let focus = Focus {
        panel: Panel::Streams,
        id: "cb:events:image workers".into(),
    };
    assert_eq!(model.focus(), Some(focus));
    model.press(Key::Escape, 10);
    assert_eq!((model.focus(), model.mode), (None, Mode::Looking));
}

#[test]
fn every_column_sorts_and_then_none_does() {
    let mut model = model();
    press(&mut model, "2");
    // LOAD is the fourth column; the highest comes first.
    press(&mut model, "ssss");
    assert_eq!(ids(&model.rows(Panel::Instances)), ["w-2", "w-1"]);
    assert!(frame(&model, 80, 24).contains("LOAD▾"));
    press(&mut model, "r");
    assert_eq!(ids(&model.rows(Panel::Instances)), ["w-1", "w-2"]);
    assert!(frame(&model, 80, 24).contains("LOAD▴"));
    press(&mut model, "r");
    for _ in panel::columns(Panel::Instances).iter().skip(3) {
        press(&mut model, "s");
    }
    assert_eq!(model.order(Panel::Instances), (None, false));
}

#[test]
fn a_filter_leaves_what_contains_it() {
    let mut model = model();
    press(&mut model, "/RepQ");
    model.press(Key::Backspace, 10);
    assert!(frame(&model, 80, 24).contains("filter: Rep_"));
    assert_eq!(
        ids(&model.rows(Panel::Streams)),
        ["cb:events:report workers"]
    );
    model.press(Key::Enter, 10);
    // It is one panel's own, and Esc ends nothing else.
    assert_eq!(model.rows(Panel::Instances).len(), 2);
    assert_eq!(model.wish().filters, ["rep".to_owned(), String::new()]);
    assert!(!model.press(Key::Escape, 10));
    assert_eq!(model.rows(Panel::Streams).len(), 2);
    assert!(!model.press(Key::Escape, 10));
    press(&mut model, "/q");
    assert!(model.press(Key::Interrupt, 10), "Ctrl-C ends it always");
}

#[test]
fn trouble_is_told_until_there_is_news() {
    let mut model = model();
    model.miss("connection refused".into(), Duration::from_secs(3));
    model.misses(Duration::from_secs(75));
    let shown = frame(&model, 120, 24);
    for part in [
        "REDIS DOES NOT ANSWER for 1m15s  last news 2023-11-14T22:13:20.000Z",
        "connection refused; what is shown is old",
    ] {
        assert!(shown.contains(part), "{part} is not in\n{shown}");
    }
    assert!(frame(&model, 80, 24).contains("REDIS DOES NOT ANSWER for 1m15s"));
    press(&mut model, "p");
    model.apply(sample(AT + 1_000));
    assert!(!frame(&model, 80, 24).contains("NOT ANSWER"));
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

/// What happens: a key, or a sample with this many streams that much later.
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
        let mut model = Model::new("cb");
        let mut at = AT;
        for step in steps {
            match step {
                Step::Press(key) => {
                    if model.press(key, 5) {
                        break;
                    }
                }
                Step::Apply { later, streams, added, pending } => {
                    at += later;
                    let mut next = sample(at);
                    let names = (0..streams).map(|n| format!("cb:events:d{n}"));
                    next.streams = names.map(|key| stream(&key, added, added, pending)).collect();
                    model.apply(next);
                }
            }
            for panel in Panel::ALL {
                let rows = model.rows(panel);
                let selected = model.selected(panel, &rows);
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
            prop_assert_eq!(model.focus().is_some(), matches!(model.mode, Mode::Opened { .. }));
        }
        let area = Rect::new(0, 0, width, height);
        let mut buffer = Buffer::empty(area);
        let drawn = draw::draw(&model, COLOURS, area, &mut buffer);
        prop_assert!(drawn.page <= usize::from(height));
    }
}

#[test]
fn a_dead_letter_or_all_of_a_stream_are_replayed_once_that_was_said() {
    let mut model = model();
    model.panel = Panel::Dead;
    let replay = |from: EntryId, to: EntryId, count: u64, about: &str| Act::Replay {
        stream: "cb:dead:image".into(),
        from,
        to,
        count,
        about: about.into(),
    };
    let told = |model: &mut Model| {
        model.press(Key::Char('e'), 10);
        let question = model.question();
        model.press(Key::Char('y'), 10);
        (question.unwrap_or_default(), model.take_act())
    };
    assert_eq!(told(&mut model).1, None, "it may only look");
    model.acts = true;
    let last = model.sample().unwrap().streams[2].last;
    let (question, act) = told(&mut model);
    assert!(
        question.contains("the 3 letters of cb:dead:image?"),
        "{question}"
    );
    assert_eq!(act, Some(replay(EntryId::default(), last, 3, "")));
    let open = |model: &mut Model| {
        model.press(Key::Enter, 10);
        let mut next = sample(AT + 1_000);
        let lines = [
            "9-1 image.make: failed: no disk",
            "7-1 image.make: poison: it kills",
        ];
        next.opened = Some(Opened {
            focus: model.focus().unwrap(),
            lines: lines.map(str::to_owned).into(),
        });
        model.apply(next);
    };
    open(&mut model);
    for _ in 0..3 {
        model.press(Key::Down, 10);
    }
    let shown = frame(&model, 80, 24);
    assert!(shown.contains("> 7-1 image.make: poison"), "{shown}");
    let (question, act) = told(&mut model);
    assert!(question.starts_with("replay 7-1 of cb:dead:image, image.make: poison"));
    let letter = EntryId { ms: 7, seq: 1 };
    let about = "image.make: poison: it kills";
    assert_eq!(act, Some(replay(letter, letter, 1, about)));
    model.acts = false;
    open(&mut model);
    assert_eq!(told(&mut model).1, None);
}

#[test]
fn what_the_keys_do_fits_a_small_terminal() {
    let mut model = model();
    model.press(Key::Char('?'), 10);
    let shown = frame(&model, 80, 24);
    for part in ["another panel", "replay dead", "y does what is said"] {
        assert!(shown.contains(part), "{part} is not in\n{shown}");
    }
}

#[test]
fn what_changes_something_is_said_first_and_done_with_y_only() {
    let mut model = model();
    model.panel = Panel::Instances;
    let asked = |model: &mut Model, answer: char| {
        model.press(Key::Char('d'), 10);
        assert_eq!(model.mode, Mode::Asking);
        let question = model.question().unwrap();
        // Another sample asks no other question.
        model.apply(sample(AT + 1000));
        assert_eq!(model.question().as_ref(), Some(&question));
        model.press(Key::Char(answer), 10);
        assert_eq!(model.mode, Mode::Looking);
        (question, model.take_act())
    };
    model.acts = true;
    let drain = Act::Drain("w-1".into());
    let (question, act) = asked(&mut model, 'y');
    assert!(question.starts_with("drain w-1? "), "{question}");
    assert_eq!(act, Some(drain));
    assert_eq!(model.take_act(), None, "once");
    for other in ['n', 'd', 'q', ' '] {
        assert_eq!(asked(&mut model, other).1, None, "{other}");
    }
    model.tell("w-1 drains".into());
    assert!(frame(&model, 100, 20).contains("w-1 drains"));
    // Of a handler its type, of a stream its domain.
    for (panel, row, scope) in [
        (Panel::Handlers, "image.resize", "type:image.resize"),
        (Panel::Streams, "cb:events:image workers", "domain:image"),
    ] {
        model.panel = panel;
        let rows = model.rows(panel);
        assert!(rows.iter().any(|shown| shown.id == row), "{row}");
        model.views[panel as usize].selected = Some(row.to_owned());
        for (key, act) in [
            ('z', Act::Pause(scope.into())),
            ('a', Act::Resume(scope.into())),
        ] {
            model.press(Key::Char(key), 10);
            assert!(model.question().unwrap().contains(scope));
            model.press(Key::Char('y'), 10);
            assert_eq!(model.take_act(), Some(act));
        }
    }
    // Where it may only look, and where the key means nothing.
    model.panel = Panel::Streams;
    model.press(Key::Char('d'), 10);
    assert_eq!(model.mode, Mode::Looking);
    (model.panel, model.acts) = (Panel::Instances, false);
    model.press(Key::Char('d'), 10);
    assert_eq!(model.mode, Mode::Looking);
}
