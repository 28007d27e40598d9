"""A connection that uvicorn closes under an answer is a client that left, and no error of the service's."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn
from litestar.types import Message, Receive, Scope, Send
from litestar_agentcore import BedrockAgentCoreApp
from litestar_agentcore.lost_connections import ClientSend, client_send, server_cycle
from uvicorn.server import ServerState

from tests.unit.test_gathered_writes import PATIENCE, Socket, app_of, request

both = pytest.mark.parametrize("http", ["httptools", "h11"])


class Connection:
    """A client's connection to uvicorn. To be made on a running loop."""

    def __init__(self, app: Any, http: str) -> None:
        config = uvicorn.Config(app, http=http, lifespan="off", log_config=None, log_level="error")
        config.load()
        self.state = ServerState()
        make: Any = config.http_protocol_class
        self.protocol = make(config=config, server_state=self.state, app_state={}, _loop=asyncio.get_running_loop())
        self.socket = Socket()
        self.protocol.connection_made(self.socket)

    def send(self, data: bytes) -> None:
        self.protocol.data_received(data)

    async def answered(self) -> None:
        """Until the application is done with its requests. What it raises is in uvicorn's log."""
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*self.state.tasks)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.001)


def outcomes(app: BedrockAgentCoreApp) -> list[str]:
    exposed = app.agent.telemetry.metrics.expose("")[0].decode()
    return [
        line for line in exposed.splitlines() if line.startswith("agentcore_invocations_total") and line[-4:] != " 0.0"
    ]


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


# -- The send function


START: Message = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]}
HALF: Message = {"type": "http.response.body", "body": b"ab", "more_body": True}
END: Message = {"type": "http.response.body", "body": b"cd", "more_body": False}


def exchange(http: str, answer: Callable[[Receive, ClientSend, Socket], Any], *headers: bytes) -> Socket:
    """Have a function answer one request of a connection."""
    connections: list[Connection] = []
    held = []

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        wrapped = client_send(send)
        assert isinstance(wrapped, ClientSend)
        assert server_cycle(wrapped) is server_cycle(send)
        await receive()
        await answer(receive, wrapped, connections[0].socket)
        held.append(True)

    async def serve() -> None:
        connection = Connection(application, http)
        connections.append(connection)
        connection.send(request(b"{}", *headers))
        await connection.answered()

    asyncio.run(serve())
    assert held, "uvicorn's log has what failed"
    return connections[0].socket


@both
@pytest.mark.parametrize("sent", [0, 1, 2], ids=["before the head", "after the head", "within the body"])
def test_what_is_sent_to_a_closed_connection_is_dropped_and_the_request_learns_of_it(http: str, sent: int) -> None:
    messages = [START, HALF, END]

    async def answer(receive: Receive, send: ClientSend, socket: Socket) -> None:
        for message in messages[:sent]:
            await send(message)
        assert not send.lost
        socket.close()
        written = list(socket.writes)
        for message in messages[sent:]:
            await send(message)
            assert send.lost
        assert socket.writes == written
        async with asyncio.timeout(PATIENCE):
            assert await receive() == {"type": "http.disconnect"}

    exchange(http, answer)


@both
def test_what_is_waiting_for_the_client_to_leave_is_woken(http: str) -> None:
    async def answer(receive: Receive, send: ClientSend, socket: Socket) -> None:
        waiting = asyncio.ensure_future(receive())
        await asyncio.sleep(0)
        socket.close()
        await send(START)
        async with asyncio.timeout(PATIENCE):
            assert await waiting == {"type": "http.disconnect"}

    exchange(http, answer)


@both
def test_an_answer_after_which_the_connection_is_closed_is_not_lost(http: str) -> None:
    async def answer(receive: Receive, send: ClientSend, socket: Socket) -> None:
        for message in (START, HALF, END):
            await send(message)
        assert socket.closed
        assert not send.lost

    socket = exchange(http, answer, b"Connection: close")
    assert b"".join(socket.writes).endswith(b"\r\n\r\nabcd")


def test_the_send_function_of_another_server_or_of_a_middleware_is_left_as_it_is() -> None:
    class Server:
        async def send(self, message: Message) -> None: ...

    async def middleware(message: Message) -> None: ...

    for send in (Server().send, middleware):
        assert client_send(send) is send
        assert server_cycle(send) is None


# -- Invocations

GARBAGE = b"\0\1no HTTP\r\n\r\n"


def close_under(
    app: BedrockAgentCoreApp, http: str, working: threading.Event, go_on: threading.Event, first: bytes = b""
) -> Connection:
    """Have a connection end while its invocation works, as uvicorn closes it: the request is not told."""
    connections = []

    async def serve() -> None:
        connection = Connection(app, http)
        connections.append(connection)
        connection.send(request(b"{}"))
        await until(working.is_set)
        await until(lambda: first in b"".join(connection.socket.writes))
        if http == "httptools":
            connection.send(GARBAGE)  # while h11 leaves unread what follows a request
        else:
            connection.socket.close()
        assert connection.socket.closed
        go_on.set()
        await connection.answered()

    asyncio.run(serve())
    return connections[0]


@both
@pytest.mark.parametrize("kind", ["value", "error"])
def test_an_invocation_whose_connection_is_closed_under_its_answer_is_disconnected(
    http: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    working, go_on = threading.Event(), threading.Event()

    def handler(payload: Any) -> Any:
        working.set()
        assert go_on.wait(PATIENCE)
        if kind == "error":
            raise NoSuchThing
        return "late"

    app = app_of(handler)
    close_under(app, http, working, go_on)
    assert outcomes(app) == ['agentcore_invocations_total{mode="unary",outcome="disconnected"} 1.0']
    assert errors(caplog) == []


class NoSuchThing(Exception):
    status_code, detail = 404, "no such thing"


@both
def test_a_stream_whose_connection_is_closed_ends_as_disconnected(http: str, caplog: pytest.LogCaptureFixture) -> None:
    working, go_on, closed = threading.Event(), threading.Event(), threading.Event()

    def endless(payload: Any) -> Iterator[int]:
        try:
            yield 4711
            working.set()
            assert go_on.wait(PATIENCE)
            while True:
                yield 1
                time.sleep(0.001)
        finally:
            closed.set()

    app = app_of(endless)
    close_under(app, http, working, go_on, first=b"4711")
    assert closed.wait(PATIENCE)
    assert outcomes(app) == ['agentcore_invocations_total{mode="stream",outcome="disconnected"} 1.0']
    assert errors(caplog) == []


@both
def test_an_invocation_whose_body_turns_out_to_be_no_http_is_disconnected(
    http: str, caplog: pytest.LogCaptureFixture
) -> None:
    called: list[Any] = []
    app = app_of(called.append)

    async def serve() -> None:
        connection = Connection(app, http)
        connection.send(b"POST /invocations HTTP/1.1\r\nHost: agent\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n")
        await until(lambda: connection.state.tasks)
        await asyncio.sleep(0)
        connection.send(b"no size\r\n")
        assert connection.socket.closed
        connection.protocol.connection_lost(None)
        await connection.answered()

    asyncio.run(serve())
    assert called == []
    assert outcomes(app) == ['agentcore_invocations_total{mode="unary",outcome="disconnected"} 1.0']
    assert errors(caplog) == []
