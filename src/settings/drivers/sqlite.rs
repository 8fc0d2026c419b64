//! SQLite's.

use crate::settings::database_url::{DatabaseKind, DatabaseUrl};
use sqlx::sqlite::SqliteConnectOptions;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A file's URL; with an empty path, that of the file under the state directory.
pub(crate) fn sqlite(url: &DatabaseUrl, path: &str) -> Result<DatabaseKind, String> {
    if path.is_empty() {
        return Ok(DatabaseKind::Sqlite(local_file()?));
    }
    match SqliteConnectOptions::from_str(url.expose()) {
        Ok(options) => Ok(DatabaseKind::Sqlite(options.get_filename().to_owned())),
        Err(_) => Err(format!("{url} is not a file: write sqlite:PATH")),
    }
}

/// `$XDG_STATE_HOME/convoke/ledger.db`, else under `~/.local/state`.
fn local_file() -> Result<PathBuf, String> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let state = set("XDG_STATE_HOME")
        .map(PathBuf::from)
        .or_else(|| set("HOME").map(|home| Path::new(&home).join(".local/state")));
    state
        .map(|state| state.join("convoke/ledger.db"))
        .ok_or_else(|| "neither XDG_STATE_HOME nor HOME is set: write sqlite:PATH".to_owned())
}
