"""What metrics are recorded with: counters, histograms, and callbacks that are called at each scrape.

The counters and histograms of ``prometheus_client`` take a lock and look up their labels for each update. Here an
invocation takes one lock when it begins and one when it ends, and what was counted becomes metrics at the scrape.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from time import time

Exemplar = tuple[int, float, float]
"""The trace id of an observation, its value in seconds, and its time in seconds since the epoch."""


@dataclass(kw_only=True, slots=True)
class ScrapeCallbacks:
    """Functions that a scrape calls for what need not be counted. None of them may block."""

    active_tasks: Callable[[], int]
    """How many background tasks are active."""

    ping_status: Callable[[], str]
    """The status that ``/ping`` gives: ``Healthy`` or ``HealthyBusy``."""

    status_changed_at: Callable[[], float]
    """When that status last changed, in seconds since the epoch."""

    event_loop_lag: Callable[[], float]
    """For how many seconds the agent's event loop has not turned; 0 where it waits for something to do."""

    handler_threads: Callable[[], tuple[int, int]]
    """How many threads of plain and await-less handlers are running, and how many are parked by slow clients."""

    sync_queue_length: Callable[[], int]
    """How many plain invocations wait for a thread."""

    sessions: Callable[[], int] = lambda: 0
    """For how many sessions something runs, or which are kept."""

    invocations_waiting: Callable[[], int] = lambda: 0
    """How many invocations wait for a place."""

    spans_dropped: Callable[[], int] = lambda: 0
    """How many spans never reached the tracing backend."""


class Counter:
    """A number that any thread may add to. With negative amounts it serves as a gauge."""

    __slots__ = ("_lock", "value")

    def __init__(self) -> None:
        self._lock = Lock()
        self.value = 0

    def add(self, amount: int = 1) -> None:
        """Add to the number.

        Args:
            amount: How much; below 0 to take away.
        """
        with self._lock:
            self.value += amount


class Histogram:
    """A histogram with exemplars, without a lock: its owner holds one.

    Args:
        bounds: The upper bounds of the buckets, in seconds, rising.
    """

    __slots__ = ("bounds", "counts", "exemplars", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = [*bounds, float("inf")]
        self.counts = [0] * len(self.bounds)
        """The number of observations in each bucket alone, not cumulative."""
        self.exemplars: list[Exemplar | None] = [None] * len(self.bounds)
        """The last observation of each bucket that has a trace id."""
        self.sum = 0.0

    def observe(self, seconds: float, trace_id: int | None) -> None:
        """Add an observation.

        Args:
            seconds: Its value.
            trace_id: The trace that it belongs to, where that is sampled.
        """
        index = bisect_left(self.bounds, seconds)
        self.counts[index] += 1
        self.sum += seconds
        if trace_id is not None:
            self.exemplars[index] = (trace_id, seconds, time())


class InvocationMetrics:
    """The counters and histograms of invocations.

    Args:
        modes: The values of the label ``mode``.
        outcomes: The values of the label ``outcome``.
        bounds: The upper bounds of the histograms' buckets, in seconds.
    """

    def __init__(self, modes: Sequence[str], outcomes: Sequence[str], bounds: Sequence[float]) -> None:
        self.lock = Lock()
        """Guards all attributes, for reading too."""
        self.in_progress = 0
        self.sent_chunks = 0
        # All label values from the beginning: ``rate()`` misses the first increment of a series that starts at 1.
        self.finished = {(mode, outcome): 0 for mode in modes for outcome in outcomes}
        self.durations = {mode: Histogram(bounds) for mode in modes}
        self.time_to_first_chunk = Histogram(bounds)

    def begin(self) -> None:
        """Count an invocation as in progress."""
        lock = self.lock
        lock.acquire()  # takes half the time of ``with``, and nothing here can raise
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
        """Observe a stream's time to its first event.

        Args:
            seconds: The time since the request.
            trace_id: The invocation's trace, where that is sampled.
        """
        with self.lock:
            self.time_to_first_chunk.observe(seconds, trace_id)

    def end(self, mode: str, outcome: str, seconds: float, trace_id: int | None) -> None:
        """Count a finished invocation, which is no longer in progress.

        Args:
            mode: How it was answered.
            outcome: How it ended.
            seconds: Its duration.
            trace_id: Its trace, where that is sampled.
        """
        histogram = self.durations[mode]
        labels = mode, outcome
        lock = self.lock
        lock.acquire()
        try:
            self.in_progress -= 1
            self.finished[labels] += 1
            histogram.observe(seconds, trace_id)
        finally:
            lock.release()


class TaskMetrics:
    """The counters and histograms of background tasks.

    Args:
        max_names: How many values the label ``name`` may have; further names are counted as ``other``.
        bounds: The upper bounds of the histograms' buckets, in seconds.
    """

    def __init__(self, max_names: int, bounds: Sequence[float]) -> None:
        self.lock = Lock()
        """Guards all attributes, for reading too."""
        self._max_names = max_names
        self._bounds = bounds
        self.finished: dict[tuple[str, str], int] = {}
        self.durations: dict[str, Histogram] = {}

    def end(self, name: str, outcome: str, seconds: float, trace_id: int | None) -> None:
        """Count a finished task, from any thread.

        Args:
            name: Its name.
            outcome: How it ended.
            seconds: Its duration.
            trace_id: Its trace, where that is sampled.
        """
        with self.lock:
            if name not in self.durations and len(self.durations) - ("other" in self.durations) >= self._max_names:
                name = "other"
            histogram = self.durations.get(name)
            if histogram is None:
                histogram = self.durations[name] = Histogram(self._bounds)
            self.finished[name, outcome] = self.finished.get((name, outcome), 0) + 1
            histogram.observe(seconds, trace_id)
