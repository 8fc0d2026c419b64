//! Payloads as people read them.

use super::output;
use super::output::printable;
use convoke::protocol::event::{Entry, payload_of};
use convoke::protocol::json;
use serde_json::{Value, json};

/// Bytes shown of a payload that is no MessagePack.
const SHOWN: usize = 64;
/// Characters of a payload in a table.
const PREVIEW: usize = 160;

/// A payload that is not one MessagePack value.
pub(super) struct Undecodable {
    bytes: usize,
    hex: String,
    error: String,
}

impl Undecodable {
    pub(super) fn described(&self) -> Value {
        json!({ "error": self.error, "bytes": self.bytes, "hex": self.hex })
    }
}

impl std::fmt::Display for Undecodable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let more = if self.hex.len() < 2 * self.bytes {
            "…"
        } else {
            ""
        };
        let error = printable(&self.error);
        write!(f, "0x{}{more} ({} bytes, {error})", self.hex, self.bytes)
    }
}

/// Decodes a payload.
pub(super) fn decode(data: &[u8]) -> Result<Value, Undecodable> {
    json::to_json(data).map_err(|error| Undecodable {
        bytes: data.len(),
        hex: data
            .iter()
            .take(SHOWN)
            .map(|b| format!("{b:02x}"))
            .collect(),
        error: error.to_string(),
    })
}

/// What is said of an entry that is larger than any event: it was not held.
pub(super) fn too_large(entry: &Entry) -> Option<String> {
    let bytes = entry.cut()?;
    Some(format!("too large to show: {}", output::bytes(bytes)))
}

/// Puts an entry's payload into what is printed as JSON: as `data`, or as `undecodable`; of one that is larger
/// than any event only how large it is, as `too_large`.
pub(super) fn describe_entry(entry: &Entry, object: &mut Value) {
    match entry.cut() {
        None => describe(payload_of(entry).as_deref(), object),
        Some(bytes) => {
            object["data"] = Value::Null;
            object["too_large"] = json!({ "bytes": bytes });
        }
    }
}

/// Puts a payload into what is printed as JSON: as `data`, or as `undecodable`.
pub(super) fn describe(data: Option<&[u8]>, object: &mut Value) {
    match data.map(decode) {
        None => object["data"] = Value::Null,
        Some(Ok(value)) => object["data"] = value,
        Some(Err(undecodable)) => object["undecodable"] = undecodable.described(),
    }
}

/// The beginning of a payload on one line.
pub(super) fn preview(data: Option<&[u8]>) -> String {
    let text = match data.map(decode) {
        None => String::new(),
        Some(Ok(value)) => output::json(&value),
        Some(Err(undecodable)) => undecodable.to_string(),
    };
    match text.char_indices().nth(PREVIEW) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
