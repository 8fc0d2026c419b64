//! Policies: one document for each scope, checked against its version, told as it changes.

use crate::fleet::Fleet;
use convoke::connect::connector::Connector;
use convoke::coordination::error::CoordinationError;
use convoke::coordination::policies::{
    Author, Ends, KEPT_CHANGES, MAX_DOCUMENTS, Policies, PolicyPart, RunLimits, Scope,
};
use convoke::settings::RedisUrl;
use serde_json::json;
use std::time::Duration;

pub(crate) fn policies(fleet: &Fleet) -> Policies {
    let connector = Connector::new(&RedisUrl::new(fleet.redis.url()), 4).unwrap();
    Policies::new(connector, fleet.keys.clone())
}

pub(crate) fn paused(reason: &str) -> [PolicyPart; 1] {
    [PolicyPart::Pause {
        ends: Ends::Never,
        reason: reason.into(),
    }]
}

pub(crate) fn scope(text: &str) -> Scope {
    Scope::parse(text).unwrap()
}

#[tokio::test]
async fn a_document_is_there_until_it_is_cleared_and_each_change_is_told() {
    let mut fleet = Fleet::start().await;
    let policies = policies(&fleet);
    let of_type = scope("type:mail.send");
    assert!(!policies.refresh().await.unwrap());
    let set = policies.set(&of_type, &paused("r"), None, "ann").await;
    assert_eq!(set.unwrap(), 1);
    // The same again changes nothing, and is told to nobody.
    let again = policies.set(&of_type, &paused("r"), None, "bob").await;
    assert_eq!(again.unwrap(), 1);
    assert!(policies.refresh().await.unwrap());
    let held = policies.held();
    let found = held.pause_of_type("mail.send", "mail", 5).unwrap();
    assert_eq!(found.reason(), "type:mail.send is paused: r");
    assert!(held.pause_of_type("mail.read", "mail", 5).is_none());
    let cleared = policies.clear(&of_type, &[], None, "bob").await;
    assert_eq!(cleared.unwrap(), 2);
    assert!(policies.refresh().await.unwrap());
    assert!(!policies.held().names("mail.send", "mail"));
    let cleared = policies.clear(&of_type, &[], None, "bob").await;
    assert_eq!(cleared.unwrap(), 0, "no document");
    // The number does not come back.
    let set = policies.set(&of_type, &paused("r"), Some(0), "ann").await;
    assert_eq!(set.unwrap(), 3);
    let parts = json!({"pause": {"reason": "r"}});
    let facts = fleet.facts().await;
    let fact = |version: u64, by: &str, before: bool, after: bool| {
        let mut data = json!({"scope": "type:mail.send", "version": version, "by": by});
        if before {
            data["before"] = parts.clone();
        }
        if after {
            data["after"] = parts.clone();
        }
        ("policy.changed".to_owned(), data)
    };
    assert_eq!(
        facts,
        [
            fact(1, "ann", false, true),
            fact(2, "bob", true, false),
            fact(3, "ann", false, true)
        ]
    );
}

#[tokio::test]
async fn of_two_who_replace_the_same_version_one_is_refused() {
    let fleet = Fleet::start().await;
    let policies = policies(&fleet);
    let domain = scope("domain:mail");
    let first = policies.set(&domain, &paused("a"), Some(0), "ann").await;
    assert_eq!(first.unwrap(), 1);
    let second = policies.set(&domain, &paused("b"), Some(0), "bob").await;
    let Err(CoordinationError::Aborted(message)) = second else {
        panic!("{second:?}");
    };
    assert!(message.contains("is at version 1"), "{message}");
    // Whoever names none changes what is there.
    let third = policies.set(&domain, &paused("b"), None, "bob").await;
    assert_eq!(third.unwrap(), 2);
}

#[tokio::test]
async fn there_are_only_so_many_documents_and_values_are_checked() {
    let mut fleet = Fleet::start().await;
    let policies = policies(&fleet);
    for n in 0..MAX_DOCUMENTS {
        let line = format!("HSET cb:policies subject:mail:s-{n} x");
        fleet.run(&line).await;
    }
    fleet.run("HSET cb:policies version 7").await;
    let one_more = policies
        .set(&scope("domain:mail"), &paused(""), None, "ann")
        .await;
    assert!(matches!(one_more, Err(CoordinationError::Exhausted(_))));
    fleet.run("HDEL cb:policies subject:mail:s-1").await;
    let set = policies
        .set(&scope("domain:mail"), &paused(""), None, "ann")
        .await;
    assert_eq!(set.unwrap(), 8);
    // What nobody can read is passed over.
    policies.refresh().await.unwrap();
    assert!(policies.held().pause_of_type("mail.x", "mail", 0).is_some());
    for (ends, reason) in [
        (Ends::At(1), "r".to_owned()),
        (Ends::In(u64::MAX), "r".to_owned()),
        (Ends::Never, "r".repeat(300)),
    ] {
        let part = [PolicyPart::Pause { ends, reason }];
        let set = policies
            .set(&scope("domain:mail"), &part, None, "ann")
            .await;
        assert!(matches!(set, Err(CoordinationError::Invalid(_))), "{set:?}");
    }
    let cleared = policies
        .clear(&scope("domain:mail"), &["pulse".into()], None, "ann")
        .await;
    assert!(matches!(cleared, Err(CoordinationError::Invalid(_))));
}

#[tokio::test]
async fn ended_pauses_make_room_for_new_ones() {
    let mut fleet = Fleet::start().await;
    let policies = policies(&fleet);
    let ended = [PolicyPart::Pause {
        ends: Ends::In(1),
        reason: String::new(),
    }];
    for n in 0..3 {
        let scope = scope(&format!("subject:mail:ended-{n}"));
        policies.set(&scope, &ended, None, "ann").await.unwrap();
    }
    let now = policies.now().await.unwrap();
    policies.refresh().await.unwrap();
    assert!(!policies.held().has_pauses(now + 10));
    for n in 3..MAX_DOCUMENTS {
        let line = format!("HSET cb:policies subject:mail:s-{n} x");
        fleet.run(&line).await;
    }
    crate::support::until("their time has passed", async || {
        policies.now().await.unwrap() > now + 10
    })
    .await;
    let domain = scope("domain:mail");
    let set = policies.set(&domain, &paused("r"), None, "bob").await;
    assert!(set.is_ok(), "{set:?}");
    let (left, _) = policies.list().await.unwrap();
    let left: Vec<_> = left.iter().map(|(scope, _)| scope.to_string()).collect();
    assert_eq!(left, ["domain:mail"]);
}

#[tokio::test]
async fn a_field_that_nobody_can_read_hides_no_other_one() {
    let mut fleet = Fleet::start().await;
    let policies = policies(&fleet);
    let domain = scope("domain:mail");
    let set = policies.set(&domain, &paused("r"), None, "ann").await;
    set.unwrap();
    let mut odd = redis::cmd("HSET");
    odd.arg("cb:policies").arg(b"\xff\xfe").arg("x");
    let mut connection = fleet.redis.connection().await;
    odd.query_async::<()>(&mut connection).await.unwrap();
    assert!(policies.refresh().await.unwrap());
    assert!(policies.held().pause_of_type("mail.x", "mail", 0).is_some());
    fleet.run("HSET cb:policies version many").await;
    assert!(policies.refresh().await.unwrap());
    assert!(!policies.refresh().await.unwrap(), "it is read once");
    assert!(policies.held().pause_of_type("mail.x", "mail", 0).is_some());
}

#[tokio::test]
async fn limits_are_known_with_those_of_the_domain_behind_them_and_a_pause_beside_them() {
    let fleet = Fleet::start().await;
    let policies = policies(&fleet);
    let limits = async |kind: &str| {
        policies.refresh().await.unwrap();
        policies.held().limits_of(kind, "mail")
    };
    assert_eq!(limits("mail.send").await, RunLimits::default());
    let (of_type, of_domain) = (scope("type:mail.send"), scope("domain:mail"));
    let both = [PolicyPart::Timeout(5000), PolicyPart::MaxAttempts(2)];
    let set = policies.set(&of_domain, &both, None, "ann").await;
    set.unwrap();
    let own = [
        PolicyPart::Timeout(1000),
        PolicyPart::Concurrency {
            worker: Some(3),
            total: Some(9),
        },
    ];
    policies.set(&of_type, &own, None, "ann").await.unwrap();
    let expected = RunLimits {
        worker: Some(3),
        timeout: Some(Duration::from_secs(1)),
        max_attempts: Some(2),
        rate: None,
        total: Some(9),
    };
    assert_eq!(limits("mail.send").await, expected);
    assert!(
        !policies.held().names("mail.send", "mail"),
        "nothing is paused"
    );
    // A pause leaves the limits as they are, and goes alone.
    let set = policies.set(&of_type, &paused("r"), None, "ann").await;
    set.unwrap();
    assert_eq!(limits("mail.send").await, expected);
    assert!(policies.held().names("mail.send", "mail"));
    let parts = ["timeout_ms".to_owned(), "pause".to_owned()];
    policies.clear(&of_type, &parts, None, "ann").await.unwrap();
    let expected = RunLimits {
        timeout: Some(Duration::from_secs(5)),
        ..expected
    };
    assert_eq!(limits("mail.send").await, expected);
    assert_eq!(limits("mail.read").await.worker, None);
}

#[tokio::test]
async fn the_last_changes_are_kept_with_who_and_why_and_no_more_of_them() {
    let mut fleet = Fleet::start().await;
    let policies = policies(&fleet);
    for n in 0..KEPT_CHANGES {
        fleet
            .run(&format!("XADD cb:policies:changes * type old data x{n}"))
            .await;
    }
    let of_type = scope("type:mail.send");
    let why = Author {
        by: "ann",
        reason: "the relay",
    };
    let attempts = |most| [PolicyPart::MaxAttempts(most)];
    policies
        .set(&of_type, &attempts(1), None, why)
        .await
        .unwrap();
    let other = scope("domain:mail");
    policies
        .set(&other, &attempts(3), None, "bob")
        .await
        .unwrap();
    policies
        .set(&of_type, &attempts(2), None, "bob")
        .await
        .unwrap();
    // The same again is no change.
    policies
        .set(&of_type, &attempts(2), None, why)
        .await
        .unwrap();
    let kept: usize = fleet.ask("XLEN cb:policies:changes").await;
    assert_eq!(kept, KEPT_CHANGES);
    let all = policies.history(None, None, 50).await.unwrap();
    let said: Vec<_> = all
        .iter()
        .map(|one| {
            (
                one.scope.as_str(),
                one.version,
                one.by.as_str(),
                one.reason.as_str(),
            )
        })
        .collect();
    assert_eq!(
        said,
        [
            ("type:mail.send", 3, "bob", ""),
            ("domain:mail", 2, "bob", ""),
            ("type:mail.send", 1, "ann", "the relay"),
        ]
    );
    assert!(all.iter().all(|one| one.at > 0));
    let last = policies.history(Some(&of_type), Some(3), 1).await.unwrap();
    assert_eq!(last.len(), 1);
    assert_eq!(last[0].version, 1);
    assert!(last[0].before.is_none() && last[0].after.is_some());
    let long = Author {
        by: "ann",
        reason: &"r".repeat(300),
    };
    let set = policies.set(&of_type, &attempts(5), None, long).await;
    assert!(matches!(set, Err(CoordinationError::Invalid(_))), "{set:?}");
}
