//! Dead letters: events that will not be retried, with everything that tells why.

use super::event::Entry;

/// An event that will not be retried.
#[derive(Clone, Debug)]
pub struct DeadLetter {
    /// Its entry as it came.
    pub entry: Entry,
    /// A code of the protocol, or `poison`.
    pub reason: String,
    /// What happened.
    pub message: String,
    /// Tries so far.
    pub attempts: u32,
    /// Deliveries of this entry.
    pub deliveries: u32,
    /// The stream that it stood on.
    pub stream: String,
    /// Who gave it up.
    pub instance: String,
    /// When, in Unix milliseconds.
    pub time: u64,
}

/// The reason of an event that was delivered too often without ever being committed.
pub const POISON: &str = "poison";

impl DeadLetter {
    /// The fields of its entry: the event's own in their order, then those that begin with `dead`.
    pub fn fields(&self) -> Vec<Vec<u8>> {
        let DeadLetter { entry, .. } = self;
        let mut fields: Vec<Vec<u8>> = entry.words().map(<[u8]>::to_vec).collect();
        let mut add = |name: &str, value: &str| {
            fields.push(name.into());
            fields.push(value.into());
        };
        add("deadreason", &self.reason);
        add("deadmessage", &self.message);
        add("deadattempts", &self.attempts.to_string());
        add("deaddeliveries", &self.deliveries.to_string());
        add("deadstream", &self.stream);
        add("deadentry", &entry.id.to_string());
        add("deadinstance", &self.instance);
        add("deadtime", &self.time.to_string());
        fields
    }
}
