"""The ``OTEL_*`` variables: what they ask for, and that nonsense is named once, ignored, and never stops a start."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, ClassVar

import pytest
from agentcore_telemetry import tracing
from agentcore_telemetry.environment import TraceSettings
from litestar.testing import TestClient
from litestar_agentcore import BedrockAgentCoreApp
from opentelemetry import propagate, trace
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import DEFAULT_ON, Decision, Sampler, SamplingResult, TraceIdRatioBased

from tests.e2e.otlp_sink import OtlpSink, otlp_sink
from tests.integration.server import app_of
from tests.unit.conftest import REQUEST_ID

ENDPOINT, TRACES_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
PROTOCOLS = ("OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
HEADERS = ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS")
FILES = tuple(
    f"OTEL_EXPORTER_OTLP_{kind}{file}"
    for kind in ("", "TRACES_")
    for file in ("CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY")
)
LIMITS = (
    "OTEL_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT",
    "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT",
    "OTEL_SPAN_EVENT_COUNT_LIMIT",
    "OTEL_SPAN_LINK_COUNT_LIMIT",
)
CREDENTIAL_PROVIDERS = tuple(
    f"OTEL_PYTHON_EXPORTER_OTLP_{kind}CREDENTIAL_PROVIDER"
    for kind in ("HTTP_", "HTTP_TRACES_", "GRPC_", "GRPC_TRACES_")
)
BOOLEANS = (
    "OTEL_SDK_DISABLED",
    "OTEL_EXPORTER_OTLP_INSECURE",
    "OTEL_EXPORTER_OTLP_TRACES_INSECURE",
    "OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED",
)
INTEGERS = ["-1", "1.5", "many", "1_000", "٣", str(2**31), "9" * 5000]
VALUES: dict[tuple[str, ...], tuple[list[str], list[str]]] = {
    BOOLEANS: (["true", "True", "false", "FALSE"], ["yes", "1", "0"]),
    ("OTEL_TRACES_EXPORTER",): (
        ["otlp", "console", "none", "otlp, console", "Console", "otlp_proto_http", "OTLP_PROTO_HTTP"],
        ["zipkin", "jaeger,zipkin", "otlp;console", "otlp_proto_grpc"],
    ),
    ("OTEL_TRACES_SAMPLER",): (
        [
            "always_on",
            "always_off",
            "traceidratio",
            "parentbased_always_on",
            "parentbased_always_off",
            "parentbased_traceidratio",
            "Always_On",
        ],
        ["sometimes", "always", "xray", "jaeger_remote"],
    ),
    ("OTEL_PYTHON_ID_GENERATOR",): (["random"], ["xray"]),
    ("OTEL_PROPAGATORS",): (["tracecontext", "baggage,tracecontext", "none", "TraceContext"], ["foo", "pigeon,foo"]),
    ("OTEL_EXPERIMENTAL_RESOURCE_DETECTORS",): (["otel", "process,os", "*"], ["foo"]),
    ("OTEL_RESOURCE_ATTRIBUTES",): (["team=agents", "team=agents, stage=a%20b,", "empty="], ["team", "=agents"]),
    (ENDPOINT, TRACES_ENDPOINT): (
        ["http://localhost:4318", "https://collector/v1/traces", "http://[::1]:4318", "HTTP://localhost"],
        [
            "localhost:4318",
            "collector",
            "ftp://collector",
            "http://",
            "http://collector:port",
            "http://collector:99999",
            "http://collector:0",
            "http://[::1",
            "http://a collector",
        ],
    ),
    PROTOCOLS: (["http/protobuf", "HTTP/protobuf"], ["http/json", "thrift", "grpc"]),
    HEADERS: (
        ["api-key=secret", "api-key=a%20b, x-tenant=1", "authorization=Basic dXNlcg=="],
        ["secret", "api-key:secret", "=secret", 'api-key="secret"', "api-key=a%0Ab", "api-key=%E6%97%A5"],
    ),
    ("OTEL_EXPORTER_OTLP_TIMEOUT", "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT"): (
        ["10", "0.5", "0"],
        ["-1", "inf", "nan", "10s", "1e300"],
    ),
    ("OTEL_EXPORTER_OTLP_COMPRESSION", "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION"): (
        ["gzip", "deflate", "none", "GZIP"],
        ["brotli", "gzip,deflate"],
    ),
    FILES: ([__file__], ["/nowhere/file.pem", "/", "a\tb"]),
    CREDENTIAL_PROVIDERS: ([], ["nobody"]),
    ("OTEL_PYTHON_EXPORTER_OTLP_GRPC_RETRYABLE_ERROR_CODES",): (["UNAVAILABLE,aborted"], ["SOMETIMES", "14"]),
    ("OTEL_BSP_EXPORT_TIMEOUT", *LIMITS): (["0", "128", str(2**31 - 1)], INTEGERS),
    ("OTEL_BSP_SCHEDULE_DELAY", "OTEL_BSP_MAX_QUEUE_SIZE"): (["1", "5000"], ["0", *INTEGERS]),
    ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE",): (["1", "512"], ["0", "2049", *INTEGERS]),
}
"""Variables with values that are understood and values that are not, in an environment without gRPC and plugins."""

GOOD = [(name, value) for names, (values, _) in VALUES.items() for name in names for value in values]
BAD = [(name, value) for names, (_, values) in VALUES.items() for name in names for value in values]
NONSENSE = {name: values[0] for names, (_, values) in VALUES.items() for name in names}
"""For every variable something that is not understood."""


def short(value: object) -> str:
    return str(value)[:30]


def settings_of(**environment: str) -> TraceSettings:
    return TraceSettings.from_environment(environment)


def read(settings: TraceSettings) -> dict[str, Any]:
    """What the settings say, but for their warnings."""
    return {name: getattr(settings, name) for name in settings.__struct_fields__ if name != "warnings"}


@pytest.mark.parametrize(("name", "value"), GOOD)
def test_a_value_that_is_understood_leaves_no_warning(name: str, value: str) -> None:
    assert settings_of(**{name: value}).warnings == ()


@pytest.mark.parametrize(("name", "value"), BAD, ids=short)
def test_a_value_that_is_not_understood_counts_as_unset_and_is_named_in_one_warning(name: str, value: str) -> None:
    settings = settings_of(**{name: value})

    assert read(settings) == read(settings_of())
    (warning,) = settings.warnings
    assert warning.startswith(f"{name}: ")
    assert "expected " in warning
    assert len(warning) < 500


@pytest.mark.parametrize("name", sorted({name for name, _ in GOOD + BAD}))
def test_an_empty_value_means_the_same_as_none(name: str) -> None:
    assert settings_of(**{name: " "}) == settings_of(**{name: ""}) == settings_of()


@pytest.mark.parametrize(
    ("name", "value", "rest"),
    [
        ("OTEL_TRACES_EXPORTER", "zipkin,otlp", "otlp"),
        ("OTEL_PROPAGATORS", "tracecontext,foo,baggage", "tracecontext,baggage"),
        ("OTEL_EXPERIMENTAL_RESOURCE_DETECTORS", "foo, process", "process"),
        ("OTEL_RESOURCE_ATTRIBUTES", "team=agents,nonsense,stage=test", "team=agents,stage=test"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "nonsense,api-key=1", "api-key=1"),
    ],
)
def test_of_a_list_the_unknown_member_alone_is_left_out(name: str, value: str, rest: str) -> None:
    settings = settings_of(**{name: value})

    assert settings.variables[name] == rest
    assert len(settings.warnings) == 1


def test_a_propagator_that_is_named_twice_is_registered_once() -> None:
    assert settings_of(OTEL_PROPAGATORS="baggage,Baggage").variables["OTEL_PROPAGATORS"] == "baggage"


@pytest.mark.parametrize("name", HEADERS)
def test_the_warning_about_headers_never_quotes_them(name: str) -> None:
    (warning,) = settings_of(**{name: "api-key=fine,tr0ub4dor"}).warnings

    assert "tr0ub4dor" not in warning
    assert "fine" not in warning


def test_the_warning_about_an_endpoint_does_not_quote_its_credentials() -> None:
    (warning,) = settings_of(**{ENDPOINT: "ftp://user:tr0ub4dor@collector:4318"}).warnings

    assert "'collector:4318'" in warning
    assert "tr0ub4dor" not in warning


def test_a_batch_larger_than_the_queue_is_not_understood_and_the_warning_says_why() -> None:
    settings = settings_of(OTEL_BSP_MAX_QUEUE_SIZE="10", OTEL_BSP_MAX_EXPORT_BATCH_SIZE="11")

    assert (settings.max_queue_size, settings.max_export_batch_size) == (10, 10)
    (warning,) = settings.warnings
    assert warning.startswith("OTEL_BSP_MAX_EXPORT_BATCH_SIZE: '11'")
    assert "OTEL_BSP_MAX_QUEUE_SIZE" in warning


def test_a_queue_smaller_than_the_default_batch_makes_the_batch_smaller() -> None:
    assert settings_of(OTEL_BSP_MAX_QUEUE_SIZE="10").max_export_batch_size == 10


def test_the_samplers_argument_is_a_ratio_only_where_the_sampler_takes_one() -> None:
    for ratio in ("0", "0.25", "1"):
        assert settings_of(OTEL_TRACES_SAMPLER="traceidratio", OTEL_TRACES_SAMPLER_ARG=ratio).warnings == ()
    for nonsense in ("2", "-0.1", "nan", "half"):
        settings = settings_of(OTEL_TRACES_SAMPLER="parentbased_traceidratio", OTEL_TRACES_SAMPLER_ARG=nonsense)
        assert settings.variables["OTEL_TRACES_SAMPLER_ARG"] == "1.0"
        (warning,) = settings.warnings
        assert warning.startswith("OTEL_TRACES_SAMPLER_ARG: ")
    assert settings_of(OTEL_TRACES_SAMPLER="always_on", OTEL_TRACES_SAMPLER_ARG="half").warnings == ()
    assert settings_of(OTEL_TRACES_SAMPLER_ARG="half").warnings == ()


def test_without_endpoint_and_exporter_there_is_no_exporter() -> None:
    assert settings_of(OTEL_SERVICE_NAME="agent", OTEL_TRACES_SAMPLER="always_on").exporters == ()


@pytest.mark.parametrize("name", [ENDPOINT, TRACES_ENDPOINT])
def test_an_endpoint_asks_for_the_otlp_exporter(name: str) -> None:
    assert settings_of(**{name: "http://localhost:4318"}).exporters == ("otlp",)


def test_exporters_can_be_named_without_an_endpoint() -> None:
    assert settings_of(OTEL_TRACES_EXPORTER="otlp, console").exporters == ("otlp", "console")


def test_the_exporter_none_wins_over_an_endpoint() -> None:
    assert settings_of(OTEL_TRACES_EXPORTER="none", **{ENDPOINT: "http://localhost:4318"}).exporters == ()


def test_where_no_exporter_is_understood_the_endpoint_decides() -> None:
    assert settings_of(OTEL_TRACES_EXPORTER="zipkin").exporters == ()
    assert settings_of(OTEL_TRACES_EXPORTER="zipkin", **{ENDPOINT: "http://localhost:4318"}).exporters == ("otlp",)


def test_the_batches_are_as_the_specification_has_them() -> None:
    defaults = settings_of()
    assert (defaults.max_queue_size, defaults.max_export_batch_size, defaults.schedule_delay) == (2048, 512, 5.0)

    named = settings_of(OTEL_BSP_MAX_QUEUE_SIZE="8", OTEL_BSP_MAX_EXPORT_BATCH_SIZE="4", OTEL_BSP_SCHEDULE_DELAY="250")
    assert (named.max_queue_size, named.max_export_batch_size, named.schedule_delay) == (8, 4, 0.25)


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({}, False),
        ({"OTEL_RESOURCE_ATTRIBUTES": "team=agents"}, False),
        ({"OTEL_RESOURCE_ATTRIBUTES": "team=agents, service.name=helper"}, True),
        ({"OTEL_SERVICE_NAME": "helper"}, True),
    ],
)
def test_the_service_is_named_by_the_environment_where_that_names_it(environment: dict[str, str], named: bool) -> None:
    assert settings_of(**environment).names_service is named


@pytest.mark.parametrize(("value", "disabled"), [("true", True), ("TRUE", True), ("false", False), ("1", False)])
def test_the_sdk_can_be_disabled(value: str, disabled: bool) -> None:
    assert settings_of(OTEL_SDK_DISABLED=value).disabled is disabled


# OTLP over gRPC, whose package need not be there


@pytest.fixture(autouse=True)
def grpc_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it is or not: the end-to-end tests bring it along."""

    def without_grpc(group: str) -> list[EntryPoint]:
        return [entry for entry in entry_points(group=group) if not entry.name.endswith("_grpc")]

    monkeypatch.setattr("agentcore_telemetry.environment._is_installed", lambda module: False)
    monkeypatch.setattr("agentcore_telemetry.environment.entry_points", without_grpc)


@pytest.fixture
def grpc_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentcore_telemetry.environment._is_installed", lambda module: True)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_grpc_without_its_package_is_named_with_the_extra_and_http_used_instead(name: str) -> None:
    settings = settings_of(**{name: "grpc", ENDPOINT: "http://localhost:4317"})

    assert (settings.exporters, settings.protocol) == (("otlp",), "http/protobuf")
    (warning,) = settings.warnings
    assert warning.startswith(f"{name}: 'grpc'")
    assert "litestar-agentcore[grpc]" in warning


def test_the_exporter_over_grpc_without_its_package_is_named_with_the_extra() -> None:
    (warning,) = settings_of(OTEL_TRACES_EXPORTER="otlp_proto_grpc").warnings

    assert "litestar-agentcore[grpc]" in warning


def test_the_protocol_of_the_traces_wins_over_the_general_one(grpc_installed: None) -> None:
    assert settings_of().protocol == "http/protobuf"
    assert settings_of(OTEL_EXPORTER_OTLP_PROTOCOL="GRPC").protocol == "grpc"
    both = {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"}
    assert settings_of(**both).protocol == "http/protobuf"
    assert settings_of(**both | {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/json"}).protocol == "grpc"


@pytest.mark.parametrize("name", [ENDPOINT, TRACES_ENDPOINT])
@pytest.mark.parametrize(
    "value",
    [
        "collector:4317",
        "collector",
        "10.0.0.1:4317",
        "[::1]:4317",
        "dns:///collector:4317",
        "unix:/run/collector.sock",
        "ipv4:10.0.0.1:4317,10.0.0.2:4317",
        "http://collector:4317",
        "https://collector",
    ],
)
def test_over_grpc_an_endpoint_needs_no_scheme(grpc_installed: None, name: str, value: str) -> None:
    settings = settings_of(**{name: value, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})

    assert (settings.exporters, settings.warnings) == (("otlp",), ())


@pytest.mark.parametrize(
    "value", ["ftp://collector", "collector:port", "a collector", "collector:4317/v1/traces", ":1"]
)
def test_over_grpc_an_endpoint_can_be_nonsense_too(grpc_installed: None, value: str) -> None:
    settings = settings_of(**{ENDPOINT: value, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})

    assert settings.exporters == ()
    assert [warning.partition(":")[0] for warning in settings.warnings] == [ENDPOINT]


@pytest.mark.parametrize(("value", "seen", "warnings"), [("none", None, 0), ("GZIP", "gzip", 0), ("deflate", None, 1)])
def test_over_grpc_the_sdk_sees_the_compressions_that_it_takes_there(
    grpc_installed: None, value: str, seen: str | None, warnings: int
) -> None:
    settings = settings_of(OTEL_EXPORTER_OTLP_PROTOCOL="grpc", OTEL_EXPORTER_OTLP_COMPRESSION=value)

    assert settings.variables.get("OTEL_EXPORTER_OTLP_COMPRESSION") == seen
    assert len(settings.warnings) == warnings


# What the SDK is shown


def test_the_sdk_sees_what_was_understood_and_everybody_else_what_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "OTEL_TRACES_SAMPLER": "sometimes",
        "OTEL_PROPAGATORS": "foo,baggage",
        "OTEL_SERVICE_NAME": "",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "3",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    everything = dict(os.environ)

    with suppress(RuntimeError), TraceSettings.from_environment(os.environ).in_force():
        seen = {name: value for name, value in os.environ.items() if name in given}
        raise RuntimeError

    assert seen == {"OTEL_PROPAGATORS": "baggage", "OTEL_EXPORTER_OTLP_TIMEOUT": "3"}
    assert dict(os.environ) == everything


# A service in such an environment


@pytest.fixture(autouse=True)
def nothing_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "_warned", set())


@pytest.fixture
def sink(no_provider: None) -> Iterator[OtlpSink]:
    with otlp_sink() as sink:
        yield sink


def invoke(app: BedrockAgentCoreApp) -> None:
    with TestClient(app=app) as client:
        assert client.post("/invocations", json=1, headers={REQUEST_ID: "a-request"}).json() == 1


def echo(payload: Any) -> Any:
    return payload


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [line.getMessage() for line in caplog.records if line.levelno >= logging.WARNING]


def elsewhere(name: str, sink: OtlpSink) -> dict[str, str]:
    """The sink, by another variable than this one."""
    return {TRACES_ENDPOINT: f"{sink.endpoint}/v1/traces"} if name == ENDPOINT else {ENDPOINT: sink.endpoint}


@pytest.mark.parametrize(("name", "value"), NONSENSE.items(), ids=short)
def test_a_service_serves_and_exports_whatever_a_variable_holds_and_warns_once(
    name: str, value: str, sink: OtlpSink, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for variable, content in {**elsewhere(name, sink), name: value}.items():
        monkeypatch.setenv(variable, content)
    app = app_of(echo)
    assert warnings_of(caplog) == []

    invoke(app)
    invoke(app)
    invoke(app_of(echo))

    assert [span.name for span in sink.spans] == ["POST /invocations"] * 3
    (warning,) = warnings_of(caplog)
    assert warning.startswith(f"{name}: ")
    # Only what the SDK would read again, and name again, is removed.
    assert os.environ.get(name) == (None if name == "OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED" else value)


@pytest.mark.parametrize(("name", "value"), NONSENSE.items(), ids=short)
def test_where_the_host_program_has_a_provider_no_variable_is_ours_to_judge(
    name: str, value: str, no_provider: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=DEFAULT_ON, shutdown_on_exit=False, resource=Resource({}))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    app = app_of(echo)
    trace.set_tracer_provider(provider)
    # Its tracers read this one each time, and warn.
    if name != "OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED":
        monkeypatch.setenv(name, value)

    invoke(app)

    assert [span.name for span in exporter.get_finished_spans()] == ["POST /invocations"]
    assert trace.get_tracer_provider() is provider
    assert warnings_of(caplog) == []


def test_a_disabled_sdk_does_not_keep_a_provider_of_the_hosts_from_being_used(
    no_provider: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []

    class Provider(trace.NoOpTracerProvider):
        def get_tracer(self, *args: Any, **kwargs: Any) -> trace.Tracer:
            return Tracer()

    class Tracer(trace.NoOpTracer):
        def start_span(self, name: str, *args: Any, **kwargs: Any) -> trace.Span:
            begun.append(name)
            return super().start_span(name, *args, **kwargs)

    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    trace.set_tracer_provider(Provider())
    invoke(app_of(echo))

    assert begun == ["POST /invocations"]


VISIBLE_NONSENSE = {
    **NONSENSE,
    "OTEL_TRACES_EXPORTER": "zipkin,console",
    "OTEL_TRACES_SAMPLER": "traceidratio",
    "OTEL_TRACES_SAMPLER_ARG": "half",
    "OTEL_PROPAGATORS": "foo,tracecontext",
    "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "x",
}
"""Something that is not understood in every variable but the sampler, and yet spans on the standard output."""

SERVICE = """
import json, logging, sys
logging.basicConfig(level="WARNING", format="%(message)s")
from litestar_agentcore import BedrockAgentCoreApp
app = BedrockAgentCoreApp()
app.entrypoint(lambda payload: payload)
print("made", file=sys.stderr)
from litestar.testing import TestClient
with TestClient(app=app) as client:
    print("serving", file=sys.stderr)
    traceparent = f"00-{'1' * 32}-{'2' * 16}-01"
    assert client.post("/invocations", json=1, headers={"traceparent": traceparent}).json() == 1
from opentelemetry import trace
trace.get_tracer("a library").start_span("step").end()
from opentelemetry.propagate import get_global_textmap
print("fields", *sorted(get_global_textmap().fields), file=sys.stderr)
"""


def run(code: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    environment["AGENTCORE_LOG_FORMAT"] = "none"  # so that the lines have the form that the program gives them
    return subprocess.run(
        [sys.executable, "-c", code], env=environment | variables, capture_output=True, text=True, timeout=60
    )


def test_a_process_with_nonsense_in_every_variable_names_each_once_when_it_begins_to_serve() -> None:
    done = run(SERVICE, **VISIBLE_NONSENSE)

    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    warnings = lines[lines.index("made") + 1 : lines.index("serving")]
    assert sorted(warning.partition(":")[0] for warning in warnings) == sorted(
        VISIBLE_NONSENSE.keys() - {"OTEL_TRACES_SAMPLER"}
    )
    assert lines == ["made", *warnings, "serving", "fields traceparent tracestate"]
    assert '"name": "POST /invocations"' in done.stdout
    assert '"trace_id": "0x' + "1" * 32 in done.stdout


def test_nonsense_about_the_provider_itself_is_named_and_ignored() -> None:
    done = run(SERVICE, OTEL_PYTHON_TRACER_PROVIDER="nobody", OTEL_TRACES_EXPORTER="console")

    assert done.returncode == 0, done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("OTEL_PYTHON_TRACER_PROVIDER: ")]) == 1
    assert '"name": "POST /invocations"' in done.stdout


def test_nonsense_about_the_provider_itself_is_ignored_where_nothing_is_exported() -> None:
    done = run(SERVICE, OTEL_PYTHON_TRACER_PROVIDER="nobody")

    assert done.returncode == 0, done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("OTEL_PYTHON_TRACER_PROVIDER: ")]) == 1


# Entry points that somebody has installed


class EverySecond(Sampler):
    """Takes an argument, as a remote sampler does."""

    made: ClassVar[list[str | None]] = []

    def __init__(self, argument: str | None) -> None:
        self.made.append(argument)
        if argument == "nonsense":
            raise ValueError("what is nonsense?")

    def should_sample(self, *args: Any, **kwargs: Any) -> SamplingResult:
        return SamplingResult(Decision.RECORD_AND_SAMPLE, {"sampled.by": "every second"})

    def get_description(self) -> str:
        return "EverySecond"


class Ids(RandomIdGenerator):
    def generate_span_id(self) -> int:
        return 0xABCDEF


class Refusing(SpanExporter):
    """Takes no span."""

    tried: ClassVar[list[str]] = []

    def export(self, spans: Any) -> SpanExportResult:
        self.tried.extend(span.name for span in spans)
        return SpanExportResult.FAILURE


class Broken(SpanExporter):
    def __init__(self) -> None:
        raise OSError("no such device")


class Pigeon(TextMapPropagator):
    def extract(self, carrier: Any, context: Any = None, getter: Any = None) -> Any:
        return context

    def inject(self, carrier: Any, context: Any = None, setter: Any = None) -> None:
        pass

    @property
    def fields(self) -> set[str]:
        return {"x-pigeon"}


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed distribution with entry points of every kind."""
    metadata = tmp_path / "plugins-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: plugins\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        f"""
[opentelemetry_traces_sampler]
xray = {__name__}:EverySecond
odd = {__name__}:Ids
absent = no_such_module:Sampler

[opentelemetry_id_generator]
xray = {__name__}:Ids
odd = {__name__}:Refusing

[opentelemetry_traces_exporter]
refusing = {__name__}:Refusing
broken = {__name__}:Broken
odd = {__name__}:Ids
absent = no_such_module:Exporter

[opentelemetry_propagator]
pigeon = {__name__}:Pigeon
"""
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(EverySecond, "made", [])
    monkeypatch.setattr(Refusing, "tried", [])


def span_of(app: BedrockAgentCoreApp, monkeypatch: pytest.MonkeyPatch, **variables: str) -> ReadableSpan:
    """The span of a request, where the environment says this."""
    exporter = InMemorySpanExporter()
    monkeypatch.setattr("opentelemetry.exporter.otlp.proto.http.trace_exporter.OTLPSpanExporter", lambda: exporter)
    for name, value in {ENDPOINT: "http://127.0.0.1:9", **variables}.items():
        monkeypatch.setenv(name, value)
    invoke(app)
    (span,) = exporter.get_finished_spans()
    return span


def test_a_sampler_can_be_an_entry_point_and_gets_its_argument(
    plugins: None, no_provider: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    argument = "endpoint=http://127.0.0.1:2000"
    span = span_of(app_of(echo), monkeypatch, OTEL_TRACES_SAMPLER="xray", OTEL_TRACES_SAMPLER_ARG=argument)

    assert EverySecond.made == [argument]
    assert dict(span.attributes or {})["sampled.by"] == "every second"
    assert warnings_of(caplog) == []


@pytest.mark.parametrize("name", ["xray", "odd", "absent"])
def test_a_sampler_that_cannot_be_made_is_named_and_the_default_used(
    name: str, plugins: None, no_provider: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    span_of(app_of(echo), monkeypatch, OTEL_TRACES_SAMPLER=name, OTEL_TRACES_SAMPLER_ARG="nonsense")

    (warning,) = warnings_of(caplog)
    assert warning.startswith(f"OTEL_TRACES_SAMPLER: '{name}'")


def test_an_id_generator_can_be_an_entry_point(
    plugins: None, no_provider: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    span = span_of(app_of(echo), monkeypatch, OTEL_PYTHON_ID_GENERATOR="XRay")

    assert span.context is not None
    assert span.context.span_id == 0xABCDEF


def test_an_id_generator_that_cannot_be_made_is_named_and_the_default_used(
    plugins: None, no_provider: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    span_of(app_of(echo), monkeypatch, OTEL_PYTHON_ID_GENERATOR="odd")

    (warning,) = warnings_of(caplog)
    assert warning.startswith("OTEL_PYTHON_ID_GENERATOR: 'odd'")


def test_the_sdks_own_samplers_keep_their_argument(no_provider: None, monkeypatch: pytest.MonkeyPatch) -> None:
    span_of(app_of(echo), monkeypatch, OTEL_TRACES_SAMPLER="TraceIdRatio", OTEL_TRACES_SAMPLER_ARG="1.0")

    provider = trace.get_tracer_provider()
    assert isinstance(provider, TracerProvider)
    assert isinstance(provider.sampler, TraceIdRatioBased)


def test_the_otlp_exporters_own_entry_point_sends_spans(sink: OtlpSink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp_proto_http")
    monkeypatch.setenv(ENDPOINT, sink.endpoint)
    invoke(app_of(echo))

    assert [span.name for span in sink.spans] == ["POST /invocations"]


def test_an_exporter_that_is_an_entry_point_runs_behind_the_queue_and_what_it_loses_is_counted(
    plugins: None, sink: OtlpSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "refusing,otlp")
    monkeypatch.setenv(ENDPOINT, sink.endpoint)
    app = app_of(echo)
    invoke(app)

    assert Refusing.tried == [span.name for span in sink.spans] == ["POST /invocations"]
    assert app.agent.telemetry.tracing.dropped == 1


@pytest.mark.parametrize("name", ["broken", "odd", "absent"])
def test_an_exporter_that_cannot_be_made_is_named_and_the_others_are_used(
    name: str, plugins: None, sink: OtlpSink, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", f"{name},otlp")
    monkeypatch.setenv(ENDPOINT, sink.endpoint)
    invoke(app_of(echo))

    assert [span.name for span in sink.spans] == ["POST /invocations"]
    (warning,) = warnings_of(caplog)
    assert warning.startswith(f"OTEL_TRACES_EXPORTER: '{name}'")


def test_a_propagator_can_be_an_entry_point(plugins: None) -> None:
    settings = settings_of(OTEL_PROPAGATORS="tracecontext,Pigeon,foo")

    assert settings.variables["OTEL_PROPAGATORS"] == "tracecontext,pigeon"
    assert len(settings.warnings) == 1


def test_a_propagator_that_the_host_program_sets_before_it_serves_is_used(
    no_provider: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = app_of(echo)
    monkeypatch.setattr(propagate, "_HTTP_TEXT_FORMAT", Pigeon())
    with TestClient(app=app):
        assert app.agent.telemetry.propagated == {"x-pigeon"}
        assert app.agent.headers.read([(b"X-Pigeon", b"coo")]).carrier == {"x-pigeon": "coo"}
