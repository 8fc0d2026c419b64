//! SQLite's file: how it is opened, and whether connections lead to the one that is there.
//!
//! Somebody may delete or replace it while it is open. What is written to it then is nowhere, and
//! what is read from it is no more. So a connection is used again only if it was opened after the
//! file of today was first seen.

use super::sqlite::Pools;
use super::store::{ACQUIRE, CONNECTIONS, LIFETIME, LOCK, STATEMENT};
use crate::mutex::locked;
use sqlx::ConnectOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use std::fs::Permissions;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tracing::log::LevelFilter;

/// Its owner may read and write it.
const PRIVATE: u32 = 0o600;
/// What others may do with a file.
const OTHERS: u32 = 0o077;

/// Tells files of one path apart as long as somebody has them open: device and inode.
pub(super) type Identity = (u64, u64);

/// The file at a path.
#[derive(Debug)]
pub(super) struct File {
    path: PathBuf,
    /// Which it was at the last look, and since when.
    seen: Mutex<Option<(Identity, Instant)>>,
}

impl File {
    /// Which file is there, if any.
    pub(super) fn found(&self) -> Option<Identity> {
        let found = std::fs::metadata(&self.path).ok()?;
        Some((found.dev(), found.ino()))
    }

    /// Has the file, and what SQLite keeps beside it, be its owner's alone. A file that is not there yet
    /// is made before SQLite does, which would ask for no more than the process's umask; what comes
    /// beside it gets its mode. If that fails, opening it will say why.
    pub(super) fn make_private(&self) {
        let mut new = std::fs::OpenOptions::new();
        new.write(true).create_new(true).mode(PRIVATE);
        new.open(&self.path).ok();
        self.take_from_others();
    }

    /// The same for what is there.
    fn take_from_others(&self) {
        for beside in ["", "-wal", "-shm"] {
            let mut path = self.path.clone().into_os_string();
            path.push(beside);
            let open = std::fs::metadata(&path).is_ok_and(|file| file.mode() & OTHERS != 0);
            if open
                && let Err(error) = std::fs::set_permissions(&path, Permissions::from_mode(PRIVATE))
            {
                let path = path.to_string_lossy();
                tracing::warn!(%path, %error, "others may read the ledger: take it from them with chmod 600");
            }
        }
    }

    /// Whether a connection of that age leads to the file that is there.
    fn is_of(&self, age: Duration) -> bool {
        let Some(found) = self.found() else {
            return false;
        };
        let mut seen = locked(&self.seen);
        match *seen {
            Some((last, since)) if last == found => age <= since.elapsed(),
            _ => {
                *seen = Some((found, Instant::now()));
                false
            }
        }
    }
}

/// The pools for the file at `path`; its directory is made. Opens nothing yet.
pub(super) fn pools(path: PathBuf) -> Pools {
    if let Some(directory) = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    {
        make_private(directory);
    }
    let options = SqliteConnectOptions::new()
        .filename(&path)
        .busy_timeout(LOCK)
        .log_statements(LevelFilter::Trace)
        .log_slow_statements(LevelFilter::Trace, STATEMENT);
    let file = Arc::new(File {
        path,
        seen: Mutex::default(),
    });
    // FULL: what was acknowledged to Redis must survive a power cut here.
    let writing = options
        .clone()
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full);
    let writer = pool(1, &file)
        .acquire_timeout(ACQUIRE + LOCK)
        .connect_lazy_with(writing);
    let reader = pool(CONNECTIONS, &file)
        .acquire_timeout(ACQUIRE)
        .idle_timeout(LIFETIME)
        .connect_lazy_with(options.read_only(true));
    Pools {
        writer,
        reader,
        file,
    }
}

/// A pool whose connections lead to the file that is there.
fn pool(connections: u32, file: &Arc<File>) -> SqlitePoolOptions {
    let (opened, used) = (Arc::clone(file), Arc::clone(file));
    SqlitePoolOptions::new()
        .max_connections(connections)
        .after_connect(move |_, _| {
            // It may have been deleted and made again.
            opened.take_from_others();
            opened.is_of(Duration::ZERO);
            Box::pin(std::future::ready(Ok(())))
        })
        .before_acquire(move |_, connection| {
            let current = used.is_of(connection.age);
            Box::pin(std::future::ready(Ok(current)))
        })
}

/// Makes a directory that only its owner may look into. If that fails, opening the file will say why.
fn make_private(directory: &Path) {
    if !directory.exists() {
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(directory).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_its_owners_before_sqlite_opens_it() {
        let directory = std::env::temp_dir().join(format!("convoke-mode-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let file = File {
            path: directory.join("ledger.db"),
            seen: Mutex::default(),
        };
        let mode = |beside: &str| {
            let path = format!("{}{beside}", file.path.display());
            std::fs::metadata(path).unwrap().mode() & 0o777
        };
        file.make_private();
        assert_eq!(mode(""), PRIVATE);
        // As an earlier version left them.
        for beside in ["", "-wal", "-shm"] {
            let path = format!("{}{beside}", file.path.display());
            std::fs::write(&path, b"x").unwrap();
            std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        }
        file.make_private();
        assert_eq!(["", "-wal", "-shm"].map(mode), [PRIVATE; 3]);
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
