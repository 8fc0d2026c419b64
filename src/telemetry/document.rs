//! The JSON of OTLP, as far as it is told: <https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding>.
//!
//! Ids are hexadecimal, 64-bit numbers are text, enumerations are numbers, names are in camel case. One line is one
//! document, of spans, of metrics or of log records, as the collector's file exporter writes them. Written by hand: the
//! crate of the protocol's types brings a code generator's run time, and with its JSON a client of HTTP.

#![allow(
    clippy::enum_variant_names,
    reason = "the names are those of the protocol"
)]

use super::Options;
use super::measures::Metric;
use super::queue::LogRecord;
use super::span::Written;
use serde::{Serialize, Serializer};

/// The release of the conventions after which things are named.
const SCHEMA: &str = "https://opentelemetry.io/schemas/1.36.0";
/// The variable by which OpenTelemetry's own libraries are told a service's name.
const SERVICE: &str = "OTEL_SERVICE_NAME";

/// A name and a value.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Attribute {
    key: String,
    value: Value,
}

/// Several.
pub(crate) type Attributes = Vec<Attribute>;

/// A value.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Value {
    /// Text.
    StringValue(String),
    /// A whole number, which is written as text.
    #[serde(serialize_with = "as_text")]
    IntValue(i64),
    /// A number.
    DoubleValue(f64),
    /// Yes or no.
    BoolValue(bool),
}

impl Attribute {
    pub(crate) fn new(key: impl Into<String>, value: Value) -> Self {
        Self {
            key: key.into(),
            value,
        }
    }

    pub(crate) fn text(key: impl Into<String>, value: impl Into<String>) -> Self {
        Self::new(key, Value::StringValue(value.into()))
    }

    pub(crate) fn number(key: impl Into<String>, value: i64) -> Self {
        Self::new(key, Value::IntValue(value))
    }

    /// The value, if it is text.
    pub(crate) fn as_text(&self) -> &str {
        match &self.value {
            Value::StringValue(text) => text,
            _ => "",
        }
    }

    /// About how many bytes it takes.
    pub(crate) fn weight(&self) -> usize {
        size_of::<Self>() + self.key.len() + self.as_text().len()
    }
}

fn as_text<S: Serializer>(number: &i64, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(number)
}

/// A line.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Line<'a> {
    /// Of spans.
    ResourceSpans([Of<'a, Scope<Written>>; 1]),
    /// Of metrics.
    ResourceMetrics([Of<'a, Scope<Metric>>; 1]),
    /// Of log records.
    ResourceLogs([Of<'a, Scope<LogRecord>>; 1]),
}

/// Whose.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Of<'a, S> {
    resource: &'a Resource,
    #[serde(flatten)]
    scope: S,
    schema_url: &'static str,
}

/// By which library.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Scope<T> {
    /// Spans of it.
    ScopeSpans([Scoped<T>; 1]),
    /// Metrics of it.
    ScopeMetrics([Scoped<T>; 1]),
    /// Log records of it.
    ScopeLogs([Scoped<T>; 1]),
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Scoped<T> {
    scope: Library,
    #[serde(skip_serializing_if = "Option::is_none")]
    spans: Option<Vec<T>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metrics: Option<Vec<T>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    log_records: Option<Vec<T>>,
}

#[derive(Debug, Serialize)]
struct Library {
    name: &'static str,
    version: &'static str,
}

const LIBRARY: Library = Library {
    name: "convoke",
    version: env!("CARGO_PKG_VERSION"),
};

impl<'a> Line<'a> {
    pub(super) fn spans(resource: &'a Resource, spans: Vec<Written>) -> Self {
        let scoped = Scoped {
            scope: LIBRARY,
            spans: Some(spans),
            metrics: None,
            log_records: None,
        };
        Self::ResourceSpans([of(resource, Scope::ScopeSpans([scoped]))])
    }

    pub(super) fn metrics(resource: &'a Resource, metrics: Vec<Metric>) -> Self {
        let scoped = Scoped {
            scope: LIBRARY,
            spans: None,
            metrics: Some(metrics),
            log_records: None,
        };
        Self::ResourceMetrics([of(resource, Scope::ScopeMetrics([scoped]))])
    }

    pub(super) fn logs(resource: &'a Resource, records: Vec<LogRecord>) -> Self {
        let scoped = Scoped {
            scope: LIBRARY,
            spans: None,
            metrics: None,
            log_records: Some(records),
        };
        Self::ResourceLogs([of(resource, Scope::ScopeLogs([scoped]))])
    }
}

fn of<S>(resource: &Resource, scope: S) -> Of<'_, S> {
    Of {
        resource,
        scope,
        schema_url: SCHEMA,
    }
}

/// Who tells it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Resource {
    attributes: Attributes,
    #[serde(skip)]
    pub instance: String,
    #[serde(skip)]
    pub group: String,
}

impl Resource {
    pub(super) fn new(options: &Options<'_>) -> Self {
        let service = std::env::var(SERVICE).unwrap_or_default();
        let service = match service.as_str() {
            "" => "convoke",
            service => service,
        };
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        Self {
            attributes: vec![
                Attribute::text("service.name", service),
                Attribute::text("service.namespace", options.namespace),
                Attribute::text("service.instance.id", options.instance),
                Attribute::text("service.version", env!("CARGO_PKG_VERSION")),
                Attribute::text("host.name", host.trim()),
                Attribute::number("process.pid", std::process::id().into()),
            ],
            instance: options.instance.to_owned(),
            group: options.group.to_owned(),
        }
    }
}
