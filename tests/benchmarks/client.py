"""What ``wrk`` cannot do: streams whose events are counted as they come, and many invocations that are slow.

``python -m tests.benchmarks.client KIND PORT CONNECTIONS SECONDS PID`` prints one round. It runs in a process of its
own, so that what it costs is known and lands on its own core.
"""

import asyncio
import re
import resource
import sys
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

import msgspec
import uvloop

from tests.benchmarks.invocation import EVENTS, request
from tests.benchmarks.results import Round, quantile
from tests.benchmarks.servers import resident_bytes

EVENT = b"data:"
LAST_CHUNK = b"0\r\n\r\n"
TAIL = len(EVENT) - 1  # both marks are of one length; what is split between two reads is found in the second
DUE = re.compile(rb'"due":\s*([0-9.]+)\}')
OPENING_SECONDS = 2.0
SETTLE_SECONDS = 1.0
"""Between the last stream's first event and the first that is measured."""
PATIENCE = 60.0

Some = TypeVar("Some", bound=asyncio.Protocol)


class Connection(asyncio.Protocol):
    """A connection that carries one invocation after the other, and says what comes of each."""

    def __init__(self, path_request: bytes) -> None:
        self.request = path_request
        self.transport: asyncio.Transport | None = None
        self.idle = True
        self.sent_at = 0.0
        self.events = 0
        self._tail = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def send(self) -> None:
        assert self.transport is not None
        self.idle, self.events, self._tail = False, 0, b""
        self.sent_at = time.monotonic()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        if not self._tail and not data.startswith(b"HTTP/1.1 200"):
            self._give_up()
            return
        window = self._tail + data
        self._tail = window[-TAIL:]
        if number := window.count(EVENT):
            self.events += number
            self.received(number, window)
        if window.endswith(LAST_CHUNK):
            self.idle = True
            self.ended()

    def connection_lost(self, error: Exception | None) -> None:
        self._give_up()

    def _give_up(self) -> None:
        if not self.idle:
            close([self])
            self.failed()

    def received(self, number: int, window: bytes) -> None:
        """Events have come."""

    def ended(self) -> None:
        """The answer is complete."""

    def failed(self) -> None:
        """The answer is not a 200, or was cut off."""


class ClosedLoop:
    """Streams one after the other on each connection, for some time."""

    def __init__(self, seconds: float, load: str = "") -> None:
        self.seconds = seconds
        self.request = request(stream=True, load=load)
        self.events = self.broken = 0
        self.latencies: list[float] = []
        self.running = False
        self.port = 0
        self.connections: list[_Streaming] = []
        self._replacing: set[asyncio.Task[None]] = set()

    async def run(self, port: int, connections: int) -> Round:
        self.port = port
        self.connections = [await connect(port, lambda: _Streaming(self)) for _ in range(connections)]
        self.running = True
        start, cpu = time.monotonic(), cpu_seconds()
        for connection in [*self.connections]:
            connection.send()
        await asyncio.sleep(self.seconds)
        self.running = False
        elapsed, cpu = time.monotonic() - start, cpu_seconds() - cpu
        close(self.connections)
        figures = {"rate": self.events / elapsed, "load_cpu": cpu / elapsed}
        return Round(figures | spread(self.latencies), len(self.latencies), self.broken)

    def replace(self) -> None:
        """Go on with a new connection in the place of one that is of no use any more."""
        self._replacing.add(task := asyncio.create_task(self._reconnect()))
        task.add_done_callback(self._replacing.discard)

    async def _reconnect(self) -> None:
        try:
            connection = await connect(self.port, lambda: _Streaming(self))
        except OSError:
            return  # the rate tells that one is missing
        self.connections.append(connection)
        if self.running:
            connection.send()


class _Streaming(Connection):
    def __init__(self, loop: ClosedLoop) -> None:
        super().__init__(loop.request)
        self.loop = loop

    def received(self, number: int, window: bytes) -> None:
        if self.loop.running:
            self.loop.events += number

    def ended(self) -> None:
        if self.loop.running:
            if self.events != EVENTS:
                self.loop.broken += 1
            else:
                self.loop.latencies.append(time.monotonic() - self.sent_at)
            self.send()

    def failed(self) -> None:
        if self.loop.running:
            self.loop.broken += 1
            self.loop.replace()


class _Sleeping(Connection):
    def __init__(self) -> None:
        super().__init__(request())
        self.done: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        if self.done.done():
            return
        self.idle = True
        if data.startswith(b"HTTP/1.1 200"):
            self.done.set_result(time.monotonic())
        else:
            self.failed()

    def failed(self) -> None:
        if not self.done.done():
            self.done.set_exception(ConnectionError("no answer"))


async def sleepers(port: int, connections: int) -> Round:
    """Send invocations that sleep for a second, all at once; how long until the last one is answered?"""
    made = [await connect(port, _Sleeping) for _ in range(connections)]
    start = time.monotonic()
    for connection in made:
        connection.send()
    async with asyncio.timeout(PATIENCE):
        ends = await asyncio.gather(*(connection.done for connection in made), return_exceptions=True)
    close(made)
    took = [end - start for end in ends if isinstance(end, float)]
    figures = {"seconds": max(took)} if took else {}
    return Round(figures | spread(took), len(took), len(ends) - len(took))


class _Open(Connection):
    def __init__(self, streams: "OpenStreams") -> None:
        super().__init__(request(stream=True))
        self.streams = streams

    def received(self, number: int, window: bytes) -> None:
        now = time.monotonic()
        self.streams.started += self.events == number
        if self.streams.measuring:
            self.streams.lateness += [now - float(due) for due in DUE.findall(window)]

    def ended(self) -> None:
        self.failed()  # these streams have no end

    def failed(self) -> None:
        self.streams.broken += 1


class OpenStreams:
    """Streams of one event a second, all open at once. What they cost, the server's own process knows."""

    def __init__(self) -> None:
        self.started = self.broken = 0
        self.measuring = False
        self.lateness: list[float] = []

    async def run(self, port: int, connections: int, seconds: float, pid: int) -> Round:
        before = resident_bytes(pid)
        made = []
        opening = time.monotonic()
        for number in range(connections):
            # Spread over the second, as sessions come: their events do not fall due all at once.
            await asyncio.sleep(opening + number * OPENING_SECONDS / connections - time.monotonic())
            made.append(await connect(port, lambda: _Open(self)))
            made[-1].send()
        async with asyncio.timeout(PATIENCE):
            while self.started + self.broken < connections:
                await asyncio.sleep(0.05)
        await asyncio.sleep(SETTLE_SECONDS)
        self.measuring = True
        await asyncio.sleep(seconds)
        self.measuring = False
        after = resident_bytes(pid)
        close(made)
        figures = {"rate": len(self.lateness) / seconds, "stream_bytes": (after - before) / connections, "rss": after}
        return Round(figures | spread(self.lateness), self.started, self.broken)


async def connect(port: int, factory: Callable[[], Some]) -> Some:
    _, protocol = await asyncio.get_running_loop().create_connection(factory, "127.0.0.1", port)
    return protocol


def close(connections: Iterable[Connection]) -> None:
    for connection in connections:
        connection.idle = True
        if connection.transport is not None:
            connection.transport.abort()


def spread(times: list[float]) -> dict[str, float]:
    """The quantiles of what there are times of."""
    ordered = sorted(times)
    return {"p50": quantile(ordered, 0.5), "p99": quantile(ordered, 0.99)} if ordered else {}


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    kind, port, connections, seconds, pid = sys.argv[1], *map(float, sys.argv[2:])
    kinds: dict[str, Callable[[], Coroutine[Any, Any, Round]]] = {
        "streams": lambda: ClosedLoop(seconds).run(int(port), int(connections)),
        "runs": lambda: ClosedLoop(seconds, "stream-ag-ui").run(int(port), int(connections)),
        "sleepers": lambda: sleepers(int(port), int(connections)),
        "open-streams": lambda: OpenStreams().run(int(port), int(connections), seconds, int(pid)),
    }
    print(msgspec.json.encode(uvloop.run(kinds[kind]())).decode())
