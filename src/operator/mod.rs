//! What people look at and put right: streams, pending entries, dead letters, the server itself.

pub mod browse;
#[doc(hidden)]
pub mod cluster;
pub mod delayed;
pub mod groups;
#[doc(hidden)]
pub mod held;
pub mod inspect;
pub mod memory;
#[doc(hidden)]
pub mod parked;
pub mod replay;
pub mod rights;
pub mod server;

pub use crate::connect::connector::Connector;
pub use crate::connect::options::ConnectOptions;
