"""Spans: who makes them, where they go, and what every one of them says of its request."""

import importlib
import logging
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace import Span as RecordingSpan
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor, SpanExporter
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Span, SpanKind, Tracer
from opentelemetry.util.types import AttributeValue

from telemetry.environment import TelemetryError, TraceSettings
from telemetry.export import SHUTDOWN_SECONDS, SpanExportQueue
from telemetry.otlp import with_own_encoding
from telemetry.spans import OwnProcessors, ServerTracer

logger = logging.getLogger(__name__)

# Of the process, as the provider is: several services in one process share both.
_set_up_lock = threading.Lock()
_known_providers: WeakSet[TracerProvider] = WeakSet()
_queues: WeakKeyDictionary[trace.TracerProvider, SpanExportQueue] = WeakKeyDictionary()
_own_processors: WeakKeyDictionary[trace.TracerProvider, OwnProcessors] = WeakKeyDictionary()

SCOPE = "service"
"""The name of the instrumentation scope: who records."""

RequestAttributes = Callable[[], Mapping[str, str]]
"""Tells the attributes of the request in whose context it is called; empty outside one."""


class RequestAttributesProcessor(SpanProcessor):
    """Puts the attributes of the request onto every span that begins in its context, whoever records it.

    Args:
        attributes: Tells them.
    """

    def __init__(self, attributes: RequestAttributes) -> None:
        self._attributes = attributes

    def on_start(self, span: RecordingSpan, parent_context: Context | None = None) -> None:
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


class Tracing:
    """The traces of one service.

    Configured by the ``OTEL_*`` variables. Where they name neither an exporter nor an endpoint, and the host program
    has installed no tracer provider, spans are not recorded and cost next to nothing. A provider of the host program's
    is used and never replaced.

    Args:
        request_attributes: Tells the attributes that every span of a request is to carry.
        version: The service's version.
        environment: The variables; ``os.environ`` by default.

    Raises:
        TelemetryError: An ``OTEL_*`` variable makes no sense.
    """

    def __init__(
        self, request_attributes: RequestAttributes, version: str, environment: Mapping[str, str] | None = None
    ) -> None:
        environment = os.environ if environment is None else environment
        self._settings = TraceSettings.from_environment(environment)
        self._request_attributes = request_attributes
        self._processor = RequestAttributesProcessor(request_attributes)
        self._version = version
        self._counts_itself = environment.get("OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED", "").strip().lower() == "true"
        """Whether the SDK is to count the spans that it makes, and so must make all of them."""
        self._provider: trace.TracerProvider | None = None
        self._tracer: Tracer = trace.NoOpTracer()
        self._server_tracer: ServerTracer | None = None
        self.propagator = _propagator(environment)
        if not self._settings.disabled:
            _exporter_class(self._settings)  # a missing package is an error now, and not at the first request

    @property
    def disabled(self) -> bool:
        """Whether the environment wants no spans at all."""
        return self._settings.disabled

    @property
    def dropped(self) -> int:
        """How many spans never reached the backend."""
        return queue.dropped if (queue := self._queue) is not None else 0

    @property
    def _queue(self) -> SpanExportQueue | None:
        return _queues.get(self._provider) if self._provider is not None else None

    def tracer(self, service_name: str) -> Tracer:
        """The tracer. Set up on first use, and again where the host program installs a provider after that.

        Args:
            service_name: What the service is called where the environment does not say.

        Returns:
            A tracer.
        """
        if self._settings.disabled:
            return self._tracer
        if trace.get_tracer_provider() is not self._provider:
            with _set_up_lock:
                self._set_up(service_name)
        return self._tracer

    def start_server_span(
        self, name: str, parent: Context, attributes: dict[str, AttributeValue], service_name: str
    ) -> Span:
        """Begin the span of a request.

        Args:
            name: The method and the route.
            parent: The context that the request was sent in.
            attributes: What is known of it, besides what every span of the request says. Not to be used afterwards.
            service_name: What the service is called where the environment does not say.

        Returns:
            A span.
        """
        if self._settings.disabled:
            return self._tracer.start_span(name, parent) if parent else trace.INVALID_SPAN
        tracer = self.tracer(service_name)
        ours = self._server_tracer
        if ours is None or not ours.processors.only_own:
            return tracer.start_span(name, parent, SpanKind.SERVER, attributes)
        attributes.update(self._request_attributes())
        return ours.start(name, parent, attributes)

    def _set_up(self, service_name: str) -> None:
        provider = trace.get_tracer_provider()
        if isinstance(provider, trace.ProxyTracerProvider) and self._settings.exporters:
            provider = self._make_provider(service_name)
            trace.set_tracer_provider(provider)
        if isinstance(provider, TracerProvider) and provider not in _known_providers:
            _known_providers.add(provider)
            provider.add_span_processor(self._processor)
        self._provider = provider
        self._tracer = trace.get_tracer(SCOPE, self._version)
        self._server_tracer = None
        if isinstance(provider, TracerProvider) and (processors := _own_processors.get(provider)) is not None:
            limits = SpanLimits()
            if _holds_nothing_back(limits) and not self._counts_itself:
                scope = InstrumentationScope(SCOPE, self._version)
                self._server_tracer = ServerTracer(provider, processors, limits, scope)

    def _make_provider(self, service_name: str) -> TracerProvider:
        settings = self._settings
        processors = OwnProcessors(RequestAttributesProcessor, SpanExportQueue)
        provider = TracerProvider(
            resource=Resource.create({} if settings.names_service else {SERVICE_NAME: service_name}),
            active_span_processor=processors,
        )
        _own_processors[provider] = processors
        # The processors are called in this order: the attributes go onto a span before an exporter sees it.
        provider.add_span_processor(self._processor)
        _known_providers.add(provider)
        if (exporter := _exporter_class(settings)) is not None:
            _quieten_exporters()
            _queues[provider] = queue = SpanExportQueue(exporter(), settings)
            provider.add_span_processor(queue)
        if "console" in settings.exporters:
            provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter()))
        return provider

    def flush(self) -> None:
        """Send what is queued, and give up what takes longer than five seconds: the service ends."""
        queue = self._queue
        if queue is not None and not queue.force_flush(int(SHUTDOWN_SECONDS * 1000)):
            queue.give_up()


def _quieten_exporters() -> None:
    """Keep the exporters from saying at each try what the queue says once a minute, unless the host has the say."""
    exporters = logging.getLogger("opentelemetry.exporter.otlp")
    if exporters.level == logging.NOTSET:
        exporters.setLevel(logging.CRITICAL)


def _propagator(environment: Mapping[str, str]) -> Any:
    try:
        return importlib.import_module("opentelemetry.propagate").get_global_textmap()
    except Exception as error:
        value = environment.get("OTEL_PROPAGATORS")
        raise TelemetryError(f"OTEL_PROPAGATORS={value!r} makes no sense: {error}") from None


def _exporter_class(settings: TraceSettings) -> type[SpanExporter] | None:
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


def _holds_nothing_back(limits: SpanLimits) -> bool:
    """Tell whether what the service itself says of a request fits into the limits of a span, however long it is."""
    count = limits.max_span_attributes
    return limits.max_span_attribute_length is None and (count is None or count >= _OWN_ATTRIBUTES)


_OWN_ATTRIBUTES = 32
"""More attributes than the service itself puts on a span."""
