"""``/metrics``: which metrics there are, what moves them, and in which forms they are given."""

import asyncio
import multiprocessing
import platform
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import litestar
import msgspec
import prometheus_client
import pytest
from litestar import WebSocket
from litestar.exceptions import HTTPException
from litestar.response import Redirect, Stream
from litestar.testing import TestClient
from litestar_agentcore import AgentCorePlugin, BedrockAgentCoreApp, PingStatus, RequestContext, __version__
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from tests.unit.conftest import REQUEST_ID, SESSION_ID, Client

ROOT = Path(__file__).parents[2]
OPENMETRICS = {"Accept": "application/openmetrics-text; version=1.0.0"}

METRICS: dict[str, tuple[str, set[str]]] = {
    "agentcore_active_tasks": ("gauge", set()),
    "agentcore_ping_status": ("gauge", {"status"}),
    "agentcore_ping_status_last_change_timestamp_seconds": ("gauge", set()),
    "agentcore_invocations": ("counter", {"mode", "outcome"}),
    "agentcore_invocation_duration_seconds": ("histogram", {"mode"}),
    "agentcore_time_to_first_chunk_seconds": ("histogram", set()),
    "agentcore_invocations_in_progress": ("gauge", set()),
    "agentcore_invocations_waiting": ("gauge", set()),
    "agentcore_sessions": ("gauge", set()),
    "agentcore_stream_chunks": ("counter", set()),
    "agentcore_websocket_connections": ("gauge", set()),
    "agentcore_async_tasks": ("counter", {"name", "outcome"}),
    "agentcore_async_task_duration_seconds": ("histogram", {"name"}),
    "agentcore_auth_failures": ("counter", {"reason"}),
    "agentcore_handler_stalls": ("counter", set()),
    "agentcore_event_loop_lag_seconds": ("gauge", set()),
    "agentcore_handler_threads": ("gauge", {"state"}),
    "agentcore_sync_queue_length": ("gauge", set()),
    "agentcore_spans_dropped": ("counter", set()),
    "agentcore_build_info": ("gauge", {"version", "python_version"}),
}
"""Each metric of the service with its type and labels; the samples of a counter are called ``_total`` besides."""

OUTCOMES = ["ok", "client_error", "server_error", "disconnected", "rejected", "timeout", "cancelled"]

OF_THE_PROCESS = [
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "python_info",
    "python_gc_collections_total",
]


def metrics(client: TestClient[Any]) -> dict[str, prometheus_client.Metric]:
    return {metric.name: metric for metric in text_string_to_metric_families(client.get("/metrics").text)}


def parse_openmetrics(text: str) -> list[prometheus_client.Metric]:
    return list(openmetrics_families(text))  # type: ignore[no-untyped-call]


def samples(client: TestClient[Any], name: str) -> list[Sample]:
    return [sample for metric in metrics(client).values() for sample in metric.samples if sample.name == name]


def value(client: TestClient[Any], name: str, /, **labels: str) -> float:
    (found,) = [sample.value for sample in samples(client, name) if sample.labels == labels]
    return float(found)


def invocations(client: Client) -> dict[tuple[str, str], float]:
    """How many invocations were counted, by mode and outcome."""
    counted = samples(client, "agentcore_invocations_total")
    return {(sample.labels["mode"], sample.labels["outcome"]): sample.value for sample in counted if sample.value}


def tasks(client: Client) -> dict[tuple[str, str], float]:
    """How many tasks were counted, by name and outcome."""
    counted = samples(client, "agentcore_async_tasks_total")
    return {(sample.labels["name"], sample.labels["outcome"]): sample.value for sample in counted if sample.value}


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.005)


# Which metrics there are


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_is_there_from_the_start_with_its_type_and_help(client: Client, name: str) -> None:
    metric = metrics(client)[name]
    assert metric.type == METRICS[name][0]
    assert metric.documentation.endswith(".")


def test_there_is_no_other_metric_of_the_service(client: Client) -> None:
    assert {name for name in metrics(client) if name.startswith("agentcore_")} == set(METRICS)


def test_the_documentation_tells_of_each_metric_and_its_labels() -> None:
    table = re.findall(r"^\| `agentcore_.*? \|", (ROOT / "docs" / "observability.md").read_text(), re.MULTILINE)
    told = {
        name.removesuffix("_total"): set(filter(None, labels.split(",")))
        for row in table
        for name, labels in re.findall(r"`(\w+)(?:\{(.*?)\})?`", row)
    }
    assert told == {name: labels for name, (_, labels) in METRICS.items()}


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_has_no_other_labels(app: BedrockAgentCoreApp, client: Client, name: str) -> None:
    app.complete_async_task(app.add_async_task("research"))
    found = metrics(client)[name].samples
    assert found
    assert {frozenset(sample.labels) - {"le"} for sample in found} == {frozenset(METRICS[name][1])}


@pytest.mark.parametrize("mode", ["unary", "stream"])
@pytest.mark.parametrize("outcome", OUTCOMES)
def test_each_mode_and_outcome_is_counted_from_zero(client: Client, mode: str, outcome: str) -> None:
    assert value(client, "agentcore_invocations_total", mode=mode, outcome=outcome) == 0


@pytest.mark.parametrize("mode", ["unary", "stream"])
def test_the_duration_of_each_mode_is_observed_from_none(client: Client, mode: str) -> None:
    assert value(client, "agentcore_invocation_duration_seconds_count", mode=mode) == 0


@pytest.mark.parametrize(
    "name",
    [
        "agentcore_active_tasks",
        "agentcore_invocations_in_progress",
        "agentcore_invocations_waiting",
        "agentcore_sessions",
        "agentcore_stream_chunks_total",
        "agentcore_websocket_connections",
        "agentcore_time_to_first_chunk_seconds_count",
        "agentcore_handler_stalls_total",
        "agentcore_event_loop_lag_seconds",
        "agentcore_sync_queue_length",
        "agentcore_spans_dropped_total",
    ],
)
def test_a_metric_without_labels_starts_at_zero(client: Client, name: str) -> None:
    assert value(client, name) == 0


def test_durations_are_told_apart_from_a_millisecond_to_an_hour(app: BedrockAgentCoreApp, client: Client) -> None:
    app.complete_async_task(app.add_async_task("research"))
    histograms = [metric for metric in metrics(client).values() if metric.type == "histogram"]
    assert len(histograms) == 3
    for metric in histograms:
        bounds = sorted({float(sample.labels["le"]) for sample in metric.samples if "le" in sample.labels})
        assert (bounds[0], bounds[-2], bounds[-1]) == (0.001, 3600, float("inf"))


REASONS = {
    "missing", "malformed", "api_key", "algorithm", "unknown_key", "signature", "issuer", "expired", "not_yet_valid",
    "claims", "audience", "client", "scope", "unavailable",
}  # fmt: skip


def test_each_reason_to_let_a_caller_not_in_is_counted_from_zero(client: Client) -> None:
    counted = samples(client, "agentcore_auth_failures_total")
    assert {sample.labels["reason"]: sample.value for sample in counted} == dict.fromkeys(REASONS, 0)


@pytest.mark.parametrize("state", ["running", "parked"])
def test_each_state_of_the_handler_threads_is_counted_from_zero(client: Client, state: str) -> None:
    assert value(client, "agentcore_handler_threads", state=state) == 0


def test_the_build_is_told(client: Client) -> None:
    labels = {"version": __version__, "python_version": platform.python_version()}
    assert value(client, "agentcore_build_info", **labels) == 1


@pytest.mark.parametrize("name", OF_THE_PROCESS)
def test_the_metrics_of_the_process_and_of_python_are_there(client: Client, name: str) -> None:
    assert samples(client, name)


@pytest.mark.parametrize("headers", [{}, OPENMETRICS], ids=["text", "openmetrics"])
def test_there_is_no_created_series(app: BedrockAgentCoreApp, client: Client, headers: dict[str, str]) -> None:
    app.complete_async_task(app.add_async_task("research"))
    app.entrypoint(lambda payload: payload)
    client.post("/invocations", json={})
    assert "_created" not in client.get("/metrics", headers=headers).text


# Invocations


class Ask(msgspec.Struct):
    prompt: str


def typed(payload: Ask) -> str:
    return payload.prompt


def raising(error: Exception) -> Callable[[Any], Any]:
    def handler(payload: Any) -> Any:
        raise error

    return handler


def answering(answer: Any) -> Callable[[Any], Any]:
    return lambda payload: answer


def plain_events(payload: Any) -> Iterator[int]:
    yield from range(3)


async def async_events(payload: Any) -> AsyncIterator[int]:
    for number in range(3):
        yield number


def no_events(payload: Any) -> Iterator[int]:
    yield from ()


def broken_events(payload: Any) -> Iterator[int]:
    yield 1
    raise HTTPException("broken", status_code=404)


@pytest.mark.parametrize(
    ("handler", "mode", "outcome"),
    [
        (answering("text"), "unary", "ok"),
        (answering(litestar.Response("own", status_code=202)), "unary", "ok"),
        (answering(Redirect("/other", status_code=303)), "unary", "ok"),
        (typed, "unary", "client_error"),
        (raising(HTTPException("none", status_code=404)), "unary", "client_error"),
        (answering(litestar.Response("own", status_code=409)), "unary", "client_error"),
        (raising(ValueError("broken")), "unary", "server_error"),
        (raising(HTTPException("later", status_code=503)), "unary", "server_error"),
        (answering(litestar.Response("own", status_code=500)), "unary", "server_error"),
        (plain_events, "stream", "ok"),
        (async_events, "stream", "ok"),
        (no_events, "stream", "ok"),
        (broken_events, "stream", "server_error"),
    ],
    ids=[
        "value",
        "response",
        "redirect",
        "payload does not fit",
        "raises a 404",
        "409 response",
        "raises",
        "raises a 503",
        "500 response",
        "generator",
        "async generator",
        "empty generator",
        "generator raises",
    ],
)
def test_an_invocation_is_counted_by_mode_and_outcome(
    app: BedrockAgentCoreApp, client: Client, handler: Any, mode: str, outcome: str
) -> None:
    app.entrypoint(handler)
    client.post("/invocations", json={})
    client.post("/invocations", json={})
    assert invocations(client) == {(mode, outcome): 2}
    for each in ("unary", "stream"):
        assert value(client, "agentcore_invocation_duration_seconds_count", mode=each) == (2 if each == mode else 0)


@pytest.mark.parametrize(
    ("body", "headers"),
    [(b"{", {}), (b"", {}), (b"\xff", {}), (b"{}", {REQUEST_ID: "a b"}), (b"{}", {SESSION_ID: "s" * 257})],
    ids=["not JSON", "empty", "not UTF-8", "bad request id", "bad session id"],
)
def test_an_invocation_that_is_refused_is_a_client_error(
    app: BedrockAgentCoreApp, client: Client, body: bytes, headers: dict[str, str]
) -> None:
    app.entrypoint(lambda payload: payload)
    assert client.post("/invocations", content=body, headers=headers).status_code == 400
    assert invocations(client) == {("unary", "client_error"): 1}


def test_an_invocation_without_an_entrypoint_is_a_server_error(client: Client) -> None:
    client.post("/invocations", json={})
    assert invocations(client) == {("unary", "server_error"): 1}


def test_other_requests_are_no_invocations(client: Client) -> None:
    for path in ("/ping", "/ready", "/metrics", "/schema", "/nowhere"):
        client.get(path)
    assert invocations(client) == {}


INVOCATION_SCOPE: Any = {
    "type": "http",
    "asgi": {"version": "3.0", "spec_version": "2.3"},
    "http_version": "1.1",
    "method": "POST",
    "scheme": "http",
    "path": "/invocations",
    "raw_path": b"/invocations",
    "query_string": b"",
    "root_path": "",
    "headers": [(b"host", b"agent")],
    "client": ("127.0.0.1", 1),
    "server": ("127.0.0.1", 80),
}


async def leave(app: BedrockAgentCoreApp, *, body: bytes, when: str) -> None:
    """Invoke an agent, and go away: before the body is complete, while it works, or after its first event."""
    heard = asyncio.Event()
    if when != "first event":
        heard.set()
    messages: list[Any] = [{"type": "http.request", "body": body, "more_body": when == "body"}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await heard.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message.get("body"):
            heard.set()

    await app(INVOCATION_SCOPE.copy(), receive, send)


async def endless(payload: Any) -> None:
    await asyncio.Event().wait()


async def endless_events(payload: Any) -> AsyncIterator[int]:
    while True:
        yield 1
        await asyncio.sleep(0.001)


async def one_event_in_an_eternity(payload: Any) -> AsyncIterator[int]:
    yield 1
    await asyncio.Event().wait()


def endless_plain_events(payload: Any) -> Iterator[int]:
    while True:
        yield 1
        time.sleep(0.001)


def endless_response(payload: Any) -> Stream:
    return Stream(map(str, endless_plain_events(payload)))


@pytest.mark.parametrize(
    ("handler", "when", "mode"),
    [
        (endless, "body", "unary"),
        (endless, "at work", "unary"),
        (endless_events, "first event", "stream"),
        (one_event_in_an_eternity, "first event", "stream"),
        (endless_plain_events, "first event", "stream"),
        (endless_response, "first event", "unary"),
    ],
)
def test_an_invocation_whose_client_leaves_is_disconnected(
    app: BedrockAgentCoreApp, client: Client, handler: Any, when: str, mode: str
) -> None:
    app.entrypoint(handler)
    asyncio.run(leave(app, body=b"{}", when=when))
    assert invocations(client) == {(mode, "disconnected"): 1}
    assert value(client, "agentcore_invocation_duration_seconds_count", mode=mode) == 1
    assert value(client, "agentcore_invocations_in_progress") == 0


class Holding:
    """Handlers that block whatever runs them until they are released."""

    def __init__(self) -> None:
        self.entered, self.released = threading.Event(), threading.Event()

    def block(self) -> str:
        self.entered.set()
        assert self.released.wait(60)
        return "released"

    def plain(self, payload: Any) -> Any:
        return self.block()

    async def coroutine(self, payload: Any) -> Any:
        return self.block()

    async def coroutine_with_an_await(self, payload: Any) -> Any:
        await asyncio.sleep(0)
        return self.block()

    def generator(self, payload: Any) -> Iterator[Any]:
        yield self.block()

    async def async_generator(self, payload: Any) -> AsyncIterator[Any]:
        yield self.block()


@pytest.mark.parametrize("name", ["plain", "coroutine", "coroutine_with_an_await", "generator", "async_generator"])
def test_metrics_are_answered_while_a_handler_blocks_and_tell_of_it(
    app: BedrockAgentCoreApp, client: Client, name: str
) -> None:
    holding = Holding()
    app.entrypoint(getattr(holding, name))
    with ThreadPoolExecutor(1) as others:
        invocation = others.submit(client.post, "/invocations", json={})
        assert holding.entered.wait(60)
        try:
            assert value(client, "agentcore_invocations_in_progress") == 1
            assert invocations(client) == {}
            assert not invocation.done()
        finally:
            holding.released.set()
        assert "released" in invocation.result(60).text
    assert value(client, "agentcore_invocations_in_progress") == 0


def test_sync_invocations_that_wait_for_a_thread_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTCORE_SYNC_THREADS", "1")
    app = BedrockAgentCoreApp()
    holding = Holding()
    app.entrypoint(holding.plain)
    with TestClient(app=app) as client, ThreadPoolExecutor(3) as others:
        for _ in range(3):
            others.submit(client.post, "/invocations", json={})
        assert holding.entered.wait(60)
        try:
            eventually(lambda: value(client, "agentcore_sync_queue_length") == 2)
            assert value(client, "agentcore_invocations_in_progress") == 3
        finally:
            holding.released.set()
    with TestClient(app=app) as client:
        assert value(client, "agentcore_sync_queue_length") == 0


def test_the_lag_of_the_event_loop_grows_while_a_handler_blocks_it(app: BedrockAgentCoreApp, client: Client) -> None:
    holding = Holding()

    @app.entrypoint
    async def handler(payload: Any) -> str:
        await asyncio.sleep(0)
        return holding.block()

    with ThreadPoolExecutor(1) as others:
        invocation = others.submit(client.post, "/invocations", json={})
        assert holding.entered.wait(60)
        try:
            before = value(client, "agentcore_event_loop_lag_seconds")
            time.sleep(0.1)
            assert value(client, "agentcore_event_loop_lag_seconds") >= before + 0.1
        finally:
            holding.released.set()
        invocation.result(60)
    eventually(lambda: value(client, "agentcore_event_loop_lag_seconds") == 0)


def test_an_event_loop_that_waits_for_something_to_do_has_no_lag(app: BedrockAgentCoreApp, client: Client) -> None:
    @app.entrypoint
    async def handler(payload: Any) -> str:
        await asyncio.sleep(0.3)
        return "done"

    with ThreadPoolExecutor(1) as others:
        invocation = others.submit(client.post, "/invocations", json={})
        lags = []
        while not invocation.done():
            lags.append(value(client, "agentcore_event_loop_lag_seconds"))
    assert 0 in lags
    assert max(lags) < 0.2


def threads(client: Client) -> dict[str, float]:
    """How many threads of handlers there are, by state."""
    return {sample.labels["state"]: sample.value for sample in samples(client, "agentcore_handler_threads")}


@pytest.mark.parametrize("name", ["plain", "coroutine", "generator"])
def test_the_thread_of_a_handler_is_counted_while_it_runs(app: BedrockAgentCoreApp, client: Client, name: str) -> None:
    holding = Holding()
    app.entrypoint(getattr(holding, name))  # the coroutine has no await, so it has a thread too
    with ThreadPoolExecutor(1) as others:
        invocation = others.submit(client.post, "/invocations", json={})
        assert holding.entered.wait(60)
        try:
            assert threads(client) == {"running": 1, "parked": 0}
        finally:
            holding.released.set()
        invocation.result(60)
    eventually(lambda: threads(client) == {"running": 0, "parked": 0})


def test_the_thread_of_a_generator_is_parked_while_its_client_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTCORE_STREAM_BUFFER_BYTES", "1")
    app = BedrockAgentCoreApp()
    app.entrypoint(endless_plain_events)
    with TestClient(app=app) as client, ThreadPoolExecutor(1) as others:
        received, parked = threading.Event(), threading.Event()

        async def main() -> None:
            gone = asyncio.Event()

            async def receive() -> Any:
                if not received.is_set():
                    received.set()
                    return {"type": "http.request", "body": b"{}", "more_body": False}
                await gone.wait()
                return {"type": "http.disconnect"}

            async def send(message: Any) -> None:
                if message.get("body"):
                    await asyncio.to_thread(parked.wait, 60)
                    gone.set()

            await app(INVOCATION_SCOPE.copy(), receive, send)

        stream = others.submit(asyncio.run, main())
        try:
            eventually(lambda: threads(client) == {"running": 0, "parked": 1})
        finally:
            parked.set()
        stream.result(60)
        eventually(lambda: threads(client) == {"running": 0, "parked": 0})


@pytest.mark.parametrize("handler", [plain_events, async_events])
def test_the_events_of_streams_are_counted(app: BedrockAgentCoreApp, client: Client, handler: Any) -> None:
    app.entrypoint(handler)
    for _ in range(4):
        client.post("/invocations", json={})
    assert value(client, "agentcore_stream_chunks_total") == 12


def test_the_event_that_tells_of_an_error_is_counted(app: BedrockAgentCoreApp, client: Client) -> None:
    app.entrypoint(broken_events)
    assert client.post("/invocations", json={}).text.count("data: ") == 2
    assert value(client, "agentcore_stream_chunks_total") == 2


def test_the_time_to_the_first_chunk_is_observed_once_a_stream(app: BedrockAgentCoreApp, client: Client) -> None:
    @app.entrypoint
    def handler(payload: Any) -> Iterator[int]:
        time.sleep(0.05)
        yield 1
        time.sleep(0.05)
        yield 2

    client.post("/invocations", json={})

    assert value(client, "agentcore_time_to_first_chunk_seconds_count") == 1
    first = value(client, "agentcore_time_to_first_chunk_seconds_sum")
    whole = value(client, "agentcore_invocation_duration_seconds_sum", mode="stream")
    assert 0.05 <= first < whole
    assert whole >= 0.1


@pytest.mark.parametrize("handler", [no_events, answering("text")], ids=["empty stream", "unary"])
def test_without_a_chunk_there_is_no_time_to_the_first_one(
    app: BedrockAgentCoreApp, client: Client, handler: Any
) -> None:
    app.entrypoint(handler)
    client.post("/invocations", json={})
    assert value(client, "agentcore_time_to_first_chunk_seconds_count") == 0


def test_the_duration_of_an_invocation_is_observed_in_seconds(app: BedrockAgentCoreApp, client: Client) -> None:
    app.entrypoint(lambda payload: time.sleep(0.05))
    client.post("/invocations", json={})
    assert 0.05 <= value(client, "agentcore_invocation_duration_seconds_sum", mode="unary") < 5
    assert value(client, "agentcore_invocation_duration_seconds_bucket", mode="unary", le="0.025") == 0


# WebSockets


def test_a_websocket_counts_while_it_is_open(app: BedrockAgentCoreApp, client: Client) -> None:
    @app.websocket
    async def handler(websocket: WebSocket[Any, Any, Any], context: RequestContext) -> None:
        await websocket.accept()
        await websocket.receive_text()

    with client.websocket_connect("/ws") as first:
        assert value(client, "agentcore_websocket_connections") == 1
        with client.websocket_connect("/ws"):
            assert value(client, "agentcore_websocket_connections") == 2
        eventually(lambda: value(client, "agentcore_websocket_connections") == 1)
        first.send_text("bye")
        eventually(lambda: value(client, "agentcore_websocket_connections") == 0)
    assert invocations(client) == {}


def test_a_websocket_whose_handler_raises_counts_no_longer(app: BedrockAgentCoreApp, client: Client) -> None:
    @app.websocket
    async def handler(websocket: WebSocket[Any, Any, Any], context: RequestContext) -> None:
        await websocket.accept()
        raise ValueError("broken")

    with client.websocket_connect("/ws"):
        pass
    eventually(lambda: value(client, "agentcore_websocket_connections") == 0)


# Tasks


def test_active_tasks_are_told_as_they_are_now(app: BedrockAgentCoreApp, client: Client) -> None:
    ids = [app.add_async_task("research") for _ in range(3)]
    assert value(client, "agentcore_active_tasks") == 3
    for task_id in ids:
        app.complete_async_task(task_id)
    assert value(client, "agentcore_active_tasks") == 0


def test_a_task_is_counted_by_name_and_outcome(app: BedrockAgentCoreApp, client: Client) -> None:
    @app.async_task
    async def research(fail: bool) -> None:
        await asyncio.sleep(0.02)
        if fail:
            raise ValueError("broken")

    async def main() -> None:
        await asyncio.gather(research(False), research(True), research(False), return_exceptions=True)

    asyncio.run(main())

    assert tasks(client) == {("research", "completed"): 2, ("research", "failed"): 1}
    assert value(client, "agentcore_async_task_duration_seconds_count", name="research") == 3
    assert 0.06 <= value(client, "agentcore_async_task_duration_seconds_sum", name="research") < 5


def test_a_task_that_is_completed_by_hand_is_counted_once(app: BedrockAgentCoreApp, client: Client) -> None:
    task_id = app.add_async_task("research")
    assert tasks(client) == {}
    app.complete_async_task(task_id)
    app.complete_async_task(task_id)
    assert tasks(client) == {("research", "completed"): 1}


def test_a_task_that_shutdown_cuts_short_is_lost(app: BedrockAgentCoreApp) -> None:
    with TestClient(app=app):
        app.add_async_task("research")
    with TestClient(app=app) as client:
        assert tasks(client) == {("research", "lost"): 1}
        assert value(client, "agentcore_active_tasks") == 0


def test_an_async_task_that_shutdown_cuts_short_is_lost_once(app: BedrockAgentCoreApp) -> None:
    @app.async_task
    async def research() -> None:
        await asyncio.Event().wait()

    @app.entrypoint
    async def handler(payload: Any) -> None:
        asyncio.create_task(research())  # noqa: RUF006 - the service keeps it
        await asyncio.sleep(0)

    with TestClient(app=app) as client:
        client.post("/invocations", json={})
        assert value(client, "agentcore_active_tasks") == 1
    with TestClient(app=app) as client:
        assert tasks(client) == {("research", "lost"): 1}


def test_a_hundred_names_of_tasks_are_told_apart_and_the_rest_is_other(
    app: BedrockAgentCoreApp, client: Client
) -> None:
    for number in [*range(105), 0]:
        app.complete_async_task(app.add_async_task(f"task {number}"))

    counted = tasks(client)
    assert len(counted) == 101
    assert counted["other", "completed"] == 5
    assert counted["task 0", "completed"] == 2
    assert counted["task 99", "completed"] == 1
    names = {sample.labels["name"] for sample in metrics(client)["agentcore_async_task_duration_seconds"].samples}
    assert names == {name for name, _ in counted}


# Health


def statuses(client: Client) -> dict[str, float]:
    return {sample.labels["status"]: sample.value for sample in samples(client, "agentcore_ping_status")}


HEALTHY = {"Healthy": 1, "HealthyBusy": 0}
BUSY = {"Healthy": 0, "HealthyBusy": 1}


def test_the_ping_status_follows_the_tasks(app: BedrockAgentCoreApp, client: Client) -> None:
    assert statuses(client) == HEALTHY
    task_id = app.add_async_task("research")
    assert statuses(client) == BUSY
    app.complete_async_task(task_id)
    assert statuses(client) == HEALTHY


def test_the_ping_status_follows_the_forced_one(app: BedrockAgentCoreApp, client: Client) -> None:
    app.force_ping_status(PingStatus.HEALTHY_BUSY)
    assert statuses(client) == BUSY
    app.add_async_task("research")
    app.force_ping_status(PingStatus.HEALTHY)
    assert statuses(client) == HEALTHY
    app.clear_forced_ping_status()
    assert statuses(client) == BUSY


async def async_busy() -> str:
    return "HealthyBusy"


@pytest.mark.parametrize("custom", [lambda: PingStatus.HEALTHY_BUSY, async_busy], ids=["plain", "async"])
def test_the_ping_status_follows_a_custom_function_that_nobody_else_asks(
    app: BedrockAgentCoreApp, client: Client, custom: Callable[[], Any]
) -> None:
    app.ping(custom)
    assert statuses(client) == BUSY


def test_the_ping_status_follows_a_custom_function_as_it_changes_its_mind(
    app: BedrockAgentCoreApp, client: Client
) -> None:
    said = ["HealthyBusy"]
    app.ping(lambda: said[-1])
    assert statuses(client) == BUSY
    said.append("Healthy")
    assert statuses(client) == HEALTHY


def test_the_ping_status_is_the_automatic_one_where_a_custom_function_fails(
    app: BedrockAgentCoreApp, client: Client
) -> None:
    @app.ping
    def broken() -> PingStatus:
        raise ValueError("broken")

    assert statuses(client) == HEALTHY
    app.add_async_task("research")
    assert statuses(client) == BUSY


def test_a_custom_function_that_hangs_holds_no_scrape_up(app: BedrockAgentCoreApp, client: Client) -> None:
    released = threading.Event()
    app.ping(lambda: released.wait(60))
    try:
        assert statuses(client) == HEALTHY
    finally:
        released.set()


def test_the_last_change_is_the_moment_that_ping_gives(app: BedrockAgentCoreApp, client: Client) -> None:
    name = "agentcore_ping_status_last_change_timestamp_seconds"
    for status in (PingStatus.HEALTHY_BUSY, PingStatus.HEALTHY):
        app.force_ping_status(status)
        assert int(value(client, name)) == client.get("/ping").json()["time_of_last_update"]
    assert abs(value(client, name) - time.time()) < 60


def test_a_scrape_moves_the_last_change_where_a_custom_function_has_changed_its_mind(
    app: BedrockAgentCoreApp, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "agentcore_ping_status_last_change_timestamp_seconds"
    said = ["Healthy"]
    app.ping(lambda: said[-1])
    before = value(client, name)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 100)
    assert value(client, name) == before
    said.append("HealthyBusy")
    assert value(client, name) >= before + 100


# Labels that have no bound, and apps that have neighbours


def test_nothing_is_labelled_by_session_or_request(app: BedrockAgentCoreApp, client: Client) -> None:
    app.entrypoint(lambda payload: payload)
    headers = {
        SESSION_ID: "the-session",
        REQUEST_ID: "the-request",
        "Authorization": "the-credential",
        "X-Amzn-Bedrock-AgentCore-Runtime-Custom-User": "the-user",
        "User-Agent": "the-agent",
    }
    client.post("/invocations?the-query", json="the-payload", headers=headers)
    for accept in ({}, OPENMETRICS):
        text = client.get("/metrics", headers=headers | accept).text
        assert [line for line in text.splitlines() if "the-" in line] == []


def test_more_sessions_make_no_more_series(app: BedrockAgentCoreApp, client: Client) -> None:
    app.entrypoint(lambda payload: payload)

    def series() -> set[tuple[str, frozenset[tuple[str, str]]]]:
        return {
            (sample.name, frozenset(sample.labels.items()))
            for metric in metrics(client).values()
            for sample in metric.samples
        }

    before = series()
    for number in range(20):
        client.post("/invocations", json={}, headers={SESSION_ID: f"session-{number}"})
    assert series() == before


def test_two_apps_in_one_process_do_not_collide() -> None:
    busy, idle = BedrockAgentCoreApp(), BedrockAgentCoreApp()
    busy.entrypoint(lambda payload: payload)
    with TestClient(app=busy) as busy_client, TestClient(app=idle) as idle_client:
        busy_client.post("/invocations", json={})
        busy.add_async_task("research")
        assert invocations(busy_client) == {("unary", "ok"): 1}
        assert invocations(idle_client) == {}
        assert [value(client, "agentcore_active_tasks") for client in (busy_client, idle_client)] == [1, 0]


def test_the_registry_of_the_host_program_is_left_alone(app: BedrockAgentCoreApp, client: Client) -> None:
    app.entrypoint(lambda payload: payload)
    client.post("/invocations", json={})
    assert b"agentcore_" not in prometheus_client.generate_latest()


def test_an_application_that_exists_already_gets_metrics_too() -> None:
    app = litestar.Litestar(plugins=[AgentCorePlugin(lambda payload: payload)])
    with TestClient(app=app) as client:
        client.post("/invocations", json={})
        assert value(client, "agentcore_invocations_total", mode="unary", outcome="ok") == 1


# Forms


PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
PREFERS_TEXT = "text/plain;version=0.0.4;q=0.6,application/openmetrics-text;version=1.0.0;q=0.5,*/*;q=0.1"
REFUSES_OPENMETRICS = "application/openmetrics-text;q=0, text/plain"


@pytest.mark.parametrize("accept", ["", "*/*", "text/plain", "text/html", PREFERS_TEXT, REFUSES_OPENMETRICS])
def test_metrics_are_prometheus_text_by_default(client: Client, accept: str) -> None:
    response = client.get("/metrics", headers={"Accept": accept})
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "# TYPE agentcore_invocations_total counter\n" in response.text
    assert not response.text.endswith("# EOF\n")


@pytest.mark.parametrize("accept", [OPENMETRICS["Accept"], "application/openmetrics-text", PROMETHEUS_2, PROMETHEUS_3])
def test_metrics_are_openmetrics_where_that_is_accepted(client: Client, accept: str) -> None:
    response = client.get("/metrics", headers={"Accept": accept})
    assert response.status_code == 200
    content_type = response.headers["content-type"]
    assert content_type.startswith("application/openmetrics-text; version=1.0.0; charset=utf-8")
    assert {metric.name for metric in parse_openmetrics(response.text)} >= set(METRICS)
    assert response.text.endswith("# EOF\n")


MOVING = {"agentcore_event_loop_lag_seconds", "agentcore_handler_threads"}
"""What need not be the same at two scrapes: a thread hands its answer over before it has ended its call."""


def test_both_forms_tell_the_same(app: BedrockAgentCoreApp, client: Client) -> None:
    app.entrypoint(plain_events)
    client.post("/invocations", json={})
    app.complete_async_task(app.add_async_task("research"))

    def told(families: Iterable[prometheus_client.Metric]) -> set[tuple[str, frozenset[tuple[str, str]], float]]:
        return {
            (sample.name, frozenset(sample.labels.items()), sample.value)
            for metric in families
            for sample in metric.samples
            if sample.name.startswith("agentcore_") and sample.name not in MOVING
        }

    text = client.get("/metrics").text
    openmetrics_text = client.get("/metrics", headers=OPENMETRICS).text
    assert told(text_string_to_metric_families(text)) == told(parse_openmetrics(openmetrics_text))


# Exemplars


TRACE_IDS = {"unary": f"{1:032x}", "stream": f"{2:032x}"}


class Traced(msgspec.Struct):
    """What a traced process has told."""

    openmetrics: str
    text: str
    recorded: set[str]
    """The ids of the traces that its spans are of."""

    def exemplars(self, name: str) -> list[dict[str, str]]:
        return [
            dict(sample.exemplar.labels)
            for metric in parse_openmetrics(self.openmetrics)
            for sample in metric.samples
            if sample.name == f"{name}_bucket" and sample.exemplar
        ]


def tell(flags: str) -> Traced:
    """Serve one invocation of each mode, in a process of its own that has a tracer provider."""
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    trace.set_tracer_provider(provider)
    app = BedrockAgentCoreApp()

    @app.async_task
    async def research() -> str:
        return "done"

    @app.entrypoint
    async def handler(payload: str) -> Any:
        return async_events(payload) if payload == "stream" else await research()

    with TestClient(app=app) as client:
        for mode, trace_id in TRACE_IDS.items():
            headers = {"traceparent": f"00-{trace_id}-{1:016x}-{flags}"}
            assert client.post("/invocations", json=mode, headers=headers).status_code == 200
        contexts = [span.get_span_context() for span in spans.get_finished_spans()]
        return Traced(
            client.get("/metrics", headers=OPENMETRICS).text,
            client.get("/metrics").text,
            {trace.format_trace_id(context.trace_id) for context in contexts if context},
        )


@pytest.fixture(scope="module")
def traced() -> Iterator[dict[str, Traced]]:
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as processes:
        told = {name: processes.submit(tell, flags) for name, flags in (("sampled", "01"), ("not sampled", "00"))}
        yield {name: future.result(60) for name, future in told.items()}


def test_the_durations_carry_the_trace_id_as_an_exemplar(traced: dict[str, Traced]) -> None:
    sampled = traced["sampled"]
    assert sampled.recorded == set(TRACE_IDS.values())
    exemplars = sampled.exemplars("agentcore_invocation_duration_seconds")
    assert {exemplar["trace_id"] for exemplar in exemplars} == sampled.recorded


def test_the_duration_of_a_task_carries_the_trace_id_as_an_exemplar(traced: dict[str, Traced]) -> None:
    exemplars = traced["sampled"].exemplars("agentcore_async_task_duration_seconds")
    assert [exemplar["trace_id"] for exemplar in exemplars] == [TRACE_IDS["unary"]]


def test_a_trace_that_is_not_sampled_is_no_exemplar(traced: dict[str, Traced]) -> None:
    assert traced["not sampled"].recorded == set()
    assert "trace_id" not in traced["not sampled"].openmetrics


@pytest.mark.parametrize("name", ["sampled", "not sampled"])
def test_prometheus_text_has_no_exemplars(traced: dict[str, Traced], name: str) -> None:
    assert "trace_id" not in traced[name].text
