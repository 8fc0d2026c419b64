//! `convoke doctor`: what is set up dangerously, and how to mend it.

mod checks;
mod cluster;
mod domains;
mod flow;
mod guarantees;
mod held;
mod memory;
mod policies;
mod sentinels;
mod streams;

use super::output;
use super::output::{FAINT, GREEN, Output, RED, Style, YELLOW};
use super::{Exit, Session};
use clap::Args;
use convoke::connect::connector::Connector;
use convoke::connect::error::BusError;
use convoke::coordination::scripts;
use convoke::operator::inspect;
use convoke::operator::server::ServerReport;
use convoke::protocol::keys::StreamName;
pub(super) use memory::{FULL, TIGHT};
use redis::aio::ConnectionLike;
use serde_json::json;

const EXAMPLES: &str = "\
Examples:
  convoke doctor
  convoke doctor --all                       what is fine as well
  convoke doctor --format json | jq -r 'select(.status == \"danger\").check'

Looks at the Sentinels if there are any, at the server's version, settings and users, at its clock, \
at the streams of the namespace, and at whether events flow: what waits, who runs what for how long, who is \
lost, what operators hold back. Changes nothing. What the user may not look at is named. Exit code 1: something is \
dangerous.";

/// Check the server, its settings and the streams, and say what to change
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Flags {
    /// Show what is fine as well
    #[arg(long)]
    all: bool,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Fine,
    Unknown,
    Warning,
    Danger,
}

impl Status {
    fn word(self) -> &'static str {
        match self {
            Status::Fine => "fine",
            Status::Unknown => "unknown",
            Status::Warning => "warning",
            Status::Danger => "danger",
        }
    }

    fn style(self) -> Style {
        match self {
            Status::Fine => GREEN,
            Status::Unknown => FAINT,
            Status::Warning => YELLOW,
            Status::Danger => RED,
        }
    }
}

/// What a check came to.
#[derive(Clone, Debug)]
struct Finding {
    check: &'static str,
    status: Status,
    what: String,
    why: &'static str,
    fix: String,
}

impl Finding {
    fn fine(check: &'static str, what: impl Into<String>) -> Self {
        Self {
            check,
            status: Status::Fine,
            what: what.into(),
            why: "",
            fix: String::new(),
        }
    }

    fn unknown(check: &'static str, what: impl Into<String>) -> Self {
        Self {
            status: Status::Unknown,
            ..Self::fine(check, what)
        }
    }

    fn print(&self, output: &Output) -> std::io::Result<()> {
        if output.is_json() {
            let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            return output.json(&json!({
                "check": self.check,
                "status": self.status.word(),
                "what": self.what,
                "why": text(self.why),
                "fix": text(&self.fix),
            }));
        }
        let status = output.in_style(self.status.style(), &format!("{:7}", self.status.word()));
        let check = output.bold(self.check);
        output.line(&format!(
            "{status}  {check}: {}",
            output::printable(&self.what)
        ))?;
        if !self.why.is_empty() {
            for line in output::wrapped(&format!("why: {}", self.why), 9, output.width()) {
                output.line(&output.faint(&line))?;
            }
            let mend = format!("mend: {}", output::printable(&self.fix));
            // A command must be there to be copied: it is not broken up.
            match self.fix.starts_with("redis-cli") {
                true => output.line(&format!("         {mend}"))?,
                false => {
                    for line in output::wrapped(&mend, 9, output.width()) {
                        output.line(&line)?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// What may be wrong with the server, or with each node of the cluster, whose address stands before it then.
async fn nodes(
    session: &Session,
    connector: &Connector,
    findings: &mut Vec<Finding>,
) -> anyhow::Result<()> {
    if !session.settings.redis_url.is_cluster() {
        findings.extend(of_node(session, connector).await?);
        return Ok(());
    }
    for node in connector.nodes().await? {
        let address = node.address().await?.addr().to_string();
        // One that is away is told; the others are looked at.
        let mut of_node = match of_node(session, &node).await {
            Ok(found) => found,
            Err(error) => vec![cluster::away(&super::whole(&error))],
        };
        for finding in &mut of_node {
            finding.what = format!("{address}: {}", finding.what);
            if let Some((host, port)) = address.rsplit_once(':') {
                let at = format!("redis-cli -h {host} -p {port} ");
                for command in ["CONFIG", "ACL"] {
                    let bare = format!("redis-cli {command}");
                    finding.fix = finding.fix.replace(&bare, &format!("{at}{command}"));
                }
            }
        }
        findings.extend(of_node);
    }
    Ok(())
}

async fn of_node(session: &Session, node: &Connector) -> anyhow::Result<Vec<Finding>> {
    let keys = session.settings.keys()?;
    let mut connection = node.unchecked().await?;
    let server = ServerReport::look(
        &mut connection,
        node,
        &keys,
        &session.settings.group,
        &scripts::called_by_others(),
    )
    .await?;
    let mut found = checks::server(&server, &session.settings);
    found.push(memory::memory(session, &mut connection, &server).await?);
    let of_cluster = match session.settings.redis_url.is_cluster() {
        true => Some(cluster::node(&mut connection, &server).await?),
        false => None,
    };
    found.extend(guarantees::guarantees(&server, of_cluster));
    Ok(found)
}

/// What may be wrong with those streams, and with what flows through them.
async fn of_names(
    session: &Session,
    connection: &mut impl ConnectionLike,
    names: Result<Vec<StreamName>, BusError>,
    findings: &mut Vec<Finding>,
) -> anyhow::Result<()> {
    let seen = names.as_ref().map(Vec::as_slice);
    let flows = flow::flow(session, seen).await?;
    let held = policies::policies(session, seen).await?;
    let named = seen.unwrap_or_default();
    let partitions = domains::partitions(session, connection, named).await?;
    findings.extend(streams::streams(session, connection, names).await?);
    findings.extend(partitions);
    findings.extend(flows);
    findings.extend(held);
    Ok(())
}

/// Runs the command.
pub(super) async fn run(session: Session, flags: Flags) -> anyhow::Result<Exit> {
    let connector = session.connector()?;
    let mut findings = match connector.survey().await {
        Some(voices) => sentinels::sentinels(&voices, &session.settings),
        None => Vec::new(),
    };
    if let Err(error) = nodes(&session, &connector, &mut findings).await {
        for finding in &findings {
            finding.print(&session.output)?;
        }
        return Err(error);
    }
    let keys = session.settings.keys()?;
    if session.settings.redis_url.is_cluster() {
        let mut found = Vec::new();
        let looked = async {
            let mut connection = connector.pooled().await?;
            let reach = session.within()?.reach().await.cloned();
            let names = match reach {
                Ok(reach) => inspect::streams_within(reach.nodes(), &keys).await,
                Err(_) => inspect::streams(&connector, &keys).await,
            };
            of_names(&session, &mut connection, names, &mut found).await?;
            if let Ok(reach) = session.within()?.reach().await
                && !reach.is_whole()
            {
                let away = reach.away().map(|it| format!("{}: {}", it.node, it.error));
                let away: Vec<String> = away.collect();
                found.push(cluster::unseen(&away.join("; ")));
            }
            anyhow::Ok(())
        };
        if let Err(error) = Box::pin(looked).await {
            found.push(cluster::unseen(&super::whole(&error)));
        }
        for finding in &mut found {
            // A command goes to the node of its key.
            let asks = finding.fix.replace("redis-cli ", "redis-cli -c ");
            finding.fix = asks.replace("redis-cli -c --", "redis-cli --");
        }
        findings.extend(found);
    } else {
        // A replica is looked at as well.
        let mut connection = connector.unchecked().await?;
        let names = inspect::streams_on(&mut connection, &keys).await;
        of_names(&session, &mut connection, names, &mut findings).await?;
    }
    let count = |status| findings.iter().filter(|f| f.status == status).count();
    let (danger, warning) = (count(Status::Danger), count(Status::Warning));
    for status in [
        Status::Danger,
        Status::Warning,
        Status::Unknown,
        Status::Fine,
    ] {
        let shown = status != Status::Fine || flags.all || session.output.is_json();
        for finding in findings.iter().filter(|f| shown && f.status == status) {
            finding.print(&session.output)?;
        }
    }
    if !session.output.is_json() {
        session.output.line(&format!(
            "{danger} dangerous, {}, {} not checked, {} fine",
            output::count(warning as u64, "warning", "warnings"),
            count(Status::Unknown),
            count(Status::Fine),
        ))?;
    }
    Ok(match danger {
        0 => Exit::Done,
        _ => Exit::Failed,
    })
}
