//! The command `convoke`.

#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used))]

#[cfg(all(feature = "failpoints", not(debug_assertions)))]
compile_error!("the feature `failpoints` is for tests: no program is shipped with it");

mod bench;
mod cli;

use clap::Parser;
use cli::Exit;
use std::process::ExitCode;

fn main() -> ExitCode {
    // Wrong usage ends here: clap explains on stderr and exits with 2.
    let cli = cli::Cli::parse();
    match cli::run(cli) {
        Exit::Done => ExitCode::SUCCESS,
        Exit::Failed => ExitCode::from(1),
        Exit::Misused => ExitCode::from(2),
    }
}
