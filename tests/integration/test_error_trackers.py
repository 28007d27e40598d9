"""A failure reaches an error tracker on the root logger once, and standard error once, under each command."""

import contextlib
import json

import httpx
import pytest
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import connect

from tests.integration.server import PATIENCE, app_run, eventually, free_port, litestar_run, run, uvicorn_command
from tests.integration.test_serving import Command

TRACKED = "tests.integration.agents.tracked"


@pytest.mark.parametrize("command", [litestar_run, uvicorn_command, app_run])
def test_a_failure_is_reported_once(command: Command) -> None:
    port = free_port()
    with run(command(TRACKED, port), port) as server:
        with server.client() as client:
            client.get("/own")
            for payload in ("raise", "status", "stream", "response"):
                with contextlib.suppress(httpx.RemoteProtocolError):  # a response that is broken off
                    client.post("/invocations", json=payload)
        with (
            connect(f"ws://127.0.0.1:{port}/ws", open_timeout=PATIENCE) as socket,
            pytest.raises(ConnectionClosedError),
        ):
            socket.recv(PATIENCE)
        eventually(lambda: any("in a socket" in line for line in server.stderr()))
        server.terminate()
        entries = [json.loads(line) for line in server.stderr() if line.startswith("{")]
    tracked = [f"{entry['tracked']} {entry['error']}" for entry in entries if "tracked" in entry]
    written = [f"{entry['message']} {entry.get('errorMessage')}" for entry in entries if entry.get("level") == "ERROR"]
    for reports in (tracked, written):
        for what in ("in a route", "in a handler", "status 503", "in a stream", "in a response", "in a socket"):
            assert len([report for report in reports if what in report]) == 1, reports
        assert len(reports) == 6
