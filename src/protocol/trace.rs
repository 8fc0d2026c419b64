//! W3C trace context: the `traceparent` of an event (<https://www.w3.org/TR/trace-context/>).

use std::fmt;

/// Which trace something belongs to, and which span in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    trace: u128,
    span: u64,
    flags: u8,
}

impl TraceContext {
    /// Reads a `traceparent`; `None` if it is not one, which means that no trace goes on.
    ///
    /// A version above 00 is read as far as 00 goes, as the standard asks.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(5, '-');
        let version = hex(parts.next()?, 2)?;
        let trace = hex(parts.next()?, 32)?;
        let span = hex(parts.next()?, 16)?;
        let flags = hex(parts.next()?, 2)?;
        let rest = parts.next();
        let known = version == 0 && rest.is_none() || (1..0xff).contains(&version);
        (known && trace != 0 && span != 0).then_some(Self {
            trace,
            span: u64::try_from(span).ok()?,
            flags: u8::try_from(flags).ok()?,
        })
    }

    /// The first span of that trace, which is told or not; a trace whose id is 0 is not one, and gets another.
    #[cfg(feature = "worker")]
    pub(crate) fn begin(trace: u128, told: bool) -> Self {
        Self {
            trace: trace.max(1),
            span: fastrand::u64(1..),
            flags: u8::from(told),
        }
    }

    /// Whether who began the trace wants it to be told.
    #[cfg(feature = "worker")]
    pub(crate) fn is_sampled(&self) -> bool {
        self.flags & 1 == 1
    }

    /// Its flags.
    #[cfg(feature = "worker")]
    pub(crate) fn flags(&self) -> u8 {
        self.flags
    }

    /// Whether the other one is another span of the same trace.
    #[cfg(feature = "worker")]
    pub(crate) fn is_beside(&self, other: &Self) -> bool {
        self.trace == other.trace && self.span != other.span
    }

    /// A new span in the same trace, whose parent is this one.
    #[must_use]
    pub fn child(&self) -> Self {
        Self {
            span: fastrand::u64(1..),
            ..*self
        }
    }

    /// The trace's id: 32 hexadecimal digits.
    pub fn trace_id(&self) -> String {
        format!("{:032x}", self.trace)
    }

    /// The span's id: 16 hexadecimal digits.
    pub fn span_id(&self) -> String {
        format!("{:016x}", self.span)
    }
}

fn hex(text: &str, digits: usize) -> Option<u128> {
    let plain = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    (text.len() == digits && text.bytes().all(plain))
        .then(|| u128::from_str_radix(text, 16).ok())
        .flatten()
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "00-{:032x}-{:016x}-{:02x}",
            self.trace, self.span, self.flags
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn what_is_no_traceparent_is_none() {
        for bad in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(TraceContext::parse(bad), None, "{bad}");
        }
        let newer = format!("01{}-more", &GOOD[2..]);
        assert!(TraceContext::parse(&newer).is_some());
    }

    #[test]
    fn a_child_is_another_span_of_the_same_trace() {
        let parent = TraceContext::parse(GOOD).unwrap();
        let child = parent.child();
        assert_eq!(child.trace_id(), parent.trace_id());
        assert_ne!(child.span_id(), parent.span_id());
        assert_eq!(child.to_string()[53..], GOOD[53..]);
    }

    proptest! {
        #[test]
        fn contexts_round_trip(trace in 1u128.., span in 1u64.., flags in any::<u8>()) {
            let context = TraceContext { trace, span, flags };
            prop_assert_eq!(TraceContext::parse(&context.to_string()), Some(context));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,60}") {
            if let Some(context) = TraceContext::parse(&text) {
                prop_assert_eq!(context.to_string().len(), 55);
            }
        }
    }
}
