"""Tracer providers: the service's own, and what it adds to a host program's.

Imported where spans are recorded at all: the SDK takes its time to load, and a service without an exporter needs none.
"""

import importlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, WeakSet

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import DEFAULT_ON, Sampler
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from agentcore_telemetry.environment import (
    EXPORTERS,
    HTTP,
    ID_GENERATORS,
    OTLP_MODULES,
    SAMPLERS,
    TraceSettings,
    find_entry_point,
)
from agentcore_telemetry.export import SHUTDOWN_SECONDS, SpanExportQueue
from agentcore_telemetry.otlp import with_own_encoding, with_session
from agentcore_telemetry.spans import InternalSpanProcessors, ServerTracer

logger = logging.getLogger(__name__)


class _OwnProvider(NamedTuple):
    """What belongs to a provider that this module has made."""

    processors: InternalSpanProcessors
    limits: SpanLimits
    queues: list[SpanExportQueue]
    sdk_metrics: bool


# Of the process, as the provider is: several services in one process share both.
_own_providers: WeakKeyDictionary[trace.TracerProvider, _OwnProvider] = WeakKeyDictionary()
_with_request_attributes: WeakSet[TracerProvider] = WeakSet()

RequestAttributes = Callable[[], Mapping[str, str]]


class RequestAttributesProcessor(SpanProcessor):
    """Puts the attributes of the request onto every span that begins in its context, those of other libraries included.

    Args:
        attributes: Returns them.
    """

    def __init__(self, attributes: RequestAttributes) -> None:
        self._attributes = attributes

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Add the attributes."""
        if attributes := self._attributes():
            span.set_attributes(attributes)

    def on_end(self, span: ReadableSpan) -> None:
        """Do nothing."""

    def shutdown(self) -> None:
        """Do nothing."""

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Do nothing."""
        return True


def make_provider(settings: TraceSettings, request_attributes: RequestAttributes, service_name: str) -> TracerProvider:
    """Make a provider as the environment says. What cannot be used is named in a warning, and the default used instead.

    Args:
        settings: What the environment says; in force.
        request_attributes: Returns the attributes that every span of a request carries.
        service_name: What the service is called where the environment does not say.
    """
    limits = SpanLimits()
    processors = InternalSpanProcessors(RequestAttributesProcessor, SpanExportQueue)
    provider = TracerProvider(
        sampler=_sampler(settings),
        resource=Resource.create({} if settings.names_service else {SERVICE_NAME: service_name}),
        active_span_processor=processors,
        id_generator=_id_generator(settings),
        span_limits=limits,
    )
    _own_providers[provider] = own = _OwnProvider(processors, limits, [], settings.sdk_metrics)
    # The processors are called in this order: the attributes go onto a span before an exporter sees it.
    add_request_attributes(provider, request_attributes)
    for queue in _queues(settings):
        own.queues.append(queue)
        provider.add_span_processor(queue)
    if "console" in settings.exporters:
        provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter()))
    return provider


def add_request_attributes(provider: trace.TracerProvider, request_attributes: RequestAttributes) -> None:
    """Have every span that a provider's tracers begin in a request carry its attributes.

    Args:
        provider: The provider; one that is not the SDK's has no way for that, and is left alone.
        request_attributes: Returns the attributes.
    """
    if isinstance(provider, TracerProvider) and provider not in _with_request_attributes:
        _with_request_attributes.add(provider)
        provider.add_span_processor(RequestAttributesProcessor(request_attributes))


_OWN_ATTRIBUTES = 32
"""More attributes than the service itself puts on a span."""


def server_tracer(provider: trace.TracerProvider, scope: str, version: str) -> ServerTracer | None:
    """The fast path to the spans of requests, for a provider of the service's own whose limits cut none of them.

    Args:
        provider: The provider.
        scope: The name of the instrumentation scope.
        version: Its version.
    """
    own = _own_providers.get(provider)
    if own is None or own.sdk_metrics or not isinstance(provider, TracerProvider):
        return None
    count = own.limits.max_span_attributes
    if own.limits.max_span_attribute_length is not None or (count is not None and count < _OWN_ATTRIBUTES):
        return None
    return ServerTracer(provider, own.processors, own.limits, InstrumentationScope(scope, version))


def dropped(provider: trace.TracerProvider | None) -> int:
    """How many spans of a provider never reached the backend.

    Args:
        provider: The provider.
    """
    return sum(queue.dropped for queue in _queues_of(provider))


def flush(provider: trace.TracerProvider) -> None:
    """Send what is queued, and drop what takes longer than five seconds: the service ends.

    Args:
        provider: The provider.
    """
    deadline = time.monotonic() + SHUTDOWN_SECONDS
    for queue, flushed in [(queue, queue.start_flush()) for queue in _queues_of(provider)]:
        if not flushed.wait(max(0.0, deadline - time.monotonic())):
            queue.abandon()


def _queues_of(provider: trace.TracerProvider | None) -> list[SpanExportQueue]:
    own = None if provider is None else _own_providers.get(provider)
    return [] if own is None else own.queues


def exporter_class(name: str, settings: TraceSettings) -> type[SpanExporter]:
    """The class of an exporter.

    Args:
        name: ``otlp``, or the name of an entry point.
        settings: What the environment says.

    Raises:
        ImportError: Its package is not installed as it should be.
        LookupError: There is no such entry point.
    """
    exporter: type[SpanExporter]
    if name == "otlp":
        exporter = importlib.import_module(OTLP_MODULES[settings.protocol]).OTLPSpanExporter
    else:
        exporter = _load(EXPORTERS, name)
    if getattr(exporter, "__module__", "") == OTLP_MODULES[HTTP] and not settings.provides_session:
        sessions = importlib.import_module("agentcore_telemetry.export_session")
        exporter = with_session(exporter, sessions.ExportSession)
    return with_own_encoding(exporter)


def _make_exporter(name: str, settings: TraceSettings) -> SpanExporter:
    with settings.in_force():
        exporter: SpanExporter = _checked(exporter_class(name, settings)(), SpanExporter)
        return exporter


def _queues(settings: TraceSettings) -> Iterator[SpanExportQueue]:
    for name in settings.exporters:
        if name == "console":
            continue
        _silence_exporter_logs()
        try:
            yield SpanExportQueue(partial(_make_exporter, name, settings), settings)
        except Exception as error:  # others' code
            _warn("OTEL_TRACES_EXPORTER", name, error)


def _silence_exporter_logs() -> None:
    """Keep the OTLP exporters from logging at each try what the queue logs once a minute, unless the host sets it."""
    exporters = logging.getLogger("opentelemetry.exporter.otlp")
    if exporters.level == logging.NOTSET:
        exporters.setLevel(logging.CRITICAL)


def _sampler(settings: TraceSettings) -> Sampler | None:
    """The sampler, where it is none that the SDK itself makes from the environment."""
    if settings.sampler is None:
        return None
    try:
        sampler: Sampler = _checked(_load(SAMPLERS, settings.sampler)(settings.sampler_argument), Sampler)
    except Exception as error:  # others' code
        _warn("OTEL_TRACES_SAMPLER", settings.sampler, error)
        return DEFAULT_ON
    return sampler


def _id_generator(settings: TraceSettings) -> IdGenerator | None:
    if settings.id_generator is None:
        return None
    try:
        generator: IdGenerator = _checked(_load(ID_GENERATORS, settings.id_generator)(), IdGenerator)
    except Exception as error:  # others' code
        _warn("OTEL_PYTHON_ID_GENERATOR", settings.id_generator, error)
        return None
    return generator


def _load(group: str, name: str) -> Any:
    entry = find_entry_point(group, name)
    if entry is None:
        raise LookupError(f"there is no entry point {name} of {group}")
    return entry.load()


def _checked(component: Any, kind: type) -> Any:
    if not isinstance(component, kind):
        raise TypeError(f"it makes a {type(component).__name__}, which is no {kind.__name__}")
    return component


def _warn(variable: str, name: str, error: Exception) -> None:
    logger.warning("%s: %r cannot be used and is ignored: %s: %s", variable, name, type(error).__name__, error)
