//! What a document is about: a type, a domain, or one subject of a domain.

use crate::coordination::bounds::invalid;
use crate::coordination::error::CoordinationError;
use crate::protocol::keys;
use std::fmt;

/// Bytes of a subject at the most, as of an event's.
const MAX_SUBJECT: usize = 256;

/// What a document is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// The events of a type.
    Type(String),
    /// The events of a domain.
    Domain(String),
    /// The events of a domain that have this subject.
    Subject {
        /// The domain.
        domain: String,
        /// The subject.
        subject: String,
    },
}

impl Scope {
    /// Reads `type:mail.send`, `domain:mail` or `subject:mail:shop-7`.
    ///
    /// # Errors
    /// `Invalid` for anything else, and for what is of the control plane.
    pub fn parse(text: &str) -> Result<Self, CoordinationError> {
        let scope = match text.split_once(':') {
            Some(("type", kind)) => {
                keys::check_event_type(kind)
                    .map_err(|error| invalid(format!("scope: type:{error}")))?;
                Self::Type(kind.to_owned())
            }
            Some(("domain", domain)) => Self::Domain(domain_of(domain)?),
            Some(("subject", rest)) => {
                let (domain, subject) = rest.split_once(':').unwrap_or((rest, ""));
                if subject.is_empty() || subject.len() > MAX_SUBJECT {
                    return Err(invalid(format!(
                        "scope: subject:DOMAIN:SUBJECT has a subject of 1 to {MAX_SUBJECT} bytes, not {}",
                        subject.len()
                    )));
                }
                Self::Subject {
                    domain: domain_of(domain)?,
                    subject: subject.to_owned(),
                }
            }
            _ => {
                return Err(invalid(
                    "scope: is type:TYPE, domain:DOMAIN or subject:DOMAIN:SUBJECT".to_owned(),
                ));
            }
        };
        if keys::is_control(scope.domain()) {
            return Err(invalid(format!(
                "scope: {scope}: the control plane takes no policies"
            )));
        }
        Ok(scope)
    }

    /// The domain whose events it is about.
    pub fn domain(&self) -> &str {
        match self {
            Self::Type(kind) => keys::domain_of(kind),
            Self::Domain(domain) | Self::Subject { domain, .. } => domain,
        }
    }
}

fn domain_of(text: &str) -> Result<String, CoordinationError> {
    // A domain is what stands before the first dot of a type.
    let kind = format!("{text}.x");
    match keys::check_event_type(&kind) {
        Ok(()) if keys::domain_of(&kind) == text => Ok(text.to_owned()),
        _ => Err(invalid(format!(
            "scope: \"{}\" is not the domain of any type",
            text.escape_default()
        ))),
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Type(kind) => write!(f, "type:{kind}"),
            Self::Domain(domain) => write!(f, "domain:{domain}"),
            Self::Subject { domain, subject } => write!(f, "subject:{domain}:{subject}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Scope;

    #[test]
    fn a_scope_is_read_as_it_is_written() {
        for text in [
            "type:mail.send",
            "domain:mail",
            "subject:mail:shop-7",
            "subject:mail:a:b",
        ] {
            assert_eq!(Scope::parse(text).unwrap().to_string(), text);
        }
        for (text, why) in [
            ("mail.send", "is type:TYPE"),
            ("type:mail", "type:"),
            ("domain:a.b", "not the domain"),
            ("domain:", "not the domain"),
            ("subject:mail", "1 to 256 bytes"),
            ("subject:mail:", "1 to 256 bytes"),
            ("type:system.ping", "control plane"),
            ("domain:task", "control plane"),
            ("subject:system:x", "control plane"),
        ] {
            let error = Scope::parse(text).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
