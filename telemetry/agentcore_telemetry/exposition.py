"""What was recorded, as metrics of ``prometheus_client`` in the formats that scrapers accept."""

from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.core import Metric as MetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

from agentcore_telemetry.instruments import Aggregation, Instrument, Kind, Metric, SeriesValue, Snapshot

Rows = list[tuple[tuple[str, ...], SeriesValue]]
"""The values of a metric's labels, each with what the series holds."""
Buckets = list[tuple[str, float] | tuple[str, float, Exemplar]]


class AgentCollector(Collector):
    """Makes the metrics of a service anew at each scrape.

    Args:
        snapshot: Tells what all series hold.
        instruments: Tells what they are recorded with.
        bounds: The upper bounds of the histograms' buckets, in seconds.
    """

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        instruments: Callable[[], Iterable[Instrument]],
        bounds: Sequence[float],
    ) -> None:
        self._snapshot = snapshot
        self._instruments = instruments
        self._bounds = [floatToGoString(bound) for bound in (*bounds, float("inf"))]  # type: ignore[no-untyped-call]

    def collect(self) -> Iterator[MetricFamily]:
        """The metrics as they are now."""
        rows: dict[str, Rows] = {}
        for key, value in self._snapshot().items():
            rows.setdefault(key.metric, []).append((key.labels, value))
        # A metric may be recorded with several instruments, one for each value of a label.
        metrics = {metric.name: metric for each in self._instruments() for metric in each.metrics}
        for name, metric in metrics.items():
            yield self._family(metric, rows.get(name, []))

    def _family(self, metric: Metric, rows: Rows) -> MetricFamily:
        name, kind, help_, labels, _ = metric
        if kind == "histogram":
            histogram = HistogramMetricFamily(name, help_, labels=labels)
            for values, value in rows:
                if len(value.exemplars) == len(self._bounds):  # not those of another release, with other buckets
                    histogram.add_metric(values, self._buckets(value), value.numbers[-1])
            return histogram
        family = (CounterMetricFamily if kind == "counter" else GaugeMetricFamily)(name, help_, labels=labels)
        for values, value in rows:
            family.add_metric(values, value.numbers[0])
        return family

    def _buckets(self, value: SeriesValue) -> Buckets:
        buckets: Buckets = []
        total = 0.0
        for label, count, exemplar in zip(self._bounds, value.numbers[:-1], value.exemplars, strict=True):
            total += count
            if exemplar is None:
                buckets.append((label, total))
            else:
                trace_id, seconds, at = exemplar
                buckets.append((label, total, Exemplar({"trace_id": f"{trace_id:032x}"}, seconds, at)))
        return buckets


class ProcessMetrics(Instrument):
    """What the process uses, as ``prometheus_client`` tells it, to be added to what its siblings use.

    Of the start times the latest counts, so that one sees when a process was replaced.
    """

    def __init__(self) -> None:
        registry = CollectorRegistry(auto_describe=False)
        self._collectors = (ProcessCollector(registry=registry), GCCollector(registry=registry))
        metrics = {metric.name: metric for metric, _ in self._families()}
        super().__init__(*metrics.values())

    def refresh(self) -> None:
        """Ask for the values."""
        families = list(self._families())
        with self.lock:
            for metric, family in families:
                for sample in family.samples:
                    labels = tuple(sample.labels[name] for name in metric.labels)
                    self._set(metric, labels, sample.value)

    def _families(self) -> Iterator[tuple[Metric, MetricFamily]]:
        for collector in self._collectors:
            for family in collector.collect():
                if family.samples:
                    counter = family.type == "counter"
                    labels = tuple(family.samples[0].labels)
                    latest = family.name == "process_start_time_seconds"
                    aggregation: Aggregation = "total" if counter else "max" if latest else "sum"
                    kind: Kind = "counter" if counter else "gauge"
                    yield Metric(family.name, kind, family.documentation, labels, aggregation), family


def make_registry(collector: AgentCollector, *, with_process: bool) -> CollectorRegistry:
    """Make the registry of a service, with the metrics of Python besides.

    Args:
        collector: Makes the service's metrics.
        with_process: Whether those of the process are wanted too.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    PlatformCollector(registry=registry)
    if with_process:
        ProcessCollector(registry=registry)
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
