use crate::builtin::Services;
use crate::coordination::catalog::{Offered, RateLimit};
use crate::coordination::error::CoordinationError;
use crate::handler::state::State;
use crate::{Context, HandlerError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct Discover {
    /// Only the types of this domain: the part before the first dot.
    domain: Option<String>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Method {
    /// The event type.
    r#type: String,
    description: String,
    /// The JSON Schema of the payload; true takes anything.
    input_schema: Value,
    /// The JSON Schema of the result; true is anything.
    output_schema: Value,
    /// Runs that it may have.
    #[serde(skip_serializing_if = "Option::is_none")]
    rate_limit: Option<RateLimit>,
    /// How long a run may take; nil: as long as it takes, or not known.
    timeout_ms: Option<u64>,
    /// How many active instances have a handler for it.
    instances: u64,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Methods {
    /// By type, in order.
    methods: Vec<Method>,
    /// At least this many types did not fit into the answer: name a domain to see them.
    #[serde(skip_serializing_if = "Option::is_none")]
    omitted: Option<u64>,
}

pub(super) async fn discover(
    _: Context,
    event: Discover,
    services: State<Services>,
) -> Result<Methods, HandlerError> {
    let found = services
        .catalog
        .discover(event.domain.as_deref())
        .await
        .map_err(CoordinationError::into_handler_error)?;
    Ok(Methods {
        methods: found.methods.into_iter().map(shown).collect(),
        omitted: Some(found.omitted).filter(|&omitted| omitted > 0),
    })
}

fn shown(offered: Offered) -> Method {
    let method = offered.method;
    Method {
        r#type: offered.kind,
        description: method.description,
        input_schema: method.input_schema,
        output_schema: method.output_schema,
        rate_limit: method.rate_limit,
        timeout_ms: method.timeout_ms,
        instances: offered.instances,
    }
}
