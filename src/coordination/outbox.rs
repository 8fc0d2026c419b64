//! What a part of some work published, stored by the script that commits the part.

use super::error::CoordinationError;
use super::store::Store;
use crate::streams::commit::MAX_PUBLICATIONS;
use crate::streams::commit::Publication;
use crate::streams::outbox;
use redis::ScriptInvocation;
use std::borrow::Cow;

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
/// after everything that may refuse the call. On a cluster what is for another slot than the control plane's is stored in
/// its outbox, and moved from there.
pub(super) fn publish(
    call: &mut ScriptInvocation<'_>,
    store: &Store,
    publications: &[Publication],
) {
    let publications: Vec<Cow<'_, Publication>> = publications
        .iter()
        .map(|one| within_reach(store, one))
        .collect();
    for publication in &publications {
        call.key(&publication.stream);
    }
    for publication in &publications {
        call.arg(publication.fields.len());
        for word in &publication.fields {
            call.arg(word.as_slice());
        }
    }
}

/// What one step of the control plane can store.
fn within_reach<'a>(store: &Store, publication: &'a Publication) -> Cow<'a, Publication> {
    let stream = &publication.stream;
    if !store.connector.is_cluster() || outbox::is_beside(stream, &store.keys.broadcast()) {
        return Cow::Borrowed(publication);
    }
    let to = [outbox::TO.into(), stream.clone().into_bytes()];
    Cow::Owned(Publication {
        stream: store.keys.route("system", 0).outbox,
        fields: to
            .into_iter()
            .chain(publication.fields.iter().cloned())
            .collect(),
    })
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
