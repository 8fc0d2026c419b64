//! The way to the server: which connection for what, what is learned from it, and when it is given up.

pub mod backoff;
pub mod clock;
pub(crate) mod cluster;
pub(crate) mod cluster_url;
pub mod connector;
pub mod epoch;
pub mod error;
mod finding;
pub(crate) mod gate;
pub mod greeting;
mod lending;
pub(crate) mod link;
pub(crate) mod loaded;
pub(crate) mod locator;
pub mod memory;
mod opening;
pub mod options;
mod pool;
#[doc(hidden)]
pub mod reach;
pub mod resp;
pub mod script;
pub(crate) mod secret;
pub(crate) mod secret_url;
pub mod sentinel;
pub mod sentinel_url;
pub mod sentinel_view;
pub mod silence;
pub(crate) mod socket;
pub mod tls;
pub mod url;
