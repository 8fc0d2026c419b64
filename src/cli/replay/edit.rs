//! Mending a payload in the operator's editor.

use super::Misuse;
use anyhow::Context;
use convoke::protocol::json;
use serde_json::Value;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::Command;

/// A file of our own that goes away.
struct Draft(PathBuf);

impl Drop for Draft {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).ok();
    }
}

/// Opens a payload as JSON in $VISUAL or $EDITOR; returns it mended, as MessagePack.
///
/// # Errors
/// Fails if the editor fails, or if what it left is not JSON that can be taken exactly.
pub(super) fn edit(data: Option<&[u8]>) -> anyhow::Result<Vec<u8>> {
    let data = data.unwrap_or(&[0xc0]);
    let value = json::to_json(data).unwrap_or(Value::Null);
    let name = format!(
        "convoke-payload-{}-{:08x}.json",
        std::process::id(),
        fastrand::u32(..)
    );
    let draft = Draft(std::env::temp_dir().join(name));
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&draft.0)
        .with_context(|| draft.0.display().to_string())?;
    writeln!(file, "{value:#}")?;
    drop(file);
    let set = |name| std::env::var_os(name).filter(|value: &OsString| !value.is_empty());
    let editor = set("VISUAL")
        .or_else(|| set("EDITOR"))
        .unwrap_or_else(|| "vi".into());
    // The variable may hold arguments, as `code --wait`.
    let mut script = editor.clone();
    script.push(" \"$1\"");
    let ended = Command::new("sh")
        .arg("-c")
        .arg(script)
        .arg("sh")
        .arg(&draft.0)
        .status()
        .with_context(|| format!("{}", editor.display()))?;
    if !ended.success() {
        anyhow::bail!(
            "{} ended with {ended}: nothing was changed",
            editor.display()
        );
    }
    let text = std::fs::read(&draft.0)?;
    let mended = json::parse(&text).map_err(|error| {
        Misuse::error(format_args!(
            "the mended payload is not JSON that can be taken: {error}"
        ))
    })?;
    // Left as it was, it also keeps the widths of its numbers.
    Ok(match json::to_json(&mended) {
        Ok(same) if same == value => data.to_vec(),
        _ => mended,
    })
}
