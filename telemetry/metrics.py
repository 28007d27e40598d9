"""What Prometheus may know of an agent: counted where it happens, or computed when it is asked for."""

import platform
from collections.abc import Callable, Iterable, Iterator
from threading import Lock
from typing import Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

Mode = Literal["unary", "stream"]
Outcome = Literal["ok", "client_error", "server_error", "disconnected", "rejected", "timeout"]
TaskOutcome = Literal["completed", "failed", "lost"]

MODES: tuple[Mode, ...] = ("unary", "stream")
OUTCOMES: tuple[Outcome, ...] = ("ok", "client_error", "server_error", "disconnected", "rejected", "timeout")
TASK_OUTCOMES: tuple[TaskOutcome, ...] = ("completed", "failed", "lost")

MAX_TASK_NAMES = 100
"""How many names of tasks get series of their own; the rest is counted under ``other``."""

SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 900,
)  # fmt: skip
"""Buckets from one millisecond to a quarter of an hour: agents are slow, and what they wait for is not."""


class Probes:
    """What is true of a service now, asked at each scrape.

    Args:
        active_tasks: How many background tasks are active.
        ping_status: The status that ``/ping`` gives, by its string.
        status_changed_at: When it last changed, in seconds since the epoch.
        worker_loops: How many worker loops are alive.
        sync_queue_length: How many plain invocations wait for a thread.
        spans_dropped: How many spans never reached the backend.
    """

    def __init__(
        self,
        *,
        active_tasks: Callable[[], int],
        ping_status: Callable[[], str],
        status_changed_at: Callable[[], float],
        worker_loops: Callable[[], int],
        sync_queue_length: Callable[[], int],
        spans_dropped: Callable[[], int] = lambda: 0,
    ) -> None:
        self.active_tasks = active_tasks
        self.ping_status = ping_status
        self.status_changed_at = status_changed_at
        self.worker_loops = worker_loops
        self.sync_queue_length = sync_queue_length
        self.spans_dropped = spans_dropped


class _ProbeCollector(Collector):
    """Turns the probes into metrics at each scrape, so that nothing is kept twice."""

    def __init__(self, probes: Probes) -> None:
        self._probes = probes

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        probes = self._probes
        yield GaugeMetricFamily("agentcore_active_tasks", "Async tasks that run now.", probes.active_tasks())
        status = GaugeMetricFamily(
            "agentcore_ping_status", "1 for the status that /ping gives, 0 for the other.", labels=("status",)
        )
        now = probes.ping_status()
        for name in ("Healthy", "HealthyBusy"):
            status.add_metric((name,), float(name == now))
        yield status
        yield GaugeMetricFamily(
            "agentcore_ping_status_last_change_timestamp_seconds",
            "When the status that /ping gives last changed.",
            probes.status_changed_at(),
        )
        yield GaugeMetricFamily("agentcore_worker_loops", "Worker loops that are alive.", probes.worker_loops())
        yield GaugeMetricFamily(
            "agentcore_sync_queue_length", "Sync invocations that wait for a thread.", probes.sync_queue_length()
        )
        yield CounterMetricFamily(
            "agentcore_spans_dropped", "Spans that never reached the backend.", probes.spans_dropped()
        )


class _WithoutCreated:
    """A registry as it is exposed: without the ``_created`` series, which no one asked for and every one pays for."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric


class AgentMetrics:
    """The metrics of one service, on a registry of its own, so that two in one process do not collide.

    Args:
        version: The service's version.
        probes: What is true of it at each scrape.
    """

    def __init__(self, version: str, probes: Probes) -> None:
        self.registry = registry = CollectorRegistry(auto_describe=False)
        invocations = Counter("agentcore_invocations", "Finished invocations.", ("mode", "outcome"), registry=registry)
        duration = Histogram(
            "agentcore_invocation_duration_seconds",
            "From the request to the last byte of its answer.",
            ("mode",),
            buckets=SECONDS,
            registry=registry,
        )
        self.first_chunk = Histogram(
            "agentcore_time_to_first_chunk_seconds",
            "From the request to the first event of its stream.",
            buckets=SECONDS,
            registry=registry,
        )
        self.in_progress = Gauge(
            "agentcore_invocations_in_progress", "Invocations that are being served.", registry=registry
        )
        self.stream_chunks = Counter("agentcore_stream_chunks", "Events sent.", registry=registry)
        self.websockets = Gauge("agentcore_websocket_connections", "Open WebSockets.", registry=registry)
        self.stalls = Counter(
            "agentcore_handler_stalls", "Times a handler held its event loop longer than the limit.", registry=registry
        )
        self._tasks = Counter("agentcore_async_tasks", "Finished tasks.", ("name", "outcome"), registry=registry)
        self._task_duration = Histogram(
            "agentcore_async_task_duration_seconds",
            "From a task's start to its end.",
            ("name",),
            buckets=SECONDS,
            registry=registry,
        )
        self._task_names: set[str] = set()
        self._task_names_lock = Lock()
        build = Gauge("agentcore_build_info", "What is running.", ("version", "python_version"), registry=registry)
        build.labels(version, platform.python_version()).set(1)
        # Bound ahead: a look-up by label values costs more than the update, and series that start at 0 can be rated.
        self.invocations = {
            (mode, outcome): invocations.labels(mode, outcome) for mode in MODES for outcome in OUTCOMES
        }
        self.duration = {mode: duration.labels(mode) for mode in MODES}
        registry.register(_ProbeCollector(probes))
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)

    def task_finished(
        self, name: str, outcome: TaskOutcome, seconds: float, exemplar: dict[str, str] | None = None
    ) -> None:
        """Count a background task.

        Args:
            name: What it was called.
            outcome: How it ended.
            seconds: How long it took.
            exemplar: The id of its trace, where that is recorded.
        """
        if name not in self._task_names:
            with self._task_names_lock:  # tasks end on any thread
                if len(self._task_names) < MAX_TASK_NAMES:
                    self._task_names.add(name)
            if name not in self._task_names:
                name = "other"
        self._tasks.labels(name, outcome).inc()
        self._task_duration.labels(name).observe(seconds, exemplar)

    def expose(self, accept: str) -> tuple[bytes, str]:
        """The metrics in the form that a scraper asks for.

        Args:
            accept: Its ``Accept`` header.

        Returns:
            The body, and its content type: Prometheus text, or OpenMetrics (with exemplars) where that is accepted.
        """
        encode, content_type = choose_encoder(_preferred(accept))
        return encode(_WithoutCreated(self.registry)), content_type


def _preferred(accept: str) -> str:
    """The entry of an ``Accept`` header that a scraper wants most, of those that there is a form for.

    ``prometheus_client`` itself takes no notice of the weights (RFC 9110, section 12.4.2).
    """
    weighted: list[tuple[float, str]] = []
    for entry in accept.split(","):
        kind, *parameters = (part.strip() for part in entry.split(";"))
        weight = next((parameter[2:] for parameter in parameters if parameter.startswith("q=")), "1")
        try:
            weighted.append((float(weight), entry if kind in _FORMS else ""))
        except ValueError:
            continue
    acceptable = [(weight, entry) for weight, entry in weighted if weight > 0 and entry]
    return max(acceptable, key=lambda pair: pair[0], default=(0, ""))[1]


_FORMS = frozenset({"text/plain", "application/openmetrics-text"})
