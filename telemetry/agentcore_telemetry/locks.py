"""Locks that hold across a fork."""

import os
import threading
from types import TracebackType


class ForkSafeLock:
    """A reentrant lock for the life of the process, which is free in a forked process.

    ``acquire`` and ``release`` are those of :class:`threading.RLock`.
    """

    def __init__(self) -> None:
        self._renew()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        lock = threading.RLock()
        self.acquire = lock.acquire
        self.release = lock.release

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        self.release()
