#!/usr/bin/python3
"""Reads files of OTLP's JSON lines with the protocol's own types (opentelemetry-proto), strictly; prints what is in them.

    otlp.py FILE...

Each line must be one request of traces, metrics or logs with no field that the protocol does not know. Ids are hexadecimal in OTLP's
JSON, where protobuf's own JSON would have base64: they are rewritten before they are read.
"""

import base64
import collections
import json
import sys

from google.protobuf import json_format
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

REQUESTS = {
    "resourceSpans": ExportTraceServiceRequest,
    "resourceMetrics": ExportMetricsServiceRequest,
    "resourceLogs": ExportLogsServiceRequest,
}
IDS = {"traceId": 16, "spanId": 8, "parentSpanId": 8}


def rewritten(value, name=None):
    if isinstance(value, dict):
        return {key: rewritten(one, key) for key, one in value.items()}
    if isinstance(value, list):
        return [rewritten(one) for one in value]
    if name in IDS:
        assert value == value.lower() and len(value) == 2 * IDS[name], f"{name}: {value}"
        return base64.b64encode(bytes.fromhex(value)).decode()
    return value


def texts(attributes):
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


def main():
    counts = collections.Counter()
    for file in sys.argv[1:]:
        for number, line in enumerate(open(file, encoding="utf-8"), 1):
            document = json.loads(line)
            assert len(document) == 1 and len(line) < 1 << 20, f"{file}:{number}"
            kind = next(iter(document))
            request = json_format.Parse(json.dumps(rewritten(document)), REQUESTS[kind](), ignore_unknown_fields=False)
            for resource in getattr(request, {"resourceSpans": "resource_spans", "resourceMetrics": "resource_metrics", "resourceLogs": "resource_logs"}[kind]):
                of = texts(resource.resource.attributes)
                assert of["service.name"] and of["service.instance.id"], of
                if kind == "resourceSpans":
                    for span in resource.scope_spans[0].spans:
                        says = texts(span.attributes)
                        counts[f"{Span.SpanKind.Name(span.kind)[10:].lower()} spans"] += 1
                        assert span.end_time_unix_nano >= span.start_time_unix_nano > 1.7e18, span
                        assert says["messaging.operation.type"] in ("process", "send", "settle"), says
                        assert isinstance(says["messaging.message.body.size"], int)
                elif kind == "resourceMetrics":
                    for metric in resource.scope_metrics[0].metrics:
                        counts["metrics"] += 1
                        data = getattr(metric, metric.WhichOneof("data"))
                        assert metric.unit and metric.description and data.data_points, metric
                        for point in data.data_points:
                            assert point.time_unix_nano >= point.start_time_unix_nano > 1.7e18
                            if metric.HasField("histogram"):
                                assert len(point.bucket_counts) == len(point.explicit_bounds) + 1
                                assert sum(point.bucket_counts) == point.count
                                assert list(point.explicit_bounds) == sorted(set(point.explicit_bounds))
                else:
                    for record in resource.scope_logs[0].log_records:
                        counts["log records"] += 1
                        counts["log records of a run"] += bool(record.span_id)
                        assert record.body.string_value and 1 <= record.severity_number <= 24, record
            counts["lines"] += 1
    print(", ".join(f"{count} {name}" for name, count in sorted(counts.items())))
    sys.exit(not counts["lines"])


if __name__ == "__main__":
    main()
