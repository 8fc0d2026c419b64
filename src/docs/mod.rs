//! Pages for people: what a clone, the crate's documentation and `convoke docs NAME` show.

/// A page of the documentation.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Page {
    /// Its name.
    pub name: &'static str,
    /// Whom it is for, in a line.
    pub about: &'static str,
    /// Its text, in Markdown.
    pub text: &'static str,
}

/// Declares the pages, and a module for each, so that the crate's documentation shows it.
macro_rules! pages {
    ($($name:ident: $about:literal,)*) => {
        /// All pages.
        pub const PAGES: [Page; 9] = [$(Page {
            name: stringify!($name),
            about: $about,
            text: include_str!(concat!(stringify!($name), ".md")),
        }),*];

        $(
            #[doc = $about]
            #[doc = ""]
            #[doc = include_str!(concat!(stringify!($name), ".md"))]
            pub mod $name {}
        )*
    };
}

pages! {
    protocol: "The contract: streams, fields, payloads, error codes; for whoever writes a client.",
    guarantees: "What holds, where it ends, and what was counted; for whoever builds on it.",
    operating: "Needs, settings, commands, what to do at 3 a.m.; for operators.",
    patterns: "Who does the work behind a system event, what each way costs, which to choose; for operators.",
    security: "Who is trusted with what, and what nobody is protected from; for operators.",
    testing: "What the tests show and how; for whoever tests a handler, or doubts.",
    architecture: "How an event and a vote go through the program, file by file; for whoever changes it.",
    contributing: "How to build, what must hold, how the code reads; for whoever sends a change.",
    changelog: "What is new; for whoever upgrades.",
}

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
    fn a_table_is_read_at_a_glance() {
        let readme = include_str!("../../README.md");
        let deploy = include_str!("../../deploy/README.md");
        let texts = PAGES
            .map(|page| page.text)
            .into_iter()
            .chain([readme, deploy]);
        for row in texts
            .flat_map(str::lines)
            .filter(|line| line.starts_with('|'))
        {
            for cell in row.split('|') {
                assert!(cell.chars().count() <= 200, "{cell}");
            }
        }
    }

    #[test]
    fn the_readme_leads_to_every_page() {
        let readme = include_str!("../../README.md");
        for page in PAGES {
            assert!(readme.contains(&format!("](src/docs/{}.md)", page.name)));
        }
    }

    #[test]
    fn no_line_of_code_is_wider_than_the_window() {
        for page in PAGES {
            for code in page.text.split("```").skip(1).step_by(2) {
                for line in code.lines() {
                    assert!(line.chars().count() <= 92, "{}: {line}", page.name);
                }
            }
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
