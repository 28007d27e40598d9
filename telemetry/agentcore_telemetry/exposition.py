"""What was recorded, as metrics of ``prometheus_client`` in the formats that scrapers accept."""

import platform
from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

from agentcore_telemetry.instruments import Counter, Histogram, InvocationMetrics, ScrapeCallbacks, TaskMetrics

Buckets = list[tuple[str, float] | tuple[str, float, Exemplar]]


class AgentCollector(Collector):
    """Makes the metrics of a service anew at each scrape.

    Args:
        version: The service's version.
        callbacks: What each scrape asks.
        invocations: What was recorded of invocations.
        tasks: What was recorded of background tasks.
        websockets: The number of open WebSockets.
        stalls: How often a handler held the event loop.
        auth_failures: How many callers were not let in, by the reason.
    """

    def __init__(
        self,
        *,
        version: str,
        callbacks: ScrapeCallbacks,
        invocations: InvocationMetrics,
        tasks: TaskMetrics,
        websockets: Counter,
        stalls: Counter,
        auth_failures: Mapping[str, Counter],
    ) -> None:
        self._version = version
        self._callbacks = callbacks
        self._invocations = invocations
        self._tasks = tasks
        self._websockets = websockets
        self._stalls = stalls
        self._auth_failures = auth_failures

    def collect(self) -> Iterator[Metric]:
        """The metrics as they are now."""
        yield from self._collect_invocations()
        yield GaugeMetricFamily("agentcore_websocket_connections", "Open WebSockets.", self._websockets.value)
        yield CounterMetricFamily(
            "agentcore_handler_stalls",
            "Times a handler held the agent's event loop longer than the limit.",
            self._stalls.value,
        )
        failures = CounterMetricFamily("agentcore_auth_failures", "Callers who were not let in.", labels=("reason",))
        for reason, count in self._auth_failures.items():
            failures.add_metric((reason,), count.value)
        yield failures
        yield from self._collect_tasks()
        build = GaugeMetricFamily("agentcore_build_info", "What is running.", labels=("version", "python_version"))
        build.add_metric((self._version, platform.python_version()), 1)
        yield build
        yield from self._call_callbacks()

    def _collect_invocations(self) -> Iterator[Metric]:
        finished = CounterMetricFamily("agentcore_invocations", "Finished invocations.", labels=("mode", "outcome"))
        duration = HistogramMetricFamily(
            "agentcore_invocation_duration_seconds",
            "From the request to the last byte of its answer.",
            labels=("mode",),
        )
        first_chunk = HistogramMetricFamily(
            "agentcore_time_to_first_chunk_seconds", "From the request to the first event of its stream."
        )
        invocations = self._invocations
        with invocations.lock:
            for labels, count in invocations.finished.items():
                finished.add_metric(labels, count)
            for mode, histogram in invocations.durations.items():
                duration.add_metric((mode,), _buckets(histogram), histogram.sum)
            histogram = invocations.time_to_first_chunk
            first_chunk.add_metric((), _buckets(histogram), histogram.sum)
            in_progress, chunks = invocations.in_progress, invocations.sent_chunks
        yield finished
        yield duration
        yield first_chunk
        yield GaugeMetricFamily("agentcore_invocations_in_progress", "Invocations that are being served.", in_progress)
        yield CounterMetricFamily("agentcore_stream_chunks", "Events sent.", chunks)

    def _collect_tasks(self) -> Iterator[Metric]:
        finished = CounterMetricFamily("agentcore_async_tasks", "Finished tasks.", labels=("name", "outcome"))
        duration = HistogramMetricFamily(
            "agentcore_async_task_duration_seconds", "From a task's start to its end.", labels=("name",)
        )
        tasks = self._tasks
        with tasks.lock:
            for labels, count in tasks.finished.items():
                finished.add_metric(labels, count)
            for name, histogram in tasks.durations.items():
                duration.add_metric((name,), _buckets(histogram), histogram.sum)
        yield finished
        yield duration

    def _call_callbacks(self) -> Iterator[Metric]:
        callbacks = self._callbacks
        yield GaugeMetricFamily("agentcore_active_tasks", "Async tasks that run now.", callbacks.active_tasks())
        status = GaugeMetricFamily(
            "agentcore_ping_status", "1 for the status that /ping gives, 0 for the other.", labels=("status",)
        )
        now = callbacks.ping_status()
        for name in ("Healthy", "HealthyBusy"):
            status.add_metric((name,), float(name == now))
        yield status
        yield GaugeMetricFamily(
            "agentcore_ping_status_last_change_timestamp_seconds",
            "When the status that /ping gives last changed.",
            callbacks.status_changed_at(),
        )
        yield GaugeMetricFamily(
            "agentcore_event_loop_lag_seconds",
            "For how long the agent's event loop has not turned; 0 where it waits for something to do.",
            callbacks.event_loop_lag(),
        )
        threads = GaugeMetricFamily(
            "agentcore_handler_threads",
            "Threads of plain and await-less handlers; parked ones are held by a generator whose client reads slowly.",
            labels=("state",),
        )
        for state, count in zip(("running", "parked"), callbacks.handler_threads(), strict=True):
            threads.add_metric((state,), count)
        yield threads
        yield GaugeMetricFamily(
            "agentcore_sync_queue_length", "Sync invocations that wait for a thread.", callbacks.sync_queue_length()
        )
        yield GaugeMetricFamily(
            "agentcore_sessions", "Sessions for which something runs, or which are kept.", callbacks.sessions()
        )
        yield GaugeMetricFamily(
            "agentcore_invocations_waiting", "Invocations that wait for a place.", callbacks.invocations_waiting()
        )
        yield CounterMetricFamily(
            "agentcore_spans_dropped", "Spans that never reached the backend.", callbacks.spans_dropped()
        )


def _buckets(histogram: Histogram) -> Buckets:
    buckets: Buckets = []
    total = 0
    for bound, count, exemplar in zip(histogram.bounds, histogram.counts, histogram.exemplars, strict=True):
        total += count
        label: str = floatToGoString(bound)  # type: ignore[no-untyped-call]
        if exemplar is None:
            buckets.append((label, total))
        else:
            trace_id, seconds, at = exemplar
            buckets.append((label, total, Exemplar({"trace_id": f"{trace_id:032x}"}, seconds, at)))
    return buckets


def make_registry(collector: AgentCollector) -> CollectorRegistry:
    """Make the registry of a service, with the metrics of the process and of Python besides.

    Args:
        collector: Makes the service's metrics.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


def encode(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """The metrics in the format that a scraper prefers.

    Args:
        registry: Has the metrics.
        accept: The scraper's ``Accept`` header.

    Returns:
        The body, and its content type.
    """
    encoder, content_type = choose_encoder(_preferred(accept))
    return encoder(registry), content_type


def _preferred(accept: str) -> str:
    """The entry of an ``Accept`` header with the greatest weight, of the media types that can be served.

    ``prometheus_client`` itself ignores the weights (RFC 9110, section 12.4.2).
    """
    weighted: list[tuple[float, str]] = []
    for entry in accept.split(","):
        media_type, *parameters = (part.strip() for part in entry.split(";"))
        weight = next((parameter[2:] for parameter in parameters if parameter.startswith("q=")), "1")
        try:
            weighted.append((float(weight), entry if media_type in _MEDIA_TYPES else ""))
        except ValueError:
            continue
    acceptable = [(weight, entry) for weight, entry in weighted if weight > 0 and entry]
    return max(acceptable, key=lambda pair: pair[0], default=(0, ""))[1]


_MEDIA_TYPES = frozenset({"text/plain", "application/openmetrics-text"})
