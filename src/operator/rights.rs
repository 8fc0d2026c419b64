//! Whether users may do more than `deploy/users.acl` gives them, as far as the server's ACL tells.
//!
//! A user is known by its name: one of the file's, or one of these with `-` and more behind it. Each is
//! asked for what only others need. Nothing is run.

use crate::connect::error::BusError;
use crate::protocol::keys::Keys;
use redis::Value;
use redis::aio::{ConnectionLike, MultiplexedConnection};

const WORKER: &str = "convoke-worker";
const PUBLISHER: &str = "convoke-publisher";
const DATA_PUBLISHER: &str = "convoke-data-publisher";
const SERVICE: &str = "convoke-service";
const INSTANCE: &str = "convoke-instance";
const OPERATOR: &str = "convoke-operator";
const MONITOR: &str = "convoke-monitor";
/// The users of the file.
const SHIPPED: [&str; 7] = [
    WORKER,
    PUBLISHER,
    DATA_PUBLISHER,
    SERVICE,
    INSTANCE,
    OPERATOR,
    MONITOR,
];

/// What a user may do that it need not.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Excess {
    /// The user.
    pub user: String,
    /// The calls, as one would type them.
    pub calls: Vec<String>,
}

/// Which of the shipped users it is.
fn kind_of(user: &str) -> Option<&'static str> {
    let is = |kind: &&str| {
        user.strip_prefix(*kind)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    };
    SHIPPED.into_iter().find(is)
}

/// Calls, and the users that need them.
fn calls(keys: &Keys) -> Vec<(String, &'static [&'static str])> {
    let events = keys.events("image", 0);
    let control = keys.events("system", 0);
    let dead = keys.dead("image", 0);
    let delayed = keys.delayed("image", 0);
    let inbox = keys.inbox_route("w-1");
    let publishers: &[&str] = &[WORKER, OPERATOR, PUBLISHER, DATA_PUBLISHER, SERVICE];
    vec![
        (format!("XADD {events} * type a.b"), publishers),
        (
            format!("XADD {control} * type a.b"),
            &[WORKER, OPERATOR, PUBLISHER, INSTANCE],
        ),
        (format!("XRANGE {events} - +"), &[WORKER, OPERATOR, MONITOR]),
        (
            format!("XREADGROUP GROUP g c STREAMS {events} >"),
            &[WORKER],
        ),
        (format!("XTRIM {events} MAXLEN 0"), &[WORKER]),
        (format!("XGROUP DESTROY {events} g"), &[OPERATOR]),
        (format!("XGROUP SETID {events} g 0"), &[OPERATOR]),
        (format!("XDEL {events} 1-1"), &[WORKER, OPERATOR]),
        (format!("DEL {events}"), &[WORKER]),
        (format!("SET {control} x"), &[WORKER]),
        (format!("DEL {delayed}"), &[WORKER]),
        (format!("ZREM {delayed} m"), &[WORKER, OPERATOR]),
        (format!("PEXPIRE {delayed} 1"), &[WORKER]),
        (format!("XADD {dead} * type a.b"), &[WORKER, OPERATOR]),
        (format!("XDEL {dead} 1-1"), &[WORKER, OPERATOR]),
        (format!("DEL {dead}"), &[WORKER]),
        (
            format!("XADD {} * type a.b", keys.broadcast()),
            &[WORKER, OPERATOR],
        ),
        (format!("XADD {} * type a.b", inbox.events), &[WORKER]),
        (format!("ZADD {} 1 m", inbox.delayed), &[WORKER]),
        (format!("HSET {} a b", keys.instance("w-1")), &[WORKER]),
        (
            format!("HSET {} a b", keys.repairs().states),
            &[WORKER, OPERATOR],
        ),
        (format!("DEL {}", keys.repairs().states), &[WORKER]),
        (format!("SET {} a", keys.leader()), &[WORKER]),
        (format!("HSETNX {} a b", keys.domains()), publishers),
        (format!("HSET {} a b", keys.domains()), &[WORKER, OPERATOR]),
        (
            format!("SETBIT {} 1 1", keys.made("image")),
            &[WORKER, OPERATOR],
        ),
        (
            format!("HSET {} a b", keys.owner("image", 0, "g")),
            &[WORKER],
        ),
        (format!("SET {} 1", keys.fence("image", 0, "g")), &[WORKER]),
        (format!("HDEL {} a", keys.held("image", 0, "g")), &[WORKER]),
        ("GET session:1".into(), &[]),
        ("SET session:1 a".into(), &[]),
        ("SCAN 0".into(), &[OPERATOR, MONITOR]),
        ("SCRIPT LOAD x".into(), &[WORKER, OPERATOR]),
        ("SCRIPT KILL".into(), &[OPERATOR]),
        ("SCRIPT FLUSH".into(), &[]),
        ("EVAL x 0".into(), &[]),
        ("FUNCTION LOAD x".into(), &[]),
        ("CONFIG SET a b".into(), &[]),
        ("ACL SETUSER a".into(), &[]),
        ("CLIENT KILL ID 1".into(), &[]),
        ("KEYS *".into(), &[]),
        ("FLUSHALL".into(), &[]),
        ("REPLICAOF a 1".into(), &[]),
        ("MODULE LOAD x".into(), &[]),
        ("DEBUG SLEEP 0".into(), &[]),
        ("SHUTDOWN".into(), &[]),
    ]
}

/// The users who may do more than they need.
pub(crate) async fn excess(
    connection: &mut MultiplexedConnection,
    users: &[String],
    keys: &Keys,
) -> Result<Vec<Excess>, BusError> {
    let calls = calls(keys);
    let mut found = Vec::new();
    for user in users {
        let Some(kind) = kind_of(user) else {
            continue;
        };
        let others: Vec<&String> = calls
            .iter()
            .filter(|(_, needed_by)| !needed_by.contains(&kind))
            .map(|(call, _)| call)
            .collect();
        let mut asked = redis::pipe();
        for call in &others {
            let words: Vec<&str> = call.split(' ').collect();
            asked.cmd("ACL").arg(&["DRYRUN", user]).arg(words);
        }
        let answers = connection
            .req_packed_commands(&asked, 0, asked.len())
            .await?;
        // A command that the server does not know is no one's.
        let may = |answer: &Value| match answer {
            Value::SimpleString(text) => text == "OK",
            Value::BulkString(text) => text == b"OK",
            Value::Okay => true,
            _ => false,
        };
        let allowed = others.into_iter().zip(&answers);
        let calls: Vec<String> = allowed
            .filter(|(_, answer)| may(answer))
            .map(|(call, _)| call.clone())
            .collect();
        if !calls.is_empty() {
            let user = user.clone();
            found.push(Excess { user, calls });
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_known_by_the_beginning_of_its_name() {
        assert_eq!(kind_of("convoke-publisher"), Some(PUBLISHER));
        assert_eq!(kind_of("convoke-publisher-shop"), Some(PUBLISHER));
        assert_eq!(kind_of("convoke-data-publisher-shop"), Some(DATA_PUBLISHER));
        assert_eq!(kind_of("convoke-publishers"), None);
        assert_eq!(kind_of("admin"), None);
    }
}
