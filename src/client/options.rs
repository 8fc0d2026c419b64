//! How a client behaves.

use crate::protocol::event::Limits;
use std::time::Duration;

/// How long a published id is remembered, unless something else is set.
pub const DEDUP_WINDOW: Duration = Duration::from_secs(3600);
/// Entries that capped streams keep, about, unless something else is set.
pub const STREAM_HISTORY: u64 = 10_000;
/// How long a reply stream outlives its last reply, unless something else is set.
pub const REPLY_TTL: Duration = Duration::from_secs(3600);

/// How a client behaves.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// The client's name, unique among all that live: 1 to 128 of `A-Z a-z 0-9 . _ -`. It names the
    /// reply stream. None means one made up.
    pub name: Option<String>,
    /// The `source` of its events.
    pub source: Option<String>,
    /// Bounds on events and replies.
    pub limits: Limits,
    /// How long an id that was published with `dedup` is remembered.
    pub dedup_window: Duration,
    /// Entries that the reply stream keeps, about.
    pub stream_history: u64,
    /// How long the reply stream outlives a client that vanished.
    pub reply_ttl: Duration,
    /// For how long a publish with `dedup` is repeated that got no answer, and one that needs a script
    /// waits until somebody who may has loaded it. Zero: never.
    pub patience: Duration,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            name: None,
            source: None,
            limits: Limits::default(),
            dedup_window: DEDUP_WINDOW,
            stream_history: STREAM_HISTORY,
            reply_ttl: REPLY_TTL,
            patience: Duration::from_secs(10),
        }
    }
}
