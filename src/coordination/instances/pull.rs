//! Having all instances report now, over their inboxes.

use crate::connect::clock::whole_ms;
use crate::coordination::error::CoordinationError;
use crate::coordination::instances::Instances;
use crate::coordination::instances::instance::EMPTY_MAP;
use crate::streams::read::entries_of;
use redis::Value;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// The event by which an instance is asked to report.
pub const REPORT: &str = "system.report";
/// Instances asked, and answers read, in one round trip.
const PAGE: usize = 500;
/// The first pause before answers are looked for, and the longest.
const PAUSES: [Duration; 2] = [Duration::from_millis(2), Duration::from_millis(50)];

impl Instances {
    /// Asks all living instances that registered themselves, except for `from`, to report, and waits that long
    /// at most; returns who did not, by id. What they report is in the totals before they answer.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn pull(&self, from: &str, wait: Duration) -> Result<Vec<String>, CoordinationError> {
        let (now, mut ids) = self.living().await?;
        ids.retain(|id| id != from);
        let keys = &self.store.keys;
        let mailbox = format!("report-{:016x}", fastrand::u64(..));
        let mailbox = keys.reply("system", 0, &mailbox);
        let deadline = now + whole_ms(wait);
        let mut asked = 0;
        let began = Instant::now();
        for page in ids.chunks(PAGE) {
            let mut asks = redis::pipe();
            for id in page {
                let ask = asks.cmd("XADD").arg(keys.inbox(id));
                ask.arg(&["NOMKSTREAM", "*", "type", REPORT, "source", from])
                    .arg(&["replyto", &mailbox])
                    .arg("deadline")
                    .arg(deadline)
                    .arg("data")
                    .arg(EMPTY_MAP);
            }
            let stored: Vec<Option<Value>> = self.store.ask(&asks).await?;
            // Who has no inbox is no worker, or is on its way.
            asked += stored
                .iter()
                .flatten()
                .filter(|entry| **entry != Value::Nil)
                .count();
        }
        let mut pause = PAUSES[0];
        loop {
            let left = wait.saturating_sub(began.elapsed());
            let mut count = redis::pipe();
            count.cmd("XLEN").arg(&mailbox);
            let (answers,): (usize,) = self.store.ask(&count).await?;
            if answers >= asked || left.is_zero() {
                break;
            }
            tokio::time::sleep(pause.min(left)).await;
            pause = (2 * pause).min(PAUSES[1]);
        }
        let answered = self.answered(&mailbox).await?;
        Ok(ids
            .into_iter()
            .filter(|id| !answered.contains(id))
            .collect())
    }

    /// Who answered there that it did as it was asked.
    async fn answered(&self, mailbox: &str) -> Result<BTreeSet<String>, CoordinationError> {
        let mut answered = BTreeSet::new();
        let mut before = "+".to_owned();
        loop {
            let mut read = redis::pipe();
            read.cmd("XREVRANGE").arg(mailbox).arg(&before);
            read.arg("-").arg("COUNT").arg(PAGE);
            let (reply,): (Value,) = self.store.ask(&read).await?;
            let entries = entries_of(reply)?;
            let Some(last) = entries.last() else {
                break;
            };
            before = format!("({}", last.id);
            let done = entries
                .iter()
                .filter(|entry| entry.get("status") == Some(b"ok"));
            let sources = done.filter_map(|entry| std::str::from_utf8(entry.get("source")?).ok());
            answered.extend(sources.map(str::to_owned));
            if entries.len() < PAGE {
                break;
            }
        }
        let mut forget = redis::pipe();
        forget.cmd("UNLINK").arg(mailbox);
        self.store.ask::<Value>(&forget).await?;
        Ok(answered)
    }
}
