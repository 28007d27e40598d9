"""What runs when the service is told to end gets its grace, and is then cancelled and named; nothing new begins."""

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tests.e2e.otlp_sink import otlp_sink
from tests.integration.server import (
    PATIENCE,
    REQUEST_ID,
    SESSION_ID,
    ServerProcess,
    app_run,
    eventually,
    free_port,
    litestar_run,
    receive_until,
    request,
    run,
    uvicorn_command,
)

pytestmark = pytest.mark.serial

ENDING = "tests.integration.agents.ending"
PLAIN = "tests.integration.agents.ending_plainly"
MOUNTED = "tests.integration.agents.mounted"

Command = Callable[[str, int], list[str]]


def in_a_container(module: str, port: int) -> list[str]:
    """What the image runs. As process 1 it outlives a SIGTERM that it does not handle, and ends as Python does."""
    return ["sh", "-c", "trap '' TERM; exec \"$@\"", "sh", *litestar_run(module, port)]


COMMANDS = [litestar_run, uvicorn_command, app_run, in_a_container]
every_command = pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)

AT_ONCE = 3.0
"""Seconds that a process has for its end when nothing holds it up; the server, or a handler, may take more."""

SERVER_SECONDS = 5.0
"""Seconds that the server, or a handler that was cancelled, has for its end."""

UVICORN_HABIT = "ASGI callable returned without completing handshake."
"""What it says of every WebSocket that an application answers with HTTP, as the ASGI specification lets it do."""

SHUTTING_DOWN = {"error": "The service is shutting down"}
LAST_EVENT = {**SHUTTING_DOWN, "error_type": "ShuttingDown", "message": "An error occurred during streaming"}


@contextmanager
def served(
    command: Command = in_a_container, module: str = ENDING, *, grace: float = 30, **environment: str
) -> Iterator[ServerProcess]:
    """Serve an agent until the test is through with it."""
    port = free_port()
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            for name in list(os.environ):
                if name.startswith("OTEL_"):
                    patch.delenv(name)
            for name, value in environment.items():
                patch.setenv(name, value)
            patch.setenv("AGENTCORE_SHUTDOWN_GRACE_SECONDS", str(grace))
            server = stack.enter_context(run(command(module, port), port))
        yield server


def end(server: ServerProcess, number: signal.Signals = signal.SIGTERM, within: float = 6 * PATIENCE) -> float:
    """Send a signal, and give the seconds that the process took to end."""
    began = time.monotonic()
    server.process.send_signal(number)
    return wait_for_end(server, began, within)


def wait_for_end(server: ServerProcess, began: float, within: float = 6 * PATIENCE) -> float:
    try:
        server.process.wait(within)
    except subprocess.TimeoutExpired:
        pytest.fail(f"it runs on after {within:g} s:\n" + "\n".join(server.stderr()))
    return time.monotonic() - began


def metric(server: ServerProcess, name: str) -> float:
    with server.client() as client:
        text = client.get("/metrics").text
    (value,) = re.findall(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE) or ["0"]
    return float(value)


def invocations_running(server: ServerProcess) -> float:
    return metric(server, "agentcore_invocations_in_progress")


def dial(server: ServerProcess, session: str = "talking") -> ClientConnection:
    return connect(
        f"ws://127.0.0.1:{server.port}/ws",
        sock=socket.create_connection(("127.0.0.1", server.port), PATIENCE),
        additional_headers={SESSION_ID: session},
    )


def events(response: httpx.Response) -> list[Any]:
    frames = response.text.split("\n\n")
    assert frames.pop() == ""
    return [json.loads(frame.removeprefix("data: ")) for frame in frames]


class Clients:
    """Clients that wait for their answers while the test goes on, each in a session of its own."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        self._threads = ThreadPoolExecutor(16)

    def __enter__(self) -> "Clients":
        return self

    def __exit__(self, *_: object) -> None:
        self._server.process.kill()  # whoever still waits does so in vain
        self._threads.shutdown()

    def invoke(self, session: str, **payload: object) -> httpx.Response:
        with self._server.client(timeout=6 * PATIENCE) as client:
            return client.post("/invocations", json=payload, headers={SESSION_ID: session, REQUEST_ID: f"of-{session}"})

    def call(self, session: str, **payload: object) -> "Future[httpx.Response]":
        return self._threads.submit(self.invoke, session, **payload)

    def begin(self, session: str, **payload: object) -> "Future[httpx.Response]":
        """Invoke, and come back once the invocation is being served."""
        before = invocations_running(self._server)
        call = self.call(session, **payload)
        eventually(lambda: call.done() or invocations_running(self._server) > before)
        return call


def entries(server: ServerProcess) -> list[dict[str, Any]]:
    """The log of a server that has ended."""
    assert server.process.poll() is not None
    return [json.loads(line) for line in server.stderr() if line.startswith("{")]


def assert_clean(server: ServerProcess) -> None:
    """It has ended without a complaint, by the signal or as if nothing had been."""
    assert server.process.returncode in {0, -signal.SIGTERM, -signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGINT}
    assert all(line.startswith("{") for line in server.stderr()), "\n".join(server.stderr())
    for entry in entries(server):
        if entry["message"] == UVICORN_HABIT:
            continue
        assert entry["level"] in {"INFO", "WARNING"}, entry
        assert "stackTrace" not in entry, entry


def still_running(server: ServerProcess) -> list[dict[str, Any]]:
    """The log's entries of what had to be cancelled."""
    return [entry for entry in entries(server) if "was still running at shutdown" in entry["message"]]


# -- Work that takes longer than the grace -----------------------------------------------------------------------------

GRACE = 2.0


@dataclass
class Life:
    """What people saw of a server that was told to end while it was busy in every way."""

    server: ServerProcess
    answers: dict[str, httpx.Response]
    close_code: int | None
    meanwhile: dict[str, int]
    refused: httpx.Response
    refused_socket: int
    metrics: str
    seconds: float
    answered_after: float


@pytest.fixture(scope="module", params=COMMANDS, ids=lambda command: command.__name__)
def life(request: pytest.FixtureRequest) -> Iterator[Life]:
    with (
        served(request.param, grace=GRACE) as server,
        Clients(server) as clients,
        server.client() as old,
        ExitStack() as stack,
    ):
        old.get("/ping")
        calls = {
            "sleeping": clients.begin("sleeping", do="sleep"),
            "blocking": clients.begin("blocking", do="block in a thread", seconds=20),
        }
        clients.invoke("researching", do="research")
        clients.invoke("noting", do="note")
        calls |= {
            "streaming": clients.begin("streaming", do="stream"),
            "streaming-plainly": clients.begin("streaming-plainly", do="stream plainly"),
        }
        talk = stack.enter_context(dial(server))
        talk.send("hello")
        talk.recv(PATIENCE)

        server.process.terminate()
        began = time.monotonic()
        eventually(lambda: old.get("/ready").status_code == 503)
        with server.client() as new:
            meanwhile = {
                f"{path} on {which} connection": client.get(path).status_code
                for path in ("/ping", "/metrics", "/ready")
                for which, client in (("an old", old), ("a new", new))
            }
        refused = clients.invoke("too-late", do="sleep", seconds=0)
        with pytest.raises(InvalidStatus) as socket_refused:
            dial(server, "too-late")
        metrics = old.get("/metrics").text
        answers = {session: call.result() for session, call in calls.items()}
        answered_after = time.monotonic() - began
        with pytest.raises(ConnectionClosed):
            talk.recv(PATIENCE)
        seconds = wait_for_end(server, began)
        yield Life(
            server,
            answers,
            talk.close_code,
            meanwhile,
            refused,
            socket_refused.value.response.status_code,
            metrics,
            seconds,
            answered_after,
        )


def test_probes_and_scrapes_are_answered_while_it_ends_and_ready_says_no(life: Life) -> None:
    for where, status in life.meanwhile.items():
        assert status == (503 if where.startswith("/ready") else 200), where


def test_a_new_invocation_is_refused_and_its_connection_closed(life: Life) -> None:
    assert (life.refused.status_code, life.refused.json()) == (503, SHUTTING_DOWN)
    assert life.refused.headers["connection"] == "close"
    assert life.refused.headers[REQUEST_ID] == "of-too-late"


def test_a_refused_invocation_is_counted_as_rejected(life: Life) -> None:
    assert 'agentcore_invocations_total{mode="unary",outcome="rejected"} 1.0' in life.metrics


def test_a_new_websocket_is_refused(life: Life) -> None:
    assert life.refused_socket == 503


@pytest.mark.parametrize("session", ["sleeping", "blocking"])
def test_who_waits_for_an_answer_in_vain_is_told_why(life: Life, session: str) -> None:
    answer = life.answers[session]
    assert (answer.status_code, answer.json()) == (503, SHUTTING_DOWN)
    assert answer.headers["connection"] == "close"
    assert answer.headers[SESSION_ID] == session


@pytest.mark.parametrize("session", ["streaming", "streaming-plainly"])
def test_a_stream_ends_cleanly_with_an_event_that_says_why(life: Life, session: str) -> None:
    *numbers, last = events(life.answers[session])
    assert last == LAST_EVENT
    assert numbers == list(range(len(numbers)))
    assert len(numbers) > GRACE / 0.1 / 2


def test_a_websocket_is_closed_with_going_away(life: Life) -> None:
    assert life.close_code == 1001


def test_all_of_them_had_their_grace_and_not_more(life: Life) -> None:
    assert GRACE - 0.2 < life.answered_after < GRACE + AT_ONCE


def test_the_process_ends_soon_after_the_last_answer(life: Life) -> None:
    assert life.seconds < GRACE + AT_ONCE


def test_it_ends_without_a_complaint(life: Life) -> None:
    assert_clean(life.server)


def test_what_is_waited_for_is_said_at_the_beginning(life: Life) -> None:
    (line,) = [entry["message"] for entry in entries(life.server) if "to finish" in entry["message"]]
    for kind in ("2 invocations", "2 streams", "1 WebSocket", "2 tasks", "2 s to finish"):
        assert kind in line


@pytest.mark.parametrize(
    ("session", "kind"),
    [
        ("sleeping", "invocation"),
        ("blocking", "invocation"),
        ("streaming", "stream"),
        ("streaming-plainly", "stream"),
        ("talking", "WebSocket"),
        ("researching", "task research"),
        ("noting", "task note"),
    ],
)
def test_what_is_cancelled_is_named_with_its_session_and_age(life: Life, session: str, kind: str) -> None:
    (entry,) = [entry for entry in still_running(life.server) if entry["sessionId"] == session]
    named = re.match(r"The (.+) of session (\S+) was still running at shutdown, ([\d.]+) s old, ", entry["message"])
    assert named is not None
    assert named.group(1, 2) == (kind, session)
    assert GRACE <= float(named[3]) < GRACE + PATIENCE
    assert entry["level"] == "WARNING"
    assert entry["requestId"] == f"of-{session}" or session == "talking"


def test_a_lost_task_is_named_with_its_metadata(life: Life) -> None:
    (line,) = [entry["message"] for entry in still_running(life.server) if entry["sessionId"] == "noting"]
    assert line.endswith("is lost; metadata: {'ticket': 7}")


def test_the_oldest_is_cancelled_first(life: Life) -> None:
    assert [entry["sessionId"] for entry in still_running(life.server)] == [
        "sleeping",
        "blocking",
        "researching",
        "noting",
        "streaming",
        "streaming-plainly",
        "talking",
    ]


# -- Work that ends in time --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "number"),
    [*((command, signal.SIGTERM) for command in COMMANDS), (app_run, signal.SIGINT)],
)
def test_what_ends_within_the_grace_is_whole_and_lets_the_server_go_at_once(
    command: Command, number: signal.Signals
) -> None:
    with served(command) as server, Clients(server) as clients:
        call = clients.begin("sleeping", do="sleep", seconds=1)
        stream = clients.begin("streaming", do="stream", count=10)
        plain_stream = clients.begin("streaming-plainly", do="stream plainly", count=10)
        clients.invoke("researching", do="research", seconds=1.2)
        with dial(server) as talk:
            seconds = end_while(server, number, talk)
        assert (call.result().status_code, call.result().json()) == (200, "done")
        assert events(stream.result()) == events(plain_stream.result()) == list(range(10))
        assert 1 < seconds < 1.2 + AT_ONCE
        assert "The research is done" in [entry["message"] for entry in entries(server)]
        assert not still_running(server)
        assert_clean(server)


def end_while(server: ServerProcess, number: signal.Signals, talk: ClientConnection) -> float:
    """Have the server end while somebody goes on talking with it for a while."""
    server.process.send_signal(number)
    began = time.monotonic()
    for word in ("I", "must", "go"):
        time.sleep(0.2)
        talk.send(word)
        assert talk.recv(PATIENCE) == word
    talk.close()
    return wait_for_end(server, began)


@every_command
def test_a_server_in_which_nothing_runs_ends_at_once_whoever_is_connected(command: Command) -> None:
    with served(command) as server, server.client() as client, server.connect() as silent:
        assert client.post("/invocations", json={"do": "nothing"}).json() == "done"
        client.get("/ping")
        assert end(server) < AT_ONCE
        assert silent.recv(1) == b""
        assert_clean(server)


@every_command
def test_a_plain_handler_may_finish_and_one_that_does_not_holds_nobody_up(command: Command) -> None:
    with served(command, PLAIN, grace=1.5) as server, Clients(server) as clients:
        long = [clients.begin(f"long-{number}", seconds=60) for number in range(3)]
        short = clients.begin("short", seconds=1)
        assert 1.5 <= end(server) < 1.5 + AT_ONCE
        assert short.result().json() == "done"
        assert [call.result().json() for call in long] == [SHUTTING_DOWN] * 3
        assert [entry["sessionId"] for entry in still_running(server)] == ["long-0", "long-1", "long-2"]
        assert_clean(server)


def test_a_task_whose_client_is_gone_may_finish() -> None:
    with served(grace=8) as server:  # the handler would sleep for longer
        with server.invoke_and_leave_unread({"do": "research and sleep", "seconds": 3}):
            eventually(lambda: metric(server, "agentcore_active_tasks") == 1)
        counted = 'agentcore_invocations_total{mode="unary",outcome="disconnected"}'
        eventually(lambda: metric(server, counted) == 1)
        end(server)
        assert "The research is done" in [entry["message"] for entry in entries(server)]


def test_a_request_that_is_still_being_sent_may_be_completed() -> None:
    body = json.dumps({"do": "sleep", "seconds": 0}).encode()
    with served() as server, server.connect() as connection:
        connection.sendall(request(body[:5], f"Content-Length: {len(body)}"))
        eventually(lambda: invocations_running(server) == 1)
        server.process.terminate()
        began = time.monotonic()
        time.sleep(0.5)
        connection.sendall(body[5:])
        assert receive_until(connection, b'"done"').startswith(b"HTTP/1.1 200")
        assert wait_for_end(server, began) < 0.5 + AT_ONCE
        assert_clean(server)


# -- How the grace ends ------------------------------------------------------------------------------------------------


@every_command
def test_without_a_grace_everything_is_cancelled_at_once(command: Command) -> None:
    with served(command, grace=0) as server, Clients(server) as clients:
        call, stream = clients.begin("sleeping", do="sleep"), clients.begin("streaming", do="stream")
        clients.invoke("researching", do="research")
        assert end(server) < AT_ONCE
        assert call.result().json() == SHUTTING_DOWN
        assert events(stream.result())[-1] == LAST_EVENT
        assert len(still_running(server)) == 3
        assert_clean(server)


@pytest.mark.parametrize(
    ("command", "second"), [*((command, signal.SIGTERM) for command in COMMANDS), (app_run, signal.SIGINT)]
)
def test_a_second_signal_ends_the_grace(command: Command, second: signal.Signals) -> None:
    with served(command) as server, Clients(server) as clients:
        call, stream = clients.begin("sleeping", do="sleep"), clients.begin("streaming", do="stream")
        clients.invoke("researching", do="research")
        server.process.terminate()
        time.sleep(0.5)
        assert not call.done()
        assert not stream.done()
        assert end(server, second) < AT_ONCE
        assert call.result().json() == SHUTTING_DOWN
        assert events(stream.result())[-1] == LAST_EVENT
        assert len(still_running(server)) == 3
        assert_clean(server)


def test_who_does_not_let_itself_be_cancelled_is_left_behind() -> None:
    with served(grace=0.5) as server, Clients(server) as clients:
        clients.invoke("stubborn", do="research stubbornly")
        call = clients.begin("stubborn", do="swallow the cancellation")
        assert end(server) < 0.5 + SERVER_SECONDS + AT_ONCE
        assert call.result().json() == SHUTTING_DOWN
        assert len(still_running(server)) == 2
        assert_clean(server)


@pytest.mark.parametrize("do", ["tidy up", "research tidily"])
def test_who_is_cancelled_may_tidy_up(do: str) -> None:
    with served(grace=0.5) as server, Clients(server) as clients:
        clients.begin("tidy", do=do)
        end(server)
        assert re.search(r"The \w+ is tidied up", "\n".join(server.stderr()))
        assert_clean(server)


def test_what_an_async_handler_left_to_a_thread_holds_nobody_up() -> None:
    with served(grace=0.5) as server, Clients(server) as clients:
        call = clients.begin("sleeping", do="block in a thread", seconds=60)
        assert end(server, within=PATIENCE) < 0.5 + SERVER_SECONDS + AT_ONCE
        assert call.result().json() == SHUTTING_DOWN
        assert_clean(server)


def test_a_handler_that_holds_the_loop_keeps_nobody_from_being_told_and_does_not_hold_up_the_end() -> None:
    with served(grace=1) as server, Clients(server) as clients:
        call, stream = clients.begin("sleeping", do="sleep"), clients.begin("streaming", do="stream")
        clients.invoke("researching", do="research")
        time.sleep(0.2)
        holds = clients.begin("holding", do="hold the loop", seconds=30)
        waits = clients.begin("waiting", do="sleep", seconds=0)
        assert 1 <= end(server) < 1 + 2 * AT_ONCE
        for unanswered in (call, holds, waits):
            assert (unanswered.result().status_code, unanswered.result().json()) == (503, SHUTTING_DOWN)
        *numbers, last = events(stream.result())
        assert last == LAST_EVENT
        assert numbers == list(range(len(numbers)))
        assert numbers
        assert [entry["sessionId"] for entry in still_running(server)] == [
            "sleeping",
            "streaming",
            "researching",
            "holding",
            "waiting",
        ]
        assert_clean(server)


def test_a_client_that_does_not_read_its_last_events_holds_nobody_up_for_long() -> None:
    with served(grace=1) as server, server.invoke_and_leave_unread({"do": "pour out"}):
        eventually(lambda: invocations_running(server) == 1)
        time.sleep(0.5)
        assert 1 <= end(server) < 1 + SERVER_SECONDS + AT_ONCE


def test_a_websocket_that_nobody_reads_holds_nobody_up_for_long() -> None:
    with served(grace=1) as server, server.connect() as connection:
        connection.sendall(
            b"GET /ws HTTP/1.1\r\nHost: agent\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        receive_until(connection, b"101 Switching Protocols")
        assert 1 <= end(server) < 1 + SERVER_SECONDS + AT_ONCE


# -- Handlers on the loop that accepts requests ------------------------------------------------------------------------


def test_inline_work_that_ends_within_the_grace_is_whole() -> None:
    with served(AGENTCORE_HANDLER_ISOLATION="inline") as server, Clients(server) as clients:
        call, stream = (
            clients.begin("sleeping", do="sleep", seconds=1),
            clients.begin("streaming", do="stream", count=10),
        )
        clients.invoke("researching", do="research", seconds=1.2)
        assert end(server) < 1.2 + AT_ONCE
        assert call.result().json() == "done"
        assert events(stream.result()) == list(range(10))
        assert "The research is done" in [entry["message"] for entry in entries(server)]
        assert_clean(server)


def test_inline_work_that_does_not_end_is_cancelled_and_named() -> None:
    with served(grace=1, AGENTCORE_HANDLER_ISOLATION="inline") as server, Clients(server) as clients:
        call, stream = clients.begin("sleeping", do="sleep"), clients.begin("streaming", do="stream")
        clients.invoke("researching", do="research")
        with dial(server) as talk:
            assert 1 <= end(server) < 1 + AT_ONCE
            with pytest.raises(ConnectionClosed):
                talk.recv(PATIENCE)
        assert talk.close_code == 1001
        assert call.result().json() == SHUTTING_DOWN
        assert events(stream.result())[-1] == LAST_EVENT
        assert {entry["sessionId"] for entry in still_running(server)} == {
            "sleeping",
            "streaming",
            "researching",
            "talking",
        }
        assert_clean(server)


def test_inline_work_that_does_not_let_itself_be_cancelled_is_left_behind() -> None:
    with served(grace=0.5, AGENTCORE_HANDLER_ISOLATION="inline") as server, Clients(server) as clients:
        clients.invoke("stubborn", do="research stubbornly")
        clients.begin("stubborn", do="swallow the cancellation")
        assert end(server, within=2 * PATIENCE) < 0.5 + SERVER_SECONDS + AT_ONCE


# -- Beside other things -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [litestar_run, uvicorn_command], ids=lambda command: command.__name__)
def test_an_agent_in_a_litestar_application_gets_the_same_grace(command: Command) -> None:
    with served(command, MOUNTED, grace=1) as server, Clients(server) as clients:
        long, short = clients.begin("long", seconds=60), clients.begin("short", seconds=0.8)
        seconds = end(server)
        assert 1 <= seconds < 1 + AT_ONCE
        assert short.result().json() == "done"
        assert long.result().json() == SHUTTING_DOWN
        lines = server.stderr()
        assert any("The invocation of session long was still running at shutdown" in line for line in lines)
        assert not any("session short" in line for line in lines)
        assert "The application has ended" in lines
        assert not any("Traceback" in line for line in lines)


def test_a_route_of_the_applications_own_gets_the_same_grace() -> None:
    seconds = SERVER_SECONDS + 2
    with (
        served(module=MOUNTED) as server,
        ThreadPoolExecutor(1) as threads,
        server.client(timeout=4 * PATIENCE) as client,
    ):
        report = threads.submit(client.get, "/report", params={"seconds": seconds})
        time.sleep(0.5)
        end(server)
        assert report.result().text == "reported"


def test_several_processes_end_like_one() -> None:
    def command(module: str, port: int) -> list[str]:
        return [*uvicorn_command(module, port), "--workers", "2"]

    with served(command, grace=1) as server, Clients(server) as clients:
        short, long = clients.call("short", do="sleep", seconds=1), clients.call("long", do="sleep")
        time.sleep(0.5)  # no scrape knows of both processes
        assert 1 <= end(server) < 1 + 2 * AT_ONCE
        assert short.result().json() == "done"
        assert long.result().json() == SHUTTING_DOWN
        assert [entry["sessionId"] for entry in still_running(server)] == ["long"]


# -- What the backend gets ---------------------------------------------------------------------------------------------


def attributes(span: Span) -> dict[str, Any]:
    return {
        attribute.key: getattr(attribute.value, attribute.value.WhichOneof("value") or "string_value")
        for attribute in span.attributes
    }


@pytest.fixture(scope="module")
def spans() -> dict[str, Span]:
    """The spans of what was cancelled, by session, as a backend has them when the process is gone."""
    with (
        otlp_sink() as sink,
        served(grace=1, OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint) as server,
        Clients(server) as clients,
    ):
        clients.begin("sleeping", do="sleep")
        clients.begin("blocking", do="block in a thread", seconds=20)
        clients.begin("streaming", do="stream")
        clients.invoke("researching", do="research")
        clients.invoke("noting", do="note")
        with dial(server):
            server.process.terminate()
            eventually(lambda: not server_is_ready(server))
            clients.invoke("too-late", do="sleep", seconds=0)
            server.process.wait(2 * PATIENCE)
        found = {f"{attributes(span)['session.id']}: {span.name}": span for span in sink.spans}
        assert len(found) == len(sink.spans)
        return found


def server_is_ready(server: ServerProcess) -> bool:
    with server.client() as client:
        return client.get("/ready").status_code == 200


@pytest.mark.parametrize("session", ["sleeping", "blocking"])
def test_the_span_of_a_cancelled_invocation_says_so(spans: dict[str, Span], session: str) -> None:
    span = spans[f"{session}: POST /invocations"]
    assert span.status.code == Status.STATUS_CODE_ERROR
    assert attributes(span)["http.response.status_code"] == 503
    assert attributes(span)["error.type"] == "503"
    assert span.end_time_unix_nano - span.start_time_unix_nano >= 1e9


def test_the_span_of_a_cancelled_stream_says_so(spans: dict[str, Span]) -> None:
    span = spans["streaming: POST /invocations"]
    assert attributes(span)["agentcore.stream.outcome"] == "error"
    assert attributes(span)["agentcore.stream.chunks"] >= 5
    assert span.status.code == Status.STATUS_CODE_ERROR


@pytest.mark.parametrize("task", ["researching: async_task research", "noting: async_task note"])
def test_the_span_of_a_lost_task_says_so(spans: dict[str, Span], task: str) -> None:
    assert spans[task].status.code == Status.STATUS_CODE_ERROR
    assert spans[task].status.message == "lost"
    assert spans[task].parent_span_id == spans[task.split(":")[0] + ": POST /invocations"].span_id


def test_the_span_of_a_websocket_that_was_closed_is_there(spans: dict[str, Span]) -> None:
    assert attributes(spans["talking: GET /ws"])["http.response.status_code"] == 101


def test_the_span_of_a_refused_invocation_is_there(spans: dict[str, Span]) -> None:
    assert attributes(spans["too-late: POST /invocations"])["http.response.status_code"] == 503


def test_a_backend_that_hangs_holds_nobody_up_for_long() -> None:
    with socket.create_server(("127.0.0.1", 0)) as backend:  # takes connections, and never answers
        endpoint = f"http://127.0.0.1:{backend.getsockname()[1]}"
        with served(grace=0.5, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint) as server, Clients(server) as clients:
            clients.begin("sleeping", do="sleep")
            assert end(server) < 0.5 + SERVER_SECONDS + AT_ONCE
