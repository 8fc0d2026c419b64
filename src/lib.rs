//! A message-bus worker for Redis Streams.

pub mod bus;
pub mod config;
pub mod coordination;
pub mod error;
pub mod handlers;
pub mod registry;
pub mod worker;

pub use error::HandlerError;
pub use registry::context::Context;
pub use registry::policy::Policy;
pub use worker::Worker;
