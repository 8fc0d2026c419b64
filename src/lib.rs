//! A message-bus worker for Redis Streams.

pub mod bus;
pub mod config;
pub mod coordination;
pub mod error;
pub mod registry;
