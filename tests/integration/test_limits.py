"""Limits as clients on the other end of a socket meet them."""

import asyncio
import http.client
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from litestar_agentcore import BedrockAgentCoreApp
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.integration.server import (
    PATIENCE,
    SESSION_ID,
    Server,
    app_of,
    eventually,
    receive_until,
    request,
    serve,
)

HTTP = ["httptools", "h11"]


class Gate:
    """Handlers that wait at a gate, and tell who has come there and who has ended."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.begun: list[Any] = []
        self.ended: list[Any] = []
        self.cancelled: list[Any] = []

    def plain(self, payload: Any) -> Any:
        self.begun.append(payload)
        assert self.open.wait(3 * PATIENCE)
        self.ended.append(payload)
        return payload

    async def coroutine(self, payload: Any) -> Any:
        self.begun.append(payload)
        try:
            while not self.open.is_set():
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            self.cancelled.append(payload)
            raise
        finally:
            self.ended.append(payload)
        return payload

    async def generator(self, payload: Any) -> AsyncIterator[Any]:
        self.begun.append(payload)
        try:
            while not self.open.is_set():
                await asyncio.sleep(0.01)
            yield payload
        finally:
            self.ended.append(payload)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open.set()


def limited(patch: pytest.MonkeyPatch, handler: Any, **limits: object) -> BedrockAgentCoreApp:
    for name, value in limits.items():
        patch.setenv(f"AGENTCORE_{name}", str(value))
    return app_of(handler)


def held(app: BedrockAgentCoreApp) -> int:
    assert app.agent.admission is not None
    return app.agent.admission.held


@contextmanager
def serve_with(app: BedrockAgentCoreApp, implementation: str, patch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Serve with one of uvicorn's HTTP implementations."""
    original = uvicorn.Config

    def config(*args: Any, **options: Any) -> uvicorn.Config:
        return original(*args, **options | {"http": implementation})

    patch.setattr("tests.integration.server.uvicorn.Config", config)
    with serve(app) as server:
        yield server


def to_the_end(connection: socket.socket) -> bytes:
    received = bytearray()
    while chunk := connection.recv(64 * 1024):
        received += chunk
    return bytes(received)


@pytest.mark.parametrize("kind", ["plain", "coroutine", "generator"])
def test_of_ten_times_the_limit_all_that_are_accepted_are_answered_and_the_rest_is_refused(
    monkeypatch: pytest.MonkeyPatch, gate: Gate, kind: str
) -> None:
    app = limited(monkeypatch, getattr(gate, kind), MAX_CONCURRENT_INVOCATIONS=4, QUEUE_SIZE=2, QUEUE_TIMEOUT_SECONDS=0)
    with serve(app) as server, ThreadPoolExecutor(40) as threads:

        def invoke(number: int) -> httpx.Response:
            with server.client(3 * PATIENCE) as client:
                return client.post("/invocations", json=number)

        calls = [threads.submit(invoke, number) for number in range(40)]
        eventually(lambda: sum(call.done() for call in calls) == 34)  # while nobody else has an answer
        refused = [call.result() for call in calls if call.done()]
        assert {answer.status_code for answer in refused} == {429}
        assert {answer.headers["retry-after"] for answer in refused} == {"1"}
        with server.client() as client:
            assert [client.get(path).status_code for path in ("/ping", "/ready", "/metrics")] == [200] * 3
            assert "agentcore_invocations_waiting 2.0" in client.get("/metrics").text
        assert len(gate.begun) == 4
        gate.open.set()
        answers = [call.result() for call in calls]
        assert sorted(answer.status_code for answer in answers) == [200] * 6 + [429] * 34
        eventually(lambda: held(app) == 0)
        assert len(gate.ended) == 6
        with server.client() as client:
            assert 'outcome="rejected"} 34.0' in client.get("/metrics").text


@pytest.mark.parametrize("implementation", HTTP)
def test_who_is_refused_need_not_send_its_body_first(
    monkeypatch: pytest.MonkeyPatch, gate: Gate, implementation: str
) -> None:
    app = limited(monkeypatch, gate.plain, MAX_CONCURRENT_INVOCATIONS=1, QUEUE_SIZE=0)
    with serve_with(app, implementation, monkeypatch) as server, server.invoke_and_leave_unread(1):
        eventually(lambda: gate.begun)
        with server.connect() as slow:
            slow.sendall(request(b"", "Content-Length: 1000"))
            head = receive_until(slow, b"}")
            assert head.startswith(b"HTTP/1.1 429 ")
            assert b"connection: close" in head.lower()
            assert b"retry-after: 1\r\n" in head.lower()
            assert to_the_end(slow) == b""
        with server.connect() as whole:  # a connection that is in order is kept
            for _ in range(2):
                whole.sendall(request(b"{}"))
                head = receive_until(whole, b"}")
                assert head.startswith(b"HTTP/1.1 429 ")
                assert b"connection: close" not in head.lower()
        gate.open.set()


@pytest.mark.parametrize("implementation", HTTP)
def test_a_client_that_sends_a_large_body_without_looking_reads_its_refusal(
    monkeypatch: pytest.MonkeyPatch, gate: Gate, implementation: str
) -> None:
    app = limited(monkeypatch, gate.plain, MAX_CONCURRENT_INVOCATIONS=1, QUEUE_SIZE=0)
    with serve_with(app, implementation, monkeypatch) as server, server.invoke_and_leave_unread(1):
        eventually(lambda: gate.begun)
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
        try:
            connection.request("POST", "/invocations", b" " * 5_000_000)
            response = connection.getresponse()
            assert response.status == 429
            assert json.loads(response.read()) == {"error": "Too many invocations"}
        finally:
            connection.close()
        gate.open.set()


@pytest.mark.parametrize("implementation", HTTP)
@pytest.mark.parametrize("limit", ["BODY_IDLE_SECONDS", "INVOCATION_TIMEOUT_SECONDS"])
@pytest.mark.parametrize("sent", [b"", b"[1, "])
def test_a_body_that_does_not_come_is_answered_408_and_the_connection_closed(
    monkeypatch: pytest.MonkeyPatch, gate: Gate, implementation: str, limit: str, sent: bytes
) -> None:
    app = limited(monkeypatch, gate.plain, **{limit: 0.2})
    with serve_with(app, implementation, monkeypatch) as server, ExitStack() as stack:
        connections = [stack.enter_context(server.connect()) for _ in range(20)]
        for connection in connections:
            connection.sendall(request(sent, "Content-Length: 1000"))
        for connection in connections:
            answer = to_the_end(connection)
            assert answer.startswith(b"HTTP/1.1 408 ")
            assert answer.endswith(
                b'{"error":"Request timeout","details":"The body of the request was not there in time"}'
            )
        with server.client() as client:
            assert 'outcome="client_error"} 20.0' in client.get("/metrics").text
    assert gate.begun == []


@pytest.mark.parametrize("implementation", HTTP)
def test_a_client_that_leaves_the_queue_makes_room(
    monkeypatch: pytest.MonkeyPatch, gate: Gate, implementation: str
) -> None:
    app = limited(monkeypatch, gate.plain, MAX_CONCURRENT_INVOCATIONS=1, QUEUE_SIZE=1, QUEUE_TIMEOUT_SECONDS=0)
    with serve_with(app, implementation, monkeypatch) as server, server.client() as client:
        admission = app.agent.admission
        assert admission is not None
        first = server.invoke_and_leave_unread("first")
        eventually(lambda: gate.begun)
        leaves = server.invoke_and_leave_unread("leaves")
        eventually(lambda: admission.waiting == 1)
        assert client.post("/invocations", json="refused").status_code == 429
        leaves.close()
        eventually(lambda: admission.waiting == 0)
        with first, server.invoke_and_leave_unread("stays") as stays:
            eventually(lambda: admission.waiting == 1)
            gate.open.set()
            assert receive_until(stays, b'"stays"').startswith(b"HTTP/1.1 200 ")
    assert gate.begun == ["first", "stays"]


def test_loops_that_serve_one_app_share_its_places(monkeypatch: pytest.MonkeyPatch, gate: Gate) -> None:
    app = limited(monkeypatch, gate.coroutine, MAX_CONCURRENT_INVOCATIONS=1)

    async def invoke_on_another_loop(number: int) -> int:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://agent") as client:
            return (await client.post("/invocations", json=number)).status_code

    with serve(app) as server, ThreadPoolExecutor(20) as threads:

        def invoke(number: int) -> int:
            if number % 2:
                return asyncio.run(invoke_on_another_loop(number))
            with server.client(3 * PATIENCE) as client:
                return client.post("/invocations", json=number).status_code

        calls = [threads.submit(invoke, number) for number in range(20)]
        eventually(lambda: app.agent.admission is not None and app.agent.admission.waiting == 19)
        assert len(gate.begun) == 1
        gate.open.set()
        assert [call.result() for call in calls] == [200] * 20
        eventually(lambda: held(app) == 0)


@pytest.mark.parametrize("isolation", ["isolated", "inline"])
def test_a_silent_stream_has_comments_and_whole_events(
    monkeypatch: pytest.MonkeyPatch, gate: Gate, isolation: str
) -> None:
    app = limited(monkeypatch, gate.generator, HANDLER_ISOLATION=isolation, SSE_KEEPALIVE_SECONDS=0.05)
    with (
        serve(app) as server,
        server.client() as client,
        client.stream("POST", "/invocations", json="only") as response,
    ):
        assert response.status_code == 200
        received = ""
        for text in response.iter_text():
            received += text
            if received.count(": keep-alive\n\n") >= 2:
                gate.open.set()
        comments, event = received.rsplit("data: ", 1)
        assert event == '"only"\n\n'
        assert set(comments.split("\n\n")) == {": keep-alive", ""}


def test_many_idle_streams_all_have_their_comments(monkeypatch: pytest.MonkeyPatch, gate: Gate) -> None:
    app = limited(monkeypatch, gate.generator, SSE_KEEPALIVE_SECONDS=0.2)
    with serve(app) as server, ExitStack() as stack:
        connections = [stack.enter_context(server.invoke_and_leave_unread(number)) for number in range(100)]
        for connection in connections:
            assert b"data" not in receive_until(connection, b": keep-alive\n\n")
        gate.open.set()
        for number, connection in enumerate(connections):
            receive_until(connection, b"data: %d\n\n" % number)


@pytest.mark.parametrize("implementation", HTTP)
@pytest.mark.parametrize("limit", ["STREAM_TIMEOUT_SECONDS", "STREAM_IDLE_SECONDS"])
def test_a_stream_whose_time_is_over_ends_cleanly_and_its_connection_goes_on(
    monkeypatch: pytest.MonkeyPatch, gate: Gate, implementation: str, limit: str
) -> None:
    app = limited(monkeypatch, gate.generator, **{limit: 0.2})
    with serve_with(app, implementation, monkeypatch) as server, server.client() as client:
        for _ in range(2):
            response = client.post("/invocations", json=1)
            assert response.status_code == 200
            (event,) = response.text.removesuffix("\n\n").split("\n\n")
            assert json.loads(event.removeprefix("data: "))["error_type"] == "TimeoutError"
        eventually(lambda: gate.ended == [1, 1])


@pytest.mark.parametrize("implementation", HTTP)
def test_a_client_that_does_not_read_keeps_no_place_beyond_the_streams_time(
    monkeypatch: pytest.MonkeyPatch, implementation: str
) -> None:
    closed = threading.Event()

    async def endless(payload: Any) -> AsyncIterator[str]:
        try:
            while True:
                yield "x" * 64 * 1024
        finally:
            closed.set()

    monkeypatch.setattr("litestar_agentcore.runtime.timeouts.LAST_EVENT_SECONDS", 0.2)
    app = limited(monkeypatch, endless, STREAM_TIMEOUT_SECONDS=0.2, MAX_CONCURRENT_INVOCATIONS=1, QUEUE_SIZE=0)
    with serve_with(app, implementation, monkeypatch) as server, server.invoke_and_leave_unread({}):
        eventually(lambda: held(app) == 1)
        eventually(lambda: held(app) == 0)
        assert closed.wait(PATIENCE)
        eventually(lambda: not app.agent.running)
        with server.client() as client:
            assert '{mode="stream",outcome="timeout"} 1.0' in client.get("/metrics").text


@pytest.mark.parametrize("isolation", ["isolated", "inline"])
@pytest.mark.parametrize("kind", ["plain", "coroutine"])
def test_an_invocation_whose_time_is_over_is_answered_504(
    monkeypatch: pytest.MonkeyPatch, gate: Gate, kind: str, isolation: str
) -> None:
    app = limited(monkeypatch, getattr(gate, kind), HANDLER_ISOLATION=isolation, INVOCATION_TIMEOUT_SECONDS=0.2)
    with serve(app) as server, server.client() as client:
        response = client.post("/invocations", json=1, headers={SESSION_ID: "slow"})
        assert response.status_code == 504
        assert response.headers[SESSION_ID] == "slow"
        assert response.json() == {"error": "Invocation timeout", "details": "The invocation took longer than 0.2 s"}
        if kind == "coroutine":
            eventually(lambda: gate.cancelled == [1])
        gate.open.set()
        eventually(lambda: not app.agent.running)
        assert client.post("/invocations", json=2).json() == 2


@pytest.mark.parametrize("isolation", ["isolated", "inline"])
def test_a_handler_is_cancelled_when_its_client_leaves_where_the_setting_says_so(
    monkeypatch: pytest.MonkeyPatch, gate: Gate, isolation: str
) -> None:
    app = limited(monkeypatch, gate.coroutine, HANDLER_ISOLATION=isolation, CANCEL_ON_DISCONNECT="yes")
    with serve(app) as server:
        connection = server.invoke_and_leave_unread("left")
        eventually(lambda: gate.begun)
        connection.close()
        eventually(lambda: gate.cancelled == ["left"])


def test_no_more_websockets_than_the_limit_are_open(monkeypatch: pytest.MonkeyPatch, gate: Gate) -> None:
    app = limited(monkeypatch, gate.plain, MAX_WEBSOCKETS=2)

    @app.websocket
    async def talk(websocket: Any, context: Any) -> None:
        await websocket.accept()
        await websocket.send_text(await websocket.receive_text())

    with serve(app) as server:
        url = f"ws://127.0.0.1:{server.port}/ws"
        with connect(url, proxy=None) as first, connect(url, proxy=None) as second:
            with pytest.raises(InvalidStatus) as refused:
                connect(url, proxy=None)
            assert refused.value.response.status_code == 503
            assert json.loads(refused.value.response.body or b"") == {"error": "Too many WebSockets"}
            for connection in (first, second):
                connection.send("hello")
                assert connection.recv(PATIENCE) == "hello"
        admission = app.agent.websocket_admission
        assert admission is not None
        eventually(lambda: admission.held == 0)
        with connect(url, proxy=None) as third:
            third.send("again")
            assert third.recv(PATIENCE) == "again"
