//! What can be looked at, and the columns of each.

use super::row::{Column, count, graph, name, text};

/// One table of the screen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Panel {
    #[default]
    Streams,
    Instances,
    Handlers,
    Tasks,
    Batches,
    Ballots,
    Dead,
}

impl Panel {
    /// In the order of their keys.
    pub(super) const ALL: [Panel; 7] = [
        Panel::Streams,
        Panel::Instances,
        Panel::Handlers,
        Panel::Tasks,
        Panel::Batches,
        Panel::Ballots,
        Panel::Dead,
    ];

    /// Its title.
    pub(super) const fn title(self) -> &'static str {
        match self {
            Panel::Streams => "Streams",
            Panel::Instances => "Instances",
            Panel::Handlers => "Handlers",
            Panel::Tasks => "Tasks",
            Panel::Batches => "Batches",
            Panel::Ballots => "Ballots",
            Panel::Dead => "Dead",
        }
    }
}

/// The columns of a panel.
pub(super) const fn columns(panel: Panel) -> &'static [Column] {
    match panel {
        Panel::Streams => {
            const {
                &[
                    name("STREAM", 0, 14),
                    text("GROUP", 6),
                    count("LENGTH", 5),
                    count("BYTES", 7),
                    count("IN/S", 0),
                    count("OUT/S", 0),
                    count("LAG", 0),
                    count("PENDING", 0),
                    count("OLDEST", 0),
                    graph("WAITING", 2, 8),
                    graph("ARRIVING", 4, 8),
                ]
            }
        }
        Panel::Instances => {
            const {
                &[
                    name("INSTANCE", 0, 12),
                    text("STATUS", 0),
                    name("ROLES", 2, 14),
                    count("LOAD", 0),
                    count("CAPACITY", 0),
                    graph("BUSY", 5, 8),
                    count("PULSE", 0),
                    count("UP", 4),
                    count("RESTARTS", 1),
                ]
            }
        }
        Panel::Handlers => {
            const {
                &[
                    name("HANDLER", 0, 24),
                    count("CALLS/S", 0),
                    count("P50", 0),
                    count("P99", 0),
                    count("RUNNING", 0),
                    count("OLDEST", 1),
                    count("ERRORS/S", 2),
                    text("CIRCUIT", 0),
                    count("CALLS", 4),
                    count("ERRORS", 3),
                    count("RETRIES", 5),
                    count("LIMITED", 6),
                    count("CACHED", 7),
                ]
            }
        }
        Panel::Tasks => {
            const {
                &[
                    name("TASK", 0, 12),
                    text("STATUS", 0),
                    name("KIND", 1, 10),
                    count("PRIORITY", 5),
                    count("ATTEMPT", 3),
                    name("INSTANCE", 2, 8),
                    count("CHANGED", 0),
                    name("ERROR", 4, 8),
                ]
            }
        }
        Panel::Batches => {
            const {
                &[
                    name("BATCH", 0, 12),
                    text("STATUS", 0),
                    name("TYPE", 4, 10),
                    graph("PROGRESS", 0, 10),
                    count("DONE", 0),
                    count("FAILED", 0),
                    count("TOTAL", 2),
                    name("HOLDER", 3, 8),
                    count("CHANGED", 1),
                ]
            }
        }
        Panel::Ballots => {
            const {
                &[
                    name("DECISION", 0, 12),
                    name("STATUS", 0, 10),
                    graph("VOTES", 2, 10),
                    count("VOTED", 0),
                    count("ELECTORATE", 0),
                    count("LEADING", 1),
                    count("QUORUM", 0),
                    count("OPENED", 0),
                    count("EXPIRES", 3),
                ]
            }
        }
        Panel::Dead => {
            const {
                &[
                    name("STREAM", 0, 14),
                    count("LENGTH", 0),
                    count("BYTES", 2),
                    count("IN/S", 0),
                    count("OLDEST", 0),
                    count("NEWEST", 0),
                    graph("LENGTH, LATELY", 1, 14),
                ]
            }
        }
    }
}
