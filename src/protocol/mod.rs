//! The words of the bus: names, fields, payloads and their bounds. Nothing here talks to a server.

pub mod canonical;
pub mod dead;
pub mod digits;
pub mod entry;
pub mod error;
pub mod event;
pub mod histogram;
pub mod json;
pub mod keys;
pub(crate) mod mismatch;
pub mod msgpack;
pub mod rate;
pub mod reply;
pub mod trace;
