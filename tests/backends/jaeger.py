"""A real Jaeger: it takes spans by OTLP, and is asked by the HTTP API of its pages."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from tests.backends.programs import program
from tests.backends.servers import PATIENCE, once_complete, running
from tests.e2e.runtimes import free_ports
from tests.e2e.trace_promises import Span, SpanEvent, SpanLink

LIMIT = "1000"


class Jaeger:
    """A running Jaeger.

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
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        }

    def services(self) -> list[str]:
        return list(self._get("/api/services") or ())

    def spans_of_session(self, session: str, number: int) -> Sequence[Span]:
        def find() -> list[Span]:
            found = self._search(tags=json.dumps({"session.id": session}))
            return [span for span in found if span.attributes.get("session.id") == session]

        return once_complete(find, number, "spans")

    def spans_of_trace(self, trace_id: str, number: int) -> Sequence[Span]:
        return once_complete(lambda: _spans(self._get(f"/api/traces/{trace_id}") or ()), number, "spans")

    def traces_by_session(self, number: int) -> dict[str, set[str]]:
        def find() -> list[tuple[str, set[str]]]:
            found: dict[str, set[str]] = {}
            for span in self._search():
                found.setdefault(span.attributes["session.id"], set()).add(span.trace_id)
            return list(found.items())

        return dict(once_complete(find, number, "sessions"))

    def _search(self, **parameters: str) -> list[Span]:
        traces: dict[str, Any] = {}  # one of several services is found by each of them
        for service in self.services():
            for trace in self._get("/api/traces", service=service, limit=LIMIT, **parameters) or ():
                traces[trace["traceID"]] = trace
        return _spans(traces.values())

    def _get(self, path: str, **parameters: str) -> Any:
        answer = self._client.get(path, params=parameters)
        if answer.status_code == 404:
            return None
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]


@contextmanager
def jaeger(directory: Path, grpc_port: int | None = None) -> Iterator[Jaeger]:
    """Run Jaeger, which keeps its spans in memory, until the test is through.

    Args:
        directory: For its log.
        grpc_port: Where it takes OTLP over gRPC; a free one where none is given.
    """
    names = (
        "collector.otlp.http.host-port",
        "collector.otlp.grpc.host-port",
        "query.http-server.host-port",
        "admin.http.host-port",
        "collector.grpc-server.host-port",
        "collector.http-server.host-port",
        "query.grpc-server.host-port",
    )
    ports = free_ports(len(names))
    if grpc_port is not None:
        ports[1] = grpc_port
    options = [f"--{name}=127.0.0.1:{port}" for name, port in zip(names, ports, strict=True)]
    ready = f"http://127.0.0.1:{ports[3]}/"
    with (
        running([program("jaeger"), *options], directory / "jaeger.log", ready),
        httpx.Client(base_url=f"http://127.0.0.1:{ports[2]}", timeout=PATIENCE, trust_env=False) as client,
    ):
        yield Jaeger(client, ports[0], ports[1])


def _spans(traces: Any) -> list[Span]:
    spans = [_span(span, trace["processes"][span["processID"]]) for trace in traces for span in trace["spans"]]
    return sorted(spans, key=lambda span: span.start_time)


def _span(span: dict[str, Any], process: dict[str, Any]) -> Span:
    tags = _tags(span["tags"])
    parents = [each["spanID"] for each in span["references"] if each["refType"] == "CHILD_OF"]
    others = [each for each in span["references"] if each["refType"] != "CHILD_OF"]
    start = datetime.fromtimestamp(span["startTime"] / 1e6, UTC)
    return Span(
        name=span["operationName"],
        trace_id=span["traceID"],
        span_id=span["spanID"],
        parent_id=parents[0] if parents else None,
        start_time=start,
        end_time=start + timedelta(microseconds=span["duration"]),
        status_code=tags.get("otel.status_code", "UNSET"),
        status_message=tags.get("otel.status_description", ""),
        attributes=tags,
        events=[_event(_tags(log["fields"])) for log in span["logs"]],
        links=[SpanLink(each["traceID"], each["spanID"], {}) for each in others],
        kind=tags.get("span.kind", "").upper(),
        trace_state=tags.get("w3c.tracestate", ""),
        scope=tags.get("otel.scope.name", ""),
        resource={"service.name": process["serviceName"], **_tags(process["tags"])},
    )


def _tags(tags: list[dict[str, Any]]) -> dict[str, Any]:
    # Integers that a page's script cannot hold are texts.
    return {tag["key"]: int(tag["value"]) if tag["type"] == "int64" else tag["value"] for tag in tags}


def _event(fields: dict[str, Any]) -> SpanEvent:
    return SpanEvent(fields.pop("event"), fields)
