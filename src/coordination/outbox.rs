//! What a part of some work published, stored by the script that commits the part.

use super::error::CoordinationError;
use crate::streams::commit::MAX_PUBLICATIONS;
use crate::streams::commit::Publication;
use redis::ScriptInvocation;

/// Gives a script publications, behind all its other keys and arguments: the streams as the last
/// keys, and for each the number of its words and the words. The script ends with
///
/// ```lua
/// local at = FIRST_ARGUMENT
/// for k = FIRST_KEY, #KEYS do
///   local words = tonumber(ARGV[at])
///   redis.call('XADD', KEYS[k], '*', unpack(ARGV, at + 1, at + words))
///   at = at + 1 + words
/// end
/// ```
///
/// after everything that may refuse the call.
pub(super) fn publish(call: &mut ScriptInvocation<'_>, publications: &[Publication]) {
    for publication in publications {
        call.key(&publication.stream);
    }
    for publication in publications {
        call.arg(publication.fields.len());
        for word in &publication.fields {
            call.arg(word.as_slice());
        }
    }
}

/// Checks that one step can store this many.
pub(super) fn check(publications: &[Publication]) -> Result<(), CoordinationError> {
    match publications.len() {
        ..=MAX_PUBLICATIONS => Ok(()),
        count => Err(CoordinationError::FailedPrecondition(format!(
            "{count} publications are more than the {MAX_PUBLICATIONS} that one step can store"
        ))),
    }
}
