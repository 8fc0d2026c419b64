//! The names that keys have on a cluster, for those that they have on a standalone server, and back: one partition for
//! each domain.

#![allow(dead_code)] // Each test binary uses a part.

/// What each domain has of its own.
pub(crate) const OF_A_DOMAIN: [&str; 13] = [
    "events",
    "results",
    "dead",
    "delayed",
    "dedup",
    "said",
    "cancelled",
    "parked",
    "handed",
    "replayed",
    "owner",
    "fence",
    "held",
];
/// What a slot has, whatever the domain: its plain name does not say where it is.
const OF_A_SLOT: [&str; 5] = ["reply", "claims", "outbox", "moved", "clock"];
/// Those of the control plane.
const CONTROL: [&str; 3] = ["system", "task", "inbox"];

/// The tag of a domain that a plain name tells.
fn tag_of(plain: &str) -> Option<String> {
    let mut parts = plain.strip_prefix("cb:")?.splitn(3, ':');
    let (kind, domain) = (parts.next()?, parts.next()?);
    (OF_A_DOMAIN.contains(&kind) && !CONTROL.contains(&domain))
        .then(|| format!("{{cb:{domain}:0}}"))
}

/// The tag of a domain that the names of a command tell.
pub(crate) fn tag_among<'a>(mut plain: impl Iterator<Item = &'a str>) -> Option<String> {
    plain.find_map(tag_of)
}

/// Whether a plain name does not say in which slot it is.
pub(crate) fn is_of_a_slot(plain: &str) -> bool {
    let kind = plain
        .strip_prefix("cb:")
        .and_then(|it| it.split(':').next());
    kind.is_some_and(|kind| OF_A_SLOT.contains(&kind))
}

/// The name on a cluster; of what a slot has, with that tag.
pub(crate) fn tagged(plain: &str, beside: Option<&str>) -> String {
    let Some(rest) = plain.strip_prefix("cb:") else {
        return plain.to_owned();
    };
    if let Some(tag) = tag_of(plain) {
        let mut parts = rest.splitn(3, ':');
        let kind = parts.next().unwrap_or_default();
        let more = parts.nth(1).map(|more| format!(":{more}"));
        return format!("{tag}:{kind}{}", more.unwrap_or_default());
    }
    match beside.filter(|_| is_of_a_slot(plain)) {
        Some(tag) => format!("{tag}:{rest}"),
        None => format!("{{cb}}:{rest}"),
    }
}

/// The plain name of a key of a cluster.
pub(crate) fn plain(tagged: &str) -> Option<String> {
    let (tag, rest) = tagged.strip_prefix("{cb")?.split_once("}:")?;
    let Some(domain) = tag.strip_prefix(':') else {
        return Some(format!("cb:{rest}"));
    };
    let domain = domain.strip_suffix(":0")?;
    let (kind, more) = rest.split_once(':').unwrap_or((rest, ""));
    Some(match (OF_A_DOMAIN.contains(&kind), more) {
        (false, _) => format!("cb:{rest}"),
        (true, "") => format!("cb:{kind}:{domain}"),
        (true, more) => format!("cb:{kind}:{domain}:{more}"),
    })
}
