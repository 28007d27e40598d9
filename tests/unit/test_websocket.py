"""``/ws``: one conversation, and how it ends."""

import asyncio
import functools
import json
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import msgspec
import pytest
from litestar import WebSocket
from litestar.exceptions import WebSocketDisconnect
from litestar.testing import TestClient
from litestar.types import Message, Receive, Scope, Send
from litestar_agentcore import BedrockAgentCoreApp, BedrockAgentCoreContext, RequestContext

from tests.deadline import deadline
from tests.unit.blocking import PATIENCE, cancel_all_before_their_first_step
from tests.unit.conftest import REQUEST_ID, SESSION_ID, Client, LogLines

Socket = WebSocket[Any, Any, Any]
Handler = Callable[[Socket, RequestContext], Awaitable[None]]


def close_code(client: Client, **headers: str) -> int:
    """The code with which the server closes a connection at which the client only listens."""
    with pytest.raises(WebSocketDisconnect) as closed, client.websocket_connect("/ws", headers=headers) as websocket:
        websocket.receive(timeout=60)
    return closed.value.code


async def echo(websocket: Socket, context: RequestContext) -> None:
    await websocket.accept()
    async for text in websocket.iter_data("text"):
        await websocket.send_text(text)


async def closes(websocket: Socket, context: RequestContext) -> None:
    await websocket.accept()
    await websocket.close(code=4001)


async def returns(websocket: Socket, context: RequestContext) -> None:
    await websocket.accept()


async def raises(websocket: Socket, context: RequestContext) -> None:
    await websocket.accept()
    raise RuntimeError("broken")


async def raises_before_it_accepts(websocket: Socket, context: RequestContext) -> None:
    raise RuntimeError("broken")


async def exits(websocket: Socket, context: RequestContext) -> None:
    await websocket.accept()
    sys.exit("enough")


class Agent:
    async def echo(self, websocket: Socket, context: RequestContext) -> None:
        await echo(websocket, context)

    async def __call__(self, websocket: Socket, context: RequestContext) -> None:
        await echo(websocket, context)


@pytest.mark.parametrize("handler", [echo, Agent().echo, Agent(), functools.partial(echo)])
def test_a_handler_accepts_receives_and_sends_itself(
    app: BedrockAgentCoreApp, client: Client, handler: Handler
) -> None:
    assert app.websocket(handler) is handler

    with client.websocket_connect("/ws") as websocket:
        for text in ("hi", "grüß"):
            websocket.send_text(text)
            assert websocket.receive_text(timeout=60) == text


def test_text_bytes_and_json_arrive(app: BedrockAgentCoreApp, client: Client) -> None:
    @app.websocket
    async def handler(websocket: Socket, context: RequestContext) -> None:
        await websocket.accept()
        await websocket.send_text(await websocket.receive_text())
        await websocket.send_bytes(await websocket.receive_bytes())
        await websocket.send_json(await websocket.receive_json())

    with client.websocket_connect("/ws") as websocket:
        websocket.send_text("hi")
        assert websocket.receive_text(timeout=60) == "hi"
        websocket.send_bytes(b"\x00\xff")
        assert websocket.receive_bytes(timeout=60) == b"\x00\xff"
        websocket.send_json({"a": 1})
        assert websocket.receive_json(timeout=60) == {"a": 1}


def test_a_handler_chooses_the_subprotocol(app: BedrockAgentCoreApp, client: Client) -> None:
    @app.websocket
    async def handler(websocket: Socket, context: RequestContext) -> None:
        await websocket.accept(subprotocols="chat")

    with client.websocket_connect("/ws", subprotocols=["chat"]) as websocket:
        assert websocket.accepted_subprotocol == "chat"


def test_a_handler_gets_the_context_of_its_connection(app: BedrockAgentCoreApp, client: Client) -> None:
    @app.websocket
    async def handler(websocket: Socket, context: RequestContext) -> None:
        await websocket.accept()
        assert isinstance(context, msgspec.Struct)
        assert context.request is websocket
        await websocket.send_json(
            [
                [context.request_id, context.session_id, context.request_headers],
                [
                    BedrockAgentCoreContext.get_request_id(),
                    BedrockAgentCoreContext.get_session_id(),
                    BedrockAgentCoreContext.get_request_headers(),
                ],
                BedrockAgentCoreContext.get_workload_access_token(),
                BedrockAgentCoreContext.get_oauth2_callback_url(),
            ]
        )

    headers = {
        REQUEST_ID: "r",
        SESSION_ID: "s",
        "X-Amz-Bedrock-AgentCore-Identity-WAT": "w",
        "OAuth2CallbackUrl": "o",
        "Authorization": "a",
    }
    with client.websocket_connect("/ws", headers=headers) as websocket:
        argument, context, token, url = websocket.receive_json(timeout=60)

    assert argument == context
    request_id, session_id, request_headers = argument
    assert (request_id, session_id, token, url) == ("r", "s", "w", "o")
    assert request_headers["Authorization"] == "a"
    assert SESSION_ID.lower() not in request_headers


def test_without_headers_the_request_id_is_fresh_and_the_session_id_none(
    app: BedrockAgentCoreApp, client: Client
) -> None:
    @app.websocket
    async def handler(websocket: Socket, context: RequestContext) -> None:
        await websocket.accept()
        await websocket.send_json([context.request_id, context.session_id, context.request_headers])

    told = []
    for _ in range(2):
        with client.websocket_connect("/ws") as websocket:
            told.append(websocket.receive_json(timeout=60))

    assert [rest for _, *rest in told] == [[None, None]] * 2
    assert len({request_id for request_id, *_ in told}) == 2


own: ContextVar[str] = ContextVar("own")


def test_context_variables_hold_for_one_connection_alone(app: BedrockAgentCoreApp, client: Client) -> None:
    @app.websocket
    async def handler(websocket: Socket, context: RequestContext) -> None:
        await websocket.accept()
        own.set(await websocket.receive_text())
        async for _ in websocket.iter_data("text"):
            await websocket.send_json([own.get(), BedrockAgentCoreContext.get_session_id()])

    with (
        client.websocket_connect("/ws", headers={SESSION_ID: "one"}) as one,
        client.websocket_connect("/ws", headers={SESSION_ID: "two"}) as two,
    ):
        one.send_text("one")
        two.send_text("two")
        for _ in range(2):
            for websocket, name in ((one, "one"), (two, "two")):
                websocket.send_text("")
                assert websocket.receive_json(timeout=60) == [name, name]


def test_without_a_handler_the_connection_is_closed_with_1011(client: Client) -> None:
    assert close_code(client) == 1011


@pytest.mark.parametrize("handler", [raises, raises_before_it_accepts, exits])
def test_a_handler_that_raises_closes_the_connection_with_1011_and_is_logged(
    app: BedrockAgentCoreApp, client: Client, log: LogLines, handler: Handler
) -> None:
    app.websocket(handler)

    assert close_code(client, **{REQUEST_ID: "r", SESSION_ID: "s"}) == 1011

    (line,) = [line for line in log.lines if line["level"] == "ERROR"]
    assert (line["requestId"], line["sessionId"]) == ("r", "s")
    assert line["errorType"] in {"RuntimeError", "SystemExit"}


def test_a_handler_that_is_cancelled_before_its_first_step_closes_the_connection_with_1011(
    app: BedrockAgentCoreApp, client: Client
) -> None:
    app.websocket(returns)
    loop = app.agent.loop.loop
    loop.call_soon_threadsafe(cancel_all_before_their_first_step, loop)
    with deadline(PATIENCE):
        assert close_code(client) == 1011
    assert not app.agent.running


def test_a_handler_that_raises_ends_no_other_connection(app: BedrockAgentCoreApp, client: Client) -> None:
    @app.websocket
    async def handler(websocket: Socket, context: RequestContext) -> None:
        await (exits if context.session_id == "exits" else echo)(websocket, context)

    with client.websocket_connect("/ws") as other:
        assert close_code(client, **{SESSION_ID: "exits"}) == 1011
        other.send_text("still here")
        assert other.receive_text(timeout=60) == "still here"


def test_a_handler_that_returns_without_closing_closes_with_1000(app: BedrockAgentCoreApp, client: Client) -> None:
    app.websocket(returns)
    assert close_code(client) == 1000


def test_the_close_code_of_a_handler_reaches_the_client(app: BedrockAgentCoreApp, client: Client) -> None:
    app.websocket(closes)
    assert close_code(client) == 4001


async def receives(websocket: Socket, context: RequestContext) -> None:
    await websocket.accept()
    await websocket.receive_text()


async def receives_and_cleans_up(websocket: Socket, context: RequestContext) -> None:
    try:
        await receives(websocket, context)
    except WebSocketDisconnect:
        await asyncio.sleep(0)
        raise


@pytest.mark.parametrize("handler", [echo, receives, receives_and_cleans_up])
def test_a_client_that_goes_away_is_no_error(app: BedrockAgentCoreApp, log: LogLines, handler: Handler) -> None:
    left = threading.Event()

    @app.websocket
    async def watched(websocket: Socket, context: RequestContext) -> None:
        try:
            await handler(websocket, context)
        finally:
            left.set()

    with TestClient(app=app) as client:
        with client.websocket_connect("/ws"):
            pass
        assert left.wait(60)

    assert [line for line in log.lines if line["level"] in {"WARNING", "ERROR"}] == []


@pytest.mark.parametrize("header", [REQUEST_ID, SESSION_ID])
@pytest.mark.parametrize("value", ["", "x" * 257, "a b"])
def test_a_connection_with_a_bad_id_is_refused_before_the_handler_runs(
    app: BedrockAgentCoreApp, client: Client, header: str, value: str
) -> None:
    ran = threading.Event()

    @app.websocket
    async def handler(websocket: Socket, context: RequestContext) -> None:
        ran.set()

    assert close_code(client, **{header: value}) == 1008
    assert not ran.is_set()


def test_a_bad_id_is_answered_400_where_the_server_can(app: BedrockAgentCoreApp) -> None:
    sent: list[Any] = []

    async def server(scope: Scope, receive: Receive, send: Send) -> None:
        async def record(message: Message) -> None:
            sent.append(message)
            await send(message)

        scope["extensions"] = {"websocket.http.response": {}}
        await app(scope, receive, record)

    app.websocket(echo)
    with TestClient(app=server).websocket_connect("/ws", headers={SESSION_ID: ""}):
        pass

    start, body = sent
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 400)
    assert REQUEST_ID.lower().encode() in dict(start["headers"])
    assert json.loads(body["body"])["error"] == "Invalid request context"


@pytest.mark.parametrize("path", ["/ws/more", "/wss"])
def test_another_path_is_no_conversation(app: BedrockAgentCoreApp, client: Client, path: str) -> None:
    app.websocket(echo)
    with pytest.raises(WebSocketDisconnect), client.websocket_connect(path) as websocket:
        websocket.receive(timeout=60)


def plain(websocket: Any, context: Any) -> None: ...


async def generator(websocket: Any, context: Any) -> AsyncIterator[None]:
    yield


async def without_context(websocket: Any) -> None: ...


async def with_more(websocket: Any, context: Any, more: Any) -> None: ...


async def with_keywords(*, websocket: Any, context: Any) -> None: ...


@pytest.mark.parametrize(
    "handler",
    [plain, lambda websocket, context: None, generator, without_context, with_more, with_keywords, "handler", None],
)
def test_what_is_no_async_function_of_websocket_and_context_is_a_type_error_at_registration(
    app: BedrockAgentCoreApp, handler: Any
) -> None:
    with pytest.raises(TypeError):
        app.websocket(handler)
