//! The environment variables that there are.

/// What all of them begin with; those of settings go on with the setting in capitals.
#[cfg(feature = "config")]
pub(crate) const PREFIX: &str = "CONVOKE_";

/// The variables that are no settings.
#[cfg(feature = "config")]
pub(crate) const OF_THE_PROGRAM: [&str; 3] =
    ["CONVOKE_CONFIG", "CONVOKE_LOG", "CONVOKE_LOG_FORMAT"];

/// The name in a command's environment by which it and its children are found.
#[cfg(any(feature = "config", feature = "worker"))]
pub(crate) const MARK: &str = "CONVOKE_MARK";

/// What a handler's command has of its worker: id, type and attempt of its event, and the mark by which its
/// processes are found.
#[cfg(any(feature = "config", feature = "worker"))]
pub(crate) const OF_COMMANDS: [&str; 4] = [
    "CONVOKE_EVENT_ID",
    "CONVOKE_EVENT_TYPE",
    "CONVOKE_EVENT_ATTEMPT",
    MARK,
];
