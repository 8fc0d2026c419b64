//! Changing events before they are published again: what they hold, by a program of the operator's.

use super::flags::Act;
use super::source::Walk;
use crate::cli::{Session, input};
use convoke::operator::replay::edit;
use convoke::operator::replay::planning::Candidate;
use convoke::protocol::event::{Entry, EntryId, payload_of};
use convoke::protocol::json;
use futures_util::StreamExt;
use futures_util::stream;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

/// Characters of a command's complaint that are told.
const TOLD: usize = 120;

/// A command that mends payloads, one run for each.
pub(super) struct Program {
    command: String,
    by: String,
    /// Bytes of a payload at the most.
    limit: usize,
    within: Duration,
    at_once: usize,
}

impl Program {
    pub(super) fn of(act: &Act, session: &Session, by: &str) -> Option<Self> {
        Some(Self {
            command: act.edit_with.clone()?,
            by: by.to_owned(),
            limit: session.settings.max_payload,
            within: session.settings.handler_timeout,
            at_once: std::thread::available_parallelism().map_or(1, usize::from),
        })
    }

    /// Mends those that are to be replayed; one that cannot be mended is left alone.
    pub(super) async fn mend(&self, page: Vec<Candidate>, walk: &Walk) -> Vec<Candidate> {
        let mended = stream::iter(page).map(|candidate| self.one(candidate, walk));
        mended.buffered(self.at_once).collect().await
    }

    async fn one(&self, mut candidate: Candidate, walk: &Walk) -> Candidate {
        if candidate.left.is_some() {
            return candidate;
        }
        let event = Entry::new(EntryId::default(), &candidate.act.fields);
        let before = payload_of(&event).map_or_else(|| vec![0xc0], std::borrow::Cow::into_owned);
        match self.payload(&candidate, &event, &before).await {
            Ok(None) => {}
            Ok(Some(data)) => {
                edit(&mut candidate.act.fields, &data, &self.by);
                let fields = &candidate.act.fields;
                let planner = &walk.choice().planner;
                candidate.left = planner.check(&candidate.to, fields, candidate.replays);
                candidate.before = Some(before);
            }
            Err(why) => candidate.left = Some(format!("--edit-with: {why}")),
        }
        candidate
    }

    /// What the command makes of a payload; nothing if it leaves it as it is.
    async fn payload(
        &self,
        candidate: &Candidate,
        event: &Entry,
        before: &[u8],
    ) -> Result<Option<Vec<u8>>, String> {
        let value =
            json::to_json(before).map_err(|error| format!("the payload is no JSON: {error}"))?;
        let id = event
            .get("id")
            .map(|id| String::from_utf8_lossy(id).into_owned());
        let mut command = Command::new("sh");
        command
            .args(["-c", &self.command])
            .env(
                "CONVOKE_EVENT_ID",
                id.unwrap_or_else(|| candidate.act.entry.to_string()),
            )
            .env("CONVOKE_EVENT_TYPE", &candidate.kind)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let run = run(command, format!("{value}\n").into_bytes(), self.limit);
        let ended = tokio::time::timeout(self.within, run).await;
        let (status, printed, complaint) = ended
            .map_err(|_| format!("no end within {}", humantime::format_duration(self.within)))?
            .map_err(|error| error.to_string())?;
        if !status.success() {
            let line = complaint.lines().next().unwrap_or_default();
            let line: String = line.chars().take(TOLD).collect();
            return Err(format!("{status}: {line}"));
        }
        let after = input::encode(&printed)?;
        Ok((json::to_json(&after).ok() != Some(value)).then_some(after))
    }
}

type Ended = (std::process::ExitStatus, Vec<u8>, String);

/// Runs a command to its end. Of what it prints no more is held than a payload of `limit` bytes takes as text.
async fn run(mut command: Command, input: Vec<u8>, limit: usize) -> std::io::Result<Ended> {
    let mut child = command.spawn()?;
    let missing = || std::io::Error::other("the command has no pipes");
    let mut stdin = child.stdin.take().ok_or_else(missing)?;
    let stdout = child.stdout.take().ok_or_else(missing)?;
    let stderr = child.stderr.take().ok_or_else(missing)?;
    let most = limit.saturating_mul(input::TEXT_PER_BYTE) as u64;
    let (mut printed, mut complaint) = (Vec::new(), Vec::new());
    let write = async {
        // A command may end without having read it all.
        stdin.write_all(&input).await.ok();
        drop(stdin);
        Ok(())
    };
    let mut shown = stdout.take(most + 1);
    let print = async {
        shown.read_to_end(&mut printed).await?;
        match printed.len() as u64 > most {
            true => Err(std::io::Error::other(
                "it prints more than any payload takes",
            )),
            false => Ok(()),
        }
    };
    let complain = async {
        let mut told = stderr.take(4096);
        told.read_to_end(&mut complaint).await?;
        // The rest goes nowhere; unread it would hold the command up.
        tokio::io::copy(&mut told.into_inner(), &mut tokio::io::sink()).await
    };
    tokio::try_join!(write, print, complain)?;
    let status = child.wait().await?;
    Ok((
        status,
        printed,
        String::from_utf8_lossy(&complaint).into_owned(),
    ))
}
