//! Signs of life of the keeper's thread.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How often the thread must have shown that it lives before it counts as one that hangs.
const LOOKS: u32 = 6;

/// What the thread shows, and who looks at it.
#[derive(Debug, Default)]
pub(super) struct ThreadSigns {
    shown: AtomicU64,
    /// Where the kernel describes the thread.
    thread: OnceLock<PathBuf>,
}

impl ThreadSigns {
    /// Shows that the thread that calls this lives, for as long as it does.
    pub(super) async fn show(&self, patience: Duration) -> ! {
        if let Ok(this) = fs::read_link("/proc/thread-self") {
            self.thread.set(Path::new("/proc").join(this)).ok();
        }
        loop {
            self.shown.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(patience / LOOKS / 2).await;
        }
    }

    /// Is ready when the thread gave no sign of life for so long, and says what the kernel knows of it. It
    /// counts looks, not time: a process that was stopped is no sign of anything.
    pub(super) async fn missing(&self, patience: Duration) -> String {
        let (mut missed, mut seen) = (0, 0);
        while missed < LOOKS {
            tokio::time::sleep(patience / LOOKS).await;
            let shown = self.shown.load(Ordering::Relaxed);
            missed = if shown == seen { missed + 1 } else { 0 };
            seen = shown;
        }
        self.thread.get().map_or_else(String::new, |at| state(at))
    }
}

/// Whether a thread runs, waits for a core, or for what.
fn state(thread: &Path) -> String {
    let stat = fs::read_to_string(thread.join("stat")).unwrap_or_default();
    // The name before may hold anything, brackets too.
    let letter = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.chars().next());
    match letter {
        Some('R') => "it runs, or waits for a core".to_owned(),
        Some('D') => format!("it waits for a device{}", waits_in(thread)),
        Some('S') => format!("it sleeps{}", waits_in(thread)),
        Some('T' | 't') => "it is stopped".to_owned(),
        _ => "it is gone".to_owned(),
    }
}

fn waits_in(thread: &Path) -> String {
    let call = fs::read_to_string(thread.join("wchan")).unwrap_or_default();
    match call.trim() {
        "" | "0" => String::new(),
        call => format!(" in {call}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    const PATIENCE: Duration = Duration::from_millis(120);

    fn thread(signs: &Arc<ThreadSigns>, then: impl FnOnce() + Send + 'static) {
        let signs = signs.clone();
        std::thread::spawn(move || {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.enable_all().build().unwrap();
            runtime.block_on(async {
                tokio::time::timeout(PATIENCE, signs.show(PATIENCE))
                    .await
                    .ok();
            });
            then();
        });
    }

    /// What is told in the end: a thread that has no core yet gives no sign either, and is told as that.
    async fn told(signs: &ThreadSigns, expected: &str) -> String {
        let began = std::time::Instant::now();
        loop {
            let said = signs.missing(PATIENCE).await;
            if said.starts_with(expected) || began.elapsed() > Duration::from_secs(30) {
                return said;
            }
        }
    }

    #[tokio::test]
    async fn a_thread_that_gives_no_sign_is_told_with_what_it_does() {
        let signs = Arc::new(ThreadSigns::default());
        thread(&signs, || std::thread::sleep(Duration::from_secs(60)));
        let said = told(&signs, "it sleeps").await;
        assert!(said.starts_with("it sleeps"), "{said}");

        let signs = Arc::new(ThreadSigns::default());
        thread(&signs, || {});
        assert_eq!(told(&signs, "it is gone").await, "it is gone");
    }
}
