//! Any bytes as what is kept of a task, a batch, a ballot, an instance and a handler: each is read, or is
//! none; what is read can be encoded again.

#![no_main]

mod fields;

use convoke::coordination::ballots::ballot::Ballot;
use convoke::coordination::batches::batch::Batch;
use convoke::coordination::catalog::Method;
use convoke::coordination::instances::instance::Instance;
use convoke::coordination::tasks::task::Task;
use libfuzzer_sys::fuzz_target;
use std::collections::HashMap;

const NAMES: [&str; 31] = [
    "id",
    "status",
    "item_type",
    "mode",
    "processor",
    "processed",
    "failed",
    "total",
    "fence",
    "expires",
    "started_at",
    "updated_at",
    "failure:0",
    "failure:9",
    "decision",
    "role",
    "vote_count",
    "leading",
    "quorum",
    "electorate",
    "opened_at",
    "expires_at",
    "ended_at",
    "kept_until",
    "value",
    "roles",
    "capacity",
    "capabilities",
    "metrics",
    "metadata",
    "load",
];

fuzz_target!(|data: &[u8]| {
    if let Some(task) = Task::from_record("t-1", data) {
        assert!(task.requires.iter().all(|kind| !kind.contains(' ')));
    }
    if let Some(method) = Method::decode(data) {
        serde_json::to_string(&method.input_schema).expect("a schema is JSON");
    }
    let cut = fields::cut(&NAMES, data);
    let hash: HashMap<String, Vec<u8>> = cut
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_vec()))
        .collect();
    Ballot::from_hash(&hash, 1_800_000_000_000);
    Instance::from_hash(hash.clone());
    let text = |value: Vec<u8>| String::from_utf8_lossy(&value).into_owned();
    let hash: HashMap<String, String> = hash.into_iter().map(|(k, v)| (k, text(v))).collect();
    if let Some(batch) = Batch::from_hash(&hash) {
        assert!(batch.failures.is_sorted_by_key(|failure| failure.index));
    }
});
