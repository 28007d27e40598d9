"""Whether the tracing backend takes a span: one is sent, as the service would send it."""

import inspect
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from agentcore_telemetry.environment import TraceSettings, import_module
from agentcore_telemetry.tracing import SCOPE
from opentelemetry import trace

from litestar_agentcore.cli.findings import Finding, without_credentials

_END_SECONDS = 0.5

_REASONS = (
    ("connection refused", "nothing listens there (connection refused)"),
    ("failed to resolve|name or service not known|DNS resolution failed", "the name of its host is not found"),
    (
        "certificate_verify_failed",
        "its certificate is not trusted: OTEL_EXPORTER_OTLP_CERTIFICATE names the authority's",
    ),
    ("wrong_version_number|record layer failure", "it does not speak TLS: the address begins with http://"),
)
"""What the exporters' lines on a failure mean, where they are not clear to read."""

_RETRY_SECONDS = 3.0
"""Within less time the exporters do not try again, and then they do not say why the first try failed either."""

SPAN = "litestar-agent doctor"

_NOT_TAKEN = (
    "Look at the address, the protocol and the headers (OTEL_EXPORTER_OTLP_*), and at whether the backend runs."
)


def check_traces(service_name: str, limit: float) -> Iterator[Finding]:
    """Send a span to wherever spans go.

    Args:
        service_name: What the service is called where the environment does not say.
        limit: How long the backend may take, in seconds.
    """
    settings = TraceSettings.from_environment(os.environ)
    provider = _installed_provider()
    if provider is not None:
        yield _through_provider(provider, limit)
    elif settings.disabled:
        yield Finding("warning", "traces", "OTEL_SDK_DISABLED switches them off")
    elif not settings.exporters:
        yield Finding("ok", "traces", "none: no exporter", "OTEL_EXPORTER_OTLP_ENDPOINT names where to send them.")
    else:
        for name in settings.exporters:
            if name == "console":
                yield Finding("ok", "traces", "written to standard output (console)")
            else:
                yield _through_exporter(name, settings, service_name, limit)


def _installed_provider() -> trace.TracerProvider | None:
    with suppress(Exception):  # a variable that the API does not understand, of which the settings tell
        provider = trace.get_tracer_provider()
        if not isinstance(provider, trace.ProxyTracerProvider):
            return provider
    return None


def _through_exporter(name: str, settings: TraceSettings, service_name: str, limit: float) -> Finding:
    subject = f"traces ({name})"
    provider_module = import_module("agentcore_telemetry.provider")
    with settings.in_force(), _logged() as lines:
        try:
            make = provider_module.exporter_class(name, settings)
            takes_timeout = "timeout" in inspect.signature(make).parameters
            exporter = make(timeout=max(limit, _RETRY_SECONDS)) if takes_timeout else make()
            span = _span(settings, service_name)
        except Exception as error:  # others' code
            return Finding("failure", subject, without_credentials(f"{type(error).__name__}: {error}"))
        result, seconds = _within(limit, lambda: exporter.export([span]))
        reason = _reason(result, lines, limit)
        _within(_END_SECONDS, exporter.shutdown)  # which has it say that it tries no more
    endpoint = without_credentials(str(getattr(exporter, "_endpoint", "") or name))
    if result is not None and not isinstance(result, Exception) and result.name == "SUCCESS":
        return Finding("ok", subject, f"{endpoint} took a span in {seconds * 1000:.0f} ms")
    return Finding("failure", subject, f"{endpoint} took no span: {reason}", _NOT_TAKEN)


def _through_provider(provider: trace.TracerProvider, limit: float) -> Finding:
    kind = type(provider).__module__ + "." + type(provider).__qualname__
    subject = "traces"
    with _logged() as lines:
        span = provider.get_tracer(SCOPE).start_span(SPAN)
        recorded = span.is_recording()
        span.end()
        flush: Callable[..., Any] | None = getattr(provider, "force_flush", None)
        if not recorded:
            return Finding("warning", subject, f"the installed provider ({kind}) records no span: its sampler, or none")
        if flush is None:
            return Finding("ok", subject, f"an installed provider ({kind}) records them")
        result, seconds = _within(limit, lambda: flush(int(limit * 1000)))
    if result is True and not lines:
        return Finding("ok", subject, f"the installed provider ({kind}) sent a span in {seconds * 1000:.0f} ms")
    reason = _reason(result, lines, limit)
    return Finding("failure", subject, f"the installed provider ({kind}) sent no span: {reason}", _NOT_TAKEN)


def _span(settings: TraceSettings, service_name: str) -> Any:
    """A span as the service's own provider makes them."""
    sdk, resources = import_module("opentelemetry.sdk.trace"), import_module("opentelemetry.sdk.resources")
    ended: list[Any] = []

    class Collecting(sdk.SpanProcessor):  # type: ignore[misc, name-defined]
        def on_end(self, span: Any) -> None:
            ended.append(span)

    attributes = {} if settings.names_service else {"service.name": service_name}
    sampler = import_module("opentelemetry.sdk.trace.sampling").ALWAYS_ON
    provider = sdk.TracerProvider(
        sampler=sampler, resource=resources.Resource.create(attributes), shutdown_on_exit=False
    )
    provider.add_span_processor(Collecting())
    provider.get_tracer(SCOPE).start_span(SPAN).end()
    return ended[0]


def _within(limit: float, call: Callable[[], Any]) -> tuple[Any, float]:
    """Call something in a thread.

    Returns:
        What it returned or raised, ``None`` where it takes longer than the limit; and how long it took, in seconds.
    """
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(call())
        except Exception as error:  # others' code
            outcome.append(error)

    began = time.monotonic()
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(limit + _END_SECONDS)
    return (outcome[0] if outcome else None), time.monotonic() - began


def _reason(result: Any, lines: list[str], limit: float) -> str:
    if isinstance(result, Exception):
        return without_credentials(f"{type(result).__name__}: {result}")
    text = "\n".join(lines)
    for pattern, meaning in _REASONS:
        if re.search(pattern, text, re.IGNORECASE):
            return meaning
    if transient := re.search(r"Transient error (.*) encountered while", text):
        return without_credentials(transient[1])
    if lines and "due to timeout" not in lines[-1]:
        return without_credentials(lines[-1])
    return f"no answer within {limit:g} s"


@contextmanager
def _logged() -> Iterator[list[str]]:
    """What OpenTelemetry's loggers say at WARNING or above, which nobody else hears meanwhile."""
    lines: list[str] = []

    class Listening(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger, handler = logging.getLogger("opentelemetry"), Listening(logging.WARNING)
    propagated, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagated
