//! `convoke policy history`: who changed what, when and why.

use super::{asked, words};
use crate::cli::output::{self, Cell, Column, FAINT, Table};
use crate::cli::{Exit, Session};
use convoke::connect::clock::local_now;
use serde_json::{Value, json};
use std::time::Duration;

/// Changes that one answer has at the most.
const PAGE: usize = 200;

/// Shows the last changes, the newest first.
pub(super) async fn show(
    session: &Session,
    scope: Option<&str>,
    limit: usize,
    timeout: Duration,
) -> anyhow::Result<Exit> {
    let mut found: Vec<Value> = Vec::new();
    let mut wanted = json!({});
    if let Some(scope) = scope {
        wanted["scope"] = scope.into();
    }
    while found.len() < limit {
        let page = PAGE.min(limit - found.len());
        wanted["limit"] = page.into();
        let answer = asked(session, "system.policy.history", &wanted, timeout).await?;
        let Some(mut answer) = answer else {
            return Ok(Exit::Failed);
        };
        let Value::Array(changes) = answer["changes"].take() else {
            break;
        };
        let is_last = changes.len() < page;
        found.extend(changes);
        match found.last() {
            Some(last) if !is_last => wanted["before"] = last["version"].clone(),
            _ => break,
        }
    }
    if session.output.is_json() {
        for one in &found {
            session.output.json(one)?;
        }
        return Ok(Exit::Done);
    }
    if found.is_empty() {
        output::complain_line(
            "nobody changed anything of it lately: the bus keeps the last 1,000 changes, \
             `convoke history --type policy.changed` asks the ledger",
        );
    }
    let now = local_now();
    let columns = vec![
        Column::new("CHANGED"),
        Column::new("SCOPE").shrinks(16),
        Column::new("BEFORE").shrinks(12),
        Column::new("AFTER").shrinks(12),
        Column::new("REASON").shrinks(12),
        Column::number("VERSION"),
        Column::new("BY").optional(),
    ];
    let mut table = Table::new(&session.output, columns);
    for one in &found {
        let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
        let parts = |said: &Value| match said.as_object() {
            None => Cell::styled("-", FAINT),
            Some(parts) => {
                let said = parts.iter().map(|(name, said)| words::part(name, said));
                let mut said: Vec<String> = said.collect();
                said.sort_unstable();
                said.join(", ").into()
            }
        };
        table.row(vec![
            session
                .output
                .moment(one["at"].as_u64().unwrap_or_default(), now)
                .into(),
            text(&one["scope"]).into(),
            parts(&one["before"]),
            parts(&one["after"]),
            text(&one["reason"]).into(),
            one["version"].to_string().into(),
            text(&one["by"]).into(),
        ])?;
    }
    table.finish()?;
    Ok(Exit::Done)
}
