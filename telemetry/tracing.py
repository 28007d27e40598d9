"""Spans: who makes them, where they go, and what every one of them says of its request."""

import importlib
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor, SpanExporter
from opentelemetry.trace import Tracer

from telemetry.environment import TelemetryError, TraceSettings
from telemetry.export import SHUTDOWN_SECONDS, SpanExportQueue

logger = logging.getLogger(__name__)

RequestAttributes = Callable[[], Mapping[str, str]]
"""Tells the attributes of the request in whose context it is called; empty outside one."""


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
        self._processor = RequestAttributesProcessor(request_attributes)
        self._version = version
        self._queue: SpanExportQueue | None = None
        self._tracer: Tracer | None = None
        self.propagator = _propagator(environment)
        if not self._settings.disabled:
            _exporter_class(self._settings)  # a missing package is an error now, and not at the first request

    @property
    def dropped(self) -> int:
        """How many spans never reached the backend."""
        return self._queue.dropped if self._queue is not None else 0

    def tracer(self, service_name: str) -> Tracer:
        """The tracer, set up on first use: by then the host program has had its chance to install a provider.

        Args:
            service_name: What the service is called where the environment does not say.

        Returns:
            A tracer.
        """
        if self._tracer is None:
            self._set_up(service_name)
            self._tracer = trace.get_tracer("service", self._version)
        return self._tracer

    def _set_up(self, service_name: str) -> None:
        settings = self._settings
        if settings.disabled:
            return
        provider = trace.get_tracer_provider()
        if isinstance(provider, trace.ProxyTracerProvider) and settings.exporters:
            resource = Resource.create({} if settings.names_service else {SERVICE_NAME: service_name})
            provider = TracerProvider(resource=resource)
            provider.add_span_processor(self._processor)
            exporter = _exporter_class(settings)
            if "otlp" in settings.exporters and exporter is not None:
                self._queue = SpanExportQueue(exporter(), settings)
                provider.add_span_processor(self._queue)
            if "console" in settings.exporters:
                provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter()))
            trace.set_tracer_provider(provider)
        elif isinstance(provider, TracerProvider):
            provider.add_span_processor(self._processor)

    def flush(self) -> None:
        """Send what is queued, and give up what takes longer than five seconds: the service ends."""
        if self._queue is not None and not self._queue.force_flush(int(SHUTDOWN_SECONDS * 1000)):
            self._queue.give_up()


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
            f"OTEL_EXPORTER_OTLP_PROTOCOL={settings.protocol} needs the package litestar-agentcore[grpc]: {error}"
        ) from None
    exporter: type[SpanExporter] = exporters.OTLPSpanExporter
    return exporter
