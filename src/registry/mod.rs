//! What events mean to this process: handlers by event type, each with its policy.

pub mod context;
pub mod dispatch;
pub mod fence;
pub mod gate;
pub mod handler;
pub mod histogram;
pub mod layers;
pub mod policy;
pub mod router;
