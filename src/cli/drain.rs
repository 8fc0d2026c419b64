//! `convoke drain`, `quiet` and `scale`: orders to workers, followed until they are done.

use super::confirm::confirm;
use super::output::{self, count};
use super::request::{ask, complain, result};
use super::{Exit, Misuse, Session, input, who};
use clap::Args;
use convoke::client::publish::Outgoing;
use convoke::coordination::instances::Instances;
use convoke::coordination::instances::instance::Instance;
use convoke::coordination::instances::roster::{Condition, Detail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Instances that are looked through.
const LOOKED: usize = 100_000;
/// The pause between two looks.
const PAUSE: Duration = Duration::from_millis(250);

const DRAIN_EXAMPLES: &str = "\
Examples:
  convoke drain shop-3                      one worker, by its id
  convoke drain --version 1.4.1 --yes       all of a version
  convoke drain --role gpu --within 10m

They finish what runs, commit, unregister and exit with 0, as they do at SIGTERM: what starts them again (a \
service manager, a deployment) may do so. Exits 1 if some are still there after --within.";

/// Have workers finish what runs and leave, from afar
#[derive(Args)]
#[command(after_help = DRAIN_EXAMPLES)]
pub(super) struct Drain {
    #[command(flatten)]
    whom: Whom,
    #[command(flatten)]
    follow: Follow,
}

const QUIET_EXAMPLES: &str = "\
Examples:
  convoke quiet shop-3
  convoke quiet --role gpu --yes
  convoke scale shop-3 64                   has it work again

They stay, finish what runs, take no task and read no event but those to the system; their leases are \
kept. They are quiet until they are scaled, or started again.";

/// Have workers finish what runs and read nothing more, from afar
#[derive(Args)]
#[command(after_help = QUIET_EXAMPLES)]
pub(super) struct Quiet {
    #[command(flatten)]
    whom: Whom,
    #[command(flatten)]
    follow: Follow,
}

const SCALE_EXAMPLES: &str = "\
Examples:
  convoke scale shop-3 16
  convoke instances --format json | jq '{id, concurrency, mode}'

It holds until the worker is started again, and ends its being quiet.";

/// Have a worker run another number of handlers at a time, from afar
#[derive(Args)]
#[command(after_help = SCALE_EXAMPLES)]
pub(super) struct Scale {
    /// The worker, by its id
    #[arg(value_name = "ID", value_parser = input::instance)]
    id: String,
    /// Handlers that may be waiting at a time, as the setting `concurrency` says it
    #[arg(value_name = "N", value_parser = clap::value_parser!(u64).range(1..=65_536))]
    concurrency: u64,
    #[command(flatten)]
    follow: Follow,
}

#[derive(Args)]
struct Whom {
    /// The workers, by their ids
    #[arg(value_name = "ID", value_parser = input::instance)]
    ids: Vec<String>,
    /// All that hold this role
    #[arg(long, value_name = "ROLE", value_parser = input::role, conflicts_with = "ids")]
    role: Option<String>,
    /// All of this version, as `convoke instances` shows it
    #[arg(long, value_name = "VERSION", conflicts_with_all = ["ids", "role"])]
    version: Option<String>,
}

#[derive(Args)]
struct Follow {
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// How long to follow them; 0s: only order it
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "2m")]
    within: Duration,
    /// How long to wait for the answer
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "5s")]
    timeout: Duration,
}

/// What is waited for.
#[derive(Clone, Copy)]
enum Until {
    Gone,
    Quiet,
    Scaled(u64),
}

impl Until {
    /// Whether it is so of an instance that is alive.
    fn is_so(self, instance: &Instance) -> bool {
        match self {
            Until::Gone => false,
            Until::Quiet => instance.mode.quiet,
            Until::Scaled(concurrency) => {
                instance.mode.concurrency == concurrency && !instance.mode.quiet
            }
        }
    }

    fn word(self) -> &'static str {
        match self {
            Until::Gone => "left",
            Until::Quiet => "quiet",
            Until::Scaled(_) => "scaled",
        }
    }
}

/// Runs `convoke drain`.
pub(super) async fn drain(session: Session, flags: Drain) -> anyhow::Result<Exit> {
    let asks = asks(&flags.whom, false)?;
    order(&session, "system.drain", asks, Until::Gone, &flags.follow).await
}

/// Runs `convoke quiet`.
pub(super) async fn quiet(session: Session, flags: Quiet) -> anyhow::Result<Exit> {
    let asks = asks(&flags.whom, true)?;
    order(&session, "system.drain", asks, Until::Quiet, &flags.follow).await
}

/// Runs `convoke scale`.
pub(super) async fn scale(session: Session, flags: Scale) -> anyhow::Result<Exit> {
    let asked = json!({"instance_id": flags.id, "concurrency": flags.concurrency});
    let until = Until::Scaled(flags.concurrency);
    order(&session, "system.scale", vec![asked], until, &flags.follow).await
}

fn asks(whom: &Whom, quiet: bool) -> anyhow::Result<Vec<Value>> {
    let ask = |name: &str, value: &str| json!({name: value, "quiet": quiet});
    Ok(match (&whom.role, &whom.version) {
        (Some(role), _) => vec![ask("role", role)],
        (_, Some(version)) => vec![ask("version", version)],
        _ if whom.ids.is_empty() => {
            return Err(Misuse::error(
                "name workers by their ids, or by --role or --version",
            ));
        }
        _ => whom.ids.iter().map(|id| ask("instance_id", id)).collect(),
    })
}

async fn order(
    session: &Session,
    kind: &str,
    asks: Vec<Value>,
    until: Until,
    follow: &Follow,
) -> anyhow::Result<Exit> {
    let instances = session.instances()?;
    let before = alive(&instances).await?;
    let fits = |one: &&Instance| asks.iter().any(|asked| is_for(asked, one));
    let meant = before.values().filter(fits).count() as u64;
    let does = match until {
        Until::Gone => "finish what they run, and leave",
        Until::Quiet => "finish what they run, and read nothing more",
        Until::Scaled(_) => "run another number of handlers at a time",
    };
    let who_does = count(meant, "worker is to", "workers are to");
    if !confirm(&format!("{who_does} {does}. Go on?"), follow.yes)? {
        return Ok(Exit::Failed);
    }
    let mut ordered = BTreeMap::new();
    for asked in asks {
        let request = Outgoing::new(kind, &asked).source(who());
        let said = match ask(session, request, follow.timeout).await? {
            Ok(reply) => result(&reply)?,
            Err(error) => {
                complain(session, &error);
                return Ok(Exit::Failed);
            }
        };
        let one = said["instance_id"].as_str();
        let many = said["instances"].as_array().into_iter().flatten();
        let ids = many.filter_map(Value::as_str).chain(one);
        // Who registers under the id later is another one.
        ordered.extend(ids.map(|id| {
            let incarnation = before.get(id).map_or(0, |one| one.incarnation);
            (id.to_owned(), incarnation)
        }));
    }
    if ordered.is_empty() {
        output::complain_line("no worker fits");
        return Ok(Exit::Failed);
    }
    if follow.within.is_zero() {
        for id in ordered.keys() {
            say(session, id, "ordered")?;
        }
        return Ok(Exit::Done);
    }
    watch(session, &instances, ordered, until, follow.within).await
}

/// Follows them, with a bar, until it is so of all.
async fn watch(
    session: &Session,
    instances: &Instances,
    mut ordered: BTreeMap<String, u64>,
    until: Until,
    within: Duration,
) -> anyhow::Result<Exit> {
    let shown = bar(ordered.len() as u64, session.output.is_json());
    let began = Instant::now();
    loop {
        let alive = alive(instances).await?;
        let mut done = Vec::new();
        ordered.retain(|id, incarnation| {
            let there = alive
                .get(id)
                .filter(|one| *incarnation == 0 || one.incarnation == *incarnation);
            let is_done = match there {
                None => true,
                Some(one) => until.is_so(one),
            };
            if is_done {
                let word = if there.is_none() {
                    "left"
                } else {
                    until.word()
                };
                done.push((id.clone(), word));
            }
            !is_done
        });
        for (id, word) in done {
            shown.inc(1);
            shown.suspend(|| say(session, &id, word))?;
        }
        if ordered.is_empty() {
            shown.finish_and_clear();
            return Ok(Exit::Done);
        }
        if began.elapsed() >= within {
            break;
        }
        tokio::time::sleep(PAUSE).await;
    }
    shown.finish_and_clear();
    let left: Vec<&str> = ordered.keys().map(String::as_str).take(20).collect();
    let message = format!(
        "{} not {} after {}: {}; the order stands",
        count(ordered.len() as u64, "is", "are"),
        until.word(),
        humantime::format_duration(within),
        left.join(" ")
    );
    output::complain(session.output.format(), &message);
    Ok(Exit::Failed)
}

fn bar(total: u64, hidden: bool) -> ProgressBar {
    let target = match hidden {
        true => ProgressDrawTarget::hidden(),
        false => ProgressDrawTarget::stderr(),
    };
    let bar = ProgressBar::with_draw_target(Some(total), target);
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} {pos}/{len}  {elapsed}") {
        bar.set_style(style);
    }
    bar
}

fn say(session: &Session, id: &str, word: &str) -> anyhow::Result<()> {
    match session.output.is_json() {
        true => session
            .output
            .json(&json!({"instance_id": id, "state": word}))?,
        false => session
            .output
            .line(&output::printable(&format!("{id}: {word}")))?,
    }
    Ok(())
}

/// Whether an order is for a worker.
fn is_for(asked: &Value, one: &Instance) -> bool {
    let is = |name: &str| asked[name].as_str();
    is("instance_id").is_some_and(|id| id == one.id)
        || is("role").is_some_and(|role| one.roles.iter().any(|held| held == role))
        || is("version").is_some_and(|version| version == one.mode.version)
}

/// The workers that are alive, by id.
async fn alive(instances: &Instances) -> anyhow::Result<BTreeMap<String, Instance>> {
    let known = instances.known(Detail::Brief, LOOKED).await?;
    let alive = known.listed.into_iter();
    let alive = alive.filter(|(condition, one)| *condition != Condition::Lost && one.sealed);
    Ok(alive.map(|(_, one)| (one.id.clone(), one)).collect())
}
