//! What events mean to this process: handlers by event type, each with its policy.

pub mod assembly;
pub mod context;
pub mod dispatch;
pub mod fence;
pub mod function;
pub mod gate;
pub mod layers;
pub mod policy;
pub mod router;
pub mod state;
