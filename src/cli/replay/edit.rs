//! Mending a payload in the operator's editor.

use super::Misuse;
use anyhow::Context;
use convoke::bus::json;
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
/// Fails if the payload holds what JSON can not say and would change by itself, if the editor
/// fails, or if what it left is no JSON.
pub fn edit(data: Option<&[u8]>, force: bool) -> anyhow::Result<Vec<u8>> {
    let data = data.unwrap_or(&[0xc0]);
    let value = json::to_json(data).unwrap_or(Value::Null);
    if !force && !survives(data, &value) {
        anyhow::bail!(
            "the payload holds bytes or extension types, which JSON lacks: saving it would change \
             them; --force edits it all the same"
        );
    }
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
    let mended: Value = serde_json::from_slice(&text)
        .map_err(|error| Misuse::error(format_args!("the mended payload is no JSON: {error}")))?;
    Ok(match mended == value {
        true if survives(data, &value) => data.to_vec(),
        _ => json::from_json(&mended),
    })
}

/// Whether the payload comes back the same from JSON. One that can't be decoded has nothing to keep.
fn survives(data: &[u8], value: &Value) -> bool {
    let decode = |mut bytes: &[u8]| rmpv::decode::read_value(&mut bytes).ok();
    match json::to_json(data) {
        Err(_) => true,
        Ok(_) => match (decode(data), decode(&json::from_json(value))) {
            (Some(was), Some(is)) => same(&was, &is),
            _ => false,
        },
    }
}

/// Equal but for the width of numbers.
fn same(a: &rmpv::Value, b: &rmpv::Value) -> bool {
    use rmpv::Value::{Array, F32, Map};
    match (a, b) {
        (Array(a), Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Map(a), Map(b)) => {
            a.len() == b.len()
                && a.iter()
                    .zip(b)
                    .all(|((ak, av), (bk, bv))| same(ak, bk) && same(av, bv))
        }
        (F32(a), b) => b.as_f64() == Some(f64::from(*a)),
        (a, b) => a == b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_json_lacks_does_not_survive() {
        let packed = |value: &rmpv::Value| {
            let mut data = Vec::new();
            rmpv::encode::write_value(&mut data, value).unwrap();
            data
        };
        let survives = |data: &[u8]| super::survives(data, &json::to_json(data).unwrap());
        for good in [
            rmpv::Value::from(7),
            rmpv::Value::F32(1.5),
            rmpv::Value::Array(vec!["a".into(), rmpv::Value::Nil]),
            rmpv::Value::Map(vec![("k".into(), true.into())]),
        ] {
            assert!(survives(&packed(&good)), "{good}");
        }
        for bad in [
            rmpv::Value::Binary(b"text".to_vec()),
            rmpv::Value::Ext(1, vec![2]),
            rmpv::Value::Map(vec![(7.into(), true.into())]),
            rmpv::Value::F64(f64::NAN),
        ] {
            assert!(!survives(&packed(&bad)), "{bad}");
        }
    }
}
