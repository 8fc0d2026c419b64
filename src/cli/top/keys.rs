//! What each key does.

use super::act::Act;
use super::model::{Mode, Model};
use super::panel::{self, Panel};

/// Characters of a filter.
const MAX_FILTER: usize = 60;

/// A key, whatever terminal it came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Char(char),
    Up,
    Down,
    PageUp,
    PageDown,
    Home,
    End,
    Tab,
    BackTab,
    Enter,
    Backspace,
    Escape,
    Interrupt,
}

impl Model {
    /// What a key does. True if it ends all. `page` is how many rows are seen at once.
    pub(super) fn press(&mut self, key: Key, page: usize) -> bool {
        if key == Key::Interrupt {
            return true;
        }
        match self.mode {
            Mode::Looking => return self.look(key, page),
            Mode::Filtering => self.edit(key),
            Mode::Opened { scroll } => {
                let to = match key {
                    Key::Up | Key::Char('k') => scroll.saturating_sub(1),
                    Key::Down | Key::Char('j') => scroll + 1,
                    Key::PageUp => scroll.saturating_sub(page),
                    Key::PageDown => scroll + page,
                    Key::Home => 0,
                    Key::Escape | Key::Enter => {
                        self.mode = Mode::Looking;
                        return false;
                    }
                    Key::Char('q') => return true,
                    Key::Char('p') => {
                        self.paused = !self.paused;
                        return false;
                    }
                    Key::Char('e') => {
                        if let Some(act) = self.replay_of_letter() {
                            self.ask(act);
                        }
                        return false;
                    }
                    _ => return false,
                };
                self.mode = Mode::Opened { scroll: to };
            }
            Mode::Helping => match key {
                Key::Char('q') => return true,
                _ => self.mode = Mode::Looking,
            },
            Mode::Asking => {
                let asked = self.asked.take();
                self.confirmed = asked.filter(|_| matches!(key, Key::Char('y' | 'Y')));
                self.mode = Mode::Looking;
            }
        }
        false
    }

    fn look(&mut self, key: Key, page: usize) -> bool {
        self.said = None;
        if let Key::Char(letter) = key
            && let Some(act) = self.act_of(letter)
        {
            self.ask(act);
            return false;
        }
        let page = page.max(1) as isize;
        let at = self.panel as usize;
        let panels = Panel::ALL.len();
        match key {
            Key::Char('q') => return true,
            Key::Escape => self.views[at].filter.clear(),
            Key::Tab => self.panel = Panel::ALL[(at + 1) % panels],
            Key::BackTab => self.panel = Panel::ALL[(at + panels - 1) % panels],
            Key::Char(digit @ '1'..='9') => {
                let number = digit as usize - '1' as usize;
                self.panel = Panel::ALL.get(number).copied().unwrap_or(self.panel);
            }
            Key::Up | Key::Char('k') => self.move_by(-1),
            Key::Down | Key::Char('j') => self.move_by(1),
            Key::PageUp => self.move_by(-page),
            Key::PageDown => self.move_by(page),
            Key::Home | Key::Char('g') => self.move_by(isize::MIN),
            Key::End | Key::Char('G') => self.move_by(isize::MAX),
            Key::Char('s') => {
                let columns = panel::columns(self.panel).len();
                let view = &mut self.views[at];
                view.sort = match view.sort {
                    None => Some(0),
                    Some(column) => Some(column + 1).filter(|next| *next < columns),
                };
            }
            Key::Char('r') => self.views[at].reversed = !self.views[at].reversed,
            Key::Char('/') => self.mode = Mode::Filtering,
            Key::Char('p' | ' ') => self.paused = !self.paused,
            Key::Char('?' | 'h') => self.mode = Mode::Helping,
            Key::Enter => {
                let rows = self.rows(self.panel);
                if let Some(row) = self.selected(self.panel, &rows) {
                    self.views[at].selected = Some(rows[row].id.clone());
                    self.mode = Mode::Opened { scroll: 0 };
                }
            }
            _ => {}
        }
        false
    }

    fn ask(&mut self, act: Act) {
        self.asked = Some(act);
        self.mode = Mode::Asking;
    }

    /// What a letter does to the selected row.
    fn act_of(&mut self, letter: char) -> Option<Act> {
        let rows = self.acts.then(|| self.rows(self.panel))?;
        let row = self.selected(self.panel, &rows)?;
        let id = rows[row].id.as_str();
        let act = match self.panel {
            Panel::Dead if letter == 'e' => self.replay_of_all(id),
            Panel::Streams => Act::of(self.panel, letter, self.domain_of(id)?),
            _ => Act::of(self.panel, letter, id),
        }?;
        // What is asked stays about this row, whatever the next sample brings.
        self.views[self.panel as usize].selected = Some(id.to_owned());
        Some(act)
    }

    fn edit(&mut self, key: Key) {
        let filter = &mut self.views[self.panel as usize].filter;
        match key {
            Key::Char(c) if filter.chars().count() < MAX_FILTER => filter.push(c),
            Key::Backspace => {
                filter.pop();
            }
            Key::Enter => self.mode = Mode::Looking,
            Key::Escape => {
                filter.clear();
                self.mode = Mode::Looking;
            }
            _ => {}
        }
    }

    fn move_by(&mut self, rows: isize) {
        let listed = self.rows(self.panel);
        if let Some(at) = self.selected(self.panel, &listed) {
            let to = at.saturating_add_signed(rows).min(listed.len() - 1);
            self.views[self.panel as usize].selected = Some(listed[to].id.clone());
        }
    }
}
