"""What metrics are recorded with: counters, gauges and histograms, and callbacks that are called at each scrape.

The counters and histograms of ``prometheus_client`` take a lock and look up their labels for each update. Here an
invocation takes one lock when it begins and one when it ends, and what was counted becomes metrics at the scrape.

The numbers of a series are a list; where several worker processes serve one agent they are a view of a mapped file,
which the others read (see :mod:`agentcore_telemetry.mapped_series`). The code that counts is the same.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, MutableSequence, Sequence
from dataclasses import dataclass
from operator import add, itemgetter
from threading import Lock
from time import time
from typing import Any, Literal, NamedTuple, Protocol

Exemplar = tuple[int, float, float]
"""The trace id of an observation, its value in seconds, and its time in seconds since the epoch."""

Kind = Literal["counter", "gauge", "histogram"]

Aggregation = Literal["total", "sum", "max", "own"]
"""What the series of several processes become: ``total``, the sum, those that have ended included; ``sum`` or ``max``
of the living; ``own``, the value of the process that is asked."""


class Metric(NamedTuple):
    """A metric, as Prometheus understands it."""

    name: str
    """Without the suffix ``_total``."""
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    """The labels' names."""
    aggregation: Aggregation = "total"


class SeriesKey(NamedTuple):
    """What tells a series from all others, in every process."""

    metric: str
    labels: tuple[str, ...]
    """The labels' values."""
    aggregation: Aggregation
    size: int
    """How many numbers it has."""


class SeriesValue(NamedTuple):
    """What a series holds at one moment."""

    numbers: list[float]
    """One number; of a histogram the observations in each bucket alone, and the sum of all."""
    exemplars: list[Exemplar | None]
    """One for each bucket of a histogram; empty for all else."""


Snapshot = dict[SeriesKey, SeriesValue]
"""The series of a process, or of several, at one moment."""


LABEL_BYTES = 200
"""How much of a label's value is kept where authors choose it, in bytes of UTF-8."""


def truncated(text: str, size: int) -> bytes:
    """The beginning of a text in UTF-8, cut between two characters; what cannot be encoded becomes ``?``.

    Args:
        text: The text.
        size: The most bytes to keep.
    """
    return text.encode(errors="replace")[:size].decode(errors="ignore").encode()


def merge(into: Snapshot, other: Snapshot, *, alive: bool = True) -> None:
    """Add what another process has counted.

    Args:
        into: What is added to.
        other: What is added.
        alive: Whether that process lives: gauges are those of the living alone.
    """
    for key, value in other.items():
        if key.aggregation == "own" or not (alive or key.aggregation == "total"):
            continue
        if (present := into.get(key)) is None:
            into[key] = value
            continue
        combine = max if key.aggregation == "max" else add
        numbers = list(map(combine, present.numbers, value.numbers))
        # Of the exemplars of a bucket, the newest.
        exemplars = present.exemplars
        if any(value.exemplars):
            exemplars = [
                max(ours, theirs, key=itemgetter(2)) if ours and theirs else ours or theirs
                for ours, theirs in zip(present.exemplars, value.exemplars, strict=False)
            ]
        into[key] = SeriesValue(numbers, exemplars)


class SeriesStore(Protocol):
    """Where the numbers of series may be kept in place of lists."""

    def allocate(self, key: SeriesKey, exemplars: int) -> tuple[Any, Any] | None:
        """Find room for a series.

        Args:
            key: Which one.
            exemplars: How many exemplars it may have.

        Returns:
            Sequences of its numbers, all 0, and for its exemplars, which can be set; ``None`` where no room is left.
        """


class Series:
    """A series: a counter or a gauge, without a lock: its owner holds one.

    Args:
        metric: What it is a series of.
        labels: The values of its labels.
        size: How many numbers it has.
    """

    __slots__ = ("exemplars", "key", "numbers")

    def __init__(self, metric: Metric, labels: Sequence[str] = (), size: int = 1) -> None:
        self.key = SeriesKey(metric.name, tuple(labels), metric.aggregation, size)
        self.numbers: MutableSequence[float] = [0] * size
        self.exemplars: Any = ()

    def value(self) -> SeriesValue:
        """A copy of what it holds."""
        return SeriesValue(list(self.numbers), list(self.exemplars))

    def move(self, store: SeriesStore | None) -> None:
        """Keep its numbers elsewhere from now on.

        Args:
            store: Where; ``None`` for lists.
        """
        numbers, exemplars = self.value()
        place = store.allocate(self.key, len(exemplars)) if store is not None else None
        if place is not None:
            self.numbers, self.exemplars = place
            for index, number in enumerate(numbers):
                self.numbers[index] = number
            for index, exemplar in enumerate(exemplars):
                if exemplar is not None:
                    self.exemplars[index] = exemplar
        else:
            self.numbers, self.exemplars = numbers, exemplars


class Instrument:
    """Series with one lock. Subclasses add to them.

    Args:
        metrics: The metrics that they belong to.
    """

    def __init__(self, *metrics: Metric) -> None:
        self.metrics: Sequence[Metric] = metrics
        self.lock = Lock()
        """Guards all series, for reading too."""
        self._series: list[Series] = []
        self._store: SeriesStore | None = None

    def snapshot(self) -> Snapshot:
        """What all series hold at one moment."""
        with self.lock:
            return {series.key: series.value() for series in self._series}

    def refresh(self) -> None:
        """Ask for the values that are not counted; here there are none."""

    def move(self, store: SeriesStore | None) -> None:
        """Keep all numbers elsewhere from now on, those of series that are yet to come too.

        Args:
            store: Where; ``None`` for lists.
        """
        with self.lock:
            self.move_unlocked(store)

    def move_unlocked(self, store: SeriesStore | None) -> None:
        """Likewise without the lock, as in a process that was just forked, where it may be held for ever.

        Args:
            store: Where; ``None`` for lists.
        """
        self._store = store
        for series in self._series:
            series.move(store)

    def _add(self, series: Series) -> None:
        if self._store is not None:
            series.move(self._store)
        self._series.append(series)

    def _set(self, metric: Metric, labels: tuple[str, ...], value: float) -> None:
        for series in self._series:
            if series.key.labels == labels and series.key.metric == metric.name:
                break
        else:
            series = Series(metric, labels)
            self._add(series)
        series.numbers[0] = value


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


class Counter(Instrument):
    """A number that any thread may add to. With negative amounts it serves as a gauge.

    Args:
        metric: What it counts.
        labels: The values of its labels.
    """

    def __init__(self, metric: Metric, labels: Sequence[str] = ()) -> None:
        super().__init__(metric)
        self._number = Series(metric, labels)
        self._add(self._number)

    @property
    def value(self) -> float:
        """The number."""
        return self._number.numbers[0]

    def add(self, amount: int = 1) -> None:
        """Add to the number.

        Args:
            amount: How much; below 0 to take away.
        """
        with self.lock:
            self._number.numbers[0] += amount


class CallbackMetric(Instrument):
    """A metric whose values are not counted but asked for, when :meth:`refresh` is called.

    Args:
        metric: What it is.
        ask: Returns the value or, by the values of the labels, several.
    """

    def __init__(self, metric: Metric, ask: Callable[[], float | Mapping[tuple[str, ...], float]]) -> None:
        super().__init__(metric)
        self._metric = metric
        self._ask = ask

    def refresh(self) -> None:
        """Ask for the values."""
        answer = self._ask()
        values = answer if isinstance(answer, Mapping) else {(): answer}
        with self.lock:
            for labels, value in values.items():
                self._set(self._metric, labels, value)


class Histogram(Series):
    """A histogram with exemplars, without a lock: its owner holds one.

    Args:
        bounds: The upper bounds of the buckets, in seconds, rising.
        metric: What it is a series of.
        labels: The values of its labels.
    """

    __slots__ = ("bounds",)

    def __init__(self, bounds: Sequence[float], metric: Metric, labels: Sequence[str] = ()) -> None:
        self.bounds = [*bounds, float("inf")]
        super().__init__(metric, labels, len(self.bounds) + 1)
        self.exemplars = [None] * len(self.bounds)
        """The last observation of each bucket that has a trace id."""

    @property
    def counts(self) -> list[float]:
        """The number of observations in each bucket alone, not cumulative."""
        return list(self.numbers[:-1])

    @property
    def sum(self) -> float:
        """The sum of all observations."""
        return self.numbers[-1]

    def observe(self, seconds: float, trace_id: int | None) -> None:
        """Add an observation.

        Args:
            seconds: Its value.
            trace_id: The trace that it belongs to, where that is sampled.
        """
        index = bisect_left(self.bounds, seconds)
        numbers = self.numbers
        numbers[index] += 1
        numbers[-1] += seconds
        if trace_id is not None:
            self.exemplars[index] = (trace_id, seconds, time())


INVOCATIONS = Metric("agentcore_invocations", "counter", "Finished invocations.", ("mode", "outcome"))
INVOCATION_DURATION = Metric(
    "agentcore_invocation_duration_seconds",
    "histogram",
    "From the request to the last byte of its answer.",
    ("mode",),
)
TIME_TO_FIRST_CHUNK = Metric(
    "agentcore_time_to_first_chunk_seconds", "histogram", "From the request to the first event of its stream."
)
IN_PROGRESS = Metric(
    "agentcore_invocations_in_progress", "gauge", "Invocations that are being served.", aggregation="sum"
)
CHUNKS = Metric("agentcore_stream_chunks", "counter", "Events sent.")
TASKS = Metric("agentcore_async_tasks", "counter", "Finished tasks.", ("name", "outcome"))
TASK_DURATION = Metric(
    "agentcore_async_task_duration_seconds", "histogram", "From a task's start to its end.", ("name",)
)


PROTOCOL_REQUESTS = Metric(
    "agentcore_protocol_requests",
    "counter",
    "Finished requests of the protocols that are served beside plain HTTP.",
    ("protocol", "call", "outcome"),
)
PROTOCOL_DURATION = Metric(
    "agentcore_protocol_request_duration_seconds",
    "histogram",
    "From such a request to the last byte of its answer.",
    ("protocol",),
)


class InvocationMetrics(Instrument):
    """The counters and histograms of invocations.

    Args:
        modes: The values of the label ``mode``.
        outcomes: The values of the label ``outcome``.
        bounds: The upper bounds of the histograms' buckets, in seconds.
    """

    def __init__(self, modes: Sequence[str], outcomes: Sequence[str], bounds: Sequence[float]) -> None:
        super().__init__(INVOCATIONS, INVOCATION_DURATION, TIME_TO_FIRST_CHUNK, IN_PROGRESS, CHUNKS)
        self._in_progress = Series(IN_PROGRESS)
        self._chunks = Series(CHUNKS)
        # All label values from the beginning: ``rate()`` misses the first increment of a series that starts at 1.
        self._finished = {
            (mode, outcome): Series(INVOCATIONS, (mode, outcome)) for mode in modes for outcome in outcomes
        }
        self.durations = {mode: Histogram(bounds, INVOCATION_DURATION, (mode,)) for mode in modes}
        self.time_to_first_chunk = Histogram(bounds, TIME_TO_FIRST_CHUNK)
        for series in (
            *self._finished.values(),
            *self.durations.values(),
            self.time_to_first_chunk,
            self._in_progress,
            self._chunks,
        ):
            self._add(series)

    @property
    def in_progress(self) -> float:
        """How many invocations are in progress."""
        return self._in_progress.numbers[0]

    @property
    def sent_chunks(self) -> float:
        """How many events were sent."""
        return self._chunks.numbers[0]

    @property
    def finished(self) -> dict[tuple[str, str], float]:
        """How many invocations have ended, by mode and outcome."""
        return {labels: series.numbers[0] for labels, series in self._finished.items()}

    def begin(self) -> None:
        """Count an invocation as in progress."""
        lock = self.lock
        lock.acquire()  # takes half the time of ``with``, and nothing here can raise
        self._in_progress.numbers[0] += 1
        lock.release()

    def chunks(self, count: int) -> None:
        """Count events that were sent.

        Args:
            count: How many.
        """
        with self.lock:
            self._chunks.numbers[0] += count

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
        finished = self._finished[mode, outcome]
        lock = self.lock
        lock.acquire()
        try:
            self._in_progress.numbers[0] -= 1
            finished.numbers[0] += 1
            histogram.observe(seconds, trace_id)
        finally:
            lock.release()


class ProtocolMetrics(Instrument):
    """The counters and histograms of the protocols that are served beside plain HTTP.

    Args:
        bounds: The upper bounds of the histograms' buckets, in seconds.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        super().__init__(PROTOCOL_REQUESTS, PROTOCOL_DURATION)
        self._bounds = bounds
        self._finished: dict[tuple[str, str, str], Series] = {}
        self._durations: dict[str, Histogram] = {}

    def end(self, protocol: str, call: str, outcome: str, seconds: float, trace_id: int | None) -> None:
        """Count a finished request.

        Args:
            protocol: Its protocol.
            call: Which of the protocol's calls it was.
            outcome: How it ended.
            seconds: Its duration.
            trace_id: Its trace, where that is sampled.
        """
        labels = (protocol, call, outcome)
        with self.lock:
            finished = self._finished.get(labels)
            if finished is None:
                finished = self._finished[labels] = Series(PROTOCOL_REQUESTS, labels)
                self._add(finished)
            histogram = self._durations.get(protocol)
            if histogram is None:
                histogram = self._durations[protocol] = Histogram(self._bounds, PROTOCOL_DURATION, (protocol,))
                self._add(histogram)
            finished.numbers[0] += 1
            histogram.observe(seconds, trace_id)


class TaskMetrics(Instrument):
    """The counters and histograms of background tasks.

    Args:
        max_names: How many values the label ``name`` may have; further names are counted as ``other``.
        bounds: The upper bounds of the histograms' buckets, in seconds.
    """

    def __init__(self, max_names: int, bounds: Sequence[float]) -> None:
        super().__init__(TASKS, TASK_DURATION)
        self._max_names = max_names
        self._bounds = bounds
        self._finished: dict[tuple[str, str], Series] = {}
        self.durations: dict[str, Histogram] = {}
        self.foreign_names: Callable[[], Iterable[str]] = tuple
        """Tells the names that other processes have used, which count as well."""
        self._foreign: frozenset[str] = frozenset()

    @property
    def finished(self) -> dict[tuple[str, str], float]:
        """How many tasks have ended, by name and outcome."""
        return {labels: series.numbers[0] for labels, series in self._finished.items()}

    def end(self, name: str, outcome: str, seconds: float, trace_id: int | None) -> None:
        """Count a finished task, from any thread.

        Args:
            name: Its name.
            outcome: How it ended.
            seconds: Its duration.
            trace_id: Its trace, where that is sampled.
        """
        with self.lock:
            if name not in self.durations:
                name = self._label_of(name)
            histogram = self.durations.get(name)
            if histogram is None:
                histogram = self.durations[name] = Histogram(self._bounds, TASK_DURATION, (name,))
                self._add(histogram)
            finished = self._finished.get((name, outcome))
            if finished is None:
                finished = self._finished[name, outcome] = Series(TASKS, (name, outcome))
                self._add(finished)
            finished.numbers[0] += 1
            histogram.observe(seconds, trace_id)

    def _label_of(self, name: str) -> str:
        name = truncated(name, LABEL_BYTES).decode()
        known = self.durations.keys() | self._foreign
        if len(known - {"other"}) < self._max_names:  # once full, it stays so: no name is ever given up
            self._foreign = frozenset(self.foreign_names())
            known = self.durations.keys() | self._foreign
        return name if name in known or len(known - {"other"}) < self._max_names else "other"
