//! The file that telemetry is written to.
//!
//! It is bounded: where it would grow beyond its size it is put aside under the name that ends in `.1`, in the place of
//! the one before. Somebody else may put it aside as well, as `logrotate` does: the next line begins a new one. Nobody
//! needs to be told, since the name is looked at before each write.

use std::fmt;
use std::fs::{self, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A file that lines are added to; without a name it is standard output.
#[derive(Debug)]
pub(super) struct File {
    path: Option<PathBuf>,
    /// Bytes at the most.
    size: u64,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    file: fs::File,
    place: (u64, u64),
    length: u64,
    regular: bool,
}

impl File {
    /// Opens nothing yet.
    pub(super) fn new(path: Option<PathBuf>, size: u64) -> Self {
        Self {
            path,
            size,
            open: None,
        }
    }

    /// Adds a line, all of it or nothing.
    pub(super) fn write(&mut self, line: &[u8]) -> io::Result<()> {
        let Some(path) = &self.path else {
            let mut out = io::stdout().lock();
            return out.write_all(line).and_then(|()| out.flush());
        };
        if let Some(open) = &self.open
            && open.regular
        {
            if place(path) != Some(open.place) {
                self.open = None;
            } else if open.length > 0 && open.length + line.len() as u64 > self.size {
                fs::rename(path, aside(path))?;
                self.open = None;
            }
        }
        let open = match self.open.take() {
            Some(open) => open,
            None => Open::at(path)?,
        };
        let open = self.open.insert(open);
        match open.file.write_all(line) {
            Ok(()) => open.length += line.len() as u64,
            Err(error) => {
                // A disk that is full took a part of it.
                if open.regular {
                    open.file.set_len(open.length).ok();
                }
                self.open = None;
                return Err(error);
            }
        }
        Ok(())
    }
}

impl Open {
    fn at(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options.append(true).create(true).mode(0o640).open(path)?;
        let is = file.metadata()?;
        if is.is_file() {
            // Two that put it aside would lose what is in it.
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    return Err(io::Error::new(
                        io::ErrorKind::ResourceBusy,
                        "another worker writes it: write {id} in the name, which stands for the instance",
                    ));
                }
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
        Ok(Self {
            place: (is.dev(), is.ino()),
            length: is.len(),
            regular: is.is_file(),
            file,
        })
    }
}

/// Which file is there.
fn place(path: &Path) -> Option<(u64, u64)> {
    let is = fs::metadata(path).ok()?;
    Some((is.dev(), is.ino()))
}

fn aside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

impl fmt::Display for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(path) => path.display().fmt(f),
            None => f.write_str("standard output"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory() -> PathBuf {
        let place = std::env::temp_dir().join(format!("convoke-otlp-{:x}", fastrand::u64(..)));
        fs::create_dir(&place).unwrap();
        place
    }

    fn lines(path: &Path) -> Vec<String> {
        let text = fs::read_to_string(path).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn it_is_bounded_and_the_one_before_is_kept() {
        let place = directory();
        let path = place.join("a.jsonl");
        let mut file = File::new(Some(path.clone()), 10);
        for n in 0..5 {
            file.write(format!("{n}---\n").as_bytes()).unwrap();
        }
        assert_eq!(lines(&path), ["4---"]);
        assert_eq!(lines(&aside(&path)), ["2---", "3---"]);
        // One that is longer than all of it stands alone.
        file.write(b"0123456789abcdef\n").unwrap();
        file.write(b"5---\n").unwrap();
        assert_eq!(lines(&path), ["5---"]);
        assert_eq!(lines(&aside(&path)), ["0123456789abcdef"]);
        fs::remove_dir_all(place).unwrap();
    }

    #[test]
    fn one_that_was_put_aside_or_removed_is_begun_again() {
        let place = directory();
        let path = place.join("a.jsonl");
        let mut file = File::new(Some(path.clone()), 1 << 20);
        file.write(b"0\n").unwrap();
        fs::rename(&path, place.join("b")).unwrap();
        file.write(b"1\n").unwrap();
        assert_eq!(lines(&place.join("b")), ["0"]);
        assert_eq!(lines(&path), ["1"]);
        fs::remove_file(&path).unwrap();
        file.write(b"2\n").unwrap();
        assert_eq!(lines(&path), ["2"]);
        // A restart goes on with it.
        drop(file);
        let mut file = File::new(Some(path.clone()), 1 << 20);
        file.write(b"3\n").unwrap();
        assert_eq!(lines(&path), ["2", "3"]);
        fs::remove_dir_all(place).unwrap();
    }

    #[test]
    fn two_do_not_write_the_same_file() {
        let place = directory();
        let path = place.join("a.jsonl");
        let (mut one, mut two) = (
            File::new(Some(path.clone()), 99),
            File::new(Some(path.clone()), 99),
        );
        one.write(b"1\n").unwrap();
        let refused = two.write(b"2\n").unwrap_err().to_string();
        assert!(refused.contains("{id}"), "{refused}");
        drop(one);
        two.write(b"2\n").unwrap();
        assert_eq!(lines(&path), ["1", "2"]);
        fs::remove_dir_all(place).unwrap();
    }

    #[test]
    fn what_takes_nothing_is_an_error_each_time() {
        // It refuses every byte.
        let mut full = File::new(Some("/dev/full".into()), 99);
        assert!(full.write(b"1\n").is_err());
        assert!(full.write(b"2\n").is_err());
    }
}
