"""A long mixed load at a share of what the server can do: nothing grows."""

import asyncio
import statistics
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.reliability.client import KeptConnections, ask, bare, described, head, invocation, state, talk, whole_stream
from tests.reliability.report import Row, Section, milliseconds, quantile, table
from tests.reliability.servers import Runtime, Served, serve

SECONDS, SHORT_SECONDS = 600.0, 8.0
CAPACITY_SECONDS = 10.0
"""How long the capacity is measured."""
SHARE, SHORT_SHARE = 0.7, 0.2
"""Of the capacity; less where a test shares the machine with others."""
CLIENTS = 32
"""At the same time, while the capacity is measured."""
MOST_AT_ONCE = 200
"""Requests under way beyond which no more are begun: the server does not keep up."""

WARM_UP_SHARE = 0.25
"""Of the time, before what is kept for good (caches, threads, the allocator's arenas) is there."""
SAMPLE_SECONDS = 1.0
REST_LOOKS = 50
SPARE_FILES = 2
"""Files that may be open for no request: a connection that the kernel has not told the end of, for one."""

MIX: tuple[str, ...] = ("unary",) * 12 + ("ping",) * 3 + ("stream",) * 3 + ("task",) + ("socket",)
"""Of twenty requests."""


@dataclass
class Sample:
    """What the kernel says of the process."""

    at: float
    resident: int
    threads: int
    files: int
    done: int


@dataclass
class Soaked:
    """What came of one runtime's load."""

    capacity: float
    rate: float = 0.0
    asked: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    unary: list[float] = field(default_factory=list)
    """Seconds of each."""
    skipped: int = 0
    """Requests that were due and not begun, because too many were under way."""
    samples: list[Sample] = field(default_factory=list)
    generators: int = 0
    """Left open at the end."""
    before: Sample | None = None
    """At rest, once each kind of request has been served."""
    after: Sample | None = None
    """At rest after the load."""
    cpu: float = 0.0
    """How many cores the server took on average."""
    complaints: list[str] = field(default_factory=list)

    @property
    def steady(self) -> list[Sample]:
        """The samples after the warm-up."""
        begin = self.samples[0].at + WARM_UP_SHARE * (self.samples[-1].at - self.samples[0].at)
        return [sample for sample in self.samples if sample.at >= begin]

    @property
    def bytes_per_second(self) -> float:
        return _slope([(each.at, each.resident) for each in self.steady])

    @property
    def bytes_per_request(self) -> float:
        return _slope([(each.done, each.resident) for each in self.steady])


def _slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the line that fits best."""
    xs, ys = zip(*points, strict=True)
    return statistics.linear_regression(xs, ys).slope


class Client:
    """Sends what the mix has next, and checks what comes."""

    def __init__(self, port: int, soaked: Soaked) -> None:
        self._port = port
        self._soaked = soaked
        self._number = 0
        self._connections = KeptConnections(port)
        self._kinds: dict[str, Callable[[], Awaitable[str]]] = {
            "unary": self._unary,
            "ping": self._ping,
            "stream": self._stream,
            "task": self._task,
            "socket": self._socket,
        }

    def close(self) -> None:
        self._connections.close()

    async def send_next(self) -> None:
        kind = MIX[self._number % len(MIX)]
        self._number += 1
        began = time.perf_counter()
        problem = await self._kinds[kind]()
        self._soaked.asked[kind] += 1
        if problem:
            self._soaked.failures.append(f"{kind}: {problem}")
        if kind == "unary":
            self._soaked.unary.append(time.perf_counter() - began)

    async def _unary(self) -> str:
        return await self._invoke(seconds=0.005)

    async def _task(self) -> str:
        return await self._invoke(do="task", seconds=0.05)

    async def _invoke(self, **payload: object) -> str:
        identity = str(uuid.uuid4())
        answer = await self._connections.ask(invocation(identity, kept=True, id=identity, **payload))
        right = answer.whole and answer.status == 200 and answer.json() == {"answer": identity}
        return "" if right else described(answer)

    async def _stream(self) -> str:
        answer = await ask(self._port, invocation(str(uuid.uuid4()), do="stream", seconds=0.1))
        right = answer.whole and answer.status == 200 and bare(answer.body) == whole_stream()
        return "" if right else described(answer)

    async def _ping(self) -> str:
        answer = await ask(self._port, head("GET", "/ping"))
        return "" if answer.whole and answer.status == 200 else described(answer)

    async def _socket(self) -> str:
        result = await talk(self._port, 3, 0.01)
        return "" if result.echoes == 3 and result.code == 1000 else str(result)


async def capacity_of(served: Served, seconds: float) -> float:
    """Requests of the mix that the server can do per second of its processor's time.

    So neither the clients' own cost nor what else runs on the machine counts. A server of one process has hardly more
    than one core, since its threads share the interpreter's lock.
    """
    soaked = Soaked(0)
    client, end = Client(served.port, soaked), time.monotonic() + seconds

    async def again_and_again() -> None:
        while time.monotonic() < end:
            await client.send_next()

    before = served.cpu_seconds()
    await asyncio.gather(*(again_and_again() for _ in range(CLIENTS)))
    client.close()
    return soaked.asked.total() / (served.cpu_seconds() - before)


async def soak(served: Served, soaked: Soaked, seconds: float) -> None:
    """Send requests as they fall due, whether or not others are answered, and sample the process."""
    client = Client(served.port, soaked)
    under_way: set[asyncio.Task[None]] = set()
    began = due = sampled = time.monotonic()
    while (now := time.monotonic()) < began + seconds and served.is_alive:
        while due <= now:
            due += 1 / soaked.rate
            if len(under_way) >= MOST_AT_ONCE:
                soaked.skipped += 1
                continue
            under_way.add(task := asyncio.create_task(client.send_next()))
            task.add_done_callback(under_way.discard)
        if now >= sampled:
            sampled += SAMPLE_SECONDS
            soaked.samples.append(sample(served, now - began, soaked))
        await asyncio.sleep(max(due - time.monotonic(), 0.001))
    await asyncio.gather(*under_way)
    client.close()


def sample(served: Served, at: float, soaked: Soaked) -> Sample:
    return Sample(at, served.resident_bytes(), served.threads(), served.files(), soaked.asked.total())


async def soak_one(runtime: Runtime, directory: Path, *, seconds: float, short: bool) -> Soaked:
    """Measure the capacity, and load a fresh server with a share of it."""
    with serve(runtime, directory, JOURNAL="", AGENTCORE_STALL_SECONDS="10") as served:
        capacity = await capacity_of(served, 2 if short else CAPACITY_SECONDS)
    soaked = Soaked(capacity, rate=capacity * (SHORT_SHARE if short else SHARE))
    with serve(runtime, directory, JOURNAL="", AGENTCORE_STALL_SECONDS="10") as served:
        first = Client(served.port, soaked)
        for _ in MIX:
            await first.send_next()
        first.close()
        soaked.before = await at_rest(served, soaked, served.files())
        cpu = served.cpu_seconds()
        await soak(served, soaked, seconds)
        if served.is_alive:
            soaked.cpu = (served.cpu_seconds() - cpu) / seconds
            soaked.after = await at_rest(served, soaked, soaked.before.files)
        else:
            soaked.failures.append("the server died")
        soaked.complaints = served.new_complaints()
    return soaked


async def at_rest(served: Served, soaked: Soaked, files: int) -> Sample:
    """Wait until no more files are open than there were, and no generator, or until that is not to be expected."""
    for _ in range(REST_LOOKS):
        soaked.generators = (await state(served.port))["generators"]
        found = sample(served, 0, soaked)
        if soaked.generators == 0 and found.files <= files:
            break
        await asyncio.sleep(0.1)
    return found


def broken(soaked: Soaked) -> list[str]:
    """What a soak must not show. How steep the memory may be, the page says; here it is what no noise explains."""
    found = list(soaked.failures[:20])
    if soaked.generators:
        found.append(f"{soaked.generators} generators were left open")
    before, after = soaked.before, soaked.after
    if before is not None and after is not None and after.files > before.files + SPARE_FILES:
        found.append(f"{after.files} files are open after the load, and were {before.files} before")
    found += soaked.complaints[:20]
    return found


def section(ours: Soaked, official: Soaked | None, seconds: float) -> Section:
    """The rows and the course of memory."""
    during = f"{seconds / 60:.2g} minutes of mixed load at {SHARE:.0%} of capacity: "

    def row(what: str, promise: str, ask_one: Callable[[Soaked], str]) -> Row:
        return Row(during + what, promise, ask_one(ours), *([ask_one(official)] if official is not None else []))

    rows = [
        row(
            "requests, of these wrong or failed",
            "0 wrong",
            lambda it: f"{it.asked.total():,}, {len(it.failures)} wrong",
        ),
        row("memory slope after the warm-up, per second", "flat", lambda it: f"{it.bytes_per_second:,.0f} bytes"),
        row("memory slope after the warm-up, per request", "flat", lambda it: f"{it.bytes_per_request:,.1f} bytes"),
        row("threads, first and last tenth after the warm-up", "flat", lambda it: _ends(it, "threads")),
        row("files, first and last tenth after the warm-up", "flat", lambda it: _ends(it, "files")),
        row("files before and after the load", "the same", _rest),
        row("generators left open", "0", lambda it: str(it.generators)),
        row("lines at WARNING or above", "0", lambda it: str(len(it.complaints))),
    ]
    headings = [
        "runtime",
        "capacity",
        "load",
        "cores",
        "not begun",
        "unary p50",
        "unary p99",
        "resident MiB at each tenth",
    ]
    body = []
    for name, soaked in {"ours": ours, "official SDK": official}.items():
        if soaked is not None:
            tenth = max(len(soaked.samples) // 10, 1)
            course = [f"{each.resident / 2**20:.1f}" for each in soaked.samples[::tenth]]
            body.append(
                [
                    name,
                    f"{soaked.capacity:,.0f}/s",
                    f"{soaked.rate:,.0f}/s",
                    f"{soaked.cpu:.2f}",
                    str(soaked.skipped),
                    milliseconds(quantile(soaked.unary, 0.5)),
                    milliseconds(quantile(soaked.unary, 0.99)),
                    ", ".join(course),
                ]
            )
    return Section("soak", rows, table(headings, body), broken(ours))


def _ends(soaked: Soaked, what: str) -> str:
    values = [getattr(each, what) for each in soaked.steady]
    tenth = max(len(values) // 10, 1)
    first, last = statistics.mean(values[:tenth]), statistics.mean(values[-tenth:])
    return f"{first:.1f} and {last:.1f}"


def _rest(soaked: Soaked) -> str:
    if soaked.before is None or soaked.after is None:
        return "it died"
    return f"{soaked.before.files} and {soaked.after.files}"


async def run(runtimes: Sequence[Runtime], directory: Path, *, short: bool) -> Section:
    """Load each runtime."""
    seconds = SHORT_SECONDS if short else SECONDS
    found = {runtime.official: await soak_one(runtime, directory, seconds=seconds, short=short) for runtime in runtimes}
    return section(found[False], found.get(True), seconds)
