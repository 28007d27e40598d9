"""Trace context and baggage that come with a request: what is taken, and that nonsense is ignored without a fuss."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote

import pytest
from agentcore_telemetry.propagation import MAX_BAGGAGE_BYTES, experiment_attributes, extract_context
from litestar_agentcore.protocol.headers import HeaderReader
from opentelemetry import baggage, trace
from opentelemetry import context as otel_context
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.propagate import get_global_textmap
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

ARN = "aws.agentcore.gateway.routing_experiment_arn"
VARIANT = "aws.agentcore.gateway.routing_experiment_variant_name"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"


def context_of(*headers: tuple[str, str]) -> Context:
    propagator = get_global_textmap()
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    return extract_context(HeaderReader(propagator.fields).read(raw).carrier, propagator)


def parent(context: Context) -> trace.SpanContext:
    return trace.get_current_span(context).get_span_context()


def members(*headers: str) -> dict[str, object]:
    return dict(baggage.get_all(context_of(*(("baggage", header) for header in headers))))


def bytes_of_baggage(size: int) -> str:
    return "key=" + "v" * (size - len("key="))


def test_trace_context_and_baggage_are_taken_together() -> None:
    context = context_of(("traceparent", TRACEPARENT), ("tracestate", "a=1,b=2"), ("baggage", "tenant=one"))

    assert trace.format_trace_id(parent(context).trace_id) == TRACE_ID
    assert parent(context).is_remote
    assert parent(context).trace_state.to_header() == "a=1,b=2"
    assert baggage.get_baggage("tenant", context) == "one"


def test_the_names_of_the_headers_are_matched_without_regard_to_case() -> None:
    assert parent(context_of(("TraceParent", TRACEPARENT))).is_valid


def test_without_the_headers_there_is_no_context() -> None:
    assert context_of(("authorization", "Bearer secret")) == {}


def test_headers_that_come_in_parts_are_put_together() -> None:
    context = context_of(("traceparent", TRACEPARENT), ("tracestate", "a=1"), ("tracestate", "b=2"))

    assert parent(context).trace_state.to_header() == "a=1,b=2"
    assert members("a=1", "b=2") == {"a": "1", "b": "2"}


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("tenant=one", {"tenant": "one"}),
        (" tenant = one , tier=gold ", {"tenant": "one", "tier": "gold"}),
        ("tenant=a%20b%C3%A9", {"tenant": "a bé"}),
        ("tenant=one;ttl=60;final", {"tenant": "one;ttl=60;final"}),
        ("tenant=a=b", {"tenant": "a=b"}),
        ("tenant=", {"tenant": ""}),
    ],
)
def test_baggage_is_read_as_the_w3c_has_it(header: str, expected: dict[str, str]) -> None:
    assert members(header) == expected


@pytest.mark.parametrize(
    "header",
    [
        "nonsense",
        "",
        "=one",
        "tenant=a b",
        'tenant="one"',
        "ten ant=one",
        "tenant=b\xe9",
        "tenant=one,,",
        "\x01\x02",
        "{}",
    ],
)
def test_nonsense_for_baggage_is_ignored_with_one_debug_line(header: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    assert members(header) == {}

    assert [line.levelname for line in caplog.records] == ["DEBUG"]
    assert "baggage" in caplog.messages[0]


@pytest.mark.parametrize("size", [MAX_BAGGAGE_BYTES + 1, 64 * 1024])
def test_baggage_beyond_the_limit_is_ignored_with_one_debug_line(size: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    assert members(bytes_of_baggage(size)) == {}

    assert [line.levelname for line in caplog.records] == ["DEBUG"]


def test_baggage_up_to_the_limit_is_taken_in_one_header_or_in_many() -> None:
    assert list(members(bytes_of_baggage(4096))) == ["key"]
    many = [f"{name}={'v' * 1000}" for name in "abcdefgh"]
    assert list(members(",".join(many))) == list(members(*many)) == list("abcdefgh")


def test_bad_baggage_does_not_cost_the_trace_context() -> None:
    context = context_of(("traceparent", TRACEPARENT), ("baggage", "nonsense"))

    assert trace.format_trace_id(parent(context).trace_id) == TRACE_ID


@pytest.mark.parametrize("header", ["nonsense", "UPPER=1", "a=1,b", ",".join(f"k{n}=1" for n in range(33))])
def test_a_bad_tracestate_is_ignored_with_one_debug_line(header: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    context = context_of(("traceparent", TRACEPARENT), ("tracestate", header))

    assert trace.format_trace_id(parent(context).trace_id) == TRACE_ID
    assert parent(context).trace_state == {}
    assert [line.levelname for line in caplog.records] == ["DEBUG"]


@pytest.mark.parametrize(
    "header",
    ["", "nonsense", TRACEPARENT[:-3], TRACEPARENT.replace(TRACE_ID, "0" * 32), "ff" + TRACEPARENT[2:], "\xff"],
)
def test_a_malformed_traceparent_is_no_parent_and_warns_nobody(header: str, caplog: pytest.LogCaptureFixture) -> None:
    assert not parent(context_of(("traceparent", header), ("tracestate", "a=1"))).is_valid

    assert caplog.records == []


def test_two_traceparents_are_no_reason_to_fail() -> None:
    context_of(("traceparent", TRACEPARENT), ("traceparent", "nonsense"))


@pytest.mark.parametrize("name", ["baggage", "tracestate", "traceparent"])
def test_what_a_bad_header_holds_is_never_logged(name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    context_of(("traceparent", TRACEPARENT), (name, "tr0ub4dor é ="))

    assert "tr0ub4dor" not in caplog.text


def test_the_routing_experiment_is_read_from_baggage() -> None:
    arn = "arn:aws:bedrock-agentcore:us-east-1:123456789012:experiment/e"
    context = context_of(("baggage", f"{ARN}={quote(arn, safe='')},{VARIANT}=treatment%20b,tenant=one"))

    assert experiment_attributes(context) == {ARN: arn, VARIANT: "treatment b"}


def test_a_percent_sign_in_an_experiment_is_decoded_once() -> None:
    assert experiment_attributes(context_of(("baggage", f"{VARIANT}=50%2525"))) == {VARIANT: "50%25"}


def test_without_an_experiment_there_are_no_attributes() -> None:
    assert experiment_attributes(context_of(("baggage", "tenant=one"))) == {}
    assert experiment_attributes(context_of()) == {}


def test_a_propagator_reads_its_own_headers_alone() -> None:
    carrier = {"traceparent": TRACEPARENT, "baggage": "tenant=one"}

    assert baggage.get_all(extract_context(carrier, TraceContextTextMapPropagator())) == {}
    assert not parent(extract_context(carrier, W3CBaggagePropagator())).is_valid


# A span of the host program's own


HOST_SPAN = trace.SpanContext(0x11111111111111111111111111111111, 0x2222222222222222, is_remote=False)


@contextmanager
def current(context: Context) -> Iterator[None]:
    token = otel_context.attach(context)
    yield
    otel_context.detach(token)


def under_the_hosts(span: trace.SpanContext, **members: str) -> Context:
    context = trace.set_span_in_context(trace.NonRecordingSpan(span), Context())
    for name, value in members.items():
        context = baggage.set_baggage(name, value, context)
    return context


def test_a_span_that_is_current_is_the_parent_and_the_headers_bring_baggage_alone() -> None:
    with current(under_the_hosts(HOST_SPAN)):
        context = context_of(("traceparent", TRACEPARENT), ("tracestate", "a=1"), ("baggage", "tenant=one"))

    assert parent(context) == HOST_SPAN
    assert parent(context).trace_state == {}
    assert baggage.get_all(context) == {"tenant": "one"}


def test_the_span_itself_stays_current_and_not_a_copy_of_its_ids() -> None:
    span = trace.NonRecordingSpan(HOST_SPAN)
    with current(trace.set_span_in_context(span, Context())):
        assert trace.get_current_span(context_of(("traceparent", TRACEPARENT))) is span
        assert trace.get_current_span(context_of(("baggage", "tenant=one"))) is span
        assert trace.get_current_span(context_of()) is span


def test_without_headers_the_current_context_is_the_parent_as_it_is() -> None:
    here = under_the_hosts(HOST_SPAN, tenant="two")
    with current(here):
        assert context_of(("authorization", "Bearer secret")) is here


def test_a_span_that_is_current_but_not_valid_is_no_parent() -> None:
    with current(under_the_hosts(trace.INVALID_SPAN_CONTEXT)):
        context = context_of(("traceparent", TRACEPARENT))

    assert trace.format_trace_id(parent(context).trace_id) == TRACE_ID


def test_what_the_host_has_read_from_baggage_stays_where_the_headers_bring_none() -> None:
    with current(under_the_hosts(HOST_SPAN, tenant="two")):
        assert baggage.get_all(context_of(("traceparent", TRACEPARENT))) == {"tenant": "two"}
        assert baggage.get_all(context_of(("baggage", "nonsense"))) == {"tenant": "two"}
        assert baggage.get_all(context_of(("baggage", "tenant=one"))) == {"tenant": "one"}


def test_the_routing_experiment_is_found_in_what_the_host_has_read_too() -> None:
    with current(under_the_hosts(HOST_SPAN, **{ARN: "an-arn"})):
        assert experiment_attributes(context_of()) == {ARN: "an-arn"}


def test_other_values_of_the_current_context_are_kept() -> None:
    with current(otel_context.set_value("suppressed", "yes", under_the_hosts(HOST_SPAN))):
        context = context_of(("traceparent", TRACEPARENT), ("baggage", "tenant=one"))

    assert otel_context.get_value("suppressed", context) == "yes"


@pytest.mark.parametrize("parts", [1, 2])
def test_the_carrier_is_left_as_it_came(parts: int) -> None:
    carrier = {"traceparent": TRACEPARENT, "baggage": "nonsense", "tracestate": ",".join(["UPPER=1"] * parts)}
    before = dict(carrier)

    extract_context(carrier, get_global_textmap())

    assert carrier == before
