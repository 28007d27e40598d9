"""The two runtimes, each serving the same agent in a process of its own."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.benchmarks import environments
from tests.benchmarks.servers import free_port, wait_for_ping

AGENT = Path(__file__).with_name("agent.py")

IMPORT, OFFICIAL_IMPORT = "from litestar_agentcore import ", "from bedrock_agentcore.runtime import "

LOG_NOISE = re.compile(r"^(INFO:|\s|$)|Invocation completed|Started server process|Finished server process")
"""Lines that say that nothing is wrong, in uvicorn's form and the official SDK's."""


@dataclass(frozen=True)
class Runtime:
    """What is asked."""

    name: str
    python: Path
    official: bool = False

    def write_agent(self, directory: Path) -> Path:
        source = AGENT.read_text()
        file = directory / f"agent_{self.name.replace(' ', '_')}.py"
        file.write_text(source.replace(IMPORT, OFFICIAL_IMPORT) if self.official else source)
        return file


OURS = Runtime("ours", Path(sys.executable))


def official_sdk() -> Runtime:
    """The official SDK, in an environment of its own, which is made where it is not there yet."""
    return Runtime("official SDK", environments.python_peer(), official=True)


@dataclass
class Served:
    """A server that runs."""

    runtime: Runtime
    port: int
    process: "subprocess.Popen[bytes]"
    log: Path
    journal: Path
    ended_after: float | None = None
    _read: int = field(default=0)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def journalled(self, what: str) -> set[str]:
        """The ids of what has begun, or is done."""
        lines = self.journal.read_text().splitlines() if self.journal.exists() else []
        return {identity for name, _, identity in (line.partition(" ") for line in lines) if name == what}

    def most_at_once(self) -> int:
        """How many invocations were under way at the same time, at the most."""
        running, most = set(), 0
        for line in self.journal.read_text().splitlines():
            what, _, identity = line.partition(" ")
            if what == "begun":
                running.add(identity)
                most = max(most, len(running))
            elif what == "done":
                running.discard(identity)
        return most

    def new_complaints(self) -> list[str]:
        """What was logged since this was asked last, at WARNING or above, a line each."""
        text = self.log.read_bytes()
        new, self._read = text[self._read :], len(text)
        return complaints(new.decode(errors="replace"))

    def resident_bytes(self) -> int:
        return int(self._proc("statm").split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def threads(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/task").iterdir()))

    def files(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def cpu_seconds(self) -> float:
        fields = self._proc("stat").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _proc(self, name: str) -> str:
        return Path(f"/proc/{self.pid}/{name}").read_text()

    def terminate(self, patience: float) -> float | None:
        """Send SIGTERM and wait; give the seconds that it took, or ``None`` where it had to be killed."""
        began = time.monotonic()
        self.process.terminate()
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            return None
        return time.monotonic() - began


def complaints(log: str) -> list[str]:
    """The messages of a log at WARNING or above; of a line that is no JSON, whatever is not known to be harmless."""
    found = []
    for line in log.splitlines():
        try:
            entry: Any = json.loads(line)
        except ValueError:
            entry = None
        if isinstance(entry, dict):
            if entry.get("level") in {"WARNING", "ERROR", "CRITICAL"}:
                error = entry.get("errorType")
                found.append(f"{entry['message']}{f' ({error})' if error else ''}")
        elif not LOG_NOISE.search(line):
            found.append(line)
    return found


@contextmanager
def serve(runtime: Runtime, directory: Path, workers: int = 1, **environment: str) -> Iterator[Served]:
    """Serve the agent until the block ends; then everything that it has started is ended.

    Args:
        runtime: By what it is served.
        directory: For the agent's file, its log and its journal.
        workers: Processes; several are uvicorn's.
        **environment: Variables for it.
    """
    file, port = runtime.write_agent(directory), free_port()
    log, journal = directory / f"{port}.log", directory / f"{port}.journal"
    own = {"JOURNAL": str(journal)} | environment
    command: list[str | Path] = [file, str(port)]
    if workers > 1:
        options = ["--port", str(port), "--workers", str(workers), "--no-access-log"]
        command = ["-m", "uvicorn", f"{file.stem}:app", *options]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [runtime.python, *command],
            cwd=directory,
            env=environments.base_environment() | {name: value for name, value in own.items() if value},
            stdout=output,
            stderr=output,
            start_new_session=True,  # so that what it forks can be ended with it
        )
    served = Served(runtime, port, process, log, journal)
    try:
        wait_for_ping(port, process)
        served.new_complaints()
        yield served
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
