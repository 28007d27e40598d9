"""What reaches the socket: a whole answer with one write, whatever uvicorn speaks HTTP with."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import uvicorn
from litestar.types import Message, Receive, Scope, Send
from litestar_agentcore import BedrockAgentCoreApp
from litestar_agentcore.gathered_writes import MOST_BYTES, gather
from uvicorn.server import ServerState

PATIENCE = 10.0


class Socket:
    """The transport of a client's connection."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.closed = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"sockname": ("192.0.2.2", 8080), "peername": ("192.0.2.1", 4711)}.get(name, default)

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.writes.append(data)

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


def exchange(app: Any, http: str, *requests: bytes) -> Socket:
    """What comes out of a connection of uvicorn's on which all of these requests come in at once."""
    socket = Socket()

    async def serve() -> None:
        config = uvicorn.Config(app, http=http, lifespan="off", log_level="critical")
        config.load()
        state = ServerState()
        make: Any = config.http_protocol_class
        protocol = make(config=config, server_state=state, app_state={}, _loop=asyncio.get_running_loop())
        protocol.connection_made(socket)
        protocol.data_received(b"".join(requests))
        async with asyncio.timeout(PATIENCE):
            while state.total_requests < len(requests):
                await asyncio.sleep(0.001)
        await asyncio.gather(*state.tasks)

    asyncio.run(serve())
    return socket


def request(body: bytes, *headers: bytes) -> bytes:
    lines = [b"POST /invocations HTTP/1.1", b"Host: agent", b"Content-Length: %d" % len(body), *headers, b"", b""]
    return b"\r\n".join(lines) + body


def body_of(write: bytes) -> bytes:
    assert write.startswith(b"HTTP/1.1 200")
    return write.partition(b"\r\n\r\n")[2]


def app_of(handler: Callable[..., Any]) -> BedrockAgentCoreApp:
    app = BedrockAgentCoreApp()
    app.entrypoint(handler)
    return app


async def echo(payload: Any) -> Any:
    return payload


both = pytest.mark.parametrize("http", ["httptools", "h11"])


@both
def test_a_whole_answer_leaves_with_one_write(http: str) -> None:
    socket = exchange(app_of(echo), http, request(b'{"a":1}'))
    assert [body_of(write) for write in socket.writes] == [b'{"a":1}']
    assert not socket.closed


@both
def test_requests_that_come_together_are_answered_in_their_order(http: str) -> None:
    socket = exchange(app_of(echo), http, *(request(b"%d" % number) for number in range(5)))
    assert [body_of(write) for write in socket.writes] == [b"%d" % number for number in range(5)]


@both
def test_an_answer_is_written_before_its_connection_is_closed(http: str) -> None:
    socket = exchange(app_of(echo), http, request(b"1", b"Connection: close"))
    assert [body_of(write) for write in socket.writes] == [b"1"]
    assert socket.closed


@both
def test_a_refusal_leaves_with_one_write(http: str) -> None:
    (write,) = exchange(app_of(echo), http, request(b"{")).writes
    assert write.startswith(b"HTTP/1.1 400")
    assert write.endswith(b"}")


@both
def test_a_large_answer_is_not_copied_to_be_written_with_its_head(http: str) -> None:
    socket = exchange(app_of(lambda _: "x" * MOST_BYTES), http, request(b"1"))
    head, *body = socket.writes
    assert body_of(head) == b""
    assert b"".join(body) == b'"%s"' % (b"x" * MOST_BYTES)


def test_the_last_event_and_the_end_of_a_stream_leave_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTCORE_HANDLER_ISOLATION", "inline")  # where nothing is sent before the generator waits

    async def events(_: Any) -> AsyncIterator[int]:
        yield 1
        yield 2

    head, body = exchange(app_of(events), "httptools", request(b"1")).writes
    assert body_of(head) == b""
    assert body == b"12\r\ndata: 1\n\ndata: 2\n\n\r\n0\r\n\r\n"


@both
def test_a_stream_without_events_ends(http: str) -> None:
    async def events(_: Any) -> AsyncIterator[int]:
        for nothing in range(0):
            yield nothing

    socket = exchange(app_of(events), http, request(b"1"))
    assert body_of(b"".join(socket.writes)) == b"0\r\n\r\n"


@both
def test_behind_a_middleware_each_message_is_sent_by_itself(http: str) -> None:
    sent: list[str] = []

    def middleware(app: Any) -> Any:
        async def serve(scope: Scope, receive: Receive, send: Send) -> None:
            async def note(message: Message) -> None:
                sent.append(message["type"])
                await send(message)

            await app(scope, receive, note)

        return serve

    app = BedrockAgentCoreApp(middleware=[middleware])
    app.entrypoint(echo)
    socket = exchange(app, http, request(b"1"))
    assert sent == ["http.response.start", "http.response.body"]
    assert body_of(b"".join(socket.writes)) == b"1"


def test_what_is_written_in_several_parts_keeps_its_order() -> None:
    class Cycle:
        transport: Any = Socket()

        async def send(self, message: Message) -> None: ...

    Cycle.__module__ = "uvicorn.protocols.http.httptools_impl"
    cycle, socket = Cycle(), Cycle.transport
    gathered = gather(cycle.send, 1)
    assert gathered is not None

    cycle.transport.write(b"1")
    cycle.transport.writelines([b"2", b"3"])
    assert cycle.transport.is_closing() is False
    assert socket.writes == []
    gathered.pass_on()
    gathered.pass_on()

    assert socket.writes == [b"123"]
    assert cycle.transport is socket


def test_other_servers_get_each_message_by_itself() -> None:
    class Cycle:
        transport = Socket()

        async def send(self, message: Message) -> None: ...

    async def send(message: Message) -> None: ...

    assert gather(send, 1) is None
    assert gather(Cycle().send, 1) is None


def test_a_server_without_a_transport_gets_each_message_by_itself() -> None:
    async def send(self: Any, message: Message) -> None: ...

    cycle: Any = type("Cycle", (), {"__module__": "uvicorn.protocols.http.httptools_impl", "send": send})()
    assert gather(cycle.send, 1) is None
