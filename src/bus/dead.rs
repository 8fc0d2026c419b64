//! Dead letters: events that will not be retried, with everything that tells why.

use super::event::Entry;
use serde_bytes::Bytes;

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

/// Fields of an event that stay fields of its dead letter, whatever their number.
const KEPT: usize = 500;

/// The reason of an event that was delivered too often without ever being committed.
pub const POISON: &str = "poison";

impl DeadLetter {
    /// The fields of its entry: the event's own in their order, then those that begin with `dead`.
    ///
    /// A script can not write any number of words at once. From the 501st on, the event's names and
    /// values are one field, `deadrest`: a MessagePack array of binaries, names and values in turn.
    pub fn fields(&self) -> Vec<Vec<u8>> {
        let DeadLetter { entry, .. } = self;
        let (kept, rest) = entry.fields.split_at(entry.fields.len().min(2 * KEPT));
        let mut fields = Vec::with_capacity(kept.len() + 18);
        fields.extend_from_slice(kept);
        if !rest.is_empty() {
            let rest: Vec<&Bytes> = rest.iter().map(|word| Bytes::new(word)).collect();
            fields.push(b"deadrest".to_vec());
            // Binaries have no form that MessagePack lacks.
            fields.push(rmp_serde::to_vec(&rest).unwrap_or_default());
        }
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
