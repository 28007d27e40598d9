"""What a tracing backend may do to an agent, which is nothing, and what it may learn of it, which is no one's data."""

import json
import re
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from websockets.sync.client import connect

from tests.e2e.otlp_sink import otlp_sink
from tests.e2e.served import served
from tests.integration.server import REQUEST_ID, SESSION_ID, ServerProcess, eventually, free_port

pytestmark = pytest.mark.serial

CLIENTS = 4
INVOCATIONS = 100
"""Of each client."""

MARK = "tr0ub4dor"

Backend = Callable[[], AbstractContextManager[str]]


@contextmanager
def hanging() -> Iterator[str]:
    """Takes connections, and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def failing() -> Iterator[str]:
    """Answers 500."""

    class Failure(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_error(500)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Failure) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@contextmanager
def absent() -> Iterator[str]:
    yield f"http://127.0.0.1:{free_port()}"


def median_of_load(agent: ServerProcess) -> float:
    """Invoke the agent many times; gives the median latency in milliseconds. Fails where a request does."""

    def invoke_often(_: int) -> list[float]:
        seconds = []
        with agent.client() as client:
            for _ in range(INVOCATIONS):
                began = time.perf_counter()
                response = client.post("/invocations", json={"prompt": "hello"})
                seconds.append(time.perf_counter() - began)
                assert response.status_code == 200
        return seconds

    with ThreadPoolExecutor(CLIENTS) as clients:
        return 1000 * statistics.median(second for some in clients.map(invoke_often, range(CLIENTS)) for second in some)


def dropped(agent: ServerProcess) -> float:
    with agent.client() as client:
        exposed = client.get("/metrics").text
    (value,) = re.findall(r"^agentcore_spans_dropped_total (\S+)$", exposed, re.MULTILINE)
    return float(value)


def mentions(agent: ServerProcess) -> list[str]:
    """The messages of the log that are about spans or their exporter."""
    lines = [json.loads(line) for line in agent.stderr() if line.startswith("{")]
    return [line["message"] for line in lines if line["logger"].startswith(("agentcore_telemetry", "opentelemetry"))]


@pytest.fixture(scope="module")
def median_without_telemetry() -> float:
    with served("tests.e2e.tracing_agent:app") as agent:
        median_of_load(agent)
        return median_of_load(agent)


def test_a_healthy_backend_loses_nothing_and_is_not_mentioned(median_without_telemetry: float) -> None:
    with (
        otlp_sink() as sink,
        served("tests.e2e.tracing_agent:app", OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint) as agent,
    ):
        median = median_of_load(agent)
        print(f"median {median:.2f} ms, {median_without_telemetry:.2f} ms without telemetry")
        assert dropped(agent) == 0
        agent.terminate()

        assert len(sink.spans) == CLIENTS * INVOCATIONS
        assert mentions(agent) == []


@pytest.mark.parametrize("backend", [hanging, failing, absent])
def test_a_broken_backend_fails_no_request_and_is_mentioned_once_a_minute(
    backend: Backend, median_without_telemetry: float
) -> None:
    small = {
        "OTEL_BSP_MAX_QUEUE_SIZE": "64",
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "16",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
    }
    with (
        backend() as endpoint,
        served("tests.e2e.tracing_agent:app", OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, **small) as agent,
    ):
        median_of_load(agent)
        median = median_of_load(agent)
        print(f"median {median:.2f} ms, {median_without_telemetry:.2f} ms without telemetry")

        assert dropped(agent) > 0
        eventually(lambda: mentions(agent))
        eventually(lambda: dropped(agent) == 2 * CLIENTS * INVOCATIONS)
        (mention,) = mentions(agent)
        assert "dropped" in mention


@pytest.mark.parametrize("backend", [hanging, failing, absent])
def test_a_broken_backend_holds_up_the_shutdown_for_five_seconds_at_most(backend: Backend) -> None:
    with (
        backend() as endpoint,
        served("tests.e2e.tracing_agent:app", OTEL_EXPORTER_OTLP_ENDPOINT=endpoint) as agent,
    ):
        median_of_load(agent)

        began = time.monotonic()
        agent.terminate()

        assert time.monotonic() - began < 7
        (mention,) = mentions(agent)
        assert f"{CLIENTS * INVOCATIONS} spans were dropped" in mention


def test_a_variable_that_is_not_understood_is_named_once_and_ignored() -> None:
    nonsense = {"OTEL_TRACES_SAMPLER": "sometimes", "OTEL_PROPAGATORS": "foo", "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "x"}
    with (
        otlp_sink() as sink,
        served("tests.e2e.tracing_agent:app", OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint, **nonsense) as agent,
    ):
        with agent.client() as client:
            assert client.post("/invocations", json={"do": "answer"}).status_code == 200
        agent.terminate()

        assert sorted(mention.partition(":")[0] for mention in mentions(agent)) == sorted(nonsense)
        assert "POST /invocations" in {span.name for span in sink.spans}


@pytest.mark.parametrize("log_level", ["INFO", "DEBUG"])
def test_payloads_answers_and_credentials_are_in_no_span_metric_or_log_line(log_level: str) -> None:
    secret = {
        "Authorization": f"Bearer {MARK}",
        "WorkloadAccessToken": MARK,
        "OAuth2CallbackUrl": f"https://agent.example/{MARK}",
        "X-Amzn-Bedrock-AgentCore-Runtime-Custom-Key": MARK,
        "Cookie": MARK,
    }
    nonsense = {"baggage": f"{MARK} nonsense", "traceparent": MARK, "tracestate": MARK}
    with otlp_sink() as sink:
        variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": sink.endpoint, "AGENTCORE_LOG_LEVEL": log_level}
        variables["OTEL_EXPORTER_OTLP_HEADERS"] = f"api-key={MARK}"
        with served("tests.e2e.tracing_agent:app", **variables) as agent, agent.client() as client:
            for do in ("answer", "tell", "fail", "research"):
                payload = {"do": do, "prompt": MARK, "seconds": 0}
                response = client.post("/invocations", json=payload, headers=secret)
                assert (MARK in response.text) == (do in {"answer", "tell", "research"})
            for headers in (nonsense, {"baggage": f"tenant={MARK}"}, {SESSION_ID: f"{MARK} {MARK}"}):
                client.post("/invocations", json={"prompt": MARK}, headers=headers)
            assert client.post("/invocations", content=f'{{"{MARK}').status_code == 400
            assert client.post("/invocations", content=f"{MARK}\xe9".encode("latin-1")).status_code == 400
            with connect(f"ws://127.0.0.1:{agent.port}/ws", additional_headers=secret, proxy=None) as websocket:
                websocket.send(MARK)
                assert websocket.recv() == MARK
            metrics = client.get("/metrics").text
            openmetrics = client.get("/metrics", headers={"Accept": "application/openmetrics-text"}).text
            agent.terminate()
            log = "\n".join(agent.stderr())
        with served("tests.e2e.tracing_agent:sync_app", **variables) as agent, agent.client() as client:
            for refused in ({"prompt": {MARK: MARK}}, {"manner": MARK}, {"prompt": [MARK]}, MARK):
                answer = client.post("/invocations", json=refused, headers={REQUEST_ID: "refused", **secret})
                assert answer.status_code == 400
            agent.terminate()
            log += "\n".join(agent.stderr())
        spans = "\n".join(map(str, sink.spans))

    assert "POST /invocations" in spans
    assert '"requestId":"refused"' in log
    assert {"spans": MARK in spans, "metrics": MARK in metrics + openmetrics} == {"spans": False, "metrics": False}
    assert [line for line in log.splitlines() if MARK in line] == []
