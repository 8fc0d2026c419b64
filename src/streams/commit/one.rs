//! Commits that go entry by entry.

use crate::connect::clock::whole_ms;
use crate::connect::error::BusError;
use crate::connect::resp::wire::Commands;
use crate::connect::script::{script, script_with};
use crate::protocol::digits::Digits;
use crate::streams::claim;
use crate::streams::commit::Committer;
use crate::streams::commit::fast::Fast;
use crate::streams::commit::lost::Unwritten;
use crate::streams::commit::settlement::{Disposition, Receipt, Settlement, Worth, is_inbox};
use crate::streams::fence::FENCED;
use redis::aio::MultiplexedConnection;
use redis::{Script, Value};
use std::sync::LazyLock;

static COMMIT: LazyLock<Script> = LazyLock::new(|| script(include_str!("commit.lua")));

static COMMIT_OWNED: LazyLock<Script> =
    LazyLock::new(|| script_with(&[FENCED], include_str!("commit.lua")));

/// The most words that a script may unpack into one command, with room to spare.
const SCRIPT_WORDS: usize = 4_000;
/// Tries of a commit that is too long for a script, each undone by a takeover.
const LARGE_TRIES: u32 = 16;

/// How one settlement ended.
pub(crate) enum Slow {
    Committed,
    /// Committed, with a dead letter in the place of a reply that could not be written.
    Untold,
    Fenced,
    Outdated,
    Refused(String),
}

/// A connection whose `Debug` would show too much.
pub(crate) struct Scripts {
    /// The primary that it leads to.
    generation: u64,
    connection: MultiplexedConnection,
}

impl Committer {
    /// Commits one settlement by the script.
    pub(crate) async fn slow(&mut self, settlement: &Settlement) -> Result<Slow, BusError> {
        if self.wire.is_none() {
            self.arm().await?;
        }
        let receipt = settlement.receipt;
        let fence = self.claims.fence().cloned();
        let mut call = match fence {
            None => COMMIT.prepare_invoke(),
            Some(_) => COMMIT_OWNED.prepare_invoke(),
        };
        call.key(&self.routes[receipt.stream].events);
        call.arg(&self.group)
            .arg(&self.consumer)
            .arg(receipt.entry_text().as_ref())
            .arg(receipt.deliveries);
        let mut effects = Vec::new();
        let mut fits = true;
        settlement.effects(self.place(&receipt), |effect| {
            fits &= effect.words.len() <= SCRIPT_WORDS;
            call.key(effect.key());
            call.arg(effect.key_type).arg(effect.worth.as_str());
            call.arg(effect.words.len() - 1).arg(effect.words[0]);
            for word in &effect.words[2..] {
                call.arg(*word);
            }
            effects.push((effect.worth, effect.stream(), effect.fields()));
        });
        if !fits {
            return self.large(settlement).await;
        }
        // In the same step: its answer may be lost, and a reply stream would live for good.
        let reply = settlement.reply.as_ref().and_then(|r| r.to.as_deref());
        if let Some(reply) = reply.filter(|reply| !is_inbox(reply)) {
            let ttl = Digits::of(whole_ms(self.reply_ttl));
            call.key(reply).arg("stream");
            call.arg(Worth::Optional.as_str()).arg(3);
            call.arg("PEXPIRE").arg(ttl.as_ref()).arg("NX");
        }
        if let Some(fence) = &fence {
            for entry in fence.noted_of([receipt.entry].into_iter()) {
                call.key(fence.held()).arg("hash");
                call.arg(Worth::Optional.as_str()).arg(2);
                call.arg("HDEL").arg(entry.to_string());
            }
            fence.add_to(&mut call);
        }
        let mut scripts = self.scripts().await?;
        if !self.is_of_this_epoch(settlement) {
            return Ok(Slow::Outdated);
        }
        let answer: Vec<Value> = call.invoke_async(&mut scripts).await?;
        match answer.as_slice() {
            [Value::Int(1), left_out @ ..] => {
                self.tell_replies(settlement).await;
                let left_out = left_out.chunks_exact(2).filter_map(|pair| {
                    let [Value::Int(number), Value::BulkString(message)] = pair else {
                        return None;
                    };
                    let at = usize::try_from(*number).ok()?.checked_sub(1)?;
                    Some((effects.get(at)?, message))
                });
                let untold = matches!(settlement.disposition, Disposition::Told(_));
                let mut lost = Vec::new();
                let mut buried = false;
                for ((worth, stream, fields), message) in left_out {
                    match worth {
                        // The letter is written instead.
                        Worth::Optional | Worth::There if untold => buried = true,
                        // Nobody waits for it.
                        Worth::There if message.starts_with(b"NOKEY") => {}
                        _ => lost.push(Unwritten {
                            receipt,
                            stream: stream.clone(),
                            fields: fields.clone(),
                            message: String::from_utf8_lossy(message).into_owned(),
                        }),
                    }
                }
                self.bury(lost).await;
                if buried {
                    return Ok(Slow::Untold);
                }
                Ok(Slow::Committed)
            }
            [Value::Int(0)] => Ok(Slow::Fenced),
            [
                Value::Int(-1),
                Value::Int(number),
                Value::BulkString(message),
            ] => Ok(Slow::Refused(format!(
                "effect {number} cannot be written: {}",
                String::from_utf8_lossy(message)
            ))),
            _ => Err(BusError::Reply { what: "commit.lua" }),
        }
    }

    async fn scripts(&mut self) -> Result<MultiplexedConnection, BusError> {
        let stands = |scripts: &Scripts| self.connector.check(scripts.generation).is_ok();
        if let Some(scripts) = self.scripts.take().filter(stands) {
            return Ok(self.scripts.insert(scripts).connection.clone());
        }
        let generation = self.connector.generation();
        let connection = self.connector.dedicated().await?;
        let scripts = Scripts {
            generation,
            connection,
        };
        Ok(self.scripts.insert(scripts).connection.clone())
    }

    async fn tell_replies(&mut self, settlement: &Settlement) {
        let mut commands = Commands::default();
        let told = self.prolong_replies(std::slice::from_ref(settlement), &mut commands);
        let Some(wire) = &mut self.wire else {
            return;
        };
        let sent = async {
            let count = commands.len();
            if count > 0 {
                wire.send(&mut commands).await?;
            }
            for _ in 0..count {
                wire.reply().await?;
            }
            Ok::<_, BusError>(())
        };
        // Best effort: the next reply to that stream tells the server again.
        match sent.await {
            Ok(()) => self.remember(told),
            Err(_) => self.wire = None,
        }
    }

    /// Commits one settlement with more words than a script can write at a time: asks who holds the
    /// entry, then runs the transaction, which a takeover since would undo.
    async fn large(&mut self, settlement: &Settlement) -> Result<Slow, BusError> {
        let Receipt {
            stream,
            entry,
            deliveries,
            ..
        } = settlement.receipt;
        for _ in 0..LARGE_TRIES {
            if self.wire.is_none() {
                self.arm().await?;
            }
            if self.is_lost() {
                return Ok(Slow::Fenced);
            }
            let routes = self.routes.clone();
            let (events, group) = (&routes[stream].events, self.group.clone());
            let mut scripts = self.scripts().await?;
            if !self.is_of_this_epoch(settlement) {
                return Ok(Slow::Outdated);
            }
            let page = claim::pending(&mut scripts, events, &group, entry, 1, None);
            let held = page.await?.into_iter().next().is_some_and(|pending| {
                pending.id == entry
                    && pending.consumer == self.consumer
                    && pending.deliveries == deliveries
            });
            if !held {
                return Ok(Slow::Fenced);
            }
            let batch = std::slice::from_ref(settlement);
            match self.transact(batch).await? {
                Fast::Done(failed) => {
                    self.make_good(batch, &failed).await;
                    return Ok(Slow::Committed);
                }
                Fast::Nothing => {}
                Fast::Aborted(error) => return Err(error),
            }
        }
        Ok(Slow::Refused(
            "entries of this consumer are taken over all the time".into(),
        ))
    }
}
