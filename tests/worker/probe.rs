//! What a worker's process says of itself while a handler holds a thread.

use crate::rig::Rig;
use crate::support;
use convoke::client::publish::Outgoing;
use convoke::settings::Settings;
use convoke::worker::vital::probe;
use convoke::{Context, HandlerError};
use std::cell::RefCell;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

const ANSWER: Duration = Duration::from_secs(30);
const STILL: Duration = Duration::from_millis(2500);

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_lane_whose_thread_a_handler_holds_is_named_until_it_lets_go() {
    let rig = Rig::new().await;
    let (lets_go, held) = mpsc::channel::<()>();
    let held = Arc::new(Mutex::new(held));
    let holds = move |_: Context, (): ()| {
        let held = held.clone();
        async move {
            held.lock().unwrap().recv().ok();
            Ok::<_, HandlerError>(())
        }
    };
    let place = std::env::temp_dir().join(format!("convoke-still-{:x}", fastrand::u64(..)));
    let settings = Settings {
        id: "w-1".to_owned(),
        runtime_dir: place.display().to_string(),
        ..rig.settings()
    };
    let running = rig.start(rig.builder().settings(settings).handler("hold.it", holds));
    let socket = probe::socket(&place, "w-1");
    let asked = || probe::ask(&socket, ANSWER);
    support::until("the worker is ready", async || {
        asked().is_ok_and(|signs| signs.ready(STILL).is_ok())
    })
    .await;

    rig.client
        .publish(&Outgoing::new("hold.it", &()))
        .await
        .unwrap();
    // Where the whole process stood still for a moment, another lane may be the one that did so for longest.
    let still = RefCell::new(None);
    support::until("the lane stands still", async || {
        let signs = asked().unwrap();
        let why = signs.live(STILL).err().unwrap_or_default();
        let stands = why.starts_with("lane data has stood still for");
        still.replace(Some(signs));
        stands
    })
    .await;
    assert!(still.take().unwrap().ready(STILL).is_err());

    lets_go.send(()).unwrap();
    support::until("it goes round again", async || {
        asked().unwrap().ready(STILL).is_ok()
    })
    .await;
    running.stop().await;
    assert!(asked().is_err());
    std::fs::remove_dir(&place).unwrap();
}
