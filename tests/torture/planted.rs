//! The bugs of `scripts/planted` still fit the code that they are planted in.

use std::fs;
use std::path::Path;
use std::process::Command;

#[test]
fn each_planted_bug_fits_the_code() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut bugs = 0;
    for file in fs::read_dir(root.join("tests/torture/planted")).unwrap() {
        let patch = file.unwrap().path();
        let text = fs::read_to_string(&patch).unwrap();
        assert!(text.contains("\nFound by: --test torture"), "{patch:?}");
        let checked = Command::new("git")
            .args(["apply", "--check"])
            .arg(&patch)
            .current_dir(root)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&checked.stderr);
        assert!(checked.status.success(), "{patch:?}: {said}");
        bugs += 1;
    }
    assert_eq!(bugs, 12);
}
