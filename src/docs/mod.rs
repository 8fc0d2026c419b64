//! Pages for people: what a clone, the crate's documentation and `convoke docs NAME` show.

/// A page.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    /// Its name.
    pub name: &'static str,
    /// Whom it is for, in a line.
    pub about: &'static str,
    /// Its text, in Markdown.
    pub text: &'static str,
}

/// All of them.
pub const PAGES: [Page; 8] = [
    Page {
        name: "protocol",
        about: "the contract: streams, fields, payloads, error codes; for whoever writes a client",
        text: include_str!("protocol.md"),
    },
    Page {
        name: "guarantees",
        about: "what holds, where it ends, and what was counted; for whoever builds on it",
        text: include_str!("guarantees.md"),
    },
    Page {
        name: "operating",
        about: "needs, settings, commands, what to do at 3 a.m.; for operators",
        text: include_str!("operating.md"),
    },
    Page {
        name: "security",
        about: "who is trusted with what, and what nobody is protected from; for operators",
        text: include_str!("security.md"),
    },
    Page {
        name: "testing",
        about: "what the tests show and how; for whoever tests a handler, or doubts",
        text: include_str!("testing.md"),
    },
    Page {
        name: "architecture",
        about: "how an event and a vote go through the program, file by file; for whoever changes it",
        text: include_str!("architecture.md"),
    },
    Page {
        name: "contributing",
        about: "how to build, what must hold, how the code reads; for whoever sends a change",
        text: include_str!("contributing.md"),
    },
    Page {
        name: "changelog",
        about: "what is new; for whoever upgrades",
        text: include_str!("changelog.md"),
    },
];

#[doc = include_str!("protocol.md")]
pub mod protocol {}

#[doc = include_str!("guarantees.md")]
pub mod guarantees {}

#[doc = include_str!("operating.md")]
pub mod operating {}

#[doc = include_str!("security.md")]
pub mod security {}

#[doc = include_str!("testing.md")]
pub mod testing {}

#[doc = include_str!("architecture.md")]
pub mod architecture {}

#[doc = include_str!("contributing.md")]
pub mod contributing {}

#[doc = include_str!("changelog.md")]
pub mod changelog {}

#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub mod readme {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn the_files_that_pages_name_are_there() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut named = 0;
        for page in PAGES {
            let words = page
                .text
                .split(|c: char| !(c.is_alphanumeric() || "/_.-".contains(c)));
            for word in words.filter(|word| word.contains('/')) {
                let ends = [".rs", ".lua", ".acl", ".conf", ".md"];
                if ends.iter().any(|end| word.ends_with(end)) {
                    named += 1;
                    let there = root.join(word).exists() || root.join("src").join(word).exists();
                    assert!(there, "{}: {word}", page.name);
                }
            }
        }
        assert!(named > 20, "{named}");
    }

    #[test]
    fn a_table_of_the_readme_is_read_at_a_glance() {
        let readme = include_str!("../../README.md");
        for row in readme.lines().filter(|line| line.starts_with('|')) {
            for cell in row.split('|') {
                assert!(cell.chars().count() <= 200, "{cell}");
            }
        }
        for page in PAGES {
            assert!(readme.contains(&format!("](src/docs/{}.md)", page.name)));
        }
    }

    #[test]
    fn no_line_of_a_page_is_longer_than_a_screen_is_wide_twice() {
        for page in PAGES {
            for line in page.text.lines().filter(|line| !line.starts_with('|')) {
                assert!(line.chars().count() <= 160, "{}: {line}", page.name);
            }
        }
    }
}
