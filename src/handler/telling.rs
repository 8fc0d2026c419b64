//! What telemetry says about what a run published: each event that is stored has a span of its own, to which whoever runs it
//! holds on as its parent.

use crate::protocol::entry::EntryId;
use crate::protocol::error::HandlerError;
use crate::protocol::trace::TraceContext;
use crate::streams::commit::Publication;
use crate::telemetry::{Message, Span, Work};

/// The code and the message of a run's failure.
pub(crate) fn error_of(error: &HandlerError) -> (&'static str, String) {
    (error.code.as_str(), error.bounded_message().to_owned())
}

/// The span of storing an event that the run with that span published, if the event carries one of its own.
pub(crate) fn sent(run: TraceContext, publication: &Publication) -> Option<Span> {
    let field = |name: &str| {
        let mut pairs = publication.fields.chunks_exact(2);
        let pair = pairs.find(|pair| pair[0] == name.as_bytes())?;
        std::str::from_utf8(&pair[1]).ok()
    };
    let own = TraceContext::parse(field("traceparent")?)?;
    let mut pairs = publication.fields.chunks_exact(2);
    let data = pairs.find(|pair| pair[0] == b"data");
    own.is_beside(&run).then(|| Span {
        own,
        parent: Some(run),
        work: Work::Send,
        message: Message {
            stream: publication.stream.clone(),
            kind: field("type").unwrap_or_default().to_owned(),
            id: String::new(),
            entry: EntryId::default(),
            attempt: 1,
            deliveries: 0,
            bytes: data.map_or(0, |pair| pair[1].len()),
        },
        times: (0, 0),
        error: None,
    })
}
