//! Asks one thing about each of many keys, in one round trip to each node that has any of them.
//!
//! A worker reads as many partitions as a domain has. To ask each of them in its slot would take a connection and a round
//! trip for each, every few hundred milliseconds, with nothing to do.

use crate::connect::cluster::pooled::is_elsewhere;
use crate::connect::connector::Connector;
use crate::connect::error::BusError;
use futures_util::future::join_all;
use redis::aio::ConnectionLike;
use redis::{Cmd, Value};
use std::time::Duration;
use tokio::time::timeout;

/// How long a node may take: what is asked saves work, and is asked of each key where there is no answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// What each of them answered, refusals among it. `None` where the key is to be asked about by itself: its slot has moved,
/// or its node did not answer.
pub(super) async fn ask(
    connector: &Connector,
    keys: &[&str],
    question: impl Fn(&str) -> Cmd,
) -> Vec<Option<Value>> {
    let mut each = vec![None; keys.len()];
    for answered in join_all(asks(connector, keys, question)).await {
        for (at, answer) in answered {
            each[at] = answer;
        }
    }
    each
}

/// The same for each node apart, so that one that does not answer keeps none of the others waiting: which of the keys,
/// and what was said of it.
pub(super) fn asks(
    connector: &Connector,
    keys: &[&str],
    question: impl Fn(&str) -> Cmd,
) -> Vec<impl Future<Output = Vec<(usize, Option<Value>)>> + Send + 'static> {
    let ways = connector.ways_to_nodes(keys).into_iter();
    let asks = ways.map(|way| {
        let mut questions = redis::pipe();
        for at in &way.places {
            questions.add_command(question(keys[*at]));
        }
        async move {
            let asked = async {
                let mut connection = way.connector.at_its_node().await?;
                let count = questions.len();
                let answers = connection.req_packed_commands(&questions, 0, count);
                Ok::<_, BusError>(answers.await?)
            };
            let asked = timeout(PATIENCE, asked).await;
            let late = || Err(BusError::Pool(format!("no answer within {PATIENCE:?}")));
            let answers = asked.unwrap_or_else(|_| late()).unwrap_or_else(|error| {
                tracing::debug!(slot = way.slot, %error, "a node did not answer");
                Vec::new()
            });
            let answers = answers.into_iter().map(Some);
            let answers = answers.chain(std::iter::repeat_with(|| None));
            let known = answers.map(|it| it.filter(|answer| !is_elsewhere(answer)));
            way.places.into_iter().zip(known).collect()
        }
    });
    asks.collect()
}
