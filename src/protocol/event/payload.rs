//! What an event carries: one MessagePack value, or JSON text that says so and is turned into one.

use super::fields::{CONTENT_TYPE, KNOWN};
use crate::protocol::entry::Entry;
use crate::protocol::json;
use crate::protocol::msgpack::{self, PayloadLimits};
use std::borrow::Cow;

/// The `datacontenttype` of a payload that is JSON text.
pub const JSON: &str = "application/json";
pub(super) const MESSAGEPACK: &str = "application/msgpack";

/// JSON text as MessagePack, within the same bounds.
pub(super) fn packed(text: &[u8], limits: &PayloadLimits) -> Result<Box<[u8]>, String> {
    if text.len() > limits.bytes {
        let (bytes, most) = (text.len(), limits.bytes);
        return Err(format!("data: {bytes} bytes are over the limit of {most}"));
    }
    let data = json::parse(text).map_err(|error| format!("data: not one JSON value: {error}"))?;
    msgpack::scan(&data, limits).map_err(|error| error.to_string())?;
    Ok(data.into())
}

pub(super) fn not_msgpack(data: &[u8], error: &msgpack::ScanError) -> String {
    match looks_like_json(data) {
        true => {
            "data: this looks like JSON text, and must be one MessagePack value, unless the field \
            datacontenttype says application/json (`convoke publish` turns JSON into MessagePack)"
                .to_owned()
        }
        false => error.to_string(),
    }
}

/// Whether an entry calls its payload JSON.
pub fn is_json(entry: &Entry) -> bool {
    entry.get(KNOWN[CONTENT_TYPE]) == Some(JSON.as_bytes())
}

/// A payload for somebody who writes JSON, or MessagePack; and what it is then.
pub(crate) fn in_kind(data: Vec<u8>, as_json: bool) -> (Vec<u8>, Option<&'static str>) {
    let text = as_json.then(|| json::to_json(&data));
    match text {
        Some(Ok(value)) => (value.to_string().into_bytes(), Some(JSON)),
        _ => (data, None),
    }
}

/// The payload of an entry as MessagePack, as far as that can be said: what is called JSON and is not comes as
/// it is.
pub fn payload_of(entry: &Entry) -> Option<Cow<'_, [u8]>> {
    let data = entry.get("data")?;
    let packed = is_json(entry).then(|| packed(data, &PayloadLimits::default()).ok());
    Some(match packed.flatten() {
        Some(packed) => Cow::Owned(packed.into()),
        None => Cow::Borrowed(data),
    })
}

/// Whether what is no MessagePack value is one JSON value. Never of more than a payload's limit: whoever asks
/// scanned it.
fn looks_like_json(data: &[u8]) -> bool {
    let begins = data.trim_ascii_start().first();
    begins.is_some_and(|byte| b"{[\"-0123456789tfn".contains(byte))
        && data.len() <= PayloadLimits::default().bytes
        && serde_json::from_slice::<serde::de::IgnoredAny>(data).is_ok()
}
