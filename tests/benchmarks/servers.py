"""How servers are run: each on its core, in the background, until they are no longer needed."""

import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from tests.benchmarks.candidates import Candidate
from tests.benchmarks.environments import ROOT, base_environment
from tests.ports import free_port as free_port

START_SECONDS = 30.0
SPAN_DELAY_MILLISECONDS = 1000
"""How long a span waits for others: not the default of 5 s, lest one candidate's spans leave in another's round."""
REST_SECONDS = 5.0
"""After which a round begins though a server is still busy."""


class Cores(msgspec.Struct, frozen=True):
    """Which core does what; an empty set is any of them."""

    server: frozenset[int]
    load: frozenset[int]
    sink: frozenset[int]

    @classmethod
    def of_this_machine(cls) -> "Cores":
        available = sorted(os.sched_getaffinity(0))
        if len(available) < 2:
            return cls(frozenset(), frozenset(), frozenset())
        server, load, *more = available
        return cls(frozenset({server}), frozenset({load}), frozenset({more[0] if more else load}))


@contextmanager
def pinned(cores: frozenset[int]) -> Iterator[None]:
    """Have what is started here run on these cores: a child inherits them, and so do its threads."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores or before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class StartFailed(Exception):
    """A server did not come up. The message ends with what it said."""


class Server(msgspec.Struct, frozen=True):
    """A candidate that listens."""

    candidate: Candidate
    port: int
    process: "subprocess.Popen[bytes]"

    def wait_for_rest(self) -> None:
        """Return once the process hardly works any more: its last spans are exported, its last streams closed."""
        deadline = time.monotonic() + REST_SECONDS
        before = _cpu_seconds(self.process.pid)
        while time.monotonic() < deadline:
            time.sleep(0.1)
            now = _cpu_seconds(self.process.pid)
            if now - before <= 0.011:  # the kernel counts in hundredths
                return
            before = now


class Sink(msgspec.Struct, frozen=True):
    """The tracing backend."""

    port: int

    def spans_of(self, candidate: Candidate) -> int:
        """How many spans came since the last time that this was asked."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request("GET", f"/count?service={candidate.name}")
        number: int = json.loads(connection.getresponse().read())
        connection.close()
        return number


@contextmanager
def sink(cores: Cores, directory: Path) -> Iterator[Sink]:
    """Run the tracing backend."""
    port = free_port()
    with (directory / "sink.log").open("wb") as log, pinned(cores.sink):
        command = [sys.executable, "-m", "tests.benchmarks.sink", str(port)]
        process = subprocess.Popen(command, cwd=ROOT, env=base_environment(), stdout=log, stderr=log)
    try:
        wait_for_ping(port, process)
        yield Sink(port)
    finally:
        end(process)


@contextmanager
def serve(
    candidate: Candidate, command: Sequence[str], handler: str, cores: Cores, log: Path, backend: Sink
) -> Iterator[Server]:
    """Run a candidate until it answers ``/ping``, and end it afterwards."""
    port, process = start(candidate, command, handler, cores, log, backend)
    try:
        try:
            wait_for_ping(port, process)
        except StartFailed as error:
            raise StartFailed(f"{error}: {log.read_text()[-2000:]}") from None
        yield Server(candidate, port, process)
    finally:
        end(process)


def start(
    candidate: Candidate, command: Sequence[str], handler: str, cores: Cores, log: Path, backend: Sink
) -> "tuple[int, subprocess.Popen[bytes]]":
    """Start a candidate on a free port, and return the port and the process."""
    port = free_port()
    environment = base_environment() | candidate.environment
    if candidate.traced:
        environment |= {
            "OTEL_SERVICE_NAME": candidate.name,
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{backend.port}",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_TRACES_EXPORTER": "otlp",
            "OTEL_METRICS_EXPORTER": "none",  # ours are scraped; without theirs, a peer has less to do
            "OTEL_LOGS_EXPORTER": "none",
            "OTEL_BSP_SCHEDULE_DELAY": str(SPAN_DELAY_MILLISECONDS),
        }
    with log.open("wb") as output, pinned(cores.server):
        process = subprocess.Popen(
            [*command, str(port), handler], cwd=log.parent, env=environment, stdout=output, stderr=output
        )
    return port, process


def end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()


def wait_for_ping(port: int, process: "subprocess.Popen[bytes]", every: float = 0.01) -> None:
    """Return as soon as ``/ping`` is answered with 200."""
    deadline = time.monotonic() + START_SECONDS
    while not _pings(port):
        if process.poll() is not None:
            raise StartFailed(f"the server ended with {process.returncode}")
        if time.monotonic() > deadline:
            raise StartFailed(f"the server did not answer within {START_SECONDS:.0f} s")
        time.sleep(every)


def _pings(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/ping")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
