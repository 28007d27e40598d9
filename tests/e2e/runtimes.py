"""The reference runtime and ours: the same sources, each in a Python of its own."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from tests.ports import free_ports as free_ports

HERE = Path(__file__).parent
ROOT = HERE.parent.parent

START_SECONDS = 60.0


def ported(source: str) -> str:
    """What its author does to move an agent here."""
    return source.replace("from bedrock_agentcore.runtime import ", "from litestar_agentcore import ")


class Runtime(msgspec.Struct, frozen=True):
    name: str
    python: Path

    @property
    def is_reference(self) -> bool:
        return self.name == "reference"

    @property
    def environment(self) -> dict[str, str]:
        foreign = ("AGENTCORE_", "PYTEST_", "PYTHON", "DOCKER_CONTAINER", "KUBERNETES_")
        return {name: value for name, value in os.environ.items() if not name.startswith(foreign)}

    def write_agent(self, template: Path, directory: Path) -> Path:
        source = template.read_text()
        file = directory / template.with_suffix("").name
        file.write_text(source if self.is_reference else ported(source))
        return file

    def run(self, *arguments: str, directory: Path) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [self.python, *arguments], cwd=directory, env=self.environment, capture_output=True, text=True, timeout=120
        )

    @contextmanager
    def serve(self, file: Path, *arguments: str, ports: list[int], **environment: str) -> Iterator[None]:
        """Run a Python file until it listens on all of its ports, and end it afterwards."""
        log = file.with_suffix(".log")
        with log.open("w") as output:
            process = subprocess.Popen(
                [self.python, file.name, *arguments],
                cwd=file.parent,
                env={**self.environment, **environment},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            deadline = time.monotonic() + START_SECONDS
            for port in ports:
                while not listens(port):
                    assert process.poll() is None, log.read_text()
                    assert time.monotonic() < deadline, f"Nothing listens on port {port}: {log.read_text()}"
                    time.sleep(0.02)
            yield
        finally:
            process.kill()
            process.wait()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


OURS = Runtime("ours", Path(sys.executable))
