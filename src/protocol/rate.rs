//! How often something may run.

use std::fmt;
use std::time::Duration;

/// A rate: how many runs a source may have in which period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Runs allowed in any one period.
    pub limit: u32,
    /// The period.
    pub period: Duration,
}

impl Rate {
    /// Reads `10/s`, `100/m`, `5/10s` or `1/1h30m`.
    ///
    /// # Errors
    /// What would do.
    #[doc(hidden)]
    pub fn parse(text: &str) -> Result<Self, String> {
        const FORM: &str = "write it as RUNS/PERIOD, such as 10/s, 100/m or 5/10s";
        let (limit, period) = text.split_once('/').ok_or(FORM)?;
        let limit = limit
            .parse()
            .map_err(|_| format!("{limit:?} is no number of runs; {FORM}"))?;
        let whole = match period.starts_with(|first: char| first.is_ascii_digit()) {
            true => period.to_owned(),
            false => format!("1{period}"),
        };
        let period = humantime::parse_duration(&whole)
            .map_err(|_| format!("{period:?} is no period; {FORM}"))?;
        Ok(Self { limit, period })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let period = humantime::format_duration(self.period).to_string();
        // One of a unit needs no number.
        let one = period.strip_prefix('1');
        let unit = one.filter(|unit| unit.bytes().all(|byte| byte.is_ascii_alphabetic()));
        write!(f, "{}/{}", self.limit, unit.unwrap_or(&period))
    }
}

/// Whose runs count together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[doc(hidden)]
pub enum Per {
    /// Runs of one source.
    #[default]
    Source,
    /// Runs of one subject.
    Subject,
    /// All runs of the type.
    Type,
}

impl Per {
    /// The one of that name.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "source" => Some(Self::Source),
            "subject" => Some(Self::Subject),
            "type" => Some(Self::Type),
            _ => None,
        }
    }
}

impl fmt::Display for Per {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Subject => "subject",
            Self::Type => "type",
        })
    }
}

/// A rate, and whose runs it counts together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[doc(hidden)]
pub struct Metered {
    /// The rate.
    pub rate: Rate,
    /// Whose runs it counts.
    pub per: Per,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_written_as_it_is_read() {
        for (text, limit, ms) in [
            ("10/s", 10, 1000),
            ("100/m", 100, 60_000),
            ("5/10s", 5, 10_000),
            ("1/1h 30m", 1, 5_400_000),
            ("7/100ms", 7, 100),
        ] {
            let rate = Rate::parse(text).unwrap();
            assert_eq!(
                (rate.limit, rate.period),
                (limit, Duration::from_millis(ms))
            );
            assert_eq!(rate.to_string(), text);
        }
        for (text, why) in [
            ("10", "RUNS/PERIOD"),
            ("ten/s", "\"ten\" is no number"),
            ("-1/s", "is no number"),
            ("10/", "is no period"),
            ("10/x", "\"x\" is no period"),
        ] {
            let error = Rate::parse(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
