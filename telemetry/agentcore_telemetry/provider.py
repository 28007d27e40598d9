"""Tracer providers: the service's own, and what it adds to a host program's.

Imported where spans are recorded at all: the SDK takes its time to load, and a service without an exporter needs none.
"""

import importlib
import logging
from collections.abc import Callable, Mapping
from weakref import WeakKeyDictionary, WeakSet

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor, SpanExporter
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from agentcore_telemetry.environment import TelemetryError, TraceSettings
from agentcore_telemetry.export import SHUTDOWN_SECONDS, SpanExportQueue
from agentcore_telemetry.otlp import with_own_encoding
from agentcore_telemetry.spans import OwnProcessors, ServerTracer

# Of the process, as the provider is: several services in one process share both.
_known_providers: WeakSet[TracerProvider] = WeakSet()
_queues: WeakKeyDictionary[trace.TracerProvider, SpanExportQueue] = WeakKeyDictionary()
_own_processors: WeakKeyDictionary[trace.TracerProvider, OwnProcessors] = WeakKeyDictionary()

RequestAttributes = Callable[[], Mapping[str, str]]


class RequestAttributesProcessor(SpanProcessor):
    """Puts the attributes of the request onto every span that begins in its context, whoever records it.

    Args:
        attributes: Tells them.
    """

    def __init__(self, attributes: RequestAttributes) -> None:
        self._attributes = attributes

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Add the attributes."""
        if attributes := self._attributes():
            span.set_attributes(attributes)

    def on_end(self, span: ReadableSpan) -> None:
        """Nothing is left to do when a span ends."""

    def shutdown(self) -> None:
        """Nothing is held."""

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Nothing is held."""
        return True


def make_provider(settings: TraceSettings, request_attributes: RequestAttributes, service_name: str) -> TracerProvider:
    """Make a provider that exports what the environment says, where it says.

    Args:
        settings: What the environment says.
        request_attributes: Tells the attributes that every span of a request is to carry.
        service_name: What the service is called where the environment does not say.

    Returns:
        A provider, which nobody knows yet.
    """
    processors = OwnProcessors(RequestAttributesProcessor, SpanExportQueue)
    provider = TracerProvider(
        resource=Resource.create({} if settings.names_service else {SERVICE_NAME: service_name}),
        active_span_processor=processors,
    )
    _own_processors[provider] = processors
    # The processors are called in this order: the attributes go onto a span before an exporter sees it.
    join(provider, request_attributes)
    if (exporter := exporter_class(settings)) is not None:
        _quieten_exporters()
        _queues[provider] = queue = SpanExportQueue(exporter(), settings)
        provider.add_span_processor(queue)
    if "console" in settings.exporters:
        provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter()))
    return provider


def join(provider: trace.TracerProvider, request_attributes: RequestAttributes) -> None:
    """Have every span that a provider's tracers begin in a request carry its attributes.

    Args:
        provider: The provider; one that is not the SDK's has no way for that, and is left alone.
        request_attributes: Tells the attributes.
    """
    if isinstance(provider, TracerProvider) and provider not in _known_providers:
        _known_providers.add(provider)
        provider.add_span_processor(RequestAttributesProcessor(request_attributes))


def server_tracer(provider: trace.TracerProvider, scope: str, version: str) -> ServerTracer | None:
    """The short way to the spans of requests, where a provider is the service's own and holds nothing of them back.

    Args:
        provider: The provider.
        scope: The name of the instrumentation scope.
        version: Its version.
    """
    processors = _own_processors.get(provider)
    if processors is None or not isinstance(provider, TracerProvider):
        return None
    limits = SpanLimits()
    count = limits.max_span_attributes
    if limits.max_span_attribute_length is not None or (count is not None and count < _OWN_ATTRIBUTES):
        return None
    return ServerTracer(provider, processors, limits, InstrumentationScope(scope, version))


_OWN_ATTRIBUTES = 32
"""More attributes than the service itself puts on a span."""


def dropped(provider: trace.TracerProvider | None) -> int:
    """How many spans of a provider never reached the backend.

    Args:
        provider: The provider.
    """
    queue = _queues.get(provider) if provider is not None else None
    return queue.dropped if queue is not None else 0


def flush(provider: trace.TracerProvider) -> None:
    """Send what is queued, and give up what takes longer than five seconds: the service ends.

    Args:
        provider: The provider.
    """
    queue = _queues.get(provider)
    if queue is not None and not queue.force_flush(int(SHUTDOWN_SECONDS * 1000)):
        queue.give_up()


def _quieten_exporters() -> None:
    """Keep the exporters from saying at each try what the queue says once a minute, unless the host has the say."""
    exporters = logging.getLogger("opentelemetry.exporter.otlp")
    if exporters.level == logging.NOTSET:
        exporters.setLevel(logging.CRITICAL)


def exporter_class(settings: TraceSettings) -> type[SpanExporter] | None:
    """The exporter that the environment wants.

    Args:
        settings: What the environment says.

    Returns:
        Its class, or ``None`` where spans are not exported by OTLP.

    Raises:
        TelemetryError: It needs a package that is not there.
    """
    if "otlp" not in settings.exporters:
        return None
    module = "http" if settings.protocol == "http/protobuf" else "grpc"
    try:
        exporters = importlib.import_module(f"opentelemetry.exporter.otlp.proto.{module}.trace_exporter")
    except ImportError as error:
        raise TelemetryError(
            f"{settings.protocol_variable}={settings.protocol} needs the package litestar-agentcore[grpc]: {error}"
        ) from None
    exporter: type[SpanExporter] = exporters.OTLPSpanExporter
    return with_own_encoding(exporter)
