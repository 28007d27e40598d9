"""Handlers at their worst, on a real server in a process of its own, and what its other clients feel of it."""

import asyncio
import json
import random
import re
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any

import pytest

from tests.e2e.served import served
from tests.integration.server import PATIENCE, SESSION_ID, Server

pytestmark = pytest.mark.serial

APP = "tests.e2e.isolation_agent:app"

HOLD_SECONDS = 5.0

VANISHING, SLOW, FAITHFUL = 500, 200, 50
"""Clients of streams: those who leave at some point, those who read a byte a second, and those who read to the end."""

FAITHFUL_EVENTS = 1000
ROUNDS_BEFORE = 3
"""Allocators keep what the first rounds need: a server grew by up to 13 % in the second, and by 2 % from then on."""
ARRIVAL_SECONDS = 3.0
"""The span over which the clients of streams come."""

SMALL_BUFFER = 16 * 1024


@pytest.fixture(autouse=True, scope="module")
def enough_files() -> None:
    """Let this process and the servers that it starts have a connection for each client."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4096
    assert hard == resource.RLIM_INFINITY or hard >= wanted, f"these tests need {wanted} open files (ulimit -Hn)"
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted) if soft >= 0 else soft, hard))


@pytest.fixture
def agent() -> Iterator[Server]:
    with served(APP) as server:
        yield server


class Connection:
    """A keep-alive connection to the agent, with as little between the clock and the socket as may be."""

    def __init__(self, server: Server) -> None:
        self._port = server.port

    async def __aenter__(self) -> "Connection":
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.writer.close()

    async def ask(self, request: bytes) -> bytes:
        """The body of the answer, which is a good one and of a known length."""
        self.writer.write(request)
        head = await self.reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 "), head
        (length,) = re.findall(rb"(?i)content-length: (\d+)", head)
        return await self.reader.readexactly(int(length))

    async def latencies(self, request: bytes, count: int) -> list[float]:
        """How many seconds each of some requests takes, one after another."""
        latencies = []
        for _ in range(count):
            began = time.perf_counter()
            await self.ask(request)
            latencies.append(time.perf_counter() - began)
        return latencies


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: agent\r\n\r\n".encode()


def put(path: str) -> bytes:
    return f"PUT {path} HTTP/1.1\r\nHost: agent\r\nContent-Length: 0\r\n\r\n".encode()


def invocation(session: str = "another", **payload: Any) -> bytes:
    body = json.dumps(payload).encode()
    head = (
        f"POST /invocations HTTP/1.1\r\nHost: agent\r\n{SESSION_ID}: {session}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def latencies(server: Server, request: bytes, count: int) -> list[float]:
    async with Connection(server) as connection:
        return await connection.latencies(request, count)


async def invoke(server: Server, **payload: Any) -> bytes:
    async with Connection(server) as connection:
        return await connection.ask(invocation(**payload))


async def metric(server: Server, name: str) -> float:
    async with Connection(server) as connection:
        exposed = (await connection.ask(get("/metrics"))).decode()
    (value,) = re.findall(rf"^{name} (\S+)$", exposed, re.MULTILINE)
    return float(value)


def p99(values: list[float]) -> float:
    return sorted(values)[int(0.99 * len(values))]


def report(**seconds: list[float]) -> None:
    """Print what was measured, for those who want to know it."""
    for name, values in seconds.items():
        middle, last = sorted(values)[len(values) // 2], max(values)
        print(f"{name}: median {1000 * middle:.2f} ms, p99 {1000 * p99(values):.2f} ms, max {1000 * last:.2f} ms")


def test_probes_and_plain_handlers_feel_nothing_of_an_async_handler_that_blocks(agent: Server) -> None:
    async def scenario() -> None:
        blocked = asyncio.create_task(invoke(agent, session="blocked", do="block", seconds=HOLD_SECONDS))
        await asyncio.sleep(0.2)
        async with Connection(agent) as connection:
            await connection.ask(put("/entrypoint/chat_plainly"))
        felt = {}
        for name, request in {
            "pings": get("/ping"),
            "metrics": get("/metrics"),
            "ready": get("/ready"),
            "plain": invocation(),
        }.items():
            felt[name] = await latencies(agent, request, 500)
        assert not blocked.done(), "the handler did not hold the loop for as long as was measured"
        report(**felt)
        for name, values in felt.items():
            assert p99(values) < 0.02, name
        assert await metric(agent, "agentcore_handler_stalls_total") == 1
        assert await blocked == b'"done"'

    asyncio.run(scenario())


def test_other_async_handlers_wait_for_one_that_blocks_and_are_answered_then(agent: Server) -> None:
    async def scenario() -> None:
        blocked = asyncio.create_task(invoke(agent, session="blocked", do="block", seconds=1))
        await asyncio.sleep(0.2)
        began = time.perf_counter()
        others = [asyncio.create_task(invoke(agent, do="wait", seconds=0)) for _ in range(50)]
        assert set(await asyncio.gather(*others)) == {b'"done"'}
        seconds = time.perf_counter() - began
        report(others=[seconds])
        assert 0.5 < seconds < 1.5
        assert await blocked == b'"done"'

    asyncio.run(scenario())


def test_sessions_that_block_without_an_await_do_not_wait_for_one_another(agent: Server) -> None:
    async def scenario() -> float:
        async with AsyncExitStack() as stack:
            connections = [await stack.enter_async_context(Connection(agent)) for _ in range(8)]
            await connections[0].ask(put("/entrypoint/chat_without_await"))
            began = time.perf_counter()
            block = invocation(seconds=1)
            assert await asyncio.gather(*(connection.ask(block) for connection in connections)) == [b'"done"'] * 8
            return time.perf_counter() - began

    seconds = asyncio.run(scenario())
    print(f"eight that block for 1 s: {seconds:.2f} s")
    assert seconds < 2


@pytest.mark.parametrize("entrypoint", ["chat_plainly", "chat_without_await"])
def test_ping_and_async_invocations_feel_nothing_of_more_handlers_in_threads_than_there_are_threads(
    agent: Server, entrypoint: str
) -> None:
    async def scenario() -> None:
        async with Connection(agent) as connection:
            await connection.ask(put(f"/entrypoint/{entrypoint}"))
            blocked = [asyncio.create_task(invoke(agent, seconds=HOLD_SECONDS)) for _ in range(200)]
            await reach(metric, agent, "agentcore_sync_queue_length", 200 - 64)
            await connection.ask(put("/entrypoint/chat"))
        pings, others = await asyncio.gather(
            latencies(agent, get("/ping"), 1000), latencies(agent, invocation(do="wait", seconds=0), 200)
        )
        assert not any(task.done() for task in blocked), "the handlers were through before the end"
        assert await metric(agent, "agentcore_sync_queue_length") == 200 - 64
        report(pings=pings, others=others)
        assert p99(pings) < 0.02
        assert p99(others) < 0.05
        assert set(await asyncio.gather(*blocked)) == {b'"done"'}
        assert await metric(agent, "agentcore_sync_queue_length") == 0

    asyncio.run(scenario())


def test_probes_and_plain_handlers_feel_nothing_of_many_plain_streams_that_are_read_slowly(agent: Server) -> None:
    async def scenario() -> None:
        stop = asyncio.Event()
        async with Connection(agent) as connection:
            await connection.ask(put("/entrypoint/chat_plainly"))
        endless = invocation(do="stream plainly", tokens=4000)
        async with asyncio.TaskGroup() as clients:
            for _ in range(SLOW):
                clients.create_task(read_slowly(agent, endless, 0, stop))
            await reach(metric, agent, "agentcore_invocations_in_progress", SLOW)
            await asyncio.sleep(2)  # until the sockets between them are full, and the generators paused
            pings, plain = await asyncio.gather(
                latencies(agent, get("/ping"), 1000), latencies(agent, invocation(), 500)
            )
            assert await metric(agent, "agentcore_invocations_in_progress") == SLOW
            stop.set()
        report(pings=pings, plain=plain)
        assert p99(pings) < 0.02
        assert p99(plain) < 0.02
        await every_generator_is_closed(agent, SLOW)

    asyncio.run(scenario())


def test_ping_feels_little_of_an_async_handler_that_computes(agent: Server) -> None:
    async def scenario() -> None:
        blocked = asyncio.create_task(invoke(agent, session="blocked", do="compute", seconds=HOLD_SECONDS))
        await asyncio.sleep(0.02)
        pings: list[float] = []
        async with Connection(agent) as connection:
            while not blocked.done():
                pings += await connection.latencies(get("/ping"), 1)
        report(pings=pings)
        assert len(pings) > 100
        assert p99(pings) < 0.05
        assert await blocked == b'"done"'

    asyncio.run(scenario())


async def reach(function: Any, server: Server, name: str, wanted: float) -> None:
    """Wait until a metric has a value."""
    async with asyncio.timeout(PATIENCE):
        while await function(server, name) != wanted:
            await asyncio.sleep(0.02)


async def vanish(server: Server, request: bytes, arrival: float, size: int) -> None:
    """Open a stream, read so many bytes of it, and leave without a word."""
    await asyncio.sleep(arrival)
    async with Connection(server) as connection:
        connection.writer.write(request)
        while size > 0 and (chunk := await connection.reader.read(size)):
            size -= len(chunk)
        connection.writer.transport.abort()


async def read_slowly(server: Server, request: bytes, arrival: float, until: asyncio.Event) -> None:
    """Read one byte a second."""
    await asyncio.sleep(arrival)
    loop = asyncio.get_running_loop()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
        connection.setblocking(False)
        await loop.sock_connect(connection, ("127.0.0.1", server.port))
        await loop.sock_sendall(connection, request)
        while not until.is_set():
            assert len(await loop.sock_recv(connection, 1)) == 1
            await asyncio.sleep(1)


async def read_to_the_end(server: Server, request: bytes, arrival: float) -> list[int]:
    """The numbers of the events."""
    await asyncio.sleep(arrival)
    numbers = []
    async with Connection(server) as connection:
        connection.writer.write(request)
        while (line := await connection.reader.readline()) != b"0\r\n":  # the last chunk
            assert line, "the stream was cut off"
            if line.startswith(b"data: "):
                numbers.append(int(re.match(rb'data: {"number":(\d+),', line)[1]))  # type: ignore[index]
    return numbers


async def storm(server: Server, do: str, chance: random.Random) -> None:
    """Have clients of all kinds come and go; all who read to the end get every event in order."""
    stop = asyncio.Event()
    endless, finite = invocation(do=do, tokens=4000), invocation(do=do, events=FAITHFUL_EVENTS)

    def arrival() -> float:
        return chance.uniform(0, ARRIVAL_SECONDS)

    async with asyncio.TaskGroup() as clients:
        for _ in range(VANISHING):
            clients.create_task(vanish(server, endless, arrival(), chance.choice((0, 1, chance.randrange(300_000)))))
        for _ in range(SLOW):
            clients.create_task(read_slowly(server, endless, arrival(), stop))
        faithful = [clients.create_task(read_to_the_end(server, finite, arrival())) for _ in range(FAITHFUL)]
        for reader in faithful:
            assert await reader == list(range(FAITHFUL_EVENTS))
        assert await metric(server, "agentcore_invocations_in_progress") >= SLOW
        stop.set()
    await every_generator_is_closed(server, SLOW + FAITHFUL)


async def every_generator_is_closed(server: Server, at_least: int) -> None:
    async with Connection(server) as connection, asyncio.timeout(PATIENCE):
        while True:
            count = json.loads(await connection.ask(get("/generators")))
            if count["opened"] == count["closed"] and not await metric(server, "agentcore_invocations_in_progress"):
                break
            await asyncio.sleep(0.05)
    assert count["opened"] >= at_least


@pytest.mark.parametrize("do", ["stream", "stream plainly"])
def test_clients_who_vanish_or_hardly_read_cost_the_others_no_event_and_the_agent_no_memory(
    agent: Server, do: str
) -> None:
    async def scenario() -> None:
        chance = random.Random(do)
        for _ in range(ROUNDS_BEFORE):
            await storm(agent, do, chance)
        before = await metric(agent, "process_resident_memory_bytes")
        await storm(agent, do, chance)
        after = await metric(agent, "process_resident_memory_bytes")
        print(f"resident: {before / 2**20:.1f} MiB before, {after / 2**20:.1f} MiB after")
        assert after < 1.1 * before

    asyncio.run(scenario())


def test_a_thousand_invocations_that_wait_for_a_second_are_done_within_two(agent: Server) -> None:
    async def scenario() -> float:
        async with AsyncExitStack() as stack:
            connections = [await stack.enter_async_context(Connection(agent)) for _ in range(1000)]
            began = time.perf_counter()
            wait = invocation(do="wait", seconds=1)
            answers = await asyncio.gather(*(connection.ask(wait) for connection in connections))
            seconds = time.perf_counter() - began
        assert answers == [b'"done"'] * 1000
        return seconds

    seconds = asyncio.run(scenario())
    print(f"a thousand waits of 1 s: {seconds:.2f} s")
    assert seconds < 2
