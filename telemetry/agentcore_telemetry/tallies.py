"""Counts of what happens, kept so that keeping them costs next to nothing.

They become metrics of ``prometheus_client`` at each scrape. Its own counters and histograms take a lock, check and look
up for each update; here a request takes one lock when it begins and one when it ends.
"""

from bisect import bisect_left
from collections.abc import Sequence
from threading import Lock
from time import time

Example = tuple[int, float, float]
"""A duration of which one knows the trace: its id, how many seconds it took, and when, in seconds since the epoch."""


class Durations:
    """A histogram without its lock.

    Args:
        bounds: The upper bounds of its buckets, in seconds.
    """

    __slots__ = ("bounds", "counts", "exemplars", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = [*bounds, float("inf")]
        self.counts = [0] * len(self.bounds)
        """How many durations fell into each bucket, and into none below it."""
        self.exemplars: list[Example | None] = [None] * len(self.bounds)
        self.sum = 0.0

    def observe(self, seconds: float, trace_id: int | None) -> None:
        """Count a duration.

        Args:
            seconds: How long it was.
            trace_id: The trace that it belongs to, where that can be found.
        """
        index = bisect_left(self.bounds, seconds)
        self.counts[index] += 1
        self.sum += seconds
        if trace_id is not None:
            self.exemplars[index] = (trace_id, seconds, time())


class Tally:
    """A number that goes up, and perhaps down."""

    __slots__ = ("_lock", "value")

    def __init__(self) -> None:
        self._lock = Lock()
        self.value = 0

    def add(self, difference: int = 1) -> None:
        """Change it, from any thread.

        Args:
            difference: By how much.
        """
        with self._lock:
            self.value += difference


class InvocationTallies:
    """What is counted of invocations.

    Args:
        modes: The ways of answering.
        outcomes: The ways of ending.
        bounds: The upper bounds of the buckets of durations, in seconds.
    """

    def __init__(self, modes: Sequence[str], outcomes: Sequence[str], bounds: Sequence[float]) -> None:
        self.lock = Lock()
        """Held by who reads or changes any of the numbers."""
        self.in_progress = 0
        self.sent_chunks = 0
        # All of them from the beginning: a series that starts at 0 can be rated.
        self.ended = {(mode, outcome): 0 for mode in modes for outcome in outcomes}
        self.durations = {mode: Durations(bounds) for mode in modes}
        self.first_chunks = Durations(bounds)

    def begin(self) -> None:
        """Count an invocation that has come."""
        lock = self.lock
        lock.acquire()  # which takes half as long as ``with``, and here nothing can raise
        self.in_progress += 1
        lock.release()

    def chunks(self, count: int) -> None:
        """Count events that were sent.

        Args:
            count: How many.
        """
        with self.lock:
            self.sent_chunks += count

    def first_chunk(self, seconds: float, trace_id: int | None) -> None:
        """Count a stream's first event.

        Args:
            seconds: How long after the request it was sent.
            trace_id: The trace of the invocation, where that can be found.
        """
        with self.lock:
            self.first_chunks.observe(seconds, trace_id)

    def end(self, mode: str, outcome: str, seconds: float, trace_id: int | None) -> None:
        """Count an invocation that has ended.

        Args:
            mode: How it was answered.
            outcome: How it ended.
            seconds: How long it took.
            trace_id: Its trace, where that can be found.
        """
        durations = self.durations[mode]
        ended = mode, outcome
        lock = self.lock
        lock.acquire()
        try:
            self.in_progress -= 1
            self.ended[ended] += 1
            durations.observe(seconds, trace_id)
        finally:
            lock.release()


class TaskTallies:
    """What is counted of background tasks.

    Args:
        names: How many names of tasks are told apart; the rest is counted under ``other``.
        bounds: The upper bounds of the buckets of durations, in seconds.
    """

    def __init__(self, names: int, bounds: Sequence[float]) -> None:
        self.lock = Lock()
        """Held by who reads or changes any of the numbers."""
        self._names = names
        self._bounds = bounds
        self.finished: dict[tuple[str, str], int] = {}
        self.durations: dict[str, Durations] = {}

    def end(self, name: str, outcome: str, seconds: float, trace_id: int | None) -> None:
        """Count a task that has ended, from any thread.

        Args:
            name: What it was called.
            outcome: How it ended.
            seconds: How long it took.
            trace_id: Its trace, where that can be found.
        """
        with self.lock:
            if name not in self.durations and len(self.durations) - ("other" in self.durations) >= self._names:
                name = "other"
            durations = self.durations.get(name)
            if durations is None:
                durations = self.durations[name] = Durations(self._bounds)
            self.finished[name, outcome] = self.finished.get((name, outcome), 0) + 1
            durations.observe(seconds, trace_id)
