//! Any command, in any language, as a handler.
//!
//! It runs once per event, by `sh -c`: the payload as JSON on its standard input, the event's id, type
//! and attempt in its environment, the result as JSON on its standard output, both in the exact form of
//! [`json`]. `convoke worker --help` says what its exit status means. The status counts once the command
//! itself has exited, whatever it left in the background; a run that is given up, or whose worker dies,
//! ends with all its processes (`builtin/warden.rs`).

mod verdict;

use crate::builtin::process::shell;
use crate::builtin::scarce;
use crate::builtin::warden::{self, Watched};
use crate::handler::context::Context;
use crate::handler::function::{Encoded, Endpoint, Schemas};
use crate::handler::policy::Policy;
use crate::handler::router::Registration;
use crate::protocol::error::{HandlerError, MAX_MESSAGE};
use crate::protocol::json;
use crate::settings::variables::OF_COMMANDS;
use std::io;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin};
use tokio::task::unconstrained;
use verdict::judge;

/// How long the pipes of a command that has exited are read on, if what it left behind holds them open.
const MOMENT: Duration = Duration::from_millis(200);

/// A handler that runs `command` for events of that type; its output has at most that many bytes.
pub fn registration(kind: &str, command: &str, max_output: usize) -> Registration {
    let run: Arc<str> = format!("{}{command}", warden::WAIT).into();
    Registration {
        kind: kind.to_owned(),
        endpoint: Endpoint::raw(move |context| Box::pin(execute(run.clone(), context, max_output))),
        // Not the command itself: everyone on the bus reads it, and it may hold a secret.
        policy: Policy::new().describe("Runs a command of its worker's (--exec)."),
        schemas: Schemas::of::<serde_json::Value, serde_json::Value>(),
    }
}

async fn execute(
    command: Arc<str>,
    context: Context,
    max_output: usize,
) -> Result<Encoded, HandlerError> {
    let event = context.event();
    let payload = json::to_json(event.data())
        .map_err(|error| HandlerError::invalid_argument(error.to_string()))?
        .to_string();
    if event.id().contains('\0') {
        let id = event.id();
        return Err(HandlerError::invalid_argument(format!(
            "id: {id:?} holds the character NUL, which the environment of a command cannot"
        )));
    }
    let (mut child, watched) = scarce::start(|| spawn(&command, &context)).await?;
    let (Some(stdin), Some(stdout), Some(stderr)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err(HandlerError::internal("the command has no pipes"));
    };
    let (mut output, mut message) = (Vec::new(), Vec::new());
    let finished = async {
        let pipes = async {
            tokio::try_join!(
                write(stdin, payload),
                // Too much output ends the run at once, whatever the command still does.
                bounded(stdout, max_output, &mut output),
                last(stderr, &mut message)
            )
        };
        // Outside of tokio's budget: what is in a pipe is read before the moment is over.
        let mut pipes = std::pin::pin!(unconstrained(pipes));
        let status = tokio::select! {
            read = &mut pipes => {
                read?;
                child.wait().await?
            }
            status = child.wait() => {
                if let Ok(read) = tokio::time::timeout(MOMENT, pipes).await {
                    read?;
                }
                status?
            }
        };
        Ok::<_, HandlerError>(status)
    };
    let status = tokio::select! {
        status = finished => status?,
        () = context.cancellation().cancelled() => {
            return Err(HandlerError::aborted("the run was cancelled: its lease was lost, or the worker stops"));
        }
    };
    watched.ended();
    if status.success() && !message.is_empty() {
        let said = String::from_utf8_lossy(&message);
        tracing::info!(event = event.id(), kind = event.kind(), stderr = ?said, "a command succeeded and wrote on stderr");
    }
    judge(status, &output, &message)
}

fn spawn(command: &str, context: &Context) -> io::Result<(Child, Watched)> {
    let event = context.event();
    let mut run = shell(command);
    run.stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let [id, kind, attempt, _] = OF_COMMANDS;
    run.env(id, event.id())
        .env(kind, event.kind())
        .env(attempt, event.attempt().to_string());
    let mark = warden::mark(&mut run);
    let child = run.spawn()?;
    // A child that was just started was not waited for.
    let leader = child.id().unwrap_or_default();
    let watched = Watched::new(leader, mark)?;
    Ok((child, watched))
}

/// Lets the command begin and gives it the payload. One that does not read all of it may still succeed.
async fn write(mut stdin: ChildStdin, payload: String) -> Result<(), HandlerError> {
    if stdin.write_all(warden::BEGIN).await.is_ok() {
        stdin.write_all(payload.as_bytes()).await.ok();
    }
    Ok(())
}

/// All that is written, as long as it is not too much.
async fn bounded(
    from: impl AsyncRead + Unpin,
    limit: usize,
    output: &mut Vec<u8>,
) -> Result<(), HandlerError> {
    from.take(limit as u64 + 1).read_to_end(output).await?;
    if output.len() > limit {
        let message = format!("the command wrote more than {limit} bytes of result");
        return Err(HandlerError::internal(message).permanent());
    }
    Ok(())
}

/// The end of what is written.
async fn last(mut from: impl AsyncRead + Unpin, kept: &mut Vec<u8>) -> Result<(), HandlerError> {
    let mut chunk = [0; 1024];
    while let Ok(count @ 1..) = from.read(&mut chunk).await {
        kept.extend_from_slice(&chunk[..count]);
        let surplus = kept.len().saturating_sub(MAX_MESSAGE);
        kept.drain(..surplus);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handler::assembly::testing::context;
    use crate::protocol::error::Code;
    use crate::protocol::json::{from_json, to_json};
    use crate::testing;

    async fn run(command: &str, data: &[u8]) -> Result<String, HandlerError> {
        let registration = registration("image.resize", command, 100_000);
        let result = registration
            .endpoint
            .start(context(&[("data", data)]))
            .await?;
        Ok(to_json(&result).unwrap().to_string())
    }

    fn failure(result: Result<String, HandlerError>) -> (Code, bool, String) {
        let error = result.unwrap_err();
        (error.code, error.retryable, error.message.into_owned())
    }

    #[tokio::test]
    async fn json_goes_in_and_comes_out() {
        let data = from_json(&serde_json::json!({"a": [1, "x"]}));
        assert_eq!(run("cat", &data).await.unwrap(), r#"{"a":[1,"x"]}"#);
        assert_eq!(run("true", &data).await.unwrap(), "null");
        let told =
            r#"printf '"%s %s %s"' $CONVOKE_EVENT_ID $CONVOKE_EVENT_TYPE $CONVOKE_EVENT_ATTEMPT"#;
        assert_eq!(run(told, &[0xc0]).await.unwrap(), r#""1-0 image.resize 1""#);
    }

    #[tokio::test]
    async fn the_exit_code_says_what_becomes_of_a_failure() {
        let cases = [
            (
                "echo broken >&2; exit 75",
                Code::Unavailable,
                true,
                "broken",
            ),
            ("echo broken >&2; exit 1", Code::Internal, true, "broken"),
            ("exit 64", Code::Internal, false, "exit status: 64"),
            ("exit 65", Code::Internal, false, "exit status: 65"),
            ("kill -9 $$", Code::Internal, true, "signal: 9"),
            (
                "sh -c 'kill -9 $$'; exit $?",
                Code::Internal,
                true,
                "signal: 9",
            ),
            ("exit 128", Code::Internal, true, "exit status: 128"),
            ("exit 255", Code::Internal, true, "exit status: 255"),
            ("echo '{'", Code::Internal, false, "begins with \"{\\n\""),
            (
                "echo 18446744073709551616",
                Code::Internal,
                false,
                "beyond 64 bits",
            ),
        ];
        for (command, code, retryable, message) in cases {
            let (found, again, said) = failure(run(command, &[0xc0]).await);
            assert_eq!((found, again), (code, retryable), "{command}: {said}");
            assert!(said.contains(message), "{command}: {said}");
        }
    }

    #[tokio::test]
    async fn neither_much_input_nor_much_output_gets_stuck() {
        let large = from_json(&serde_json::Value::String("x".repeat(1_000_000)));
        assert_eq!(run("echo 1", &large).await.unwrap(), "1");
        assert_eq!(run("cat | wc -c", &large).await.unwrap(), "1000002");
        let (code, retryable, message) = failure(run("yes", &[0xc0]).await);
        assert_eq!((code, retryable), (Code::Internal, false), "{message}");
        let noisy = "head -c 300000 /dev/zero | tr '\\0' x >&2; echo end >&2; exit 1";
        let (_, _, message) = failure(run(noisy, &[0xc0]).await);
        assert!(message.ends_with("end") && message.len() <= MAX_MESSAGE);
    }

    #[tokio::test]
    async fn every_value_goes_through_a_command_as_it_was() {
        let values: [&[u8]; 8] = [
            &[0xcb, 0x7f, 0xf8, 0, 0, 0, 0, 0, 0],
            &[0xcb, 0xff, 0xf0, 0, 0, 0, 0, 0, 0],
            &[0x82, 1, 7, 0xa1, b'1', 8],
            &[0xc4, 1, 0xff],
            &[0xc4, 1, b'x'],
            &[0xd4, 7, 0xab],
            &[0xcf, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            b"\x81\xa4$bin\xa2zz",
        ];
        for value in values {
            let registration = registration("image.resize", "cat", 1000);
            let result = registration.endpoint.start(context(&[("data", value)]));
            assert_eq!(result.await.unwrap(), value);
        }
    }

    #[tokio::test]
    async fn an_id_that_no_environment_holds_is_refused() {
        let context = context(&[("id", b"a\0b"), ("data", &[0xc0])]);
        let run = registration("image.resize", "cat", 100)
            .endpoint
            .start(context);
        let error = run.await.unwrap_err();
        assert_eq!(
            (error.code, error.retryable),
            (Code::InvalidArgument, false)
        );
        assert!(error.message.contains(r#"id: "a\0b""#), "{}", error.message);
    }

    fn sleepers(seconds: &str) -> usize {
        let found = std::process::Command::new("pgrep")
            .args(["-f", &format!("^sleep {seconds}")])
            .output();
        found.unwrap().stdout.split(|b| *b == b'\n').count() - 1
    }

    async fn until(mut holds: impl FnMut() -> bool, what: &str) {
        let began = std::time::Instant::now();
        while !holds() {
            assert!(began.elapsed() < Duration::from_secs(20), "{what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn unique_seconds() -> String {
        (100_000 + fastrand::u32(..100_000)).to_string()
    }

    #[tokio::test]
    async fn a_status_counts_though_a_child_holds_the_output() {
        let seconds = unique_seconds();
        let command = format!("sleep {seconds} & echo '\"started\"'");
        let ended = tokio::time::timeout(Duration::from_secs(30), run(&command, &[0xc0])).await;
        assert_eq!(ended.expect("it still waits").unwrap(), "\"started\"");
        // A background process of a run that succeeded is the command's own matter.
        until(|| sleepers(&seconds) == 1, "it was ended").await;
        let ended = std::process::Command::new("pkill")
            .args(["-f", &format!("^sleep {seconds}")])
            .status();
        assert!(ended.unwrap().success());
    }

    #[tokio::test]
    async fn a_run_that_is_given_up_takes_its_processes_along() {
        let seconds = unique_seconds();
        // One in the group, one that left it, one that even its parent left.
        let command = format!(
            "sleep {seconds} & setsid sleep {seconds} & (setsid sleep {seconds} &) ; sleep {seconds}; true"
        );
        let mut running = Box::pin(run(&command, &[0xc0]));
        tokio::select! {
            ended = &mut running => panic!("{ended:?}"),
            () = until(|| sleepers(&seconds) == 4, "never began") => {}
        }
        drop(running);
        until(|| sleepers(&seconds) == 0, "they still run").await;
    }

    #[tokio::test]
    async fn too_much_output_ends_the_command_at_once() {
        // It ignores the closed pipe, so only a kill ends it.
        let stubborn = "trap '' PIPE; head -c 200000 /dev/zero; sleep 300";
        let given_up = Duration::from_secs(30);
        let ended = tokio::time::timeout(given_up, run(stubborn, &[0xc0])).await;
        let (code, retryable, message) = failure(ended.expect("it still runs"));
        assert_eq!((code, retryable), (Code::Internal, false));
        assert!(message.contains("more than 100000 bytes"), "{message}");
    }

    #[tokio::test]
    async fn a_cancelled_run_ends_at_once() {
        let sleeper = registration("image.resize", "sleep 300", 100);
        let run = testing::event(&()).handled_by(sleeper);
        let cancelled = run.cancel_when(std::future::ready(())).into_future();
        let ended = tokio::time::timeout(Duration::from_secs(30), cancelled).await;
        let ended = ended.expect("it still runs");
        assert_eq!(ended.error().unwrap().code, Code::Aborted);
    }

    /// Looks from inside a second run of this test, as a process cannot safely change its own
    /// environment.
    #[test]
    fn the_command_does_not_see_our_settings() {
        const INSIDE: &str = "EXEC_TEST_INSIDE";
        if std::env::var_os(INSIDE).is_some() {
            let seen = r#"printf '"%s|%s|%s"' "$CONVOKE_REDIS_URL" "$CONVOKE_EVENT_NOTE" "$EXEC_TEST_INSIDE""#;
            let runtime = tokio::runtime::Runtime::new().unwrap();
            let told = runtime.block_on(run(seen, &[0xc0])).unwrap();
            assert_eq!(told, r#""||yes""#);
            return;
        }
        let inside = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "builtin::exec::tests::the_command_does_not_see_our_settings",
            ])
            .env(INSIDE, "yes")
            .env("CONVOKE_REDIS_URL", "redis://:secret@localhost")
            .env("CONVOKE_EVENT_NOTE", "ours too")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&inside.stdout);
        assert!(
            inside.status.success() && said.contains("1 passed"),
            "{said}"
        );
    }
}
