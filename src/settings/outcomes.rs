//! Of which events the ledger keeps outcomes.

use crate::protocol::keys;
use std::collections::BTreeMap;

/// The largest `N` of a sample that keeps one of `N`.
const MOST: u16 = 10_000;

/// How many of a domain's events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    Nothing,
    All,
    /// One event of this many, by its id: all its runs, on whichever worker.
    OneOf(u16),
}

/// Of which events outcomes are kept, by their domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutcomesKept {
    others: Kept,
    domains: BTreeMap<String, Kept>,
}

impl OutcomesKept {
    /// Reads the setting: `DOMAIN=all`, `DOMAIN=1/N` or `DOMAIN=none` each; `*` stands for the domains that are not named.
    ///
    /// # Errors
    /// Says which one it cannot read.
    pub fn parse(setting: &[String]) -> Result<Self, String> {
        let mut kept = Self {
            others: Kept::Nothing,
            domains: BTreeMap::new(),
        };
        for one in setting {
            let odd = || format!("{one:?} is not DOMAIN=all, DOMAIN=1/N or DOMAIN=none");
            let (domain, how) = one.split_once('=').ok_or_else(odd)?;
            let how = match how {
                "all" => Kept::All,
                "none" => Kept::Nothing,
                sample => {
                    let n = sample.strip_prefix("1/").and_then(|n| n.parse().ok());
                    let n = n.filter(|n| (1..=MOST).contains(n)).ok_or_else(odd)?;
                    Kept::OneOf(n)
                }
            };
            match domain {
                "*" => kept.others = how,
                domain if keys::is_event_type(format!("{domain}.a").as_bytes()) => {
                    kept.domains.insert(domain.to_owned(), how);
                }
                _ => return Err(odd()),
            }
        }
        Ok(kept)
    }

    /// Whether none are kept.
    pub fn is_nothing(&self) -> bool {
        let mut all = self.domains.values().chain([&self.others]);
        all.all(|kept| *kept == Kept::Nothing)
    }

    /// Whether those of an event are. The control plane's are where it is named.
    pub fn keeps(&self, domain: &str, id: &str) -> bool {
        let kept = match self.domains.get(domain) {
            Some(kept) => *kept,
            None if keys::is_control(domain) => Kept::Nothing,
            None => self.others,
        };
        match kept {
            Kept::Nothing => false,
            Kept::All => true,
            Kept::OneOf(n) => keys::crc16(id.as_bytes()).is_multiple_of(n),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(setting: &[&str]) -> Result<OutcomesKept, String> {
        let setting: Vec<String> = setting.iter().map(|&one| one.to_owned()).collect();
        OutcomesKept::parse(&setting)
    }

    #[test]
    fn outcomes_are_kept_of_the_domains_that_are_named_and_of_a_part_where_it_says_so() {
        let nothing = parse(&[]).unwrap();
        assert!(nothing.is_nothing() && !nothing.keeps("order", "1"));
        let kept = parse(&["order=all", "image=1/10", "*=none"]).unwrap();
        assert!(!kept.is_nothing());
        assert!(kept.keeps("order", "1") && !kept.keeps("mail", "1"));
        let of_images = (0..10_000).filter(|n| kept.keeps("image", &format!("i-{n}")));
        let count = of_images.count();
        assert!((700..1300).contains(&count), "{count}");
        let all = parse(&["*=all", "mail=none"]).unwrap();
        assert!(all.keeps("order", "1") && !all.keeps("mail", "1"));
        assert!(!all.keeps("system", "1"), "only where it is named");
        assert!(parse(&["system=all"]).unwrap().keeps("system", "1"));
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for odd in [
            "order",
            "order=some",
            "order=1/0",
            "order=2/3",
            "Order=all",
            "order=1/20000",
            "=all",
        ] {
            assert!(parse(&[odd]).unwrap_err().contains(odd), "{odd}");
        }
    }
}
