//! What is beside a stream of events, for whoever opens its row: who owns the partition, what is held, what is parked.

use crate::cli::domain::Owned;
use crate::cli::output::{count, span};
use convoke::connect::connector::Connector;
use convoke::operator::parked;
use convoke::protocol::keys::{Keys, StreamKind, StreamName};

/// Lines that say it; none where nothing is.
pub(super) async fn beside(
    connector: &Connector,
    keys: &Keys,
    stream: &StreamName,
    group: &str,
    now: u64,
) -> anyhow::Result<Vec<String>> {
    let mut lines = Vec::new();
    if stream.kind != StreamKind::Events {
        return Ok(lines);
    }
    if keys.set_partitions().is_some() {
        let place = (stream.part.as_str(), stream.partition);
        let owned = Owned::of(connector, keys, place, group).await?;
        if let Some(owner) = &owned.owner {
            let since = span(now.saturating_sub(owner.since));
            let lease = match owned.left {
                0 => "its lease is over".to_owned(),
                left => format!("its lease lasts {}", span(left)),
            };
            lines.push(format!("owner {}, since {since}; {lease}", owner.instance));
        }
        if owned.held > 0 {
            let held = count(
                owned.held,
                "event waits in its place",
                "events wait in their places",
            );
            lines.push(format!(
                "held: {held} for the next try, what follows of a subject behind it"
            ));
        }
    }
    if let Some(route) = parked::beside(keys, stream) {
        let mut connection = connector.toward(&route.events).pooled().await?;
        for one in parked::kinds(&mut connection, &route).await? {
            let events = count(one.count, "event", "events");
            let first = one.first_ms.map_or_else(String::new, |first| {
                format!(", the first {} ago", span(now.saturating_sub(first)))
            });
            lines.push(format!("parked {}: {events}{first}", one.kind));
        }
    }
    Ok(lines)
}
