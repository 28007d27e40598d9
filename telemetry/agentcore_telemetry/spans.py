"""The spans of the service's own requests, made without the detours that spans of unknown origin need.

A :class:`ServerSpan` is to everybody else what a span of the SDK's is: the sampler has decided on it, its ids come
from the provider's generator, it is the parent of whatever is recorded meanwhile, and exporters read it as any other.
It is only made where no span processor but the service's own would have to see it begin.
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
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, DEFAULT_ON, Decision
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
"""One for all spans, and rarely asked for; what is logged meanwhile may be written into another span."""


class ServerSpan(trace.Span, ReadableSpan):
    """A span that a :class:`ServerTracer` has begun.

    What the service knows of a request is written into it as it is made, and is well-formed. Only what others add is
    checked, and held to the provider's limits.
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
        """Set an attribute of the service's own, whose value is known to be well-formed.

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
        """The attributes, with the checks and limits that what others set is held to."""
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
        """Record what a ``with`` block raised, if anything, and end the span."""
        if exc_val is not None and self.is_recording():
            self.record_exception(exc_val, escaped=True)
            self.set_status(StatusCode.ERROR, f"{type(exc_val).__name__}: {exc_val}")
        super().__exit__(exc_type, exc_val, exc_tb)

    def end(self, end_time: int | None = None) -> None:
        """End the span and hand it on."""
        _lock.acquire()  # which takes half as long as ``with``
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
    """The span processors of a provider, and whether all of them are the service's own.

    Args:
        own: The types of those that need not see a span of the service begin.
    """

    def __init__(self, *own: type) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._own = own
        self.only_internal = True

    def add_span_processor(self, span_processor: Any) -> None:
        """Add a processor."""
        self.only_internal = self.only_internal and isinstance(span_processor, self._own)
        super().add_span_processor(span_processor)


class ServerTracer:
    """Begins the spans of the service's requests.

    Args:
        provider: The provider whose sampler and ids are used.
        processors: Its processors.
        limits: Its limits.
        scope: Who records.
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
        self._takes_roots = self._sampler is DEFAULT_ON or self._sampler is ALWAYS_ON
        """Whether the sampler is known to take each span without a parent, as it is."""
        self._ids = provider.id_generator
        is_random = getattr(self._ids, "is_trace_id_random", None)
        self._root_flags = _RANDOM_TRACE_ID if is_random is not None and is_random() else 0
        self._flags = {value: TraceFlags(value) for value in range(4)}

    def start(self, name: str, parent: Context, attributes: dict[str, AttributeValue]) -> trace.Span:
        """Begin a span.

        Args:
            name: What happens.
            parent: The context that it happens in.
            attributes: What is known of it. Not to be used afterwards.

        Returns:
            A span, which does not record where the sampler does not want it.
        """
        above: SpanContext | None = trace.get_current_span(parent).get_span_context() if parent else None
        if above is None or not above.is_valid:
            above = None
            trace_id, flags = self._ids.generate_trace_id(), self._root_flags
            if self._takes_roots:
                flags = self._flags[flags | TraceFlags.SAMPLED]
                return ServerSpan(
                    self, name, SpanContext(trace_id, self._ids.generate_span_id(), False, flags), None, attributes
                )
        else:
            trace_id, flags = above.trace_id, above.trace_flags & _RANDOM_TRACE_ID
        result = self._sampler.should_sample(parent, trace_id, name, SpanKind.SERVER, attributes, ())
        if result.decision is Decision.RECORD_AND_SAMPLE:
            flags |= TraceFlags.SAMPLED
        context = SpanContext(trace_id, self._ids.generate_span_id(), False, self._flags[flags], result.trace_state)
        if result.decision is Decision.DROP:
            return trace.NonRecordingSpan(context)
        wanted = result.attributes
        return ServerSpan(self, name, context, above, attributes if wanted == attributes else dict(wanted or {}))
