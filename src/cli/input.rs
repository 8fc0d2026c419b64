//! Payloads as people write them.

use super::Misuse;
use anyhow::Context;
use convoke::protocol::json;
use convoke::protocol::keys;
use std::fs::File;
use std::io::{self, Read};

/// Bytes of text that one byte of payload may take: what JSON escapes becomes up to 6 times as long.
pub(super) const TEXT_PER_BYTE: usize = 8;

/// Checks the event type of a command.
pub(super) fn event_type(text: &str) -> Result<String, keys::NameError> {
    keys::check_event_type(text).map(|()| text.to_owned())
}

/// Checks the name of an instance.
pub(super) fn instance(text: &str) -> Result<String, keys::NameError> {
    keys::check_name("instance", text).map(|()| text.to_owned())
}

/// Checks the name of a role.
pub(super) fn role(text: &str) -> Result<String, keys::NameError> {
    keys::check_name("role", text).map(|()| text.to_owned())
}

/// Checks the id of a task.
pub(super) fn task(text: &str) -> Result<String, keys::NameError> {
    keys::check_name("task", text).map(|()| text.to_owned())
}

/// Checks the id of a batch.
pub(super) fn batch(text: &str) -> Result<String, keys::NameError> {
    keys::check_name("batch", text).map(|()| text.to_owned())
}

/// The payload that `--data` means, as MessagePack: JSON, `@FILE`, or `-` for standard input.
pub(super) fn payload(data: &str, max_payload: usize) -> anyhow::Result<Vec<u8>> {
    let limit = max_payload.saturating_mul(TEXT_PER_BYTE);
    let (text, place) = if data == "-" {
        let text = read_to_limit(io::stdin().lock(), limit).context("standard input")?;
        (text, "standard input")
    } else if let Some(path) = data.strip_prefix('@') {
        let file = File::open(path)
            .map_err(|error| Misuse::error(format_args!("--data: {path}: {error}")))?;
        let text = read_to_limit(file, limit).with_context(|| path.to_owned())?;
        (text, path)
    } else {
        (data.as_bytes().to_vec(), "--data")
    };
    encode(&text).map_err(|problem| Misuse::error(format_args!("{place}: {problem}")))
}

/// One JSON value as MessagePack: exactly what it says, or an error with the place.
pub(super) fn encode(text: &[u8]) -> Result<Vec<u8>, String> {
    json::parse(text).map_err(|error| match error {
        json::Inexact::Json(error) if !error.is_data() => format!("not JSON: {error}"),
        error => error.to_string(),
    })
}

fn read_to_limit(from: impl Read, limit: usize) -> anyhow::Result<Vec<u8>> {
    let mut text = Vec::new();
    from.take(limit as u64 + 1).read_to_end(&mut text)?;
    if text.len() > limit {
        anyhow::bail!("over {limit} bytes: far more than a payload may have (max_payload)");
    }
    Ok(text)
}
