//! What there is to replay, page by page, and for each entry whether it may be.

use super::super::choose;
use super::super::choose::{Filters, Span};
use super::super::dead::Which;
use super::super::pending::Held;
use super::super::{Misuse, Session};
use super::flags::Act;
use convoke::connect::clock::whole_ms;
use convoke::coordination::instances::Instances;
use convoke::operator::browse::Sight;
use convoke::operator::inspect;
use convoke::operator::replay::planning::{Candidate, Planner};
use convoke::operator::replay::repair::Stretch;
use convoke::operator::replay::walk::{self, Choice};
use convoke::operator::replay::wanted::Wanted;
use convoke::operator::replay::{Operator, Source};
use convoke::protocol::event::EntryId;
use convoke::protocol::keys::StreamKind;
use redis::aio::ConnectionLike;
use std::collections::HashMap;

/// What is chosen from.
pub(super) enum From {
    Dead(Which),
    Pending(Vec<String>, Held, Filters),
    Range(Vec<String>, Option<String>, Filters),
}

impl From {
    fn source(&self) -> Source {
        match self {
            From::Dead(_) => Source::Dead,
            From::Pending(..) => Source::Pending,
            From::Range(..) => Source::Range,
        }
    }

    /// The streams and times, as they were given.
    fn asked(&self) -> String {
        let (streams, filters) = match self {
            From::Dead(which) => (&which.streams, &which.filters),
            From::Pending(streams, _, filters) | From::Range(streams, _, filters) => {
                (streams, filters)
            }
        };
        format!("{streams:?} {:?} {:?}", filters.since, filters.until)
    }

    /// Which entries, as data.
    fn wanted(&self) -> Wanted {
        let filters = match self {
            From::Dead(which) => &which.filters,
            From::Pending(_, _, filters) | From::Range(_, _, filters) => filters,
        };
        let ids = filters.ids.iter().flat_map(|ids| ids.0.iter());
        let what = &filters.what;
        let mut wanted = Wanted {
            entries: ids.map(|id| (id.ms, id.seq)).collect(),
            kind: what.kind.clone(),
            fields: what.payload.iter().map(|one| one.what().clone()).collect(),
            ..Wanted::default()
        };
        match self {
            From::Dead(which) => {
                wanted.reason.clone_from(&which.reason);
                wanted.instance.clone_from(&which.instance);
            }
            From::Pending(_, held, _) => {
                wanted.idle_ms = held.idle.map(whole_ms);
                wanted.consumer.clone_from(&held.consumer);
                wanted.min_deliveries = held.min_deliveries;
            }
            From::Range(..) => {}
        }
        wanted
    }
}

/// Walks over all that fits, any number of times: what comes later is not met.
pub(super) struct Walk {
    choice: Choice,
    sight: Sight,
    instances: Instances,
    spans: Vec<Span>,
    /// The streams and times, as they were given.
    asked: String,
    /// Of a range, the last entry of each stream that its group was delivered.
    delivered: HashMap<String, EntryId>,
    at: usize,
    /// Over the stream that is being walked over.
    open: Option<walk::Walk>,
    now: u64,
}

impl Walk {
    /// Prepares to walk over what is there now.
    pub(super) async fn begin(
        session: &Session,
        connection: &mut impl ConnectionLike,
        from: From,
        act: &Act,
        operator: &Operator,
    ) -> anyhow::Result<Self> {
        let keys = session.keys().await?;
        let now = inspect::now(connection).await?;
        let events = [StreamKind::Events];
        let sight = session.sight()?;
        let (source, asked) = (from.source(), from.asked());
        let (group, idle) = match &from {
            From::Pending(_, held, _) => (held.group.clone(), held.idle),
            From::Range(_, group, _) => (group.clone(), None),
            From::Dead(_) => (None, None),
        };
        let group = group.unwrap_or_else(|| session.settings.group.clone());
        let mut bounds = HashMap::new();
        let spans = match &from {
            From::Dead(which) => which.spans(session, connection).await?,
            From::Pending(names, _, filters) | From::Range(names, _, filters) => {
                let streams = choose::streams(&session.within()?, &keys, names, &events).await?;
                let (from, to) = filters.bounds(now);
                let mut spans = Vec::new();
                for stream in streams {
                    // What is pending may have left its stream.
                    let group = inspect::standing(connection, &stream.key, &group).await?;
                    let delivered = group.map_or_else(EntryId::default, |group| group.delivered);
                    let last = sight.last_id(&stream.key).await?;
                    // What is delivered later was not shown, and not agreed to.
                    let to = match source {
                        Source::Pending => to.min(delivered),
                        _ => {
                            bounds.insert(stream.key.clone(), delivered);
                            to.min(last.max(delivered))
                        }
                    };
                    spans.push(Span { stream, from, to });
                }
                spans
            }
        };
        let planner = Planner {
            keys,
            limits: session.settings.limits(),
            force: act.force,
            to_type: act.to_type.clone(),
            mends: act.mends()?,
            by: operator.by().to_owned(),
        };
        let choice = Choice {
            from: source,
            wanted: from.wanted(),
            planner,
            group,
            idle: idle.unwrap_or(session.settings.claim_idle),
            run: operator.run().to_owned(),
        };
        Ok(Self {
            choice,
            sight,
            instances: session.instances()?,
            spans,
            asked,
            delivered: bounds,
            at: 0,
            open: None,
            now,
        })
    }

    /// What is chosen.
    pub(super) fn choice(&self) -> &Choice {
        &self.choice
    }

    /// Where it replays, as data. What a range has that is not delivered yet is shown, and left alone: a worker that reads it
    /// later would find it finished.
    pub(super) fn stretches(&self) -> Vec<Stretch> {
        let pair = |id: EntryId| (id.ms, id.seq);
        let spans = self.spans.iter().map(|span| {
            let key = &span.stream.key;
            let delivered = self.delivered.get(key).copied();
            Stretch {
                stream: key.clone(),
                from: pair(span.from),
                to: pair(delivered.map_or(span.to, |delivered| span.to.min(delivered))),
            }
        });
        spans.collect()
    }

    /// The streams and times, as they were given.
    pub(super) fn asked(&self) -> &str {
        &self.asked
    }

    /// Looks there instead.
    pub(super) fn look_at(&mut self, spans: Vec<Span>) {
        self.spans = spans;
        self.rewind();
    }

    /// Begins again from the beginning, up to where it ended before.
    pub(super) fn rewind(&mut self) {
        self.at = 0;
        self.open = None;
    }

    /// What fits on the next page; `None` at the end.
    pub(super) async fn next(
        &mut self,
        connection: &mut impl ConnectionLike,
    ) -> anyhow::Result<Option<Vec<Candidate>>> {
        while let Some(span) = self.spans.get(self.at) {
            let (choice, stream) = (&self.choice, &span.stream);
            let mut walk = match self.open.take() {
                Some(walk) => walk,
                None => {
                    let walk = choice.walk(&self.sight, connection, stream, span.from, span.to);
                    walk.await?.ok_or_else(|| {
                        Misuse::error(format_args!(
                            "{} has no group {}: what of it was run, nobody knows; --group names another",
                            stream.key, choice.group
                        ))
                    })?
                }
            };
            if let Some(page) = walk.next(choice, connection).await? {
                let gone = self.instances.gone_among(&page.owners()).await?;
                let judged = choice.judge(stream, page, &gone, self.now);
                self.open = Some(walk);
                return Ok(Some(judged));
            }
            self.at += 1;
        }
        Ok(None)
    }
}
