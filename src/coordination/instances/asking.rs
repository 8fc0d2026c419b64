//! Asking one instance over its inbox to do something, and looking whether it has.

use crate::connect::clock::whole_ms;
use crate::coordination::error::CoordinationError;
use crate::coordination::instances::Instances;
use crate::protocol::event::Entry;
use crate::streams::read::entries_of;
use redis::Value;
use std::time::{Duration, Instant};

/// The first pause before an answer is looked for, and the longest.
const PAUSES: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(50)];

/// What one instance asks of another.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// Who asks.
    pub from: &'a str,
    /// The event's type.
    pub kind: &'a str,
    /// The event's id.
    pub id: &'a str,
    /// Its payload.
    pub data: &'a [u8],
}

impl Instances {
    /// Asks an instance over its inbox, to be begun by then, in Unix ms on the server; false: it has none, so it is gone,
    /// or no worker.
    async fn ask_to(
        &self,
        id: &str,
        ask: Ask<'_>,
        mailbox: &str,
        deadline: u64,
    ) -> Result<bool, CoordinationError> {
        let mut asks = redis::pipe();
        let add = asks.cmd("XADD").arg(self.store.keys.inbox(id));
        add.arg(&["NOMKSTREAM", "*", "type", ask.kind, "source", ask.from])
            .arg(&["id", ask.id, "replyto", mailbox])
            .arg("deadline")
            .arg(deadline)
            .arg("data")
            .arg(ask.data);
        let (stored,): (Value,) = self.store.ask(&asks).await?;
        Ok(stored != Value::Nil)
    }

    /// The reply, if it is there.
    async fn answer_in(&self, mailbox: &str) -> Result<Option<Entry>, CoordinationError> {
        let mut read = redis::pipe();
        read.cmd("XREVRANGE").arg(mailbox);
        read.arg(&["+", "-", "COUNT", "1"]);
        let (reply,): (Value,) = self.store.ask(&read).await?;
        Ok(entries_of(reply)?.into_iter().next())
    }

    /// Removes the mailbox; where that fails it lapses.
    async fn forget(&self, mailbox: &str) -> Result<(), CoordinationError> {
        let mut forget = redis::pipe();
        forget.cmd("UNLINK").arg(mailbox);
        self.store.ask::<Value>(&forget).await?;
        Ok(())
    }

    /// Asks an instance over its inbox, and waits that long at most; its reply, if there is one by then.
    ///
    /// # Errors
    /// `Bus`. Then it may do it all the same.
    pub async fn ask_one(
        &self,
        id: &str,
        ask: Ask<'_>,
        wait: Duration,
    ) -> Result<Option<Entry>, CoordinationError> {
        // One that nobody else has.
        let name = format!("ask-{:016x}", fastrand::u64(..));
        let mailbox = self.store.keys.reply("system", 0, &name);
        let deadline = self.store.now().await? + whole_ms(wait);
        if !self.ask_to(id, ask, &mailbox, deadline).await? {
            return Ok(None);
        }
        let (began, mut pause) = (Instant::now(), PAUSES[0]);
        let mut answer = None;
        while answer.is_none() && began.elapsed() < wait {
            tokio::time::sleep(pause).await;
            pause = (2 * pause).min(PAUSES[1]);
            answer = self.answer_in(&mailbox).await?;
        }
        self.forget(&mailbox).await?;
        Ok(answer)
    }

    /// Who was elected last, and the term, by one read; the lead may be over.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn elected(&self) -> Result<Option<(String, u64)>, CoordinationError> {
        let mut read = redis::pipe();
        let leader = read.cmd("HMGET").arg(self.store.keys.leader());
        leader.arg(&["id", "term"]);
        let ((id, term),): ((Option<String>, Option<u64>),) = self.store.ask(&read).await?;
        Ok(id.zip(term))
    }
}
