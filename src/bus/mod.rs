//! Redis Streams, and nothing about what events mean.

pub mod claim;
pub mod connect;
pub mod error;
pub mod event;
pub mod keys;
pub mod msgpack;
pub mod read;
