//! Asks the neighbours whether they live, where `system.heartbeat` is answered so, and itself whether it can be asked.

use super::{Chores, peers};
use crate::coordination::error::CoordinationError;
use crate::coordination::instances::gossip::{Observed, Opinion, PING, Peer};
use crate::coordination::instances::neighbours::{LASTS, LEAST, Silent};
use crate::protocol::pattern::{Pattern, Patterned};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Rounds in a row without an answer after which a neighbour is warned.
const WARNED: u32 = 2;

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
    /// When this one warned it, and when its last own pulse had been then.
    warned: Option<(Instant, u64)>,
    /// Whether this one said that it suspects it.
    accused: bool,
}

impl Asked {
    fn first() -> Self {
        Self {
            since: Instant::now(),
            missed: 0,
            warned: None,
            accused: false,
        }
    }

    fn answered(&mut self, asked: Instant) {
        *self = Self {
            since: asked,
            ..Self::first()
        };
    }

    /// What there is to say of one that did not answer. It looks for warnings each third of its ttl.
    fn judge(&mut self, pulsed: &Silent) -> Verdict {
        match self.warned {
            // It pulsed since: so it counts from there.
            Some((_, seen)) if seen != pulsed.seen => {
                *self = Self::first();
                Verdict::Nothing
            }
            Some((at, _)) => {
                let heeded = at.elapsed() >= pulsed.ttl * 3 / 5;
                match heeded && self.since.elapsed() >= pulsed.ttl && pulsed.time >= pulsed.ttl {
                    true => Verdict::Suspect,
                    false => Verdict::Nothing,
                }
            }
            None if self.missed >= WARNED && pulsed.time > pulsed.ttl / 2 => {
                self.warned = Some((Instant::now(), pulsed.seen));
                Verdict::Warn
            }
            None => Verdict::Nothing,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Nothing,
    Warn,
    Suspect,
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
        let spared = self.lasting && !around.suspect;
        let left = around.left.filter(|left| spared && *left >= ttl);
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
                is.answered(began);
            } else {
                is.missed += 1;
                silent.push(id);
            }
        }
        self.suspect(chores, silent, &mut observed).await?;
        if !observed.is_empty() {
            // Whoever sweeps declares the loss, where this takes too long.
            chores
                .within(ttl / 6, peers::observe(chores, &observed))
                .await?;
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
        let mut warned = Vec::new();
        for (id, pulsed) in silent.into_iter().zip(pulsed) {
            let (Some(is), Some(pulsed)) = (self.asked.get_mut(&id), pulsed) else {
                continue;
            };
            // After a gap in the server's answers it may just not have come to answer again.
            if chores.answers.steady_for(pulsed.ttl).is_none() {
                is.warned = None;
                continue;
            }
            match is.judge(&pulsed) {
                Verdict::Nothing => {}
                Verdict::Warn => warned.push((id, pulsed.ttl)),
                Verdict::Suspect => {
                    tracing::debug!(peer = id, "a neighbour is silent");
                    is.accused = true;
                    observed.insert(id, Opinion::Suspect);
                }
            }
        }
        let warn = chores.instances.warn(&warned);
        chores.within(ttl / 6, warn).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(3);

    fn pulsed(seen: u64, time: Duration) -> Silent {
        Silent {
            seen,
            time,
            ttl: TTL,
        }
    }

    /// A neighbour that did not answer for two ttls.
    fn silent() -> Asked {
        Asked {
            since: Instant::now() - 2 * TTL,
            missed: WARNED,
            ..Asked::first()
        }
    }

    #[test]
    fn a_neighbour_is_warned_before_it_is_suspect_and_has_two_rounds_to_pulse() {
        let mut asked = silent();
        asked.missed = 1;
        assert_eq!(asked.judge(&pulsed(7, 2 * TTL)), Verdict::Nothing);
        asked.missed = 2;
        assert_eq!(asked.judge(&pulsed(7, TTL / 3)), Verdict::Nothing, "young");
        assert_eq!(asked.judge(&pulsed(7, 2 * TTL)), Verdict::Warn);
        assert_eq!(
            asked.judge(&pulsed(7, 2 * TTL)),
            Verdict::Nothing,
            "at once"
        );
        asked.warned = Some((Instant::now() - TTL * 2 / 3, 7));
        assert_eq!(asked.judge(&pulsed(7, 2 * TTL)), Verdict::Suspect);
        assert_eq!(asked.judge(&pulsed(7, TTL / 2)), Verdict::Nothing, "young");
    }

    #[test]
    fn one_that_pulsed_after_the_warning_is_counted_from_there() {
        let mut asked = silent();
        asked.warned = Some((Instant::now() - TTL, 7));
        assert_eq!(asked.judge(&pulsed(8, 2 * TTL)), Verdict::Nothing);
        assert_eq!((asked.missed, asked.warned), (0, None));
    }
}
