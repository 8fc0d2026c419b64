//! Which key a command of the client library is about.

use crate::protocol::keys::slot_of;
use redis::{Arg, Cmd, Pipeline};

/// The slot of a command's first key; `None` where it has none.
pub(crate) fn slot_of_command(command: &Cmd) -> Option<u16> {
    let mut words = command.args_iter().map(|word| match word {
        Arg::Simple(word) => word,
        _ => b"",
    });
    let name = words.next()?;
    let is = |names: &[&str]| {
        names
            .iter()
            .any(|n| n.as_bytes().eq_ignore_ascii_case(name))
    };
    if is(&[
        "TIME", "INFO", "ROLE", "PING", "SCRIPT", "SCAN", "CONFIG", "ACL", "CLIENT", "COMMAND",
        "WAIT", "DBSIZE", "MULTI", "EXEC", "UNWATCH", "CLUSTER", "DEBUG",
    ]) {
        return None;
    }
    let key = if is(&["EVALSHA", "EVAL", "EVALSHA_RO", "EVAL_RO", "FCALL"]) {
        // The number of keys, and then the first.
        let keys = words.nth(1)?;
        (keys != b"0").then(|| words.next())?
    } else if is(&["XGROUP", "XINFO", "MEMORY", "OBJECT"]) {
        words.nth(1)
    } else if is(&["XREAD", "XREADGROUP"]) {
        words.find(|word| word.eq_ignore_ascii_case(b"STREAMS"))?;
        words.next()
    } else {
        words.next()
    }?;
    Some(slot_of(key))
}

/// Whether a command is about the scripts of a node.
pub(crate) fn is_of_scripts(command: &Cmd) -> bool {
    match command.args_iter().next() {
        Some(Arg::Simple(name)) => name.eq_ignore_ascii_case(b"SCRIPT"),
        _ => false,
    }
}

/// The slot of the first command that has one.
pub(crate) fn slot_of_pipeline(pipeline: &Pipeline) -> Option<u16> {
    pipeline.cmd_iter().find_map(slot_of_command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_key_stands_where_the_command_has_it() {
        let slot = |words: &[&str]| {
            let mut command = redis::cmd(words[0]);
            command.arg(&words[1..]);
            slot_of_command(&command)
        };
        let of = Some(slot_of(b"{k}"));
        for words in [
            &["XADD", "{k}:a", "*", "f", "v"][..],
            &["get", "x{k}"],
            &["EVALSHA", "sha", "1", "{k}", "x"],
            &["XGROUP", "CREATE", "{k}", "g", "0"],
            &["XREADGROUP", "GROUP", "g", "c", "STREAMS", "{k}", ">"],
            &["XREAD", "COUNT", "1", "streams", "{k}", "0"],
        ] {
            assert_eq!(slot(words), of, "{words:?}");
        }
        for words in [
            &["EVALSHA", "sha", "0", "{k}"][..],
            &["TIME"],
            &["SCRIPT", "LOAD", "{k}"],
            &["XREAD"],
        ] {
            assert_eq!(slot(words), None, "{words:?}");
        }
    }
}
