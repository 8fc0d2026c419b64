//! A secret in a file that may be rotated: whoever needs it reads the file again.

use crate::mutex::locked;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// Bytes in a file, at most.
const LONGEST: u64 = 64 * 1024;

/// A file that holds a secret. What one clone has read, all have read.
#[derive(Clone)]
pub(crate) struct SecretFile(Arc<Followed>);

struct Followed {
    path: PathBuf,
    known: Mutex<Known>,
}

struct Known {
    /// The last that could be used.
    text: String,
    /// How often it changed.
    changes: u64,
    /// What was wrong with it when it was read last.
    trouble: Option<String>,
}

impl SecretFile {
    /// Reads the file for the first time.
    ///
    /// # Errors
    /// It cannot be read, or is empty: the message names the file and never what it holds.
    #[cfg(feature = "config")]
    pub(crate) fn open(path: &Path) -> Result<Self, String> {
        let known = Known {
            text: read(path)?,
            changes: 0,
            trouble: None,
        };
        Ok(Self(Arc::new(Followed {
            path: path.to_owned(),
            known: Mutex::new(known),
        })))
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.0.path
    }

    /// How often what it holds has changed, as far as was read.
    pub(crate) fn changes(&self) -> u64 {
        locked(&self.0.known).changes
    }

    /// What the file holds now. Where it cannot be read, or `check` refuses what is new in it, that is told
    /// once, and the last that could be used is kept.
    pub(crate) fn read_again(&self, check: impl FnOnce(&str) -> Result<(), String>) -> String {
        let path = &self.0.path;
        let found = read(path);
        let mut known = locked(&self.0.known);
        let usable = found.and_then(|text| match text == known.text {
            true => Ok(text),
            false => match check(&text) {
                Ok(()) => Ok(text),
                Err(problem) => Err(format!("{}: {problem}", path.display())),
            },
        });
        match usable {
            Ok(text) => {
                known.trouble = None;
                if text != known.text {
                    known.text = text;
                    known.changes += 1;
                    tracing::info!(file = %path.display(), "what the file holds was replaced: it is used from now on");
                }
            }
            Err(trouble) => {
                if known.trouble.as_ref() != Some(&trouble) {
                    tracing::warn!("{trouble}; what it held before is used still");
                    known.trouble = Some(trouble);
                }
            }
        }
        known.text.clone()
    }
}

/// What the file holds, without the ends of its last line.
fn read(path: &Path) -> Result<String, String> {
    let told = |problem: &str| format!("{} {problem}", path.display());
    let failed = |error: std::io::Error| told(&format!("cannot be read: {error}"));
    // A pipe can be read once, and who opens it may wait for ever.
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err(told("is not a file"));
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(LONGEST + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > LONGEST {
        return Err(told("is longer than 64 KiB"));
    }
    let text = String::from_utf8(bytes).map_err(|_| told("is not UTF-8"))?;
    let text = text.trim_end_matches(['\r', '\n']);
    if text.trim().is_empty() {
        return Err(told("is empty"));
    }
    Ok(text.to_owned())
}

#[cfg(all(test, feature = "config"))]
mod tests {
    use super::*;

    fn file(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("convoke-secret-{}-{name}", std::process::id()))
    }

    #[test]
    fn what_cannot_be_used_names_the_file_and_keeps_what_was_there_before() {
        let path = file("kept");
        fs::write(&path, "first\r\n").unwrap();
        let secret = SecretFile::open(&path).unwrap();
        let now = |check: Result<(), String>| secret.read_again(|_| check);
        assert_eq!((&*now(Ok(())), secret.changes()), ("first", 0));
        fs::write(&path, "second\n").unwrap();
        assert_eq!(now(Err("another server".into())), "first");
        assert_eq!((&*now(Ok(())), secret.changes()), ("second", 1));
        for text in ["", "\n", " \n"] {
            fs::write(&path, text).unwrap();
            assert_eq!(now(Ok(())), "second", "{text:?}");
        }
        fs::remove_file(&path).unwrap();
        assert_eq!((&*now(Ok(())), secret.changes()), ("second", 1));
        fs::write(&path, "third").unwrap();
        assert_eq!((&*now(Ok(())), secret.changes()), ("third", 2));
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_file_that_is_of_no_use_is_refused_and_what_it_holds_is_not_told() {
        let path = file("refused");
        let long = "s3cret".repeat(20_000);
        for (bytes, told) in [
            (&b""[..], "is empty"),
            (b"\n\n", "is empty"),
            (b"s3cret\xff", "is not UTF-8"),
            (long.as_bytes(), "64 KiB"),
        ] {
            fs::write(&path, bytes).unwrap();
            let problem = SecretFile::open(&path).err().unwrap();
            assert!(problem.contains(told), "{problem}");
            assert!(problem.contains(&path.display().to_string()), "{problem}");
            assert!(!problem.contains("s3cret"), "{problem}");
        }
        fs::remove_file(&path).unwrap();
        let problem = SecretFile::open(&path).err().unwrap();
        assert!(problem.contains("cannot be read"), "{problem}");
        let problem = SecretFile::open(&std::env::temp_dir()).err().unwrap();
        assert!(problem.contains("is not a file"), "{problem}");
    }
}
