"""The tracer: whose provider it is of, and when that is set up."""

import logging
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.trace import Span, SpanKind, Tracer
from opentelemetry.util.types import AttributeValue

from agentcore_telemetry.environment import TraceSettings, import_module
from agentcore_telemetry.locks import ForkSafeLock

if TYPE_CHECKING:
    from agentcore_telemetry.spans import ServerTracer

logger = logging.getLogger(__name__)

SCOPE = "litestar_agentcore"
"""The name of the instrumentation scope: who records."""

RequestAttributes = Callable[[], Mapping[str, str]]
"""Returns the attributes of the request in whose context it is called; empty outside one."""

# The API reads the one whenever it is asked for the provider and there is none, the SDK the other whenever it makes a
# tracer: they are removed for good where they are not understood, or every library would raise or warn anew.
_PROVIDER_VARIABLE = "OTEL_PYTHON_TRACER_PROVIDER"
_SDK_METRICS_VARIABLE = "OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED"

_set_up_lock = ForkSafeLock()
_warned: set[str] = set()
"""The warnings of this process: several services in it read the same variables."""


class Tracing:
    """The traces of one service.

    A tracer provider that the host program has installed is used and never replaced. Else the ``OTEL_*`` variables
    decide, and where they name neither an exporter nor an endpoint, spans are not recorded and cost next to nothing.
    The variables are read when the provider is set up, so that the host program has had its chance to install one.

    Args:
        request_attributes: Returns the attributes that every span of a request carries.
        version: The service's version.
    """

    def __init__(self, request_attributes: RequestAttributes, version: str) -> None:
        self._request_attributes = request_attributes
        self._version = version
        self._provider: trace.TracerProvider | None = None
        """The provider that the tracer is of."""
        self._tracer: Tracer = trace.NoOpTracer()
        self._server_tracer: ServerTracer | None = None
        self._is_recording = False
        self._propagate = import_module("opentelemetry.propagate")
        self.disabled = False
        """Whether ``OTEL_SDK_DISABLED`` is set, and no provider of the host program's."""

    @property
    def propagator(self) -> TextMapPropagator:
        """The process's propagator: the one that the host program has set, else as ``OTEL_PROPAGATORS`` says."""
        propagator: TextMapPropagator = self._propagate.get_global_textmap()
        return propagator

    @property
    def dropped(self) -> int:
        """How many spans never reached the backend."""
        return _sdk().dropped(self._provider) if self._is_recording else 0

    def tracer(self, service_name: str) -> Tracer:
        """The tracer. Set up on first use, and again where the host program installs a provider after that.

        Args:
            service_name: What the service is called where the environment does not say.
        """
        if _global_provider() is not self._provider:
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
            attributes: The span's attributes, besides those that every span of the request carries. Not to be used
                afterwards.
            service_name: What the service is called where the environment does not say.
        """
        if self.disabled:
            return self._tracer.start_span(name, parent) if parent else trace.INVALID_SPAN
        tracer = self.tracer(service_name)
        server_tracer = self._server_tracer
        if server_tracer is None or not server_tracer.processors.only_internal:
            return tracer.start_span(name, parent, SpanKind.SERVER, attributes)
        attributes.update(self._request_attributes())
        return server_tracer.start(name, parent, attributes)

    def _set_up(self, service_name: str) -> None:
        provider = _global_provider()
        if provider is self._provider:
            return
        if not isinstance(provider, trace.ProxyTracerProvider):
            self.disabled = False
            self._use(provider)
            return
        settings = TraceSettings.from_environment(os.environ)
        for warning in settings.warnings:
            _warn(warning)
        if _SDK_METRICS_VARIABLE not in settings.variables:
            os.environ.pop(_SDK_METRICS_VARIABLE, None)
        self.disabled = settings.disabled
        with settings.in_force():
            if settings.exporters and not settings.disabled:
                trace.set_tracer_provider(_sdk().make_provider(settings, self._request_attributes, service_name))
            self._use(trace.get_tracer_provider())

    def _use(self, provider: trace.TracerProvider) -> None:
        self._tracer = trace.NoOpTracer() if self.disabled else provider.get_tracer(SCOPE, self._version)
        self._server_tracer = None
        self._is_recording = not isinstance(provider, trace.ProxyTracerProvider)
        if self._is_recording:
            _sdk().add_request_attributes(provider, self._request_attributes)
            self._server_tracer = _sdk().server_tracer(provider, SCOPE, self._version)
        self._provider = provider

    def flush(self) -> None:
        """Send what is queued, and give up what takes longer than five seconds: the service ends."""
        if self._is_recording and self._provider is not None:
            _sdk().flush(self._provider)


def _global_provider() -> trace.TracerProvider:
    try:
        return trace.get_tracer_provider()
    except Exception as error:
        value = os.environ.pop(_PROVIDER_VARIABLE, None)
        if value is None:
            raise
        if value.strip():
            _warn(f"{_PROVIDER_VARIABLE}: {value!r} is not understood and ignored: {error!r}")
        return trace.get_tracer_provider()


def _warn(warning: str) -> None:
    if warning not in _warned:
        _warned.add(warning)
        logger.warning("%s", warning)


def _sdk() -> Any:
    """What needs the SDK, which takes its time to load: only where spans are recorded."""
    return import_module("agentcore_telemetry.provider")
