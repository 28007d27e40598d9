"""A real Phoenix: it takes spans by OTLP, and is asked by its HTTP API."""

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

import httpx
import msgspec

from tests.e2e.environments import environment
from tests.e2e.runtimes import free_ports
from tests.e2e.trace_promises import Span, SpanEvent

T = TypeVar("T")

START_SECONDS = 120.0
PATIENCE = 20.0
"""Seconds after which what should have happened long ago counts as not happening."""


class _SpanContext(msgspec.Struct):
    trace_id: str
    span_id: str


class _Span(msgspec.Struct):
    """A span as Phoenix shows it."""

    name: str
    context: _SpanContext
    parent_id: str | None
    start_time: datetime
    end_time: datetime
    status_code: str
    attributes: dict[str, Any]
    events: list[SpanEvent]

    def as_span(self) -> Span:
        return Span(
            name=self.name,
            trace_id=self.context.trace_id,
            span_id=self.context.span_id,
            parent_id=self.parent_id,
            start_time=self.start_time,
            end_time=self.end_time,
            status_code=self.status_code,
            attributes=self.attributes,
            events=self.events,
        )


class _SessionTrace(msgspec.Struct):
    trace_id: str


class _Session(msgspec.Struct):
    """The traces that Phoenix shows as one conversation."""

    session_id: str
    traces: list[_SessionTrace]


class _Page(msgspec.Struct, Generic[T]):
    data: list[T]


_Spans = _Page[_Span]
_Sessions = _Page[_Session]


class Phoenix:
    """A running Phoenix.

    Args:
        client: Reaches its HTTP API.
        grpc_port: Where it takes OTLP over gRPC.
    """

    def __init__(self, client: httpx.Client, grpc_port: int) -> None:
        self._client = client
        self.grpc_endpoint = f"http://127.0.0.1:{grpc_port}"

    @property
    def endpoint(self) -> str:
        """What ``OTEL_EXPORTER_OTLP_ENDPOINT`` is to be."""
        return str(self._client.base_url).rstrip("/")

    def spans_of_session(self, session: str, number: int) -> list[Span]:
        """The spans of a session, in the order of their beginning, once there are so many."""
        return self._spans(number, attribute=f"session.id:{session}")

    def spans_of_request(self, request_id: str, number: int) -> list[Span]:
        """The spans of a request, in the order of their beginning, once there are so many."""
        return self._spans(number, attribute=f"request.id:{request_id}")

    def spans_of_trace(self, trace_id: str, number: int) -> list[Span]:
        """The spans of a trace, in the order of their beginning, once there are so many."""
        return self._spans(number, trace_id=trace_id)

    def traces_by_session(self, number: int) -> dict[str, set[str]]:
        """The sessions, each with the ids of its traces, once there are so many sessions."""
        found = self._once_complete("sessions", {"limit": "1000"}, _Sessions, number)
        return {session.session_id: {trace.trace_id for trace in session.traces} for session in found}

    def _spans(self, number: int, **filters: str) -> list[Span]:
        parameters = {"limit": "1000", "sort": "start_time", "order": "asc", **filters}
        return [span.as_span() for span in self._once_complete("spans", parameters, _Spans, number)]

    def _once_complete(self, what: str, parameters: dict[str, str], page: "type[_Page[T]]", number: int) -> list[T]:
        deadline = time.monotonic() + PATIENCE
        while True:
            answer = self._client.get(f"/v1/projects/default/{what}", params=parameters)
            assert answer.status_code == 200, answer.text
            found = msgspec.json.decode(answer.content, type=page).data
            if len(found) >= number:
                return found
            assert time.monotonic() < deadline, f"{len(found)} of {number} {what} have arrived"
            time.sleep(0.1)


@contextmanager
def phoenix() -> Iterator[Phoenix]:
    """Run Phoenix until the test is through."""
    commands = environment("phoenix")
    port, grpc_port = free_ports(2)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        log = Path(name, "phoenix.log")
        variables = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "PHOENIX_"))},
            "PHOENIX_HOST": "127.0.0.1",
            "PHOENIX_PORT": str(port),
            "PHOENIX_GRPC_PORT": str(grpc_port),
            "PHOENIX_WORKING_DIR": name,
            "PHOENIX_TELEMETRY_ENABLED": "false",
            "PHOENIX_ALLOW_EXTERNAL_RESOURCES": "false",
            "PHOENIX_DISABLE_AGENT_ASSISTANT": "true",
        }
        with log.open("w") as output:
            process = subprocess.Popen(
                [commands / "phoenix", "serve"], cwd=name, env=variables, stdout=output, stderr=subprocess.STDOUT
            )
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE, trust_env=False) as client:
                _wait_until_ready(client, process, log)
                yield Phoenix(client, grpc_port)
        finally:
            process.kill()
            process.wait()


def _wait_until_ready(client: httpx.Client, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            if client.get("/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)
