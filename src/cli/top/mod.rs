//! `convoke top`: the bus live in the terminal.
//!
//! `fetch` takes samples of the bus, `model` keeps what follows from them and from the keys, `draw`
//! makes a frame of it. A slow server never holds up the keys.

mod act;
mod beside;
mod brush;
mod columns;
mod details;
mod draw;
mod fetch;
mod flow;
mod header;
mod keys;
mod lately;
mod listing;
mod model;
mod object;
mod panel;
mod panels;
mod row;
mod sample;
mod screen;
mod survey;
#[cfg(test)]
mod tests;

use super::output::told_width;
use super::{Exit, Misuse, Session};
use brush::Brush;
use clap::Args;
use columns::UNBOUNDED;
use convoke::worker::logs::may_colour;
use fetch::Watcher;
use model::Model;
use sample::{Sample, Wish};
use screen::{Screen, Told};
use std::io::{self, IsTerminal};
use std::pin::Pin;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

/// The shortest time between two looks.
const LEAST: Duration = Duration::from_millis(100);
/// How often it is told again for how long there has been no answer.
const TICK: Duration = Duration::from_secs(1);

const EXAMPLES: &str = "\
Examples:
  convoke top
  convoke top --interval 5s
  convoke top --once                           one look as text
  convoke top --once --interval 15s            with the handlers' calls/s
  convoke top --once --format json | jq .waiting

Keys: Tab or 1 to 7 another panel, arrows another row, Enter opens it, s sorts, / filters, p \
pauses, ? tells more, q quits. On an instance d drains it and u has it be quiet, on a task or a batch c cancels it, on a handler or a \
stream z pauses its type or domain and a has it go on, on a stream of dead letters or one of its opened letters e replays: what \
would happen is said first, and y does it; --read-only leaves these keys out. Looks at Redis directly, so it \
works without a worker. Rates need two looks: --once takes them --interval apart, and writes lines as long as they are, \
or as COLUMNS says.";

/// Watch the bus live: instances, streams, handlers, tasks, batches, ballots, dead letters
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Flags {
    /// Look once, print it as text, or with --format json as an object
    #[arg(long)]
    once: bool,
    /// How long from one look to the next, 100ms or more
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "1s")]
    interval: Duration,
    /// Only look: no key changes anything
    #[arg(long)]
    read_only: bool,
}

/// Runs the command.
pub(super) async fn run(session: Session, flags: Flags) -> anyhow::Result<Exit> {
    if flags.interval < LEAST {
        return Err(Misuse::error("--interval: 100ms or more"));
    }
    if flags.once {
        return once(&session, flags.interval).await;
    }
    if session.output.is_json() {
        return Err(Misuse::error("--format json is for top --once"));
    }
    if !(session.output.is_terminal() && io::stdin().is_terminal()) {
        return Err(Misuse::error(
            "top needs a terminal; top --once prints one look anywhere",
        ));
    }
    watch(&session, &flags).await
}

async fn once(session: &Session, interval: Duration) -> anyhow::Result<Exit> {
    let mut watcher = Watcher::new(session)?;
    let mut model = Model::new(&session.settings.namespace);
    let wish = Wish::default();
    model.apply(watcher.sample(&wish).await?);
    tokio::time::sleep(interval).await;
    model.apply(watcher.sample(&wish).await?);
    if session.output.is_json() {
        if let Some(object) = object::of(&model) {
            session.output.json(&object)?;
        }
        return Ok(Exit::Done);
    }
    let width = session.output.width().or_else(told_width);
    let width = width.and_then(|width| u16::try_from(width).ok());
    let page = draw::page(&model, width.unwrap_or(UNBOUNDED).min(UNBOUNDED));
    session.output.text(&page)?;
    Ok(Exit::Done)
}

async fn watch(session: &Session, flags: &Flags) -> anyhow::Result<Exit> {
    let interval = flags.interval;
    let mut watcher = Watcher::new(session)?;
    let mut model = Model::new(&session.settings.namespace);
    model.acts = !flags.read_only;
    // Without a server it fails before it takes the screen.
    model.apply(watcher.sample(&Wish::default()).await?);
    let (wish, wished) = watch::channel(Wish::default());
    let (taken, mut samples) = mpsc::channel(1);
    let fetching = tokio::spawn(fetch(watcher, interval, wished, taken));
    let mut tick = tokio::time::interval(TICK);
    let mut since: Option<Instant> = None;
    let mut terminated = signal(SignalKind::terminate())?;
    let mut hung_up = signal(SignalKind::hangup())?;
    let brush = Brush {
        colours: may_colour(true),
    };
    let mut screen = Screen::open()?;
    let mut doing: Option<Pin<Box<dyn Future<Output = String> + '_>>> = None;
    let ended = loop {
        let drawn = screen.draw(|area, buffer| draw::draw(&model, brush, area, buffer));
        let page = match drawn {
            Ok(drawn) => {
                model.bound_scroll(drawn.scroll);
                drawn.page
            }
            Err(error) => break Err(error.into()),
        };
        tokio::select! {
            told = screen.told() => match told {
                Told::Key(key) if model.press(key, page) => break Ok(()),
                Told::Key(_) => {
                    if let Some(act) = model.take_act() {
                        doing = Some(Box::pin(async move { act.run(session).await }));
                    }
                    wish.send_if_modified(|held| {
                        let wanted = model.wish();
                        let differs = *held != wanted;
                        *held = wanted;
                        differs
                    });
                }
                Told::Resized => {}
                Told::Gone => break Ok(()),
            },
            sample = samples.recv() => match sample {
                Some(Ok(sample)) => {
                    since = None;
                    model.apply(sample);
                }
                Some(Err(error)) => {
                    let since = since.get_or_insert_with(Instant::now);
                    model.miss(super::whole(&error), since.elapsed());
                }
                None => break Err(anyhow::anyhow!("nothing looks at the bus any more")),
            },
            told = done(&mut doing), if doing.is_some() => {
                doing = None;
                model.tell(told);
            }
            _ = tick.tick(), if since.is_some() => {
                model.misses(since.map(|since| since.elapsed()).unwrap_or_default());
            }
            _ = terminated.recv() => break Ok(()),
            _ = hung_up.recv() => break Ok(()),
        }
    };
    fetching.abort();
    drop(screen);
    ended.map(|()| Exit::Done)
}

/// What became of what is being done.
async fn done(doing: &mut Option<Pin<Box<dyn Future<Output = String> + '_>>>) -> String {
    match doing {
        Some(doing) => doing.await,
        None => std::future::pending().await,
    }
}

/// Takes samples until nobody wants them, at once when something else is wished for.
async fn fetch(
    mut watcher: Watcher,
    interval: Duration,
    mut wished: watch::Receiver<Wish>,
    taken: mpsc::Sender<anyhow::Result<Sample>>,
) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(interval) => {}
            changed = wished.changed() => if changed.is_err() {
                return;
            },
        }
        let wish = wished.borrow_and_update().clone();
        let sample = watcher.sample(&wish).await;
        if taken.send(sample).await.is_err() {
            return;
        }
    }
}
