//! `convoke domain`: over how many partitions the events of a domain are split, and whether its subjects have an order.

mod held;

pub(super) use held::{whose, why};

use super::confirm::confirm;
use super::output::{self, Cell, Column, RED, Table, count, number};
use super::{Exit, Misuse, Session, who};
use anyhow::bail;
use clap::{Args, Subcommand, ValueEnum};
use convoke::connect::clock::local_now;
use convoke::connect::connector::Connector;
use convoke::operator::inspect;
use convoke::protocol::domain::{Domain, DomainOrder, MAX_PARTITIONS};
use convoke::protocol::keys::Keys;
use convoke::streams::domains::{DomainError, Domains};
use convoke::streams::made;
use convoke::streams::own::{self, OwnKeys, Owner};
use serde_json::{Value, json};

const EXAMPLES: &str = "\
Examples:
  convoke domain list
  convoke domain show image
  convoke domain show account --held        the subjects that wait, and why
  convoke domain set image --partitions 16
  convoke domain set image --partitions 16 --version 3
  convoke domain set account --order subject
  convoke domain remake image 3

Where names have tags (on a cluster, or with `partitions` set) the events of a domain are split over \
partitions, by their subject, or by their id. How many there are is written on the bus by whoever uses a domain \
first, and all follow. The number can grow, by a factor, while all runs: what was published of a subject before is \
read before what comes after it. It cannot shrink. The window of `dedup` ends at a change, and what is \
stored by the old number later than 5 s after it has no order with the rest (`convoke docs guarantees`).

With `--order subject` each partition has one owner among the workers, and the events of a subject run one at a \
time, in their order, over all of them: a retry stays in its place, and the subject waits for it. All workers of the \
domain must have all of its handlers, and be of a version that knows this order.

On a cluster a worker marks each partition whose stream it made. Where that is gone later, nothing is made in its \
place: a failover while a slot is moved may only have lost the way to it, and `redis-cli --cluster fix` brings it back. \
If it is lost for good, `remake` takes the mark away, and the workers make the stream again.";

/// Show how many partitions domains have, give one more of them, or give its subjects an order
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Flags {
    #[command(subcommand)]
    command: Command,
}

impl Flags {
    /// Whether `--partitions` says how many there are to be, not how many the program is set to have.
    pub(super) fn sets(&self) -> bool {
        matches!(self.command, Command::Set { .. })
    }
}

#[derive(Subcommand)]
enum Command {
    /// List the domains
    List,
    /// Show the partitions of one domain, and what waits in each
    Show {
        /// The part of an event type before its first dot
        #[arg(value_name = "DOMAIN")]
        domain: String,
        /// Only the subjects that wait for the next try of an event of theirs, with what that failed with
        #[arg(long)]
        held: bool,
    },
    /// Split a domain over more partitions, or give its subjects an order over all workers
    #[command(group(clap::ArgGroup::new("what").required(true).multiple(true).args(["partitions", "order"])))]
    Set {
        /// The part of an event type before its first dot
        #[arg(value_name = "DOMAIN")]
        domain: String,
        /// How many: a multiple of how many there are
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_PARTITIONS)))]
        partitions: Option<u16>,
        /// `subject`: its events run one at a time, in their order, whichever worker runs them; `none`: they need not
        #[arg(long, value_name = "ORDER", value_enum)]
        order: Option<Order>,
        /// Only if this is the version that the bus has
        #[arg(long, value_name = "N")]
        version: Option<u64>,
    },
    /// Have the stream of a partition made again that is lost for good
    Remake {
        /// The part of an event type before its first dot
        #[arg(value_name = "DOMAIN")]
        domain: String,
        /// Which of its partitions
        #[arg(value_name = "PARTITION")]
        partition: u16,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Order {
    None,
    Subject,
}

impl From<Order> for DomainOrder {
    fn from(order: Order) -> Self {
        match order {
            Order::None => DomainOrder::None,
            Order::Subject => DomainOrder::Subject,
        }
    }
}

/// Runs the command.
pub(super) async fn run(session: Session, flags: Flags) -> anyhow::Result<Exit> {
    let keys = session.settings.keys()?;
    if keys.set_partitions().is_none() {
        let plain = "plain names have no partitions: use --partitions as the workers do, or a redis+cluster:// URL";
        return Err(Misuse::error(plain));
    }
    let domains = Domains::new(session.connector()?, keys.clone());
    match flags.command {
        Command::List => {
            let names = domains.learn_all().await?;
            list(&session, &keys, &names)
        }
        Command::Show { domain, held } => {
            domains.learn_all().await?;
            match keys.domain(&domain) {
                Some(is) if held => held::show(&session, &keys, &domain, &is).await,
                Some(is) => show(&session, &domains, &keys, &domain, &is).await,
                None => {
                    let nobody = format!("nobody has used the domain {domain} yet");
                    output::complain(session.output.format(), &nobody);
                    Ok(Exit::Failed)
                }
            }
        }
        Command::Remake {
            domain,
            partition,
            yes,
        } => {
            domains.learn_all().await?;
            if partition >= MAX_PARTITIONS
                || !keys.is_split(&domain)
                || keys.domain(&domain).is_none()
            {
                let unknown =
                    format!("{domain} has no partition {partition} (convoke domain list)");
                return Err(Misuse::error(unknown));
            }
            remake(&session, &keys, (&domain, partition), yes).await
        }
        Command::Set {
            domain,
            partitions,
            order,
            version,
        } => match domains
            .change(&domain, partitions, order.map(Into::into), version, &who())
            .await
        {
            Ok(is) => {
                if session.output.is_json() {
                    session.output.json(&told(&domain, &is))?;
                    return Ok(Exit::Done);
                }
                let many = count(is.partitions.into(), "partition", "partitions");
                let order = match is.order {
                    DomainOrder::None => "",
                    DomainOrder::Subject => ", subjects in order",
                };
                let line = format!("{domain}: {many}{order}, version {}", is.version);
                session.output.line(&output::printable(&line))?;
                Ok(Exit::Done)
            }
            Err(DomainError::Refused(why)) => Err(Misuse::error(why)),
            Err(error) => bail!(error),
        },
    }
}

/// Takes the mark of a partition away whose stream is not there.
async fn remake(
    session: &Session,
    keys: &Keys,
    place: (&str, u16),
    yes: bool,
) -> anyhow::Result<Exit> {
    let stream = keys.events(place.0, place.1);
    let mut connection = session.connector()?.toward(&stream).pooled().await?;
    if !made::is_gone(&mut connection, keys, place).await? {
        let what = format!("{stream} is there, or nobody made it yet: nothing is to be done");
        output::complain(session.output.format(), &what);
        return Ok(Exit::Failed);
    }
    let question = format!(
        "Make {stream} again? If it only cannot be reached (redis-cli --cluster check), its events are hidden for good."
    );
    if !confirm(&question, yes)? {
        output::complain_line("nothing was changed");
        return Ok(Exit::Failed);
    }
    made::mark(&mut connection, keys, place, false).await?;
    if session.output.is_json() {
        session
            .output
            .json(&json!({ "stream": stream, "made": false }))?;
        return Ok(Exit::Done);
    }
    let line = format!("{stream}: the workers make it again within seconds");
    session.output.line(&output::printable(&line))?;
    Ok(Exit::Done)
}

fn told(name: &str, is: &Domain) -> Value {
    json!({
        "domain": name,
        "partitions": is.partitions,
        "order": is.order.as_str(),
        "version": is.version,
        "before": is.before,
        "at": (is.at > 0).then_some(is.at),
        "by": (!is.by.is_empty()).then_some(&is.by),
    })
}

fn list(session: &Session, keys: &Keys, names: &[String]) -> anyhow::Result<Exit> {
    let columns = vec![
        Column::new("DOMAIN").shrinks(8),
        Column::number("PARTITIONS"),
        Column::new("BEFORE").shrinks(6),
        Column::new("ORDER"),
        Column::number("VERSION"),
        Column::new("BY").optional(),
        Column::new("CHANGED"),
    ];
    let now = local_now();
    let mut table = Table::new(&session.output, columns);
    for name in names {
        let Some(is) = keys.domain(name) else {
            continue;
        };
        if session.output.is_json() {
            session.output.json(&told(name, &is))?;
            continue;
        }
        let before = is.before.iter().map(|one| one.partitions.to_string());
        let before = before.collect::<Vec<_>>().join(" ");
        let or_none = |text: String| {
            if text.is_empty() {
                "-".to_owned()
            } else {
                text
            }
        };
        let changed = match is.at {
            0 => "never".to_owned(),
            at => session.output.moment(at, now),
        };
        table.row(vec![
            name.clone().into(),
            is.partitions.to_string().into(),
            or_none(before).into(),
            is.order.as_str().into(),
            is.version.to_string().into(),
            or_none(is.by).into(),
            changed.into(),
        ])?;
    }
    if !session.output.is_json() {
        table.finish()?;
    }
    Ok(Exit::Done)
}

/// What a partition holds, and whether it waits for another one.
async fn show(
    session: &Session,
    domains: &Domains,
    keys: &Keys,
    name: &str,
    is: &Domain,
) -> anyhow::Result<Exit> {
    let (connector, group) = (session.connector()?, &session.settings.group);
    let columns = vec![
        Column::number("PARTITION"),
        Column::number("ENTRIES"),
        Column::number("LAG"),
        Column::number("PENDING"),
        Column::new("READ"),
        Column::new("OWNER").optional(),
        Column::new("SINCE").optional(),
        Column::number("HELD").optional(),
    ];
    let ordered = is.order == DomainOrder::Subject;
    let within = session.within()?;
    let now = local_now();
    let mut table = Table::new(&session.output, columns);
    let mut all = Vec::new();
    for partition in 0..is.partitions {
        let key = keys.events(name, partition);
        if !within.reaches(&key).await? {
            let one = json!({ "partition": partition, "unreachable": true });
            all.push(one);
            let mut row = vec![Cell::from(partition.to_string())];
            row.resize(4, "-".into());
            row.push(Cell::styled("away", RED));
            row.resize(8, "".into());
            table.row(row)?;
            continue;
        }
        let mut connection = connector.toward(&key).pooled().await?;
        let stream = match keys.stream_name(&key) {
            Some(stream) => inspect::stream(&mut connection, &stream).await?,
            None => None,
        };
        let own = stream
            .as_ref()
            .and_then(|it| it.groups.iter().find(|one| one.name == *group));
        let length = stream.as_ref().map_or(0, |it| it.length);
        let (lag, pending) = (own.and_then(|it| it.lag), own.map_or(0, |it| it.pending));
        let waits_for = match domains.is_open(name, partition, group).await {
            Ok(true) => None,
            Err(error) if within.reach().await?.is_whole() => return Err(error.into()),
            // One before it may be away.
            Ok(false) | Err(_) => is.came_from(partition).map(|(from, _)| from),
        };
        let owned = match ordered {
            true => Some(Owned::of(&connector, keys, (name, partition), group).await?),
            false => None,
        };
        let mut one = json!({
            "partition": partition, "entries": length, "lag": lag, "pending": pending, "waits_for": waits_for,
        });
        if let Some(owned) = &owned {
            one["owner"] = owned.told();
            one["held"] = owned.held.into();
        }
        all.push(one);
        let or_empty = |cell: Option<String>| cell.unwrap_or_default();
        let owner = owned.as_ref().map(|owned| match &owned.owner {
            Some(owner) => owner.instance.clone(),
            None => "nobody".to_owned(),
        });
        let since = owned.as_ref().and_then(|owned| {
            let owner = owned.owner.as_ref()?;
            Some(session.output.moment(owner.since, now))
        });
        table.row(vec![
            partition.to_string().into(),
            number(length).into(),
            lag.map_or_else(|| "-".to_owned(), number).into(),
            number(pending).into(),
            waits_for
                .map_or_else(|| "yes".to_owned(), |from| format!("after {from}"))
                .into(),
            or_empty(owner).into(),
            or_empty(since).into(),
            or_empty(owned.map(|owned| number(owned.held))).into(),
        ])?;
    }
    if session.output.is_json() {
        let mut told = told(name, is);
        told["each"] = all.into();
        session.output.json(&told)?;
        return Ok(Exit::Done);
    }
    table.finish()?;
    Ok(Exit::Done)
}

/// Who owns a partition, and how many events wait there in their place for their next try.
pub(super) struct Owned {
    pub(super) owner: Option<Owner>,
    /// What is left of its lease, in ms.
    pub(super) left: u64,
    pub(super) held: u64,
}

impl Owned {
    pub(super) async fn of(
        connector: &Connector,
        keys: &Keys,
        (domain, partition): (&str, u16),
        group: &str,
    ) -> anyhow::Result<Self> {
        let own = OwnKeys::of(keys, domain, partition, group);
        let connector = connector.toward(&own.owner);
        let source = connector.clock().await?;
        let mut connection = connector.pooled().await?;
        let looked = own::look(&mut connection, source, std::slice::from_ref(&own)).await?;
        let mut held = redis::cmd("HLEN");
        held.arg(keys.held(domain, partition, group));
        let held = held.query_async(&mut connection).await?;
        let owner = looked.owners.into_iter().next();
        let owner = owner.unwrap_or(Ok(None)).map_err(anyhow::Error::msg)?;
        let left = owner.as_ref().map(|owner| owner.left(looked.now));
        let left = left.unwrap_or_default().as_millis() as u64;
        Ok(Self { owner, left, held })
    }

    pub(super) fn told(&self) -> Value {
        self.owner.as_ref().map_or(Value::Null, |owner| {
            json!({"instance": owner.instance, "since": owner.since, "lease_ms": self.left})
        })
    }
}
