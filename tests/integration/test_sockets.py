"""WebSocket conversations at ``/ws``, with a client that knows nothing of Litestar."""

import json
import logging
import socket
import struct
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from litestar import WebSocket
from litestar_agentcore import BedrockAgentCoreApp, BedrockAgentCoreContext, RequestContext
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tests.integration.server import PATIENCE, PROMPT, REQUEST_ID, SESSION_ID, Server, receive_until, serve

pytestmark = pytest.mark.serial

Socket = WebSocket[Any, Any, Any]
SocketHandler = Callable[[Socket, RequestContext], Awaitable[None]]


def talking(handler: SocketHandler) -> BedrockAgentCoreApp:
    app = BedrockAgentCoreApp()
    app.websocket(handler)
    return app


def dial(server: Server, **headers: str) -> ClientConnection:
    names = {"request_id": REQUEST_ID, "session_id": SESSION_ID}
    return connect(
        f"ws://127.0.0.1:{server.port}/ws",
        sock=socket.create_connection(("127.0.0.1", server.port), PATIENCE),
        additional_headers={names[name]: value for name, value in headers.items()},
        open_timeout=PATIENCE,
        close_timeout=PATIENCE,
    )


def close_of(client: ClientConnection) -> int | None:
    """The code with which the server closes the connection."""
    with pytest.raises(ConnectionClosed):
        client.recv(PATIENCE)
    return client.close_code


HANDSHAKE = "\r\n".join(
    (
        "GET /ws HTTP/1.1",
        "Host: agent",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "",
        "",
    )
).encode()


def say_hello_and_vanish(server: Server, with_a_reset: bool) -> None:
    """Open a WebSocket, read its first message, and leave without a close frame."""
    with server.connect() as connection:
        connection.sendall(HANDSHAKE)
        receive_until(connection, b"hello")
        if with_a_reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def errors_of(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.get_records("call") if record.levelno >= logging.WARNING]


async def echo(websocket: Socket, context: RequestContext) -> None:
    await websocket.accept()
    async for message in websocket.iter_data("text"):
        await websocket.send_text(message)


def test_messages_go_to_and_fro_until_the_client_leaves(caplog: pytest.LogCaptureFixture) -> None:
    with serve(talking(echo)) as server, dial(server) as client:
        for message in ("one", "zwei", "三", "x" * 100_000):
            client.send(message)
            assert client.recv(PATIENCE) == message
    assert errors_of(caplog) == []


def test_binary_messages_go_to_and_fro() -> None:
    async def handler(websocket: Socket, context: RequestContext) -> None:
        await websocket.accept()
        await websocket.send_bytes(await websocket.receive_bytes())

    with serve(talking(handler)) as server, dial(server) as client:
        client.send(b"\x00\xff")
        assert client.recv(PATIENCE) == b"\x00\xff"


def test_a_handler_that_returns_closes_with_1000() -> None:
    async def handler(websocket: Socket, context: RequestContext) -> None:
        await websocket.accept()

    with serve(talking(handler)) as server, dial(server) as client:
        assert close_of(client) == 1000


def test_a_handler_that_closes_itself_chooses_the_code() -> None:
    async def handler(websocket: Socket, context: RequestContext) -> None:
        await websocket.accept()
        await websocket.close(code=4001)

    with serve(talking(handler)) as server, dial(server) as client:
        assert close_of(client) == 4001


def test_without_a_handler_the_close_code_is_1011() -> None:
    with serve(BedrockAgentCoreApp()) as server, dial(server) as client:
        assert close_of(client) == 1011


@pytest.mark.parametrize("accepts", [True, False])
def test_a_handler_that_raises_closes_with_1011_and_logs_the_error(
    accepts: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(websocket: Socket, context: RequestContext) -> None:
        if accepts:
            await websocket.accept()
        raise ValueError("no luck")

    with serve(talking(handler)) as server, dial(server) as client:
        assert close_of(client) == 1011
    assert [str(record.exc_info[1]) for record in errors_of(caplog) if record.exc_info] == ["no luck"]


async def listen(websocket: Socket) -> None:
    await websocket.receive_text()


async def talk(websocket: Socket) -> None:
    while True:
        await websocket.send_text("hello")


@pytest.mark.parametrize("with_a_reset", [False, True])
@pytest.mark.parametrize("go_on", [listen, talk])
def test_a_client_that_vanishes_ends_the_handler_and_is_no_error(
    go_on: Callable[[Socket], Awaitable[None]], with_a_reset: bool, caplog: pytest.LogCaptureFixture
) -> None:
    ended = threading.Event()

    async def handler(websocket: Socket, context: RequestContext) -> None:
        try:
            await websocket.accept()
            await websocket.send_text("hello")
            await go_on(websocket)
        finally:
            ended.set()

    with serve(talking(handler)) as server:
        say_hello_and_vanish(server, with_a_reset)
        assert ended.wait(PATIENCE)
    assert errors_of(caplog) == []


def test_the_handler_knows_its_session_and_request() -> None:
    async def handler(websocket: Socket, context: RequestContext) -> None:
        await websocket.accept()
        await websocket.send_json([context.session_id, context.request_id])
        await websocket.send_json(
            [BedrockAgentCoreContext.get_session_id(), BedrockAgentCoreContext.get_request_id()],
        )

    with serve(talking(handler)) as server, dial(server, session_id="session-1", request_id="request-1") as client:
        assert json.loads(client.recv(PATIENCE)) == ["session-1", "request-1"]
        assert json.loads(client.recv(PATIENCE)) == ["session-1", "request-1"]


def test_conversations_do_not_share_their_sessions() -> None:
    async def handler(websocket: Socket, context: RequestContext) -> None:
        await websocket.accept()
        async for message in websocket.iter_data("text"):
            await websocket.send_text(f"{BedrockAgentCoreContext.get_session_id()} {message}")

    with serve(talking(handler)) as server, dial(server, session_id="a") as one, dial(server, session_id="b") as other:
        for client in (one, other):
            client.send("hello")
        assert (other.recv(PATIENCE), one.recv(PATIENCE)) == ("b hello", "a hello")


@pytest.mark.parametrize("header", ["session_id", "request_id"])
def test_a_malformed_id_is_refused_with_400_and_a_json_body(header: str) -> None:
    with (
        serve(talking(echo)) as server,
        pytest.raises(InvalidStatus) as refused,
        dial(server, **{header: "not one word"}),
    ):
        pass
    response = refused.value.response
    assert response.status_code == 400
    assert response.headers["content-type"] == "application/json"
    assert json.loads(response.body)["error"] == "Invalid request context"


def test_a_handler_that_blocks_stops_neither_ping_nor_sync_invocations() -> None:
    entered, release = threading.Event(), threading.Event()

    async def handler(websocket: Socket, context: RequestContext) -> None:
        await websocket.accept()
        entered.set()
        release.wait(PATIENCE)

    app = talking(handler)

    @app.entrypoint
    def answer(payload: Any) -> Any:
        return payload

    with serve(app) as server, dial(server) as websocket, server.client(timeout=PROMPT) as client:
        assert entered.wait(PATIENCE)
        for _ in range(5):
            assert client.get("/ping").status_code == 200
        assert client.post("/invocations", json=1).json() == 1
        release.set()
        assert close_of(websocket) == 1000
