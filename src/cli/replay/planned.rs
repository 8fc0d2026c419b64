//! What would happen, as a row and as JSON.

use crate::cli::output::{Cell, FAINT};
use crate::cli::payload;
use convoke::operator::replay::planning::Candidate;
use serde_json::{Map, Value, json};

pub(super) fn row(candidate: &Candidate) -> Vec<Cell> {
    let what = match &candidate.left {
        None => match &candidate.before {
            None => "replay".into(),
            Some(before) => {
                let before = payload::preview(Some(before));
                let mut after = candidate.act.fields.chunks_exact(2);
                let after = after.rfind(|pair| pair[0] == b"data");
                let after = payload::preview(after.map(|pair| pair[1].as_slice()));
                format!("replay: {before} → {after}").into()
            }
        },
        Some(why) => Cell::styled(format!("leave: {why}"), FAINT),
    };
    vec![
        candidate.act.entry.to_string().into(),
        candidate.kind.clone().into(),
        crate::cli::choose::short(&candidate.stream).into(),
        candidate.to.clone().into(),
        candidate.replays.to_string().into(),
        what,
    ]
}

pub(super) fn planned(candidate: &Candidate) -> Value {
    let mut fields = Map::new();
    for pair in candidate.act.fields.chunks_exact(2) {
        if pair[0] != b"data" {
            let name = String::from_utf8_lossy(&pair[0]).into_owned();
            fields.insert(name, String::from_utf8_lossy(&pair[1]).into());
        }
    }
    let data = candidate
        .act
        .fields
        .chunks_exact(2)
        .find(|pair| pair[0] == b"data");
    let mut object = json!({
        "would": if candidate.left.is_none() { "replay" } else { "leave" },
        "why": candidate.left,
        "stream": candidate.stream.key,
        "entry": candidate.act.entry.to_string(),
        "to": candidate.to,
        "type": candidate.kind,
        "replays": candidate.replays,
        "fields": fields,
    });
    payload::describe(data.map(|pair| pair[1].as_slice()), &mut object);
    if let Some(before) = &candidate.before {
        let mut was = json!({});
        payload::describe(Some(before), &mut was);
        object["before"] = was["data"].take();
    }
    object
}
