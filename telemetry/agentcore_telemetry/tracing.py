"""Spans: who makes them, where they go, and what every one of them says of its request."""

import importlib
import os
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Tracer
from opentelemetry.util.types import AttributeValue

from agentcore_telemetry.environment import TelemetryError, TraceSettings

if TYPE_CHECKING:
    from agentcore_telemetry.spans import ServerTracer

_set_up_lock = threading.Lock()

SCOPE = "litestar_agentcore"
"""The name of the instrumentation scope: who records."""

RequestAttributes = Callable[[], Mapping[str, str]]
"""Tells the attributes of the request in whose context it is called; empty outside one."""


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
        self._version = version
        self._counts_itself = environment.get("OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED", "").strip().lower() == "true"
        """Whether the SDK is to count the spans that it makes, and so must make all of them."""
        self._provider: trace.TracerProvider | None = None
        self._tracer: Tracer = trace.NoOpTracer()
        self._server_tracer: ServerTracer | None = None
        self._recorded = False
        """Whether spans are recorded by anybody."""
        self.propagator = _propagator(environment)
        if not self._settings.disabled:
            self._require_exporter()  # a missing package is an error now, and not at the first request

    @property
    def disabled(self) -> bool:
        """Whether the environment wants no spans at all."""
        return self._settings.disabled

    @property
    def dropped(self) -> int:
        """How many spans never reached the backend."""
        return _sdk().dropped(self._provider) if self._recorded else 0

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
        if not isinstance(provider, trace.ProxyTracerProvider) or self._settings.exporters:
            if isinstance(provider, trace.ProxyTracerProvider):
                provider = _sdk().make_provider(self._settings, self._request_attributes, service_name)
                trace.set_tracer_provider(provider)
            _sdk().join(provider, self._request_attributes)
            self._recorded = True
            self._server_tracer = None
            if not self._counts_itself:
                self._server_tracer = _sdk().server_tracer(provider, SCOPE, self._version)
        self._provider = provider
        self._tracer = trace.get_tracer(SCOPE, self._version)

    def _require_exporter(self) -> None:
        if "otlp" in self._settings.exporters:
            _sdk().exporter_class(self._settings)

    def flush(self) -> None:
        """Send what is queued, and give up what takes longer than five seconds: the service ends."""
        if self._recorded and self._provider is not None:
            _sdk().flush(self._provider)


def _sdk() -> Any:
    """What needs the SDK, which takes its time to load: only where spans are recorded."""
    return importlib.import_module("agentcore_telemetry.provider")


def _propagator(environment: Mapping[str, str]) -> Any:
    try:
        return importlib.import_module("opentelemetry.propagate").get_global_textmap()
    except Exception as error:
        value = environment.get("OTEL_PROPAGATORS")
        raise TelemetryError(f"OTEL_PROPAGATORS={value!r} makes no sense: {error}") from None
