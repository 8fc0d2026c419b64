//! Any bytes as the data of a reply, with any status.

#![no_main]

use convoke::protocol::event::{Entry, EntryId, Limits};
use convoke::protocol::reply::Reply;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&selector, data)) = data.split_first() else {
        return;
    };
    let length = usize::from(selector & 0x3f).min(data.len());
    let (status, data) = match selector >> 6 {
        0 => (&b"ok"[..], data),
        1 => (&b"internal"[..], data),
        _ => data.split_at(length),
    };
    let fields = [
        (&b"correlationid"[..], &b"1-0"[..]),
        (b"type", b"image.resize.result"),
        (b"status", status),
        (b"data", data),
    ];
    let words = fields.into_iter().flat_map(|(name, value)| [name, value]);
    let entry = Entry::new(EntryId { ms: 1, seq: 0 }, words);
    if let Ok(Ok(reply)) = Reply::parse(&entry, &Limits::default()) {
        reply.decode::<serde_json::Value>().ok();
    }
});
