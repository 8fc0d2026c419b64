//! What is dangerous on a cluster, as the doctor finds it.

use super::super::rig::lines;
use super::super::{bare, end};
use crate::support::cluster::Cluster;
use crate::support::{eventually, signal, users};
use serde_json::Value;

/// What it finds; its exit code.
fn examined(cluster: &Cluster) -> (i32, Vec<Value>) {
    let mut command = bare();
    command.env("CONVOKE_REDIS_URL", cluster.url_for(users::MONITOR));
    let ended = end(command.args(["doctor", "--format", "json"]));
    (ended.code, lines(&ended.out))
}

/// What it says of a check at one node, or of what it finds elsewhere.
fn of(found: &[Value], check: &str, node: &str) -> (String, String, String) {
    let text = |finding: &Value, part: &str| finding[part].as_str().unwrap_or_default().to_owned();
    let is = |finding: &&Value| {
        finding["check"] == check && text(finding, "what").starts_with(&format!("{node}: "))
    };
    let finding = found.iter().find(is);
    let finding = finding.unwrap_or_else(|| panic!("{check} of {node} is not in {found:#?}"));
    let part = |part| text(finding, part);
    (part("status"), part("what"), part("fix"))
}

#[test]
fn what_is_dangerous_on_one_node_is_named_with_the_node_and_the_others_are_looked_at() {
    let cluster = Cluster::of_three();
    let address = |number: usize| format!("127.0.0.1:{}", cluster.nodes[number].port());
    let (code, found) = examined(&cluster);
    assert_eq!(code, 1, "nothing is kept on disk: {found:#?}");
    for number in 0..3 {
        for (check, status) in [
            ("cluster-slots", "fine"),
            ("cluster-open", "fine"),
            ("cluster-coverage", "warning"),
            ("cluster-replicas", "warning"),
            ("cluster-node-timeout", "fine"),
            ("eviction", "fine"),
        ] {
            assert_eq!(of(&found, check, &address(number)).0, status, "{check}");
        }
    }
    let set = |name, value| cluster.run(1, &["CONFIG", "SET", name, value]);
    set("maxmemory-policy", "volatile-lru");
    set("cluster-node-timeout", "20000");
    set("cluster-require-full-coverage", "no");
    let (_, found) = examined(&cluster);
    let (status, what, fix) = of(&found, "eviction", &address(1));
    assert_eq!(status, "danger", "{what}");
    let port = cluster.nodes[1].port();
    let command =
        format!("redis-cli -h 127.0.0.1 -p {port} CONFIG SET maxmemory-policy noeviction");
    assert!(fix.starts_with(&command), "{fix}");
    assert_eq!(of(&found, "eviction", &address(0)).0, "fine");
    assert_eq!(of(&found, "cluster-node-timeout", &address(1)).0, "warning");
    assert_eq!(of(&found, "cluster-coverage", &address(1)).0, "fine");
    assert_eq!(of(&found, "cluster-coverage", &address(2)).0, "warning");
    set("cluster-node-timeout", "900");
    let (_, found) = examined(&cluster);
    assert_eq!(of(&found, "cluster-node-timeout", &address(1)).0, "warning");
    set("cluster-node-timeout", "15000");

    // A move that was given up.
    let mut connection = cluster.nodes[1].connect();
    let id = redis::cmd("CLUSTER").arg("MYID").query(&mut connection);
    let id: String = id.unwrap();
    cluster.run(0, &["CLUSTER", "SETSLOT", "7", "MIGRATING", &id]);
    let (_, found) = examined(&cluster);
    let (status, what, fix) = of(&found, "cluster-open", &address(0));
    assert_eq!(status, "warning", "{what}");
    assert!(what.contains(&format!("7 to {}", address(1))), "{what}");
    assert!(fix.contains("redis-cli --cluster fix"), "{fix}");
    cluster.run(0, &["CLUSTER", "SETSLOT", "7", "STABLE"]);

    cluster.run(0, &["CLUSTER", "DELSLOTS", "7"]);
    eventually("a slot is nobody's, and that is said", || {
        let (code, found) = examined(&cluster);
        let (status, what, _) = of(&found, "cluster-slots", &address(0));
        code == 1 && status == "danger" && what.contains("1 slot is nobody's")
    });
    cluster.run(0, &["CLUSTER", "ADDSLOTS", "7"]);

    signal(cluster.nodes[2].pid(), "KILL");
    let (code, found) = examined(&cluster);
    let (status, what, _) = of(&found, "cluster-node", &address(2));
    assert_eq!((code, status.as_str()), (1, "danger"), "{what}");
    assert_eq!(of(&found, "eviction", &address(0)).0, "fine");
    assert_eq!(of(&found, "eviction", &address(1)).0, "danger");
    let unseen = found.iter().find(|finding| finding["check"] == "streams");
    assert_eq!(unseen.expect("streams")["status"], "danger");
}
