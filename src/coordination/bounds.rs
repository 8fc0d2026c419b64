//! How what is asked for is checked: each message names the field, and what would do.

use super::error::CoordinationError;
use crate::protocol::keys;
use crate::protocol::msgpack::{self, PayloadLimits};

pub(super) fn check_id(field: &str, id: &str) -> Result<(), CoordinationError> {
    named(field, keys::check_name("instance", id))
}

pub(super) fn named(
    field: &str,
    checked: Result<(), keys::NameError>,
) -> Result<(), CoordinationError> {
    checked.map_err(|error| invalid(format!("{field}: {error}")))
}

pub(super) fn within(field: &str, count: usize, limit: usize) -> Result<(), CoordinationError> {
    if count <= limit {
        return Ok(());
    }
    Err(invalid(format!(
        "{field}: {count} are over the limit of {limit}"
    )))
}

pub(super) fn check_map(field: &str, bytes: &[u8], limit: usize) -> Result<(), CoordinationError> {
    if !matches!(bytes.first(), Some(0x80..=0x8f | 0xde | 0xdf)) {
        return Err(invalid(format!("{field}: not a map")));
    }
    let limits = PayloadLimits {
        bytes: limit,
        ..PayloadLimits::default()
    };
    msgpack::scan(bytes, &limits).map_err(|error| invalid(format!("{field}: {error}")))
}

pub(super) fn invalid(message: String) -> CoordinationError {
    CoordinationError::Invalid(message)
}
