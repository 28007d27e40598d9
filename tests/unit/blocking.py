"""What the tests of loops and threads share: calls that block until they are let go, and a look at the threads."""

import asyncio
import threading
import time
from collections.abc import Callable

PATIENCE = 10.0
"""Seconds after which what should have happened long ago counts as not happening."""


def eventually(condition: Callable[[], object]) -> None:
    """Wait, blocking, until a condition holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.002)


def cancel_all_before_their_first_step(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel the tasks that another thread makes while this holds the loop, as a handler in the same turn may do."""
    eventually(lambda: asyncio.all_tasks(loop))
    for task in asyncio.all_tasks(loop):
        task.cancel()


def here() -> str:
    """The name of the current thread."""
    return threading.current_thread().name


class Block:
    """A call that blocks its thread until it is released."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.since = 0.0
        """When it began to block, in monotonic seconds."""
        self._released = threading.Event()

    def __call__(self) -> str:
        """Block; gives the name of the thread."""
        self.since = time.monotonic()
        self.entered.set()
        assert self._released.wait(PATIENCE), "nobody released it"
        return here()

    def wait_until_entered(self) -> None:
        assert self.entered.wait(PATIENCE), "it was never called"

    def release(self) -> None:
        self._released.set()


class NewThreads:
    """The threads that were started since this was made."""

    def __init__(self) -> None:
        self._before = set(threading.enumerate())

    def alive(self, prefix: str = "") -> list[str]:
        """The names of those that are alive and whose names begin so."""
        names = (thread.name for thread in set(threading.enumerate()) - self._before)
        return sorted(name for name in names if name.startswith(prefix))
