//! Redis Streams, and nothing about what events mean.

pub mod bare;
pub mod browse;
pub mod claim;
pub mod client;
pub mod commit;
pub mod connect;
pub mod dead;
pub mod delay;
pub mod error;
pub mod event;
pub mod inspect;
pub mod json;
pub mod keys;
pub mod lifetime;
mod link;
pub mod msgpack;
pub mod publish;
pub mod read;
pub mod replay;
pub mod reply;
pub mod request;
pub mod server;
pub mod trace;
pub mod trim;
