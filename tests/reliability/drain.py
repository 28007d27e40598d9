"""SIGTERM at random moments under mixed load: what was accepted is whole, or its client is told."""

import asyncio
import random
import statistics
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.reliability.client import Answer, ask, bare, described, invocation, talk, whole_stream
from tests.reliability.report import Row, Section, table
from tests.reliability.servers import Runtime, Served, serve

SEED = 20261125
MOMENTS, SHORT_MOMENTS = 200, 8

GRACE, SHORT_GRACE = 10.0, 0.2
"""Seconds of grace: more than any work of this load takes, and less than most of it does."""
SHORT_GRACE_EVERY = 4
"""Every how many moments the grace is the short one."""

TERMINATION_SECONDS = 30.0
"""After which a kubelet kills what has not ended."""

LONGEST_WORK = 0.6

TELLING_CODES = {1001, 1012, 1013}
"""Close codes by which a server says that it goes away, restarts, or has no room (RFC 6455 and its registry)."""

WHOLE, REFUSED, TOLD, NOT_ACCEPTED = "whole", "refused", "cut short, and told so", "not accepted"
TRUNCATED, LOST = "truncated", "lost without a word"
OUTCOMES = (WHOLE, REFUSED, TOLD, NOT_ACCEPTED, TRUNCATED, LOST)


@dataclass
class Drains:
    """What came of all moments of one runtime."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How many requests of each kind came to what."""
    examples: list[str] = field(default_factory=list)
    seconds: dict[float, list[float]] = field(default_factory=dict)
    """How long it took to end, by the grace."""
    killed: int = 0
    statuses: Counter[int | None] = field(default_factory=Counter)
    """What the processes ended with."""

    def number(self, outcome: str, kind: str | None = None) -> int:
        return sum(count for (asked, came), count in self.outcomes.items() if came == outcome and kind in (None, asked))

    def total(self) -> int:
        return self.outcomes.total()


class Load:
    """Clients of one server, each asking for one thing after the other until nobody listens any more."""

    def __init__(self, served: Served, chance: random.Random) -> None:
        self._served = served
        self._chance = chance
        self.answers: list[tuple[str, str, Answer]] = []
        self.talks: list[tuple[str, str, bool]] = []
        """What became of each conversation: its outcome, an example's text."""
        self.gone = asyncio.Event()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as clients:
            for kind, number in {"unary": 3, "stream": 2, "task": 1}.items():
                for _ in range(number):
                    clients.create_task(self._ask(kind))
            clients.create_task(self._talk())

    async def _ask(self, kind: str) -> None:
        while not self.gone.is_set():
            identity, seconds = str(uuid.uuid4()), self._chance.uniform(0.02, LONGEST_WORK)
            answer = await ask(
                self._served.port, invocation(identity, do=kind, id=identity, seconds=seconds), TERMINATION_SECONDS
            )
            self.answers.append((kind, identity, answer))
            if not answer.connected:
                return
            await asyncio.sleep(0.02)

    async def _talk(self) -> None:
        while not self.gone.is_set():
            result = await talk(self._served.port, 5, self._chance.uniform(0, LONGEST_WORK / 5), TERMINATION_SECONDS)
            if result.code == 1000 and result.echoes == 5:
                outcome = WHOLE
            elif result.code in TELLING_CODES:
                outcome = TOLD
            elif result.status in {403, 503}:
                outcome = REFUSED
            elif not result.connected:
                outcome = NOT_ACCEPTED
            else:
                outcome = LOST
            self.talks.append((outcome, str(result), result.connected))
            if not result.connected and result.status is None:
                return
            await asyncio.sleep(0.02)


def outcome_of(kind: str, identity: str, answer: Answer, begun: set[str]) -> str:
    """What one request came to. Whether it was accepted, the agent's journal tells."""
    if answer.status is None:
        return LOST if identity in begun else NOT_ACCEPTED
    if not answer.whole:
        return TRUNCATED
    if answer.status != 200:
        if answer.status != 503:
            return LOST
        return TOLD if identity in begun else REFUSED
    if kind == "stream":
        if bare(answer.body) == whole_stream():
            return WHOLE
        last = answer.body.strip().rpartition(b"data:")[2]
        return TOLD if b'"error"' in last else TRUNCATED
    return WHOLE if answer.json() == {"answer": identity} else LOST


def judge_tasks(served: Served, drains: Drains) -> None:
    """See which background tasks were begun and not done, and whether the log names them."""
    begun, done = served.journalled("task"), served.journalled("task-done")
    named = [line for line in served.log.read_text().splitlines() if '"WARNING"' in line or '"ERROR"' in line]
    for identity in begun:
        outcome = WHOLE if identity in done else TOLD if any(identity in line for line in named) else LOST
        drains.outcomes["background task", outcome] += 1
        if outcome == LOST:
            drains.examples.append(f"background task {identity}: not done, and not named in the log")


async def one_moment(
    runtime: Runtime, directory: Path, moment: int, handler: str, grace: float, chance: random.Random, drains: Drains
) -> None:
    """Serve, load, send SIGTERM, and judge what came of everything."""
    with serve(runtime, directory, HANDLER=handler, AGENTCORE_SHUTDOWN_GRACE_SECONDS=f"{grace:g}") as served:
        load = Load(served, chance)
        running = asyncio.create_task(load.run())
        await asyncio.sleep(chance.uniform(0.1, 1.0))
        seconds = await asyncio.to_thread(served.terminate, TERMINATION_SECONDS)
        if seconds is None:
            drains.killed += 1
            served.process.kill()
            served.process.wait(10)
        else:
            drains.seconds.setdefault(grace, []).append(seconds)
        drains.statuses[served.process.returncode] += 1
        load.gone.set()
        await running
        begun = served.journalled("begun")
        where = f"moment {moment}, {handler}"
        for kind, identity, answer in load.answers:
            outcome = outcome_of(kind, identity, answer, begun)
            drains.outcomes[kind, outcome] += 1
            if outcome in {LOST, TRUNCATED}:
                drains.examples.append(f"{where}: {kind} {outcome}: {described(answer)}")
        for outcome, example, _ in load.talks:
            drains.outcomes["socket", outcome] += 1
            if outcome == LOST:
                drains.examples.append(f"{where}: socket {outcome}: {example}")
        judge_tasks(served, drains)


async def drains_of(runtime: Runtime, directory: Path, moments: int) -> Drains:
    """End a server at as many random moments."""
    drains, chance = Drains(), random.Random(SEED)
    for moment in range(moments):
        handler = ("async", "plain")[moment % 2]
        grace = SHORT_GRACE if moment % SHORT_GRACE_EVERY >= SHORT_GRACE_EVERY - 1 else GRACE
        await one_moment(runtime, directory, moment, handler, grace, chance, drains)
    return drains


def section(ours: Drains, official: Drains | None, moments: int) -> Section:
    """The rows and the table of outcomes."""

    def both(what: str, promise: str, ask_one: "object") -> Row:
        assert callable(ask_one)
        return Row(what, promise, ask_one(ours), ask_one(official)) if official else Row(what, promise, ask_one(ours))

    at = f"SIGTERM at {moments} random moments: "
    rows = [
        both(f"{at}truncated answers", "0", lambda drains: _of(drains, TRUNCATED)),
        both(f"{at}accepted requests and tasks lost without a word", "0", lambda drains: _of(drains, LOST)),
        both(f"{at}processes that had to be killed", "0", lambda drains: str(drains.killed)),
        both(f"time to exit, work of up to {LONGEST_WORK:g} s", "", lambda drains: _times(drains, GRACE)),
        both(f"time to exit, a grace of {SHORT_GRACE:g} s (the official SDK has none)", "", _short_times),
    ]
    kinds = ("unary", "stream", "task", "socket", "background task")
    body = []
    for name, drains in {"ours": ours, "official SDK": official}.items():
        if drains is not None:
            body += [[name, kind, *(str(drains.number(outcome, kind)) for outcome in OUTCOMES)] for kind in kinds]
    details = table(["runtime", "kind", *OUTCOMES], body)
    if official is not None and official.examples:
        details += "\n\nOf the official SDK's, for example:\n\n" + "\n".join(
            f"- {example}" for example in official.examples[:5]
        )
    broken = list(ours.examples)
    if ours.killed:
        broken.append(f"{ours.killed} processes had to be killed")
    return Section("drain", rows, details, broken)


def _of(drains: Drains, outcome: str) -> str:
    return f"{drains.number(outcome)} of {drains.total()}"


def _times(drains: Drains, grace: float) -> str:
    seconds = drains.seconds.get(grace, [])
    return f"median {statistics.median(seconds):.2f} s, max {max(seconds):.2f} s" if seconds else "none ended"


def _short_times(drains: Drains) -> str:
    return _times(drains, SHORT_GRACE)


async def run(runtimes: Sequence[Runtime], directory: Path, *, short: bool) -> Section:
    """End servers of each runtime."""
    moments = SHORT_MOMENTS if short else MOMENTS
    found = {runtime.official: await drains_of(runtime, directory, moments) for runtime in runtimes}
    return section(found[False], found.get(True), moments)
