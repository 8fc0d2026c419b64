//! Entries of one or several streams, shown one by one as they are found.

use super::Session;
use super::choose;
use super::output::{Cell, Column, Table};
use convoke::protocol::keys::StreamName;
use serde_json::Value;

/// A table that grows by a row for each entry; as JSON, a line for each.
pub(super) struct Listing<'a> {
    pub(super) session: &'a Session,
    table: Table<'a>,
    /// Whether a column says which stream an entry is of.
    several: bool,
    /// How many were shown.
    pub(super) shown: u64,
}

impl<'a> Listing<'a> {
    pub(super) fn new(session: &'a Session, several: bool, mut columns: Vec<Column>) -> Self {
        if several {
            columns.insert(0, Column::new("STREAM").shrinks(8));
        }
        Self {
            session,
            table: Table::new(&session.output, columns),
            several,
            shown: 0,
        }
    }

    pub(super) fn add(
        &mut self,
        stream: &StreamName,
        object: impl FnOnce() -> Value,
        row: impl FnOnce() -> Vec<Cell>,
    ) -> anyhow::Result<()> {
        self.shown += 1;
        if self.session.output.is_json() {
            return Ok(self.session.output.json(&object())?);
        }
        let mut row = row();
        if self.several {
            row.insert(0, choose::short(stream).into());
        }
        Ok(self.table.row(row)?)
    }

    /// Ends the table, and says how many were shown.
    pub(super) fn finish(self) -> anyhow::Result<u64> {
        if self.shown > 0 && !self.session.output.is_json() {
            self.table.finish()?;
        }
        Ok(self.shown)
    }
}
