"""A real Tempo: it takes spans by OTLP, and is asked by its HTTP API."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1 import trace_pb2

from tests.backends.programs import program
from tests.backends.servers import PATIENCE, once_complete, running
from tests.e2e.runtimes import free_ports
from tests.e2e.trace_promises import Span, SpanEvent, SpanLink

LIMIT = "1000"


class Tempo:
    """A running Tempo.

    Args:
        client: Reaches its HTTP API.
        http_port: Where it takes OTLP over HTTP.
        grpc_port: Where it takes OTLP over gRPC.
    """

    def __init__(self, client: httpx.Client, http_port: int, grpc_port: int) -> None:
        self._client = client
        self._http_port = http_port
        self._grpc_port = grpc_port

    def endpoint(self, protocol: str) -> dict[str, str]:
        """The variables that have an agent send its spans here."""
        port = self._grpc_port if protocol == "grpc" else self._http_port
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}", "OTEL_EXPORTER_OTLP_PROTOCOL": protocol}

    def spans_of_session(self, session: str, number: int) -> Sequence[Span]:
        def find() -> list[Span]:
            # Tempo looks for what contains the value.
            found = self._found_by(tags=f"session.id={session}")
            return [span for span in found if span.attributes.get("session.id") == session]

        return once_complete(find, number, "spans")

    def spans_of_trace(self, trace_id: str, number: int) -> Sequence[Span]:
        return once_complete(lambda: self._trace(trace_id), number, "spans")

    def traces_by_session(self, number: int) -> dict[str, set[str]]:
        def find() -> list[tuple[str, set[str]]]:
            found: dict[str, set[str]] = {}
            for span in self._found_by():
                found.setdefault(span.attributes["session.id"], set()).add(span.trace_id)
            return list(found.items())

        return dict(once_complete(find, number, "sessions"))

    def _found_by(self, **query: str) -> list[Span]:
        answer = self._client.get("/api/search", params={"limit": LIMIT, **query})
        assert answer.status_code == 200, answer.text
        spans = [span for each in answer.json().get("traces", ()) for span in self._trace(each["traceID"].zfill(32))]
        return sorted(spans, key=lambda span: span.start_time)

    def _trace(self, trace_id: str) -> list[Span]:
        answer = self._client.get(f"/api/traces/{trace_id}", headers={"accept": "application/protobuf"})
        if answer.status_code == 404:
            return []
        assert answer.status_code == 200, answer.text
        trace = trace_pb2.TracesData.FromString(answer.content)
        spans = [
            _span(span, scope.scope.name, _attributes(resource.resource.attributes))
            for resource in trace.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        return sorted(spans, key=lambda span: span.start_time)


@contextmanager
def tempo(directory: Path) -> Iterator[Tempo]:
    """Run Tempo as one process until the test is through.

    Args:
        directory: For its configuration, its log and its traces.
    """
    port, own_port, http_port, grpc_port = free_ports(4)
    file = directory / "tempo.yaml"
    file.write_text(json.dumps(_configuration(directory, port, own_port, http_port, grpc_port)))  # it is YAML as well
    with (
        running([program("tempo"), file], directory / "tempo.log", f"http://127.0.0.1:{port}/ready"),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE, trust_env=False) as client,
    ):
        yield Tempo(client, http_port, grpc_port)


def _configuration(directory: Path, port: int, own_port: int, http_port: int, grpc_port: int) -> Mapping[str, Any]:
    alone = {"kvstore": {"store": "inmemory"}}
    protocols = {
        "http": {"endpoint": f"127.0.0.1:{http_port}"},
        "grpc": {"endpoint": f"127.0.0.1:{grpc_port}"},
    }
    return {
        "server": {
            "http_listen_address": "127.0.0.1",
            "http_listen_port": port,
            "grpc_listen_address": "127.0.0.1",
            "grpc_listen_port": own_port,
            "log_level": "warn",
        },
        "distributor": {"receivers": {"otlp": {"protocols": protocols}}},
        "ingester": {
            "trace_idle_period": "1s",
            "lifecycler": {
                "address": "127.0.0.1",
                "min_ready_duration": "0s",
                "ring": {"replication_factor": 1, **alone},
            },
        },
        "querier": {"frontend_worker": {"frontend_address": f"127.0.0.1:{own_port}"}},
        "compactor": {"ring": {**alone, "wait_stability_min_duration": "0s"}},
        "metrics_generator": {"ring": alone},
        "storage": {
            "trace": {
                "backend": "local",
                "local": {"path": str(directory / "traces")},
                "wal": {"path": str(directory / "wal")},
            }
        },
        "search_enabled": True,
        "usage_report": {"reporting_enabled": False},
    }


def _span(span: trace_pb2.Span, scope: str, resource: dict[str, Any]) -> Span:
    return Span(
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex() or None,
        start_time=datetime.fromtimestamp(span.start_time_unix_nano / 1e9, UTC),
        end_time=datetime.fromtimestamp(span.end_time_unix_nano / 1e9, UTC),
        status_code=trace_pb2.Status.StatusCode.Name(span.status.code).removeprefix("STATUS_CODE_"),
        status_message=span.status.message,
        attributes=_attributes(span.attributes),
        events=[SpanEvent(event.name, _attributes(event.attributes)) for event in span.events],
        links=[SpanLink(link.trace_id.hex(), link.span_id.hex(), _attributes(link.attributes)) for link in span.links],
        kind=trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        trace_state=span.trace_state,
        scope=scope,
        resource=resource,
    )


def _attributes(pairs: Sequence[KeyValue]) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    match kind := value.WhichOneof("value"):
        case None:
            return None
        case "array_value":
            return [_value(item) for item in value.array_value.values]
        case "kvlist_value":
            return _attributes(value.kvlist_value.values)
        case _:
            return getattr(value, kind)
