//! The flags of programs that stay alive.

use super::command;
use crate::cli::Misuse;
use clap::Args;
use convoke::settings::{Pipe, PipeFormat, Settings};
use std::collections::HashSet;

/// Programs that stay alive. Each flag but the first is for all of them, or for one type.
#[derive(Args)]
pub(super) struct PipeFlags {
    /// A program that stays alive and handles a type of event; may be repeated
    #[arg(long, value_name = "TYPE=CMD", value_parser = command)]
    pipe: Vec<(String, String)>,
    /// How many processes of it run, of all or of one type [default: 1]
    #[arg(long, value_name = "[TYPE=]N", value_parser = number)]
    pipe_workers: Vec<(Option<String>, u16)>,
    /// How it is spoken to, of all or of one type: json or msgpack [default: json]
    #[arg(long, value_name = "[TYPE=]FORMAT", value_parser = format)]
    pipe_format: Vec<(Option<String>, PipeFormat)>,
    /// How many events one process holds at a time, of all or of one type [default: as many as it answers
    /// within 10 ms]
    #[arg(long, value_name = "[TYPE=]N", value_parser = number)]
    pipe_outstanding: Vec<(Option<String>, u16)>,
}

impl PipeFlags {
    /// Puts the flags over what the file says.
    pub(super) fn add_to(&self, settings: &mut Settings) -> anyhow::Result<()> {
        let mut kinds = HashSet::new();
        for (kind, command) in &self.pipe {
            if !kinds.insert(kind) {
                let twice = format_args!("--pipe: {kind} has two commands");
                return Err(Misuse::error(twice));
            }
            settings.pipe.insert(kind.clone(), Pipe::new(command));
        }
        let pipes = &mut settings.pipe;
        let all = [
            each(
                "--pipe-workers",
                &self.pipe_workers,
                pipes,
                |pipe, workers| {
                    pipe.workers = workers;
                },
            ),
            each("--pipe-format", &self.pipe_format, pipes, |pipe, format| {
                pipe.format = format;
            }),
            each(
                "--pipe-outstanding",
                &self.pipe_outstanding,
                pipes,
                |pipe, most| {
                    pipe.outstanding = most;
                },
            ),
        ];
        if let Some(problem) = all.into_iter().find_map(Result::err) {
            return Err(Misuse::error(format_args!("{problem}")));
        }
        settings
            .check()
            .map_err(|error| Misuse::error(format_args!("--{error}")))
    }
}

/// Sets a part of all pipes first, and then of those that are named.
fn each<T: Copy>(
    flag: &str,
    given: &[(Option<String>, T)],
    pipes: &mut std::collections::BTreeMap<String, Pipe>,
    set: impl Fn(&mut Pipe, T),
) -> Result<(), String> {
    for (_, value) in given.iter().filter(|(kind, _)| kind.is_none()) {
        pipes.values_mut().for_each(|pipe| set(pipe, *value));
    }
    for (kind, value) in given {
        if let Some(kind) = kind {
            let pipe = pipes.get_mut(kind);
            let missing = || format!("{flag}: no --pipe for {kind}");
            set(pipe.ok_or_else(missing)?, *value);
        }
    }
    Ok(())
}

fn of_type(text: &str) -> (Option<String>, &str) {
    match text.split_once('=') {
        Some((kind, value)) => (Some(kind.to_owned()), value),
        None => (None, text),
    }
}

fn number(text: &str) -> Result<(Option<String>, u16), String> {
    let (kind, value) = of_type(text);
    let wrong = |_| format!("{value:?} is not a whole number from 1 to {}", u16::MAX);
    Ok((kind, value.parse().map_err(wrong)?))
}

fn format(text: &str) -> Result<(Option<String>, PipeFormat), String> {
    let (kind, value) = of_type(text);
    let format = PipeFormat::named(value);
    Ok((kind, format.ok_or("write json or msgpack")?))
}
