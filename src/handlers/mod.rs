//! The built-in handlers, thin: decode, call coordination, answer. They are registered through the
//! same public face as a user's own.

pub mod exec;
mod process;
pub mod services;
pub mod system;

use crate::registry::router::Registration;

/// All of them.
pub fn registrations() -> Vec<Registration> {
    system::registrations()
}
