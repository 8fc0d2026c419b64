//! A real MCP server, from the Python package index.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The command line for `sh` that becomes the server, or `None` if the index cannot be reached.
///
/// # Panics
/// It cannot be installed for another reason.
pub(crate) fn server() -> Option<String> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let install = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/install");
    let ended = Command::new(install)
        .arg("mcp")
        .env("CARGO_TARGET_DIR", target)
        .output()
        .expect("scripts/install runs");
    match ended.status.code() {
        Some(0) => {}
        Some(75) => return None,
        _ => panic!("{ended:?}"),
    }
    let python: PathBuf = target.join("mcp/bin/python");
    Some(format!("exec '{}' -m mcp_server_time", python.display()))
}
