//! A client of one's own: from a URL, what it asks is decoded.

use crate::rig::Rig;
use crate::support::users;
use convoke::client::publish::PublishError;
use convoke::client::request::RequestError;
use convoke::protocol::error::Code;
use convoke::{Client, Context, Event, HandlerError, Settings, State};
use std::time::Duration;

struct Prices {
    cents: u64,
}

async fn charge(context: Context, pieces: u64, prices: State<Prices>) -> Result<u64, HandlerError> {
    match (pieces, context.event().subject()) {
        (0, _) => Err(HandlerError::not_found("nothing to charge for").permanent()),
        (_, Some("free")) => Ok(0),
        _ => Ok(pieces * prices.cents),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_from_a_url_asks_and_has_the_answer_as_a_value() {
    let rig = Rig::new().await;
    let builder = rig.builder().handler("account.charge", charge);
    let worker = rig.start(builder.state(Prices { cents: 7 }));
    let client = Client::connect(rig.redis.url_for(users::PUBLISHER)).await;
    let client = client.unwrap();
    let minute = Duration::from_secs(60);
    let cents: u64 = client
        .ask("account.charge", &6)
        .within(minute)
        .await
        .unwrap();
    assert_eq!(cents, 42);
    let free = Event::new("account.charge", &6).subject("free");
    assert_eq!(client.ask_with::<u64>(free).await.unwrap(), 0);

    let refused = client.ask::<u64>("account.charge", &0).await.unwrap_err();
    assert_eq!(refused.code(), Some(Code::NotFound));
    assert_eq!(refused.to_string(), "not_found: nothing to charge for");
    let other = client
        .ask::<String>("account.charge", &1)
        .await
        .unwrap_err();
    assert!(matches!(other, RequestError::Malformed(_)), "{other}");
    assert_eq!(other.code(), None);

    // By value or by reference, as it comes.
    let event = Event::new("account.charge", &1).id("e-1").dedup(true);
    assert!(!client.publish(&event).await.unwrap().is_duplicate());
    assert!(client.publish(event).await.unwrap().is_duplicate());
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_asked_while_the_server_is_away_is_not_stored_and_is_not_at_fault() {
    let mut rig = Rig::new().await;
    rig.redis.kill();
    match rig.ask("account.charge", &6).await {
        Err(RequestError::Publish(PublishError::Rejected { lasting, .. })) => assert!(!lasting),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_answers_a_client_of_another_namespace() {
    let rig = Rig::new().await;
    rig.redis.allow_namespace("shop");
    let builder = rig.builder().handler("account.charge", charge);
    let worker = rig.start(builder.state(Prices { cents: 7 }));
    let client = Client::of(&Settings {
        namespace: "shop".into(),
        ..rig.settings()
    });
    let client = client.unwrap();
    let asked = client.ask::<u64>("account.charge", &6);
    // Long enough that it is stored by then.
    let unheard = asked.within(Duration::from_secs(2)).await.unwrap_err();
    assert!(
        matches!(unheard, RequestError::TimedOut { .. }),
        "{unheard}"
    );
    assert!(rig.exists(&client.keys().events("account", 0)).await);
    worker.stop().await;
}
