"""Trace context and baggage that come with a request."""

import logging
import re
from collections.abc import Callable, Mapping

from opentelemetry import baggage, trace
from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import Getter, TextMapPropagator

logger = logging.getLogger(__name__)

MAX_BAGGAGE_BYTES = 8192
"""The most that a baggage header may hold and still be passed on (W3C Baggage, section 3.3.2)."""

EXPERIMENT_ATTRIBUTES = (
    "aws.agentcore.gateway.routing_experiment_arn",
    "aws.agentcore.gateway.routing_experiment_variant_name",
)
"""Baggage members that become attributes of every span of a request."""

_KEY = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_VALUE = r"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*"
_PROPERTY = rf"\s*;\s*{_KEY}\s*(?:=\s*{_VALUE}\s*)?"
_MEMBER = re.compile(rf"\s*{_KEY}\s*=\s*{_VALUE}\s*(?:{_PROPERTY})*")
_TRACESTATE_MEMBER = re.compile(r"\s*(?:[a-z0-9][_0-9a-z\-*/@]{0,255}=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,256})?\s*")

Carrier = Mapping[str, str]


class _CarrierGetter(Getter[Carrier]):
    def get(self, carrier: Carrier, key: str) -> list[str] | None:
        value = carrier.get(key.lower())
        return None if value is None else [value]

    def keys(self, carrier: Carrier) -> list[str]:
        return list(carrier)


_getter = _CarrierGetter()


def extract_context(carrier: Mapping[str, str] | None, propagator: TextMapPropagator) -> Context:
    """Find the context that a request was sent in.

    What is malformed is left out, with one line at debug level that does not quote it: header values hold people's
    data, and the propagators' own warnings would.

    Args:
        carrier: The headers that the propagator reads, by their names in lower case. One that came in parts is a list,
            joined with commas (RFC 9110, section 5.3).
        propagator: Reads them.

    Returns:
        The parent context of the request's span. Where the host program has a span of its own for the request (by an
        ASGI instrumentation, say), that is the parent, and the headers only bring their baggage.
    """
    current = otel_context.get_current()
    if carrier is None:
        return current
    carrier = dict(carrier)
    _drop_malformed(carrier, "baggage", _is_baggage)
    _drop_malformed(carrier, "tracestate", _is_tracestate)
    extracted = propagator.extract(carrier, current, _getter)
    host_span = trace.get_current_span(current)
    return trace.set_span_in_context(host_span, extracted) if host_span.get_span_context().is_valid else extracted


def experiment_attributes(context: Context) -> dict[str, str]:
    """The attributes that come from baggage.

    Args:
        context: What :func:`extract_context` found.

    Returns:
        The routing experiment's members, by name, where there are any.
    """
    if not context:
        return {}
    members = baggage.get_all(context)
    return {name: str(members[name]) for name in EXPERIMENT_ATTRIBUTES if name in members}


def _drop_malformed(carrier: dict[str, str], name: str, is_good: Callable[[str], bool]) -> None:
    if name in carrier and not is_good(carrier[name]):
        del carrier[name]
        logger.debug("The %s header of a request is malformed or too long, and is ignored", name)


def _is_baggage(text: str) -> bool:
    return len(text) <= MAX_BAGGAGE_BYTES and all(_MEMBER.fullmatch(member) for member in text.split(","))


def _is_tracestate(text: str) -> bool:
    members = text.split(",")
    return len(members) <= 32 and all(_TRACESTATE_MEMBER.fullmatch(member) for member in members)
