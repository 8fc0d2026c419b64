//! Asking peers over their inboxes whether their control lanes run.

use crate::coordination::error::CoordinationError;
use crate::coordination::instances::Instances;
use crate::coordination::instances::gossip::{PING, Peer};
use crate::coordination::instances::instance::EMPTY_MAP;
use crate::streams::read::entries_of;
use redis::Value;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// How often answers are looked for while they are waited for.
const LOOKS: u32 = 10;

impl Instances {
    /// Pings the peers and waits that long at most for their answers; returns who answered.
    ///
    /// A ping that a peer has not got is not stored where there is no inbox, and goes away with the
    /// inbox.
    ///
    /// # Errors
    /// `Bus`.
    pub async fn ping_peers(
        &self,
        from: &str,
        peers: &[Peer],
        wait: Duration,
    ) -> Result<BTreeSet<String>, CoordinationError> {
        let mailbox = format!("ping-{:016x}", fastrand::u64(..));
        let mailbox = self.store.keys.reply("system", 0, &mailbox);
        let mut pings = redis::pipe();
        for peer in peers {
            let ping = pings.cmd("XADD").arg(self.store.keys.inbox(&peer.id));
            ping.arg(&["NOMKSTREAM", "*", "type", PING, "source", from])
                .arg(&["replyto", &mailbox])
                .arg("data")
                .arg(EMPTY_MAP);
        }
        self.store.ask::<Value>(&pings).await?;
        let asked = Instant::now();
        let mut answered = BTreeSet::new();
        while answered.len() < peers.len() && asked.elapsed() < wait {
            tokio::time::sleep(wait / LOOKS).await;
            let mut read = redis::pipe();
            read.cmd("XREVRANGE")
                .arg(&mailbox)
                .arg(&["+", "-", "COUNT"])
                .arg(2 * peers.len());
            let (reply,): (Value,) = self.store.ask(&read).await?;
            for entry in entries_of(reply)? {
                let source = entry
                    .get("source")
                    .and_then(|source| std::str::from_utf8(source).ok());
                let peer = peers.iter().find(|peer| Some(peer.id.as_str()) == source);
                answered.extend(peer.map(|peer| peer.id.clone()));
            }
        }
        let mut forget = redis::pipe();
        forget.cmd("UNLINK").arg(&mailbox);
        self.store.ask::<Value>(&forget).await?;
        Ok(answered)
    }
}
