//! Commands of the user's, run by `sh`.

use tokio::process::Command;

/// What begins so in the environment is this program's own: it may hold passwords.
const OURS: &str = "CONVOKE_";

/// A command line for `sh`, in a process group of its own, without this program's settings.
pub(crate) fn shell(command: &str) -> Command {
    let mut run = Command::new("sh");
    run.arg("-c")
        .arg(command)
        .process_group(0)
        .kill_on_drop(true);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with(OURS) {
            run.env_remove(name);
        }
    }
    run
}
