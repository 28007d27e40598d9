"""Agents under ``opentelemetry-instrument``, OpenTelemetry's own and AWS's: their spans and lines, each once.

The quick-start agent is started in each way that the documentation tells, the agent of the tracing tests in one; both
get the same requests, and what came of it is looked at once all of it has arrived.
"""

import json
import os
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import msgspec
import pytest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from websockets.sync.client import connect

from tests.e2e.environments import environment
from tests.e2e.otlp_sink import OtlpSink, otlp_sink
from tests.e2e.runtimes import ROOT, free_ports, listens
from tests.integration.server import REQUEST_ID, SESSION_ID

START_SECONDS = 120.0
PATIENCE = 60.0
"""Seconds after which what should have arrived long ago counts as not arriving."""
SETTLING_SECONDS = 1.0
"""For what should not arrive at all, ten times the delay with which batches are sent."""

AGENT_ARN = "arn:aws:bedrock-agentcore:us-east-1:123456789012:runtime/quick-start"

PLAIN = {"OTEL_SERVICE_NAME": "quick-start", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}

AWS = {
    "AGENT_OBSERVABILITY_ENABLED": "true",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_REGION": "us-east-1",
    "OTEL_EXPORTER_OTLP_LOGS_HEADERS": (
        "x-aws-log-group=/aws/bedrock-agentcore/runtimes/quick-start,"
        "x-aws-log-stream=runtime-logs,x-aws-metric-namespace=bedrock-agentcore"
    ),
    "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
    "OTEL_METRICS_EXPORTER": "none",
    "OTEL_PYTHON_CONFIGURATOR": "aws_configurator",
    "OTEL_PYTHON_DISTRO": "aws_distro",
    "OTEL_RESOURCE_ATTRIBUTES": (
        "service.name=quick-start,aws.log.group.names=/aws/bedrock-agentcore/runtimes/quick-start,"
        f"cloud.resource_id={AGENT_ARN}"
    ),
    "OTEL_TRACES_EXPORTER": "otlp",
}
"""As AWS documents them for agents that run elsewhere, but for what needs AWS: its endpoints, and the metrics."""

LITESTAR = ("litestar", "--app", "{app}", "run", "--port", "{port}")
UVICORN = ("uvicorn", "{app}", "--port", "{port}")
PYTHON = ("python", "-c", "import sys; from app import app; app.run(port=int(sys.argv[1]))", "{port}")
RUN = ("python", "-P", "-m", "litestar_agentcore.cli.console", "run", "{app}", "--port", "{port}")
"""What ``litestar-agent run`` is; the script itself is not in an environment that has us on its import path alone."""


class Way(msgspec.Struct, frozen=True):
    """A way to start an agent."""

    name: str
    environment: str
    variables: dict[str, str]
    command: tuple[str, ...] = LITESTAR

    @property
    def logs(self) -> bool:
        """Whether the log records are exported too."""
        return "OTEL_PYTHON_LOGGING_AUTO_INSTRUMENTATION_ENABLED" in self.variables or self.variables is AWS


PLAIN_WITH_LOGS = {**PLAIN, "OTEL_PYTHON_LOGGING_AUTO_INSTRUMENTATION_ENABLED": "true"}

WAYS = [
    Way("plain: litestar run", "otel", PLAIN),
    Way("plain: uvicorn", "otel", PLAIN, UVICORN),
    Way("plain: python", "otel", PLAIN, PYTHON),
    Way("plain: litestar-agent run", "otel", PLAIN, RUN),
    Way("plain, logs exported: litestar run", "otel", PLAIN_WITH_LOGS),
    Way("plain, logs exported: python", "otel", PLAIN_WITH_LOGS, PYTHON),
    Way("AWS: litestar run", "adot", AWS),
    Way("AWS: uvicorn", "adot", AWS, UVICORN),
    Way("AWS: python", "adot", AWS, PYTHON),
]

TRACING_WAYS = [way for way in WAYS if way.command is LITESTAR]


class Exchange(msgspec.Struct, frozen=True):
    request: str
    session: str


class Told(msgspec.Struct, frozen=True):
    """What an agent told of itself."""

    way: Way
    exchanges: dict[str, Exchange]
    spans: list[Span]
    log_records: list[LogRecord]
    lines: list[str]

    def spans_of(self, exchange: str) -> dict[str, Span]:
        """By name; none is there twice."""
        request = self.exchanges[exchange].request
        found = [span for span in self.spans if attributes_of(span).get("request.id") == request]
        assert set(Counter(span.name for span in found).values()) <= {1}
        return {span.name: span for span in found}

    def line(self, text: str) -> dict[str, Any]:
        """The one line on stderr that has a text in it."""
        (line,) = (line for line in self.lines if text in line)
        entry: dict[str, Any] = json.loads(line)
        return entry


def attributes_of(told: Span | LogRecord) -> dict[str, str]:
    return {attribute.key: attribute.value.string_value for attribute in told.attributes}


@contextmanager
def running(way: Way, app: str, sink: OtlpSink, lines: list[str]) -> Iterator[httpx.Client]:
    """Run an agent until it answers, and end it afterwards; its lines on stderr are there then."""
    (port,) = free_ports(1)
    commands = environment(way.environment)
    foreign = ("AGENTCORE_", "AGENT_", "AWS_", "OTEL_", "PYTEST_", "PYTHON")
    variables = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    variables |= way.variables | {
        "OTEL_EXPORTER_OTLP_ENDPOINT": sink.endpoint,
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "OTEL_BLRP_SCHEDULE_DELAY": "100",
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(str(ROOT / name) for name in ("", "service", "telemetry")),
    }
    command = [part.format(app=app, port=port) for part in way.command]
    process = subprocess.Popen(
        [commands / "opentelemetry-instrument", *command],
        cwd=ROOT,
        env=variables,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not listens(port):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline, "nothing listens"
            time.sleep(0.05)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE, trust_env=False) as client:
            yield client
    finally:
        process.kill()
        lines += process.communicate()[1].splitlines()


def invoke(client: httpx.Client, session: str, payload: Any) -> Exchange:
    response = client.post("/invocations", json=payload, headers={SESSION_ID: session})
    return Exchange(response.headers[REQUEST_ID], session)


def chat(client: httpx.Client, session: str) -> Exchange:
    request = f"request-of-{session}"
    url = f"ws://127.0.0.1:{client.base_url.port}/ws"
    with connect(url, additional_headers={SESSION_ID: session, REQUEST_ID: request}, proxy=None) as socket:
        socket.send("Hi")
        socket.recv(timeout=PATIENCE)
    return Exchange(request, session)


def arrived(sink: OtlpSink, spans: int) -> None:
    """Wait until so many spans are there, and then for what should not come."""
    deadline = time.monotonic() + PATIENCE
    while len(sink.spans) < spans and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(SETTLING_SECONDS)


@pytest.fixture(scope="module", params=WAYS, ids=lambda way: way.name)
def quick_start(request: pytest.FixtureRequest) -> Told:
    """The README's agent: an answer that is thought on after, a stream, and a conversation."""
    way: Way = request.param
    lines: list[str] = []
    with otlp_sink() as sink:
        with running(way, "app:app", sink, lines) as client:
            exchanges = {
                "answer": invoke(client, "session-answer", {"prompt": "Hi", "research_seconds": 0.1}),
                "stream": invoke(client, "session-stream", {"prompt": "Hi there", "stream": True}),
                "chat": chat(client, "session-chat"),
            }
            client.get("/ping")
            arrived(sink, 4)
        return Told(way, exchanges, sink.spans, sink.log_records, lines)


@pytest.fixture(scope="module", params=TRACING_WAYS, ids=lambda way: way.name)
def tracing(request: pytest.FixtureRequest) -> Told:
    """An agent whose libraries record spans of their own, and which fails."""
    way: Way = request.param
    lines: list[str] = []
    places = ["async function", "task", "thread", "async generator", "generator"]
    with otlp_sink() as sink:
        with running(way, "tests.e2e.tracing_agent:app", sink, lines) as client:
            exchanges = {place: invoke(client, f"session-{place.replace(' ', '-')}", {"do": place}) for place in places}
            exchanges["failure"] = invoke(client, "session-failure", {"do": "fail"})
            arrived(sink, 2 * len(places) + 1)
        return Told(way, exchanges, sink.spans, sink.log_records, lines)


def test_the_distribution_is_in_force(quick_start: Told) -> None:
    assert not [line for line in quick_start.lines if "Failed to auto initialize" in line or "Overriding" in line]


def test_each_span_arrives_once(quick_start: Told) -> None:
    assert Counter(span.name for span in quick_start.spans) == {
        "POST /invocations": 2,
        "async_task research": 1,
        "GET /ws": 1,
    }


def test_every_span_has_the_ids(quick_start: Told) -> None:
    names = {
        "answer": {"POST /invocations", "async_task research"},
        "stream": {"POST /invocations"},
        "chat": {"GET /ws"},
    }
    for exchange, expected in names.items():
        spans = quick_start.spans_of(exchange)
        assert set(spans) == expected
        for span in spans.values():
            assert attributes_of(span)["session.id"] == quick_start.exchanges[exchange].session


def test_what_a_task_does_is_in_the_trace_of_its_request(quick_start: Told) -> None:
    spans = quick_start.spans_of("answer")
    assert spans["async_task research"].trace_id == spans["POST /invocations"].trace_id
    assert spans["async_task research"].parent_span_id == spans["POST /invocations"].span_id


def test_the_agents_line_is_on_stderr_once_with_the_ids(quick_start: Told) -> None:
    line = quick_start.line("Done with the research")
    exchange = quick_start.exchanges["answer"]
    span = quick_start.spans_of("answer")["async_task research"]
    assert (line["level"], line["requestId"], line["sessionId"]) == ("INFO", exchange.request, exchange.session)
    assert (line["trace_id"], line["span_id"]) == (span.trace_id.hex(), span.span_id.hex())


def test_the_agents_line_is_exported_once_where_log_records_are(quick_start: Told) -> None:
    found = [record for record in quick_start.log_records if "Done with the research" in record.body.string_value]
    assert len(found) == quick_start.way.logs
    for record in found:
        assert record.trace_id == quick_start.spans_of("answer")["POST /invocations"].trace_id


def test_no_line_is_there_twice(quick_start: Told) -> None:
    entries = [json.loads(line) for line in quick_start.lines if line.startswith("{")]
    assert set(Counter((entry["timestamp"], entry["message"]) for entry in entries).values()) <= {1}
    messages = [entry["message"] for entry in entries]
    assert not [
        line for line in quick_start.lines if not line.startswith("{") and any(text in line for text in messages)
    ]


def test_the_spans_of_libraries_are_children_with_the_ids(tracing: Told) -> None:
    for place, exchange in tracing.exchanges.items():
        if place != "failure":
            spans = tracing.spans_of(place)
            assert set(spans) == {"POST /invocations", "step"}
            assert spans["step"].parent_span_id == spans["POST /invocations"].span_id
            assert {attributes_of(span)["session.id"] for span in spans.values()} == {exchange.session}
    assert len(tracing.spans) == 2 * len(tracing.exchanges) - 1


def test_a_failure_is_on_stderr_once_with_the_ids(tracing: Told) -> None:
    line = tracing.line("no such tool")
    exchange = tracing.exchanges["failure"]
    assert (line["level"], line["requestId"], line["sessionId"]) == ("ERROR", exchange.request, exchange.session)
    assert (line["errorType"], line["errorMessage"]) == ("LookupError", "no such tool")
    assert line["trace_id"] == tracing.spans_of("failure")["POST /invocations"].trace_id.hex()


def test_a_failure_is_exported_once_where_log_records_are(tracing: Told) -> None:
    found = [record for record in tracing.log_records if "no such tool" in str(record)]
    assert len(found) == tracing.way.logs
