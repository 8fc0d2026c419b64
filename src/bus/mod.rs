//! Redis Streams, and nothing about what events mean.

pub mod bare;
pub mod canonical;
pub mod claim;
pub mod claims;
pub mod client;
pub mod commit;
pub mod connect;
pub mod dead;
pub mod delay;
pub mod digits;
pub mod entry;
pub mod error;
pub mod event;
pub mod json;
pub mod keys;
mod link;
pub mod msgpack;
pub mod publish;
pub mod read;
pub mod reply;
pub mod request;
pub mod settlement;
pub mod trace;
pub mod trim;
pub mod wire;
