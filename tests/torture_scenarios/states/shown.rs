//! What is shown, beside what the model says.

use super::{STREAM, Scene, batch, decision, ms, task};
use crate::support::ballots::id;
use convoke::coordination::ballots::ballot::BallotStatus as Ballot;
use convoke::coordination::instances::RECENTLY;
use convoke::coordination::instances::roster::{Condition, Detail};
use convoke::coordination::view::StreamSize;
use std::time::Duration;

impl Scene {
    pub(super) async fn check_instances(&self, now: u64) {
        let (known, leader) = tokio::join!(
            self.instances.known(Detail::Brief, 100),
            self.instances.leader()
        );
        let known = known.unwrap();
        let shown = known
            .listed
            .iter()
            .map(|(condition, is)| (is.id.clone(), *condition));
        let members = self.members.iter().map(|(number, is)| {
            let condition = match is.expires > now {
                true => Condition::Healthy,
                false => Condition::Suspect,
            };
            (id(*number), condition)
        });
        let reach = ms(RECENTLY);
        let lost = self
            .lost
            .iter()
            .filter(|(_, at)| **at + reach > now && **at <= now + reach);
        let lost = lost.map(|(number, _)| (id(*number), Condition::Lost));
        let mut are: Vec<_> = members.chain(lost).collect();
        are.sort_by(|a, b| a.0.cmp(&b.0));
        assert_eq!(shown.collect::<Vec<_>>(), are, "instances");
        assert_eq!((known.at, known.total), (now, are.len() as u64));
        for (number, is) in &self.members {
            let mut listed = known.listed.iter().map(|(_, listed)| listed);
            let listed = listed.find(|listed| listed.id == id(*number)).unwrap();
            assert_eq!(listed.incarnation, is.incarnation);
        }
        assert_eq!(leader.unwrap(), self.leads(now).map(id), "leader");
    }

    pub(super) async fn check_work(&self, now: u64) {
        let (tasks, batches, ballots) = tokio::join!(
            self.service.snapshot(None, 100),
            self.batches.list(100),
            self.ballots.list(100)
        );
        let (counts, items) = tasks.unwrap();
        assert_eq!(
            (counts.pending, counts.assigned),
            (self.waiting.len() as u64, 0)
        );
        assert_eq!(counts.cancelled, self.cancelled);
        let waits = self.waiting.iter().map(|(_, _, number)| task(*number));
        let mut shown: Vec<String> = items.into_iter().map(|task| task.id).collect();
        let mut ended = shown.split_off(self.waiting.len());
        ended.sort();
        assert_eq!(shown, waits.collect::<Vec<_>>(), "those that wait");
        let mut are: Vec<String> = self.ended.keys().map(|number| task(*number)).collect();
        are.sort();
        assert_eq!(ended, are, "those that ended");

        let mut held: Vec<_> = self.held.iter().collect();
        held.sort_by_key(|(number, batch)| std::cmp::Reverse((batch.told, **number)));
        let shown = batches.unwrap();
        let shown: Vec<_> = shown
            .iter()
            .map(|is| {
                (
                    is.id.clone(),
                    is.fence,
                    is.processed,
                    is.processor_id.clone(),
                )
            })
            .collect();
        let are = held.iter().map(|(number, is)| {
            (
                batch(**number),
                is.fence,
                is.finished.len() as u64,
                id(is.processor),
            )
        });
        assert_eq!(shown, are.collect::<Vec<_>>(), "batches");

        let mut opened: Vec<_> = self.decisions.iter().collect();
        opened.sort_by_key(|(number, ballot)| std::cmp::Reverse((ballot.opened, **number)));
        let shown = ballots.unwrap();
        let shown = shown
            .iter()
            .map(|is| (is.decision.clone(), is.status, is.vote_count));
        let are = opened.iter().map(|(number, is)| {
            let status = match is.status {
                Ballot::Open if is.expires <= now => Ballot::Expired,
                status => status,
            };
            (decision(**number), status, is.votes)
        });
        assert_eq!(
            shown.collect::<Vec<_>>(),
            are.collect::<Vec<_>>(),
            "decisions"
        );
    }

    pub(super) async fn check_streams(&self, knows_lag: bool) {
        let reach = self.view.reach(Duration::from_secs(60)).await.unwrap();
        let (recent, streams) = tokio::join!(self.view.recent(7), self.view.streams(&reach));
        let recent: Vec<_> = recent.unwrap().into_iter().map(|entry| entry.id).collect();
        let last = self.facts.iter().rev().take(7).map(|entry| entry.id);
        assert_eq!(recent, last.collect::<Vec<_>>(), "recent facts");
        let (length, pending) = (self.stream.0, self.stream.1.len() as u64);
        let mut are = Vec::new();
        if !self.facts.is_empty() {
            let length = self.facts.len() as u64;
            are.push(StreamSize {
                name: "cb:broadcast".into(),
                length,
                pending: 0,
                lag: None,
            });
        }
        if length > 0 {
            let lag = Some(length - self.read);
            are.push(StreamSize {
                name: STREAM.into(),
                length,
                pending,
                lag,
            });
        }
        let mut shown = streams.unwrap();
        for (shown, is) in shown.iter_mut().zip(&are) {
            if !knows_lag && shown.lag.is_none() {
                shown.lag = is.lag;
            }
        }
        assert_eq!(shown, are, "streams");
    }
}
