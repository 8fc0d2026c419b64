//! The raw loop: what the server can do at the most.
//!
//! The bare loop with hand-written RESP: `COUNT` 1000, the next read asked for before the last one is
//! answered, three batches outstanding or four where the server is far, one variadic `XACK` a batch and stream. Its replies have the
//! fields of a worker's, and only the last of a batch trims. It decodes and fences nothing. Only `bench`
//! runs it.

use crate::bench::bare::{COUNT, OUTSTANDING, PIPELINE, TIME, reply_kind};
use crate::bench::load::{Load, Race, answered, payload};
use convoke::connect::connector::Connector;
use convoke::connect::error::BusError;
use convoke::connect::resp::wire::{Commands, Token, Tokens, Wire, server_error};
use convoke::protocol::digits::Digits;
use std::collections::VecDeque;
use tokio::sync::mpsc;

/// Reads that are asked for at a time.
const READS: usize = 2;

/// The ids of some entries of one stream, as they arrived.
struct Batch {
    stream: usize,
    ids: Vec<u8>,
    ends: Vec<usize>,
}

impl Batch {
    fn ids(&self) -> impl Iterator<Item = &[u8]> {
        let begins = [0].into_iter().chain(self.ends.iter().copied());
        begins
            .zip(&self.ends)
            .map(|(begin, &end)| &self.ids[begin..end])
    }

    fn len(&self) -> usize {
        self.ends.len()
    }
}

/// Consumes events until all of the race are taken, `most` batches outstanding, and replies to each if asked to.
///
/// # Errors
/// Whatever the server answers.
pub(crate) async fn consume(
    load: &Load,
    connector: &Connector,
    race: &Race,
    consumer: &str,
    reply: bool,
    most: usize,
) -> Result<(), BusError> {
    let (batches, arrived) = mpsc::channel(1);
    let reader = connector.wire().await?;
    let writer = connector.wire().await?;
    tokio::try_join!(
        read(load, reader, race, consumer, batches),
        settle(load, writer, race, reply.then_some(consumer), arrived, most),
    )?;
    Ok(())
}

async fn read(
    load: &Load,
    mut wire: Wire,
    race: &Race,
    consumer: &str,
    batches: mpsc::Sender<Vec<Batch>>,
) -> Result<(), BusError> {
    let count = Digits::of((COUNT / load.routes.len()).max(1) as u64);
    let mut words: Vec<&[u8]> = vec![b"XREADGROUP", b"GROUP", load.group.as_bytes()];
    words.extend([consumer.as_bytes(), b"COUNT", count.as_ref(), b"STREAMS"]);
    words.extend(load.routes.iter().map(|route| route.events.as_bytes()));
    words.extend(load.routes.iter().map(|_| &b">"[..]));
    let (mut command, mut asked) = (Commands::default(), 0);
    loop {
        while asked < READS && race.taken() < race.total {
            command.add(&words);
            wire.send(&mut command).await?;
            asked += 1;
        }
        if asked == 0 {
            return Ok(());
        }
        asked -= 1;
        let arrived = ids(load, wire.reply().await?)?;
        race.take(arrived.iter().map(|batch| batch.len() as u64).sum());
        // The other half tells why it ended.
        if !arrived.is_empty() && batches.send(arrived).await.is_err() {
            return Ok(());
        }
    }
}

fn ids(load: &Load, mut reply: Tokens<'_>) -> Result<Vec<Batch>, BusError> {
    const SHAPE: BusError = BusError::Reply { what: "XREADGROUP" };
    let streams = match reply.token()? {
        Token::Nil => 0,
        Token::Array(streams) => streams,
        Token::Error(text) => return Err(server_error(text)),
        _ => return Err(SHAPE),
    };
    let mut batches = Vec::with_capacity(streams.min(load.routes.len()));
    // They come in the order in which they were asked for.
    let mut names = load.routes.iter().enumerate();
    for _ in 0..streams {
        let (Token::Array(2), Token::Bulk(name), Token::Array(entries)) =
            (reply.token()?, reply.token()?, reply.token()?)
        else {
            return Err(SHAPE);
        };
        let found = names.find(|(_, route)| route.events.as_bytes() == name);
        let mut batch = Batch {
            stream: found.ok_or(SHAPE)?.0,
            ids: Vec::with_capacity(entries.min(COUNT) * 20),
            ends: Vec::with_capacity(entries.min(COUNT)),
        };
        for _ in 0..entries {
            let (Token::Array(2), Token::Bulk(id)) = (reply.token()?, reply.token()?) else {
                return Err(SHAPE);
            };
            batch.ids.extend_from_slice(id);
            batch.ends.push(batch.ids.len());
            reply.skip()?;
        }
        batches.push(batch);
    }
    Ok(batches)
}

async fn settle(
    load: &Load,
    mut wire: Wire,
    race: &Race,
    replies_as: Option<&str>,
    mut arrived: mpsc::Receiver<Vec<Batch>>,
    most: usize,
) -> Result<(), BusError> {
    let mut commands = Commands::default();
    let replies = replies_as.map(|consumer| Replies::new(load, consumer));
    // How many replies are still to come, and how many events they are for.
    let mut outstanding: VecDeque<(usize, usize)> = VecDeque::new();
    let mut comes_more = true;
    while comes_more || !outstanding.is_empty() {
        let may_send = comes_more && outstanding.len() < most;
        // What arrives while answers are awaited is sent at once.
        let batches = tokio::select! {
            biased;
            batches = arrived.recv(), if may_send => batches,
            answered = answers(&mut wire, &mut outstanding), if !outstanding.is_empty() => {
                race.settle(answered? as u64);
                continue;
            }
        };
        let Some(batches) = batches else {
            comes_more = false;
            continue;
        };
        for (at, batch) in batches.iter().enumerate() {
            if let Some(replies) = &replies {
                replies.add(batch, at + 1 == batches.len(), &mut commands);
            }
            acknowledge(load, batch, &mut commands);
        }
        outstanding.push_back((commands.len(), batches.iter().map(Batch::len).sum()));
        wire.send(&mut commands).await?;
    }
    Ok(())
}

/// Takes in the replies to the oldest batch that is outstanding; how many events it had. Cancelled, it goes on where it
/// was.
async fn answers(
    wire: &mut Wire,
    outstanding: &mut VecDeque<(usize, usize)>,
) -> Result<usize, BusError> {
    while let Some((replies @ 1.., _)) = outstanding.front_mut() {
        answered(wire).await?;
        *replies -= 1;
    }
    let oldest = outstanding.pop_front();
    Ok(oldest.map_or(0, |(_, events)| events))
}

/// What the replies of one consumer have in common.
struct Replies<'a> {
    to: &'a [u8],
    consumer: &'a [u8],
    history: Digits,
    /// The type of the replies to each stream's events.
    kinds: Vec<String>,
}

impl<'a> Replies<'a> {
    fn new(load: &'a Load, consumer: &'a str) -> Self {
        Self {
            to: load.reply_to.as_bytes(),
            consumer: consumer.as_bytes(),
            history: Digits::of(load.history),
            kinds: load.kinds.iter().map(|kind| reply_kind(kind)).collect(),
        }
    }

    /// Adds the replies to a batch; with `trims`, the last one trims.
    fn add(&self, batch: &Batch, trims: bool, commands: &mut Commands) {
        let kind = self.kinds[batch.stream].as_bytes();
        let last = batch.len() - 1;
        for (at, id) in batch.ids().enumerate() {
            let time = id.split(|&b| b == b'-').next().unwrap_or_default();
            let trims = trims && at == last;
            commands.begin(if trims { 18 } else { 15 });
            commands.word(b"XADD");
            commands.word(self.to);
            if trims {
                for word in [&b"MAXLEN"[..], b"~", self.history.as_ref()] {
                    commands.word(word);
                }
            }
            let fields: [&[u8]; 13] = [
                b"*",
                b"correlationid",
                id,
                b"type",
                kind,
                b"status",
                b"ok",
                b"source",
                self.consumer,
                b"time",
                time,
                b"data",
                &[0xc0],
            ];
            for word in fields {
                commands.word(word);
            }
        }
    }
}

fn acknowledge(load: &Load, batch: &Batch, commands: &mut Commands) {
    commands.begin(3 + batch.len());
    commands.word(b"XACK");
    commands.word(load.routes[batch.stream].events.as_bytes());
    commands.word(load.group.as_bytes());
    for id in batch.ids() {
        commands.word(id);
    }
}

/// Publishes events in pipelines, three of them outstanding.
///
/// # Errors
/// Whatever the server answers.
pub(crate) async fn publish(
    load: &Load,
    connector: &Connector,
    events: u64,
) -> Result<(), BusError> {
    let mut wire = connector.wire().await?;
    let mut commands = Commands::default();
    let mut outstanding = VecDeque::new();
    let (stream, kind) = (&load.routes[0].events, &load.kinds[0]);
    let mut left = events;
    while left > 0 || !outstanding.is_empty() {
        if left > 0 && outstanding.len() < OUTSTANDING {
            let now = left.min(PIPELINE);
            for n in 0..now {
                let data = payload(left - n, load.payload);
                let (stream, kind) = (stream.as_bytes(), kind.as_bytes());
                commands.add(&[
                    b"XADD",
                    stream,
                    b"*",
                    b"type",
                    kind,
                    b"data",
                    &data,
                    b"time",
                    TIME.as_bytes(),
                ]);
            }
            wire.send(&mut commands).await?;
            left -= now;
            outstanding.push_back(now);
        } else if let Some(replies) = outstanding.pop_front() {
            for _ in 0..replies {
                answered(&mut wire).await?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use convoke::protocol::entry::EntryId;
    use convoke::protocol::keys::Keys;
    use convoke::streams::commit::settlement::{
        Disposition, Place, Receipt, ReplyEntry, Settlement,
    };

    /// The commands, as their words.
    fn words(commands: &Commands) -> Vec<Vec<Vec<u8>>> {
        let mut tokens = Tokens::new(commands.bytes());
        let mut all = Vec::new();
        for _ in 0..commands.len() {
            let Ok(Token::Array(length)) = tokens.token() else {
                panic!("no command");
            };
            let word = |_| match tokens.token() {
                Ok(Token::Bulk(word)) => word.to_vec(),
                other => panic!("{other:?}"),
            };
            all.push((0..length).map(word).collect());
        }
        all
    }

    #[test]
    fn its_replies_are_those_of_a_worker_and_trim_as_seldom() {
        let keys = Keys::new("cb").unwrap();
        let id = EntryId { ms: 7, seq: 1 };
        let load = Load {
            routes: vec![keys.route("bench0", 0)],
            kinds: vec!["bench0.work".into()],
            reply_to: keys.reply("bench", 0, "bench"),
            group: "workers".into(),
            history: 10_000,
            payload: 34,
        };
        let batch = Batch {
            stream: 0,
            ids: b"7-17-17-1".to_vec(),
            ends: vec![3, 6, 9],
        };
        let mut raw = Commands::default();
        Replies::new(&load, "bench-0").add(&batch, true, &mut raw);

        let settlement = Settlement {
            receipt: Receipt {
                stream: 0,
                entry: id,
                deliveries: 1,
                claims: 0,
                since: std::time::Instant::now(),
            },
            reply: Some(ReplyEntry {
                to: Some(load.reply_to.clone()),
                correlation_id: id.to_string(),
                kind: "bench0.work.result".into(),
                status: "ok",
                data: vec![0xc0],
                content: None,
            }),
            publications: Vec::new(),
            disposition: Disposition::Done,
            epoch: None,
            notes: Vec::new(),
        };
        let mut worker = Commands::default();
        for reply_history in [None, None, Some(load.history)] {
            let place = Place {
                route: &load.routes[0],
                consumer: "bench-0",
                now: 7,
                outbox: false,
                reply_history,
            };
            settlement.effects(place, |effect| worker.add(effect.words));
        }
        assert_eq!(words(&raw), words(&worker));
    }
}
