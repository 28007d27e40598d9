"""Agents that keep everything between their calls behave as on the reference runtime, whoever blocks, awaits or leaves.

Schedules are drawn, and run on both runtimes side by side. Every step of a session has one result, however the sessions
meet; what may differ, the order in which they come to it, is judged by the agents' own audits, which hold on the
reference runtime as well. ``HABITS_EXAMPLES`` says how many schedules are to be drawn, at random then.
"""

import asyncio
import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import httpx
import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tests.deadline import deadline
from tests.e2e.runtimes import HERE, OURS, Runtime, free_ports
from tests.integration.server import free_port
from tests.integration.server import run as serve

AGENT = HERE / "habits" / "agent.py.txt"
NAMES = ("async", "without await", "generator", "plain", "socket")

PAIRS = 6
SECONDS = 20.0
"""After which what has not been answered counts as hanging; a schedule blocks for two seconds at most."""

EXAMPLES = os.environ.get("HABITS_EXAMPLES")

Ports = Mapping[str, int]
Step = list[Any]


class Session(msgspec.Struct, frozen=True):
    """What one client asks of an agent."""

    agent: str
    answer: str
    steps: list[Step]
    delay: float
    """Seconds after the beginning of the schedule."""
    leaves: int | None = None
    """After how many events, or messages, it leaves; of a value, after how many hundredths of a second."""


class Seen(msgspec.Struct, frozen=True):
    """What a client has seen."""

    status: int | Literal["hung", "left"]
    content: Any = None


class Agents:
    """The same agents on both runtimes, which are served anew where something has gone wrong."""

    def __init__(self, runtimes: list[Runtime], directory: Path) -> None:
        self._runtimes = runtimes
        self._directory = directory
        self._stack = ExitStack()
        self.ports: dict[str, Ports] = {}

    def start(self) -> None:
        for runtime in self._runtimes:
            directory = self._directory / runtime.name
            directory.mkdir(exist_ok=True)
            ports = dict(zip(NAMES, free_ports(len(NAMES)), strict=True))
            arguments = [f"{name}={port}" for name, port in ports.items()]
            file = runtime.write_agent(AGENT, directory)
            self._stack.enter_context(runtime.serve(file, *arguments, ports=list(ports.values())))
            self.ports[runtime.name] = ports

    def stop(self) -> None:
        self._stack.close()

    def log(self, runtime: str) -> str:
        return (self._directory / runtime / "agent.log").read_text()


@pytest.fixture(scope="module")
def agents(reference: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agents]:
    agents = Agents([reference, OURS], tmp_path_factory.mktemp("habits"))
    agents.start()
    try:
        yield agents
    finally:
        agents.stop()


class Hello(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def log_request(self, code: object = "-", size: object = "-") -> None:
        pass


class HelloServer(ThreadingHTTPServer):
    daemon_threads = True


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """What the agents' HTTP clients ask."""
    with HelloServer(("127.0.0.1", 0), Hello) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


# -- What is drawn -----------------------------------------------------------------------------------------------------

seconds = st.sampled_from([0, 0.005, 0.03, 0.12])
names = st.sampled_from(["Ada", "Bob", "Eve"])

plain_steps = st.one_of(
    st.tuples(st.sampled_from(["await", "block", "thread"]), seconds),
    st.tuples(st.just("remember"), names),
)
lone_steps = st.one_of(
    plain_steps,
    st.tuples(st.just("hold"), st.sampled_from(["lock", "semaphore", "anyio"]), seconds, st.booleans()),
    st.just(("row",)),
    st.tuples(st.just("fetch"), st.sampled_from(["aiohttp", "httpx"]), st.just("<url>")),
    st.just(("recall",)),
    st.tuples(st.just("give up"), st.sampled_from(["timeout", "wait_for", "cancel scope", "cancel"])),
    st.tuples(st.just("leave behind"), seconds),
)
steps = st.one_of(
    lone_steps,
    st.tuples(st.just("pass on"), st.integers(0, 9)),
    st.tuples(st.just("task"), lone_steps, lone_steps),
    st.tuples(st.just("gather"), lone_steps, lone_steps),
)
MEETINGS = ["condition", "event", "queue", "barrier", "stream", "future"]

ANSWERS = {
    "async": ["value", "stream", "stream from a task", "rest of a stream", "plain stream"],
    "without await": ["value", "stream", "plain stream", "stream that was begun"],
    "generator": ["stream", "stream from a task"],
    "plain": ["value", "plain stream"],
    "socket": ["messages"],
}
PLAIN_VALUE = ("without await", "value")


@st.composite
def sessions(draw: st.DrawFn) -> Session:
    agent = draw(st.sampled_from(["async", "async", *NAMES]))
    answer = draw(st.sampled_from(ANSWERS[agent]))
    is_plain = answer == "plain stream" or agent == "plain" or (agent, answer) == PLAIN_VALUE
    leaves = draw(st.one_of(st.none(), st.none(), st.integers(0, 3)))
    kinds = plain_steps if is_plain else steps if leaves is None else lone_steps
    drawn = [list(step) for step in draw(st.lists(kinds, min_size=2 if leaves is None else leaves + 1, max_size=5))]
    if leaves is None and draw(st.integers(0, 4)) == 0:
        drawn.append(["raise", "no"])
    return Session(agent, answer, drawn, draw(st.sampled_from([0, 0, 0.005, 0.02, 0.05])), leaves)


def may_meet(session: Session) -> bool:
    runs_steps_plainly = session.answer == "plain stream" or session.agent == "plain"
    return not runs_steps_plainly and session.leaves is None and (session.agent, session.answer) != PLAIN_VALUE


@st.composite
def schedules(draw: st.DrawFn) -> list[Session]:
    """Sessions, of which some meet. All of them do so in the order of the pairs, so that nobody waits in a circle."""
    drawn = draw(st.lists(sessions(), min_size=3, max_size=8))
    meeting = [[each for each in drawn if each.agent == name and may_meet(each)] for name in NAMES]
    groups = [group for group in meeting if len(group) > 1]
    next_position = dict.fromkeys(map(id, drawn), 0)
    for pair in range(draw(st.integers(1, PAIRS)) if groups else 0):
        kind, group = draw(st.sampled_from(MEETINGS)), draw(st.sampled_from(groups))
        for side, session in enumerate(draw(st.permutations(group))[:2]):
            last = len(session.steps) - (session.steps[-1][0] == "raise")
            position = draw(st.integers(next_position[id(session)], last))
            session.steps.insert(position, ["meet", kind, pair, side])
            next_position[id(session)] = position + 1
    return drawn


# -- How it is run -----------------------------------------------------------------------------------------------------


async def call(client: httpx.AsyncClient, port: int, session: Session, url: str) -> Seen:
    payload = json.loads(json.dumps({"answer": session.answer, "steps": session.steps}).replace("<url>", url))
    request = client.build_request("POST", f"http://127.0.0.1:{port}/invocations", json=payload)
    if session.leaves is not None and session.answer == "value":
        with_patience = asyncio.create_task(client.send(request))
        await asyncio.wait([with_patience], timeout=session.leaves / 100)
        with_patience.cancel()
        await asyncio.wait([with_patience])
        return Seen("left")
    response = await client.send(request, stream=True)
    try:
        if not response.headers["content-type"].startswith("text/event-stream"):
            return Seen(response.status_code, json.loads(await response.aread()))
        events: list[Any] = []
        if session.leaves == 0:
            return Seen("left", events)
        async for line in response.aiter_lines():
            if line:
                events.append(json.loads(line.removeprefix("data: ")))
                if len(events) == session.leaves:
                    return Seen("left", events)
        return Seen(response.status_code, events)
    finally:
        await response.aclose()


async def converse(port: int, session: Session, url: str) -> Seen:
    answers: list[Any] = []
    try:
        async with connect(f"ws://127.0.0.1:{port}/ws", proxy=None) as socket:
            for step in [*session.steps, ["bye"]]:
                if len(answers) == session.leaves:
                    socket.transport.abort()
                    return Seen("left", answers)
                await socket.send(json.dumps(step).replace("<url>", url))
                answers.append(json.loads(await socket.recv()))
    except ConnectionClosed as closed:
        return Seen(closed.rcvd.code if closed.rcvd else 1006, answers)
    return Seen(1000, answers)


async def take_part(client: httpx.AsyncClient, ports: Ports, session: Session, url: str) -> Seen:
    await asyncio.sleep(session.delay)
    port = ports[session.agent]
    try:
        async with asyncio.timeout(SECONDS):
            if session.answer == "messages":
                return await converse(port, session, url)
            return await call(client, port, session, url)
    except TimeoutError:
        return Seen("hung")


async def tell(client: httpx.AsyncClient, port: int, what: str) -> Any:
    response = await client.post(f"http://127.0.0.1:{port}/invocations", json=what)
    assert response.status_code == 200, response.text
    return json.loads(response.text.removeprefix("data: "))


async def audit(client: httpx.AsyncClient, port: int) -> Any:
    """What an agent tells once nothing of the schedule goes on in it."""
    for _ in range(200):
        told = await tell(client, port, "audit")
        if not told["open"] and not told["inside"]:
            break
        await asyncio.sleep(0.02)
    return told


Outcome = tuple[list[Seen], dict[str, Any]]


async def run(ports: Ports, schedule: list[Session], url: str) -> Outcome:
    """What the clients of a schedule see, and what the agents tell afterwards."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(trust_env=False, timeout=SECONDS + 5, limits=limits, verify=False) as client:
        agents = sorted({session.agent for session in schedule})
        for agent in agents:
            await tell(client, ports[agent], "begin again")
        seen = await asyncio.gather(*(take_part(client, ports, session, url) for session in schedule))
        if any(session.leaves is not None for session in schedule):
            await asyncio.sleep(0.05)
        if any(each.status == "hung" for each in seen):
            return seen, {}
        return seen, {agent: await audit(client, ports[agent]) for agent in agents}


async def run_on_both(ports: Mapping[str, Ports], schedule: list[Session], url: str) -> list[Outcome]:
    return await asyncio.gather(*(run(ports[name], schedule, url) for name in ("reference", "ours")))


@contextmanager
def afresh_after_a_failure(agents: Agents) -> Iterator[None]:
    try:
        yield
    except BaseException:
        agents.stop()
        agents.start()
        raise


ALL_IS_WELL = {
    "in turn": {"lock": True, "semaphore": True, "anyio": True},
    "at once": {"lock": True, "semaphore": True, "anyio": True},
    "inside": 0,
    "queue in order": True,
    "rows in order": True,
    "open": 0,
    "troubles": [],
    "locked": False,
}


@settings(
    max_examples=int(EXAMPLES or 40),
    derandomize=EXAMPLES is None,
    database=None,
    deadline=None,
    phases=[Phase.generate, Phase.shrink] if EXAMPLES else [Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(schedule=schedules())
def test_both_runtimes_answer_the_same_whoever_blocks_awaits_or_leaves(
    agents: Agents, url: str, schedule: list[Session]
) -> None:
    for session in schedule:
        note(repr(session))
    with afresh_after_a_failure(agents), deadline(3 * SECONDS):
        (theirs, their_audits), (ours, our_audits) = asyncio.run(run_on_both(agents.ports, schedule, url))
        for session, on_theirs, on_ours in zip(schedule, theirs, ours, strict=True):
            assert on_ours == on_theirs, session
            assert on_theirs.status != "hung", session
        assert our_audits == their_audits == dict.fromkeys(our_audits, ALL_IS_WELL)


# -- What others feel of a handler that blocks ----------------------------------------------------------------------


def test_probes_scrapes_and_plain_handlers_feel_nothing_of_an_async_handler_that_blocks() -> None:
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "tests.integration.agents.habits",
        "plain_function_that_may_block_the_loop",
        str(port),
    ]
    latencies: dict[str, list[float]] = {"GET /ping": [], "GET /ready": [], "GET /metrics": [], "POST /invocations": []}
    with deadline(60), serve(command, port) as server, server.client() as client, ThreadPoolExecutor(1) as threads:
        blocked = threads.submit(httpx.post, f"{server.url}/invocations", json=5, timeout=SECONDS, trust_env=False)
        time.sleep(0.2)
        end = time.monotonic() + 4.5
        while time.monotonic() < end:
            for request, seconds in latencies.items():
                method, path = request.split()
                began = time.monotonic()
                response = client.request(method, path, json=0 if method == "POST" else None)
                seconds.append(time.monotonic() - began)
                assert response.status_code == 200
        lag = re.findall(r"^agentcore_event_loop_lag_seconds (\S+)$", client.get("/metrics").text, re.MULTILINE)
        assert not blocked.done(), "the handler did not block for as long as was measured"
        assert float(*lag) > 4
        assert blocked.result().json() == "blocked"
    for request, seconds in latencies.items():
        assert sorted(seconds)[int(0.99 * len(seconds))] < 0.02, request
