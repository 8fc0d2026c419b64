//! The built-in handlers, thin: decode, call coordination, answer. They are registered through the
//! same public face as a user's own.

pub(crate) mod children;
pub mod exec;
mod process;
mod scarce;
pub mod services;
pub mod system;
pub mod task;
mod warden;

use crate::handler::router::Registration;
use rmpv::Value;

/// All built-in handlers.
pub fn registrations() -> Vec<Registration> {
    let mut all = system::registrations();
    all.extend(task::registrations());
    all
}

/// A MessagePack value as it travels on; its bounds are checked where it is stored.
fn encoded(value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A vector takes every write.
    rmpv::encode::write_value(&mut bytes, value).ok();
    bytes
}
