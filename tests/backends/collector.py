"""A real OpenTelemetry Collector: it takes spans by OTLP and writes them to a file, from which they are read."""

import base64
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.backends.programs import program
from tests.backends.servers import once_complete, running
from tests.certificates import Certificates
from tests.e2e.runtimes import free_ports
from tests.e2e.trace_promises import Span, SpanEvent, SpanLink

KINDS = ("UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER")
STATUS_CODES = ("UNSET", "OK", "ERROR")


class Collector:
    """A Collector that can be stopped and started again.

    Args:
        directory: For its configuration, its log and the spans.
        certs: TLS: the Collector's certificate, and the authority of those that it demands; without, plain text.
        token: Demanded of whoever sends spans.
        forward_to: Where it sends the spans besides, by OTLP over gRPC. Where that fails,
            it says so to its own clients at once.
    """

    def __init__(
        self,
        directory: Path,
        certs: Certificates | None = None,
        token: str | None = None,
        forward_to: int | None = None,
    ) -> None:
        self._file = directory / "spans.json"
        self._log = directory / "collector.log"
        self._configuration = directory / "collector.yaml"
        self._http_port, self._grpc_port, self._health_port = free_ports(3)
        self._scheme = "https" if certs else "http"
        configuration = self._configured(certs, token, forward_to)
        self._configuration.write_text(json.dumps(configuration))  # which is YAML as well
        self._running = ExitStack()

    def endpoint(self, protocol: str) -> dict[str, str]:
        """The variables that have an agent send its spans here."""
        port = self._grpc_port if protocol == "grpc" else self._http_port
        endpoint = f"{self._scheme}://localhost:{port}"
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol}

    def start(self) -> None:
        command: list[str | Path] = [program("collector"), "--config", self._configuration]
        self._running.enter_context(running(command, self._log, f"http://127.0.0.1:{self._health_port}/"))

    def stop(self) -> None:
        self._running.close()

    @property
    def log(self) -> str:
        return self._log.read_text()

    def spans(self) -> list[Span]:
        """All that have arrived, in the order of their beginning."""
        text = self._file.read_text() if self._file.exists() else ""
        batches = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        return sorted((span for batch in batches for span in _spans(batch)), key=lambda span: span.start_time)

    def spans_of_session(self, session: str, number: int) -> Sequence[Span]:
        def find() -> list[Span]:
            return [span for span in self.spans() if span.attributes.get("session.id") == session]

        return once_complete(find, number, "spans")

    def spans_of_trace(self, trace_id: str, number: int) -> Sequence[Span]:
        return once_complete(lambda: [span for span in self.spans() if span.trace_id == trace_id], number, "spans")

    def traces_by_session(self, number: int) -> dict[str, set[str]]:
        def find() -> list[tuple[str, set[str]]]:
            found: dict[str, set[str]] = {}
            for span in self.spans():
                found.setdefault(span.attributes["session.id"], set()).add(span.trace_id)
            return list(found.items())

        return dict(once_complete(find, number, "sessions"))

    def _configured(self, certs: Certificates | None, token: str | None, forward_to: int | None) -> dict[str, Any]:
        demands: dict[str, Any] = {}
        extensions: dict[str, Any] = {"health_check": {"endpoint": f"127.0.0.1:{self._health_port}"}}
        if certs is not None:
            demands["tls"] = {
                "cert_file": str(certs.server),
                "key_file": str(certs.server_key),
                "client_ca_file": str(certs.authority),
            }
        if token is not None:
            extensions["bearertokenauth"] = {"scheme": "Bearer", "token": token}
            demands["auth"] = {"authenticator": "bearertokenauth"}
        exporters: dict[str, Any] = {"file": {"path": str(self._file), "flush_interval": "100ms"}}
        if forward_to is not None:
            exporters["otlp_grpc"] = {
                "endpoint": f"127.0.0.1:{forward_to}",
                "tls": {"insecure": True},
                "sending_queue": {"enabled": False},
                "retry_on_failure": {"enabled": False},
            }
        protocols = {
            "grpc": {"endpoint": f"127.0.0.1:{self._grpc_port}", **demands},
            "http": {"endpoint": f"127.0.0.1:{self._http_port}", **demands},
        }
        return {
            "extensions": extensions,
            "receivers": {"otlp": {"protocols": protocols}},
            "exporters": exporters,
            "service": {
                "telemetry": {"metrics": {"level": "none"}},
                "extensions": list(extensions),
                "pipelines": {"traces": {"receivers": ["otlp"], "exporters": list(exporters)}},
            },
        }


@contextmanager
def collector(
    directory: Path, certs: Certificates | None = None, token: str | None = None, forward_to: int | None = None
) -> Iterator[Collector]:
    """Run a Collector until the test is through."""
    instance = Collector(directory, certs, token, forward_to)
    try:
        instance.start()
        yield instance
    finally:
        instance.stop()


def _spans(batch: dict[str, Any]) -> Iterator[Span]:
    for of_resource in batch["resourceSpans"]:
        resource = _attributes(of_resource.get("resource", {}))
        for of_scope in of_resource["scopeSpans"]:
            for span in of_scope["spans"]:
                yield Span(
                    name=span["name"],
                    trace_id=span["traceId"],
                    span_id=span["spanId"],
                    parent_id=span.get("parentSpanId") or None,
                    start_time=_time(span["startTimeUnixNano"]),
                    end_time=_time(span["endTimeUnixNano"]),
                    status_code=STATUS_CODES[span.get("status", {}).get("code", 0)],
                    status_message=span.get("status", {}).get("message", ""),
                    attributes=_attributes(span),
                    events=[SpanEvent(event["name"], _attributes(event)) for event in span.get("events", ())],
                    links=[
                        SpanLink(link["traceId"], link["spanId"], _attributes(link)) for link in span.get("links", ())
                    ],
                    kind=KINDS[span["kind"]],
                    trace_state=span.get("traceState", ""),
                    scope=of_scope["scope"].get("name", ""),
                    resource=resource,
                )


def _time(nanoseconds: str) -> datetime:
    return datetime.fromtimestamp(int(nanoseconds) / 1e9, UTC)


def _attributes(of: dict[str, Any]) -> dict[str, Any]:
    return {pair["key"]: _value(pair["value"]) for pair in of.get("attributes", ())}


def _value(value: dict[str, Any]) -> Any:
    """A value of the protocol's JSON (opentelemetry-proto, ``docs/specification.md``, "JSON Protobuf Encoding")."""
    if not value:
        return None
    ((kind, content),) = value.items()
    match kind:
        case "intValue":
            return int(content)
        case "bytesValue":
            return base64.b64decode(content)
        case "arrayValue":
            return [_value(item) for item in content.get("values", ())]
        case "kvlistValue":
            return {pair["key"]: _value(pair["value"]) for pair in content.get("values", ())}
        case _:
            return content
