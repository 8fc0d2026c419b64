//! How the events of a domain are split over partitions: a fact on the bus, not a setting
//! ([protocol](crate::docs::protocol#hash-tags-and-redis-cluster)).

use super::keys::crc16;
use super::msgpack::{self, PayloadLimits};
use serde::{Deserialize, Serialize};

/// Partitions of a domain at the most.
pub const MAX_PARTITIONS: u16 = 1024;
/// Bytes of the fact of one domain at the most.
pub const MAX_FACT: usize = 4096;
/// The highest number that a script counts with exactly.
const HIGHEST: u64 = (1 << 53) - 1;
/// For how long after a change others may still publish by the number that was before, in ms. The clocks of two nodes
/// may differ by a part of it.
pub const SETTLES_MS: u64 = 5000;

/// Whether the events of a subject have an order over all workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DomainOrder {
    /// No order.
    #[default]
    None,
    /// One at a time, in the order of their entries.
    Subject,
}

impl DomainOrder {
    /// The name on the bus.
    pub fn as_str(self) -> &'static str {
        match self {
            DomainOrder::None => "none",
            DomainOrder::Subject => "subject",
        }
    }
}

/// How many partitions a domain had before, and until when.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Before {
    /// How many there were.
    pub partitions: u16,
    /// When that was changed: Unix ms by the clock of the control plane's node.
    pub until: u64,
}

/// What the bus says of a domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Domain {
    /// Rises with each change.
    pub version: u64,
    /// How many partitions there are.
    pub partitions: u16,
    /// The order of a subject's events.
    #[serde(default)]
    pub order: DomainOrder,
    /// How many there were before, the oldest first: each a divisor of the next.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub before: Vec<Before>,
    /// When it was changed last, Unix ms on the server; 0: never.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub at: u64,
    /// Who changed it last.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub by: String,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Domain {
    /// What is written for a domain that nobody used before.
    pub fn first(partitions: u16) -> Self {
        Self {
            version: 1,
            partitions: partitions.clamp(1, MAX_PARTITIONS),
            order: DomainOrder::None,
            before: Vec::new(),
            at: 0,
            by: String::new(),
        }
    }

    /// As it is stored.
    pub fn encode(&self) -> Vec<u8> {
        // Numbers, strings and a list have a form in MessagePack.
        rmp_serde::to_vec_named(self).unwrap_or_default()
    }

    /// Reads what somebody stored.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let limits = PayloadLimits {
            bytes: MAX_FACT,
            ..PayloadLimits::default()
        };
        msgpack::scan(bytes, &limits).map_err(|error| error.to_string())?;
        let domain: Self = rmp_serde::from_slice(bytes).map_err(|error| error.to_string())?;
        if !(1..=MAX_PARTITIONS).contains(&domain.partitions) {
            return Err(format!(
                "{} partitions: there are 1 to {MAX_PARTITIONS}",
                domain.partitions
            ));
        }
        if domain.version == 0 || domain.version > HIGHEST || domain.at > HIGHEST {
            return Err(format!(
                "version {}, at {}: beyond 2^53",
                domain.version, domain.at
            ));
        }
        let mut until = domain.before.iter().map(|before| before.until);
        if !until.clone().is_sorted() || until.any(|until| until > domain.at) {
            return Err("before: a number that counted until after the last change".into());
        }
        let sizes: Vec<u16> = domain.sizes().collect();
        let wrong = sizes
            .windows(2)
            .any(|two| two[0] == 0 || two[0] >= two[1] || !two[1].is_multiple_of(two[0]));
        match wrong {
            true => Err(format!(
                "partitions before: {sizes:?}: each is a part of the next"
            )),
            false => Ok(domain),
        }
    }

    /// How many there were and are, the oldest first.
    fn sizes(&self) -> impl Iterator<Item = u16> + '_ {
        let before = self.before.iter().map(|before| before.partitions);
        before.chain([self.partitions])
    }

    /// Where the events of a partition's subjects were before it was made, and until when; nothing for one that was there
    /// from the beginning. Their number grew by a factor, so all of them came from one partition.
    pub fn came_from(&self, partition: u16) -> Option<(u16, u64)> {
        let made = self.sizes().position(|size| partition < size)?;
        let before = self.before.get(made.checked_sub(1)?)?;
        Some((partition % before.partitions, before.until))
    }

    /// Whether an event with that subject (or id) belongs into that partition, now or by what was before.
    pub fn holds(&self, subject_or_id: &str, partition: u16) -> bool {
        let hash = crc16(subject_or_id.as_bytes());
        self.sizes().any(|size| hash % size == partition)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grown(before: &[(u16, u64)], partitions: u16) -> Domain {
        let before = before
            .iter()
            .map(|&(partitions, until)| Before { partitions, until });
        Domain {
            version: 3,
            before: before.collect(),
            at: 20,
            by: "ada".into(),
            ..Domain::first(partitions)
        }
    }

    #[test]
    fn a_fact_comes_back_as_it_was_written() {
        for domain in [Domain::first(4), grown(&[(2, 10), (4, 20)], 16)] {
            assert_eq!(Domain::decode(&domain.encode()), Ok(domain));
        }
        // What the contract names is enough.
        let least = rmp_serde::to_vec_named(&serde_json::json!({
            "version": 1, "partitions": 8, "order": "none", "more": [1, 2],
        }));
        let least = Domain::decode(&least.unwrap()).unwrap();
        assert_eq!((least.partitions, least.order), (8, DomainOrder::None));
    }

    #[test]
    fn what_is_no_fact_is_refused() {
        let of = |partitions: u64, before: serde_json::Value| {
            let fact = serde_json::json!({"version": 1, "partitions": partitions, "before": before, "at": 9});
            Domain::decode(&rmp_serde::to_vec_named(&fact).unwrap())
        };
        let none = serde_json::json!([]);
        for partitions in [0, 1025, 70_000] {
            assert!(of(partitions, none.clone()).is_err(), "{partitions}");
        }
        for before in [0, 3, 8, 9] {
            let before = serde_json::json!([{"partitions": before, "until": 1}]);
            assert!(of(8, before.clone()).is_err(), "{before}");
        }
        assert!(of(8, none).is_ok());
        let late = serde_json::json!([{"partitions": 4, "until": 10}]);
        assert!(of(8, late).is_err(), "until after the last change");
        for version in [0, 1 << 53, u64::MAX] {
            let odd = Domain {
                version,
                ..Domain::first(4)
            };
            assert!(Domain::decode(&odd.encode()).is_err(), "{version}");
        }
        for bytes in [&b""[..], b"\xc1", b"\x07", &[0xc0; MAX_FACT + 1]] {
            assert!(Domain::decode(bytes).is_err());
        }
    }

    #[test]
    fn a_new_partition_took_over_the_subjects_of_one_old_one() {
        let domain = grown(&[(2, 10), (4, 20)], 16);
        assert_eq!(domain.came_from(0), None);
        assert_eq!(domain.came_from(1), None);
        assert_eq!(domain.came_from(3), Some((1, 10)));
        assert_eq!(domain.came_from(4), Some((0, 20)));
        assert_eq!(domain.came_from(15), Some((3, 20)));
        assert_eq!(domain.came_from(16), None);
        for number in 0..1000 {
            let subject = format!("s-{number}");
            let hash = crc16(subject.as_bytes());
            for (old, new) in [(2, 4), (4, 16)] {
                let (was, is) = (hash % old, hash % new);
                assert!(was == is || domain.came_from(is).map(|(from, _)| from) == Some(was));
            }
            let fits = (0..16).filter(|partition| domain.holds(&subject, *partition));
            let mut known = vec![hash % 2, hash % 4, hash % 16];
            known.sort_unstable();
            known.dedup();
            assert_eq!(fits.collect::<Vec<_>>(), known);
        }
    }
}
