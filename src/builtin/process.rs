//! Commands of the user's, run by `sh`.

use tokio::process::Command;

/// What begins so in the environment is this program's own: it may hold passwords.
const OURS: &str = "CONVOKE_";

/// What systemd tells this process alone.
const SYSTEMDS: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// A command line for `sh`, in a process group of its own, without this program's settings.
pub(crate) fn shell(command: &str) -> Command {
    let mut run = Command::new("sh");
    run.arg("-c")
        .arg(command)
        .process_group(0)
        .kill_on_drop(true);
    for name in SYSTEMDS {
        run.env_remove(name);
    }
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with(OURS) {
            run.env_remove(name);
        }
    }
    run
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_cannot_speak_to_systemd_for_the_worker() {
        let run = shell("true");
        for name in SYSTEMDS {
            let removed = run
                .as_std()
                .get_envs()
                .any(|(is, to)| is == name && to.is_none());
            assert!(removed, "{name}");
        }
    }
}
