"""Processes with mounts, a network and process numbers of their own."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.cluster.local.errors import ClusterError

PATIENCE = 180.0
"""Seconds after which what should have happened long ago counts as not happening."""


class Namespace:
    """Namespaces that one process holds, as the pause container holds a pod's.

    When that process ends, which it does with the one that made it, however that ends, the kernel ends all others in
    there and takes back their mounts, interfaces and packet filters.

    Args:
        name: What it is called.
        pause: The program of the process.
        logs: Where the others write.
    """

    def __init__(self, name: str, pause: Path, logs: Path) -> None:
        self.name = name
        self._logs = logs
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        unshare = ["unshare", "--mount", "--net", "--pid", "--mount-proc", "--fork", "--kill-child"]
        self._holder = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *unshare, pause], start_new_session=True)
        self.until(lambda: bool(self._children()), "its first process")
        (self.pid,) = self._children()
        # What the first process does last before it becomes `pause`.
        self.until(lambda: Path(f"/proc/{self.pid}/exe").resolve() == pause.resolve(), "its namespaces")
        self.run("ip", "link", "set", "lo", "up")

    def run(self, *command: str | Path, stdin: bytes | None = None) -> str:
        """What a command prints in there, which must succeed."""
        return run(*enter(self.pid), *command, stdin=stdin)

    def start(self, *command: str | Path) -> None:
        """Start what runs in there until the end."""
        name = Path(command[0]).name
        with (self._logs / f"{self.name}-{name}.log").open("wb") as log:
            self._processes[name] = subprocess.Popen(
                [*enter(self.pid), *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for something, as long as everything runs that was started.

        Args:
            condition: Whether it is there.
            what: What it is.

        Raises:
            ClusterError: If it takes too long, or a process ended.
        """
        deadline = time.monotonic() + PATIENCE
        while not condition():
            self.check()
            if time.monotonic() > deadline:
                raise ClusterError(f"{self.name} waited {PATIENCE:g} s for {what}\n{self._ends_of_logs()}")
            time.sleep(0.2)

    def check(self) -> None:
        """See that everything runs.

        Raises:
            ClusterError: If something does not.
        """
        for name, process in {"pause": self._holder, **self._processes}.items():
            if process.poll() is not None:
                raise ClusterError(f"{self.name}: {name} ended with {process.returncode}\n{self._ends_of_logs()}")

    def stop(self) -> None:
        """End everything in there."""
        self._holder.kill()
        for process in (self._holder, *self._processes.values()):
            process.wait()

    def _children(self) -> list[int]:
        pid = self._holder.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def _ends_of_logs(self) -> str:
        logs = sorted(self._logs.glob(f"{self.name}-*.log"))
        return "\n".join(f"{log}:\n{log.read_text(errors='replace')[-1500:]}" for log in logs)


def enter(pid: int) -> list[str]:
    """The command that runs another one in the namespaces of a process."""
    return ["nsenter", f"--target={pid}", "--mount", "--net", "--pid", "--"]


def run(*command: str | Path, stdin: bytes | None = None) -> str:
    """What a command prints.

    Raises:
        ClusterError: If it is not there, fails, or takes too long.
    """
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, timeout=PATIENCE, check=False)
    except FileNotFoundError:
        raise ClusterError(f"`{command[0]}` is not there") from None
    except subprocess.TimeoutExpired:
        raise ClusterError(f"{' '.join(map(str, command))}\ntook more than {PATIENCE:g} s") from None
    if done.returncode:
        raise ClusterError(f"{' '.join(map(str, command))}\n{(done.stdout + done.stderr).decode(errors='replace')}")
    return done.stdout.decode()
