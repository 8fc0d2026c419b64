//! A worker process of the rig, and its handlers. Each notes what it does in a history of its process.

use crate::history::History;
use crate::{far, held, outages, pairs};
use convoke::settings::Settings;
use convoke::{Context, HandlerError, Policy, Worker};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::{Duration, SystemTime};

pub(crate) const SETTINGS: &str = "TORTURE_WORKER_SETTINGS";
pub(crate) const THREADS: &str = "TORTURE_WORKER_THREADS";
pub(crate) const DIR: &str = "TORTURE_WORKER_DIR";
pub(crate) const BEGAN: &str = "TORTURE_WORKER_BEGAN";
/// The scenario whose handlers it has besides those of the load.
pub(crate) const BESIDES: &str = "TORTURE_WORKER_BESIDES";

/// What becomes of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) enum Fate {
    Done,
    /// The first try fails, the next does not.
    Retry,
    /// It fails for good.
    Dead,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Work {
    pub(crate) n: u64,
    /// How long it takes; 0 is ready at once.
    pub(crate) ms: u64,
    pub(crate) fate: Fate,
}

/// How a long run spends its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) enum Manner {
    Waits,
    /// It blocks the thread that polls it first, which is the lane's.
    BlocksAtOnce,
    /// It blocks a thread of the runtime.
    BlocksLater,
    /// The one that takes it first never ends; who takes it over is done at once.
    HoldsFirst,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Long {
    pub(crate) n: u64,
    pub(crate) ms: u64,
    pub(crate) manner: Manner,
}

/// What a poison event does to whoever runs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) enum Poison {
    Error,
    Panic,
    Overflow,
    Abort,
    /// As the system does when memory is short.
    Kill,
    Hang,
}

/// The body of the test `a_worker_process`.
pub(crate) fn process() {
    let Ok(settings) = std::env::var(SETTINGS) else {
        return;
    };
    let settings: Settings = serde_json::from_str(&settings).unwrap();
    let number = |name: &str| -> u64 { std::env::var(name).unwrap().parse().unwrap() };
    tracing_subscriber::fmt()
        .with_env_filter("info")
        .with_target(false)
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .init();
    let (id, pid) = (&settings.id, std::process::id());
    let path = Path::new(&std::env::var(DIR).unwrap()).join(format!("history.{id}.{pid}"));
    let began = SystemTime::UNIX_EPOCH + Duration::from_nanos(number(BEGAN));
    let history = History::open(&path, format!("{id}/{pid}"), began);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(number(THREADS) as usize)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let worker = Worker::builder()
            .settings(settings)
            .state(history)
            .handler("load.work", work)
            .handler_with("load.long", long, Policy::new().no_timeout())
            .handler("load.poison", poison);
        let worker = match std::env::var(BESIDES).as_deref() {
            Ok("far") => far::handlers(worker),
            Ok("held") => held::handlers(worker),
            Ok("outages") => outages::handlers(worker),
            Ok("pairs") => pairs::handlers(worker),
            _ => worker,
        };
        worker.build().unwrap().run().await.unwrap();
    });
    std::process::exit(0);
}

/// Notes one end of a run.
pub(crate) fn note(context: &Context, phase: &str) -> Result<(), HandlerError> {
    let event = context.event();
    let (attempt, deliveries) = (event.attempt(), context.deliveries());
    context.state::<History>()?.note(
        "run",
        phase,
        &event.id(),
        &attempt.to_string(),
        &deliveries.to_string(),
    );
    Ok(())
}

async fn work(context: Context, work: Work) -> Result<u64, HandlerError> {
    note(&context, "invoke")?;
    if work.ms > 0 {
        tokio::time::sleep(Duration::from_millis(work.ms)).await;
    }
    match work.fate {
        Fate::Retry if context.event().attempt() == 1 => {
            note(&context, "fail")?;
            return Err(HandlerError::unavailable("the first try fails"));
        }
        Fate::Dead => {
            note(&context, "fail")?;
            return Err(HandlerError::internal("it never works").permanent());
        }
        _ => {}
    }
    context.publish("effect.made", &work.n)?;
    note(&context, "ok")?;
    Ok(work.n)
}

async fn long(context: Context, long: Long) -> Result<u64, HandlerError> {
    note(&context, "invoke")?;
    let time = Duration::from_millis(long.ms);
    match long.manner {
        Manner::Waits => tokio::time::sleep(time).await,
        Manner::BlocksAtOnce => std::thread::sleep(time),
        Manner::BlocksLater => {
            tokio::time::sleep(Duration::from_millis(1)).await;
            std::thread::sleep(time);
        }
        Manner::HoldsFirst if context.deliveries() == 1 => std::future::pending().await,
        Manner::HoldsFirst => {}
    }
    context.publish("effect.made", &long.n)?;
    note(&context, "ok")?;
    Ok(long.n)
}

async fn poison(context: Context, poison: Poison) -> Result<(), HandlerError> {
    note(&context, "invoke")?;
    match poison {
        Poison::Error => Err(HandlerError::internal("poison").permanent()),
        Poison::Panic => panic!("poison"),
        Poison::Overflow => {
            overflow(1);
            Ok(())
        }
        Poison::Abort => std::process::abort(),
        Poison::Kill => {
            crate::support::signal(std::process::id(), "KILL");
            std::future::pending().await
        }
        Poison::Hang => std::future::pending().await,
    }
}

fn overflow(depth: u64) -> u64 {
    let page = std::hint::black_box([depth; 512]);
    match std::hint::black_box(depth) {
        0 => 0,
        _ => overflow(depth + 1) + page[7],
    }
}
