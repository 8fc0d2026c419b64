//! A service that this build cannot ask. The settings that name one are refused, so there is never any.

use crate::settings::Settings;
use std::time::Duration;

/// None.
#[derive(Debug)]
pub(super) enum Absent {}

impl Absent {
    /// The service that the settings name.
    pub(super) fn of(_: &Settings) -> Option<Self> {
        None
    }

    /// How long it takes to answer.
    pub(super) async fn ask(&self, _: Duration) -> Result<Duration, String> {
        match *self {}
    }
}
