"""Work stays where it began: habits of agents, each served by a process of its own and seen from outside alone."""

import http.client
import json
import os
import random
import re
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from litestar_agentcore.runtime.watchdog import AWAKE_SECONDS
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.deadline import deadline
from tests.e2e.otlp_sink import otlp_sink
from tests.integration.server import (
    PATIENCE,
    PROMPT,
    SESSION_ID,
    SMALL_BUFFER,
    ServerProcess,
    app_run,
    eventually,
    free_port,
    receive_until,
    run,
    uvicorn_command,
)

HABITS = "tests.integration.agents.habits"
CROSSING = "tests.integration.agents.crossing"
ENDING = "tests.integration.agents.ending"

DO_NOTHING = "nothing"

HUNG = (0, "it hung")
"""The outcome of a call that was not answered in time."""

SHUTTING_DOWN = {"error": "The service is shutting down"}

Outcome = tuple[int, Any]


@pytest.fixture(autouse=True)
def hard_timeout() -> Iterator[None]:
    with deadline(90):
        yield


def habit(name: str, port: int) -> list[str]:
    return [sys.executable, "-m", HABITS, name, str(port)]


@contextmanager
def served(command: Sequence[str], port: int, **environment: str) -> Iterator[ServerProcess]:
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            for name in list(os.environ):
                if name.startswith("OTEL_"):
                    patch.delenv(name)
            for name, value in environment.items():
                patch.setenv(name, value)
            server = stack.enter_context(run(command, port))
        yield server


@contextmanager
def serving(name: str, **environment: str) -> Iterator[ServerProcess]:
    """Serve one habit."""
    port = free_port()
    with served(habit(name, port), port, **environment) as server:
        yield server


def call(server: ServerProcess, payload: Any, timeout: float = PATIENCE) -> Outcome:
    """The status and the value, or the events, of an answer."""
    with server.client(timeout) as client:
        try:
            response = client.post("/invocations", json=payload)
        except httpx.TimeoutException:
            return HUNG
    if response.headers["content-type"].startswith("text/event-stream"):
        return response.status_code, events_in(response.text)
    return response.status_code, response.json()


def events_in(text: str) -> list[Any]:
    frames = text.split("\n\n")
    assert frames.pop() == "", f"the stream ends in the middle of an event: {text[-100:]!r}"
    return [json.loads(frame.removeprefix("data: ")) for frame in frames]


def overlapping(server: ServerProcess, payloads: Sequence[Any], apart: float = 0.15) -> list[Outcome]:
    """The outcomes of calls that begin shortly after one another."""
    with ThreadPoolExecutor(len(payloads)) as threads:
        calls = []
        for payload in payloads:
            calls.append(threads.submit(call, server, payload))
            time.sleep(apart)
        return [each.result() for each in calls]


def entries(server: ServerProcess) -> list[dict[str, Any]]:
    return [json.loads(line) for line in server.stderr() if line.startswith("{") and line.endswith("}")]


def noted(server: ServerProcess) -> list[Any]:
    """What the agent has left word of, in order."""
    messages = [entry["message"] for entry in entries(server)]
    return [json.loads(message.removeprefix("noted ")) for message in messages if message.startswith("noted ")]


def assert_untroubled(server: ServerProcess) -> None:
    """Nothing has gone wrong, as far as the log tells."""
    for entry in entries(server):
        assert entry["level"] in {"DEBUG", "INFO", "WARNING"}, entry
        assert "stackTrace" not in entry, entry
    text = "\n".join(server.stderr())
    for complaint in ("Traceback", "different event loop", "different task", "Failed to detach", "tried to end"):
        assert complaint not in text, text


def stop(server: ServerProcess, within: float = 3 * PATIENCE) -> None:
    server.process.send_signal(signal.SIGTERM)
    wait_for_end(server, within)


def wait_for_end(server: ServerProcess, within: float) -> None:
    try:
        server.process.wait(within)
    except subprocess.TimeoutExpired:
        pytest.fail(f"it runs on after {within:g} s:\n" + "\n".join(server.stderr()))


def metric(server: ServerProcess, name: str) -> float:
    with server.client() as client:
        text = client.get("/metrics").text
    (value,) = re.findall(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE) or ["nan"]
    return float(value)


def ping(server: ServerProcess) -> str:
    with server.client(PROMPT) as client:
        status: str = client.get("/ping").json()["status"]
    return status


# -- What is kept at module level --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("primitive", "answers", "afterwards", "isolation"),
    [
        ("module_lock", [0, 1, 2, 3], [5, 4], "isolated"),
        ("module_lock", [0, 1, 2, 3], [5, 4], "inline"),
        ("module_semaphore", [0, 1, 2, 3], [5, 4], "isolated"),
        ("module_event", [0, 1, 2, 3], [5, 4], "isolated"),
        ("module_condition", [0, 1, 2, 3], [5, 4], "isolated"),
        ("module_queue", [1, 1, 3, 3], [5, 5], "isolated"),
    ],
)
def test_a_primitive_of_the_module_is_shared_by_calls_that_block(
    primitive: str, answers: list[int], afterwards: list[int], isolation: str
) -> None:
    with serving(primitive, AGENTCORE_HANDLER_ISOLATION=isolation) as server:
        outcomes = overlapping(server, [0, 1, 2, 3])
        assert sorted(outcomes) == [(200, answer) for answer in answers]
        assert [call(server, payload) for payload in (5, 4)] == [(200, answer) for answer in afterwards]
        assert_untroubled(server)


def test_an_http_client_of_the_module_is_shared_by_calls_that_block() -> None:
    with serving("module_http_client") as server:
        outcomes = overlapping(server, [f"{server.url}/ping"] * 10, apart=0.02)
        assert outcomes == [(200, 200)] * 10
        assert call(server, f"{server.url}/ping") == (200, 200)
        assert_untroubled(server)


class Echo(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        with suppress(ConnectionError):  # the agent's process is killed
            for line in self.rfile:
                self.wfile.write(line)


@contextmanager
def echo_server() -> Iterator[int]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join(PATIENCE)


def test_a_connection_of_the_module_is_shared_by_calls_that_block() -> None:
    with echo_server() as port, serving("module_connection") as server:
        outcomes = overlapping(server, [{"port": port, "number": number} for number in range(6)], apart=0.05)
        assert outcomes == [(200, str(number)) for number in range(6)]
        assert_untroubled(server)


def test_a_subprocess_of_the_module_is_shared_by_calls_that_block() -> None:
    with serving("module_subprocess") as server:
        assert overlapping(server, list("abcdef"), apart=0.05) == [(200, letter) for letter in "abcdef"]
        assert_untroubled(server)


# -- Streams that a task feeds -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "isolation"),
    [
        ("streaming_queue", "isolated"),
        ("streaming_queue_after_an_await", "isolated"),
        ("streaming_queue_after_an_await", "inline"),
        ("streaming_queue_and_its_task", "isolated"),
    ],
)
def test_a_task_that_blocks_feeds_the_stream_that_its_handler_returned(name: str, isolation: str) -> None:
    with serving(name, AGENTCORE_HANDLER_ISOLATION=isolation) as server:
        assert [call(server, {}) for _ in range(3)] == [(200, [0, 1, 2])] * 3
        assert overlapping(server, [{}] * 4) == [(200, [0, 1, 2])] * 4
        assert_untroubled(server)


def test_a_stream_that_blocks_between_its_yields_sends_each_event_at_once() -> None:
    with serving("blocks_between_yields") as server, server.client() as client:
        began = time.monotonic()
        with client.stream("POST", "/invocations", json={}) as response:
            arrivals = [time.monotonic() - began for line in response.iter_lines() if line]
        assert len(arrivals) == 4
        assert arrivals[0] < 0.4
        assert arrivals[1] < 0.8


# -- What is open across yields ----------------------------------------------------------------------------------------

OPEN = ["cancel scope", "task group", "timeout", "span", "variable"]


@pytest.mark.parametrize("isolation", ["isolated", "inline"])
def test_a_stream_whose_first_event_the_handler_pulled_ends_where_it_began(isolation: str) -> None:
    with serving("first_event_pulled", AGENTCORE_HANDLER_ISOLATION=isolation) as server:
        for kind in OPEN:
            assert call(server, {"open": kind}) == (200, [1, 2, 3]), kind
        assert overlapping(server, [{"open": kind} for kind in OPEN], apart=0.01) == [(200, [1, 2, 3])] * len(OPEN)
        assert_untroubled(server)


def test_a_timeout_that_is_open_across_yields_ends_the_stream_in_its_time() -> None:
    with serving("first_event_pulled") as server:
        status, events = call(server, {"open": "timeout", "seconds": 30})
    assert status == 200
    assert [event["error_type"] for event in events] == ["TimeoutError"]


def test_a_client_that_leaves_such_a_stream_troubles_nobody() -> None:
    with serving("first_event_pulled") as server:
        for kind in OPEN:
            with server.invoke_and_leave_unread({"open": kind, "seconds": 0.5}) as connection:
                receive_until(connection, b"data: 1")
        eventually(lambda: metric(server, "agentcore_invocations_in_progress") == 0)
        assert call(server, {"open": "cancel scope"}) == (200, [1, 2, 3])
        assert_untroubled(server)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("left_at_an_await", "CancelledError"),
        ("returned_and_left_at_an_await", "CancelledError"),
        ("returned_and_left_at_a_yield", "GeneratorExit"),
    ],
)
def test_a_generator_whose_client_leaves_ends_in_its_own_task_and_may_await_then(name: str, error: str) -> None:
    with serving(name) as server:
        with server.invoke_and_leave_unread({}) as connection:
            receive_until(connection, b"data: ")
            time.sleep(0.5)  # the buffers fill up where nothing else stops the generator
        eventually(lambda: len(noted(server)) == 2)
        assert noted(server) == [[error], ["tidied up", True]]
        assert_untroubled(server)


def test_a_shutdown_waits_for_a_handler_whose_client_has_left() -> None:
    with serving("left_while_it_works") as server:
        with server.invoke_and_leave_unread({"seconds": 4}):
            eventually(lambda: metric(server, "agentcore_invocations_in_progress") == 1)
        time.sleep(2)  # a client is watched for leaving once it has waited for a second
        stop(server)
        assert noted(server) == [["worked"]]


def test_a_shutdown_names_a_handler_whose_client_has_left() -> None:
    with serving("left_while_it_works", AGENTCORE_SHUTDOWN_GRACE_SECONDS="0.5") as server:
        with server.invoke_and_leave_unread({"seconds": 60}):
            eventually(lambda: metric(server, "agentcore_invocations_in_progress") == 1)
        time.sleep(2)
        stop(server)
        named = [entry["message"] for entry in entries(server) if "was still running at shutdown" in entry["message"]]
        assert len(named) == 1
        assert "invocation" in named[0]


# -- WebSockets that are not waited for --------------------------------------------------------------------------------


def dial(server: ServerProcess, **options: Any) -> ClientConnection:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
    connection.settimeout(PATIENCE)
    connection.connect(("127.0.0.1", server.port))
    client: ClientConnection = connect(
        f"ws://127.0.0.1:{server.port}/ws",
        sock=connection,
        open_timeout=PATIENCE,
        close_timeout=PROMPT,
        max_size=None,
        max_queue=1,
        **options,
    )
    return client


@pytest.mark.parametrize(
    ("name", "isolation"),
    [
        ("socket_polled_with_wait_for", "isolated"),
        ("socket_polled_with_timeout", "isolated"),
        ("socket_polled_with_timeout", "inline"),
        ("socket_polled_with_a_cancel_scope", "isolated"),
    ],
)
def test_no_message_is_lost_where_the_handler_polls(name: str, isolation: str) -> None:
    messages = [str(number) for number in range(3000)] + ["the end"]
    pause = random.Random(0)
    with serving(name, AGENTCORE_HANDLER_ISOLATION=isolation) as server, dial(server) as client:
        for message in messages:
            client.send(message)
            time.sleep(pause.uniform(0, 0.002))
        assert json.loads(client.recv(PATIENCE)) == messages
        assert_untroubled(server)


def test_a_send_that_is_given_up_sends_its_whole_message_or_nothing_and_in_order() -> None:
    received = []
    with serving("socket_whose_sends_are_given_up") as server, dial(server) as client:
        time.sleep(0.2)  # for the kernel's buffers to be full
        while True:
            message = client.recv(PATIENCE)
            assert isinstance(message, str)
            if message.startswith("["):
                break
            number, _, rest = message.partition(" ")
            assert rest == "x" * 200_000
            received.append(int(number))
            time.sleep(0.003)
        assert received == sorted(set(received))
        assert set(json.loads(message)) <= set(received)
        assert_untroubled(server)


def test_a_client_to_whom_nobody_listens_is_not_read() -> None:
    sent: list[int] = []

    def send(client: ClientConnection) -> None:
        with suppress(ConnectionClosed):
            while len(sent) < 500:
                client.send("x" * 100_000)
                sent.append(100_000)

    with serving("socket_that_does_not_listen") as server, dial(server, compression=None) as client:
        assert client.recv(PATIENCE) == "hello"
        sending = threading.Thread(target=send, args=(client,), daemon=True)
        sending.start()
        sending.join(2)
        assert sending.is_alive(), f"{sum(sent)} bytes wait for a handler that does not ask for them"
        client.socket.shutdown(socket.SHUT_RDWR)
        sending.join(PATIENCE)


def wakeups(server: ServerProcess) -> int:
    """How often the threads of a process have woken up so far."""
    total = 0
    for thread in Path(f"/proc/{server.process.pid}/task").iterdir():
        status = (thread / "status").read_text()
        (count,) = re.findall(r"^voluntary_ctxt_switches:\s+(\d+)$", status, re.MULTILINE)
        total += int(count)
    return total


def wakeups_in(server: ServerProcess, seconds: float) -> int:
    time.sleep(AWAKE_SECONDS + 0.5)
    before = wakeups(server)
    time.sleep(seconds)
    return wakeups(server) - before


@pytest.mark.serial
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are looked at in /proc")
def test_an_idle_websocket_wakes_nobody_up() -> None:
    with serving("socket_that_is_idle") as server:
        with dial(server) as client:
            assert client.recv(PATIENCE) == "hello"
        without = wakeups_in(server, 2)
        with dial(server) as client:
            assert client.recv(PATIENCE) == "hello"
            within = wakeups_in(server, 2)
        assert within - without < 15, f"{within} wake-ups in 2 s, and {without} without a WebSocket"


# -- Plain generators --------------------------------------------------------------------------------------------------

RETURNING = [
    "plain_generator",
    "plain_function_returning_it",
    "coroutine_returning_it",
    "coroutine_without_await_returning_it",
]
KEEPING = ["sqlite", "lock", "local"]


def thread_of(events: list[Any], rows: int) -> int:
    """The one thread in which a whole stream was made."""
    assert [event[0] for event in events] == list(range(rows))
    threads = {event[1] for event in events}
    assert len(threads) == 1
    return int(threads.pop())


def closed_in(server: ServerProcess) -> list[int]:
    return sorted(what[1] for what in noted(server) if what[0] == "closed")


@pytest.mark.parametrize(
    ("name", "isolation"), [*((name, "isolated") for name in RETURNING), ("coroutine_returning_it", "inline")]
)
def test_a_plain_generator_runs_in_one_thread_to_its_end(name: str, isolation: str) -> None:
    threads: list[int] = []
    with serving(name, AGENTCORE_HANDLER_ISOLATION=isolation) as server:
        for keeps in KEEPING:
            for status, events in [
                call(server, {"keeps": keeps, "rows": 300}),
                *overlapping(server, [{"keeps": keeps, "rows": 300}] * 6, apart=0.01),
            ]:
                assert status == 200
                threads.append(thread_of(events, 300))
        eventually(lambda: len(closed_in(server)) == len(threads))
        assert closed_in(server) == sorted(threads)
        assert_untroubled(server)


def read_slowly(connection: socket.socket) -> list[Any]:
    """The events of a stream that is read in pieces, with pauses."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    text = bytearray()
    while piece := response.read(SMALL_BUFFER):
        text += piece
        time.sleep(0.005)
    return events_in(text.decode())


ROWS_FOR_SLOW_READERS = 2000
"""8 MB, which is more than the kernel's buffers take."""


@pytest.mark.parametrize("name", RETURNING)
def test_a_plain_generator_keeps_its_thread_for_a_slow_client(name: str) -> None:
    with serving(name, AGENTCORE_SYNC_THREADS="2") as server, ExitStack() as stack:
        payload = {"keeps": "sqlite", "rows": ROWS_FOR_SLOW_READERS}
        connections = [stack.enter_context(server.invoke_and_leave_unread(payload)) for _ in range(6)]
        eventually(lambda: metric(server, 'agentcore_handler_threads{state="parked"}') == len(connections))
        with ThreadPoolExecutor(len(connections)) as threads:
            streams = list(threads.map(read_slowly, connections))
        used = [thread_of(events, ROWS_FOR_SLOW_READERS) for events in streams]
        assert len(set(used)) == len(connections)
        eventually(lambda: len(closed_in(server)) == len(connections))
        assert closed_in(server) == sorted(used)
        assert_untroubled(server)


def test_plain_handlers_are_served_while_more_streams_are_unread_than_there_are_threads() -> None:
    with serving("plain_function_returning_it", AGENTCORE_SYNC_THREADS="2") as server, ExitStack() as stack:
        payload = {"keeps": "sqlite", "rows": ROWS_FOR_SLOW_READERS}
        for _ in range(12):
            connection = stack.enter_context(server.invoke_and_leave_unread(payload))
            receive_until(connection, b"data: ")
        eventually(lambda: call(server, DO_NOTHING, PROMPT) == (200, "hello"))
        for _ in range(5):
            assert call(server, DO_NOTHING, PROMPT) == (200, "hello")


def test_where_no_more_threads_may_be_parked_a_generator_function_is_refused_and_a_function_waits() -> None:
    payload = {"keeps": "sqlite", "rows": ROWS_FOR_SLOW_READERS}
    limits = {"AGENTCORE_SYNC_THREADS": "1", "AGENTCORE_PARKED_THREADS": "1"}
    running, parked = (f'agentcore_handler_threads{{state="{state}"}}' for state in ("running", "parked"))
    for name in ("plain_generator", "plain_function_returning_it"):
        with serving(name, **limits) as server, ThreadPoolExecutor(3) as threads, ExitStack() as stack:
            unread = []
            for place in (parked, running):
                unread.append(stack.enter_context(server.invoke_and_leave_unread(payload)))
                receive_until(unread[-1], b"data: ")
                time.sleep(0.5)  # until the kernel takes no more, so that nothing changes any more
                eventually(lambda place=place: metric(server, place) == 1)  # type: ignore[misc]
            third = threads.submit(call, server, payload | {"rows": 3})
            if name == "plain_generator":
                assert third.result()[0] == 503
            else:
                time.sleep(0.3)
                assert not third.done()
            for connection in unread:
                connection.close()
            if name == "plain_function_returning_it":
                assert thread_of(third.result()[1], 3)
            eventually(lambda: metric(server, parked) == metric(server, running) == 0)
            assert thread_of(call(server, payload | {"rows": 3})[1], 3)


@pytest.mark.parametrize("name", RETURNING)
def test_a_plain_generator_is_closed_in_its_thread_when_the_client_leaves(name: str) -> None:
    used = []
    with serving(name) as server:
        for keeps in KEEPING:
            with server.invoke_and_leave_unread({"keeps": keeps, "rows": ROWS_FOR_SLOW_READERS}) as connection:
                began = receive_until(connection, b'xx"]')
                (thread,) = re.findall(rb"data: \[0, ?(\d+)", began)
                used.append(int(thread))
                time.sleep(0.3)
        eventually(lambda: len(closed_in(server)) == len(used))
        assert closed_in(server) == sorted(used)
        assert_untroubled(server)


# -- From the lifespan and from routes ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def crossing() -> Iterator[ServerProcess]:
    port = free_port()
    with served(app_run(CROSSING, port), port) as server:
        yield server


def get(server: ServerProcess, path: str) -> Any:
    with server.client() as client:
        response = client.get(path)
    assert response.status_code == 200, response.text
    return response.json() if response.headers["content-type"] == "application/json" else response.text


def test_what_the_lifespan_made_on_the_agents_loop_is_used_by_the_handler(crossing: ServerProcess) -> None:
    for number in range(3):
        status, answer = call(crossing, {"worker": 0, "number": number})
        assert (status, answer["doubled"]) == (200, 2 * number)


def test_what_a_route_made_on_the_agents_loop_is_used_by_the_handler(crossing: ServerProcess) -> None:
    number = get(crossing, "/open")
    answer = call(crossing, {"worker": number - 1, "number": 4})[1]
    assert answer["doubled"] == 8


def test_a_route_uses_what_belongs_to_the_agents_loop_beside_the_handler(crossing: ServerProcess) -> None:
    with ThreadPoolExecutor(8) as threads:
        routes = [threads.submit(get, crossing, f"/double?number={number}") for number in range(4)]
        calls = [threads.submit(call, crossing, {"worker": 0, "number": number}) for number in range(4)]
        assert [route.result() for route in routes] == [0, 2, 4, 6]
        assert [each.result()[1]["doubled"] for each in calls] == [0, 2, 4, 6]


def test_a_coroutine_that_is_run_from_elsewhere_is_run_on_the_agents_loop(crossing: ServerProcess) -> None:
    handler = call(crossing, {"worker": 0, "number": 1})[1]
    route = get(crossing, "/loops")
    assert handler["loop"] == handler["across"] == route["across"]
    assert route["own"] != route["across"]


def test_what_such_a_coroutine_raises_is_raised_where_it_is_awaited(crossing: ServerProcess) -> None:
    assert get(crossing, "/fail") == "caught: not there"


def test_the_lifespan_closes_on_the_agents_loop_what_it_opened_there() -> None:
    port = free_port()
    with served(app_run(CROSSING, port), port) as server:
        assert call(server, {"worker": 0, "number": 1})[0] == 200
        stop(server)
        assert "The worker is closed" in [entry["message"] for entry in entries(server)]
        assert_untroubled(server)


# -- What ends or forks ------------------------------------------------------------------------------------------------


def test_a_handler_that_stops_its_loop_leaves_nobody_hanging() -> None:
    with serving("stops_its_loop") as server:
        outcomes = overlapping(server, ["sleep", "sleep", "stop", "sleep"])
        assert [status for status, _ in outcomes] == [200] * 4
        assert len({loop for _, loop in [*outcomes, call(server, "sleep")]}) == 1


@pytest.mark.parametrize("error", ["exit", "interrupt"])
def test_a_task_that_exits_ends_nobody_else(error: str) -> None:
    with serving("exits_in_a_task") as server:
        outcomes = overlapping(server, ["sleep", error, "sleep"])
        assert [status for status, _ in outcomes] == [200] * 3
        assert call(server, f"await {error}") == (500, {"error": "out"})
        assert len({loop for _, loop in [*outcomes, call(server, "sleep")]}) == 1


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("slow_error", (500, {"error": "at last"})),
        ("plain_slow_error", (500, {"error": "at last"})),
        ("slow_error_in_a_stream", "at last"),
        ("plain_slow_error_in_a_stream", "at last"),
    ],
)
def test_an_error_that_is_slow_to_tell_holds_no_probe_up(name: str, answer: Any) -> None:
    with serving(name) as server, ThreadPoolExecutor(1) as threads:
        failing = threads.submit(call, server, {})
        while not failing.done():
            began = time.monotonic()
            assert ping(server) == "Healthy"
            assert time.monotonic() - began < 0.5
            time.sleep(0.05)
        status, content = failing.result()
        assert (status, content) == answer or (status, content[0], content[1]["error"]) == (200, 0, answer)


@pytest.mark.parametrize(
    "name",
    [
        "forks_and_comes_back",
        "forks_and_comes_back_without_await",
        "forks_and_comes_back_plainly",
        "forks_and_comes_back_in_another_thread",
        "forks_and_awaits",
        "forks_in_a_stream",
    ],
)
def test_a_forked_process_that_comes_back_from_the_handler_is_ended_and_holds_nobody_up(name: str) -> None:
    with serving(name) as server:
        for times in range(1, 4):
            status, child = call(server, 0)
            status_of_end, code = call(server, child[0] if isinstance(child, list) else child)
            assert (status, status_of_end) == (200, 200)
            assert (code[0] if isinstance(code, list) else code) == 1
            said = [entry for entry in entries(server) if "forked a process that did not end" in entry["message"]]
            assert len(said) == times
        with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as connection:
            connection.sendall(b"GET /ping HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n")
            while connection.recv(SMALL_BUFFER):  # to its end: nobody else keeps the connection open
                pass


def test_a_forked_process_can_be_terminated() -> None:
    with serving("forks_a_process") as server:
        assert call(server, {}) == (200, -signal.SIGTERM)
        assert ping(server) == "Healthy"
        assert call(server, {}) == (200, -signal.SIGTERM)


def test_a_busy_pool_of_forked_processes_can_be_terminated() -> None:
    with serving("forks_a_pool") as server:
        assert call(server, {}) == (200, "terminated")
        stop(server)


def test_a_forked_process_runs_a_loop_of_its_own() -> None:
    with serving("forks_a_process_with_a_loop") as server:
        assert [call(server, {}) for _ in range(2)] == [(200, 0)] * 2


def test_a_forked_process_sends_its_own_spans() -> None:
    with (
        otlp_sink() as sink,
        serving(
            "forks_and_records", OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint, OTEL_BSP_SCHEDULE_DELAY="200"
        ) as server,
    ):
        assert call(server, {}) == (200, None)
        eventually(lambda: "POST /invocations" in [span.name for span in sink.spans])
        names = [span.name for span in sink.spans]
        assert sorted(names) == ["POST /invocations", "in the child"]


def test_tasks_have_their_grace_where_the_server_ends_after_so_many_requests() -> None:
    port = free_port()
    command = [*uvicorn_command(ENDING, port), "--limit-max-requests", "2"]  # the first is a ping
    with served(command, port) as server:
        assert call(server, {"do": "research", "seconds": 1}) == (200, "done")
        wait_for_end(server, PATIENCE)
        assert "The research is done" in [entry["message"] for entry in entries(server)]


def test_who_waits_for_a_loop_that_is_held_is_told_of_the_shutdown() -> None:
    port = free_port()
    with (
        served(app_run(ENDING, port), port, AGENTCORE_SHUTDOWN_GRACE_SECONDS="1") as server,
        ThreadPoolExecutor(4) as threads,
    ):
        calls = [threads.submit(call, server, {"do": "hold the loop", "seconds": 15}, 2 * PATIENCE)]
        time.sleep(0.3)
        calls += [threads.submit(call, server, {"do": "sleep"}, 2 * PATIENCE) for _ in range(3)]
        eventually(lambda: metric(server, "agentcore_invocations_in_progress") == 4)
        stop(server, PATIENCE)
        assert [each.result() for each in calls] == [(503, SHUTTING_DOWN)] * 4


# -- Calls from foreign threads ----------------------------------------------------------------------------------------

CALLS = ["future.set_result", "loop.call_soon", "loop.create_task", "loop.call_later", "task.cancel"]


@pytest.mark.parametrize("debug", ["", "1"], ids=["", "debug mode"])
def test_what_a_foreign_thread_asks_of_the_loop_is_done_at_once(debug: str) -> None:
    with serving("foreign_thread", PYTHONASYNCIODEBUG=debug) as server:
        for payload in CALLS:
            status, seconds = call(server, payload)
            assert status == 200, (payload, seconds)
            assert seconds < 0.3, payload


@pytest.mark.parametrize("debug", ["", "1"], ids=["", "debug mode"])
def test_nothing_that_foreign_threads_ask_of_the_loop_is_lost(debug: str) -> None:
    with serving("foreign_threads_in_a_hurry", PYTHONASYNCIODEBUG=debug) as server:
        assert call(server, {}) == (200, 4000)


# -- nest_asyncio ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nested", "nested_from_the_start"])
def test_a_handler_with_an_await_may_nest_runs_of_its_loop(name: str) -> None:
    with serving(name) as server:
        for _ in range(3):
            status, answers = call(server, {})
            assert (status, set(answers)) == (200, {"inner"})
        assert [status for status, _ in overlapping(server, [{}] * 4, apart=0.02)] == [200] * 4
        assert_untroubled(server)


def test_a_handler_without_an_await_may_not_and_is_told_so() -> None:
    with serving("nested_without_await") as server:
        for _ in range(2):
            status, answer = call(server, {})
            assert status == 500
            assert "loop" in answer["error"]
            assert "await" in answer["error"]
        assert call(server, DO_NOTHING) == (200, DO_NOTHING)
        assert ping(server) == "Healthy"


# -- Tasks that outlive their answer -----------------------------------------------------------------------------------

BEGINNING = ["begins_a_task", "begins_a_task_without_await", "begins_a_task_in_a_stream"]


@pytest.mark.parametrize("busy", [False, True], ids=["", "busy"])
@pytest.mark.parametrize("name", BEGINNING)
def test_a_task_is_counted_when_its_handler_answers(name: str, busy: bool) -> None:
    with serving(name) as server, server.client() as client:
        for _ in range(3 if busy else 15):
            seconds = 0.5 if busy else 0.05
            assert client.post("/invocations", json={"busy": busy, "seconds": seconds}).status_code == 200
            assert client.get("/ping").json()["status"] == "HealthyBusy"
            eventually(lambda: ping(server) == "Healthy")


def test_a_coroutine_that_nobody_awaits_is_no_task() -> None:
    with serving("begins_nothing") as server:
        assert call(server, {}) == (200, "not begun")
        assert ping(server) == "Healthy"


@pytest.mark.parametrize("name", BEGINNING)
def test_a_shutdown_right_after_the_answer_waits_for_a_task_that_the_busy_loop_has_not_begun(name: str) -> None:
    with serving(name) as server:
        call(server, {"busy": True})
        stop(server)
        assert noted(server) == [["researched"]]


def test_a_shutdown_right_after_the_answer_waits_for_the_task_every_time() -> None:
    def once(number: int) -> list[Any]:
        port = free_port()
        with run(habit(BEGINNING[number % 2], port), port) as server:
            call(server, {"seconds": 0.5})
            stop(server)
            return noted(server)

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(once, range(20))) == [[["researched"]]] * 20


# -- What blocks -----------------------------------------------------------------------------------------------------


def test_sessions_that_block_without_an_await_do_not_wait_for_one_another() -> None:
    def session(server: ServerProcess, number: int) -> Any:
        with server.client() as client:
            return client.post("/invocations", json=1.0, headers={SESSION_ID: f"session-{number}"}).json()

    with serving("blocks_without_await") as server, ThreadPoolExecutor(8) as threads:
        ask: Callable[[int], Any] = lambda number: session(server, number)  # noqa: E731
        began = time.monotonic()
        assert list(threads.map(ask, range(8))) == ["done"] * 8
        assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("blocks_without_await", "async without await, in a thread for each call"),
        ("left_while_it_works", "async, on the agent's loop"),
    ],
)
def test_the_log_says_at_the_start_how_the_entrypoint_runs(name: str, how: str) -> None:
    with serving(name) as server:
        assert f"{name}: {how}" in [entry["message"] for entry in entries(server)]
