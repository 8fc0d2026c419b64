//! Every place where a handler's or a layer's own code runs or is dropped: a panic there is a failed run
//! like others, and the slot comes back.

use crate::rig::{Rig, text};
use crate::support::until;
use convoke::client::publish::Outgoing;
use convoke::handler::function::{Encoded, Endpoint, Run, Schemas};
use convoke::handler::policy::RetryPolicy;
use convoke::handler::router::Registration;
use convoke::settings::Settings;
use convoke::worker::builder::{BuildError, Builder};
use convoke::{Context, HandlerError, Policy, Worker};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::panic::panic_any;
use std::pin::Pin;
use std::task::{self, Poll};
use std::time::Duration;
use tower::{Layer, Service};

/// Panics when it is dropped.
#[derive(Clone)]
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("a drop panics");
    }
}

/// Panics when it is dropped, with a payload that does the same.
struct Chain;

impl Drop for Chain {
    fn drop(&mut self) {
        panic_any(Chain);
    }
}

/// Can be neither decoded nor encoded without a panic.
#[derive(JsonSchema)]
struct Cursed;

impl<'de> Deserialize<'de> for Cursed {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        panic!("decoding panics");
    }
}

impl Serialize for Cursed {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        panic!("encoding panics");
    }
}

/// A future that panics when it is dropped after its result.
struct DropsLate(Bomb);

impl Future for DropsLate {
    type Output = Result<Encoded, HandlerError>;
    fn poll(self: Pin<&mut Self>, _: &mut task::Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(Ok(vec![0xc0]))
    }
}

/// Where a layer panics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Clone,
    Ready,
    Call,
    Poll,
    Drop,
}

#[derive(Clone)]
struct Panics(At);

impl<S> Layer<S> for Panics {
    type Service = Panicking<S>;
    fn layer(&self, inner: S) -> Panicking<S> {
        Panicking { inner, at: self.0 }
    }
}

struct Panicking<S> {
    inner: S,
    at: At,
}

impl<S: Clone> Clone for Panicking<S> {
    fn clone(&self) -> Self {
        assert!(self.at != At::Clone, "clone panics");
        let (inner, at) = (self.inner.clone(), self.at);
        Self { inner, at }
    }
}

impl<S> Drop for Panicking<S> {
    fn drop(&mut self) {
        assert!(self.at != At::Drop, "a service's drop panics");
    }
}

impl<S> Service<Context> for Panicking<S>
where
    S: Service<Context, Response = Encoded, Error = HandlerError>,
    S::Future: Send + 'static,
{
    type Response = Encoded;
    type Error = HandlerError;
    type Future = Run;

    fn poll_ready(&mut self, cx: &mut task::Context<'_>) -> Poll<Result<(), HandlerError>> {
        assert!(self.at != At::Ready, "poll_ready panics");
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, context: Context) -> Run {
        assert!(self.at != At::Call, "call panics");
        let at = self.at;
        let run = self.inner.call(context);
        Box::pin(async move {
            assert!(at != At::Poll, "poll panics");
            run.await
        })
    }
}

async fn fine(_: Context, (): ()) -> Result<(), HandlerError> {
    Ok(())
}

/// A handler of one place, by a name for its event type.
fn place<H, P, R>(name: &str, handler: H, policy: Policy) -> (String, Registration)
where
    H: convoke::handler::function::Handler<P, R>,
    P: serde::de::DeserializeOwned + JsonSchema + Send + 'static,
    R: Serialize + JsonSchema + 'static,
{
    let kind = format!("fence.{name}");
    (kind.clone(), Registration::new(kind, handler, policy))
}

fn raw(name: &str, run: impl Fn(Context) -> Run + Send + Sync + 'static) -> (String, Registration) {
    let (kind, mut registration) = place(name, fine, Policy::new());
    registration.endpoint = Endpoint::raw(run);
    registration.schemas = Schemas::of::<(), ()>();
    (kind, registration)
}

const SHORT: Duration = Duration::from_millis(50);
const LONG: Duration = Duration::from_secs(600);

/// All places, each as a handler whose runs panic there, and what the failure says.
fn places() -> Vec<(String, Registration, &'static str)> {
    let holds = async |_: Context, (): ()| -> Result<(), HandlerError> {
        let _held = Bomb;
        tokio::time::sleep(LONG).await;
        Ok(())
    };
    let brief = || Policy::new().timeout(SHORT);
    let timed_out = "longer than its timeout";
    let mut all = vec![
        (
            raw("call", |_| panic!("the call panics")),
            "the call panics",
        ),
        (
            place(
                "poll",
                async |_: Context, (): ()| -> Result<(), HandlerError> { panic!("the first poll") },
                Policy::new(),
            ),
            "the first poll",
        ),
        (
            place(
                "later",
                async |_: Context, (): ()| -> Result<(), HandlerError> {
                    tokio::task::yield_now().await;
                    panic!("a later poll")
                },
                Policy::new(),
            ),
            "a later poll",
        ),
        (
            place(
                "payload",
                async |_: Context, (): ()| -> Result<(), HandlerError> { panic_any(Bomb) },
                Policy::new(),
            ),
            "no text",
        ),
        (
            place(
                "chain",
                async |_: Context, (): ()| -> Result<(), HandlerError> { panic_any(Chain) },
                Policy::new(),
            ),
            "no text",
        ),
        (
            place(
                "laterchain",
                async |_: Context, (): ()| -> Result<(), HandlerError> {
                    tokio::task::yield_now().await;
                    panic_any(Chain)
                },
                Policy::new(),
            ),
            "no text",
        ),
        (
            raw("result", |_| Box::pin(DropsLate(Bomb))),
            "a drop panics",
        ),
        (place("timeout", holds, brief()), timed_out),
        (place("ordered", holds, brief().ordered()), timed_out),
        (place("permit", holds, brief().concurrency(1)), timed_out),
        (
            place("circuit", holds, brief().circuit(1000, LONG)),
            timed_out,
        ),
        (
            place("rate", holds, brief().rate_limit(1000, LONG)),
            timed_out,
        ),
        (place("cache", holds, brief().cache(LONG)), timed_out),
        (
            place(
                "decode",
                async |_: Context, _: Cursed| Ok(()),
                Policy::new(),
            ),
            "decoding panics",
        ),
        (
            place(
                "encode",
                async |_: Context, (): ()| Ok(Cursed),
                Policy::new(),
            ),
            "encoding panics",
        ),
        (
            place(
                "publish",
                async |context: Context, (): ()| context.publish("fence.made", &Cursed),
                Policy::new(),
            ),
            "encoding panics",
        ),
    ];
    let open = Policy::new()
        .circuit(1, LONG)
        .fallback(|_, (): ()| -> Result<(), _> { panic!("the fallback panics") });
    let broken = async |_: Context, (): ()| -> Result<(), HandlerError> {
        Err(HandlerError::internal("the fallback panics soon"))
    };
    all.push((place("fallback", broken, open), "the fallback panics"));
    for (at, said) in [
        (At::Clone, "clone panics"),
        (At::Ready, "poll_ready panics"),
        (At::Call, "call panics"),
        (At::Poll, "poll panics"),
        (At::Drop, "drop panics"),
    ] {
        let name = format!("layer{at:?}").to_lowercase();
        all.push((place(&name, fine, Policy::new().layer(Panics(at))), said));
    }
    all.into_iter()
        .map(|((kind, registration), said)| (kind, registration, said))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wherever_user_code_panics_it_is_a_failed_run_and_the_slot_comes_back() {
    let rig = Rig::new().await;
    let settings = Settings {
        concurrency: 2,
        max_attempts: 1,
        ..rig.settings()
    };
    let places = places();
    let mut builder = Worker::builder()
        .settings(settings)
        // Dropped when the worker ends, which it must outlive.
        .state(Bomb)
        .handler("sane.echo", async |_: Context, n: u32| Ok(n));
    for (_, registration, _) in &places {
        builder = builder.register(registration.clone());
    }
    let worker = rig.start(builder);
    // More than there are slots.
    let each = 3;
    for (kind, ..) in &places {
        for n in 0..each {
            let event = Outgoing::new(kind, &()).id(format!("{kind}-{n}"));
            rig.client.publish(&event).await.unwrap();
        }
    }
    let dead = rig.wait_for("cb:dead:fence", each * places.len()).await;
    for (kind, _, said) in &places {
        let told: Vec<String> = dead
            .iter()
            .filter(|entry| text(entry, "type") == *kind)
            .map(|entry| text(entry, "deadmessage"))
            .collect();
        assert_eq!(told.len(), each, "{kind}");
        for message in told {
            assert!(message.contains(said), "{kind}: {message}");
        }
    }
    assert_eq!(
        rig.ask("sane.echo", &7)
            .await
            .unwrap()
            .decode::<u32>()
            .unwrap(),
        7
    );
    until("nothing is pending, so no lease is renewed", || async {
        rig.pending("cb:events:fence").await == 0
    })
    .await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_time_is_too_long() {
    let rig = Rig::new().await;
    let always = Duration::MAX;
    let retry = RetryPolicy {
        base: always,
        cap: always,
        ..RetryPolicy::default()
    };
    let waits = async |_: Context, (): ()| -> Result<(), HandlerError> {
        tokio::time::sleep(SHORT).await;
        Ok(())
    };
    let fails = async |_: Context, (): ()| -> Result<(), HandlerError> {
        let mut error = HandlerError::unavailable("never again");
        error.retry_after = Some(Duration::MAX);
        Err(error)
    };
    let long = || {
        Policy::new()
            .retry(retry)
            .timeout(always)
            .cache(always)
            .rate_limit(1000, always)
            .circuit(1000, always)
    };
    let builder = rig
        .builder()
        .handler_with("long.wait", waits, long())
        .handler_with("long.fail", fails, long());
    let worker = rig.start(builder);
    let event = Outgoing::new("long.fail", &());
    rig.client.publish(&event).await.unwrap();
    until("it is tried again one day", || async {
        let mut connection = rig.connection.clone();
        let mut count = redis::cmd("ZCARD");
        let waiting: redis::RedisResult<u32> = count
            .arg("cb:delayed:long")
            .query_async(&mut connection)
            .await;
        waiting == Ok(1)
    })
    .await;
    let event = Outgoing::new("long.wait", &());
    assert!(rig.client.request(event, always).await.is_ok());
    worker.stop().await;
}

#[test]
fn a_worker_that_makes_no_sense_is_not_built() {
    type TaskChange = fn(&mut Settings);
    let changes: [(&str, TaskChange); 8] = [
        ("concurrency: 0", |s| s.concurrency = 0),
        ("claim_idle: 0s", |s| s.claim_idle = Duration::ZERO),
        ("max_deliveries: 0", |s| s.max_deliveries = 0),
        ("max_payload: 0", |s| s.max_payload = 0),
        ("heartbeat_ttl: 0s", |s| s.heartbeat_ttl = Duration::ZERO),
        ("max_attempts: 0", |s| s.max_attempts = 0),
        ("capacity: 4294967295", |s| s.capacity = u32::MAX),
        ("backoff_base: ", |s| s.backoff_base = Duration::MAX),
    ];
    let refusal = |builder: Builder| -> String {
        let error: BuildError = builder.build().unwrap_err();
        error.to_string()
    };
    for (says, change) in changes {
        let mut settings = Settings::default();
        change(&mut settings);
        let said = refusal(Worker::builder().settings(settings));
        assert!(said.starts_with(says), "{said}");
    }
    let never = Policy::new().concurrency(0);
    let said = refusal(Worker::builder().handler_with("image.resize", fine, never));
    assert_eq!(
        said,
        "the policy of image.resize: concurrency: 0: no run would ever begin"
    );
}
