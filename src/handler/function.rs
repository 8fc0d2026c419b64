//! Plain async functions as handlers.

use crate::handler::batch::Lots;
use crate::handler::context::Context;
use crate::handler::fence::Kept;
use crate::handler::state::{State, StateType};
use crate::handler::threads::{self, Ends, Threads};
use crate::protocol::error::HandlerError;
use crate::protocol::mismatch::mismatch;
use futures_util::FutureExt;
use futures_util::future::ready;
use schemars::{JsonSchema, Schema};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll};

/// A handler: any `async fn(Context, P) -> Result<R, HandlerError>`, with up to three
/// [`State`]s of its worker after the payload.
///
/// The payload `P` is decoded from the event's MessagePack; the result `R` is encoded into the
/// reply. Both give the JSON Schemas that `system.discover` answers with.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a handler",
    label = "not `async fn(Context, P) -> Result<R, HandlerError>`, nor the same with `State<S>` after P",
    note = "P must implement Deserialize and JsonSchema, R must implement Serialize and JsonSchema",
    note = "its future must be Send: it holds nothing like an Rc or a MutexGuard over an .await"
)]
pub trait Handler<P, R, W = ()>: Send + Sync + 'static {
    /// Runs it on one event.
    fn call(
        &self,
        context: Context,
        payload: P,
    ) -> impl Future<Output = Result<R, HandlerError>> + Send + 'static;

    /// The types of state that it takes as arguments.
    fn wants() -> Vec<StateType> {
        Vec::new()
    }
}

impl<F, Fut, P, R> Handler<P, R> for F
where
    F: Fn(Context, P) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<R, HandlerError>> + Send + 'static,
{
    fn call(
        &self,
        context: Context,
        payload: P,
    ) -> impl Future<Output = Result<R, HandlerError>> + Send + 'static {
        self(context, payload)
    }
}

macro_rules! with_state {
    ($($state:ident: $S:ident),+) => {
        impl<F, Fut, P, R, $($S),+> Handler<P, R, ($(State<$S>,)+)> for F
        where
            F: Fn(Context, P, $(State<$S>),+) -> Fut + Send + Sync + 'static,
            Fut: Future<Output = Result<R, HandlerError>> + Send + 'static,
            R: Send + 'static,
            $($S: Send + Sync + 'static,)+
        {
            fn call(
                &self,
                context: Context,
                payload: P,
            ) -> impl Future<Output = Result<R, HandlerError>> + Send + 'static {
                let states = || Ok::<_, HandlerError>(($(State::from(context.shared::<$S>()?),)+));
                match states() {
                    Ok(($($state,)+)) => self(context, payload, $($state),+).left_future(),
                    Err(error) => ready(Err(error)).right_future(),
                }
            }

            fn wants() -> Vec<StateType> {
                vec![$(StateType::of::<$S>()),+]
            }
        }
    };
}

with_state!(first: S1);
with_state!(first: S1, second: S2);
with_state!(first: S1, second: S2, third: S3);

/// The result of a run: one MessagePack value.
pub type Encoded = Vec<u8>;
/// A run of a handler.
pub type Run = Pin<Box<dyn Future<Output = Result<Encoded, HandlerError>> + Send>>;

/// A handler whose types are erased: from a context to encoded bytes. It is a `tower::Service`, so
/// tower's layers fit around it.
#[derive(Clone)]
pub struct Endpoint {
    run: Arc<dyn Fn(Context) -> Run + Send + Sync>,
    wants: fn() -> Vec<StateType>,
    /// The same for many events at once, where the handler takes them so.
    lots: Option<Lots>,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Endpoint")
    }
}

impl Endpoint {
    /// Erases a handler's types.
    pub fn new<H, P, R, W>(handler: H) -> Self
    where
        H: Handler<P, R, W>,
        P: DeserializeOwned + JsonSchema + Send + 'static,
        R: Serialize + 'static,
    {
        let decode = decoding::<P>();
        let handler = Kept::new(handler);
        let run = move |context: Context| -> Run {
            match decode(context.event().data()) {
                Ok(payload) => {
                    let run = handler.call(context, payload);
                    // Not an async block: that would keep the handler's future twice.
                    Box::pin(run.map(|result| encode(&result?)))
                }
                Err(error) => Box::pin(ready(Err(error))),
            }
        };
        Self {
            run: Arc::new(run),
            wants: <H as Handler<P, R, W>>::wants,
            lots: None,
        }
    }

    /// An endpoint that works on the bytes itself.
    pub fn raw(run: impl Fn(Context) -> Run + Send + Sync + 'static) -> Self {
        let run = Kept::new(run);
        Self {
            run: Arc::new(move |context| (*run)(context)),
            wants: Vec::new,
            lots: None,
        }
    }

    /// The same, of a handler that takes many events at once.
    pub(crate) fn with(self, lots: Lots) -> Self {
        Self {
            lots: Some(lots),
            ..self
        }
    }

    /// The handler as it takes many events at once, if it does.
    pub(crate) fn lots(&self) -> Option<&Lots> {
        self.lots.as_ref()
    }

    /// The same, on threads that may block.
    pub(crate) fn on(self, threads: Threads) -> Self {
        let Self { run, wants, lots } = self;
        let lots = lots.map(|lots| lots.on(threads.clone()));
        let run = move |mut context: Context| {
            let ends = Ends::of(std::slice::from_mut(&mut context));
            let (run, same) = (run.clone(), context.clone());
            threads::run(&threads, &same, ends, move || run(context))
        };
        Self {
            run: Arc::new(run),
            wants,
            lots,
        }
    }

    /// The types of state that the handler takes as arguments.
    pub fn wants(&self) -> Vec<StateType> {
        (self.wants)()
    }

    /// Starts a run.
    pub fn start(&self, context: Context) -> Run {
        (self.run)(context)
    }
}

impl tower::Service<Context> for Endpoint {
    type Response = Encoded;
    type Error = HandlerError;
    type Future = Run;

    fn poll_ready(&mut self, _: &mut task::Context<'_>) -> Poll<Result<(), HandlerError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, context: Context) -> Run {
        self.start(context)
    }
}

/// The JSON Schemas of what a handler takes and gives.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Schemas {
    /// Of the payload.
    pub input: Schema,
    /// Of the result.
    pub output: Schema,
}

impl Schemas {
    /// The schemas of a payload and a result type.
    pub fn of<P: JsonSchema, R: JsonSchema>() -> Self {
        Self {
            input: schemars::schema_for!(P),
            output: schemars::schema_for!(R),
        }
    }

    /// Whether a payload of that schema is always a map.
    fn takes_map(input: &Schema) -> bool {
        input.get("type").and_then(|kind| kind.as_str()) == Some("object")
    }
}

const EMPTY_MAP: &[u8] = &[0x80];
const NIL: u8 = 0xc0;

/// Decodes payloads as a handler of that type takes them.
pub(crate) fn decoding<P>() -> impl Fn(&[u8]) -> Result<P, HandlerError> + Copy + Send + Sync
where
    P: DeserializeOwned + JsonSchema,
{
    let takes_map = Schemas::takes_map(&schemars::schema_for!(P));
    move |data| decode(data, takes_map)
}

/// Decodes one value. The bytes have been scanned already (depth, counts, rest).
fn decode<P: DeserializeOwned>(data: &[u8], takes_map: bool) -> Result<P, HandlerError> {
    let data = match data {
        [NIL] if takes_map => EMPTY_MAP,
        // rmp-serde would take an array for a struct, field by position.
        [0x90..=0x9f | 0xdc | 0xdd, ..] if takes_map => {
            return Err(HandlerError::invalid_argument(
                "data: an array where a map with string keys is expected",
            ));
        }
        data => data,
    };
    rmp_serde::from_slice(data).map_err(|_| HandlerError::invalid_argument(mismatch::<P>(data)))
}

/// Encodes a value as MessagePack, structs as maps.
///
/// # Errors
/// `internal`, not retryable: the value has a form that MessagePack lacks.
pub fn encode<R: Serialize + ?Sized>(value: &R) -> Result<Encoded, HandlerError> {
    rmp_serde::to_vec_named(value).map_err(|error| {
        HandlerError::internal(format!("the value cannot be encoded: {error}")).permanent()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize, JsonSchema, PartialEq)]
    struct Resize {
        width: u32,
        #[serde(default)]
        name: Option<String>,
    }

    fn fails<P: DeserializeOwned + std::fmt::Debug>(data: &[u8], takes_map: bool) -> String {
        decode::<P>(data, takes_map).unwrap_err().message.into()
    }

    #[test]
    fn the_message_names_the_field() {
        assert!(Schemas::takes_map(&schemars::schema_for!(Resize)));
        assert!(!Schemas::takes_map(&schemars::schema_for!(Vec<u32>)));
        let wrong = rmp_serde::to_vec_named(&serde_json::json!({"width": "wide"})).unwrap();
        assert!(fails::<Resize>(&wrong, true).starts_with("width: "));
        assert!(fails::<Resize>(&[NIL], true).contains("`width`"));
        assert!(fails::<Resize>(&[0x91, 1], true).contains("array"));
        assert!(fails::<u8>(&[0xa1, b'x'], false).starts_with("data: "));
    }

    #[test]
    fn a_run_keeps_its_future_once() {
        let large = async |_: Context, (): ()| -> Result<(), HandlerError> {
            let held = [1_u8; 8192];
            tokio::task::yield_now().await;
            std::hint::black_box(held);
            Ok(())
        };
        let run = Endpoint::new(large).start(crate::testing::event(&()).context());
        let size = size_of_val(&*run);
        assert!((8192..2 * 8192).contains(&size), "{size}");
    }

    #[test]
    fn nil_is_an_empty_map_for_a_handler_that_takes_a_map() {
        #[derive(Debug, Deserialize, PartialEq)]
        struct Nothing {}
        assert_eq!(decode::<Nothing>(&[NIL], true), Ok(Nothing {}));
        assert_eq!(decode::<()>(&[NIL], false), Ok(()));
    }
}
