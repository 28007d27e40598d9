"""What a client sends is no error of the service's, whatever it is."""

import json
import socket
import sys
from pathlib import Path

import pytest

from tests.e2e.runtimes import OURS
from tests.fuzz.raw import frame, fuzz
from tests.integration.server import (
    PATIENCE,
    ServerProcess,
    free_port,
    litestar_run,
    request,
    run,
    uvicorn_command,
)

AGENT = "tests.integration.agents.answering"
REQUESTS = 300


@pytest.mark.parametrize(("http", "loop"), [("httptools", "uvloop"), ("h11", "asyncio")])
def test_mutated_requests_cost_no_error_and_leave_nothing_open(http: str, loop: str) -> None:
    figures = fuzz(OURS, REQUESTS, 12, http, loop)
    assert figures.errors == []
    assert figures.tracebacks == 0
    assert figures.failed_pings == []
    assert figures.left_open == 0
    assert figures.counted == {"agentcore_invocations_in_progress": 0.0}


def app_run(http: str) -> list[str]:
    return [sys.executable, "-m", AGENT, http]


def answer(server: ServerProcess, *pieces: bytes) -> bytes:
    """What comes back until the server closes the connection, or the answer is whole."""
    received = b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as client:
        try:
            for piece in pieces:
                client.sendall(piece)
        except OSError:
            pass
        while chunk := client.recv(65536):
            received += chunk
            head, end, body = received.partition(b"\r\n\r\n")
            if end and b"connection: close" not in head.lower() and body.endswith((b"}", b'"')):
                break
    return received


def refused(received: bytes) -> str:
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 431 "), received
    assert b"x-amzn-bedrock-agentcore-runtime-request-id: " in head.lower()
    content = json.loads(body)
    assert content["error"] == "Request header fields too large"
    details: str = content["details"]
    return details


@pytest.mark.parametrize("start", ["app.run", "app.run h11", "litestar run", "uvicorn"])
def test_heads_that_are_too_large_are_refused_whoever_starts_the_server(start: str) -> None:
    port = free_port()
    commands = {
        "app.run": [*app_run("httptools"), str(port)],
        "app.run h11": [*app_run("h11"), str(port)],
        "litestar run": litestar_run(AGENT, port),
        "uvicorn": uvicorn_command(AGENT, port),
    }
    with run(commands[start], port) as server:
        many = [f"X-{number}: 1" for number in range(200)]
        assert (
            refused(answer(server, request(b"1", "Content-Length: 1", *many)))
            == "The request has more than 200 headers"
        )
        large = request(b"1", "Content-Length: 1", "X: " + "a" * 70_000)
        assert refused(answer(server, large)) == "The headers exceed the limit of 65536 bytes"
        fitting = request(b"1", "Content-Length: 1", "Connection: close", "X: " + "a" * 10_000)
        assert answer(server, fitting).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("http", ["httptools", "h11"])
def test_a_head_without_end_is_answered_before_it_takes_memory(http: str) -> None:
    port = free_port()
    with run([*app_run(http), str(port)], port) as server:
        before = memory(server)
        endless = b"POST /invocations HTTP/1.1\r\nHost: agent\r\nX: " + b"a" * 100_000
        refused(answer(server, endless, *[b"a" * 1_000_000] * 20))
        endless_url = b"GET /" + b"a" * 100_000
        refused(answer(server, endless_url, *[b"a" * 1_000_000] * 20))
        assert memory(server) - before < 10_000_000


def memory(server: ServerProcess) -> int:
    pages = int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1])
    return pages * 4096


def test_requests_in_one_piece_are_each_measured_alone() -> None:
    port = free_port()
    with run([*app_run("httptools"), str(port)], port) as server:
        one = request(b"1", "Content-Length: 1", *[f"X-{number}: {'a' * 100}" for number in range(150)])
        last = request(b"1", "Content-Length: 1", "Connection: close")
        assert answer(server, one * 10 + last).count(b"HTTP/1.1 200 ") == 11


HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nHost: agent\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


@pytest.mark.parametrize("start", ["app.run", "uvicorn"])
def test_a_handshake_whose_head_is_too_large_is_refused(start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTCORE_MAX_HEADERS", "20")
    port = free_port()
    command = [*app_run("httptools"), str(port)] if start == "app.run" else uvicorn_command(AGENT, port)
    with run(command, port) as server:
        many = b"".join(b"X-%d: 1\r\n" % number for number in range(20))
        received = answer(server, HANDSHAKE + many + b"\r\n")
    assert refused(received) == "The request has more than 20 headers"


@pytest.mark.parametrize("start", ["app.run", "uvicorn"])
def test_a_message_that_is_too_large_closes_the_socket(start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTCORE_MAX_WEBSOCKET_MESSAGE_BYTES", "1000")
    port = free_port()
    command = [*app_run("httptools"), str(port)] if start == "app.run" else uvicorn_command(AGENT, port)
    with run(command, port) as server:
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
            client.sendall(HANDSHAKE + b"\r\n")
            assert client.recv(65536).startswith(b"HTTP/1.1 101 ")
            client.sendall(frame(b"a" * 1000))
            assert client.recv(65536).endswith(b"a" * 100)
            client.sendall(frame(b"a" * 1001))
            received = client.recv(65536)
        assert received[0] == 0x88  # a close frame
        assert int.from_bytes(received[2:4]) == 1009
        assert not [line for line in server.stderr() if "Traceback" in line]
