"""What is recorded comes out as ``prometheus_client``'s own counters and histograms would have it."""

import math
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import prometheus_client
import pytest
from agentcore_telemetry import instruments
from agentcore_telemetry.instruments import (
    Counter,
    Histogram,
    InvocationMetrics,
    Metric,
    ScrapeCallbacks,
    TaskMetrics,
)
from agentcore_telemetry.metrics import (
    AUTH_FAILURES,
    DURATION_BUCKETS,
    MAX_TASK_NAMES,
    MODES,
    OUTCOMES,
    TASK_OUTCOMES,
    AgentMetrics,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client import metrics as client_metrics
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

PATIENCE = 30.0
TRACE_IDS = [0x0AF7651916CD43DD8448EB211C80319C, (1 << 128) - 1]
FORMS: dict[str, Callable[[CollectorRegistry], bytes]] = {
    "Prometheus": generate_latest,
    "OpenMetrics": generate_openmetrics,
}


def agent() -> AgentMetrics:
    callbacks = ScrapeCallbacks(
        active_tasks=lambda: 0,
        ping_status=lambda: "Healthy",
        status_changed_at=lambda: 0.0,
        event_loop_lag=lambda: 12.5,
        handler_threads=lambda: (3, 7),
        sync_queue_length=lambda: 0,
    )
    return AgentMetrics("1", callbacks)


class Client:
    """The same metrics, kept by ``prometheus_client`` itself."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def counter(name: str, help_: str, *labels: str) -> prometheus_client.Counter:
            return prometheus_client.Counter(f"agentcore_{name}", help_, labels, registry=registry)

        def gauge(name: str, help_: str) -> prometheus_client.Gauge:
            return prometheus_client.Gauge(f"agentcore_{name}", help_, registry=registry)

        def histogram(name: str, help_: str, *labels: str) -> prometheus_client.Histogram:
            name = f"agentcore_{name}_seconds"
            return prometheus_client.Histogram(name, help_, labels, registry=registry, buckets=DURATION_BUCKETS)

        self.invocations = counter("invocations", "Finished invocations.", "mode", "outcome")
        help_ = "From the request to the last byte of its answer."
        self.duration = histogram("invocation_duration", help_, "mode")
        help_ = "From the request to the first event of its stream."
        self.first_chunk = histogram("time_to_first_chunk", help_)
        self.in_progress = gauge("invocations_in_progress", "Invocations that are being served.")
        self.chunks = counter("stream_chunks", "Events sent.")
        self.websockets = gauge("websocket_connections", "Open WebSockets.")
        self.stalls = counter("handler_stalls", "Times a handler held the agent's event loop longer than the limit.")
        self.auth_failures = counter("auth_failures", "Callers who were not let in.", "reason")
        self.tasks = counter("async_tasks", "Finished tasks.", "name", "outcome")
        self.task_duration = histogram("async_task_duration", "From a task's start to its end.", "name")
        for reason in AUTH_FAILURES:
            self.auth_failures.labels(reason)
        for mode in MODES:
            self.duration.labels(mode)
            for outcome in OUTCOMES:
                self.invocations.labels(mode, outcome)


def exposed(registry: CollectorRegistry, form: str) -> dict[str, list[str]]:
    """The lines of each metric of the service, without the creation times, which only ``prometheus_client`` gives."""
    lines: dict[str, list[str]] = {}
    metric = ""
    for line in FORMS[form](registry).decode().splitlines():
        if line.startswith("# HELP "):
            metric = line.split()[2]
        if "_created" not in line and line != "# EOF":
            lines.setdefault(metric, []).append(line)
    return {name: of_metric for name, of_metric in lines.items() if name.startswith("agentcore_")}


def exemplar(trace_id: int | None) -> dict[str, str] | None:
    return None if trace_id is None else {"trace_id": f"{trace_id:032x}"}


class Clock:
    """Tells the service and ``prometheus_client`` the same time, until it is moved on."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(instruments, "time", clock.time)
    monkeypatch.setattr(client_metrics, "time", clock)
    return clock


# Observations


on_the_borders = st.sampled_from(
    [*DURATION_BUCKETS, *(math.nextafter(bound, 0) for bound in DURATION_BUCKETS), 0, 3601, 1e9, math.inf]
)
seconds = st.floats(0, 8000) | on_the_borders.map(float)
trace_ids = st.none() | st.sampled_from(TRACE_IDS)
names = st.sampled_from(["research", "other", 'odd "name"\\', "größe\n", ""])
# The sums stay below 2**53: beyond that a float, as the library's counters are, does not count every event.
observations = st.lists(
    st.one_of(
        st.tuples(st.just("begin")),
        st.tuples(st.just("end"), st.sampled_from(MODES), st.sampled_from(OUTCOMES), seconds, trace_ids),
        st.tuples(st.just("first_chunk"), seconds, trace_ids),
        st.tuples(st.just("chunks"), st.integers(1, 2**49)),
        st.tuples(st.just("task"), names, st.sampled_from(TASK_OUTCOMES), seconds, trace_ids),
        st.tuples(st.just("websocket"), st.sampled_from([1, -1])),
        st.tuples(st.just("stall")),
    ),
    max_size=12,
)


def observe(metrics: AgentMetrics, client: Client, what: str, *about: Any) -> None:
    if what == "begin":
        metrics.invocations.begin()
        client.in_progress.inc()
    elif what == "end":
        mode, outcome, length, trace_id = about
        metrics.invocations.end(mode, outcome, length, trace_id)
        client.in_progress.dec()
        client.invocations.labels(mode, outcome).inc()
        client.duration.labels(mode).observe(length, exemplar(trace_id))
    elif what == "first_chunk":
        metrics.invocations.first_chunk(*about)
        client.first_chunk.observe(about[0], exemplar(about[1]))
    elif what == "chunks":
        metrics.invocations.chunks(about[0])
        client.chunks.inc(about[0])
    elif what == "task":
        name, outcome, length, trace_id = about
        metrics.tasks.end(name, outcome, length, trace_id)
        client.tasks.labels(name, outcome).inc()
        client.task_duration.labels(name).observe(length, exemplar(trace_id))
    elif what == "websocket":
        metrics.websockets.add(*about)
        client.websockets.inc(*about)
    else:
        metrics.stalls.add()
        client.stalls.inc()
        metrics.auth_failures["expired"].add()
        client.auth_failures.labels("expired").inc()


@pytest.mark.parametrize("form", FORMS)
def test_the_text_is_that_of_prometheus_client(form: str, clock: Clock) -> None:
    @settings(deadline=None, max_examples=100)
    @given(observations)
    def compare(observations: list[tuple[Any, ...]]) -> None:
        metrics, client = agent(), Client()
        for observation in observations:
            clock.now += 1
            observe(metrics, client, *observation)

        ours, theirs = exposed(metrics.registry, form), exposed(client.registry, form)
        assert {name: ours.get(name) for name in theirs} == theirs

    compare()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bound", DURATION_BUCKETS)
def test_a_duration_on_a_bound_falls_into_the_bucket_below(form: str, bound: float, clock: Clock) -> None:
    metrics, client = agent(), Client()
    for length in (math.nextafter(bound, 0), bound, math.nextafter(bound, math.inf)):
        observe(metrics, client, "end", "unary", "ok", length, TRACE_IDS[0])

    name = "agentcore_invocation_duration_seconds"
    assert exposed(metrics.registry, form)[name] == exposed(client.registry, form)[name]


def test_the_last_duration_of_each_bucket_is_its_exemplar(clock: Clock) -> None:
    metrics = agent()
    for length, trace_id in ((0.2, TRACE_IDS[0]), (0.21, TRACE_IDS[1]), (0.22, None), (3.0, TRACE_IDS[0])):
        clock.now += 1
        metrics.invocations.end("unary", "ok", length, trace_id)

    lines = exposed(metrics.registry, "OpenMetrics")["agentcore_invocation_duration_seconds"]
    assert [line.partition("#")[2].strip() for line in lines if "trace_id" in line] == [
        f'{{trace_id="{TRACE_IDS[1]:032x}"}} 0.21 1700000002.0',
        f'{{trace_id="{TRACE_IDS[0]:032x}"}} 3.0 1700000004.0',
    ]
    assert "trace_id" not in str(exposed(metrics.registry, "Prometheus"))


@pytest.mark.parametrize("form", FORMS)
def test_a_scrape_counts_each_thing_once_however_often_it_is_asked(form: str, clock: Clock) -> None:
    metrics = agent()
    metrics.invocations.begin()
    metrics.invocations.end("stream", "ok", 0.3, TRACE_IDS[0])
    metrics.tasks.end("research", "completed", 2, None)
    registry = metrics.registry

    assert exposed(registry, form) == exposed(registry, form)


@settings(deadline=None)
@given(st.lists(seconds), st.lists(st.floats(0.001, 1e6), min_size=1, max_size=10, unique=True).map(sorted))
def test_the_buckets_are_those_of_a_histogram_whatever_the_bounds(lengths: list[float], bounds: list[float]) -> None:
    ours = Histogram(bounds, Metric("h", "histogram", "h"))
    theirs = prometheus_client.Histogram("h", "h", buckets=bounds, registry=None)
    for length in lengths:
        ours.observe(length, None)
        theirs.observe(length)

    assert ours.bounds == theirs._upper_bounds
    assert ours.counts == [bucket.get() for bucket in theirs._buckets]
    assert ours.sum == theirs._sum.get()


# Callbacks


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("agentcore_event_loop_lag_seconds", ["agentcore_event_loop_lag_seconds 12.5"]),
        (
            "agentcore_handler_threads",
            ['agentcore_handler_threads{state="running"} 3.0', 'agentcore_handler_threads{state="parked"} 7.0'],
        ),
    ],
)
def test_a_gauge_is_what_its_callback_returns(name: str, lines: list[str]) -> None:
    assert [line for line in exposed(agent().registry, "Prometheus")[name] if not line.startswith("#")] == lines


def test_a_callback_is_asked_once_a_scrape_and_never_before() -> None:
    metrics = agent()
    lags = iter((1.0, 2.0))
    metrics.callbacks.event_loop_lag = lambda: next(lags)

    name = "agentcore_event_loop_lag_seconds"
    assert exposed(metrics.registry, "Prometheus")[name][-1] == f"{name} 1.0"
    assert exposed(metrics.registry, "OpenMetrics")[name][-1] == f"{name} 2.0"


# The names of tasks


def test_a_hundred_names_of_tasks_are_told_apart_and_the_rest_is_other() -> None:
    tasks = TaskMetrics(MAX_TASK_NAMES, DURATION_BUCKETS)
    for number in range(150):
        tasks.end(f"task {number}", "completed", 1.0, None)
    for number in range(150):
        tasks.end(f"task {number}", "failed", 1.0, None)

    told = {f"task {number}" for number in range(MAX_TASK_NAMES)}
    assert tasks.durations.keys() == told | {"other"}
    assert tasks.finished == {
        **{(name, outcome): 1 for name in told for outcome in ("completed", "failed")},
        ("other", "completed"): 50,
        ("other", "failed"): 50,
    }
    assert sum(tasks.durations["other"].counts) == 100


def test_a_task_that_is_called_other_takes_no_name_from_the_rest() -> None:
    tasks = TaskMetrics(2, DURATION_BUCKETS)
    for name in ("other", "first", "second", "third", "other"):
        tasks.end(name, "completed", 1.0, None)

    assert tasks.finished == {("other", "completed"): 3, ("first", "completed"): 1, ("second", "completed"): 1}


@settings(deadline=None)
@given(st.integers(0, 3), st.lists(st.sampled_from(["a", "b", "c", "d", "other"])))
def test_no_task_is_lost_and_the_names_stay_few(most: int, names: list[str]) -> None:
    tasks = TaskMetrics(most, DURATION_BUCKETS)
    for name in names:
        tasks.end(name, "completed", 1.0, None)

    assert sum(tasks.finished.values()) == sum(sum(each.counts) for each in tasks.durations.values()) == len(names)
    assert len(tasks.durations.keys() - {"other"}) <= most
    assert {name for name, _ in tasks.finished} == tasks.durations.keys()


# Threads


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Has the interpreter change threads as often as it can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def at_once(work: Callable[[], object], threads: int = 8) -> None:
    """Do something in many threads, which begin together."""
    barrier = threading.Barrier(threads)

    def run() -> None:
        barrier.wait(PATIENCE)
        work()

    started = [threading.Thread(target=run) for _ in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join(PATIENCE)
        assert not thread.is_alive()


@pytest.mark.usefixtures("hasty_threads")
def test_what_threads_add_at_once_is_added() -> None:
    counter = Counter(Metric("c", "counter", "c"))

    def work() -> None:
        for _ in range(2000):
            counter.add()
            counter.add(2)
            counter.add(-1)

    at_once(work)
    assert counter.value == 8 * 2000 * 2


@pytest.mark.usefixtures("hasty_threads")
def test_invocations_that_threads_count_at_once_are_counted() -> None:
    invocations = InvocationMetrics(MODES, OUTCOMES, DURATION_BUCKETS)

    def work() -> None:
        for number in range(500):
            invocations.begin()
            invocations.first_chunk(0.25, None)
            invocations.chunks(3)
            invocations.end(MODES[number % 2], "ok", 0.5, TRACE_IDS[0])

    at_once(work)
    assert (invocations.in_progress, invocations.sent_chunks) == (0, 8 * 500 * 3)
    assert {labels: count for labels, count in invocations.finished.items() if count} == {
        (mode, "ok"): 2000 for mode in MODES
    }
    for histogram, expected, length in (
        (invocations.time_to_first_chunk, 4000, 0.25),
        *((invocations.durations[mode], 2000, 0.5) for mode in MODES),
    ):
        assert sum(histogram.counts) == expected
        assert histogram.sum == expected * length


@pytest.mark.usefixtures("hasty_threads")
def test_tasks_that_threads_count_at_once_are_counted_and_scraped_whole() -> None:
    metrics = agent()
    registry = metrics.registry
    scraped: list[str] = []

    def work() -> None:
        for number in range(200):
            metrics.tasks.end(f"task {number % 120}", "completed", 0.5, None)
            if number % 50 == 0:
                scraped.append(generate_latest(registry).decode())

    at_once(work)
    assert sum(metrics.tasks.finished.values()) == 8 * 200
    assert len(metrics.tasks.durations) == MAX_TASK_NAMES + 1
    for text in scraped:
        totals = {
            suffix: sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(prefix))
            for suffix, prefix in (
                ("finished", "agentcore_async_tasks_total{"),
                ("observed", "agentcore_async_task_duration_seconds_count{"),
            )
        }
        assert totals["finished"] == totals["observed"]
