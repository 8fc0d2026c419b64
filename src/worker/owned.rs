//! Owning a partition of a domain whose subjects have an order: what its lane and whoever renews the lease share.
//!
//! The lease is the owner's for as long as the node says; the fence is what keeps it safe. Each change of owner raises the
//! fence, and what was sent under an earlier one changes nothing.

mod leases;
mod owning;
mod spread;
mod telling;

pub(super) use owning::{Next, Ordered, Owning, SOON};
pub(super) use telling::is_of_a_free_one;

use super::shared::Shared;
use crate::mutex::locked;
use crate::streams::own::{self, OwnKeys};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// One partition as long as this worker owns it. Whoever owns it again has another one, with a higher fence.
#[derive(Debug)]
pub(super) struct Ownership {
    /// Rises with each change of owner; must be `fence` wherever an entry is settled.
    pub fence_key: String,
    /// What waits in its place: entry to attempt, due time and code.
    pub held_key: String,
    /// Who owns it, and until when.
    pub owner_key: String,
    /// What the fence was raised to for this ownership.
    pub fence: u64,
    /// Somebody else owns it, or may: for good.
    pub lost: CancellationToken,
    until: Mutex<Until>,
}

/// How long a lease lasts, by the own clock.
#[derive(Clone, Copy, Debug)]
struct Until {
    /// Something may be started until then.
    starts: Instant,
    /// From then on it is over.
    ends: Instant,
}

impl Ownership {
    /// Begins with a lease that was asked for then, for so long.
    pub(super) fn new(
        [owner_key, fence_key, held_key]: [String; 3],
        fence: u64,
        asked: Instant,
        ttl: Duration,
    ) -> Self {
        Self {
            fence_key,
            held_key,
            owner_key,
            fence,
            lost: CancellationToken::new(),
            until: Mutex::new(Until::of(asked, ttl)),
        }
    }

    /// Whether something may be started. Where the lease is over it may be again, once it was renewed.
    pub(super) fn may_start(&self) -> bool {
        !self.lost.is_cancelled() && Instant::now() < self.until()
    }

    /// Until when something may be started, unless it is renewed.
    pub(super) fn until(&self) -> Instant {
        locked(&self.until).starts
    }

    /// Whether the lease is over, so that another one may own it by now.
    pub(super) fn is_over(&self) -> bool {
        Instant::now() >= locked(&self.until).ends
    }

    /// When it is over, unless it is renewed.
    pub(super) fn ends(&self) -> Instant {
        locked(&self.until).ends
    }

    /// Notes that the node renewed it for so long, when it was asked then.
    pub(super) fn renewed(&self, asked: Instant, ttl: Duration) {
        let mut until = locked(&self.until);
        let new = Until::of(asked, ttl);
        until.starts = until.starts.max(new.starts);
        until.ends = until.ends.max(new.ends);
    }

    /// Somebody else owns it: nothing is started, and nothing that is sent changes anything.
    pub(super) fn lose(&self) {
        self.lost.cancel();
    }
}

impl Ownership {
    /// The keys by which it is renewed.
    pub(super) fn keys(&self) -> OwnKeys {
        OwnKeys {
            owner: self.owner_key.clone(),
            fence: self.fence_key.clone(),
        }
    }
}

/// Lets the partition of a lane go that has ended, so that nobody waits for the lease to end; whether others may have it.
pub(super) async fn leave(lane: &Shared, process: &str) -> bool {
    let Some(owned) = lane
        .owned
        .as_ref()
        .filter(|owned| !owned.lost.is_cancelled())
    else {
        return false;
    };
    owned.lose();
    let left = async {
        let mut connection = lane.connector.pooled().await?;
        own::leave(&mut connection, &owned.keys(), process, owned.fence).await
    };
    left.await.unwrap_or_else(|error| {
        tracing::warn!(owner = owned.owner_key, %error, "the partition was not let go: others wait until the lease ends");
        false
    })
}

/// Tells the others that they may have the partition of a lane.
pub(super) async fn tell_left(lane: &Shared) {
    telling::left(lane).await;
}

impl Until {
    /// The node counts from later than it was asked; a clock that is a tenth faster is not believed to be right.
    fn of(asked: Instant, ttl: Duration) -> Self {
        Self {
            starts: asked + ttl * 9 / 10,
            ends: asked + ttl,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> [String; 3] {
        ["owner", "fence", "held"].map(str::to_owned)
    }

    #[test]
    fn nothing_is_started_after_nine_tenths_of_the_lease_until_it_is_renewed() {
        let ttl = Duration::from_secs(1000);
        let Some(long_ago) = Instant::now().checked_sub(ttl * 9 / 10) else {
            return;
        };
        let owned = Ownership::new(keys(), 7, long_ago, ttl);
        assert!(!owned.may_start() && !owned.is_over());
        owned.renewed(Instant::now(), ttl);
        assert!(owned.may_start());
        // An answer to an earlier question takes nothing away.
        owned.renewed(long_ago, ttl);
        assert!(owned.may_start());
    }

    #[test]
    fn what_is_lost_never_starts_anything_again() {
        let ttl = Duration::from_secs(1000);
        let owned = Ownership::new(keys(), 7, Instant::now(), ttl);
        assert!(owned.may_start());
        owned.lose();
        owned.renewed(Instant::now(), ttl);
        assert!(!owned.may_start() && owned.lost.is_cancelled());
    }
}
