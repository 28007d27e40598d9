"""The counts of a service as metrics of ``prometheus_client``, in the forms that scrapers take."""

import platform
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

from agentcore_telemetry.metrics import AgentMetrics
from agentcore_telemetry.tallies import Durations

Buckets = list[tuple[str, float] | tuple[str, float, Exemplar]]


class AgentCollector(Collector):
    """Turns what was counted, and what is true now, into metrics at each scrape, so that nothing is kept twice.

    Args:
        metrics: What was counted.
    """

    def __init__(self, metrics: AgentMetrics) -> None:
        self._metrics = metrics

    def describe(self) -> Iterable[Metric]:
        """Nothing: the registry need not ask for the names."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """The metrics as they are now."""
        yield from self._invocations()
        metrics = self._metrics
        yield GaugeMetricFamily("agentcore_websocket_connections", "Open WebSockets.", metrics.websockets.value)
        yield CounterMetricFamily(
            "agentcore_handler_stalls",
            "Times a handler held its event loop longer than the limit.",
            metrics.stalls.value,
        )
        yield from self._tasks()
        build = GaugeMetricFamily("agentcore_build_info", "What is running.", labels=("version", "python_version"))
        build.add_metric((metrics.version, platform.python_version()), 1)
        yield build
        yield from self._probes()

    def _invocations(self) -> Iterator[Metric]:
        ended = CounterMetricFamily("agentcore_invocations", "Finished invocations.", labels=("mode", "outcome"))
        duration = HistogramMetricFamily(
            "agentcore_invocation_duration_seconds",
            "From the request to the last byte of its answer.",
            labels=("mode",),
        )
        first_chunk = HistogramMetricFamily(
            "agentcore_time_to_first_chunk_seconds", "From the request to the first event of its stream."
        )
        tallies = self._metrics.invocations
        with tallies.lock:
            for labels, count in tallies.ended.items():
                ended.add_metric(labels, count)
            for mode, durations in tallies.durations.items():
                duration.add_metric((mode,), _buckets(durations), durations.sum)
            first_chunk.add_metric((), _buckets(tallies.first_chunks), tallies.first_chunks.sum)
            in_progress, chunks = tallies.in_progress, tallies.sent_chunks
        yield ended
        yield duration
        yield first_chunk
        yield GaugeMetricFamily("agentcore_invocations_in_progress", "Invocations that are being served.", in_progress)
        yield CounterMetricFamily("agentcore_stream_chunks", "Events sent.", chunks)

    def _tasks(self) -> Iterator[Metric]:
        finished = CounterMetricFamily("agentcore_async_tasks", "Finished tasks.", labels=("name", "outcome"))
        duration = HistogramMetricFamily(
            "agentcore_async_task_duration_seconds", "From a task's start to its end.", labels=("name",)
        )
        tallies = self._metrics.tasks
        with tallies.lock:
            for labels, count in tallies.finished.items():
                finished.add_metric(labels, count)
            for name, durations in tallies.durations.items():
                duration.add_metric((name,), _buckets(durations), durations.sum)
        yield finished
        yield duration

    def _probes(self) -> Iterator[Metric]:
        probes = self._metrics.probes
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


def _buckets(durations: Durations) -> Buckets:
    buckets: Buckets = []
    total = 0
    for bound, count, example in zip(durations.bounds, durations.counts, durations.exemplars, strict=True):
        total += count
        label: str = floatToGoString(bound)  # type: ignore[no-untyped-call]
        if example is None:
            buckets.append((label, total))
        else:
            trace_id, seconds, at = example
            buckets.append((label, total, Exemplar({"trace_id": f"{trace_id:032x}"}, seconds, at)))
    return buckets


def make_registry(metrics: AgentMetrics) -> CollectorRegistry:
    """Make the registry of a service.

    Args:
        metrics: What it counts.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(AgentCollector(metrics))
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


def expose(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """The metrics in the form that a scraper asks for.

    Args:
        registry: Has the metrics.
        accept: The scraper's ``Accept`` header.

    Returns:
        The body, and its content type.
    """
    encode, content_type = choose_encoder(_preferred(accept))
    return encode(registry), content_type


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
