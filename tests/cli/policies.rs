//! `pause`, `resume` and `policy`.

use super::worker::Worker;
use super::{convoke, run};
use crate::support::Redis;
use serde_json::json;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_paused_is_listed_until_it_is_resumed() {
    let redis = Redis::start();
    let worker = Worker::start(&redis, "w-1", &mut convoke(&redis, &["worker", "--id=w-1"]));
    let paused = run(
        &redis,
        &["pause", "mail.send", "--for", "20m", "--reason", "repair"],
    );
    let paused = paused.done();
    assert_eq!(paused.out, "type:mail.send: paused for 20m, version 1\n");
    run(&redis, &["pause", "--subject", "mail:shop-7"]).done();
    let shown = run(&redis, &["policy", "show", "type:mail.send"]).done();
    for part in ["type:mail.send", "repair", "in 19m"] {
        assert!(shown.out.contains(part), "{}", shown.out);
    }
    let all = run(&redis, &["policy", "list", "--format", "json"]).done();
    assert_eq!(all.out.lines().count(), 2);
    assert!(all.out.contains("subject:mail:shop-7"), "{}", all.out);
    run(&redis, &["pause", "mail.send", "--version", "9"])
        .failed(1, &["aborted", "is at version 1"]);
    let resumed = run(&redis, &["resume", "mail.send", "--format", "json"]).done();
    assert_eq!(
        resumed.json(),
        json!({"scope": "type:mail.send", "version": 3})
    );
    run(&redis, &["resume", "mail.send"]).failed(1, &["no policy of type:mail.send"]);
    run(&redis, &["pause", "system.ping"]).failed(1, &["control plane"]);
    run(&redis, &["pause", "mail.send", "--domain", "mail"]).failed(2, &["cannot be used with"]);
    drop(worker);
}
