"""The fast path to the SERVER spans of requests.

A :class:`ServerSpan` is to everybody else what a span of the SDK's is: the sampler has decided on it, its ids come
from the provider's generator, it is the parent of whatever is recorded meanwhile, and exporters read it as any other.
It is only made where all span processors are the service's own, since the SDK's spans alone are announced by
``on_start``.
"""

import logging
import traceback
from collections.abc import Mapping, MutableMapping
from time import time_ns
from types import TracebackType
from typing import Any

from opentelemetry import trace
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.context import Context
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanLimits, SynchronousMultiSpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.sdk.util import BoundedList
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.util.types import Attributes, AttributeValue

from agentcore_telemetry.locks import ForkSafeLock

logger = logging.getLogger(__name__)

_UNSET = Status(StatusCode.UNSET)
_RANDOM_TRACE_ID = 0x02
"""The flag of W3C Trace Context, level 2, section 3.2.2.5.2."""

_lock = ForkSafeLock()
"""One for all spans. Reentrant: what is logged while it is held may be recorded in another span."""


class ServerSpan(trace.Span, ReadableSpan):
    """A span that a :class:`ServerTracer` has started.

    The attributes that the service sets are well-formed and within the limits, so only what others set is checked.
    """

    def __init__(
        self,
        tracer: "ServerTracer",
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        attributes: dict[str, AttributeValue],
    ) -> None:
        # The fields of ReadableSpan, whose own __init__ would make a resource and more for each span.
        self._tracer = tracer
        self._name = name
        self._context = context
        self._kind = SpanKind.SERVER
        self._instrumentation_info = None
        self._instrumentation_scope = tracer.scope
        self._parent = parent
        self._end_time: int | None = None
        self._attributes: MutableMapping[str, AttributeValue] = attributes
        self._events: Any = ()
        self._links: Any = ()
        self._resource = tracer.provider.resource
        self._status = _UNSET
        self._start_time = time_ns()

    def get_span_context(self) -> SpanContext:
        """The ids of the span."""
        return self._context  # type: ignore[return-value]

    def is_recording(self) -> bool:
        """Whether the span has not ended."""
        return self._end_time is None

    def set_attribute_unchecked(self, key: str, value: AttributeValue) -> None:
        """Set an attribute of the service's own.

        Args:
            key: Its name.
            value: A string, a number or a boolean.
        """
        self._attributes[key] = value

    def set_attribute(self, key: str, value: AttributeValue) -> None:
        """Set an attribute."""
        with _lock:
            if not self._ended("set an attribute"):
                self._checked()[key] = value

    def set_attributes(self, attributes: Mapping[str, AttributeValue]) -> None:
        """Set attributes."""
        with _lock:
            if self._ended("set attributes"):
                return
            checked = self._checked()
            at_once = getattr(checked, "_set_items", None)  # which newer SDKs have, with rules of its own
            if at_once is not None:
                at_once(attributes)
                return
            for key, value in attributes.items():
                checked[key] = value

    def _checked(self) -> MutableMapping[str, AttributeValue]:
        """The attributes, as a mapping that checks values and enforces the limits."""
        if not isinstance(self._attributes, BoundedAttributes):
            limits = self._tracer.limits
            self._attributes = BoundedAttributes(
                limits.max_span_attributes,
                dict(self._attributes),
                immutable=False,
                max_value_len=limits.max_span_attribute_length,
            )
        return self._attributes

    def add_event(self, name: str, attributes: Attributes = None, timestamp: int | None = None) -> None:
        """Add an event."""
        limits = self._tracer.limits
        bounded = BoundedAttributes(limits.max_event_attributes, attributes, max_value_len=limits.max_attribute_length)
        event = Event(name, bounded, timestamp)
        with _lock:
            if not self._ended("add an event"):
                if not isinstance(self._events, BoundedList):
                    self._events = BoundedList(limits.max_events)
                self._events.append(event)

    def add_link(self, context: SpanContext | None, attributes: Attributes = None) -> None:
        """Add a link to another span."""
        if not (context and (context.is_valid or attributes or context.trace_state)):
            return
        limits = self._tracer.limits
        bounded = BoundedAttributes(limits.max_link_attributes, attributes, max_value_len=limits.max_attribute_length)
        with _lock:
            if not self._ended("add a link"):
                if not isinstance(self._links, BoundedList):
                    self._links = BoundedList(limits.max_links)
                self._links.append(Link(context, bounded))

    def update_name(self, name: str) -> None:
        """Give the span another name."""
        with _lock:
            if not self._ended("update the name"):
                self._name = name

    def set_status(self, status: object, description: str | None = None) -> None:
        """Set the status: OK is final, and UNSET says nothing."""
        if isinstance(status, StatusCode):
            status = Status(status, description)
        if not isinstance(status, Status):  # as the SDK has it: a wrong call must not cost a request
            return
        with _lock:
            if self._ended("set the status") or status.status_code is StatusCode.UNSET:
                return
            if self._status.status_code is not StatusCode.OK:
                self._status = status

    def record_exception(
        self,
        exception: BaseException,
        attributes: Attributes = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None:
        """Add an event that tells of an exception, as the conventions have it."""
        kind = type(exception)
        module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
        self.add_event(
            "exception",
            {
                "exception.type": f"{module}{kind.__qualname__}",
                "exception.message": str(exception),
                "exception.stacktrace": "".join(traceback.format_exception(exception)),
                "exception.escaped": str(escaped),
                **(attributes or {}),
            },
            timestamp,
        )

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        """Record what the ``with`` block raised, if anything, and end the span."""
        if exc_val is not None and self.is_recording():
            self.record_exception(exc_val, escaped=True)
            self.set_status(StatusCode.ERROR, f"{type(exc_val).__name__}: {exc_val}")
        super().__exit__(exc_type, exc_val, exc_tb)

    def end(self, end_time: int | None = None) -> None:
        """End the span and pass it to the processors."""
        _lock.acquire()  # takes half as long as ``with``
        try:
            if self._ended("end"):
                return
            self._end_time = time_ns() if end_time is None else end_time
        finally:
            _lock.release()
        self._tracer.processors.on_end(self)

    def _ended(self, what: str) -> bool:
        if self._end_time is None:
            return False
        logger.warning("An ended span was asked to %s", what)
        return True


class InternalSpanProcessors(SynchronousMultiSpanProcessor):
    """The span processors of a provider of the service's own.

    Args:
        internal: The types of the processors that a :class:`ServerSpan` may pass by when it starts.
    """

    def __init__(self, *internal: type) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._internal = internal
        self.only_internal = True
        """Whether there are no others."""

    def add_span_processor(self, span_processor: Any) -> None:
        """Add a processor."""
        self.only_internal = self.only_internal and isinstance(span_processor, self._internal)
        super().add_span_processor(span_processor)


class ServerTracer:
    """Starts the spans of requests.

    Args:
        provider: The provider whose sampler, id generator and resource are used.
        processors: Its processors.
        limits: Its limits.
        scope: The instrumentation scope.
    """

    def __init__(
        self,
        provider: TracerProvider,
        processors: InternalSpanProcessors,
        limits: SpanLimits,
        scope: InstrumentationScope,
    ) -> None:
        self.processors = processors
        self.limits = limits
        self.scope = scope
        self.provider = provider
        self._sampler = provider.sampler
        self._ids = provider.id_generator
        is_random = getattr(self._ids, "is_trace_id_random", None)  # newer SDKs have it
        self._root_flags = _RANDOM_TRACE_ID if is_random is not None and is_random() else 0

    def start(self, name: str, parent: Context, attributes: dict[str, AttributeValue]) -> trace.Span:
        """Start a span, as the SDK's tracer does.

        Args:
            name: The span's name.
            parent: The context with the parent span, if there is one.
            attributes: The span's attributes. Not to be used afterwards.

        Returns:
            A span; one that does not record where the sampler drops it.
        """
        parent_context: SpanContext | None = trace.get_current_span(parent).get_span_context() if parent else None
        if parent_context is None or not parent_context.is_valid:
            parent_context = None
            trace_id, flags = self._ids.generate_trace_id(), self._root_flags
        else:
            trace_id, flags = parent_context.trace_id, parent_context.trace_flags & _RANDOM_TRACE_ID
        result = self._sampler.should_sample(parent, trace_id, name, SpanKind.SERVER, attributes, ())
        if result.decision is Decision.RECORD_AND_SAMPLE:
            flags |= TraceFlags.SAMPLED
        context = SpanContext(
            trace_id, self._ids.generate_span_id(), False, TraceFlags(flags), trace_state=result.trace_state
        )
        if result.decision is Decision.DROP:
            return trace.NonRecordingSpan(context)
        sampled = result.attributes  # with those that the sampler adds
        return ServerSpan(
            self, name, context, parent_context, attributes if sampled == attributes else dict(sampled or {})
        )
