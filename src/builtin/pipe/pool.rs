//! Who holds what: the seats of a pipe, the events that their processes hold, and those that wait for one.

use super::frames::{Answer, Says};
use crate::handler::context::Context;
use crate::handler::function::Encoded;
use crate::mutex::locked;
use crate::protocol::error::HandlerError;
use crate::protocol::msgpack::PayloadLimits;
use crate::settings::{CommandLine, Pipe as Setting, PipeFormat};
use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio_util::sync::CancellationToken;

/// A process that answers sooner than that is given more at a time.
const SOON: Duration = Duration::from_millis(10);
/// Events that it holds then, at most.
const MOST: usize = 64;
/// Bytes of a message around a result that may have `max_payload`.
const AROUND: usize = 64 * 1024;

type RunResult = Result<Encoded, HandlerError>;

/// The seats of a pipe.
pub(super) struct Pool {
    pub(super) kind: String,
    pub(super) command: CommandLine,
    pub(super) format: PipeFormat,
    /// Bytes of a message from a process, at most.
    pub(super) longest: usize,
    pub(super) limits: PayloadLimits,
    /// Permits, one for each event that a living process has room for.
    pub(super) permits: Arc<Semaphore>,
    /// No process is started any more; those that hold nothing end.
    pub(super) closing: CancellationToken,
    /// How many events each process may hold, where that is set.
    outstanding: Option<usize>,
    /// Tells who writes to a process that there is something to write, or that it holds nothing any more.
    news: Vec<Notify>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    seats: Vec<Seat>,
    waiting: VecDeque<Job>,
    /// The number of the last job.
    last: u64,
    /// Permits that were given.
    granted: usize,
}

#[derive(Default)]
struct Seat {
    /// Ends the process; `None` while it may be given nothing.
    end: Option<CancellationToken>,
    held: Vec<Held>,
    /// What it holds runs alone.
    alone: bool,
    window: usize,
    outgoing: Vec<u8>,
    /// Answers that nobody waits for.
    stray: u64,
}

/// An event that waits for a process.
struct Job {
    number: u64,
    id: String,
    frame: Vec<u8>,
    alone: bool,
    context: Context,
    to: oneshot::Sender<RunResult>,
}

/// An event that a process holds.
struct Held {
    number: u64,
    id: String,
    context: Context,
    to: oneshot::Sender<RunResult>,
    given: Instant,
    /// Why what it is to publish cannot be.
    refused: Option<HandlerError>,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

impl Pool {
    pub(super) fn new(kind: &str, setting: &Setting, max_message: usize) -> Self {
        let workers = usize::from(setting.workers.max(1));
        let state = State {
            seats: (0..workers).map(|_| Seat::default()).collect(),
            ..State::default()
        };
        Self {
            kind: kind.to_owned(),
            command: setting.command.clone(),
            format: setting.format,
            longest: longest(setting.format, max_message),
            limits: PayloadLimits {
                bytes: max_message,
                ..PayloadLimits::default()
            },
            permits: Arc::new(Semaphore::new(0)),
            closing: CancellationToken::new(),
            outstanding: Some(usize::from(setting.outstanding)).filter(|most| *most > 0),
            news: (0..workers).map(|_| Notify::new()).collect(),
            state: Mutex::new(state),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }

    /// How many seats there are.
    pub(super) fn seats(&self) -> usize {
        self.news.len()
    }

    /// Gives an event to a process, now or as soon as one has room.
    pub(super) fn submit(self: &Arc<Self>, frame: Vec<u8>, context: &Context) -> Ticket {
        let (to, answer) = oneshot::channel();
        let event = context.event();
        let state = &mut *self.state();
        state.last += 1;
        let number = state.last;
        state.waiting.push_back(Job {
            number,
            id: event.id(),
            frame,
            alone: event.attempt() > 1 || context.deliveries() > 1,
            context: context.clone(),
            to,
        });
        self.place(state);
        Ticket {
            pool: self.clone(),
            number,
            answer,
            given: !state.waiting.iter().any(|job| job.number == number),
            ended: false,
        }
    }

    /// Gives what waits to processes that have room, in order. One seat is kept free for who has to run alone.
    fn place(&self, state: &mut State) {
        let (mut at, mut kept) = (0, None);
        while let Some(job) = state.waiting.get(at) {
            let open = state.seats.iter().enumerate().filter(|(index, seat)| {
                let free = seat.end.is_some() && !seat.alone && kept != Some(*index);
                free && (job.alone || seat.takes(job))
            });
            let Some((index, found)) = open.min_by_key(|(_, seat)| seat.held.len()) else {
                at += 1;
                continue;
            };
            if job.alone && !found.held.is_empty() {
                kept = kept.or(Some(index));
                at += 1;
                continue;
            }
            if let (Some(job), Some(seat)) = (state.waiting.remove(at), state.seats.get_mut(index))
            {
                seat.give(job);
                self.news[index].notify_one();
            }
        }
    }

    /// Has as many permits as living processes have room for. What too many hold comes back later.
    fn permit(&self, state: &mut State) {
        let living = state.seats.iter().filter(|seat| seat.end.is_some());
        let wanted: usize = living.map(|seat| seat.window).sum();
        if wanted > state.granted {
            self.permits.add_permits(wanted - state.granted);
            state.granted = wanted;
        } else if wanted < state.granted {
            state.granted -= self.permits.forget_permits(state.granted - wanted);
        }
    }

    /// A process takes that seat; what tells it to end at once.
    pub(super) fn begun(&self, index: usize) -> CancellationToken {
        let end = CancellationToken::new();
        let state = &mut *self.state();
        state.seats[index] = Seat {
            end: Some(end.clone()),
            window: self.outstanding.unwrap_or(1),
            ..Seat::default()
        };
        self.place(state);
        self.permit(state);
        end
    }

    /// The process of that seat is gone, and so are the runs that it held.
    pub(super) fn gone(&self, index: usize, why: &HandlerError) {
        let state = &mut *self.state();
        let gone = std::mem::take(&mut state.seats[index]);
        for held in gone.held {
            held.to.send(Err(why.clone())).ok();
        }
        self.permit(state);
    }

    /// What is to be written to that process. `None` once it has answered all and is to get no more.
    pub(super) fn outgoing(&self, index: usize) -> Option<Vec<u8>> {
        let state = &mut *self.state();
        let State { seats, waiting, .. } = state;
        let seat = &mut seats[index];
        let over = self.closing.is_cancelled() && seat.held.is_empty() && waiting.is_empty();
        (!over).then(|| std::mem::take(&mut seat.outgoing))
    }

    /// Waits until there may be something else to write to that process.
    pub(super) async fn news(&self, index: usize) {
        self.news[index].notified().await;
    }

    /// The id of the event that the process of that seat holds for the longest, and how many it holds.
    pub(super) fn holds(&self, index: usize) -> Option<(String, usize)> {
        let state = self.state();
        let held = &state.seats[index].held;
        Some((held.first()?.id.clone(), held.len()))
    }

    /// Takes in what a process says; whether it is the last word about an event that it holds.
    pub(super) fn heard(&self, index: usize, answer: Answer) -> bool {
        let state = &mut *self.state();
        let seat = &mut state.seats[index];
        if seat.end.is_none() {
            return false;
        }
        let Some(at) = seat.held.iter().position(|held| held.id == answer.id) else {
            seat.stray += 1;
            // A program that errs does so each time.
            if seat.stray.is_power_of_two() {
                let (kind, stray) = (&self.kind, seat.stray);
                tracing::warn!(
                    kind,
                    event = answer.id,
                    stray,
                    "a piped process answers for an event that it does not hold: unknown, or answered already"
                );
            }
            return false;
        };
        let outcome = match answer.says {
            Says::Progress(progress) => {
                seat.held[at].context.progress(progress);
                return false;
            }
            Says::Publish {
                kind,
                data,
                subject,
            } => {
                let held = &mut seat.held[at];
                let published = held
                    .context
                    .publish_encoded(&kind, data, subject.as_deref());
                if let Err(error) = published {
                    held.refused.get_or_insert(error);
                }
                return false;
            }
            Says::Ok(result) => Ok(result),
            Says::Error(error) => Err(error),
        };
        let held = seat.held.remove(at);
        seat.alone = false;
        if self.outstanding.is_none() {
            seat.window = match held.given.elapsed() < SOON {
                true => (seat.window * 2).min(MOST),
                false => (seat.window / 2).max(1),
            };
        }
        let outcome = match held.refused {
            Some(refused) => outcome.and(Err(refused)),
            None => outcome,
        };
        held.to.send(outcome).ok();
        self.place(state);
        self.permit(state);
        if self.closing.is_cancelled() {
            self.news[index].notify_one();
        }
        true
    }

    /// Tells all who write that no more is to come.
    pub(super) fn close(&self) {
        self.closing.cancel();
        for news in &self.news {
            news.notify_one();
        }
    }

    /// Gives up a run, and the process that holds it: it must not go on beside the event's next run. The others
    /// that it holds run again.
    fn give_up(&self, number: u64) {
        let state = &mut *self.state();
        if state.forget(number) {
            self.place(state);
            return;
        }
        let holds = |seat: &Seat| seat.held.iter().any(|held| held.number == number);
        let Some(index) = state.seats.iter().position(holds) else {
            return;
        };
        let ended = std::mem::take(&mut state.seats[index]);
        if let Some(end) = ended.end {
            end.cancel();
        }
        for held in ended.held.into_iter().filter(|held| held.number != number) {
            let why =
                "the process that held it was ended for another event, whose run was given up";
            held.to
                .send(Err(HandlerError::later(Duration::ZERO, why)))
                .ok();
        }
        self.place(state);
        self.permit(state);
    }
}

/// Bytes of a message around a result of that size. JSON needs up to six bytes for one.
fn longest(format: PipeFormat, max_message: usize) -> usize {
    let result = match format {
        PipeFormat::Json => max_message.saturating_mul(6),
        PipeFormat::Msgpack => max_message,
    };
    result.saturating_add(AROUND)
}

impl State {
    /// Whether it still waited.
    fn forget(&mut self, number: u64) -> bool {
        let waits = self.waiting.iter().position(|job| job.number == number);
        waits.and_then(|at| self.waiting.remove(at)).is_some()
    }
}

impl Seat {
    /// Whether it has room for one that need not run alone. It never holds two of one id: nobody could tell
    /// whose an answer is.
    fn takes(&self, job: &Job) -> bool {
        self.held.len() < self.window && !self.held.iter().any(|held| held.id == job.id)
    }

    fn give(&mut self, job: Job) {
        self.alone = job.alone;
        self.outgoing.extend_from_slice(&job.frame);
        self.held.push(Held {
            number: job.number,
            id: job.id,
            context: job.context,
            to: job.to,
            given: Instant::now(),
            refused: None,
        });
    }
}

/// A run that waits for its answer. Dropped before, it is given up.
pub(super) struct Ticket {
    pool: Arc<Pool>,
    number: u64,
    answer: oneshot::Receiver<RunResult>,
    given: bool,
    ended: bool,
}

impl Ticket {
    /// Whether a process holds it, as far as is known.
    pub(super) fn is_given(&self) -> bool {
        self.given
    }

    /// What became of it.
    pub(super) async fn answer(&mut self) -> RunResult {
        let answer = (&mut self.answer).await;
        self.ended = true;
        answer.unwrap_or_else(|_| {
            Err(HandlerError::unavailable(
                "the processes of its type are gone",
            ))
        })
    }

    /// Gives it up if no process holds it yet; whether that is so.
    pub(super) fn gives_up_waiting(&mut self) -> bool {
        let waited = self.pool.state().forget(self.number);
        self.ended |= waited;
        waited
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.ended {
            self.pool.give_up(self.number);
        }
    }
}
