//! In which patterns system events are answered by the workers that tests start.

use convoke::protocol::pattern::{Patterned, Patterns};

/// The patterns in the place of the defaults, such as `register=hybrid heartbeat=distributed`.
const PATTERNS: &str = "TEST_PATTERNS";

/// The defaults, or what the environment says.
pub(crate) fn patterns() -> Patterns {
    let mut patterns = Patterns::default();
    let told = std::env::var(PATTERNS).unwrap_or_default();
    for one in told.split_whitespace() {
        let told = one.split_once('=');
        let (event, pattern) = told.unwrap_or_else(|| panic!("{PATTERNS}: {one}"));
        let event = Patterned::named(event).unwrap();
        patterns.set(event, event.pattern(pattern).unwrap());
    }
    patterns
}
