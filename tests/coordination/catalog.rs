//! What is published of handlers, how long it is kept, and how much of it is told.

use crate::fleet::Fleet;
use convoke::connect::connector::Connector;
use convoke::coordination::catalog::{Catalog, MAX_DOMAINS, MAX_METHODS, Method};
use convoke::coordination::instances::instance::Registering;
use convoke::settings::RedisUrl;
use serde_json::json;

fn catalog(fleet: &Fleet) -> Catalog {
    let connector = Connector::new(&RedisUrl::new(fleet.redis.url()), 2).unwrap();
    Catalog::new(connector, fleet.keys.clone())
}

fn method(description: &str) -> Method {
    Method {
        description: description.into(),
        input_schema: json!({"type": "integer"}),
        ..Method::undescribed()
    }
}

async fn register(fleet: &Fleet, id: &str, capabilities: impl IntoIterator<Item = String>) {
    let mut registering = Registering::new(id, ["worker"]);
    registering.capabilities = capabilities.into_iter().collect();
    fleet.instances.register(&registering).await.unwrap();
}

#[tokio::test]
async fn what_is_published_goes_by_itself_and_the_last_to_write_is_shown() {
    let mut fleet = Fleet::start().await;
    let catalog = catalog(&fleet);
    let publish = async |text: &str| {
        let methods = [("image.resize".to_owned(), method(text))];
        catalog.publish(&methods).await.unwrap();
    };
    publish("old").await;
    publish("new").await;
    let left: i64 = fleet.ask("PTTL cb:method:image.resize").await;
    assert!((3_000_000..=3_600_000).contains(&left), "{left}");
    // Published is not offered: that takes an active instance.
    assert!(catalog.discover(None).await.unwrap().methods.is_empty());
    register(&fleet, "w-1", ["image.resize".to_owned()]).await;
    let found = catalog.discover(None).await.unwrap();
    assert_eq!(found.methods[0].method, method("new"));
    // What somebody wrote there that is no method is as good as nothing.
    fleet.run("SET cb:method:image.resize nonsense").await;
    let found = catalog.discover(None).await.unwrap();
    assert_eq!(found.methods[0].method, Method::undescribed());
}

#[tokio::test]
async fn domains_are_remembered_for_a_week_and_bounded() {
    let mut fleet = Fleet::start().await;
    let catalog = catalog(&fleet);
    let now: Vec<u64> = fleet.ask("TIME").await;
    let long_ago = now[0] * 1000 - 7 * 24 * 3_600_000 - 1000;
    let key = fleet.keys.read_domains();
    fleet.run(&format!("ZADD {key} {long_ago} old")).await;
    let lately = long_ago + 60_000;
    fleet.run(&format!("ZADD {key} {lately} lately")).await;
    let one = [("image.resize".to_owned(), method(""))];
    catalog.publish(&one).await.unwrap();
    assert_eq!(catalog.domains().await.unwrap(), ["image", "lately"]);
    let many: Vec<(String, Method)> = (0..MAX_DOMAINS + 20)
        .map(|number| (format!("d{number}.x"), method("")))
        .collect();
    catalog.publish(&many).await.unwrap();
    let domains = catalog.domains().await.unwrap();
    assert_eq!(domains.len(), MAX_DOMAINS);
    assert!(
        !domains.contains(&"lately".to_owned()),
        "the oldest goes first"
    );
    catalog.publish(&[]).await.unwrap();
}

#[tokio::test]
async fn types_are_counted_page_by_page_and_what_is_too_much_is_said() {
    let mut fleet = Fleet::start().await;
    let catalog = catalog(&fleet);
    // Enough for several calls of the script, each type on two instances, one of them expired.
    let types = |domain: &str| {
        let domain = domain.to_owned();
        (0..1000).map(move |number| format!("{domain}.t{number:04}"))
    };
    register(&fleet, "w-1", types("a")).await;
    register(&fleet, "w-2", types("a")).await;
    register(&fleet, "w-3", types("a")).await;
    fleet.expire("w-3").await;
    register(&fleet, "w-4", types("a_b")).await;
    let found = catalog.discover(Some("a")).await.unwrap();
    assert_eq!((found.methods.len(), found.omitted), (1000, 0));
    assert!(found.methods.iter().map(|m| m.kind.clone()).eq(types("a")));
    assert!(found.methods.iter().all(|method| method.instances == 2));
    let all = catalog.discover(None).await.unwrap();
    assert_eq!(all.methods.len(), MAX_METHODS);
    assert!(all.omitted > 0);
    // Long schemas: as many as fit.
    let long: Vec<(String, Method)> = types("a_b")
        .map(|kind| (kind, method(&"x".repeat(1000))))
        .collect();
    catalog.publish(&long).await.unwrap();
    let found = catalog.discover(Some("a_b")).await.unwrap();
    assert_eq!(found.methods.len() as u64 + found.omitted, 1000);
    assert!(found.omitted > 200, "{}", found.omitted);
}

#[tokio::test]
async fn where_very_many_expired_they_are_left_out_of_small_counts_only() {
    let mut fleet = Fleet::start().await;
    let late: Vec<String> = (0..300).map(|n| format!("late-{n}")).collect();
    let alive: Vec<String> = (0..3).map(|n| format!("alive-{n}")).collect();
    for (score, ids) in [(1000u64, &late), (4_000_000_000_000, &alive)] {
        let members: Vec<String> = ids.iter().map(|id| format!("{score} {id}")).collect();
        let add = format!("ZADD cb:instances:active {}", members.join(" "));
        fleet.run(&add).await;
    }
    let can = async |fleet: &mut Fleet, kind: &str, ids: &[String]| {
        let mut add = redis::cmd("ZADD");
        add.arg("cb:capabilities");
        for id in ids {
            add.arg(0).arg(format!("{kind} {id}"));
        }
        add.exec_async(&mut fleet.connection).await.unwrap();
    };
    can(&mut fleet, "a.few", &[&late[..5], &alive[..1]].concat()).await;
    can(&mut fleet, "a.late", &late[..5]).await;
    can(&mut fleet, "a.many", &[&late[..], &alive[..]].concat()).await;
    let offered = catalog(&fleet).discover(None).await.unwrap().methods;
    let told: Vec<_> = offered
        .iter()
        .map(|m| (m.kind.as_str(), m.instances))
        .collect();
    assert_eq!(told, [("a.few", 1), ("a.many", 303)]);
}
