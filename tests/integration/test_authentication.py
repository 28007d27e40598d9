"""Authentication on a real socket: headers that come twice, handshakes, a file that changes, a slow issuer."""

import base64
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx
import pytest
from litestar import WebSocket
from litestar_agentcore import BedrockAgentCoreApp, RequestContext
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from tests.integration.server import PATIENCE, Server, eventually, receive_until, serve
from tests.issuer import WELL_KNOWN, Issuer, issuing

SUBPROTOCOL = "base64UrlBearerAuthorization"


@pytest.fixture
def key_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "keys"
    path.write_text("ann:key-of-ann\n")
    monkeypatch.setenv("AGENTCORE_API_KEYS_FILE", str(path))
    return path


@pytest.fixture
def issuer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Issuer]:
    with issuing() as issuer:
        monkeypatch.setenv("AGENTCORE_JWT_DISCOVERY_URL", issuer.discovery_url)
        monkeypatch.setenv("AGENTCORE_JWT_ALLOWED_AUDIENCE", "agent")
        yield issuer


def claiming() -> BedrockAgentCoreApp:
    """An agent that tells the claims of its caller."""
    app = BedrockAgentCoreApp()

    @app.entrypoint
    def claims(payload: Any, context: RequestContext) -> Any:
        return context.claims

    @app.websocket
    async def converse(websocket: WebSocket[Any, Any, Any], context: RequestContext) -> None:
        await websocket.accept()
        await websocket.send_json(context.claims)

    return app


@pytest.fixture
def server() -> Iterator[Server]:
    """To be asked for after what sets the variables."""
    with serve(claiming()) as server:
        yield server


@pytest.mark.usefixtures("key_file")
@pytest.mark.parametrize("name", ["Authorization", "X-Api-Key"])
def test_a_header_that_comes_twice_lets_nobody_in(key_file: Path, server: Server, name: str) -> None:
    value = "key-of-ann" if name == "X-Api-Key" else "Bearer key-of-ann"
    request = f"POST /invocations HTTP/1.1\r\nHost: agent\r\nContent-Length: 2\r\n{name}: {value}\r\n"
    with server.connect() as connection:
        connection.sendall(f"{request}{name.lower()}: {value}\r\n\r\n{{}}".encode())
        head = receive_until(connection, b"}")
    assert head.startswith(b"HTTP/1.1 401 ")
    assert b'error="invalid_request"' in head


def test_a_body_of_a_stranger_is_not_read(key_file: Path, server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(b"POST /invocations HTTP/1.1\r\nHost: agent\r\nContent-Length: 1000000\r\n\r\n")
        assert receive_until(connection, b"}").startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize("headers", [{}, {"X-Api-Key": "wrong"}], ids=["no key", "wrong key"])
def test_a_handshake_of_a_stranger_is_denied_with_http(key_file: Path, server: Server, headers: dict[str, str]) -> None:
    with pytest.raises(InvalidStatus) as denied:
        connect(f"ws://127.0.0.1:{server.port}/ws", additional_headers=headers, open_timeout=PATIENCE)
    assert denied.value.response.status_code == 401
    assert denied.value.response.headers["WWW-Authenticate"].startswith("Bearer ")
    assert json.loads(denied.value.response.body or b"")["error"] == "Unauthorized"


def test_a_token_for_another_audience_is_denied_with_403(issuer: Issuer, server: Server) -> None:
    headers = {"Authorization": f"Bearer {issuer.token(aud='other')}"}
    with pytest.raises(InvalidStatus) as denied:
        connect(f"ws://127.0.0.1:{server.port}/ws", additional_headers=headers, open_timeout=PATIENCE)
    assert denied.value.response.status_code == 403


def test_a_browser_opens_a_socket_with_its_token_as_a_subprotocol(issuer: Issuer, server: Server) -> None:
    encoded = base64.urlsafe_b64encode(issuer.token().encode()).rstrip(b"=").decode()
    offered = [Subprotocol(f"{SUBPROTOCOL}.{encoded}"), Subprotocol(SUBPROTOCOL)]
    url = f"ws://127.0.0.1:{server.port}/ws"
    with connect(url, subprotocols=offered, open_timeout=PATIENCE, close_timeout=PATIENCE) as client:
        assert client.subprotocol == SUBPROTOCOL
        assert json.loads(client.recv(PATIENCE))["sub"] == "ann"


def test_a_new_key_is_accepted_within_seconds(key_file: Path, server: Server) -> None:
    with server.client() as client:

        def status(key: str) -> int:
            return client.post("/invocations", json={}, headers={"X-Api-Key": key}).status_code

        assert status("key-of-ann") == 200
        key_file.with_name("next").write_text("bob:key-of-bob\n")
        key_file.with_name("next").replace(key_file)
        eventually(lambda: status("key-of-bob") == 200)
        assert status("key-of-ann") == 401


def test_an_issuer_that_does_not_answer_holds_up_those_alone_who_need_it(issuer: Issuer, key_file: Path) -> None:
    answered = threading.Event()

    def hang(handler: BaseHTTPRequestHandler) -> None:
        answered.wait(PATIENCE)
        handler.send_error(503)

    issuer.answers[WELL_KNOWN] = hang
    bearer, key = {"Authorization": f"Bearer {issuer.token()}"}, {"X-Api-Key": "key-of-ann"}
    with serve(claiming()) as server, server.client() as client, ThreadPoolExecutor(1) as pool:
        try:
            waiting = pool.submit(httpx.post, f"{server.url}/invocations", json={}, headers=bearer, trust_env=False)
            eventually(lambda: issuer.fetches)
            assert client.get("/ping").status_code == 200
            assert client.post("/invocations", json={}, headers=key).json() == {"api_key": "ann"}
            assert not waiting.done()
        finally:
            answered.set()
        assert waiting.result(PATIENCE).status_code == 503
