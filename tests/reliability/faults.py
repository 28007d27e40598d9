"""A handler, a client or a backend does what it should not, and the others are watched meanwhile."""

import asyncio
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tests.benchmarks.environments import ROOT, base_environment
from tests.benchmarks.servers import end, free_port, wait_for_ping
from tests.reliability.client import Neighbours, ask, described, head, invocation, state
from tests.reliability.report import Row, Section, milliseconds, table
from tests.reliability.servers import OURS, Runtime, Served, serve

ASYNC_FAULTS = (
    "raises",
    "calls sys.exit",
    "raises KeyboardInterrupt",
    "raises CancelledError",
    "raises GeneratorExit",
    "cancels its own task",
    "deletes its own task",
    "hangs",
    "blocks for a second",
    "leaks 100 tasks",
    "leaves a task that calls sys.exit",
    "leaves a callback that calls sys.exit",
    "eats its cancellation",
    "stops its loop",
    "closes its loop",
    "closes its stopped loop from a thread",
    "forks, and the child exits",
    "forks, and the child returns",
    "uses multiprocessing (fork)",
    "recurses without end",
    "returns what is nested too deep",
    "has json recurse in C",
)
PLAIN_FAULTS = (
    "raises",
    "calls sys.exit",
    "raises KeyboardInterrupt",
    "raises CancelledError",
    "hangs",
    "blocks for a second",
    "forks, and the child exits",
    "forks, and the child returns",
    "uses multiprocessing (fork)",
    "recurses without end",
    "returns what is nested too deep",
    "has json recurse in C",
)
FATAL_FAULT = "overflows the C stack"
"""Ends a process, whatever serves in it."""

LEAVING = {"hangs": 0.5, "eats its cancellation": 0.3}
"""After how many seconds the client of a fault gives it up; else it waits for longer than any takes."""

CUTS = (
    "before the headers are whole",
    "in the body",
    "while it waits",
    "in a stream",
    "in the WebSocket handshake",
    "in a WebSocket conversation",
)

PATIENCE, SHORT_PATIENCE = 15.0, 4.0
"""Seconds after which an answer counts as not coming; the short one where many are known not to come."""


@dataclass
class Outcome:
    """What one fault did."""

    kind: str
    fault: str
    client: str = ""
    asked: int = 0
    failures: list[str] = field(default_factory=list)
    longest: float = 0.0
    alive: bool = True
    complaints: list[str] = field(default_factory=list)
    patience: float = PATIENCE

    @property
    def harmless(self) -> bool:
        return self.alive and not self.failures

    def others(self) -> str:
        if not self.alive:
            return "the server died"
        if self.failures:
            return f"{len(self.failures)} of {self.asked} failed"
        return f"all {self.asked} right, longest {milliseconds(self.longest)}"

    def logged(self) -> str:
        if not self.complaints:
            return "nothing"
        first = self.complaints[0]
        return f"{len(self.complaints)} lines: {first[:90]}"


async def watch(served: Served, outcome: Outcome, times: int, once: Callable[[], "asyncio.Future[str]"]) -> Outcome:
    """Do something some times beside well-behaved clients, and see whether these and the server bear it."""
    neighbours = Neighbours(served.port, outcome.patience)
    neighbours.start()
    await asyncio.sleep(0.1)
    said = [await once() for _ in range(times)]
    await asyncio.sleep(1 if outcome.fault in LEAVING else 0.3)
    await neighbours.stop()
    outcome.client = said[0]
    outcome.asked, outcome.failures = neighbours.asked.total(), neighbours.failures
    outcome.longest = neighbours.longest
    outcome.alive = served.is_alive
    if outcome.alive:
        after = await ask(served.port, invocation(id="after"), outcome.patience)
        if after.status != 200:
            outcome.failures.append(f"afterwards: {described(after)}")
    outcome.complaints = served.new_complaints()
    return outcome


async def inject(served: Served, kind: str, fault: str, times: int) -> Outcome:
    """Have the handler do something that it should not."""
    patience = SHORT_PATIENCE if served.runtime.official else PATIENCE

    async def once() -> str:
        answer = await ask(
            served.port, invocation("faulty", do="fault", fault=fault, id=fault), LEAVING.get(fault, patience)
        )
        return described(answer)

    return await watch(served, Outcome(kind, fault, patience=patience), times, lambda: asyncio.ensure_future(once()))


def cut(port: int, where: str, reset: bool) -> str:
    """Leave in the middle, with FIN or with RST."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as line:
        whole = invocation("leaving", seconds=0.2, id="leaving")
        match where:
            case "before the headers are whole":
                line.sendall(whole[:40])
            case "in the body":
                line.sendall(whole[:-5])
            case "while it waits":
                line.sendall(whole)
            case "in a stream":
                line.sendall(invocation("leaving", do="stream", events=1000, seconds=1, id="leaving"))
                line.recv(64)
            case "in the WebSocket handshake":
                line.sendall(HANDSHAKE)
            case "in a WebSocket conversation":
                line.sendall(HANDSHAKE)
                line.recv(1024)
                line.sendall(MASKED_TEXT)
        if reset:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return "RST" if reset else "FIN"


WORKERS = 2
LOSS_SECONDS = 2.0
"""For how long requests may fail that a worker was serving when it died."""
WORKER_SECONDS = 30.0
"""Until a worker must have been replaced."""

HANDSHAKE = (
    head("GET", "/ws")
    .replace(b"Connection: close", b"Connection: Upgrade")
    .replace(
        b"\r\n\r\n",
        b"\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    )
)
MASKED_TEXT = b"\x81\x82\x00\x00\x00\x00hi"
"""A text frame from a client (RFC 6455, section 5.2), masked with zeros."""


async def leave(served: Served, where: str, times: int) -> Outcome:
    """Have clients leave in one state."""
    number = 0

    async def once() -> str:
        nonlocal number
        number += 1
        left = await asyncio.to_thread(cut, served.port, where, number % 2 == 0)
        await asyncio.sleep(0.01)
        return left

    outcome = await watch(served, Outcome("client", where), times, lambda: asyncio.ensure_future(once()))
    outcome.client = "FIN and RST by turns"
    if outcome.alive:
        await closed_generators(served, outcome)
    return outcome


async def closed_generators(served: Served, outcome: Outcome) -> None:
    """Wait until no generator is left open."""
    for _ in range(50):
        if (left := (await state(served.port))["generators"]) == 0:
            return
        await asyncio.sleep(0.1)
    outcome.failures.append(f"{left} generators were left open")


async def lose_worker(runtime: Runtime, directory: Path, how: str) -> Outcome:
    """Have one of two worker processes die under load; what it was doing is lost, and nothing else may be."""
    outcome = Outcome("worker", f"one of {WORKERS} workers {how}")
    with serve(runtime, directory, workers=WORKERS) as served:
        await worker_pids(served, WORKERS, set())
        served.new_complaints()
        neighbours = Neighbours(served.port, outcome.patience)
        neighbours.start()
        await asyncio.sleep(0.5)
        began = time.monotonic()
        victim = (await state(served.port))["pid"]
        if how == FATAL_FAULT:
            await ask(served.port, invocation(do="fault", fault=FATAL_FAULT, id="fatal"), outcome.patience)
        else:
            os.kill(victim, signal.SIGKILL)
        await asyncio.sleep(LOSS_SECONDS)
        lost = len(neighbours.failures)
        again = await worker_pids(served, WORKERS, {victim} if how != FATAL_FAULT else set())
        seconds = time.monotonic() - began
        await neighbours.stop()
        outcome.asked, outcome.failures = neighbours.asked.total(), neighbours.failures[lost:]
        outcome.longest, outcome.alive = neighbours.longest, served.is_alive
        outcome.client = f"{lost} that it was serving were lost, {len(again)} workers again within {seconds:.1f} s"
        if len(again) < WORKERS:
            outcome.failures.append("it was not replaced")
        if lost > neighbours.number:
            outcome.failures.append(f"{lost} were lost, and no more than {neighbours.number} were under way")
        died = [line for line in served.log.read_text(errors="replace").splitlines() if "died" in line]  # at INFO
        outcome.complaints = served.new_complaints() + died
    return outcome


async def worker_pids(served: Served, number: int, without: set[int]) -> set[int]:
    """Ask until that many workers have answered, or until that is not to be expected any more."""
    found: set[int] = set()
    deadline = time.monotonic() + WORKER_SECONDS
    while len(found) < number and time.monotonic() < deadline:
        answers = await asyncio.gather(*(ask(served.port, invocation(do="state"), 5) for _ in range(8)))
        found |= {answer.json()["pid"] for answer in answers if answer.status == 200} - without
        await asyncio.sleep(0.05)
    return found


def start_backend(directory: Path) -> "tuple[int, subprocess.Popen[bytes]]":
    port = free_port()
    with (directory / "sink.log").open("wb") as log:
        command = [sys.executable, "-m", "tests.benchmarks.sink", str(port)]
        process = subprocess.Popen(command, cwd=ROOT, env=base_environment(), stdout=log, stderr=log)
    wait_for_ping(port, process)
    return port, process


async def lose_backend(directory: Path) -> Outcome:
    """Have the OTLP backend go away under load. Ours alone: the official SDK sends nothing by itself."""
    outcome = Outcome("backend", "the OTLP backend dies")
    with ExitStack() as stack:
        port, backend = start_backend(directory)
        stack.callback(end, backend)
        served = stack.enter_context(
            serve(
                OURS,
                directory,
                OTEL_SERVICE_NAME="faults",
                OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{port}",
                OTEL_BSP_SCHEDULE_DELAY="100",
                OTEL_EXPORTER_OTLP_TIMEOUT="1",
            )
        )
        neighbours = Neighbours(served.port, PATIENCE)
        neighbours.start()
        for _ in range(100):
            if reached := (await ask(port, head("GET", "/count?service=faults"))).json():
                break
            await asyncio.sleep(0.05)
        end(backend)
        for _ in range(100):
            await asyncio.sleep(0.1)
            if outcome.complaints:
                break
            outcome.complaints = served.new_complaints()
        await neighbours.stop()
        outcome.alive = served.is_alive
        outcome.asked, outcome.failures = neighbours.asked.total(), neighbours.failures
        outcome.longest = neighbours.longest
        outcome.client = f"{reached} spans had come"
        if not reached:
            outcome.failures.append("no span had come before it died")
        if not outcome.complaints:
            outcome.failures.append("nothing was logged")
    return outcome


async def faults_of(
    runtime: Runtime, directory: Path, times: int, kinds: Sequence[str] = ("async", "plain"), *, fatal: bool = True
) -> list[Outcome]:
    """Inject every fault. A server that died, or that does not answer any more, is replaced."""
    outcomes: list[Outcome] = []
    for kind in kinds:
        left = list(ASYNC_FAULTS if kind == "async" else PLAIN_FAULTS)
        while left:
            with serve(runtime, directory, HANDLER=kind) as served:
                while left and (not outcomes or outcomes[-1].harmless or outcomes[-1].kind != kind):
                    outcomes.append(await inject(served, kind, left.pop(0), times))
                if not outcomes[-1].harmless and left:
                    outcomes.append(Outcome("", ""))  # begin anew
        if fatal:
            with serve(runtime, directory, HANDLER=kind) as served:
                outcomes.append(await inject(served, kind, FATAL_FAULT, 1))
    with serve(runtime, directory, AGENTCORE_STALL_SECONDS="10") as served:  # lest a busy machine be complained about
        outcomes += [await leave(served, where, 10 * times) for where in CUTS]
    ways = ("is killed with -9", FATAL_FAULT) if fatal else ("is killed with -9",)
    outcomes += [await lose_worker(runtime, directory, how) for how in ways]
    if not runtime.official:
        outcomes.append(await lose_backend(directory))
    return [outcome for outcome in outcomes if outcome.fault]


def broken(outcomes: Sequence[Outcome]) -> list[str]:
    """What hurt others, died, or went unlogged; of ours nothing may."""
    found = []
    for outcome in outcomes:
        name = f"{outcome.kind}: {outcome.fault}"
        if outcome.fault == FATAL_FAULT:
            continue
        if not outcome.alive:
            found.append(f"{name}: the server died")
        found += [f"{name}: {failure}" for failure in outcome.failures]
        if (
            outcome.kind in {"async", "plain"}
            and outcome.fault not in LEAVING
            and outcome.client.startswith("no answer")
        ):
            found.append(f"{name}: its client was told nothing ({outcome.client})")
        if outcome.kind == "client" and outcome.complaints:
            found.append(f"{name}: {outcome.complaints[0]}")
    return found


def section(ours: list[Outcome], official: list[Outcome]) -> Section:
    """The rows and the table of all faults."""
    known = {(outcome.kind, outcome.fault): outcome for outcome in official}
    rows = [
        Row("faults of a handler that hurt others, of " + str(len(_handlers(ours))), "0", _hurt(ours), _hurt(official)),
        Row("faults of a handler that ended the server", "0", _died(ours), _died(official)),
        Row("faults of a handler whose client was told nothing", "0", _untold(ours), _untold(official)),
        Row(
            "lines at WARNING or above for clients that left in the middle",
            "0",
            str(sum(len(outcome.complaints) for outcome in ours if outcome.kind == "client")),
            str(sum(len(outcome.complaints) for outcome in official if outcome.kind == "client")) if official else "",
        ),
        Row(
            "requests that failed after a worker's death, beside those that it was serving",
            "0",
            _after_loss(ours),
            _after_loss(official),
        ),
        Row(f"the server after a handler that {FATAL_FAULT}", "dies, as any process", _fatal(ours), _fatal(official)),
    ]
    body = []
    for outcome in ours:
        other = known.get((outcome.kind, outcome.fault))
        theirs = [other.client, other.others(), other.logged()] if other is not None else ["not asked", "", ""]
        body.append([outcome.kind, outcome.fault, outcome.client, outcome.others(), outcome.logged(), *theirs])
    headings = [
        "who",
        "fault",
        "its client",
        "the others",
        "logged",
        "SDK: its client",
        "SDK: the others",
        "SDK: logged",
    ]
    return Section("faults", rows, table(headings, body), broken(ours))


_SEEN = ("its client", "the others", "logged")


def _handlers(outcomes: Sequence[Outcome]) -> list[Outcome]:
    return [each for each in outcomes if each.kind in {"async", "plain"} and each.fault != FATAL_FAULT]


def _hurt(outcomes: Sequence[Outcome]) -> str:
    return str(sum(not each.harmless for each in _handlers(outcomes)))


def _died(outcomes: Sequence[Outcome]) -> str:
    return str(sum(not each.alive for each in _handlers(outcomes)))


def _untold(outcomes: Sequence[Outcome]) -> str:
    return str(sum(map(_is_untold, _handlers(outcomes))))


def _after_loss(outcomes: Sequence[Outcome]) -> str:
    return str(sum(len(each.failures) for each in outcomes if each.kind == "worker"))


def _is_untold(outcome: Outcome) -> bool:
    return outcome.fault not in LEAVING and outcome.client.startswith("no answer")


def _fatal(outcomes: Sequence[Outcome]) -> str:
    fatal = [each for each in outcomes if each.fault == FATAL_FAULT]
    return ", ".join(f"{each.kind}: {'died' if not each.alive else 'lives'}" for each in fatal)


async def run(runtimes: Sequence[Runtime], directory: Path, *, short: bool) -> Section:
    """Inject every fault into each runtime."""
    found: dict[bool, list[Outcome]] = {False: [], True: []}
    for runtime in runtimes:
        found[runtime.official] = await faults_of(runtime, directory, 1 if short else 3, fatal=not short)
    return section(found[False], found[True])
