//! Names of fields that nobody reads and that were most likely meant as others.
//!
//! An event may have fields of its own, so such a name refuses nothing: the worker's log names it.

use super::fields::KNOWN;

/// Other words for what a field says.
const SYNONYMS: [(&str, &str); 12] = [
    ("at", "notbefore"),
    ("delay", "notbefore"),
    ("delayms", "notbefore"),
    ("runat", "notbefore"),
    ("scheduledat", "notbefore"),
    ("payload", "data"),
    ("body", "data"),
    ("expires", "deadline"),
    ("expiresat", "deadline"),
    ("contenttype", "datacontenttype"),
    ("deduplicate", "dedup"),
    ("idempotencykey", "dedup"),
];

/// The field that was meant, where a name is not a field's but looks like one.
pub(super) fn meant(name: &[u8]) -> Option<&'static str> {
    let synonyms = SYNONYMS.iter().copied();
    let other_forms = KNOWN.iter().map(|&known| (known, known));
    let mut forms = synonyms.chain(other_forms);
    let (_, meant) = forms.find(|(form, _)| is_form_of(name, form))?;
    (name != meant.as_bytes()).then_some(meant)
}

/// Whether a name is that word except for capitals and what parts words.
fn is_form_of(name: &[u8], word: &str) -> bool {
    let letters = name
        .iter()
        .filter(|byte| !matches!(byte, b'_' | b'-' | b'.'));
    letters.map(u8::to_ascii_lowercase).eq(word.bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_looks_like_a_fields_is_a_slip() {
        for (name, field) in [
            ("delay", "notbefore"),
            ("delay_ms", "notbefore"),
            ("at", "notbefore"),
            ("not_before", "notbefore"),
            ("notBefore", "notbefore"),
            ("reply_to", "replyto"),
            ("replyTo", "replyto"),
            ("Reply-To", "replyto"),
            ("payload", "data"),
            ("Data", "data"),
            ("dataContentType", "datacontenttype"),
            ("content-type", "datacontenttype"),
            ("trace_parent", "traceparent"),
        ] {
            assert_eq!(meant(name.as_bytes()), Some(field), "{name}");
        }
    }

    #[test]
    fn what_is_known_and_what_is_an_events_own_is_none() {
        for name in KNOWN.into_iter().chain([
            "tenant",
            "lasterror",
            "firstfailed",
            "replays",
            "reply",
            "to",
            "",
            "_",
            "datum",
        ]) {
            assert_eq!(meant(name.as_bytes()), None, "{name}");
        }
    }
}
