//! Subjects that are held up for long: their stream is trimmed no further than up to them.

use super::super::Session;
use super::super::domain::{whose, why};
use super::super::output::span;
use super::checks::names;
use super::{Finding, Status};
use convoke::operator::held::held_up;
use convoke::operator::inspect;
use convoke::protocol::keys::Keys;

const CHECK: &str = "held";
/// An event that is in its stream for that many ms and still to be tried again holds its subject up for long.
const LONG_MS: u64 = 600_000;
/// Partitions that are looked at.
const LOOKED_AT: usize = 200;
/// Events of a partition that are looked at: the oldest.
const OLDEST: usize = 3;

/// Everything about the subjects of domains with an order.
pub(super) async fn held(
    session: &Session,
    keys: &Keys,
    ordered: &[String],
) -> anyhow::Result<Vec<Finding>> {
    let (connector, within) = (session.connector()?, session.within()?);
    let reach = within.reach().await?;
    let places = ordered.iter().flat_map(|name| {
        let partitions = 0..keys.partitions(name);
        partitions.map(move |partition| (name.as_str(), partition))
    });
    let (mut long, mut streams) = (Vec::new(), Vec::new());
    for place in places.take(LOOKED_AT) {
        let stream = keys.events(place.0, place.1);
        if reach.missing(&stream).is_some() {
            continue;
        }
        let connection = &mut connector.toward(&stream).pooled().await?;
        let (sight, group) = (session.sight()?, &session.settings.group);
        let held = held_up(connection, &sight, keys, place, group, OLDEST).await?;
        let now = inspect::now(connection).await?;
        let before = long.len();
        for one in &held.events {
            let age = now.saturating_sub(one.entry.ms);
            if age >= LONG_MS {
                long.push(format!(
                    "{} of {stream} ({} for {}, next try {}, {})",
                    whose(one),
                    one.entry,
                    span(age),
                    one.note.attempt,
                    why(one)
                ));
            }
        }
        if long.len() > before {
            streams.push(place.0);
        }
    }
    let Some(first) = streams.first() else {
        let what = "no subject is held up for long, as far as was looked";
        return Ok(vec![Finding::fine(CHECK, what)]);
    };
    Ok(vec![Finding {
        check: CHECK,
        status: Status::Warning,
        what: format!("held up: {}", names(&long)),
        why: "an event that fails stays in its place, and all of its subject waits behind it; the stream is trimmed no \
              further than up to it, and grows",
        fix: format!(
            "convoke domain show {first} --held names all; mend what the handler needs, or end the event: convoke cancel \
             with its entry id"
        ),
    }])
}
