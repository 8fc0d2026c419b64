//! SQLite's file is its owner's alone.

use crate::rig::{BROADCAST, Rig, Store};
use serde_json::json;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

fn mode(path: &Path, beside: &str) -> u32 {
    let path = format!("{}{beside}", path.display());
    let file = fs::metadata(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    file.permissions().mode() & 0o777
}

#[tokio::test]
async fn the_ledger_and_what_lies_beside_it_are_its_owners_in_a_directory_that_existed() {
    let store = Store::file();
    let Store::File(path) = &store else {
        unreachable!()
    };
    let path = path.clone();
    let directory = path.parent().unwrap();
    fs::create_dir_all(directory).unwrap();
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
    let rig = Rig::new(store).await;
    let running = rig.fill("w-1");
    for replaced in [false, true] {
        if replaced {
            // Somebody deletes it while it is open: the next one is made again.
            fs::remove_file(&path).unwrap();
        }
        rig.tell("task.completed", &json!({"task_id": "t"})).await;
        rig.until_written().await;
        assert_eq!(rig.backlog(BROADCAST).await, 0);
        for beside in ["", "-wal", "-shm"] {
            assert_eq!(mode(&path, beside), 0o600, "{beside}, {replaced}");
        }
    }
    running.stop().await;
}
