//! Asking for a batch and committing progress, and what the rule says to it.

use super::*;

impl Scene {
    pub(super) async fn acquire(&mut self, world: &World, step: &Step, run: &str) {
        let Acquire {
            batch,
            who,
            event,
            delivery,
            may_hold,
        } = *step
        else {
            unreachable!("it asks")
        };
        let (instance, entry) = (format!("w-{who}"), format!("1-{event}"));
        let asker = Asker {
            instance: &instance,
            run,
            entry: &entry,
            deliveries: delivery.into(),
            event: &entry,
            may_hold,
        };
        let acquired = self.batches.acquire(&wanted(batch, TOTAL), asker).await;
        let now = world.now;
        let model = self.models.get(&batch);
        let own = model.and_then(|model| model.holder.as_ref());
        let again = own.is_some_and(|(held, _, _)| held == run);
        let own = own.filter(|(_, with, _)| *with == event);
        let later = own.is_some_and(|(_, _, had)| u32::from(delivery) > *had);
        let stale = own.is_some_and(|(_, _, had)| u32::from(delivery) < *had);
        let lease = model.map_or(0, |model| model.expires + if stale { LEASE } else { 0 });
        let is_free = lease <= now || later;
        match acquired.unwrap() {
            Acquired::Completed(progress) => {
                assert_eq!(
                    Some(progress),
                    model.filter(|m| m.is_complete()).map(Model::progress)
                );
            }
            _ if model.is_some_and(Model::is_complete) => panic!("it is completed"),
            Acquired::Busy {
                progress,
                left,
                same_event,
            } => {
                let model = model.unwrap();
                assert!(!again && !is_free, "{step:?}");
                assert_eq!(progress, model.progress());
                assert_eq!(ms(left), model.expires.saturating_sub(now));
                assert_eq!(same_event, own.is_some());
            }
            Acquired::Free => assert!(!again && is_free && !may_hold, "{step:?}"),
            Acquired::Shared(..) => panic!("each has a holder"),
            Acquired::Cancelled(why) => panic!("nobody cancels: {why}"),
            Acquired::Held(progress, bits) => {
                let model = self.models.entry(batch).or_default();
                if !again {
                    assert!(is_free && may_hold, "{step:?}");
                    assert!(progress.fence > model.fence, "a fence that did not rise");
                    let (fence, kept) = (progress.fence, now + ms(ABANDONED));
                    (model.fence, model.kept, model.processor) = (fence, kept, who);
                    model.holder = Some((run.to_owned(), event, delivery.into()));
                    model.expires = now + LEASE;
                    self.fences.insert((batch, who), fence);
                }
                assert_eq!(progress, model.progress());
                for n in 0..TOTAL {
                    let bit = bits.get(n / 8).is_some_and(|b| b & (0x80 >> (n % 8)) != 0);
                    assert_eq!(bit, model.finished.contains(&n), "item {n}");
                }
            }
        }
    }

    /// Whether the instance's fence is the last one.
    pub(super) fn is_current(&self, batch: u8, who: u8) -> bool {
        let fence = self.fence(batch, who);
        self.models
            .get(&batch)
            .is_some_and(|model| model.fence == fence)
    }

    /// Whether it is the last holder's, who did not give it back.
    pub(super) fn is_held(&self, batch: u8, who: u8) -> bool {
        let model = self.models.get(&batch);
        let held = model.is_some_and(|model| model.is_complete() || model.holder.is_some());
        held && self.is_current(batch, who)
    }

    pub(super) fn fence(&self, batch: u8, who: u8) -> u64 {
        self.fences.get(&(batch, who)).copied().unwrap_or(0)
    }

    pub(super) async fn progress(
        &mut self,
        world: &World,
        step: &Step,
        publications: &[Publication],
    ) {
        let Progress {
            batch,
            who,
            from,
            count,
            fails,
        } = *step
        else {
            unreachable!("it finishes")
        };
        let items = usize::from(from)..usize::from(from + count).min(TOTAL);
        let outcomes: Vec<FinishedItem> = items
            .clone()
            .map(|index| FinishedItem {
                index,
                failure: fails.then(|| ("not_found", "x".to_owned())),
            })
            .collect();
        let (wanted, fence) = (wanted(batch, TOTAL), self.fence(batch, who));
        let advanced = self
            .batches
            .progress(&wanted, fence, &outcomes, publications)
            .await;
        let is_held = self.is_held(batch, who);
        let (is_complete, progress) = match advanced.unwrap() {
            Advanced::Lost(_) => {
                assert!(!is_held, "{step:?}");
                return;
            }
            Advanced::Running(progress) => (false, progress),
            Advanced::Completed(progress) => (true, progress),
        };
        assert!(is_held, "what is stale was taken: {step:?}");
        let model = self.models.get_mut(&batch).unwrap();
        let before = model.finished.len();
        for item in items {
            if model.finished.insert(item) && fails {
                model.failed.insert(item);
            }
        }
        if model.finished.len() > before {
            let written = publications
                .iter()
                .map(|published| published.fields[3].clone());
            self.effects.extend(written);
            model.expires = world.now + LEASE;
            model.kept = world.now + ms(ABANDONED);
            if model.is_complete() {
                (model.expires, model.holder) = (0, None);
                model.kept = world.now + ms(KEPT);
                self.completed.push((id(batch), model.fence));
            }
        }
        assert_eq!(is_complete, model.is_complete());
        assert_eq!(progress, model.progress());
    }
}
