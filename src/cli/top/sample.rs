//! What was seen of the bus at one moment.

use super::panel::Panel;
use convoke::connect::memory::Together;
use convoke::connect::reach::Away;
use convoke::coordination::ballots::ballot::Ballot;
use convoke::coordination::batches::batch::Batch;
use convoke::coordination::instances::instance::Instance;
use convoke::coordination::instances::roster::{Census, Condition};
use convoke::coordination::tasks::list::TaskCounts;
use convoke::coordination::tasks::task::Task;
use convoke::coordination::totals::Global;
use convoke::operator::inspect::Stream;
use convoke::protocol::pattern::{Pattern, Patterned};
use std::collections::HashMap;

/// Tasks, batches, ballots that are listed, of each.
pub(super) const LISTED: usize = 100;

/// What was seen at one moment. Everything that is listed is bounded.
#[derive(Clone, Debug, Default)]
pub(super) struct Sample {
    /// The moment by the server's clock, in Unix ms.
    pub(crate) at: u64,
    /// How many instances there are.
    pub(crate) census: Census,
    /// Who leads.
    pub(crate) leader: Option<String>,
    /// The instances, the suspect and the lost first of all.
    pub(crate) instances: Vec<(Condition, Instance)>,
    /// Streams but those of replies; dead letters are among them.
    pub(crate) streams: Vec<Stream>,
    /// How much is in the streams that are not among them.
    pub(crate) others: Others,
    /// Bytes of the server's memory that those streams take, as far as it tells.
    pub(crate) sizes: HashMap<String, u64>,
    /// What the server uses of its memory, or all nodes together, if they tell.
    pub(crate) memory: Option<Together>,
    /// Nodes of a cluster that do not answer: what they have is missing.
    pub(crate) away: Vec<Away>,
    /// What all instances did and how they are.
    pub(crate) global: Global,
    /// The patterns that were chosen for all instances.
    pub(crate) patterns: Vec<(Patterned, Pattern)>,
    /// How many tasks there are.
    pub(crate) tasks: TaskCounts,
    /// The assigned, the waiting, the finished.
    pub(crate) listed_tasks: Vec<Task>,
    /// The ones that changed last.
    pub(crate) batches: Vec<Batch>,
    /// The ones that were opened last.
    pub(crate) ballots: Vec<Ballot>,
    /// More about the row that was opened.
    pub(crate) opened: Option<Opened>,
    /// What could not be looked at, and why.
    pub(crate) problems: Vec<String>,
}

/// How much is in streams that are not looked at closely: there are too many.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Others {
    /// How many there are, but those of dead letters.
    pub(crate) streams: usize,
    /// How many there are of dead letters.
    pub(crate) dead_streams: usize,
    /// Entries of events and inboxes that were not settled.
    pub(crate) waiting: u64,
    /// Dead letters.
    pub(crate) dead_letters: u64,
    /// Entries added to events and inboxes a second; `None`: not known yet.
    pub(crate) rate_in: Option<f64>,
    /// Entries settled a second; `None`: not known yet.
    pub(crate) rate_out: Option<f64>,
}

/// What somebody at the keyboard wants to see.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wish {
    /// The row that is open.
    pub(crate) focus: Option<Focus>,
    /// The texts that streams, and those of dead letters, are filtered by, in small letters.
    pub(crate) filters: [String; 2],
}

/// What is shown of one row besides what the row tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Opened {
    /// Which row.
    pub(crate) focus: Focus,
    /// Lines of it, not printable yet.
    pub(crate) lines: Vec<String>,
}

/// A row that somebody opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Focus {
    /// Of which panel.
    pub(crate) panel: Panel,
    /// By its name there.
    pub(crate) id: String,
}
