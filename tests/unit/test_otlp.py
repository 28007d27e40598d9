"""The encoding of spans is the SDK's own, message for message, and its exporters send it as they send theirs."""

import gzip
import inspect
import os
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import requests
from agentcore_telemetry import otlp
from agentcore_telemetry.environment import TraceSettings
from agentcore_telemetry.otlp import encode_span, encode_spans, with_own_encoding
from agentcore_telemetry.provider import exporter_class, make_provider, server_tracer
from agentcore_telemetry.spans import ServerSpan
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common import trace_encoder
from opentelemetry.exporter.otlp.proto.http import trace_exporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from tests.certificates import Certificates, certificates
from tests.unit.conftest import Kept

CONTEXT = SpanContext(0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331, is_remote=True, trace_flags=TraceFlags(1))
HERE = Resource({"service.name": "agent"})

OF_THE_CONVENTIONS = (
    "gen_ai.operation.name", "gen_ai.agent.name", "http.request.method", "http.route", "url.path", "url.scheme",
    "server.address", "server.port", "client.address", "user_agent.original", "http.response.status_code",
    "agentcore.stream.outcome", "agentcore.stream.chunks", "session.id", "request.id", "error.type",
)  # fmt: skip
INT64 = 1 << 63


def of_the_sdk(spans: Sequence[ReadableSpan]) -> bytes:
    return bytes(trace_encoder.encode_spans(spans).SerializePartialToString())


def canonical(message: bytes) -> bytes:
    """The message as protobuf itself writes it, which leaves out what is zero or empty."""
    return bytes(ExportTraceServiceRequest.FromString(message).SerializePartialToString())


def span_with(attributes: Mapping[str, Any] | None = None, **fields: Any) -> ReadableSpan:
    fields = {"start_time": 1, "end_time": 2, "resource": HERE, **fields}
    return ReadableSpan("span", CONTEXT, attributes=attributes, **fields)


def attributes_of(message: bytes) -> dict[str, Any]:
    """The attributes of the only span of a message, by their names."""
    ((scope,),) = [each.scope_spans for each in ExportTraceServiceRequest.FromString(message).resource_spans]
    (span,) = scope.spans
    return {attribute.key: attribute.value for attribute in span.attributes}


class Numbers(IdGenerator):
    """Ids that Hypothesis can make again."""

    def __init__(self) -> None:
        self._numbers = count(1)

    def generate_span_id(self) -> int:
        return next(self._numbers)

    def generate_trace_id(self) -> int:
        return next(self._numbers)


texts = st.text(max_size=20) | st.sampled_from(["", "grüße", "日本語", "🤖", "a\0b", "x" * 200, "é" * 10_000])
numbers = st.integers(-INT64, INT64 - 1) | st.sampled_from([0, 1, -1, 127, 128, 16383, 16384, INT64 - 1, -INT64])
simple = st.booleans() | numbers | st.floats() | texts
values = st.recursive(
    st.none() | simple | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1, max_size=5), inner, max_size=3),
    max_leaves=5,
)
keys = st.text(min_size=1, max_size=10) | st.sampled_from(OF_THE_CONVENTIONS)
attributes = st.dictionaries(keys, values, max_size=5)
times = st.integers(1, 2**64 - 1)
limits = st.builds(
    SpanLimits,
    max_events=st.none() | st.integers(0, 2),
    max_links=st.none() | st.integers(0, 2),
    max_span_attributes=st.none() | st.integers(0, 3),
    max_event_attributes=st.none() | st.integers(0, 2),
    max_link_attributes=st.none() | st.integers(0, 2),
    max_attribute_length=st.none() | st.integers(0, 10),
)
trace_states = st.builds(
    TraceState,
    st.lists(st.tuples(st.sampled_from(["vendor", "a@b", "z"]), st.sampled_from(["1", "x y", "~"])), max_size=3),
)
contexts = st.builds(
    SpanContext,
    st.integers(1, 2**128 - 1),
    st.integers(1, 2**64 - 1),
    st.booleans(),
    st.integers(0, 255).map(TraceFlags),
    trace_states,
)
statuses = st.sampled_from(
    [None, Status(StatusCode.OK), Status(StatusCode.ERROR), Status(StatusCode.ERROR, "größer"), StatusCode.ERROR]
)
schema_urls = st.sampled_from([None, "", "https://opentelemetry.io/schemas/1.30.0"])
links = st.lists(st.tuples(contexts, attributes), max_size=3)
scopes = st.tuples(texts, st.none() | texts, schema_urls, st.none() | attributes)
resources = st.builds(Resource, st.dictionaries(keys, simple | st.lists(texts, max_size=2), max_size=4), schema_urls)


# Making a failing batch smaller takes minutes, and the tests of single fields say more in no time.
QUICK = settings(
    deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.reuse, Phase.generate]
)


@st.composite
def batches(draw: st.DrawFn) -> list[ReadableSpan]:
    """Spans that tracers of the SDK recorded, of several resources and scopes, in the order in which they ended."""
    kept = Kept()
    for resource in draw(st.lists(resources, min_size=1, max_size=2, unique_by=lambda each: each.to_json())):
        provider = TracerProvider(
            ALWAYS_ON, resource, shutdown_on_exit=False, id_generator=Numbers(), span_limits=draw(limits)
        )
        provider.add_span_processor(kept)
        tracers = [provider.get_tracer(*scope) for scope in draw(st.lists(scopes, min_size=1, max_size=2))]
        for tracer in draw(st.lists(st.sampled_from(tracers), min_size=1, max_size=3)):
            parent = draw(st.none() | contexts)
            span = tracer.start_span(
                draw(texts),
                None if parent is None else trace.set_span_in_context(NonRecordingSpan(parent), {}),  # type: ignore[arg-type]
                draw(st.sampled_from(SpanKind)),
                draw(attributes),
                [trace.Link(context, of_link) for context, of_link in draw(links)],
                draw(times),
            )
            for name, of_event, at in draw(st.lists(st.tuples(texts, st.none() | attributes, times), max_size=3)):
                span.add_event(name, of_event, at)
            if (status := draw(statuses)) is not None:
                span.set_status(status)
            span.end(draw(times))
    return kept.spans


@settings(QUICK, max_examples=50)
@given(batches())
def test_the_message_is_the_sdks_byte_for_byte(spans: list[ReadableSpan]) -> None:
    assert encode_spans(spans) == of_the_sdk(spans)
    assert encode_spans([encode_span(span) for span in spans]) == of_the_sdk(spans)


@settings(QUICK)
@given(st.lists(st.tuples(st.sampled_from(OF_THE_CONVENTIONS), values), max_size=20))
@example([("server.port", value) for value in (1, True, 1.0, "1", 0, False, 0.0, -0.0, "", None)])
@example([("http.response.status_code", value) for value in (200, 200.0, "200", (200,), [200.0], {"200": 200})])
def test_one_attribute_is_never_taken_for_another(given_values: list[tuple[str, Any]]) -> None:
    for key, value in given_values:
        span = span_with({key: value}, instrumentation_scope=InstrumentationScope("scope", attributes={key: value}))
        for _ in range(2):
            assert encode_spans([span]) == of_the_sdk([span])


def test_an_attribute_that_repeats_is_encoded_for_where_it_stands() -> None:
    everywhere: dict[str, Any] = {"server.port": 8080, "http.route": "/invocations"}
    kept = Kept()
    provider = TracerProvider(ALWAYS_ON, Resource(everywhere), shutdown_on_exit=False)
    provider.add_span_processor(kept)
    tracer = provider.get_tracer("scope", attributes=everywhere)
    for _ in range(2):
        span = tracer.start_span("span", attributes=everywhere, links=[trace.Link(CONTEXT, everywhere)])
        span.add_event("event", everywhere)
        span.end()

    assert encode_spans(kept.spans) == of_the_sdk(kept.spans)


def test_no_spans_are_an_empty_message() -> None:
    assert encode_spans([]) == of_the_sdk([]) == b""


@pytest.mark.parametrize("kind", SpanKind)
@pytest.mark.parametrize(
    "parent", [None, CONTEXT, SpanContext(1, 2, is_remote=False)], ids=["root", "remote parent", "local parent"]
)
def test_kind_and_parentage_are_the_sdks(kind: SpanKind, parent: SpanContext | None) -> None:
    span = span_with(kind=kind, parent=parent)

    assert encode_spans([span]) == of_the_sdk([span])


@pytest.mark.parametrize(
    "fields",
    [
        {"start_time": 0, "end_time": 0},
        {"start_time": None, "end_time": None},
        {"attributes": {"": "no key", "list": [], "map": {}, "bytes": b"", "nothing": None}},
        {"instrumentation_scope": InstrumentationScope("")},
        {"resource": Resource({})},
        {"events": ()},
    ],
    ids=["times of zero", "no times", "attributes", "no name of the scope", "no resource", "no events"],
)
def test_what_is_zero_or_empty_reads_as_the_sdks(fields: dict[str, Any]) -> None:
    span = span_with(**fields)

    assert canonical(encode_spans([span])) == of_the_sdk([span])


def test_spans_of_one_resource_and_scope_come_together_whatever_came_between() -> None:
    there = Resource({"service.name": "other"}, "https://opentelemetry.io/schemas/1.30.0")
    scope, equal, other = (InstrumentationScope(name, "1") for name in ("scope", "scope", "other"))
    spans = [
        span_with(resource=resource, instrumentation_scope=each, start_time=start)
        for start, (resource, each) in enumerate(
            [(HERE, scope), (there, scope), (HERE, other), (HERE, equal), (there, None), (HERE, None), (there, scope)],
            1,
        )
    ]

    assert encode_spans(spans) == of_the_sdk(spans)


def test_a_resource_that_equals_another_has_its_spans_read_as_the_sdks() -> None:
    spans = [span_with(resource=Resource({"service.name": "agent"}), start_time=start) for start in (1, 2)]

    def of_each_resource(message: bytes) -> dict[bytes, list[bytes]]:
        found: dict[bytes, list[bytes]] = {}
        for resource in ExportTraceServiceRequest.FromString(message).resource_spans:
            of_resource = found.setdefault(resource.resource.SerializePartialToString(), [])
            of_resource += [span.SerializePartialToString() for each in resource.scope_spans for span in each.spans]
        return found

    assert of_each_resource(encode_spans(spans)) == of_each_resource(of_the_sdk(spans))


def too_deep() -> Any:
    value: Any = ()
    for _ in range(20_000):
        value = (value,)
    return value


BEYOND_THE_PROTOCOL = {
    "too large": INT64,
    "too small": -INT64 - 1,
    "half of a surrogate pair": "\ud800",
    "an odd object": object(),
    "a set": {1},
    "one odd item": ["fine", INT64],
    "one odd value": {"fine": 1, "odd": "\udfff"},
}


@pytest.mark.parametrize("key", ["key", "server.port", "url.path"])
@pytest.mark.parametrize("value", BEYOND_THE_PROTOCOL.values(), ids=BEYOND_THE_PROTOCOL.keys())
def test_an_attribute_that_cannot_be_encoded_is_left_out_and_the_rest_is_sent(key: str, value: Any) -> None:
    span = span_with({"before": 1, key: value, "after": 2})

    assert attributes_of(encode_spans([span])).keys() == {"before", "after"}
    assert encode_spans([span]) == of_the_sdk([span])


def test_an_attribute_whose_name_cannot_be_encoded_is_left_out_and_the_rest_is_sent() -> None:
    span = span_with({"before": 1, "\ud800": "value", "after": 2})

    assert encode_spans([span]) == of_the_sdk([span])


def test_an_attribute_that_is_nested_too_deep_is_left_out_and_the_rest_is_sent() -> None:
    span = span_with({"before": 1, "deep": too_deep(), "after": 2})

    assert attributes_of(of_the_sdk([span])).keys() == {"before", "after"}
    assert attributes_of(encode_spans([span])).keys() == {"before", "after"}


# Spans of the service's own


def own_span(attributes: dict[str, Any], parent: SpanContext | None) -> ServerSpan:
    provider = make_provider(TraceSettings.from_environment({}), dict, "agent")
    tracer = server_tracer(provider, "litestar_agentcore", "1")
    assert tracer is not None
    context = {} if parent is None else trace.set_span_in_context(NonRecordingSpan(parent), {})  # type: ignore[arg-type]
    span = tracer.start("POST /invocations", context, attributes)  # type: ignore[arg-type]
    assert isinstance(span, ServerSpan)
    return span


@pytest.mark.parametrize("parent", [None, CONTEXT])
def test_a_span_of_the_service_is_encoded_like_any_other(parent: SpanContext | None) -> None:
    span = own_span({"http.route": "/invocations", "server.port": 8080}, parent)
    assert canonical(encode_spans([span])) == of_the_sdk([span])

    span.set_attribute_unchecked("http.response.status_code", 500)
    span.set_attributes({"list": ["a", "b"], "tokens": 17})
    span.add_event("step", {"number": 1})
    span.add_link(CONTEXT, {"why": "retry"})
    span.record_exception(LookupError("no such tool"))
    span.set_status(StatusCode.ERROR, "LookupError")
    span.end()

    assert encode_spans([span]) == of_the_sdk([span])


# The exporters that send it


class Collector(ThreadingHTTPServer):
    """Keeps what is posted to it, and answers with the statuses that a test wants, then with 200."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Receiver)
        self.statuses: list[int] = []
        self.requests: list[tuple[str, dict[str, str], bytes]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        collector = self.server
        assert isinstance(collector, Collector)
        body = self.rfile.read(int(self.headers["content-length"]))
        collector.requests.append((self.path, dict(self.headers.items()), body))
        self.send_response(collector.statuses.pop(0) if collector.statuses else 200)
        self.send_header("Retry-After", "0")
        self.send_header("Location", f"https://elsewhere.example{self.path}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        """A test's output is no place for an access log."""


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with Collector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        serving = threading.Thread(target=collector.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        serving.start()
        yield collector
        collector.shutdown()
        serving.join(10)


@contextmanager
def exporting(kind: type[SpanExporter]) -> Iterator[SpanExporter]:
    exporter = kind()
    try:
        yield exporter
    finally:
        exporter.shutdown()


OWN = with_own_encoding(OTLPSpanExporter)
BOTH = pytest.mark.parametrize("kind", [OTLPSpanExporter, OWN], ids=["the SDK's", "ours"])
SPANS = [span_with({"number": 1, "text": "größer" * 100}), span_with({"flag": True})]
DECODINGS: dict[str, Callable[[bytes], bytes]] = {"none": bytes, "gzip": gzip.decompress, "deflate": zlib.decompress}


@pytest.mark.parametrize("compression", DECODINGS)
def test_an_exporter_posts_what_the_sdks_would(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, compression: str
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", compression)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key=secret,x-tenant=a%20b")
    for kind in (OTLPSpanExporter, OWN):
        with exporting(kind) as exporter:
            assert exporter.export(SPANS) is SpanExportResult.SUCCESS

    (path, headers, body), (own_path, own_headers, own_body) = collector.requests
    assert (own_path, own_headers) == (path, headers)
    assert headers["api-key"] == "secret"
    assert headers.get("Content-Encoding", "none") == compression
    assert DECODINGS[compression](own_body) == DECODINGS[compression](body) == of_the_sdk(SPANS)


def test_an_exporter_sends_the_services_own_encoding(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otlp, "encode_spans", lambda spans: b"encoded by the service")
    with exporting(OWN) as exporter:
        exporter.export(SPANS)

    assert [body for _, _, body in collector.requests] == [b"encoded by the service"]


def test_the_exporters_module_is_left_as_it_is(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    assert vars(trace_exporter)["encode_spans"] is trace_encoder.encode_spans
    assert trace_exporter.OTLPSpanExporter is OTLPSpanExporter
    assert OWN is not OTLPSpanExporter
    assert issubclass(OWN, OTLPSpanExporter)
    assert (OWN.__module__, OWN.__name__) == (OTLPSpanExporter.__module__, OTLPSpanExporter.__name__)

    monkeypatch.setattr(otlp, "encode_spans", lambda spans: b"encoded by the service")
    with exporting(OTLPSpanExporter) as exporter:
        exporter.export(SPANS)

    assert [body for _, _, body in collector.requests] == [of_the_sdk(SPANS)]


@BOTH
@pytest.mark.parametrize(
    ("statuses", "tries", "result"),
    [
        ([], 1, SpanExportResult.SUCCESS),
        ([503, 429], 3, SpanExportResult.SUCCESS),
        ([400], 1, SpanExportResult.FAILURE),
        ([500], 1, SpanExportResult.FAILURE),
    ],
)
def test_an_exporter_tries_again_when_the_sdks_does(
    collector: Collector, kind: type[SpanExporter], statuses: list[int], tries: int, result: SpanExportResult
) -> None:
    collector.statuses = list(statuses)
    with exporting(kind) as exporter:
        assert exporter.export(SPANS) is result

    assert [body for _, _, body in collector.requests] == [of_the_sdk(SPANS)] * tries


@BOTH
def test_a_span_that_cannot_be_encoded_is_a_failed_export_and_nothing_is_sent(
    collector: Collector, kind: type[SpanExporter]
) -> None:
    with exporting(kind) as exporter:
        assert exporter.export([ReadableSpan("\ud800", CONTEXT, resource=HERE)]) is SpanExportResult.FAILURE

    assert collector.requests == []


@BOTH
def test_an_exporter_that_is_shut_down_sends_nothing(collector: Collector, kind: type[SpanExporter]) -> None:
    with exporting(kind) as exporter:
        pass

    assert exporter.export(SPANS) is SpanExportResult.FAILURE
    assert collector.requests == []


class ForeignExporter(SpanExporter):
    """Encodes with a function of its own that has the name of the SDK's."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.SUCCESS if encode_spans(spans) else SpanExportResult.FAILURE


class CallableExporter(SpanExporter):
    export = type("Export", (), {"__call__": lambda self, spans: encode_spans(spans)})()


@pytest.mark.parametrize("kind", [ForeignExporter, CallableExporter, SpanExporter])
def test_an_exporter_that_is_built_otherwise_is_left_as_it_is(kind: type[SpanExporter]) -> None:
    assert with_own_encoding(kind) is kind


TRANSLATING = """
class TranslatingExporter(SpanExporter):
    def export(self, spans):
        sent.append(ExportTraceServiceRequest.SerializeToString(self._translate_data(spans)))
        return SpanExportResult.SUCCESS

    def _translate_data(self, data):
        return encode_spans(data)
"""
"""Built as the exporter over gRPC is, whose package need not be there."""


@pytest.mark.parametrize(
    "encode", [list, lambda spans: [encode_span(span) for span in spans]], ids=["spans", "encoded"]
)
def test_the_exporter_over_grpc_gets_a_message_of_protobufs(encode: Callable[[list[ReadableSpan]], Any]) -> None:
    names: dict[str, Any] = {**globals(), "encode_spans": trace_encoder.encode_spans, "sent": []}
    exec(TRANSLATING, names)
    kind = with_own_encoding(names["TranslatingExporter"])
    assert kind is not names["TranslatingExporter"]
    with exporting(kind) as exporter:
        assert exporter.export(encode(SPANS)) is SpanExportResult.SUCCESS

    assert names["sent"] == [of_the_sdk(SPANS)]


def test_spans_that_were_encoded_one_by_one_are_sent_as_any(collector: Collector) -> None:
    with exporting(OWN) as exporter:
        assert exporter.export([encode_span(span) for span in SPANS]) is SpanExportResult.SUCCESS  # type: ignore[misc]

    assert [body for _, _, body in collector.requests] == [of_the_sdk(SPANS)]


def test_of_spans_that_are_encoded_little_is_left_to_do() -> None:
    spans = [span_with({f"key-{number}": number for number in range(20)}) for _ in range(512)]

    def seconds(batch: Sequence[Any]) -> float:
        began = time.thread_time()
        encode_spans(batch)
        return time.thread_time() - began

    encoded = [encode_span(span) for span in spans]
    assert min(seconds(encoded) for _ in range(5)) < min(seconds(spans) for _ in range(5)) / 5


@pytest.mark.parametrize("exporter", [lambda: SpanExporter(), object()])
def test_what_is_no_class_is_left_as_it_is(exporter: Any) -> None:
    assert with_own_encoding(exporter) is exporter


def test_over_http_the_environments_exporter_has_the_own_encoding(collector: Collector) -> None:
    kind = exporter_class("otlp", TraceSettings.from_environment({"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}))
    assert kind is not OTLPSpanExporter
    assert issubclass(kind, OTLPSpanExporter)
    with exporting(kind) as exporter:
        assert exporter.export(SPANS) is SpanExportResult.SUCCESS

    assert [body for _, _, body in collector.requests] == [of_the_sdk(SPANS)]


# Certificates


@pytest.fixture
def certs(tmp_path: Path) -> Certificates:
    return certificates(tmp_path)


@pytest.fixture
def secured_collector(collector: Collector, certs: Certificates, monkeypatch: pytest.MonkeyPatch) -> Collector:
    """The collector, by TLS, with a certificate of an authority that nobody else trusts."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certs.server, certs.server_key)
    collector.socket = context.wrap_socket(collector.socket, server_side=True)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url.replace("http:", "https:"))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.5")
    return collector


def environments_exporter(**variables: str) -> type[SpanExporter]:
    return exporter_class("otlp", TraceSettings.from_environment(variables))


@pytest.mark.parametrize("prefix", ["OTEL_EXPORTER_OTLP_", "OTEL_EXPORTER_OTLP_TRACES_"])
@pytest.mark.parametrize("other", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_over_http_the_authority_that_is_named_is_trusted_whatever_requests_is_told(
    secured_collector: Collector, certs: Certificates, monkeypatch: pytest.MonkeyPatch, prefix: str, other: str
) -> None:
    monkeypatch.setenv(other, str(certs.client))  # which has signed nothing
    monkeypatch.setenv(f"{prefix}CERTIFICATE", str(certs.authority))
    with exporting(environments_exporter(**os.environ)) as exporter:
        assert exporter.export(SPANS) is SpanExportResult.SUCCESS

    assert [body for _, _, body in secured_collector.requests] == [of_the_sdk(SPANS)]


def test_over_http_no_other_authority_is_trusted_than_the_one_that_is_named(
    secured_collector: Collector, certs: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certs.authority))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(certs.client))
    with exporting(environments_exporter(**os.environ)) as exporter:
        assert exporter.export(SPANS) is SpanExportResult.FAILURE

    assert secured_collector.requests == []


def test_over_http_requests_authorities_are_trusted_where_none_is_named(
    secured_collector: Collector, certs: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certs.authority))
    with exporting(environments_exporter(**os.environ)) as exporter:
        assert exporter.export(SPANS) is SpanExportResult.SUCCESS


@pytest.mark.parametrize("kind", ["", "TRACES_"])
def test_over_http_the_session_of_a_credential_provider_is_the_one_that_sends(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    class Signed(requests.Session):
        def __init__(self) -> None:
            super().__init__()
            self.headers["signed"] = "yes"

    class Provider:
        name = "signed"

        def load(self) -> Any:
            return lambda: Signed()

    monkeypatch.setenv(f"OTEL_PYTHON_EXPORTER_OTLP_HTTP_{kind}CREDENTIAL_PROVIDER", "signed")
    monkeypatch.setattr("agentcore_telemetry.environment.find_entry_point", lambda group, name: Provider())
    monkeypatch.setattr("opentelemetry.exporter.otlp.proto.http._common.entry_points", lambda **query: [Provider()])
    with exporting(environments_exporter(**os.environ)) as exporter:
        assert exporter.export(SPANS) is SpanExportResult.SUCCESS

    ((_, headers, _),) = collector.requests
    assert headers["signed"] == "yes"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_over_http_what_is_redirected_is_a_failed_export_that_says_where_to(
    collector: Collector, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    collector.statuses = [status]
    with exporting(environments_exporter(**os.environ)) as exporter:
        assert exporter.export(SPANS) is SpanExportResult.FAILURE
        assert exporter.export(SPANS) is SpanExportResult.SUCCESS

    assert len(collector.requests) == 2
    assert "it redirects to https://elsewhere.example/v1/traces" in caplog.text


def test_the_arguments_of_an_exporter_are_as_before(certs: Certificates) -> None:
    kind = environments_exporter(OTEL_EXPORTER_OTLP_CERTIFICATE=str(certs.authority))
    assert inspect.signature(kind) == inspect.signature(OTLPSpanExporter)
    assert (kind.__module__, kind.__name__) == (OTLPSpanExporter.__module__, OTLPSpanExporter.__name__)
