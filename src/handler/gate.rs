//! What a policy asks for before a run begins, in two parts.
//!
//! First an event **enters**: it waits for its turn, for a permit, for the readiness of the user's layers.
//! It takes nothing of the worker's for that. Then it **runs**: the circuit and the rate are asked at that
//! moment, so what they allow is what runs. Where they refuse, the event keeps its places and enters again
//! later; whoever cannot wait gets the refusal.
//!
//! A permit is of a semaphore here and not of tower's `ConcurrencyLimit`: that one is asked when a run is called,
//! so what waits would hold a slot, and its order would be that of the calls instead of the subjects'.

pub mod flights;
pub mod lines;
pub mod permits;

use crate::connect::clock::NEVER;
use crate::coordination::limits::bucket_of;
use crate::handler::context::Context;
use crate::handler::fence::{Fenced, Kept, catch};
use crate::handler::function::{Encoded, Run};
use crate::handler::layers::cache::Results;
use crate::handler::layers::circuit::Circuit;
use crate::handler::layers::rate_limit::RateRule;
use crate::handler::layers::timeout::exceeded;
use crate::handler::limits::LiveLimits;
use crate::handler::policy::{Fallback, Stack};
use crate::mutex::locked;
use crate::protocol::error::HandlerError;
use crate::protocol::event::Event;
use crate::protocol::rate::Metered;
use flights::{Boarding, Flight, Flights};
use lines::{InLine, Lines};
use permits::{Permit, Permits};
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tower::{Service, ServiceExt};

/// The gate before one handler. What is limited may change while events wait in it; their places stay.
pub struct Gate {
    /// The event type.
    pub kind: Arc<str>,
    /// Whether the handler's own policy asks for it; else it stands open until operators ask something.
    pub is_own: bool,
    /// What holds now: how long a run may take, and its layers until they are ready; the rate; how many run.
    pub limits: Arc<LiveLimits>,
    /// The results of earlier runs, and the runs that are under way.
    pub cache: Option<(Results, Arc<Flights>)>,
    /// A line for each subject.
    pub subjects: Option<Arc<Lines>>,
    /// Counts runs where there is a rate.
    pub meter: RateRule,
    /// A line for each source, or whose runs count together, that is over the rate.
    pub over: Arc<Lines>,
    /// The circuit, and what answers while it is open.
    pub circuit: Option<(Arc<Circuit>, Option<Fallback>)>,
    /// Runs at a time.
    pub permits: Arc<Permits>,
    /// Permits that somebody else gives and takes.
    pub lent: Option<Arc<Semaphore>>,
    /// Whether the user's layers are to be asked whether they are ready.
    pub layered: bool,
    /// The handler with the cache and the user's layers around it.
    pub service: Kept<Stack>,
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate")
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

/// What an event keeps while it waits, however often it enters.
#[derive(Debug, Default)]
pub struct Places {
    subject: Option<InLine>,
    source: Option<InLine>,
    flight: Option<Flight>,
    /// The rate that it was over.
    over: Option<Metered>,
}

/// What a run holds of what is counted.
#[derive(Debug, Default)]
struct Held {
    permit: Option<Permit>,
    _lent: Option<OwnedSemaphorePermit>,
}

/// An event that may begin as soon as there is a slot for it.
pub struct Entered {
    places: Places,
    held: Held,
    service: Kept<Stack>,
    /// The cache answers: nothing is run.
    cached: bool,
}

/// An event whose run begins.
pub struct Begun(Entered);

impl Entered {
    /// Has it begin.
    ///
    /// # Errors
    /// If there are to be fewer runs by now than when it entered: its permit is for another one, and with its places it
    /// may enter again.
    pub fn begin(mut self) -> Result<Begun, Box<Places>> {
        match self.held.permit.as_mut().is_none_or(Permit::begin) {
            true => Ok(Begun(self)),
            false => Err(Box::new(self.places)),
        }
    }
}

/// How an event enters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// The event waits in line behind others of its source that are over the rate.
    Patient,
    /// Somebody waits for its answer, which may be a refusal.
    Urgent,
}

/// An event that enters.
pub type Entering = Pin<Box<dyn Future<Output = Result<Entered, HandlerError>> + Send>>;

/// Where a run leaves its places: to enter with them again, if it was refused; else until whoever began it has its end,
/// so that the next one of its subject does not end before it.
#[derive(Clone, Debug, Default)]
pub struct Back(Arc<Mutex<Left>>);

#[derive(Debug, Default)]
struct Left {
    refused: Option<Places>,
    ended: Option<Places>,
}

impl Back {
    fn put(&self, places: Places) {
        locked(&self.0).refused = Some(places);
    }

    /// Keeps the places of a run that ended until this is dropped.
    fn keep(&self, places: Places) {
        locked(&self.0).ended = Some(places);
    }

    /// The places, if the run was refused before it began.
    pub fn take(&self) -> Option<Places> {
        locked(&self.0).refused.take()
    }
}

impl Gate {
    /// Whether events have to enter it.
    pub fn stands(&self) -> bool {
        self.is_own || self.limits.is_asked()
    }

    /// Has an event enter, at once or after that time. Its place in line is taken in the first poll.
    pub fn enter(
        self: &Arc<Self>,
        context: Context,
        manner: Manner,
        places: Places,
        after: Option<Duration>,
    ) -> Entering {
        let entering = Box::pin(self.clone().entering(context, manner, places, after));
        Box::pin(Caught(Some(entering)))
    }

    async fn entering(
        self: Arc<Self>,
        context: Context,
        manner: Manner,
        mut places: Places,
        after: Option<Duration>,
    ) -> Result<Entered, HandlerError> {
        let mut until = after.map(|after| Instant::now() + after.min(NEVER));
        let event = context.event();
        if let Some(answered) = self.answered(&context).await? {
            return Ok(answered);
        }
        // Where there is an order, equal events wait for each other in it.
        if let Some((_, flights)) = &self.cache
            && self.subjects.is_none()
            && places.flight.is_none()
        {
            match flights.board(event.data()) {
                Boarding::First(flight) => places.flight = Some(flight),
                Boarding::Behind(landing) => {
                    // The equal one may stand behind it: it takes its place by age afterwards.
                    places.source = None;
                    landing.landed().await;
                    // It may have left no result: then they all run, as they do without a cache.
                    if let Some(answered) = self.answered(&context).await? {
                        return Ok(answered);
                    }
                }
            }
        }
        let entry = event.entry_id();
        if let (Some(lines), Some(subject)) = (&self.subjects, event.subject()) {
            let place = places
                .subject
                .get_or_insert_with(|| lines.join(subject, entry));
            place.head().await?;
            if let Some(answered) = self.answered(&context).await? {
                return Ok(answered);
            }
        }
        loop {
            if let Some(line) = self.line(event).filter(|_| manner == Manner::Patient) {
                // Operators may have changed whose runs count together since it took its place.
                let is_elsewhere = places
                    .source
                    .take_if(|place| place.name() != line)
                    .is_some();
                if places.source.is_none()
                    && (is_elsewhere || after.is_some() || self.over.is_taken(&line))
                {
                    if after.is_none() && !is_elsewhere {
                        self.meter.held_back();
                    }
                    places.source = Some(self.over.join(&line, entry));
                }
            }
            if let Some(place) = &mut places.source {
                place.head().await?;
            }
            if let Some(until) = until.take() {
                self.limits.sleep_under(places.over.take(), until).await;
            }
            let stays = |place: &InLine| self.line(event).is_none_or(|line| place.name() == line);
            if places.source.as_ref().is_none_or(stays) {
                break;
            }
        }
        let limits = self.limits.now();
        let permit = match limits.concurrency.or(limits.total) {
            None if !self.permits.are_limited() => self.permits.enter(),
            // Or a limit that is just being taken away.
            _ => self.permits.acquire().await,
        };
        let lent = match &self.lent {
            // Nothing closes it.
            Some(lent) => lent.clone().acquire_owned().await.ok(),
            None => None,
        };
        Ok(Entered {
            places,
            held: Held {
                permit: Some(permit),
                _lent: lent,
            },
            service: self.ready().await?,
            cached: false,
        })
    }

    /// The name of the line of those that an event counts with, where there is a rate.
    fn line(&self, event: &Event) -> Option<String> {
        let metered = self.limits.now().metered?;
        Some(bucket_of(metered.per, event.source(), event.subject()))
    }

    /// An event that the cache answers: it waits for nothing but the layers around the cache.
    async fn answered(&self, context: &Context) -> Result<Option<Entered>, HandlerError> {
        let found = self.cache.as_ref();
        let Some(result) = found.and_then(|(results, _)| results.get(context.event().data()))
        else {
            return Ok(None);
        };
        context.answered(result);
        Ok(Some(Entered {
            places: Places::default(),
            held: Held::default(),
            service: self.ready().await?,
            cached: true,
        }))
    }

    /// The handler with its layers, once they are ready.
    async fn ready(&self) -> Result<Kept<Stack>, HandlerError> {
        let mut service = Kept::new(Stack::clone(&self.service));
        if !self.layered {
            return Ok(service);
        }
        let ready = async {
            service.get_mut().ready().await?;
            Ok::<(), HandlerError>(())
        };
        match self.limits.now().timeout {
            None => ready.await?,
            Some(limit) => match tokio::time::timeout(limit, ready).await {
                Ok(ready) => ready?,
                Err(_) => return Err(exceeded("the layers of a run", &self.kind, limit)),
            },
        }
        Ok(service)
    }

    /// Runs an event. Refused, its places are `back`.
    pub fn run(self: &Arc<Self>, begun: Begun, context: Context, back: Back) -> Run {
        Box::pin(self.clone().running(begun, context, Some(back)))
    }

    async fn running(
        self: Arc<Self>,
        begun: Begun,
        context: Context,
        back: Option<Back>,
    ) -> Result<Encoded, HandlerError> {
        let Begun(Entered {
            mut places,
            held,
            service,
            cached,
        }) = begun;
        if cached {
            return self.call(service, context).await;
        }
        let admitted = match &self.circuit {
            None => None,
            Some((circuit, fallback)) => match (circuit.admit(), fallback) {
                (Ok(admitted), _) => Some(admitted),
                (Err(_), Some(fallback)) => return fallback(&context),
                (Err(wait), None) => {
                    if let Some(back) = back {
                        back.put(places);
                    }
                    return Err(circuit.refusal(wait));
                }
            },
        };
        if let Some(metered) = self.limits.now().metered {
            let again = places.source.is_some();
            let mut checked = self.meter.check(metered, context.event(), again).await;
            // The answer may have taken its time.
            if checked.is_ok() && back.is_some() && may_not_begin_any_more(&context) {
                checked = Err(HandlerError::later(Duration::ZERO, "not begun in time"));
            }
            if let Err(error) = checked {
                if let Some(back) = back {
                    places.over = Some(metered);
                    back.put(places);
                }
                return Err(error);
            }
        }
        // The next one of its source may ask.
        places.source = None;
        let tried = context.event().attempt() > 1;
        let holding = Holding(context.clone(), back, Some((places, held)));
        let result = self.call(service, context).await;
        // How a run ends whose event was cancelled says nothing of its handler.
        if let Some(admitted) = admitted
            && holding.0.cancel_reason().is_none()
        {
            admitted.judge(&result, tried);
        }
        drop(holding);
        result
    }

    async fn call(
        &self,
        mut service: Kept<Stack>,
        context: Context,
    ) -> Result<Encoded, HandlerError> {
        let run = Fenced::start(|| service.get_mut().call(context));
        let result = run.within(&self.kind, self.limits.now().timeout).await;
        // A panic of its drop is the run's failure.
        let dropped = catch(|| drop(service.take()));
        result.and_then(|result| dropped.map(|()| result))
    }

    /// Enters and runs within another run, as whoever cannot wait for the rate or the circuit.
    pub fn start(self: &Arc<Self>, context: Context) -> Run {
        let gate = self.clone();
        Box::pin(async move {
            let mut places = Places::default();
            loop {
                let entering = gate.enter(context.clone(), Manner::Urgent, places, None);
                match entering.await?.begin() {
                    Ok(begun) => return gate.running(begun, context, None).await,
                    Err(kept) => places = *kept,
                }
            }
        })
    }
}

/// What a run has in its gate. However the run ends, nothing of its subject passes a thread that it blocks still.
struct Holding(Context, Option<Back>, Option<(Places, Held)>);

impl Drop for Holding {
    fn drop(&mut self) {
        let kept = self.2.take();
        if let (Some(thread), Ok(runtime)) = (self.0.left_behind(), Handle::try_current()) {
            runtime.spawn(async move {
                thread.cancelled().await;
                drop(kept);
            });
        } else if let (Some(back), Some((places, _))) = (&self.1, kept) {
            back.keep(places);
        }
    }
}

/// Whether its worker drains by now, or another one has its event.
fn may_not_begin_any_more(context: &Context) -> bool {
    context.draining().is_cancelled() || context.cancellation().is_cancelled()
}

/// A panic while an event enters is a failed run.
struct Caught(Option<Entering>);

impl Future for Caught {
    type Output = Result<Entered, HandlerError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<Self::Output> {
        let Some(entering) = &mut self.0 else {
            return Poll::Pending;
        };
        let polled = catch(|| entering.as_mut().poll(cx));
        let done = match polled {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(done)) => done,
            Err(error) => Err(error),
        };
        let dropped = catch(|| drop(self.0.take()));
        Poll::Ready(done.and_then(|entered| dropped.map(|()| entered)))
    }
}

impl Drop for Caught {
    fn drop(&mut self) {
        if let Some(entering) = self.0.take() {
            crate::handler::fence::drop_fenced(entering);
        }
    }
}
