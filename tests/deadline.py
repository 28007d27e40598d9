"""A limit for what may hang."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Let the test fail if the block takes longer, whatever it waits for. In the main thread alone."""

    def expire(*_: object) -> None:
        pytest.fail(f"it hangs: {seconds:g} s have passed")

    previous = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
