"""The quick-start agent, as ``litestar run`` finds it in the root of the repository."""

import json
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from websockets.sync.client import connect

from tests.integration.server import PATIENCE, SESSION_ID, Server, eventually, free_port, run


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    litestar = shutil.which("litestar", path=Path(sys.executable).parent)
    assert litestar is not None
    port = free_port()
    with run([litestar, "run", "--port", str(port)], port) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


def test_a_prompt_is_answered_with_the_session(client: httpx.Client) -> None:
    response = client.post("/invocations", json={"prompt": "Grüß Gott"}, headers={SESSION_ID: "session-1"})
    assert response.status_code == 200
    assert response.json() == {"answer": "You said: Grüß Gott", "session": "session-1"}


def test_an_answer_is_streamed_token_by_token(client: httpx.Client) -> None:
    with client.stream("POST", "/invocations", json={"prompt": "one two", "stream": True}) as response:
        assert response.headers["content-type"].split(";")[0] == "text/event-stream"
        pieces = list(response.iter_raw())
    assert pieces == [b'data: {"token":"%s"}\n\n' % token for token in (b"You", b"said:", b"one", b"two")]


def test_a_background_task_makes_ping_say_healthy_busy_until_it_is_done(client: httpx.Client) -> None:
    def status() -> str:
        return str(client.get("/ping").json()["status"])

    assert status() == "Healthy"
    client.post("/invocations", json={"prompt": "think", "research_seconds": 0.5})
    eventually(lambda: status() == "HealthyBusy")
    eventually(lambda: status() == "Healthy")


def test_messages_on_the_websocket_come_back_with_the_session(server: Server) -> None:
    with connect(
        f"ws://127.0.0.1:{server.port}/ws",
        sock=socket.create_connection(("127.0.0.1", server.port), PATIENCE),
        additional_headers={SESSION_ID: "session-1"},
    ) as websocket:
        for message in ("one", "two"):
            websocket.send(message)
            assert json.loads(websocket.recv(PATIENCE)) == {"echo": message, "session": "session-1"}


def test_a_payload_that_does_not_fit_is_answered_400_and_says_where(client: httpx.Client) -> None:
    response = client.post("/invocations", json={"prompt": 1})
    assert response.status_code == 400
    assert response.json() == {"error": "Invalid payload", "details": "Expected `str`, got `int` - at `$.prompt`"}


def test_the_schema_describes_the_endpoints_and_the_payload(client: httpx.Client) -> None:
    schema = client.get("/schema/openapi.json").json()
    assert {"/invocations", "/ping"} <= schema["paths"].keys()
    assert "prompt" in schema["components"]["schemas"]["Ask"]["properties"]
