//! Any command, in any language, as a handler.
//!
//! It runs once per event, by `sh -c`: the payload as JSON on its standard input, the event's id, type
//! and attempt in its environment, the result as JSON on its standard output. Exit 0 is success, 75
//! (the `EX_TEMPFAIL` of `sysexits.h`) a failure that is retried, anything else one that is not; the
//! message is what it wrote to standard error.

use super::process::{Group, shell};
use crate::bus::json::{from_json, to_json};
use crate::error::{Code, HandlerError, MAX_MESSAGE};
use crate::registry::context::Context;
use crate::registry::handler::{Encoded, Endpoint, Schemas};
use crate::registry::policy::Policy;
use crate::registry::router::Registration;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Child;

/// The exit code of a failure that is retried.
const RETRY: i32 = 75;

/// A handler that runs `command` for events of that type; its output has at most that many bytes.
pub fn registration(kind: &str, command: &str, max_output: usize) -> Registration {
    let run: Arc<str> = command.into();
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
    let payload = to_json(event.data())
        .map_err(|error| HandlerError::invalid_argument(error.to_string()))?
        .to_string();
    let mut child = spawn(&command, &context)?;
    let mut group = Group(child.id());
    let (Some(mut stdin), Some(stdout), Some(stderr)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err(HandlerError::internal("the command has no pipes"));
    };
    let write = async move {
        // A command that does not read all of its input may still succeed.
        stdin.write_all(payload.as_bytes()).await.ok();
        Ok(())
    };
    let message = async { Ok(last(stderr).await) };
    let finished = async {
        // Too much output ends the run at once, whatever the command still does.
        let ((), output, message) = tokio::try_join!(write, bounded(stdout, max_output), message)?;
        let status = child.wait().await?;
        Ok::<_, HandlerError>((status, output, message))
    };
    let (status, output, message) = tokio::select! {
        finished = finished => finished?,
        () = context.cancellation().cancelled() => {
            return Err(HandlerError::aborted("the run was cancelled: its lease was lost, or the worker stops"));
        }
    };
    group.0 = None;
    judge(status, &output, &message)
}

fn spawn(command: &str, context: &Context) -> Result<Child, HandlerError> {
    let event = context.event();
    let mut run = shell(command);
    run.stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    run.env("CONVOKE_EVENT_ID", event.id())
        .env("CONVOKE_EVENT_TYPE", event.kind())
        .env("CONVOKE_EVENT_ATTEMPT", event.attempt().to_string());
    run.spawn().map_err(|error| {
        HandlerError::unavailable(format!("the command can not be started: {error}"))
    })
}

/// All that is written, as long as it is not too much.
async fn bounded(from: impl AsyncRead + Unpin, limit: usize) -> Result<Vec<u8>, HandlerError> {
    let mut output = Vec::new();
    from.take(limit as u64 + 1).read_to_end(&mut output).await?;
    if output.len() > limit {
        let message = format!("the command wrote more than {limit} bytes of result");
        return Err(HandlerError::internal(message).permanent());
    }
    Ok(output)
}

/// The end of what is written.
async fn last(mut from: impl AsyncRead + Unpin) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut chunk = [0; 1024];
    while let Ok(count @ 1..) = from.read(&mut chunk).await {
        kept.extend_from_slice(&chunk[..count]);
        let surplus = kept.len().saturating_sub(MAX_MESSAGE);
        kept.drain(..surplus);
    }
    kept
}

fn judge(status: ExitStatus, output: &[u8], message: &[u8]) -> Result<Encoded, HandlerError> {
    let message = String::from_utf8_lossy(message).trim().to_owned();
    let message = match message.is_empty() {
        true => format!("the command ended with {status}"),
        false => message,
    };
    match status.code() {
        Some(0) => result(output),
        Some(RETRY) => Err(HandlerError::unavailable(message)),
        Some(_) => Err(HandlerError::internal(message).permanent()),
        None => Err(HandlerError::new(
            Code::Internal,
            format!("{status}: {message}"),
        )),
    }
}

fn result(output: &[u8]) -> Result<Encoded, HandlerError> {
    if output.trim_ascii().is_empty() {
        return Ok(from_json(&serde_json::Value::Null));
    }
    match serde_json::from_slice(output) {
        Ok(value) => Ok(from_json(&value)),
        Err(error) => {
            let message = format!("the command's output is not JSON: {error}");
            Err(HandlerError::internal(message).permanent())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::layers::testing::context;
    use std::time::Duration;

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
            ("echo broken >&2; exit 1", Code::Internal, false, "broken"),
            ("exit 3", Code::Internal, false, "exit status: 3"),
            ("kill -9 $$", Code::Internal, true, "signal: 9"),
            ("echo '{'", Code::Internal, false, "not JSON"),
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
    async fn a_run_that_is_given_up_takes_its_processes_along() {
        let mark = format!("{}", 100_000 + fastrand::u32(..100_000));
        let command = format!("sleep {mark} & sleep {mark}; true");
        let sleeping = || {
            let found = std::process::Command::new("pgrep")
                .args(["-f", &format!("^sleep {mark}")])
                .output();
            !found.unwrap().stdout.is_empty()
        };
        let given_up =
            tokio::time::timeout(Duration::from_millis(500), run(&command, &[0xc0])).await;
        assert!(given_up.is_err());
        let began = std::time::Instant::now();
        while sleeping() {
            assert!(began.elapsed() < Duration::from_secs(10), "still running");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
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
        let context = context(&[("data", &[0xc0])]);
        context.cancellation().cancel();
        let run = registration("image.resize", "sleep 300", 100)
            .endpoint
            .start(context);
        let ended = tokio::time::timeout(Duration::from_secs(30), run).await;
        assert_eq!(
            ended.expect("it still runs").unwrap_err().code,
            Code::Aborted
        );
    }

    /// Looks from inside a second run of this test, as a process can not safely change its own
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
                "handlers::exec::tests::the_command_does_not_see_our_settings",
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
