"""The service's own way to the span of a request: to everybody else that is the span that the SDK would have made."""

import asyncio
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from typing import Any, cast

import pytest
from agentcore_telemetry.environment import TraceSettings
from agentcore_telemetry.provider import make_provider, server_tracer
from agentcore_telemetry.spans import InternalSpanProcessors, ServerSpan, ServerTracer
from agentcore_telemetry.tracing import Tracing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from litestar.testing import TestClient
from litestar_agentcore import BedrockAgentCoreApp
from opentelemetry import baggage, trace
from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    AlwaysRecordSampler,
    Decision,
    ParentBased,
    Sampler,
    SamplingResult,
    TraceIdRatioBased,
)
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
)
from opentelemetry.util._once import Once

from tests.integration.server import PATIENCE, app_of, eventually, receive_until, request, serve
from tests.unit.conftest import REQUEST_ID, SESSION_ID, Kept

TRACE_ID = 0x0AF7651916CD43DD8448EB211C80319C
PARENT_ID = 0xB7AD6B7169203331
EXPERIMENT = "aws.agentcore.gateway.routing_experiment_arn"
HERE = Resource({"service.name": "agent"})
SCOPE = InstrumentationScope("litestar_agentcore", "1")
WHEN = 1_700_000_000_000_000_000


class Numbers(IdGenerator):
    """Ids one after the other, so that two tracers give the same."""

    def __init__(self, random: bool = True, first: int = 1) -> None:
        self._numbers = count(first)
        self._random = random

    def generate_span_id(self) -> int:
        return next(self._numbers)

    def generate_trace_id(self) -> int:
        return next(self._numbers)

    def is_trace_id_random(self) -> bool:
        return self._random


class Pair:
    """A tracer of the service's and one of the SDK's that are to make the same spans."""

    def __init__(
        self, sampler: Sampler = ALWAYS_ON, limits: SpanLimits | None = None, ids: Callable[[], IdGenerator] = Numbers
    ) -> None:
        limits = limits or SpanLimits()
        self.own_ended, self.sdk_ended = Kept(), Kept()
        processors = InternalSpanProcessors(Kept)
        own = TracerProvider(sampler, HERE, False, processors, ids(), limits)
        own.add_span_processor(self.own_ended)
        sdk = TracerProvider(sampler, HERE, False, None, ids(), limits)
        sdk.add_span_processor(self.sdk_ended)
        self._own = ServerTracer(own, processors, limits, SCOPE)
        self._sdk = sdk.get_tracer(SCOPE.name, SCOPE.version)

    def start(self, attributes: Mapping[str, Any], parent: Context | None = None) -> tuple[trace.Span, trace.Span]:
        parent = Context() if parent is None else parent
        own = self._own.start("POST /invocations", parent, dict(attributes))
        sdk = self._sdk.start_span("POST /invocations", parent, SpanKind.SERVER, dict(attributes))
        return own, sdk


def under(parent: SpanContext | None) -> Context:
    return Context() if parent is None else trace.set_span_in_context(NonRecordingSpan(parent), Context())


def readable(span: Any) -> Any:
    assert isinstance(span, ReadableSpan)
    return span


def told(span: Any) -> dict[str, Any]:
    """All that an exporter can read of a span, but when it began."""
    span = readable(span)
    return {
        "name": span.name,
        "context": span.context,
        "get_span_context": span.get_span_context(),
        "flags": (span.context.trace_flags, span.context.trace_state, span.context.is_remote),
        "kind": span.kind,
        "parent": span.parent,
        "end": span.end_time,
        "status": (span.status.status_code, span.status.description, span.status.is_ok, span.status.is_unset),
        "attributes": items(span.attributes),
        "events": [(event.name, event.timestamp, items(event.attributes)) for event in span.events],
        "links": [(link.context, items(link.attributes)) for link in span.links],
        "dropped": (span.dropped_attributes, span.dropped_events, span.dropped_links),
        "dropped of events": [event.dropped_attributes for event in span.events],
        "dropped of links": [link.dropped_attributes for link in span.links],
        "resource": span.resource,
        "scope": span.instrumentation_scope,
    }


def items(attributes: Mapping[str, Any] | None) -> list[str]:
    return [f"{key!r}: {value!r}" for key, value in (attributes or {}).items()]


# What can be done to a span


class Refused(Exception):
    """An error of an author's own."""


def raised(error: Exception) -> Exception:
    try:
        raise error
    except type(error) as caught:
        return caught


texts = st.text(max_size=12)
odd = st.builds(object).map(lambda _: {1, 2}) | st.just(LookupError("odd"))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts | st.binary(max_size=4) | odd,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=4,
)
attributes = st.dictionaries(texts, values, max_size=4)
contexts = st.builds(
    SpanContext,
    st.sampled_from([0, TRACE_ID]),
    st.sampled_from([0, PARENT_ID]),
    st.booleans(),
    st.sampled_from([TraceFlags(0), TraceFlags(1)]),
    st.sampled_from([None, TraceState([("vendor", "1")])]),
)
codes = st.sampled_from(StatusCode)
times = st.integers(1, 2**63)
errors = st.sampled_from([LookupError("no such tool"), Refused("größer"), ValueError()]).map(raised)
calls = st.one_of(
    st.tuples(st.just("set_attribute"), st.tuples(texts, values)),
    st.tuples(st.just("set_attributes"), st.tuples(attributes)),
    st.tuples(st.just("add_event"), st.tuples(texts, st.none() | attributes, times)),
    st.tuples(st.just("add_link"), st.tuples(contexts, st.none() | attributes)),
    st.tuples(st.just("set_status"), st.tuples(codes, st.none() | texts)),
    st.tuples(st.just("set_status"), st.tuples(st.builds(Status, codes, st.none() | texts), st.none() | texts)),
    st.tuples(st.just("update_name"), st.tuples(texts)),
    st.tuples(st.just("record_exception"), st.tuples(errors, st.none() | attributes, times, st.booleans())),
)
ends = st.tuples(st.just("end"), st.tuples(times))
limits = st.builds(
    SpanLimits,
    max_events=st.sampled_from([None, 1, 2, SpanLimits.UNSET]),
    max_links=st.sampled_from([None, 1, 2, SpanLimits.UNSET]),
    max_span_attributes=st.sampled_from([None, 3, 128, SpanLimits.UNSET]),
    max_event_attributes=st.sampled_from([None, 0, 1, SpanLimits.UNSET]),
    max_link_attributes=st.sampled_from([None, 0, 1, SpanLimits.UNSET]),
    max_attribute_length=st.sampled_from([None, 0, 2, SpanLimits.UNSET]),
    max_span_attribute_length=st.just(SpanLimits.UNSET),  # there is no short way where it is set
)
HYPOTHESIS = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=150)


@HYPOTHESIS
@given(limits, st.lists(calls | ends, max_size=8))
def test_whatever_is_called_the_span_is_as_the_sdks(
    limits: SpanLimits, calls: list[tuple[str, tuple[Any, ...]]]
) -> None:
    pair = Pair(limits=limits)
    own, sdk = pair.start({"http.route": "/invocations", "server.port": 8080})

    for name, arguments in [*calls, ("end", (WHEN,))]:
        answers = [getattr(span, name)(*arguments) for span in (own, sdk)]
        assert answers == [None, None]
        assert own.is_recording() == sdk.is_recording()
        assert told(own) == told(sdk)

    assert [told(span) for span in pair.own_ended.spans] == [told(span) for span in pair.sdk_ended.spans]
    assert len(pair.own_ended.spans) == 1


@pytest.mark.parametrize("limit", ["max_events", "max_links", "max_event_attributes", "max_link_attributes"])
@pytest.mark.parametrize("most", [0, 1])
def test_what_a_limit_drops_is_counted(limit: str, most: int) -> None:
    own, sdk = Pair(limits=SpanLimits(**{limit: most})).start({})

    for span in (own, sdk):
        for number in range(3):
            span.add_event(f"event {number}", {"a": 1, "b": 2}, WHEN)
            span.add_link(SpanContext(TRACE_ID, PARENT_ID, False), {"a": 1, "b": 2})

    assert told(own) == told(sdk)


@pytest.mark.parametrize("attributes", [{1: "one"}, {None: "none"}, {"": "empty", "good": 1}, {}], ids=str)
def test_attributes_with_odd_names_are_kept_where_the_sdk_keeps_them(attributes: Any) -> None:
    own, sdk = Pair().start({})

    for span in (own, sdk):
        span.set_attributes(attributes)

    assert told(own) == told(sdk)


@pytest.mark.parametrize("name", ["key", "", None, 1])
def test_an_attribute_with_an_odd_name_is_kept_where_the_sdk_keeps_it(name: Any) -> None:
    own, sdk = Pair().start({})

    for span in (own, sdk):
        span.set_attribute(name, "value")

    assert told(own) == told(sdk)


@pytest.mark.parametrize(
    ("method", "arguments"),
    [("add_link", (None,)), ("add_link", (None, {"a": 1})), ("set_status", (None,)), ("set_status", ("ERROR",))],
)
def test_what_the_sdk_overlooks_raises_nothing(method: str, arguments: tuple[Any, ...]) -> None:
    own, sdk = Pair().start({})

    getattr(sdk, method)(*arguments)
    getattr(own, method)(*arguments)

    assert told(own) == told(sdk)


@HYPOTHESIS
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["set_attribute_unchecked", "set_attribute"]), texts.filter(bool), st.integers() | texts
        )
    )
)
def test_what_the_service_knows_and_what_others_set_are_attributes_of_one_span(
    calls: list[tuple[str, str, Any]],
) -> None:
    own, sdk = Pair().start({"http.route": "/invocations"})
    for method, key, value in calls:
        getattr(own, method)(key, value)
        sdk.set_attribute(key, value)

    assert dict(readable(own).attributes) == dict(readable(sdk).attributes)
    assert readable(own).dropped_attributes == readable(sdk).dropped_attributes == 0


def test_an_ok_is_final_and_unset_says_nothing() -> None:
    own, _ = Pair().start({})

    own.set_status(StatusCode.ERROR, "first")
    own.set_status(StatusCode.UNSET)
    assert readable(own).status.description == "first"
    own.set_status(StatusCode.OK)
    own.set_status(StatusCode.ERROR, "second")
    assert readable(own).status.status_code is StatusCode.OK
    assert readable(own).status.description is None


AFTER_THE_END: list[tuple[str, tuple[Any, ...]]] = [
    ("set_attribute", ("key", "value")),
    ("set_attributes", ({"key": "value"},)),
    ("add_event", ("event",)),
    ("add_link", (SpanContext(TRACE_ID, PARENT_ID, False),)),
    ("set_status", (StatusCode.ERROR,)),
    ("update_name", ("other",)),
    ("record_exception", (LookupError("late"),)),
    ("end", ()),
    ("end", (WHEN + 1,)),
]


@pytest.mark.parametrize(("method", "arguments"), AFTER_THE_END)
def test_a_call_after_the_end_is_warned_about_and_ignored(
    method: str, arguments: tuple[Any, ...], caplog: pytest.LogCaptureFixture
) -> None:
    pair = Pair()
    own, sdk = pair.start({"key": "first"})
    for span in (own, sdk):
        span.end(WHEN)
    before = told(own)
    assert caplog.records == []

    getattr(sdk, method)(*arguments)
    assert [line.levelname for line in caplog.records] == ["WARNING"]
    caplog.clear()
    getattr(own, method)(*arguments)
    assert [line.levelname for line in caplog.records] == ["WARNING"]

    assert told(own) == before == told(sdk)
    assert len(pair.own_ended.spans) == 1


def test_a_span_ends_when_it_is_told_or_now() -> None:
    pair = Pair()
    own, _ = pair.start({})
    own.end(WHEN)
    at_once, _ = pair.start({})
    at_once.end()

    assert readable(own).end_time == WHEN
    assert readable(at_once).start_time <= readable(at_once).end_time
    assert [span.end_time for span in pair.own_ended.spans] == [WHEN, readable(at_once).end_time]


def test_an_event_without_a_time_is_of_now() -> None:
    own, _ = Pair().start({})
    own.add_event("event")
    own.end()

    (event,) = readable(own).events
    assert readable(own).start_time <= event.timestamp <= readable(own).end_time


def using(span: trace.Span) -> AbstractContextManager[Any]:
    return trace.use_span(span, end_on_exit=True)


@pytest.mark.parametrize("enter", [using, lambda span: span], ids=["use_span", "with"])
def test_leaving_a_span_by_an_exception_records_it_and_ends_the_span(
    enter: Callable[[trace.Span], AbstractContextManager[Any]],
) -> None:
    spans = Pair().start({})
    for span in spans:
        with pytest.raises(Refused), enter(span):
            raise Refused("no")

    own, sdk = (readable(span) for span in spans)
    assert (own.status.status_code, own.status.description) == (sdk.status.status_code, sdk.status.description)
    assert own.status.description == "Refused: no"
    assert [(event.name, event.attributes["exception.escaped"]) for event in own.events] == [
        (event.name, event.attributes["exception.escaped"]) for event in sdk.events
    ]
    assert not own.is_recording()


@pytest.mark.parametrize("enter", [using, lambda span: span], ids=["use_span", "with"])
def test_leaving_a_span_in_peace_ends_it_without_a_word(
    enter: Callable[[trace.Span], AbstractContextManager[Any]],
) -> None:
    own, _ = Pair().start({})
    with enter(own) as entered:
        assert entered is own
        assert own.is_recording()

    assert not own.is_recording()
    assert readable(own).status.is_unset
    assert readable(own).events == ()


def test_an_exception_is_recorded_as_the_conventions_have_it() -> None:
    error = raised(Refused("no such tool"))
    own, sdk = Pair().start({})
    for span in (own, sdk):
        span.record_exception(error, {"attempt": 2}, WHEN, escaped=True)

    assert told(own) == told(sdk)
    (event,) = readable(own).events
    assert event.attributes["exception.type"] == f"{__name__}.Refused"
    assert "raise error" in event.attributes["exception.stacktrace"]


@pytest.mark.parametrize("indent", [4, None])
def test_a_span_is_read_as_json_like_the_sdks(indent: int | None) -> None:
    own, sdk = Pair().start({"http.route": "/invocations"}, under(SpanContext(TRACE_ID, PARENT_ID, True)))
    for span in (own, sdk):
        readable(span)._start_time = WHEN
        span.set_attributes({"list": [1, 2]})
        span.add_event("event", {"a": 1}, WHEN)
        span.add_link(SpanContext(TRACE_ID, PARENT_ID, False), {"b": 2})
        span.set_status(StatusCode.ERROR, "why")
        span.end(WHEN + 1)

    assert readable(own).to_json(indent) == readable(sdk).to_json(indent)
    assert json.loads(readable(own).to_json())["parent_id"] == f"0x{PARENT_ID:016x}"


def test_a_span_is_a_span_of_the_api_and_readable() -> None:
    own, _ = Pair().start({})

    assert isinstance(own, trace.Span)
    assert isinstance(own, ReadableSpan)
    assert trace.get_current_span(trace.set_span_in_context(own)) is own


def test_the_sdks_own_spans_become_its_children() -> None:
    pair = Pair()
    own, sdk = pair.start({}, under(SpanContext(TRACE_ID, PARENT_ID, True, TraceFlags(3), TraceState([("a", "1")]))))
    provider = TracerProvider(ALWAYS_ON, HERE, shutdown_on_exit=False)

    children = [
        readable(provider.get_tracer("a library").start_span("step", trace.set_span_in_context(span)))
        for span in (own, sdk)
    ]

    own_child, sdk_child = (
        (child.parent, child.context.trace_id, child.context.trace_flags, child.context.trace_state)
        for child in children
    )
    assert own_child == sdk_child


def test_threads_that_write_at_once_lose_nothing() -> None:
    own, _ = Pair(limits=SpanLimits(max_events=1000, max_links=1000, max_span_attributes=1000)).start({})
    barrier = threading.Barrier(8)

    def write(thread: int) -> None:
        barrier.wait(PATIENCE)
        for number in range(50):
            own.add_event("event")
            own.add_link(SpanContext(TRACE_ID, PARENT_ID, False))
            own.set_attribute(f"{thread}.{number}", number)

    threads = [threading.Thread(target=write, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)

    assert (len(readable(own).events), len(readable(own).links), len(readable(own).attributes)) == (400, 400, 400)


def test_threads_that_end_a_span_at_once_hand_it_on_once() -> None:
    pair = Pair()
    for _ in range(20):
        own, _ = pair.start({})
        barrier = threading.Barrier(4)

        def end(span: trace.Span = own, barrier: threading.Barrier = barrier) -> None:
            barrier.wait(PATIENCE)
            span.end()

        threads = [threading.Thread(target=end) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)

    assert len(pair.own_ended.spans) == 20


class Echoing(logging.Handler):
    """Writes each log line into a span, as some programs have it."""

    def __init__(self, span: trace.Span) -> None:
        super().__init__()
        self._span = span

    def emit(self, record: logging.LogRecord) -> None:
        self._span.add_event(record.getMessage())


def test_a_log_handler_may_write_into_another_span() -> None:
    done = run(f"from {__name__} import write_while_logging; write_while_logging()")

    assert done.returncode == 0, done.stderr


def write_while_logging() -> None:
    """Have spans log something, in a process of its own, which a deadlock may take."""
    odd = ("set_attribute", ("key", {1, 2}))
    for kind, name in ((1, "the SDK's"), (0, "ours")):
        for method, arguments in (*AFTER_THE_END, odd):
            pair = Pair()
            span, other = (pair.start({})[kind] for _ in range(2))
            if (method, arguments) != odd:
                span.end()
            logging.getLogger().addHandler(handler := Echoing(other))
            caller = threading.Thread(target=getattr(span, method), args=arguments, daemon=True)
            caller.start()
            caller.join(3)
            if caller.is_alive():
                os.write(2, f"{method}{arguments} of {name} waits for a lock that it holds itself".encode())
                os._exit(1)  # an orderly end would wait for that lock too
            logging.getLogger().removeHandler(handler)
            assert len(readable(other).events) == 1, (method, name)


# What the tracer decides


class Recording(Sampler):
    """Decides as it is told, and keeps what it was asked."""

    def __init__(self, result: Callable[[Mapping[str, Any]], SamplingResult]) -> None:
        self._result = result
        self.asked: list[Any] = []

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Any = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        self.asked.append((parent_context, trace_id, name, kind, dict(attributes), links, trace_state))
        return self._result(attributes)

    def get_description(self) -> str:
        return "Recording"


STATE = TraceState([("sampler", "yes")])
SAMPLERS: dict[str, Sampler] = {
    "always_on": ALWAYS_ON,
    "always_off": ALWAYS_OFF,
    "traceidratio 0": TraceIdRatioBased(0),
    "traceidratio 0.5": TraceIdRatioBased(0.5),
    "traceidratio 1": TraceIdRatioBased(1),
    "parentbased_always_on": ParentBased(ALWAYS_ON),
    "parentbased_always_off": ParentBased(ALWAYS_OFF),
    "parentbased_traceidratio": ParentBased(TraceIdRatioBased(0.5)),
    "records all": AlwaysRecordSampler(ParentBased(ALWAYS_OFF)),
    "only records": Recording(lambda given: SamplingResult(Decision.RECORD_ONLY, given)),
    "adds attributes": Recording(lambda given: SamplingResult(Decision.RECORD_AND_SAMPLE, {**given, "rate": 0.5})),
    "has attributes of its own": Recording(lambda given: SamplingResult(Decision.RECORD_AND_SAMPLE, {"rate": 0.5})),
    "takes the attributes away": Recording(lambda given: SamplingResult(Decision.RECORD_AND_SAMPLE)),
    "adds a trace state": Recording(lambda given: SamplingResult(Decision.RECORD_AND_SAMPLE, given, STATE)),
    "adds a trace state to what it drops": Recording(lambda given: SamplingResult(Decision.DROP, None, STATE)),
}
PARENTS = {
    "no parent": None,
    "an invalid parent": SpanContext(0, PARENT_ID, True, TraceFlags(1)),
    **{
        f"a {'remote' if remote else 'local'} parent with flags {flags:02x}": SpanContext(
            TRACE_ID, PARENT_ID, remote, TraceFlags(flags), TraceState([("vendor", "1")])
        )
        for remote in (True, False)
        for flags in (0, 1, 2, 3, 4, 0xFF)
    },
}


@pytest.mark.parametrize("parent", PARENTS.values(), ids=PARENTS.keys())
@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())
def test_whoever_samples_and_whatever_the_parent_the_span_is_as_the_sdks(
    sampler: Sampler, parent: SpanContext | None
) -> None:
    for random in (True, False):
        own, sdk = Pair(sampler, ids=lambda: Numbers(random, 7)).start({"http.route": "/invocations"}, under(parent))

        assert own.get_span_context() == sdk.get_span_context()
        assert own.get_span_context().trace_flags == sdk.get_span_context().trace_flags
        assert own.get_span_context().trace_state == sdk.get_span_context().trace_state
        assert own.is_recording() == sdk.is_recording()
        assert isinstance(own, ServerSpan) == isinstance(sdk, ReadableSpan)
        if own.is_recording():
            assert told(own) == told(sdk)
        if isinstance(sampler, Recording):
            *_, of_ours, of_the_sdks = sampler.asked
            assert of_ours[:5] == of_the_sdks[:5]
            assert tuple(of_ours[5]) == tuple(of_the_sdks[5])


@HYPOTHESIS
@given(st.integers(1, 2**128 - 1), st.floats(0, 1))
def test_a_ratio_holds_for_the_same_traces_as_the_sdks(trace_id: int, ratio: float) -> None:
    parent = under(SpanContext(trace_id, PARENT_ID, True, TraceFlags(1)))

    own, sdk = Pair(TraceIdRatioBased(ratio)).start({}, parent)

    assert own.get_span_context() == sdk.get_span_context()
    assert own.is_recording() == sdk.is_recording()


def test_a_parent_that_records_is_a_parent_too() -> None:
    provider = TracerProvider(ALWAYS_ON, HERE, shutdown_on_exit=False)
    with provider.get_tracer("a server").start_as_current_span("request") as above:
        own, sdk = Pair().start({}, otel_context.get_current())

    assert told(own) == told(sdk)
    assert readable(own).parent == above.get_span_context()


def test_what_a_sampler_adds_is_no_property_of_the_next_span() -> None:
    pair = Pair(SAMPLERS["adds attributes"])
    first, _ = pair.start({})
    second, _ = pair.start({})
    first.set_attribute("first", True)

    assert dict(readable(second).attributes) == {"rate": 0.5}


# Where the short way is taken


def own_provider() -> TracerProvider:
    return make_provider(TraceSettings.from_environment({}), dict, "agent")


def test_a_provider_of_the_services_own_has_a_short_way() -> None:
    tracer = server_tracer(own_provider(), "litestar_agentcore", "1")

    assert isinstance(tracer, ServerTracer)
    assert tracer.processors.only_internal


@pytest.mark.parametrize("provider", [TracerProvider(shutdown_on_exit=False), trace.NoOpTracerProvider()], ids=type)
def test_a_provider_of_the_hosts_has_none(provider: trace.TracerProvider) -> None:
    assert server_tracer(provider, "litestar_agentcore", "1") is None


@pytest.mark.parametrize(
    ("variables", "short"),
    [
        ({}, True),
        ({"OTEL_SPAN_EVENT_COUNT_LIMIT": "0", "OTEL_SPAN_LINK_COUNT_LIMIT": "0"}, True),
        ({"OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT": "1", "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT": "1"}, True),
        ({"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "128"}, True),
        ({"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "5"}, False),
        ({"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "0"}, False),
        ({"OTEL_ATTRIBUTE_COUNT_LIMIT": "5"}, False),
        ({"OTEL_ATTRIBUTE_COUNT_LIMIT": "5", "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "128"}, True),
        ({"OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": "4"}, False),
        ({"OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT": "4"}, False),
    ],
    ids=str,
)
def test_there_is_none_where_a_limit_would_cut_the_services_own_attributes(
    variables: dict[str, str], short: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    assert (server_tracer(own_provider(), "litestar_agentcore", "1") is not None) is short


def test_all_attributes_of_a_request_fit_into_the_least_limit_that_has_a_short_way(
    monkeypatch: pytest.MonkeyPatch, exported: InMemorySpanExporter
) -> None:
    least = 0
    while True:
        monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", str(least))
        if server_tracer(own_provider(), "litestar_agentcore", "1") is not None:
            break
        least += 1
    with TestClient(app=app_of(break_off)) as client:
        client.post("/invocations", json={}, headers=HEADERS)

    span = invocation(exported.get_finished_spans())
    assert isinstance(span, ServerSpan)
    assert span.dropped_attributes == 0
    assert {"http.route", "session.id", "request.id", "error.type", EXPERIMENT} <= dict(span.attributes or {}).keys()


# One request, whichever way its span is made


HEADERS = {
    "traceparent": f"00-{TRACE_ID:032x}-{PARENT_ID:016x}-01",
    "tracestate": "vendor=1",
    "baggage": f"{EXPERIMENT}=an-arn,tenant=one",
    "User-Agent": "a-client/1",
    SESSION_ID: "a-session",
    REQUEST_ID: "a-request",
}


def record(name: str) -> None:
    """What an agent's library does."""
    with trace.get_tracer("a library").start_as_current_span(name):
        pass


def answer(payload: Any) -> Any:
    record("step")
    trace.get_current_span().set_attribute("tokens", 17)
    trace.get_current_span().add_event("thought", {"deep": True})
    return dict(baggage.get_all())


def fail(payload: Any) -> Any:
    record("step")
    raise LookupError("no such tool")


async def stream(payload: Any) -> AsyncIterator[int]:
    for number in range(3):
        record("step")
        yield number


async def break_off(payload: Any) -> AsyncIterator[int]:
    yield 1
    raise LookupError("no such tool")


async def never_end(payload: Any) -> AsyncIterator[str]:
    yield "first"
    await asyncio.Event().wait()


def invocation(spans: Sequence[ReadableSpan]) -> ReadableSpan:
    (span,) = [span for span in spans if span.name == "POST /invocations"]
    return span


class Foreign(SpanProcessor):
    """Keeps what begins: whoever installs one wants to see all spans."""

    def __init__(self) -> None:
        self.begun: list[str] = []

    def on_start(self, span: Any, parent_context: Context | None = None) -> None:
        self.begun.append(span.name)


def set_up(app: BedrockAgentCoreApp) -> TracerProvider:
    """Have the app set its provider up, and give it."""
    app.agent.telemetry.tracer()
    provider = trace.get_tracer_provider()
    assert isinstance(provider, TracerProvider)
    return provider


@contextmanager
def short_way(app: BedrockAgentCoreApp, exporter: InMemorySpanExporter) -> Iterator[bool]:
    yield True


@contextmanager
def foreign_processor(app: BedrockAgentCoreApp, exporter: InMemorySpanExporter) -> Iterator[bool]:
    set_up(app).add_span_processor(Foreign())
    yield False


@contextmanager
def provider_of_the_host(app: BedrockAgentCoreApp, exporter: InMemorySpanExporter) -> Iterator[bool]:
    provider = TracerProvider(resource=Resource({"service.name": app.agent.telemetry.agent_name}))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    yield False
    assert trace.get_tracer_provider() is provider
    provider.shutdown()


@contextmanager
def counting_sdk(app: BedrockAgentCoreApp, exporter: InMemorySpanExporter) -> Iterator[bool]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED", " True ")
        app.agent.telemetry.tracing = Tracing(
            app.agent.telemetry.tracing._request_attributes, app.agent.telemetry.tracing._version
        )
        yield False


@contextmanager
def attribute_limit(app: BedrockAgentCoreApp, exporter: InMemorySpanExporter) -> Iterator[bool]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", "4096")
        set_up(app)
        yield False


WAYS = [short_way, foreign_processor, provider_of_the_host, counting_sdk, attribute_limit]


def story(spans: Sequence[ReadableSpan]) -> list[dict[str, Any]]:
    """What spans tell, but their ids and times, and what differs from socket to socket."""
    names = {cast("SpanContext", span.context).span_id: span.name for span in spans} | {PARENT_ID: "the client"}
    return sorted(
        (
            {
                "name": span.name,
                "kind": span.kind,
                "trace": cast("SpanContext", span.context).trace_id,
                "flags": cast("SpanContext", span.context).trace_flags,
                "state": cast("SpanContext", span.context).trace_state.to_header(),
                "parent": names[span.parent.span_id] if span.parent else None,
                "parent is remote": span.parent.is_remote if span.parent else None,
                "attributes": {key: value for key, value in (span.attributes or {}).items() if key != "server.port"},
                "events": [
                    (event.name, {k: v for k, v in (event.attributes or {}).items() if k != "exception.stacktrace"})
                    for event in span.events
                ],
                "traced to": [
                    "in fail" in str((event.attributes or {}).get("exception.stacktrace")) for event in span.events
                ],
                "status": (span.status.status_code, span.status.description),
                "scope": span.instrumentation_scope,
                "service": span.resource.attributes["service.name"],
                "in order": (span.start_time or 0) <= (span.end_time or 0),
            }
            for span in spans
        ),
        key=lambda span: str(span["name"]),
    )


def invoke(app: BedrockAgentCoreApp, headers: dict[str, str]) -> tuple[int, str]:
    with TestClient(app=app) as client:
        response = client.post("/invocations", json={}, headers=headers)
        return response.status_code, response.text


def send_nonsense(app: BedrockAgentCoreApp, headers: dict[str, str]) -> tuple[int, str]:
    with TestClient(app=app) as client:
        response = client.post("/invocations", content=b"{", headers=headers)
        return response.status_code, response.text


def leave(app: BedrockAgentCoreApp, headers: dict[str, str]) -> tuple[int, str]:
    lines = [f"{name}: {value}" for name, value in headers.items()]
    with serve(app) as server:
        with server.connect() as connection:
            connection.sendall(request(b"{}", *lines, "Content-Length: 2"))
            receive_until(connection, b"first")
        eventually(lambda: not app.agent.telemetry.metrics.invocations.in_progress)
    return 0, ""


ORPHAN: dict[str, str] = {}


@pytest.mark.parametrize("way", WAYS[1:])
@pytest.mark.parametrize(
    ("handler", "send", "headers"),
    [
        pytest.param(answer, invoke, HEADERS, id="unary"),
        pytest.param(answer, invoke, ORPHAN, id="unary, of no trace"),
        pytest.param(fail, invoke, HEADERS, id="error"),
        pytest.param(stream, invoke, HEADERS, id="stream"),
        pytest.param(break_off, invoke, ORPHAN, id="stream that fails, of no trace"),
        pytest.param(answer, send_nonsense, HEADERS, id="bad JSON"),
        pytest.param(never_end, leave, HEADERS, id="client that leaves"),
    ],
)
def test_whichever_way_a_span_is_made_it_tells_the_same(
    exported: InMemorySpanExporter,
    monkeypatch: pytest.MonkeyPatch,
    handler: Callable[[Any], Any],
    send: Callable[[BedrockAgentCoreApp, dict[str, str]], tuple[int, str]],
    headers: dict[str, str],
    way: Callable[[BedrockAgentCoreApp, InMemorySpanExporter], AbstractContextManager[bool]],
) -> None:
    monkeypatch.setattr("litestar_agentcore.disconnects.WATCH_AFTER_SECONDS", 0.01)
    headers = {**headers, REQUEST_ID: "a-request", "User-Agent": "a-client/1"}
    told = []
    for each in (short_way, way):
        monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
        monkeypatch.setattr(trace, "_TRACER_PROVIDER_SET_ONCE", Once())
        exported.clear()
        app = app_of(handler)
        with each(app, exported) as short:
            answered = send(app, headers)
        spans = exported.get_finished_spans()
        assert isinstance(invocation(spans), ServerSpan) is short
        stories = story(spans)
        for span in stories:
            if "traceparent" not in headers:
                span.pop("trace")
        told.append((answered, stories))

    of_the_short_way, of_the_other = told
    assert of_the_short_way == of_the_other
    assert of_the_short_way[1][0]["parent"] == ("the client" if "traceparent" in headers else None)


@pytest.mark.parametrize("way", WAYS)
def test_whichever_way_a_span_is_made_a_client_that_does_not_sample_is_not_traced(
    exported: InMemorySpanExporter, way: Callable[..., AbstractContextManager[bool]]
) -> None:
    app = app_of(answer)
    with way(app, exported):
        status, _ = invoke(app, HEADERS | {"traceparent": HEADERS["traceparent"][:-2] + "00"})

    assert status == 200
    assert exported.get_finished_spans() == ()


def test_a_processor_that_is_added_late_sees_the_next_request(exported: InMemorySpanExporter) -> None:
    foreign = Foreign()
    with TestClient(app=app_of(answer)) as client:
        client.post("/invocations", json={})
        trace.get_tracer_provider().add_span_processor(foreign)  # type: ignore[attr-defined]
        client.post("/invocations", json={})

    assert foreign.begun == ["POST /invocations", "step"]
    assert len(exported.get_finished_spans()) == 4


@pytest.mark.parametrize("exporters", ["console", "console,otlp"])
def test_a_console_sees_spans_of_the_sdk(
    exported: InMemorySpanExporter, exporters: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = InMemorySpanExporter()
    monkeypatch.setattr("agentcore_telemetry.provider.ConsoleSpanExporter", lambda: console)
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", exporters)
    invoke(app_of(answer), HEADERS)

    spans = [*console.get_finished_spans(), *exported.get_finished_spans()]
    assert len(spans) == 2 * len(exporters.split(","))
    assert not [span for span in spans if isinstance(span, ServerSpan)]


# The host program's own span for the request


def under_a_span_of_the_hosts(app: Any) -> Any:
    """The app as an ASGI instrumentation would wrap it."""

    async def instrumented(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        with trace.get_tracer("an instrumentation").start_as_current_span("POST", kind=SpanKind.SERVER):
            await app(scope, receive, send)

    return instrumented


@pytest.mark.parametrize("way", [short_way, foreign_processor, provider_of_the_host])
@pytest.mark.parametrize("where", ["around the app", "a middleware"])
def test_a_span_that_is_current_is_the_parent_and_the_headers_bring_baggage_alone(
    exported: InMemorySpanExporter, where: str, way: Callable[..., AbstractContextManager[bool]]
) -> None:
    app = BedrockAgentCoreApp(middleware=[under_a_span_of_the_hosts] if where == "a middleware" else None)
    app.entrypoint(answer)
    with way(app, exported):
        set_up(app)
        wrapped = under_a_span_of_the_hosts(app) if where == "around the app" else app
        with TestClient(app=wrapped) as client:
            members = client.post("/invocations", json={}, headers=HEADERS).json()
        exported_spans = {span.name: span for span in flushed(exported)}

    of_the_host, own = exported_spans["POST"], exported_spans["POST /invocations"]
    assert members == {EXPERIMENT: "an-arn", "tenant": "one"}
    assert own.parent == of_the_host.context
    assert of_the_host.parent is None
    assert cast("SpanContext", own.context).trace_id == cast("SpanContext", of_the_host.context).trace_id != TRACE_ID
    assert dict(own.attributes or {})[EXPERIMENT] == "an-arn"
    assert exported_spans["step"].parent == own.context


def flushed(exporter: InMemorySpanExporter) -> tuple[ReadableSpan, ...]:
    trace.get_tracer_provider().force_flush()  # type: ignore[attr-defined]
    return exporter.get_finished_spans()


# What is loaded, and when


IMPORTS = """
import sys

def loaded(package):
    return any(name == package or name.startswith(package + ".") for name in sys.modules)

from litestar_agentcore import BedrockAgentCoreApp
app = BedrockAgentCoreApp()
app.entrypoint(lambda payload: payload)
assert not loaded("opentelemetry.sdk"), "the SDK was imported with the app"
assert not loaded("opentelemetry.exporter"), "an exporter was imported with the app"
assert not loaded("prometheus_client"), "prometheus_client was imported with the app"

from litestar.testing import TestClient
with TestClient(app=app) as client:
    assert client.post("/invocations", json=1, headers={"traceparent": TRACEPARENT}).json() == 1
    assert client.get("/ping").status_code == 200
    assert not loaded("opentelemetry.sdk"), "the SDK was imported by a request"
    assert not loaded("prometheus_client"), "prometheus_client was imported by a request"
    assert "agentcore_invocations_total" in client.get("/metrics").text
    assert loaded("prometheus_client")
    assert not loaded("opentelemetry.sdk"), "the SDK was imported by a scrape"
"""


def run(code: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    return subprocess.run(
        [sys.executable, "-c", code], env=environment | variables, capture_output=True, text=True, timeout=60
    )


def test_without_an_exporter_the_sdk_is_not_imported_and_prometheus_client_not_before_the_first_scrape() -> None:
    done = run(f"TRACEPARENT = {HEADERS['traceparent']!r}\n{IMPORTS}")

    assert done.returncode == 0, done.stderr


STARTED = """
import sys
from litestar.testing import TestClient
from litestar_agentcore import BedrockAgentCoreApp
app = BedrockAgentCoreApp()
assert "opentelemetry.sdk.trace" not in sys.modules, "the host program has had no chance to install a provider"
with TestClient(app=app):
    assert "opentelemetry.sdk.trace" in sys.modules, "the first request has to wait for the SDK"
"""


def test_with_an_endpoint_the_sdk_is_imported_when_the_service_begins_to_serve() -> None:
    done = run(STARTED, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9")

    assert done.returncode == 0, done.stderr


FORK = """
import os
from opentelemetry.sdk.resources import Resource
from agentcore_telemetry.environment import TraceSettings
from agentcore_telemetry.provider import make_provider, server_tracer

provider = make_provider(TraceSettings.from_environment({}), dict, "agent")
own, sdk = server_tracer(provider, "litestar_agentcore", "1"), provider.get_tracer("litestar_agentcore", "1")

def resources():
    spans = own.start("span", {}, {}), sdk.start_span("span")
    return [dict(span.resource.attributes) for span in spans]

of_ours, of_the_sdks = before = resources()
assert of_ours == of_the_sdks
child = os.fork()
if child == 0:
    of_ours, of_the_sdks = resources()
    os._exit(0 if of_the_sdks == of_ours else 3)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "the resource is that of the parent process"
"""


def test_in_a_forked_process_the_resource_is_that_of_the_sdks_spans() -> None:
    done = run(FORK)

    assert done.returncode == 0, done.stderr
