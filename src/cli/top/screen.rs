//! The terminal: taken over and given back as it was, whatever happens in between.

use super::brush::Drawn;
use super::keys::Key;
use ratatui::DefaultTerminal;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::layout::Rect;
use std::io;
use tokio::sync::mpsc;

/// Keys that may wait.
const WAITING: usize = 64;

/// What the terminal tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    Key(Key),
    Resized,
    /// Nothing will come any more.
    Gone,
}

/// The terminal while it is ours. Dropping it gives it back; a panic does so before it is told.
pub(super) struct Screen {
    terminal: DefaultTerminal,
    told: mpsc::Receiver<Told>,
}

impl Screen {
    pub(super) fn open() -> io::Result<Self> {
        let terminal = ratatui::try_init().inspect_err(|_| ratatui::restore())?;
        let (tell, told) = mpsc::channel(WAITING);
        // It ends with the process: a read of the terminal cannot be called off.
        std::thread::spawn(move || listen(&tell));
        Ok(Self { terminal, told })
    }

    /// Draws a frame.
    pub(super) fn draw(
        &mut self,
        paint: impl FnOnce(Rect, &mut Buffer) -> Drawn,
    ) -> io::Result<Drawn> {
        let mut drawn = Drawn::default();
        self.terminal.draw(|frame| {
            let area = frame.area();
            drawn = paint(area, frame.buffer_mut());
        })?;
        Ok(drawn)
    }

    /// What the terminal tells next.
    pub(super) async fn told(&mut self) -> Told {
        self.told.recv().await.unwrap_or(Told::Gone)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

fn listen(tell: &mpsc::Sender<Told>) {
    while let Ok(event) = event::read() {
        let told = match event {
            Event::Key(key) => match meant(key) {
                Some(key) => Told::Key(key),
                None => continue,
            },
            Event::Resize(..) => Told::Resized,
            _ => continue,
        };
        if tell.blocking_send(told).is_err() {
            return;
        }
    }
}

fn meant(key: KeyEvent) -> Option<Key> {
    if key.kind == KeyEventKind::Release {
        return None;
    }
    let held = key.modifiers;
    Some(match key.code {
        KeyCode::Char('c') if held.contains(KeyModifiers::CONTROL) => Key::Interrupt,
        KeyCode::Char(_) if held.intersects(KeyModifiers::CONTROL | KeyModifiers::ALT) => {
            return None;
        }
        KeyCode::Char(c) => Key::Char(c),
        KeyCode::Up => Key::Up,
        KeyCode::Down => Key::Down,
        KeyCode::PageUp => Key::PageUp,
        KeyCode::PageDown => Key::PageDown,
        KeyCode::Home => Key::Home,
        KeyCode::End => Key::End,
        KeyCode::Tab => Key::Tab,
        KeyCode::BackTab => Key::BackTab,
        KeyCode::Enter => Key::Enter,
        KeyCode::Backspace => Key::Backspace,
        KeyCode::Esc => Key::Escape,
        _ => return None,
    })
}
