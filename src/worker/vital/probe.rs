//! The socket on which a worker's process says how it is, and who asks there.
//!
//! A Unix socket in a directory of the user's own; who connects gets one line of JSON ([`Signs`]) and the
//! end. Nothing is read from it.

use super::{Signs, Vital};
use sha1_smol::Sha1;
use std::fs::{self, DirBuilder};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// Bytes of a socket's path at the most (`sockaddr_un`, with a zero at the end).
const LONGEST: usize = 107;
/// How long one who asked may take to read the line.
const READS: Duration = Duration::from_millis(500);
/// Bytes of an answer at the most.
const ANSWER: u64 = 64 << 10;

/// Where the sockets are, unless the setting says: `RUNTIME_DIRECTORY` (systemd's), else `convoke` in
/// `XDG_RUNTIME_DIR`, else one in `/tmp` with the user's number in its name.
pub fn directory() -> PathBuf {
    let of = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(directories) = of("RUNTIME_DIRECTORY") {
        // systemd separates several by colons.
        let text = directories.to_string_lossy();
        return PathBuf::from(text.split(':').next().unwrap_or_default());
    }
    match of("XDG_RUNTIME_DIR") {
        Some(directory) => Path::new(&directory).join("convoke"),
        None => PathBuf::from(format!(
            "/tmp/convoke-{}",
            rustix::process::getuid().as_raw()
        )),
    }
}

/// Where the socket of that instance is.
pub fn socket(directory: &Path, id: &str) -> PathBuf {
    let named = directory.join(format!("{id}.sock"));
    if named.as_os_str().len() <= LONGEST {
        return named;
    }
    let digest = Sha1::from(id).digest().to_string();
    directory.join(format!("{}.sock", &digest[..16]))
}

/// Asks the worker at that socket.
///
/// # Errors
/// Nobody listens there, it did not answer in time, or what it said is of another program.
pub fn ask(socket: &Path, within: Duration) -> io::Result<Signs> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(within))?;
    let mut line = Vec::new();
    Read::by_ref(&mut stream)
        .take(ANSWER)
        .read_to_end(&mut line)?;
    serde_json::from_slice(&line).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// The sockets in that directory, by name; none if there is no such directory.
///
/// # Errors
/// The directory cannot be read.
pub fn sockets(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let found = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        found => found?,
    };
    let mut sockets = Vec::new();
    for file in found {
        let path = file?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "sock")
        {
            sockets.push(path);
        }
    }
    sockets.sort();
    Ok(sockets)
}

/// A socket that is answered by a thread of its own; dropped, it goes away.
#[derive(Debug)]
pub(in crate::worker) struct Socket {
    path: PathBuf,
    inode: u64,
    over: Arc<AtomicBool>,
}

impl Socket {
    /// Opens the one of this worker. The directory is made if it is not there, for this user alone.
    pub(in crate::worker) fn open(directory: &Path, id: &str, vital: &Vital) -> io::Result<Self> {
        own(directory)?;
        let path = socket(directory, id);
        // Beside the name first: a process that was killed left its socket, and nobody finds none meanwhile.
        let made = directory.join(format!("{:016x}.new", fastrand::u64(..)));
        let listener = UnixListener::bind(&made)?;
        fs::rename(&made, &path)?;
        let inode = fs::symlink_metadata(&path)?.ino();
        let over = Arc::new(AtomicBool::new(false));
        let (vital, ends) = (vital.clone(), over.clone());
        let answer = move || {
            for asked in listener.incoming() {
                if ends.load(Ordering::Acquire) {
                    return;
                }
                match asked {
                    Ok(stream) => answer(stream, &vital),
                    // No file descriptor is left, for example.
                    Err(_) => thread::sleep(READS),
                }
            }
        };
        thread::Builder::new()
            .name("probe".to_owned())
            .spawn(answer)?;
        Ok(Self { path, inode, over })
    }
}

/// Says how the worker is. Who does not read it in time, or is gone, does without.
fn answer(mut stream: UnixStream, vital: &Vital) {
    let Ok(mut line) = serde_json::to_vec(&vital.signs()) else {
        return;
    };
    line.push(b'\n');
    if stream.set_write_timeout(Some(READS)).is_ok() {
        stream.write_all(&line).ok();
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        // The thread waits for someone who asks. Nobody waits for it: another process of this id may put its own
        // socket in the place at any time, and be the one that is reached.
        if self.is_ours() {
            UnixStream::connect(&self.path).ok();
        }
        if self.is_ours() {
            fs::remove_file(&self.path).ok();
        }
    }
}

impl Socket {
    fn is_ours(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok_and(|is| is.ino() == self.inode)
    }
}

/// Makes the directory, or checks that nobody else may put anything there.
fn own(directory: &Path) -> io::Result<()> {
    match DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
    {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let is = fs::symlink_metadata(directory)?;
    let user = rustix::process::getuid().as_raw();
    if !is.is_dir() || is.uid() != user || is.mode() & 0o022 != 0 {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!(
                "{} is not a directory that this user alone may write to",
                directory.display()
            ),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connect::silence::Answers;
    use std::os::unix::fs::PermissionsExt;

    fn vital(id: &str) -> Vital {
        let ttl = Duration::from_secs(3);
        Vital::new(id, ttl, &Answers::new(ttl))
    }

    fn place() -> PathBuf {
        let name = format!(
            "convoke-probe-{}-{:x}",
            std::process::id(),
            fastrand::u64(..)
        );
        std::env::temp_dir().join(name)
    }

    #[test]
    fn a_socket_answers_each_who_asks_and_goes_with_its_worker() {
        let place = place();
        let long = "w".repeat(128);
        for id in ["w-1", &long] {
            let vital = vital(id);
            let open = Socket::open(&place, id, &vital).unwrap();
            let path = socket(&place, id);
            for _ in 0..3 {
                let signs = ask(&path, Duration::from_secs(5)).unwrap();
                assert_eq!(
                    (&*signs.id, signs.stage),
                    (id, super::super::Stage::Starting)
                );
            }
            vital.drains();
            let signs = ask(&path, Duration::from_secs(5)).unwrap();
            assert_eq!(signs.stage, super::super::Stage::Draining);
            assert_eq!(sockets(&place).unwrap(), std::slice::from_ref(&path));
            drop(open);
            assert!(ask(&path, Duration::from_secs(5)).is_err());
            assert!(sockets(&place).unwrap().is_empty());
        }
        fs::remove_dir_all(&place).unwrap();
    }

    #[test]
    fn the_later_process_of_an_id_keeps_its_socket() {
        let place = place();
        let (one, other) = (vital("w-1"), vital("w-1"));
        other.drains();
        let first = Socket::open(&place, "w-1", &one).unwrap();
        let second = Socket::open(&place, "w-1", &other).unwrap();
        drop(first);
        let signs = ask(&socket(&place, "w-1"), Duration::from_secs(5)).unwrap();
        assert_eq!(signs.stage, super::super::Stage::Draining);
        drop(second);
        fs::remove_dir_all(&place).unwrap();
    }

    #[test]
    fn a_directory_that_others_may_write_to_is_refused() {
        let place = place();
        fs::create_dir(&place).unwrap();
        fs::set_permissions(&place, PermissionsExt::from_mode(0o777)).unwrap();
        let refused = Socket::open(&place, "w-1", &vital("w-1")).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
        fs::remove_dir_all(&place).unwrap();
    }
}
