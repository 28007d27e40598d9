"""A backend's process: started with a log of its own, waited for, and ended whatever becomes of the test."""

import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import httpx

T = TypeVar("T")

START_SECONDS = 120.0
PATIENCE = 30.0
"""Seconds after which what should have happened long ago counts as not happening."""


@contextmanager
def running(command: Sequence[str | Path], log: Path, ready: str) -> "Iterator[subprocess.Popen[bytes]]":
    """Run a server from the moment when it is ready until the test is through.

    Args:
        command: What starts it.
        log: The file that its output is added to.
        ready: The URL that it answers with 200 once it is ready.
    """
    with log.open("a") as output:
        process = subprocess.Popen(command, cwd=log.parent, stdout=output, stderr=subprocess.STDOUT)
    try:
        _wait_until_ready(process, log, ready)
        yield process
    finally:
        process.kill()
        process.wait()


def _wait_until_ready(process: "subprocess.Popen[bytes]", log: Path, ready: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    with httpx.Client(timeout=PATIENCE, trust_env=False) as client:
        while True:
            try:
                if client.get(ready).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)


def once_complete(find: Callable[[], Sequence[T]], number: int, what: str) -> Sequence[T]:
    """What is found, once it is so many."""
    deadline = time.monotonic() + PATIENCE
    while len(found := find()) < number:
        assert time.monotonic() < deadline, f"{len(found)} of {number} {what} have arrived"
        time.sleep(0.1)
    return found
