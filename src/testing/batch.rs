//! A batch handler, some events, and what surrounds them.

use super::run::Ended;
use super::server::Server;
use super::trial::{Trial, context, event, route, settled, surroundings};
use crate::handler::batch::{BatchHandler, Batches, Outcomes};
use crate::handler::context::States;
use crate::handler::fence::Fenced;
use crate::handler::policy::Policy;
use crate::handler::router::Registration;
use crate::settings::{RedisUrl, Settings};
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt;
use std::pin::Pin;

/// Some events for a batch handler, and what surrounds a run on them. It is run when it is awaited, and gives what became
/// of each event.
#[must_use = "it is run when it is awaited"]
pub struct BatchTrial {
    handler: Registration,
    events: Vec<Trial>,
    settings: Settings,
    states: States,
}

impl fmt::Debug for BatchTrial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BatchTrial of {}", self.events.len())
    }
}

/// A trial of a batch handler on some events, in one batch.
///
/// Each is an [`event`](super::event) with an attempt, a subject and an id of its own. States, settings and a server are
/// the batch's: those of its events do not count. All are of the first one's type.
///
/// ```
/// use convoke::testing::{self, Outcome, event};
/// use convoke::{Batch, HandlerError};
///
/// async fn double(
///     _: Batch,
///     rows: Vec<u32>,
/// ) -> Result<Vec<Result<u32, HandlerError>>, HandlerError> {
///     let doubled = rows.iter().map(|row| match row {
///         0 => Err(HandlerError::unavailable("not yet")),
///         row => Ok(2 * row),
///     });
///     Ok(doubled.collect())
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let runs = testing::batch(double, [event(&3), event(&0), event("no number")]).await;
/// assert_eq!(runs[0].result(), Ok(6));
/// assert_eq!(runs[1].outcome(), Outcome::Retried);
/// assert_eq!(runs[2].outcome(), Outcome::Failed);
/// # }
/// ```
///
/// # Panics
/// Without an event.
#[track_caller]
pub fn batch<H, P, R>(handler: H, events: impl IntoIterator<Item = Trial>) -> BatchTrial
where
    H: BatchHandler<P, R>,
    P: DeserializeOwned + JsonSchema + Send + 'static,
    R: Serialize + JsonSchema + 'static,
{
    let events: Vec<Trial> = events.into_iter().collect();
    assert!(!events.is_empty(), "a batch has at least one event");
    let batches = Batches::of(events.len());
    BatchTrial {
        handler: Registration::batch(super::trial::KIND, handler, batches, Policy::new()),
        events,
        settings: event(&()).into_settings(),
        states: States::default(),
    }
}

impl BatchTrial {
    /// A value that handlers get by its type, as from the worker's builder.
    pub fn state<S: Send + Sync + 'static>(mut self, state: S) -> Self {
        self.states.insert(state);
        self
    }

    /// A server for what the handler asks [`Batch::redis`](crate::Batch::redis) for. Without one it gets no connection.
    pub fn server(mut self, server: &Server) -> Self {
        self.settings.redis_url = RedisUrl::new(server.url());
        self
    }

    /// Other settings of the worker, their server and instance id included.
    pub fn settings(mut self, settings: Settings) -> Self {
        self.settings = settings;
        self
    }

    /// How the handler is run.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.handler.policy = policy;
        self
    }

    #[track_caller]
    fn start(self) -> impl Future<Output = Vec<Ended>> + Send {
        let (settings, process) = surroundings(self.settings, self.states);
        let events: Vec<_> = self.events.into_iter().map(Trial::into_event).collect();
        let kind = events[0].0.clone();
        let contexts = events.into_iter().zip(0..);
        let contexts: Vec<_> = contexts
            .map(|((_, fields), number)| context(&settings, &process, &kind, fields, number))
            .collect();
        let registration = Registration {
            kind,
            ..self.handler
        };
        let route = route(registration, &settings, &contexts[0]);
        async move {
            contexts.iter().for_each(|context| context.keeps_progress());
            let outcomes = Outcomes::default();
            let (told, given) = (outcomes.clone(), contexts.clone());
            let lots = route.lots.clone();
            let run = Fenced::start(|| {
                Box::pin(async move {
                    match lots {
                        Some(lots) => lots.start(given, told).await,
                        None => unreachable!("it was registered as a batch handler"),
                    }
                })
            });
            let result = run.within(&route.kind, route.timeout()).await;
            let outcomes = outcomes.of(contexts.len(), result);
            let ended = contexts.iter().zip(outcomes);
            ended
                .map(|(context, result)| settled(context, &route, result))
                .collect()
        }
    }
}

impl IntoFuture for BatchTrial {
    type Output = Vec<Ended>;
    type IntoFuture = Pin<Box<dyn Future<Output = Vec<Ended>> + Send>>;

    #[track_caller]
    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.start())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::error::Code;
    use crate::testing::Outcome;
    use crate::{Batch, HandlerError};
    use std::time::Duration;

    type Outcomes = Result<Vec<Result<u64, HandlerError>>, HandlerError>;

    /// Adds the state to each; 0 fails at first, 1 panics, 2 hangs, 3 is told no outcome.
    async fn add(batch: Batch, rows: Vec<u64>) -> Outcomes {
        let more = *batch.state::<u64>()?;
        let mut outcomes = Vec::new();
        for (event, row) in batch.events().iter().zip(rows) {
            event.publish("row.added", &row)?;
            match row {
                0 if event.event().attempt() == 1 => {
                    outcomes.push(Err(HandlerError::unavailable("not yet")));
                }
                1 => panic!("a one"),
                2 => std::future::pending().await,
                3 => {}
                row => outcomes.push(Ok(row + more)),
            }
        }
        Ok(outcomes)
    }

    #[tokio::test]
    async fn each_event_of_a_batch_ends_as_its_outcome_says() {
        let bad = event("no number");
        let events = [event(&5), event(&0), bad, event(&0).attempt(2)];
        let runs = batch(add, events).state(10_u64).await;
        let outcomes: Vec<Outcome> = runs.iter().map(Ended::outcome).collect();
        use Outcome::{Done, Failed, Retried};
        assert_eq!(outcomes, [Done, Retried, Failed, Done]);
        assert_eq!(runs[0].result(), Ok(15));
        assert_eq!(runs[3].result(), Ok(10));
        assert_eq!(runs[0].published::<u64>("row.added"), [5]);
        assert_eq!(runs[2].error().unwrap().code, Code::InvalidArgument);
    }

    #[tokio::test(start_paused = true)]
    async fn what_ends_the_run_ends_each_of_its_events() {
        for (row, code) in [
            (1, Code::Internal),
            (2, Code::DeadlineExceeded),
            (3, Code::Internal),
        ] {
            let policy = Policy::new().timeout(Duration::from_secs(1));
            let runs = batch(add, [event(&5), event(&row)]).state(0_u64);
            let runs = runs.policy(policy).await;
            assert_eq!(runs.len(), 2);
            for run in runs {
                assert_eq!(run.error().unwrap().code, code);
            }
        }
    }

    #[test]
    #[should_panic(expected = "at least one event")]
    fn a_batch_of_nothing_is_none() {
        let _ = batch(add, []);
    }
}
