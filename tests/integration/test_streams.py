"""Server-sent events as a client on the other end of a socket sees them."""

import asyncio
import http.client
import inspect
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from litestar_agentcore import BedrockAgentCoreContext

from tests.integration.server import PATIENCE, REQUEST_ID, SESSION_ID, app_of, eventually, receive_until, serve

Handler = Callable[[Any], Any]

PROMPTLY = 3.0
"""Seconds that closing an abandoned generator may take on a machine that is busy."""

FILLING = "x" * 16 * 1024


def events_of(response: httpx.Response) -> Iterator[Any]:
    for line in response.iter_lines():
        if line:
            assert line.startswith("data: ")
            yield json.loads(line.removeprefix("data: "))


class Source:
    """Handlers that stream large events and tell how far they have come."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.yielded = 0
        self.closed = threading.Event()

    def sync_generator(self, payload: Any) -> Iterator[Any]:
        try:
            for number in range(self.length):
                self.yielded += 1
                yield {"number": number, "filling": FILLING}
        finally:
            self.closed.set()

    async def async_generator(self, payload: Any) -> AsyncIterator[Any]:
        try:
            for number in range(self.length):
                self.yielded += 1
                yield {"number": number, "filling": FILLING}
        finally:
            self.closed.set()

    def standstill(self) -> int:
        """Wait until it goes on no more, and tell how many events it has yielded."""
        seen = -1
        while seen != self.yielded or not seen:
            seen = self.yielded
            time.sleep(0.2)
        return seen


def async_generator(gate: threading.Event) -> Handler:
    async def handler(payload: Any) -> AsyncIterator[Any]:
        yield "first"
        yield await asyncio.to_thread(gate.wait, PATIENCE)

    return handler


def sync_generator(gate: threading.Event) -> Handler:
    def handler(payload: Any) -> Iterator[Any]:
        yield "first"
        yield gate.wait(PATIENCE)

    return handler


def function_that_returns_a_generator(gate: threading.Event) -> Handler:
    return lambda payload: sync_generator(gate)(payload)


def async_function_that_returns_a_generator(gate: threading.Event) -> Handler:
    async def handler(payload: Any) -> Any:
        return async_generator(gate)(payload)

    return handler


KINDS = [
    async_generator,
    sync_generator,
    function_that_returns_a_generator,
    async_function_that_returns_a_generator,
]


@pytest.mark.parametrize("kind", KINDS)
def test_an_event_leaves_when_it_is_yielded_and_not_when_the_next_one_comes(
    kind: Callable[[threading.Event], Handler],
) -> None:
    gate = threading.Event()
    with (
        serve(app_of(kind(gate))) as server,
        server.client() as client,
        client.stream("POST", "/invocations", json={}) as response,
    ):
        events = events_of(response)
        assert next(events) == "first"
        gate.set()
        assert list(events) == [True]


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_is_of_the_content_type_text_event_stream_and_carries_the_ids(
    kind: Callable[[threading.Event], Handler],
) -> None:
    gate = threading.Event()
    gate.set()
    with serve(app_of(kind(gate))) as server, server.client() as client:
        response = client.post("/invocations", json={}, headers={REQUEST_ID: "request-1", SESSION_ID: "session-1"})
    assert response.status_code == 200
    assert response.headers["content-type"].split(";")[0] == "text/event-stream"
    assert response.headers[REQUEST_ID] == "request-1"
    assert response.headers[SESSION_ID] == "session-1"
    assert response.text == 'data: "first"\n\ndata: true\n\n'


def raising_sync_generator(payload: Any) -> Iterator[Any]:
    yield 1
    raise ValueError("no luck")


async def raising_async_generator(payload: Any) -> AsyncIterator[Any]:
    yield 1
    raise ValueError("no luck")


@pytest.mark.parametrize("handler", [raising_sync_generator, raising_async_generator])
def test_a_generator_that_raises_sends_one_last_event_and_ends_the_stream_cleanly(handler: Handler) -> None:
    with serve(app_of(handler)) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
        connection.request("POST", "/invocations", b"{}")
        first_socket = connection.sock
        events = connection.getresponse().read().decode().split("\n\n")
        assert [json.loads(event.removeprefix("data: ")) for event in events if event] == [
            1,
            {"error": "no luck", "error_type": "ValueError", "message": "An error occurred during streaming"},
        ]
        connection.request("GET", "/ping")
        assert connection.getresponse().status == 200
        assert connection.sock is first_socket
        connection.close()


def async_generator_in_an_await(closed: threading.Event) -> Handler:
    async def handler(payload: Any) -> AsyncIterator[Any]:
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            closed.set()

    return handler


def async_generator_between_events(closed: threading.Event) -> Handler:
    async def handler(payload: Any) -> AsyncIterator[Any]:
        try:
            while True:
                yield 1
                await asyncio.sleep(0.01)
        finally:
            closed.set()

    return handler


def sync_generator_between_events(closed: threading.Event) -> Handler:
    def handler(payload: Any) -> Iterator[Any]:
        try:
            while True:
                yield 1
                time.sleep(0.01)
        finally:
            closed.set()

    return handler


@pytest.mark.parametrize(
    "kind", [async_generator_in_an_await, async_generator_between_events, sync_generator_between_events]
)
def test_a_client_that_goes_away_closes_the_generator(kind: Callable[[threading.Event], Handler]) -> None:
    closed = threading.Event()
    with serve(app_of(kind(closed))) as server:
        with server.invoke_and_leave_unread({}) as connection:
            receive_until(connection, b"data: 1")
        assert closed.wait(PROMPTLY)


@pytest.mark.parametrize("kind", ["sync_generator", "async_generator"])
def test_a_client_that_read_nothing_and_goes_away_closes_the_paused_generator(kind: str) -> None:
    source = Source(length=2000)
    generator = getattr(source, kind)({})
    with serve(app_of(lambda payload: generator)) as server:
        with server.invoke_and_leave_unread({}):
            source.standstill()
            assert not source.closed.is_set()
        assert source.closed.wait(PROMPTLY)


def test_a_generator_that_is_returned_to_nobody_is_closed() -> None:
    called, left = threading.Event(), threading.Event()
    generator = sync_generator_between_events(threading.Event())({})

    def handler(payload: Any) -> Any:
        called.set()
        left.wait(PATIENCE)
        return generator

    with serve(app_of(handler)) as server:
        with server.invoke_and_leave_unread({}):
            assert called.wait(PATIENCE)
        left.set()
        eventually(lambda: inspect.getgeneratorstate(generator) == inspect.GEN_CLOSED)


def test_a_client_that_goes_away_disturbs_no_other_async_stream() -> None:
    closed, gate = threading.Event(), threading.Event()

    async def handler(payload: Any) -> AsyncIterator[Any]:
        try:
            yield payload
            while not gate.is_set():
                await asyncio.sleep(0.01)
            yield "last"
        finally:
            if payload == "leaves":
                closed.set()

    _one_leaves_and_one_stays(handler, closed, gate)


def test_a_client_that_goes_away_disturbs_no_other_sync_stream() -> None:
    closed, gate = threading.Event(), threading.Event()

    def handler(payload: Any) -> Iterator[Any]:
        try:
            yield payload
            while payload == "leaves":
                yield payload
            gate.wait(PATIENCE)
            yield "last"
        finally:
            if payload == "leaves":
                closed.set()

    _one_leaves_and_one_stays(handler, closed, gate)


def _one_leaves_and_one_stays(handler: Handler, closed: threading.Event, gate: threading.Event) -> None:
    with (
        serve(app_of(handler)) as server,
        server.client() as client,
        client.stream("POST", "/invocations", json="stays") as response,
    ):
        events = events_of(response)
        assert next(events) == "stays"
        with server.invoke_and_leave_unread("leaves") as connection:
            receive_until(connection, b"leaves")
        assert closed.wait(PROMPTLY)
        gate.set()
        assert list(events) == ["last"]


@pytest.mark.parametrize("kind", ["sync_generator", "async_generator"])
def test_a_client_that_does_not_read_makes_the_generator_pause_and_misses_no_event(kind: str) -> None:
    source = Source(length=2000)
    with serve(app_of(getattr(source, kind))) as server, server.invoke_and_leave_unread({}) as connection:
        assert source.standstill() < 200
        response = http.client.HTTPResponse(connection)
        response.begin()
        numbers = [json.loads(line[6:])["number"] for line in response if line.startswith(b"data: ")]
    assert numbers == list(range(2000))


def test_many_slow_readers_of_sync_streams_leave_threads_for_other_invocations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AGENTCORE_SYNC_THREADS", "4")

    def handler(payload: Any) -> Any:
        return ({"filling": FILLING} for _ in range(2000)) if payload == "stream" else "answer"

    with serve(app_of(handler)) as server, server.client() as client, ExitStack() as stack:
        readers = [stack.enter_context(server.invoke_and_leave_unread("stream")) for _ in range(200)]
        for reader in readers:
            receive_until(reader, b"data: ")
        assert client.post("/invocations", json={}).json() == "answer"


def counting_sync_generator(payload: Any) -> Iterator[Any]:
    for number in range(20):
        yield [payload, BedrockAgentCoreContext.get_session_id(), number]
        time.sleep(0.001)


async def counting_async_generator(payload: Any) -> AsyncIterator[Any]:
    for number in range(20):
        yield [payload, BedrockAgentCoreContext.get_session_id(), number]
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("handler", [counting_sync_generator, counting_async_generator])
def test_concurrent_streams_mix_neither_their_events_nor_their_contexts(handler: Handler) -> None:
    async def read(client: httpx.AsyncClient, name: str) -> list[Any]:
        response = await client.post("/invocations", json=name, headers={SESSION_ID: f"session-{name}"})
        return list(events_of(response))

    async def read_all(client: httpx.AsyncClient) -> list[list[Any]]:
        async with client:
            return await asyncio.gather(*(read(client, str(number)) for number in range(50)))

    with serve(app_of(handler)) as server:
        streams = asyncio.run(read_all(server.async_client()))
    assert streams == [[[str(name), f"session-{name}", number] for number in range(20)] for name in range(50)]
