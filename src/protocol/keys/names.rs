//! What may be called how: instances, roles, event types and their domains ([protocol](crate::docs::protocol#names)).

/// The longest name of an instance, role, batch, decision or client, in bytes.
pub const MAX_NAME: usize = 128;
/// The longest event type, in bytes.
pub const MAX_TYPE: usize = 128;
/// What no domain may be called: `cb:dead:inbox` holds the dead letters of all inboxes, and the other
/// two are streams without a domain.
const RESERVED: [&str; 3] = ["inbox", "broadcast", "reply"];

/// A name that the protocol does not allow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// Not a namespace.
    #[error("namespace {0:?} is not 1 to 32 of the characters a-z 0-9 _ -")]
    Namespace(String),
    /// Not an event type.
    #[error(
        "event type {0:?} is not domain.action (lower-case letters, digits and _, at least one dot, at most 128 bytes)"
    )]
    EventType(String),
    /// An event type in a domain that is no domain: streams of the bus itself bear that name.
    #[error(
        "event type {kind:?}: a domain cannot be called {domain:?}, streams of the bus itself are; choose another name"
    )]
    Reserved {
        /// The type that was given.
        kind: String,
        /// Its domain.
        domain: &'static str,
    },
    /// Not the name of an instance, a role, a batch, a decision or a client.
    #[error("{what} {name:?} is not 1 to 128 of the characters A-Z a-z 0-9 . _ -")]
    Name {
        /// What was named.
        what: &'static str,
        /// The name that was given.
        name: String,
    },
}

/// Whether `name` may name an instance, a role, a batch, a decision or a client.
pub fn is_name(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// Checks a name; `what` says in the error what it should have named.
pub fn check_name(what: &'static str, name: &str) -> Result<(), NameError> {
    if is_name(name) {
        Ok(())
    } else {
        let name = name.chars().take(MAX_NAME).collect();
        Err(NameError::Name { what, name })
    }
}

/// The domain of `kind` if it is one that no event type may have.
pub fn reserved_domain(kind: &[u8]) -> Option<&'static str> {
    let is_of = |domain: &&str| {
        let rest = kind.strip_prefix(domain.as_bytes());
        rest.is_some_and(|rest| rest.first() == Some(&b'.'))
    };
    RESERVED.into_iter().find(is_of)
}

/// Whether `kind` is an event type: `domain.action` or deeper, in a domain that may be one.
pub fn is_event_type(kind: &[u8]) -> bool {
    let mut segments = 0;
    let mut segment = 0;
    for &b in kind {
        match b {
            b'a'..=b'z' | b'0'..=b'9' | b'_' => segment += 1,
            b'.' if segment > 0 => {
                segments += 1;
                segment = 0;
            }
            _ => return false,
        }
    }
    segments > 0 && segment > 0 && kind.len() <= MAX_TYPE && reserved_domain(kind).is_none()
}

/// Checks an event type.
pub fn check_event_type(kind: &str) -> Result<(), NameError> {
    if is_event_type(kind.as_bytes()) {
        return Ok(());
    }
    let shown = kind.chars().take(MAX_TYPE).collect();
    Err(match reserved_domain(kind.as_bytes()) {
        Some(domain) => NameError::Reserved {
            kind: shown,
            domain,
        },
        None => NameError::EventType(shown),
    })
}

/// The domain of an event type: all before its first dot.
pub fn domain_of(kind: &str) -> &str {
    kind.split_once('.').map_or(kind, |(domain, _)| domain)
}

/// Whether a pattern is that type, or its domain and `.*`.
pub fn covers(pattern: &str, kind: &str) -> bool {
    match pattern.strip_suffix(".*") {
        Some(domain) => domain == domain_of(kind),
        None => pattern == kind,
    }
}

/// Whether the domain belongs to the control plane, which has a lane of its own.
pub fn is_control(domain: &str) -> bool {
    matches!(domain, "system" | "task")
}
