//! Each call, and what the rule says to it.

use super::*;

/// How much of a ttl must count as silence.
const QUIET: f64 = 5.0 / 6.0;

impl Scene {
    fn by(&self, by: u8) -> &Instances {
        self.processes.get(usize::from(by)).unwrap_or(&self.asked)
    }

    fn incarnation(&self, id: u8, named: Named) -> Option<u64> {
        let last = self.all.get(&id).map_or(0, |is| is.incarnation);
        match named {
            Named::Nothing => None,
            Named::Last => Some(last),
            Named::Wrong => Some(last + 7),
        }
    }

    pub(super) async fn register(&mut self, world: &World, step: &Step) {
        let Register {
            id,
            by,
            ttl,
            roles: bits,
            named,
            begins,
        } = *step
        else {
            unreachable!("it registers")
        };
        let own = by < PROCESSES;
        let named = if own {
            None
        } else {
            self.incarnation(id, named)
        };
        let mut registering = Registering::new(name(id), roles(bits));
        registering.ttl_ms = TTLS[usize::from(ttl)];
        registering.incarnation = named;
        let done = match begins {
            true => self.by(by).register(&registering).await.map(Some),
            false => self.by(by).register_again(&registering).await,
        };
        let (now, is) = (world.now, self.all.get(&id));
        let active = is.filter(|is| is.is_active());
        let sealed = active.filter(|is| is.is_sealed);
        let mine = own && is.is_some_and(|is| is.process == Some(by));
        let alive = active.is_some_and(|active| {
            (active.expires > now || (mine && active.is_sealed)) && (active.is_sealed || !own)
        });
        if sealed.is_some() && !own {
            return assert!(
                matches!(done, Err(CoordinationError::PermissionDenied(_))),
                "{done:?}"
            );
        }
        if sealed.is_some_and(|is| is.expires > now) && !mine && !begins {
            return assert_eq!(done.unwrap(), None, "another process has it");
        }
        if mine && !begins && is.is_some_and(|is| is.stands == Stands::Unregistered) {
            return assert_eq!(done.unwrap(), None, "it took itself out");
        }
        if named.is_some() && !(alive && named == is.map(|is| is.incarnation)) {
            let failed = matches!(done, Err(CoordinationError::FailedPrecondition(_)));
            return assert!(failed, "{done:?}");
        }
        let done = done.unwrap().expect("it is registered");
        let before = is.map_or(0, |is| is.incarnation);
        assert_eq!(done.new, !alive, "{step:?}");
        match alive {
            true => assert_eq!(done.incarnation, before),
            false => {
                assert!(
                    done.incarnation > before,
                    "an incarnation that did not rise"
                );
                assert!(done.incarnation >= 1000 * now);
            }
        }
        let changed = !alive || (own && !mine) || active.is_some_and(|is| is.roles != bits);
        if changed {
            self.told
                .push(("instance.registered".into(), id, done.incarnation));
        }
        self.lost.remove(&id);
        let new = Is {
            stands: Stands::Active,
            incarnation: done.incarnation,
            // Of an external one nobody notes the process; what is there of a sealed one goes with its hash.
            process: if own { Some(by) } else { None },
            is_sealed: own,
            ttl: registering.ttl_ms,
            expires: now + registering.ttl_ms,
            roles: bits,
            seen: now,
            kept: u64::MAX,
        };
        self.all.insert(id, new);
    }

    pub(super) async fn beat(&mut self, world: &World, step: &Step) {
        let Beat { id, by, named } = *step else {
            unreachable!("it pulses")
        };
        let (own, named) = (by < PROCESSES, self.incarnation(id, named));
        let beat = convoke::coordination::instances::instance::Beat::new(name(id), named);
        let pulse = self.by(by).heartbeat(&beat).await;
        let now = world.now;
        let active = self.all.get_mut(&id).filter(|is| is.is_active());
        if active.as_ref().is_some_and(|is| is.is_sealed) {
            let is = active.unwrap();
            if !own {
                return assert!(matches!(pulse, Err(CoordinationError::PermissionDenied(_))));
            }
            let pulse = pulse.unwrap();
            let superseded = is.process != Some(by);
            assert_eq!(pulse.superseded, superseded);
            let alive = !superseded && named.is_none_or(|named| named == is.incarnation);
            assert_eq!(pulse.alive, alive, "{step:?}");
            if alive {
                (is.expires, is.seen) = (now + is.ttl, now);
            }
            return;
        }
        let pulse = pulse.unwrap();
        let lives = active.filter(|is| !own && is.expires > now);
        let lives = lives.filter(|is| named.is_none_or(|named| named == is.incarnation));
        assert_eq!(
            (pulse.alive, pulse.superseded),
            (lives.is_some(), false),
            "{step:?}"
        );
        if let Some(is) = lives {
            (is.expires, is.seen) = (now + is.ttl, now);
        }
    }

    pub(super) async fn leave(&mut self, world: &World, step: &Step) {
        let Leave { id, by, named } = *step else {
            unreachable!("it leaves")
        };
        let (own, named) = (by < PROCESSES, self.incarnation(id, named));
        let left = self.by(by).unregister(&name(id), named).await;
        let Some(is) = self.all.get_mut(&id) else {
            return assert!(!left.unwrap().unregistered);
        };
        if is.is_active() && is.is_sealed {
            if !own {
                return assert!(matches!(left, Err(CoordinationError::PermissionDenied(_))));
            }
            if is.process != Some(by) {
                return assert!(!left.unwrap().unregistered, "another process has it");
            }
        }
        if named.is_some_and(|named| named != is.incarnation) {
            return match own {
                true => assert!(!left.unwrap().unregistered),
                false => assert!(matches!(
                    left,
                    Err(CoordinationError::FailedPrecondition(_))
                )),
            };
        }
        let left = left.unwrap();
        assert_eq!(left.unregistered, is.stands != Stands::Lost, "{step:?}");
        if is.is_active() {
            let kept = if is.is_sealed {
                KEPT.as_millis() as u64
            } else {
                OUTSIDE
            };
            (is.stands, is.kept) = (Stands::Unregistered, world.now + kept);
            self.told
                .push(("instance.unregistered".into(), id, is.incarnation));
        }
    }

    pub(super) async fn sweep(&mut self, world: &World, judges: bool, most: u8) {
        let sweeper = if judges {
            &self.judge
        } else {
            &self.processes[0]
        };
        let swept = sweeper.sweep(most.into()).await.unwrap();
        let now = world.now;
        let mut since = 0;
        if judges {
            let slack = JUDGED.as_millis() as i64 / 6;
            since = match self.heard {
                Some((last, since, life))
                    if life == world.restarts && (now as i64 - last as i64).abs() <= slack =>
                {
                    since
                }
                _ => now,
            };
            self.heard = Some((now, since, world.restarts));
        }
        let late = self
            .all
            .iter()
            .filter(|(_, is)| is.is_active() && is.expires <= now);
        let mut late: Vec<(u64, u8, bool)> = late
            .map(|(id, is)| (is.expires, *id, is.is_sealed))
            .collect();
        late.sort_unstable();
        // Those whose own process registered them come first.
        late.sort_by_key(|(_, _, is_sealed)| !is_sealed);
        late.truncate(most.into());
        let mut expected = Vec::new();
        for (_, id, is_sealed) in late {
            let is = self.all.get_mut(&id).unwrap();
            // A clock that went back since is no silence at all.
            if (now as f64 - since as f64) < QUIET * is.ttl as f64 {
                continue;
            }
            let kept = if is_sealed { KEPT } else { RECENTLY };
            (is.stands, is.kept) = (Stands::Lost, now + kept.as_millis() as u64);
            assert!(self.ended.insert((id, is.incarnation)), "lost twice");
            self.told.push(("instance.lost".into(), id, is.incarnation));
            if is_sealed {
                let recently = RECENTLY.as_millis() as u64;
                self.lost.retain(|_, at| *at + recently > now);
                self.lost.insert(id, now);
                self.lost_until = now + recently;
            }
            expected.push((name(id), is.incarnation, is.seen));
        }
        let lost = swept
            .lost
            .into_iter()
            .map(|lost| (lost.id, lost.incarnation, lost.last_seen));
        assert_eq!(lost.collect::<Vec<_>>(), expected, "who was lost");
    }
}
