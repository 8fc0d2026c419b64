//! What `convoke doctor` says of Sentinels.

use crate::support::sentinel::Deployment;
use crate::support::{eventually, signal, users};
use serde_json::Value;
use std::process::Command;

/// What was found, once that many Sentinels answer: one that gets no time for half a second does not. Of each check its
/// status, what, and how to mend it.
fn doctor(deployment: &Deployment, answer: &str) -> impl Fn(&str) -> (String, String, String) {
    let mut found = Vec::new();
    let text = |finding: &Value, name: &str| finding[name].as_str().unwrap_or_default().to_owned();
    eventually(answer, || {
        found = findings(deployment);
        let mut all = found.iter();
        all.any(|f| f["check"] == "sentinels" && text(f, "what").contains(answer))
    });
    move |check| {
        let found = found.iter().find(|finding| finding["check"] == check);
        let found = found.unwrap_or_else(|| panic!("{check} was not looked at"));
        (
            text(found, "status"),
            text(found, "what"),
            text(found, "fix"),
        )
    }
}

fn findings(deployment: &Deployment) -> Vec<Value> {
    let ended = Command::new(env!("CARGO_BIN_EXE_convoke"))
        .args(["doctor", "--format", "json"])
        .env("CONVOKE_REDIS_URL", deployment.url_for(users::MONITOR))
        .output()
        .unwrap();
    let text = String::from_utf8(ended.stdout).unwrap();
    let told = format!("{text}{}", String::from_utf8_lossy(&ended.stderr));
    assert!(!told.contains(&format!(":{}@", users::PASSWORD)), "{told}");
    let findings = text.lines().map(|l| serde_json::from_str(l).unwrap());
    findings.collect()
}

#[test]
fn doctor_tells_what_the_sentinels_say_and_what_to_change() {
    let deployment = Deployment::start();
    // Nor does it fail over meanwhile.
    deployment.tell("SENTINEL SET bus down-after-milliseconds 10000");
    let primary = &deployment.nodes[deployment.primary()];
    let said = doctor(&deployment, "3 Sentinels answer");
    let fine = |check: &str, what: &str| {
        assert_eq!(said(check), ("fine".into(), what.into(), String::new()))
    };
    fine("sentinels", "3 Sentinels answer");
    fine(
        "primary",
        &format!("the Sentinels name 127.0.0.1:{}", primary.port),
    );
    fine("sentinels-listed", "redis_url names all 3");
    fine("quorum", "2 of 3");
    fine("replicas", "2 replicas");
    fine("failover-time", "down-after-milliseconds 10000");
    assert_eq!(said("min-replicas").0, "danger");

    deployment.tell("SENTINEL SET bus quorum 4");
    deployment.tell("SENTINEL SET bus down-after-milliseconds 60000");
    signal(deployment.sentinels[0].pid(), "STOP");
    let said = doctor(&deployment, "2 of 3");
    let (status, what, _) = said("sentinels");
    assert_eq!(status, "warning");
    let silent = format!(
        "127.0.0.1:{} (no answer within 500 ms)",
        deployment.sentinels[0].port
    );
    assert!(what.contains("2 of 3") && what.contains(&silent), "{what}");
    let (status, what, fix) = said("quorum");
    assert_eq!(
        (&*status, &*what),
        ("danger", "the quorum is 4, and there are 3 Sentinels")
    );
    assert!(fix.contains("SENTINEL SET bus quorum 2"), "{fix}");
    assert_eq!(said("failover-time").0, "warning");

    signal(deployment.sentinels[1].pid(), "STOP");
    let (status, what, fix) = doctor(&deployment, "1 of 3")("sentinels");
    assert_eq!(status, "danger");
    assert!(
        what.contains("1 of 3") && fix.contains("redis_url"),
        "{what} {fix}"
    );
}
