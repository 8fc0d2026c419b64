//! Going through delay queues.

use super::Which;
use crate::cli::Session;
use convoke::operator::delayed::{DelayedPages, Queue, Waiting};
use redis::aio::ConnectionLike;
use std::vec;

/// What fits, page by page, in the order of the queues and of the due times.
pub(super) struct Walk<'a> {
    which: &'a Which,
    limit: usize,
    /// Due times: the first and the last that may fit.
    span: (u64, u64),
    queues: vec::IntoIter<Queue>,
    at: Option<(Queue, DelayedPages)>,
}

impl<'a> Walk<'a> {
    pub(super) fn begin(session: &Session, which: &'a Which, queues: Vec<Queue>, now: u64) -> Self {
        Self {
            which,
            limit: session.settings.limits().entry(),
            span: (
                which.due_after.map_or(0, |due| due.ms(now)),
                which.due_before.map_or(u64::MAX, |due| due.ms(now)),
            ),
            queues: queues.into_iter(),
            at: None,
        }
    }

    /// The next page, of one queue; it may hold nothing. `None` at the end.
    pub(super) async fn next(
        &mut self,
        connection: &mut impl ConnectionLike,
    ) -> anyhow::Result<Option<(Queue, Vec<Waiting>)>> {
        loop {
            let (queue, mut pages) = match self.at.take() {
                Some(at) => at,
                None => {
                    let Some(queue) = self.queues.next() else {
                        return Ok(None);
                    };
                    let pages = DelayedPages::of(&queue, self.span.0, self.limit);
                    (queue, pages)
                }
            };
            let mut page = pages.next(connection).await?;
            let Some(last) = page.last() else {
                continue;
            };
            if last.due_ms <= self.span.1 {
                self.at = Some((queue.clone(), pages));
            }
            page.retain(|one| one.due_ms <= self.span.1 && self.which.fit(one));
            return Ok(Some((queue, page)));
        }
    }
}
