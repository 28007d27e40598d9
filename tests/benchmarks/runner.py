"""In which order things are measured: candidates in turn, so that a change of the machine's pace meets all of them."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec

from tests.benchmarks import loads
from tests.benchmarks.candidates import LOADS, Candidate
from tests.benchmarks.invocation import WrongAnswer
from tests.benchmarks.results import Key, Results, Round
from tests.benchmarks.servers import (
    SPAN_DELAY_MILLISECONDS,
    Cores,
    Server,
    Sink,
    StartFailed,
    end,
    serve,
    sink,
    start,
    wait_for_ping,
)

WARM_UP_SECONDS = 0.7
MANY = 1000
"""Invocations at once, where it is their number that is tried."""


class Plan(msgspec.Struct, frozen=True):
    """What is to be measured."""

    candidates: Sequence[Candidate]
    loads: Sequence[str] = LOADS
    concurrency: Sequence[int] = (1, 32, 256)
    rounds: int = 5
    seconds: float = 1.2
    open_seconds: float = 3.0
    """How long streams stay open once all of them have begun."""


class Runner:
    """Carries a plan out.

    Args:
        plan: What is to be measured.
        directory: For the agents and logs of the servers.
    """

    def __init__(self, plan: Plan, directory: Path) -> None:
        self.plan = plan
        self.cores = Cores.of_this_machine()
        self.results = Results()
        self._directory = directory
        self._commands: dict[str, Sequence[str]] = {}

    def run(self) -> Results:
        """Measure everything."""
        measure: dict[str, Callable[[str, Sink], None]] = {
            "sleepers": self._sleepers,
            "open-streams": self._open_streams,
            "cold-start": self._cold_start,
        }
        with sink(self.cores, self._directory) as backend:
            for load in self.plan.loads:
                measure.get(load, self._throughput)(load, backend)
        return self.results

    def _throughput(self, load: str, backend: Sink) -> None:
        with self._all_served(load, backend) as servers:
            for server in servers:
                loads.drive(load, server, 32, WARM_UP_SECONDS, self.cores)
                server.wait_for_rest()
            for connections in self.plan.concurrency:
                self._forget_spans(servers, backend)
                for server in self._in_turn(servers, f"{load}, {connections} connections"):
                    measured = loads.drive(load, server, connections, self.plan.seconds, self.cores)
                    self.results.add(Key(load, connections, server.candidate.name), measured)
                self._count_spans(load, connections, servers, backend)

    def _sleepers(self, load: str, backend: Sink) -> None:
        with self._all_served(load, backend) as servers:
            for server in servers:
                loads.drive(load, server, 32, 0, self.cores)
            for server in self._in_turn(servers, load):
                measured = loads.drive(load, server, MANY, 0, self.cores)
                self.results.add(Key(load, MANY, server.candidate.name), measured)

    def _open_streams(self, load: str, backend: Sink) -> None:
        for _ in self._rounds(load):
            for candidate in self._able(load):
                # A new process each time: memory that the last thousand streams have left behind would serve the next.
                with self._served(candidate, load, backend) as server:
                    if server is not None:
                        loads.drive(load, server, 1, 1, self.cores)
                        measured = loads.drive(load, server, MANY, self.plan.open_seconds, self.cores)
                        self.results.add(Key(load, MANY, candidate.name), measured)

    def _cold_start(self, load: str, backend: Sink) -> None:
        with self._all_served(load, backend) as servers:  # once, so that files are cached and compiled
            able = [server.candidate for server in servers]
        for _ in self._rounds(load):
            for candidate in able:
                log = self._directory / candidate.name / "cold-start.log"
                began = time.monotonic()
                port, process = start(candidate, self._command(candidate), "unary-async", self.cores, log, backend)
                try:
                    wait_for_ping(port, process, every=0.002)
                    took = time.monotonic() - began
                finally:
                    end(process)
                self.results.add(Key(load, 1, candidate.name), Round({"seconds": took}, 1))

    @contextmanager
    def _all_served(self, load: str, backend: Sink) -> Iterator[list[Server]]:
        with ExitStack() as stack:
            servers = (stack.enter_context(self._served(each, load, backend)) for each in self._able(load))
            yield [server for server in servers if server is not None]

    @contextmanager
    def _served(self, candidate: Candidate, load: str, backend: Sink) -> Iterator[Server | None]:
        """A candidate that does what it is measured at; none where it does not, and then the results say why."""
        with ExitStack() as stack:
            handler = "unary-async" if load == "cold-start" else load
            log = self._directory / candidate.name / f"{load}.log"
            server = None
            try:
                command = self._command(candidate)
                server = stack.enter_context(serve(candidate, command, handler, self.cores, log, backend))
                loads.check(load, server.port)
            except (StartFailed, WrongAnswer) as error:
                self.results.refused[load, candidate.name] = str(error)
                tell(f"{load}: {candidate.name} is not measured: {error}")
                server = None
            yield server

    def _command(self, candidate: Candidate) -> Sequence[str]:
        if candidate.name not in self._commands:
            directory = self._directory / candidate.name
            directory.mkdir()
            self._commands[candidate.name] = candidate.prepare(directory)
        return self._commands[candidate.name]

    def _able(self, load: str) -> list[Candidate]:
        refused = self.results.refused
        return [each for each in self.plan.candidates if load in each.loads and (load, each.name) not in refused]

    def _in_turn(self, servers: list[Server], what: str) -> Iterator[Server]:
        for _ in self._rounds(what):
            for server in servers:
                yield server
                server.wait_for_rest()

    def _rounds(self, what: str) -> Iterator[int]:
        for number in range(self.plan.rounds):
            tell(f"{what}: round {number + 1} of {self.plan.rounds}")
            yield number

    def _forget_spans(self, servers: list[Server], backend: Sink) -> None:
        if traced := [server.candidate for server in servers if server.candidate.traced]:
            time.sleep(1.2 * SPAN_DELAY_MILLISECONDS / 1000)
            for candidate in traced:
                backend.spans_of(candidate)

    def _count_spans(self, load: str, connections: int, servers: list[Server], backend: Sink) -> None:
        if traced := [server.candidate for server in servers if server.candidate.traced]:
            time.sleep(1.2 * SPAN_DELAY_MILLISECONDS / 1000)
            for candidate in traced:
                key = Key(load, connections, candidate.name)
                # At the end of each round, every connection has an invocation under way, which leaves its spans too.
                begun = sum(each.answers + connections for each in self.results.rounds[key])
                self.results.spans[key] = backend.spans_of(candidate) / begun


def tell(what: str) -> None:
    print(what, file=sys.stderr, flush=True)
