"""Ten times as many clients as may be served: what is accepted is answered rightly, and the rest is refused at once."""

import asyncio
import statistics
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.reliability.client import Answer, KeptConnections, described, head, invocation
from tests.reliability.report import Row, Section, milliseconds, quantile, table
from tests.reliability.servers import Runtime, Served, serve

LIMIT = 8
CLIENTS = 10 * LIMIT
SECONDS, SHORT_SECONDS = 60.0, 3.0
PAUSE = 0.1
"""Seconds until a client that was refused asks again: sooner than it is told to."""
PING_PAUSE = 0.02
AT_ONCE = 0.05
"""Seconds within which a client is refused where nothing could be waited for."""
WARM_UP_SHARE = 0.25


@dataclass(frozen=True)
class Case:
    """One way to be too busy."""

    name: str
    queue: int
    timeout: float
    """Seconds that an invocation may wait in the queue."""
    hold: float
    """Seconds that an invocation takes."""

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AGENTCORE_MAX_CONCURRENT_INVOCATIONS": str(LIMIT),
            "AGENTCORE_QUEUE_SIZE": str(self.queue),
            "AGENTCORE_QUEUE_TIMEOUT_SECONDS": f"{self.timeout:g}",
        }


CASES = (
    Case("no queue", queue=0, timeout=5, hold=0.1),
    Case("a queue that moves", queue=2 * LIMIT, timeout=5, hold=0.1),
    Case("a queue that is too slow", queue=2 * LIMIT, timeout=0.5, hold=2),
)


@dataclass
class Overloaded:
    """What came of one case."""

    answered: list[float] = field(default_factory=list)
    """Seconds until the answers with 200."""
    refused: list[float] = field(default_factory=list)
    """Seconds until the answers with 429."""
    failures: list[str] = field(default_factory=list)
    pings: list[float] = field(default_factory=list)
    resident: list[tuple[float, float]] = field(default_factory=list)
    """Seconds since the beginning, and bytes."""
    most_at_once: int = 0

    @property
    def bytes_per_second(self) -> float:
        points = self.resident[int(WARM_UP_SHARE * len(self.resident)) :]
        return statistics.linear_regression(*zip(*points, strict=True)).slope if len(points) > 1 else 0.0

    def refused_at_once(self, case: Case) -> list[float]:
        """Those for whom there was no room to wait in, told by the middle of the two times that there are."""
        return [seconds for seconds in self.refused if seconds < (AT_ONCE + case.timeout) / 2]

    def refused_after_waiting(self, case: Case) -> list[float]:
        return [seconds for seconds in self.refused if seconds >= (AT_ONCE + case.timeout) / 2]


async def press(served: Served, case: Case, seconds: float) -> Overloaded:
    """Ask with many clients at once, each again as soon as it may, and judge every answer."""
    result, end = Overloaded(), time.monotonic() + seconds
    connections = KeptConnections(served.port)
    right: set[str] = set()
    refused: set[str] = set()

    async def client() -> None:
        while time.monotonic() < end:
            identity = str(uuid.uuid4())
            answer = await connections.ask(invocation(identity, kept=True, id=identity, seconds=case.hold))
            if answer.whole and answer.status == 200 and answer.json() == {"answer": identity}:
                result.answered.append(answer.seconds)
                right.add(identity)
            elif is_refusal(answer):
                result.refused.append(answer.seconds)
                refused.add(identity)
                await asyncio.sleep(PAUSE)
            else:
                result.failures.append(described(answer))
                await asyncio.sleep(PAUSE)

    async def pings() -> None:
        while time.monotonic() < end:
            answer = await connections.ask(head("GET", "/ping", kept=True))
            result.pings.append(answer.seconds)
            if answer.status != 200:
                result.failures.append(f"ping: {described(answer)}")
            await asyncio.sleep(PING_PAUSE)

    async def memory() -> None:
        began = time.monotonic()
        while time.monotonic() < end:
            result.resident.append((time.monotonic() - began, served.resident_bytes()))
            await asyncio.sleep(0.5)

    await asyncio.gather(*(client() for _ in range(CLIENTS)), pings(), memory())
    connections.close()
    begun = served.journalled("begun")
    result.most_at_once = served.most_at_once()
    if lost := begun - right:
        result.failures.append(f"{len(lost)} were accepted, and not answered rightly")
    if run := begun & refused:
        result.failures.append(f"{len(run)} were refused, and run all the same")
    return result


def is_refusal(answer: Answer) -> bool:
    """A 429 as it should be: with an error in the contract's shape, and the time after which to ask again."""
    if not (answer.whole and answer.status == 429):
        return False
    return "error" in answer.json() and int(answer.headers.get("retry-after", "0")) >= 1


async def overload(runtime: Runtime, directory: Path, case: Case, seconds: float) -> Overloaded:
    with serve(runtime, directory, 1, **case.environment) as served:
        result = await press(served, case, seconds)
        if not served.is_alive:
            result.failures.append("the server died")
        return result


def broken(case: Case, result: Overloaded) -> list[str]:
    """What no noise of the machine explains."""
    found = list(result.failures[:10])
    if not result.answered or not result.refused:
        found.append(f"{len(result.answered)} were answered and {len(result.refused)} refused: that is no overload")
    if result.most_at_once > LIMIT:
        found.append(f"{result.most_at_once} ran at once")
    return [f"{case.name}: {each}" for each in found]


def section(ours: dict[str, Overloaded], official: dict[str, Overloaded], seconds: float) -> Section:
    """The rows and the table of the cases."""
    total = f"{CLIENTS} clients for {seconds:g} s, at most {LIMIT} served at once: "

    def over(found: dict[str, Overloaded], figure: Callable[[Case, Overloaded], str]) -> str:
        return "; ".join(figure(case, found[case.name]) for case in CASES if case.name in found) or "not asked"

    figures: list[tuple[str, str, Callable[[Case, Overloaded], str]]] = [
        ("wrong, lost or failed", "0", lambda _, it: f"{len(it.failures)} of {len(it.answered) + len(it.refused)}"),
        ("under way at once, at the most", str(LIMIT), lambda _, it: str(it.most_at_once)),
        ("refused with 429", "the rest", lambda _, it: f"{len(it.refused):,}"),
        ("p99 of a refusal without waiting", "50 ms", lambda case, it: _p99(it.refused_at_once(case))),
        ("p99 of an answer", "", lambda _, it: _p99(it.answered)),
        ("p99 of `/ping`", "20 ms", lambda _, it: _p99(it.pings)),
        ("memory slope after the warm-up", "flat", lambda _, it: f"{it.bytes_per_second:,.0f} bytes/s"),
    ]
    rows = [Row(total + what, promise, over(ours, figure), over(official, figure)) for what, promise, figure in figures]
    body = []
    for name, found in {"ours": ours, "official SDK": official}.items():
        for case in CASES:
            if (it := found.get(case.name)) is not None:
                waited = it.refused_after_waiting(case)
                body.append(
                    [
                        name,
                        f"{case.name}: {case.queue} may wait {case.timeout:g} s, each takes {case.hold:g} s",
                        f"{len(it.answered):,}, p50 {milliseconds(quantile(it.answered, 0.5))}",
                        f"{len(it.refused_at_once(case)):,}, p99 {_p99(it.refused_at_once(case))}",
                        f"{len(waited):,}, {_range(waited)}",
                        _p99(it.pings),
                        f"{it.resident[0][1] / 2**20:.1f} to {it.resident[-1][1] / 2**20:.1f}",
                    ]
                )
    headings = ["runtime", "case", "answered", "429 at once", "429 after waiting", "`/ping` p99", "resident MiB"]
    all_broken = [each for case in CASES if case.name in ours for each in broken(case, ours[case.name])]
    return Section("overload", rows, table(headings, body), all_broken)


def _p99(values: list[float]) -> str:
    return milliseconds(quantile(values, 0.99)) if values else "none"


def _range(values: list[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f} s" if values else "none"


async def run(runtimes: Sequence[Runtime], directory: Path, *, short: bool) -> Section:
    """Overload each runtime, in every case."""
    seconds = SHORT_SECONDS if short else SECONDS
    found: dict[bool, dict[str, Overloaded]] = {False: {}, True: {}}
    for runtime in runtimes:
        for case in CASES:
            found[runtime.official][case.name] = await overload(runtime, directory, case, seconds)
    return section(found[False], found[True], seconds)
