//! A debug build keeps what is awaited on the stack of whoever polls it, several times: what is deep or large
//! overflows it. Users' threads have 2 MiB, as tokio's do.

use crate::batches::{batch, process};
use crate::rig::Rig;
use convoke::{Context, HandlerError};
use serde_json::json;
use std::thread;
use tokio::runtime;

const QUARTER: usize = 512 * 1024;

async fn add(_: Context, number: u64) -> Result<u64, HandlerError> {
    Ok(number + 1)
}

/// Asks a worker for what reads much, and has it run what is nested.
async fn all() {
    let rig = Rig::new().await;
    let running = rig.start(rig.builder().handler("number.add", add));
    rig.wait_for_fact("instance.registered", 1).await;
    for asked in ["system.get_state", "system.health", "system.metrics"] {
        rig.ask(asked, &json!({})).await.unwrap();
    }
    for mode in ["exclusive", "fan_out"] {
        let told = process(&rig, &batch(mode, mode, 0..5)).await;
        assert_eq!(told["items_processed"], 5, "{told}");
    }
    running.stop().await;
}

#[test]
fn a_worker_and_its_client_take_a_quarter_of_a_threads_stack_at_most() {
    let quarter = thread::Builder::new().stack_size(QUARTER).spawn(|| {
        let mut runtime = runtime::Builder::new_multi_thread();
        let runtime = runtime
            .worker_threads(2)
            .thread_stack_size(QUARTER)
            .enable_all();
        runtime.build().unwrap().block_on(all());
    });
    quarter.unwrap().join().unwrap();
}
