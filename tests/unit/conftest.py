"""What the contract tests share: an app, a client of it, and the log lines as the service would write them."""

import atexit
import json
import logging
from collections.abc import Generator, Iterator
from typing import Any

import httpx
import pytest
from agentcore_telemetry.logs import JsonFormatter
from litestar.testing import TestClient
from litestar_agentcore import BedrockAgentCoreApp, BedrockAgentCoreContext
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.util._once import Once

from tests import loggers

REQUEST_ID = "X-Amzn-Bedrock-AgentCore-Runtime-Request-Id"
SESSION_ID = "X-Amzn-Bedrock-AgentCore-Runtime-Session-Id"

Client = TestClient[BedrockAgentCoreApp]


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """Undo what a test, or an app that it makes, does to the loggers of this process."""
    with loggers.restored():
        yield


@pytest.fixture
def fresh_logging() -> Iterator[None]:
    """Logging as nobody has set it up, in a process without an app; see the hook below too."""
    root = logging.getLogger()
    root.handlers.clear()
    root.setLevel(logging.WARNING)
    for logger in loggers.loggers_of(root)[1:]:
        if logger.name.startswith(("agentcore_telemetry", "litestar_agentcore", "uvicorn")):
            logger.handlers.clear()
            logger.filters.clear()
            logger.setLevel(logging.NOTSET)
            logger.propagate = True
    yield
    for handler in root.handlers:
        stop_listener(handler)
        if isinstance(handler, logging.FileHandler):
            handler.close()


def stop_listener(handler: logging.Handler) -> None:
    """Have what waits in a handler's queue be written."""
    listener = getattr(handler, "listener", None)
    if listener is not None and listener._thread is not None:
        listener.stop()
        atexit.unregister(listener.stop)  # Litestar's does not bear to be stopped twice


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, Any, Any]:
    """Take what pytest adds to the root logger for the call of each test from those that use ``fresh_logging``."""
    if "fresh_logging" in pyfuncitem.fixturenames:
        root = logging.getLogger()
        root.handlers[:] = [each for each in root.handlers if type(each).__module__ != "_pytest.logging"]
    return (yield)


@pytest.fixture
def app() -> BedrockAgentCoreApp:
    return BedrockAgentCoreApp()


@pytest.fixture
def client(app: BedrockAgentCoreApp) -> Iterator[Client]:
    with TestClient(app=app) as client:
        yield client


class LogLines(logging.Handler):
    """Keeps each record as the service's formatter writes it, in the context that logged it."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(
            JsonFormatter(lambda: (BedrockAgentCoreContext.get_request_id(), BedrockAgentCoreContext.get_session_id()))
        )
        self.lines: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(json.loads(self.format(record)))

    def of_request(self, request_id: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line.get("requestId") == request_id]


@pytest.fixture
def log() -> Iterator[LogLines]:
    handler = LogLines()
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)


def events(response: httpx.Response) -> list[Any]:
    """The values of a stream of server-sent events."""
    assert response.headers["content-type"] == "text/event-stream"
    frames = response.text.split("\n\n")
    assert frames.pop() == ""
    assert all(frame.startswith("data: ") for frame in frames)
    return [json.loads(frame.removeprefix("data: ")) for frame in frames]


class Kept(SpanProcessor):
    """Keeps what ends, as it would be handed to an exporter."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        self.spans.append(span)


@pytest.fixture
def no_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER_SET_ONCE", Once())


@pytest.fixture
def exported(no_provider: None, monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """What an app whose variables name an endpoint sends there."""
    exporter = InMemorySpanExporter()
    monkeypatch.setattr("opentelemetry.exporter.otlp.proto.http.trace_exporter.OTLPSpanExporter", lambda: exporter)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    return exporter
