//! Why a task waits, by what its instances told when they registered.

use convoke::coordination::instances::instance::Instance;
use convoke::coordination::instances::roster::{Condition, Detail};
use serde_json::Value;
use std::collections::BTreeSet;

use crate::cli::Session;
use crate::cli::output::count;

/// Instances that are read at the most.
const LIMIT: usize = 100_000;
/// Instances that are named.
const NAMED: usize = 3;

/// Why a task waits that is looked at; `None` of one that does not.
pub(super) async fn reason(session: &Session, task: &Value) -> anyhow::Result<Option<String>> {
    if task["status"] != "pending" {
        return Ok(None);
    }
    let known = session.instances()?.known(Detail::Full, LIMIT).await?;
    let active = known.listed.into_iter();
    let active = active.filter(|(condition, _)| *condition != Condition::Lost);
    let active: Vec<Instance> = active.map(|(_, instance)| instance).collect();
    Ok(Some(why(task, &active)))
}

fn why(task: &Value, active: &[Instance]) -> String {
    let text = |name: &str| task[name].as_str().unwrap_or_default().to_owned();
    let (role, kind) = (text("role"), text("kind"));
    let of_role: Vec<&Instance> = active
        .iter()
        .filter(|instance| instance.roles.contains(&role))
        .collect();
    if of_role.is_empty() {
        return format!("no active instance holds the role {role}");
    }
    let all = count(of_role.len() as u64, "instance", "instances");
    let can_run = |instance: &&&Instance| {
        instance.capabilities.is_empty() || instance.capabilities.contains(&kind)
    };
    let of_kind: Vec<&&Instance> = of_role.iter().filter(can_run).collect();
    if of_kind.is_empty() {
        return format!("{all} of role {role}, and none with a handler for {kind}");
    }
    let requires: BTreeSet<&str> = task["requires"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let has = |instance: &Instance, one: &str| instance.capabilities.iter().any(|c| c == one);
    let lacks = |instance: &Instance| requires.iter().any(|one| !has(instance, one));
    let able: Vec<&&&Instance> = of_kind.iter().filter(|one| !lacks(one)).collect();
    if able.is_empty() {
        let nobody: Vec<&str> = requires
            .iter()
            .filter(|one| !of_kind.iter().any(|instance| has(instance, one)))
            .copied()
            .collect();
        let missing = match nobody.is_empty() {
            true => "all it requires at once".to_owned(),
            false => nobody.join(", "),
        };
        return format!("{all} of role {role}, and none that has {missing}");
    }
    let mut named: Vec<&str> = able.iter().take(NAMED).map(|one| one.id.as_str()).collect();
    if able.len() > NAMED {
        named.push("…");
    }
    format!(
        "{} could take it ({}), and had no room when it was looked at",
        count(able.len() as u64, "instance", "instances"),
        named.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::collections::HashMap;

    fn instance(id: &str, roles: &str, capabilities: &str) -> Instance {
        let mut hash = HashMap::from([
            ("status".to_owned(), b"active".to_vec()),
            ("id".to_owned(), id.as_bytes().to_vec()),
            ("roles".to_owned(), roles.as_bytes().to_vec()),
        ]);
        hash.insert("capabilities".to_owned(), capabilities.as_bytes().to_vec());
        Instance::from_hash(hash).unwrap()
    }

    #[test]
    fn the_first_thing_that_is_missing_is_named() {
        let task = json!({
            "status": "pending", "role": "gpu", "kind": "image.make", "requires": ["cuda", "ssd"],
        });
        let worker = instance("w-1", "worker", "image.make");
        let other = instance("w-2", "gpu", "mail.send");
        let poor = instance("w-3", "gpu", "image.make cuda");
        let split = instance("w-4", "gpu", "image.make ssd");
        let able = instance("w-5", "gpu", "image.make cuda ssd");
        let why = |active: &[&Instance]| {
            let active: Vec<Instance> = active.iter().map(|one| (*one).clone()).collect();
            why(&task, &active)
        };
        assert_eq!(why(&[&worker]), "no active instance holds the role gpu");
        assert_eq!(
            why(&[&worker, &other]),
            "1 instance of role gpu, and none with a handler for image.make"
        );
        assert_eq!(
            why(&[&other, &poor]),
            "2 instances of role gpu, and none that has ssd"
        );
        assert_eq!(
            why(&[&poor, &split]),
            "2 instances of role gpu, and none that has all it requires at once"
        );
        assert_eq!(
            why(&[&poor, &able]),
            "1 instance could take it (w-5), and had no room when it was looked at"
        );
    }
}
