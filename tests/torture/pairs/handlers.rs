//! What a worker process runs for each pair, and what it notes of it.

use super::parts::{Fate, Numbered, Pair, Part, TIMEOUT, TOO_LONG};
use crate::history::History;
use convoke::handler::function::{Encoded, Run};
use convoke::handler::policy::Stack;
use convoke::worker::builder::Builder;
use convoke::{Context, HandlerError};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{self, Poll, ready};
use std::time::{Duration, Instant};
use tokio::time::Sleep;
use tower::{Layer, Service};

/// Runs of this process so far.
static RUNS: AtomicU64 = AtomicU64::new(0);

pub(crate) fn handlers(builder: Builder) -> Builder {
    Pair::all().fold(builder, |builder, pair| {
        let policy = match pair.has(Part::Layer) {
            true => pair.policy().layer(Watched),
            false => pair.policy(),
        };
        builder.handler_with(pair.kind(), run, policy)
    })
}

/// Notes the beginning of something, and its end however that comes.
struct Noted {
    context: Context,
    what: &'static str,
    run: u64,
    began: Instant,
    ended: bool,
}

impl Noted {
    fn begin(context: &Context, what: &'static str) -> Self {
        let noted = Self {
            context: context.clone(),
            what,
            run: RUNS.fetch_add(1, Ordering::Relaxed),
            began: Instant::now(),
            ended: false,
        };
        let event = context.event();
        let draining = match context.draining().is_cancelled() {
            true => "draining",
            false => "",
        };
        let (attempt, deliveries) = (event.attempt(), context.deliveries());
        noted.note(
            "invoke",
            &format!("{} {attempt} {deliveries} {draining}", event.entry_id()),
        );
        noted
    }

    fn note(&self, phase: &str, value: &str) {
        let id = self.context.event().id();
        if let Ok(history) = self.context.state::<History>() {
            history.note(self.what, phase, &id, &self.run.to_string(), value);
        }
    }

    fn end(&mut self, phase: &str) {
        self.ended = true;
        self.note(phase, &self.began.elapsed().as_micros().to_string());
    }
}

impl Drop for Noted {
    /// It was dropped in the middle of it.
    fn drop(&mut self) {
        if !self.ended {
            self.end("unknown");
        }
    }
}

/// Answers with the run's own name.
async fn run(context: Context, _: u64) -> Result<String, HandlerError> {
    let event = context.event();
    let Some(numbered) = Numbered::of_id(&event.id()) else {
        return Err(HandlerError::invalid_argument("not of this load").permanent());
    };
    let mut noted = Noted::begin(&context, "pair");
    match numbered.fate(event.attempt()) {
        Fate::Done(0) => {}
        Fate::Done(ms) => tokio::time::sleep(Duration::from_millis(ms)).await,
        Fate::Fails => {
            noted.end("fail");
            return Err(HandlerError::unavailable("the first try fails"));
        }
        Fate::Waits => tokio::time::sleep(TOO_LONG).await,
        Fate::Blocks => std::thread::sleep(TIMEOUT + TIMEOUT / 10),
    }
    // What publishes is not kept by a cache.
    if !numbered.pair().has(Part::Cache) {
        context.publish("effect.made", &numbered.0)?;
    }
    noted.end("ok");
    let process = std::process::id();
    Ok(format!("{}/{process} {}", context.instance(), noted.run))
}

/// A layer that is not always ready, and notes what passes through it.
#[derive(Clone, Copy)]
struct Watched;

struct Watching {
    inner: Stack,
    waits: Option<Pin<Box<Sleep>>>,
    ready: bool,
}

impl Layer<Stack> for Watched {
    type Service = Watching;

    fn layer(&self, inner: Stack) -> Watching {
        Watching {
            inner,
            waits: None,
            ready: false,
        }
    }
}

impl Clone for Watching {
    /// Who was ready says nothing of another one.
    fn clone(&self) -> Self {
        Watched.layer(self.inner.clone())
    }
}

impl Service<Context> for Watching {
    type Response = Encoded;
    type Error = HandlerError;
    type Future = Run;

    fn poll_ready(&mut self, cx: &mut task::Context<'_>) -> Poll<Result<(), HandlerError>> {
        let sleep = || {
            let ms = [0, 0, 1, 5][fastrand::usize(..4)];
            Box::pin(tokio::time::sleep(Duration::from_millis(ms)))
        };
        if !self.ready {
            ready!(self.waits.get_or_insert_with(sleep).as_mut().poll(cx));
            ready!(self.inner.poll_ready(cx))?;
            self.ready = true;
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, context: Context) -> Run {
        let mut noted = Noted::begin(&context, "layer");
        if !self.ready {
            noted.note("fail", "called and not ready");
        }
        (self.ready, self.waits) = (false, None);
        let run = self.inner.call(context);
        Box::pin(async move {
            let result = run.await;
            noted.end("ok");
            result
        })
    }
}
