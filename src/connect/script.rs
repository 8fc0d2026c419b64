//! Makes the scripts that run on the server from their source files.

use redis::Script;

/// Where the server has no `TIME`.
const SERVER_TIME: &str = include_str!("server_time.lua");
/// How a script asks for the time, and how it does with that.
const ASKS: (&str, &str) = ("redis.call('TIME')", "server_time()");

/// A script that works where the server has no `TIME`, too.
pub fn script(source: &str) -> Script {
    Script::new(&source_of(source))
}

/// The source of such a script.
pub fn source_of(source: &str) -> String {
    match source.contains(ASKS.0) {
        true => with(SERVER_TIME, &source.replace(ASKS.0, ASKS.1)),
        false => source.to_owned(),
    }
}

/// A script with functions that it shares between its first line, which the server reads, and the rest.
pub fn script_with(functions: &[&str], source: &str) -> Script {
    script(&with(&functions.join("\n"), source))
}

fn with(functions: &str, source: &str) -> String {
    match source.split_once('\n') {
        Some((first, rest)) if first.starts_with("#!") => format!("{first}\n{functions}\n{rest}"),
        _ => format!("{functions}\n{source}"),
    }
}
