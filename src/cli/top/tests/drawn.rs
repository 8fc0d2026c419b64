//! What is drawn: panels, rows that were opened, colours, and nothing that drives the terminal.

use super::super::brush::Brush;
use super::super::draw::text_of;
use super::super::keys::Key;
use super::super::model::Model;
use super::super::row::Content;
use super::super::sample::{Opened, Sample};
use super::super::{draw, object};
use super::{AT, handler, model, press, sample, stream};
use crate::cli::output::printable;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::style::{Color, Modifier};

pub(super) const COLOURS: Brush = Brush { colours: true };

pub(super) fn drawn(model: &Model, brush: Brush, width: u16, height: u16) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal
        .draw(|frame| {
            let area = frame.area();
            draw::draw(model, brush, area, frame.buffer_mut());
        })
        .unwrap();
    terminal.backend().buffer().clone()
}

pub(super) fn frame(model: &Model, width: u16, height: u16) -> String {
    text_of(&drawn(model, COLOURS, width, height))
}

#[test]
fn a_small_terminal_shows_one_panel_and_the_keys_reach_all() {
    let mut model = model();
    model.apply(sample(AT + 1_000));
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
        press(&mut model, key);
        let shown = frame(&model, 80, 24);
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
    let shown = frame(&model(), 200, 50);
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
    let mut model = model();
    press(&mut model, "7");
    model.press(Key::Enter, 10);
    let mut next = sample(AT + 1_000);
    next.opened = Some(Opened {
        focus: model.focus().unwrap(),
        lines: vec!["7-1 image.resize: poison: \x1b[2Jit kills".into()],
    });
    model.apply(next);
    let shown = frame(&model, 80, 24);
    assert!(shown.contains("cb:dead:image"), "{shown}");
    assert!(shown.contains("poison: \\u{1b}[2Jit kills"), "{shown}");
    model.apply(Sample::default());
    assert!(frame(&model, 80, 24).contains("not there any more"));
}

#[test]
fn colours_are_the_terminals_own_and_nothing_sets_a_background() {
    let mut model = model();
    for key in "1234567".chars() {
        press(&mut model, &key.to_string());
        for (width, height) in [(80, 24), (200, 50)] {
            for cell in drawn(&model, COLOURS, width, height).content() {
                assert_eq!(cell.bg, Color::Reset);
                let own = [Color::Reset, Color::Red, Color::Green, Color::Yellow];
                assert!(own.contains(&cell.fg), "{:?}", cell.fg);
            }
            let plain = drawn(&model, Brush { colours: false }, width, height);
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
    let mut model = Model::new("cb");
    model.apply(sample);
    for key in "1234567".chars() {
        press(&mut model, &key.to_string());
        let shown = frame(&model, 200, 50);
        assert!(shown.contains("x\\u{1b}[2J\\u{202e}"), "{shown}");
        assert!(!shown.chars().any(|c| c == '\x1b' || c == '\u{202e}'));
        for row in model.rows(model.panel) {
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
    let page = draw::page(&model, 80);
    assert!(page.ends_with("not seen: x\\u{1b}[2J\\u{202e}\n"), "{page}");
    assert!(!page.chars().any(|c| c == '\x1b' || c == '\u{202e}'));
}

#[test]
fn one_page_holds_every_panel() {
    let mut model = model();
    let mut next = sample(AT + 1_000);
    let many = (0..40).map(|n| stream(&format!("cb:events:d{n}"), 1, 1, 0));
    next.streams.extend(many);
    model.apply(next);
    for width in [1, 40, 80, 200] {
        let page = draw::page(&model, width);
        for part in ["Streams 42", "… and 12 more", "Dead 3", "no tasks"] {
            assert!(page.contains(part), "{part} is not in\n{page}");
        }
        assert!(
            page.lines()
                .all(|line| line.chars().count() <= usize::from(width.max(20)))
        );
    }
    let object = object::of(&model).unwrap();
    assert_eq!(object["streams"].as_array().unwrap().len(), 42);
    assert_eq!(object["dead_letters"], 3);
}
