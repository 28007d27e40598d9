"""Agents with Starlette's habits on a real server: the end and the ids of a WebSocket, odd response headers."""

import json
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from litestar.exceptions import HTTPException
from litestar_agentcore import BedrockAgentCoreApp, RequestContext
from starlette.responses import JSONResponse
from starlette.websockets import WebSocketDisconnect
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.integration.server import PATIENCE, REQUEST_ID, SESSION_ID, serve
from tests.integration.test_sockets import dial, errors_of, say_hello_and_vanish, talking


async def listen(websocket: Any) -> None:
    await websocket.receive_text()


async def talk(websocket: Any) -> None:
    while True:
        await websocket.send_text("hello")


class Ending:
    """A handler that catches Starlette's exception, and closes whatever happens."""

    def __init__(self, go_on: Callable[[Any], Awaitable[None]]) -> None:
        self.go_on = go_on
        self.ended = threading.Event()
        self.disconnect = WebSocketDisconnect()

    async def __call__(self, websocket: Any, context: RequestContext) -> None:
        await websocket.accept()
        await websocket.send_text("hello")
        try:
            await self.go_on(websocket)
        except WebSocketDisconnect as disconnect:
            self.disconnect = disconnect
            with pytest.raises(WebSocketDisconnect):
                await websocket.send_text("more")
        finally:
            await websocket.close()
            self.ended.set()


def test_a_client_that_leaves_is_caught_with_its_code_and_reason(caplog: pytest.LogCaptureFixture) -> None:
    handler = Ending(listen)
    with serve(talking(handler)) as server:
        with dial(server) as client:
            assert client.recv(PATIENCE) == "hello"
            client.close(4001, "böred")
        assert handler.ended.wait(PATIENCE)
    assert (handler.disconnect.code, handler.disconnect.reason) == (4001, "böred")
    assert errors_of(caplog) == []


@pytest.mark.parametrize("with_a_reset", [False, True])
@pytest.mark.parametrize("go_on", [listen, talk])
def test_a_client_that_vanishes_is_caught_with_a_code_of_the_servers(
    go_on: Callable[[Any], Awaitable[None]], with_a_reset: bool, caplog: pytest.LogCaptureFixture
) -> None:
    handler = Ending(go_on)
    with serve(talking(handler)) as server:
        say_hello_and_vanish(server, with_a_reset)
        assert handler.ended.wait(PATIENCE)
    assert handler.disconnect.code in {1005, 1006}
    assert errors_of(caplog) == []


def test_ids_and_custom_headers_come_from_the_url() -> None:
    async def handler(websocket: Any, context: RequestContext) -> None:
        await websocket.accept(subprotocol="chat")
        await websocket.send_json([context.session_id, context.request_id, context.request_headers])

    custom = "X-Amzn-Bedrock-AgentCore-Runtime-Custom-Tenant"
    with serve(talking(handler)) as server:
        url = f"ws://127.0.0.1:{server.port}/ws?{SESSION_ID}=s%201&{REQUEST_ID}=r-1&{custom}=a%26b"
        with pytest.raises(InvalidStatus) as refused, connect(url, open_timeout=PATIENCE):
            pass
        assert refused.value.response.status_code == 400
        url = url.replace("s%201", "s-1")
        with connect(url, open_timeout=PATIENCE, subprotocols=["chat"]) as client:  # type: ignore[list-item]
            assert client.subprotocol == "chat"
            session_id, request_id, headers = json.loads(client.recv(PATIENCE))
    assert (session_id, request_id, headers[custom]) == ("s-1", "r-1", "a&b")


@pytest.mark.parametrize("value", ["日本", "a\r\nX-Injected: 1", "a\nb"])
def test_a_header_that_cannot_be_sent_costs_no_answer(value: str) -> None:
    app = BedrockAgentCoreApp()

    @app.entrypoint
    async def handler(payload: Any) -> Any:
        if payload == "raise":
            raise HTTPException("later", status_code=429, headers={"X-Reason": value, "Retry-After": "60"})
        response = JSONResponse({"error": "later"}, 429, {"Retry-After": "60"})
        response.raw_headers.append((b"x-reason", value.encode("utf-16")))
        return response

    with serve(app) as server, server.client() as client:
        for payload in ("raise", "return"):
            response = client.post("/invocations", json=payload)
            assert (response.status_code, response.json()) == (429, {"error": "later"})
            assert response.headers["retry-after"] == "60"
            assert "x-injected" not in response.headers
