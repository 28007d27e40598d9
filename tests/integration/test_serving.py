"""The same agent under each command that serves it."""

import json
import re
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.integration.server import (
    REQUEST_ID,
    SESSION_ID,
    app_run,
    eventually,
    free_port,
    litestar_run,
    receive_until,
    run,
    run_to_the_end,
    uvicorn_command,
)

TINY = "tests.integration.agents.tiny"
Command = Callable[[str, int], list[str]]
COMMANDS = [litestar_run, uvicorn_command, app_run]
ENDED_BY_SIGTERM = {0, -signal.SIGTERM, 128 + signal.SIGTERM}


@dataclass(frozen=True)
class Life:
    """What a server said from its start to its end."""

    answer: Any
    lines: list[str]
    exit_code: int

    def entry(self, message: str) -> dict[str, Any]:
        """The first log entry with a message."""
        entries: list[dict[str, Any]] = [json.loads(line) for line in self.lines]
        return next(entry for entry in entries if entry["message"] == message)


@pytest.fixture(scope="module", params=COMMANDS, ids=lambda command: command.__name__)
def life(request: pytest.FixtureRequest) -> Life:
    command: Command = request.param
    port = free_port()
    ids = {REQUEST_ID: "request-1", SESSION_ID: "session-1"}
    with run(command(TINY, port), port) as server:
        with server.client() as client:
            answer = client.post("/invocations", json="hello", headers=ids).json()
            client.post("/invocations", json="raise", headers=ids)
            client.post("/invocations", content=b"nonsense")
            client.get("/nowhere")
        with server.connect() as connection:
            connection.sendall(b"no HTTP at all\r\n\r\n")
            receive_until(connection, b"400")
        exit_code = server.terminate()
        lines = server.stderr()
    return Life(answer, lines, exit_code)


def test_invocations_are_answered(life: Life) -> None:
    assert life.answer == {"payload": "hello"}


def test_each_line_on_stderr_is_one_json_object_with_the_keys_of_the_contract(life: Life) -> None:
    assert life.lines
    for line in life.lines:
        entry = json.loads(line)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", entry["timestamp"])
        assert {"level", "message", "logger"} < entry.keys()


def test_a_line_of_the_handlers_own_logger_carries_the_ids_of_its_request(life: Life) -> None:
    entry = life.entry("Invoked")
    assert (entry["logger"], entry["level"]) == ("x", "INFO")
    assert (entry["requestId"], entry["sessionId"]) == ("request-1", "session-1")


def test_an_exception_is_one_line_with_its_type_message_trace_and_place(life: Life) -> None:
    entry = life.entry("The handler raised")
    assert (entry["errorType"], entry["errorMessage"]) == ("ValueError", "No\nsuch luck")
    assert "in handler" in "".join(entry["stackTrace"])
    assert entry["location"]


def test_sigterm_ends_the_process(life: Life) -> None:
    assert life.exit_code in ENDED_BY_SIGTERM


@pytest.mark.parametrize("blocked", ["block", "block in a stream"])
@pytest.mark.parametrize("command", COMMANDS)
def test_sigterm_ends_the_process_after_its_grace_though_a_handler_blocks_whose_client_is_gone(
    command: Command, blocked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTCORE_SHUTDOWN_GRACE_SECONDS", "1")
    port = free_port()
    with run(command(TINY, port), port) as server:
        with server.invoke_and_leave_unread(blocked):
            eventually(lambda: "Invoked" in "".join(server.stderr()))
        time.sleep(1.5)  # a client is watched for leaving once it has waited for a second
        began = time.monotonic()
        assert server.terminate() in ENDED_BY_SIGTERM
        assert time.monotonic() - began >= 1
        assert len([line for line in server.stderr() if "was still running at shutdown" in line]) == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_a_setting_that_makes_no_sense_is_an_error_at_start_up_that_names_the_variable(command: Command) -> None:
    ended = run_to_the_end(command(TINY, free_port()), AGENTCORE_MAX_BODY_BYTES="plenty")
    assert ended.returncode != 0
    assert "AGENTCORE_MAX_BODY_BYTES='plenty'" in ended.stdout


def test_a_port_that_is_in_use_is_an_error_that_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ended = run_to_the_end(app_run(TINY, listener.getsockname()[1]))
    assert ended.returncode != 0
    assert "address already in use" in ended.stdout


@pytest.mark.parametrize("command", [litestar_run, app_run])
def test_an_idle_connection_is_kept_as_long_as_the_setting_says(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTCORE_KEEP_ALIVE_SECONDS", "0.5")
    port = free_port()
    with run(command(TINY, port), port) as server, server.connect() as connection:
        connection.sendall(b"GET /ready HTTP/1.1\r\nHost: agent\r\n\r\n")
        receive_until(connection, b'{"ready":true}')
        began = time.monotonic()
        assert connection.recv(1) == b"", "the server closes it"
        assert 0.4 < time.monotonic() - began < 4, "uvicorn's own 5 s do not count"
