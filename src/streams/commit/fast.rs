//! Commits of a whole batch at once, in one transaction.

use super::settlement::{Receipt, Settlement, Worth, is_inbox};
use super::{Committer, REMEMBERED_REPLIES};
use crate::connect::clock::whole_ms;
use crate::connect::error::BusError;
use crate::connect::resp::wire::{Commands, Token, Tokens, server_error};
use crate::protocol::digits::Digits;
use std::collections::HashSet;
use std::time::Instant;

/// How it ended.
pub(super) enum Fast {
    /// Committed; which of the commands failed by themselves, and why.
    Done(Vec<(usize, String)>),
    /// Nothing was written: a counter moved, or a receipt is from before it did.
    Nothing,
    /// Nothing was written: the server refused a command before running any.
    Aborted(BusError),
}

impl Committer {
    /// Tries the whole batch in one transaction.
    pub(super) async fn fast(&mut self, batch: &[Settlement]) -> Result<Fast, BusError> {
        if self.wire.is_none() {
            self.arm().await?;
        }
        let now = Instant::now();
        if !batch.iter().all(|settlement| self.fits(settlement, now)) {
            return Ok(Fast::Nothing);
        }
        if !self.watches(batch) {
            // The counter moved before these were read, as another connection knew: this one looks again.
            self.transact(&[]).await?;
            if !self.watches(batch) {
                return Ok(Fast::Nothing);
            }
        }
        match self.transact(batch).await? {
            // It was touched, and stands where it stood: nobody took any of them.
            Fast::Nothing if self.watches(batch) => self.transact(batch).await,
            done => Ok(done),
        }
    }

    /// Whether its connection sees each taking over of any of these.
    fn watches(&self, batch: &[Settlement]) -> bool {
        let is_watched = |receipt: &Receipt| {
            self.claims
                .is_watched(&self.watched, receipt.stream, receipt.claims)
        };
        self.wire.is_some()
            && !self.is_lost()
            && batch
                .iter()
                .all(|settlement| is_watched(&settlement.receipt))
    }

    /// Runs the whole batch in one transaction, which does nothing if a claim counter moved since
    /// it was last watched.
    pub(super) async fn transact(&mut self, batch: &[Settlement]) -> Result<Fast, BusError> {
        if self.is_lost() {
            return Ok(Fast::Nothing);
        }
        let mut commands = std::mem::take(&mut self.commands);
        commands.add(&[b"MULTI"]);
        let now = self.claims.server_now();
        for (at, settlement) in batch.iter().enumerate() {
            let mut place = self.place_at(&settlement.receipt, now);
            // Trimming is a fifth of what a reply costs the server, and the last one's does for all.
            if let Some(next) = batch.get(at + 1)
                && settlement.replies_where(next)
            {
                place.reply_history = None;
            }
            settlement.effects(place, |effect| {
                if effect.worth != Worth::Instead {
                    commands.add(effect.words);
                }
            });
        }
        self.acknowledge(batch, &mut commands);
        self.forget_notes(batch, &mut commands);
        let told = self.prolong_replies(batch, &mut commands);
        let queued = commands.len();
        commands.add(&[b"EXEC"]);
        let least = self.claims.watch(&mut commands);
        let Some(wire) = &mut self.wire else {
            return Ok(Fast::Nothing);
        };
        let sent = Instant::now();
        wire.send(&mut commands).await?;
        self.commands = commands;
        for number in 0..queued {
            wire.reply().await?;
            if number == 0 {
                self.distance.saw(sent.elapsed());
            }
        }
        let executed = executed(wire.reply().await?)?;
        self.used = Instant::now();
        // What was executed stays so, whatever the rest of the answer says.
        if !matches!(
            self.claims.watched(wire, &mut self.watched, &least).await,
            Ok(true)
        ) {
            // Gone with a flushed database: a counter that does not exist cannot be watched. Or the
            // link broke, or the server refused.
            self.wire = None;
        }
        if matches!(executed, Fast::Done(_)) {
            self.remember(told);
        }
        Ok(executed)
    }

    /// Adds one acknowledgement for each stream.
    fn acknowledge(&self, batch: &[Settlement], commands: &mut Commands) {
        let mut receipts: Vec<&Receipt> =
            batch.iter().map(|settlement| &settlement.receipt).collect();
        receipts.sort_by_key(|receipt| receipt.stream);
        for receipts in receipts.chunk_by(|a, b| a.stream == b.stream) {
            commands.begin(3 + receipts.len());
            commands.word(b"XACK");
            commands.word(self.routes[receipts[0].stream].events.as_bytes());
            commands.word(self.group.as_bytes());
            for receipt in receipts {
                commands.word(receipt.entry_text().as_ref());
            }
        }
    }

    /// What waited in its place in an owned partition waits no more.
    fn forget_notes(&self, batch: &[Settlement], commands: &mut Commands) {
        let Some(fence) = self.claims.fence() else {
            return;
        };
        let noted = fence.noted_of(batch.iter().map(|settlement| settlement.receipt.entry));
        if !noted.is_empty() {
            commands.begin(2 + noted.len());
            commands.word(b"HDEL");
            commands.word(fence.held().as_bytes());
            for entry in noted {
                commands.word(entry.to_string().as_bytes());
            }
        }
    }

    /// Reply streams go away some time after the last reply. Each batch gives one to those that have
    /// none (they may be new, or made again behind a requester that went away); now and then it is
    /// renewed. Returns the streams for which it is.
    pub(super) fn prolong_replies(
        &self,
        batch: &[Settlement],
        commands: &mut Commands,
    ) -> Vec<String> {
        let ttl = Digits::of(whole_ms(self.reply_ttl));
        let (mut seen, mut told) = (HashSet::new(), Vec::new());
        let mut last = "";
        for reply in batch.iter().filter_map(|s| s.reply.as_ref()) {
            let Some(stream) = &reply.to else {
                continue;
            };
            // Most replies of a batch go where the one before went.
            if stream == last || is_inbox(stream) || !seen.insert(stream.as_str()) {
                continue;
            }
            last = stream;
            commands.add(&[b"PEXPIRE", stream.as_bytes(), ttl.as_ref(), b"NX"]);
            let told_at = self.replies.get(stream);
            if told_at.is_none_or(|at| at.elapsed() >= self.reply_ttl / 4) {
                commands.add(&[b"PEXPIRE", stream.as_bytes(), ttl.as_ref(), b"GT"]);
                told.push(stream.clone());
            }
        }
        told
    }

    pub(super) fn remember(&mut self, told: Vec<String>) {
        if self.replies.len() + told.len() > REMEMBERED_REPLIES {
            self.replies.clear();
        }
        let now = Instant::now();
        self.replies
            .extend(told.into_iter().map(|stream| (stream, now)));
    }
}

/// What the answer of `EXEC` says.
fn executed(mut answer: Tokens<'_>) -> Result<Fast, BusError> {
    let length = match answer.token()? {
        Token::Array(length) => length,
        Token::Nil => return Ok(Fast::Nothing),
        Token::Error(text) => return Ok(Fast::Aborted(server_error(text))),
        _ => return Err(BusError::Reply { what: "EXEC" }),
    };
    let mut failed = Vec::new();
    for number in 0..length {
        match answer.token()? {
            Token::Error(text) => {
                failed.push((number, String::from_utf8_lossy(text).into_owned()));
            }
            // Nothing was added: the stream is not there.
            Token::Nil => failed.push((number, String::new())),
            Token::Array(length) => {
                for _ in 0..length {
                    answer.skip()?;
                }
            }
            _ => {}
        }
    }
    Ok(Fast::Done(failed))
}
