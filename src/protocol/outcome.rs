//! What became of an event when a run of it was committed, as the ledger keeps it.

use super::entry::EntryId;

/// The outcome of one run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventOutcome {
    /// The stream that the event stood on.
    pub stream: String,
    /// Its entry there.
    pub entry: EntryId,
    /// Which try it was.
    pub attempt: u32,
    /// Its type.
    pub kind: String,
    /// Its id.
    pub event: String,
    /// What it is about.
    pub subject: Option<String>,
    /// Who published it.
    pub source: Option<String>,
    /// The id of the event whose run published it.
    pub cause: Option<String>,
    /// The instance that ran it.
    pub instance: String,
    /// Deliveries of the entry until then.
    pub deliveries: u32,
    /// When the outcome was committed, Unix ms by the clock of that instance.
    pub ended: i64,
    /// How long the run took, in µs.
    pub took_us: i64,
    /// `done`, `failed` (who asked was told), `retried` or `dead`.
    pub outcome: String,
    /// The error code, if the run failed.
    pub code: Option<String>,
    /// What it failed with, at most 256 bytes.
    pub message: Option<String>,
}
