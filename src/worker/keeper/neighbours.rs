//! Asks the neighbours whether they live, where `system.heartbeat` is answered so, and itself whether it can be asked.

use super::{Chores, peers};
use crate::coordination::error::CoordinationError;
use crate::coordination::instances::gossip::{Observed, Opinion, PING, Peer};
use crate::coordination::instances::neighbours::{LASTS, LEAST};
use crate::protocol::pattern::{Pattern, Patterned};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Rounds in a row in which a neighbour must have been silent.
const ROUNDS: u32 = 3;

/// What this instance knows of those around it.
#[derive(Debug, Default)]
pub(super) struct Neighbours {
    asked: HashMap<String, Asked>,
    /// Whether they were asked in this round.
    done: bool,
    /// Whether an own pulse lasts, since they ask this one as well.
    pub(super) lasting: bool,
}

/// A neighbour.
#[derive(Clone, Copy, Debug)]
struct Asked {
    /// When it was asked last and answered; the first time, if it never has.
    since: Instant,
    /// How often it has not answered since.
    missed: u32,
    /// Whether this one said that it suspects it.
    accused: bool,
}

impl Asked {
    fn first() -> Self {
        Self {
            since: Instant::now(),
            missed: 0,
            accused: false,
        }
    }

    /// Whether it was silent for so long.
    fn is_silent(&self, ttl: Duration) -> bool {
        self.missed >= ROUNDS && self.since.elapsed() >= ttl
    }
}

impl Neighbours {
    /// One round, where the pattern is this one. Returns whether this instance need not pulse by itself in it.
    pub(super) async fn round(&mut self, chores: &Chores) -> bool {
        self.done = false;
        self.lasting = false;
        let answers = &chores.registering.capabilities;
        let answers = answers.iter().any(|kind| kind == PING);
        let pattern = chores.patterns.of(Patterned::Heartbeat);
        if pattern != Pattern::Distributed {
            self.asked.clear();
            return false;
        }
        // Who leads has its pulse renew the lead.
        if chores.leads() || !answers {
            return false;
        }
        let began = Instant::now();
        let spared = self.try_round(chores).await;
        let (asked, age) = match spared {
            Ok(None) => return false,
            Ok(Some((spared, age))) => (Ok(spared), Some(age)),
            Err(error) => {
                tracing::debug!(%error, "neighbours were not asked; pulsing instead");
                (Err(error), None)
            }
        };
        let of = (Patterned::Heartbeat, Pattern::Distributed);
        chores.patterns.answered(of, began, &asked, |_| age);
        self.lasting &= matches!(asked, Ok(true));
        self.lasting
    }

    /// Whether this one answers, and how old its own pulse is; `None`: it has to pulse by itself.
    async fn try_round(
        &mut self,
        chores: &Chores,
    ) -> Result<Option<(bool, Duration)>, CoordinationError> {
        let ttl = chores.settings.heartbeat_ttl;
        let look = chores.instances.look_around(chores.id());
        let around = chores.within(ttl / 6, look).await?;
        self.lasting = around.neighbours.len() >= LEAST;
        let left = around.left.filter(|left| self.lasting && *left >= ttl);
        let Some(left) = left else {
            return Ok(None);
        };
        let answers = self.ask(chores, around.neighbours, true).await?;
        Ok(Some((answers, (ttl * LASTS).saturating_sub(left))))
    }

    /// What follows a pulse of its own: the neighbours are asked, if they were not in this round.
    pub(super) async fn follow(
        &mut self,
        chores: &Chores,
        watch: &[Peer],
    ) -> Result<(), CoordinationError> {
        let pattern = chores.patterns.of(Patterned::Heartbeat);
        if pattern == Pattern::Distributed && !self.done {
            let watch = watch.iter().map(|peer| peer.id.clone()).collect();
            self.ask(chores, watch, false).await?;
        }
        Ok(())
    }

    /// Asks them, and with `itself` this instance too; says what it thinks of those who do not answer. Returns whether
    /// this instance answered.
    async fn ask(
        &mut self,
        chores: &Chores,
        neighbours: Vec<String>,
        itself: bool,
    ) -> Result<bool, CoordinationError> {
        self.done = true;
        let (me, ttl) = (chores.id(), chores.settings.heartbeat_ttl);
        self.asked.retain(|id, _| neighbours.contains(id));
        let of = |id: &str| Peer {
            id: id.to_owned(),
            left: Duration::ZERO,
        };
        let mut asked: Vec<Peer> = neighbours.iter().map(|id| of(id)).collect();
        asked.extend(itself.then(|| of(me)));
        let began = Instant::now();
        let pings = chores
            .instances
            .ping_peers(me, &asked, peers::patience(ttl));
        let answered = chores.within(ttl / 3, pings).await?;
        let mut observed = Observed::new();
        let mut silent = Vec::new();
        for id in neighbours {
            let is = self.asked.entry(id.clone()).or_insert_with(Asked::first);
            if answered.contains(&id) {
                if is.accused {
                    observed.insert(id, Opinion::Healthy);
                }
                (is.since, is.missed, is.accused) = (began, 0, false);
            } else {
                is.missed += 1;
                silent.push(id);
            }
        }
        self.suspect(chores, silent, &mut observed).await?;
        if !observed.is_empty() {
            peers::observe(chores, &observed).await?;
        }
        Ok(answered.contains(me))
    }

    /// Of those who did not answer, the ones that are suspect.
    async fn suspect(
        &mut self,
        chores: &Chores,
        silent: Vec<String>,
        observed: &mut Observed,
    ) -> Result<(), CoordinationError> {
        if silent.is_empty() {
            return Ok(());
        }
        let ttl = chores.settings.heartbeat_ttl;
        let look = chores.instances.silent(&silent);
        let pulsed = chores.within(ttl / 6, look).await?;
        for (id, pulsed) in silent.into_iter().zip(pulsed) {
            let (Some(is), Some(pulsed)) = (self.asked.get_mut(&id), pulsed) else {
                continue;
            };
            // After a gap in the server's answers it may just not have come to answer again.
            let could = chores.answers.steady_for(pulsed.ttl).is_some();
            if could && is.is_silent(pulsed.ttl) && pulsed.time > pulsed.ttl / 2 {
                tracing::debug!(peer = id, "a neighbour is silent");
                is.accused = true;
                observed.insert(id, Opinion::Suspect);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_silent_after_three_rounds_and_a_whole_ttl() {
        let ttl = Duration::from_secs(3);
        let mut asked = Asked::first();
        asked.missed = 3;
        assert!(!asked.is_silent(ttl), "three rounds in no time");
        asked.since = Instant::now() - ttl;
        assert!(asked.is_silent(ttl));
        asked.missed = 2;
        assert!(!asked.is_silent(ttl), "nobody was asked meanwhile");
    }
}
