//! What a command's end means.
//!
//! | ended | outcome |
//! |---|---|
//! | exit 0 | its output is the result; nothing printed is null |
//! | exit 0, and the output is not exactly one JSON value | `internal`, permanent; names the place |
//! | exit 64 or 65 (`EX_USAGE`, `EX_DATAERR` of `sysexits.h`) | `internal`, permanent |
//! | exit 75 (`EX_TEMPFAIL`) | `unavailable`, retried |
//! | a signal, or exit 128 + n, which is what a shell makes of signal n | `internal`, retried |
//! | any other exit status | `internal`, retried, as what a handler in Rust returns by `?` |
//!
//! The message of a failure is the end of what it wrote on standard error.

use crate::handler::function::Encoded;
use crate::protocol::error::HandlerError;
use crate::protocol::json;
use std::process::ExitStatus;

/// The exit codes of failures that the same again would not mend.
const PERMANENT: [i32; 2] = [64, 65];
/// The exit code of a failure of something that is needed.
const RETRY: i32 = 75;
/// A shell ends so, with the signal's number added, when a signal ended what it ran.
const SIGNALLED: i32 = 128;
/// The highest number of a signal.
const SIGNALS: i32 = 64;
/// Bytes shown of an output that is not a result.
const SHOWN: usize = 60;

/// What the run's end means, by its status, its output and what it said on standard error.
pub(crate) fn judge(
    status: ExitStatus,
    output: &[u8],
    said: &[u8],
) -> Result<Encoded, HandlerError> {
    let said = String::from_utf8_lossy(said).trim().to_owned();
    let why = |how: String| match said.is_empty() {
        true => format!("the command ended with {how}"),
        false => said.clone(),
    };
    match status.code() {
        Some(0) => result(output),
        Some(RETRY) => Err(HandlerError::unavailable(why(status.to_string()))),
        Some(code) if (1..=SIGNALS).contains(&(code - SIGNALLED)) => {
            let signal = code - SIGNALLED;
            let how = format!("signal: {signal} (exit status {code} of its shell)");
            Err(HandlerError::internal(killed(&how, &said)))
        }
        Some(code) if PERMANENT.contains(&code) => {
            Err(HandlerError::internal(why(status.to_string())).permanent())
        }
        Some(_) => Err(HandlerError::internal(why(status.to_string()))),
        None => Err(HandlerError::internal(killed(&status.to_string(), &said))),
    }
}

fn killed(how: &str, said: &str) -> String {
    match said.is_empty() {
        true => format!("the command was ended by {how}"),
        false => format!("the command was ended by {how}: {said}"),
    }
}

fn result(output: &[u8]) -> Result<Encoded, HandlerError> {
    if output.trim_ascii().is_empty() {
        return Ok(vec![0xc0]);
    }
    json::parse(output).map_err(|error| {
        let begin = String::from_utf8_lossy(&output[..output.len().min(SHOWN)]);
        let message = format!(
            "the command's output is not one JSON value: {error}; it begins with {begin:?}"
        );
        HandlerError::internal(message).permanent()
    })
}
