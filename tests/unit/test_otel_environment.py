"""The ``OTEL_*`` variables: what they ask for, and that a bad value is an error at start-up that names the variable."""

import subprocess
import sys

import pytest
from agentcore_telemetry.environment import TelemetryError, TraceSettings
from agentcore_telemetry.tracing import Tracing
from litestar_agentcore import BedrockAgentCoreApp

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
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
VALUES: dict[tuple[str, ...], tuple[list[str], list[str]]] = {
    ("OTEL_SDK_DISABLED",): (["true", "True", "false"], ["yes", "1"]),
    ("OTEL_TRACES_EXPORTER",): (["otlp", "console", "none", "otlp,console"], ["zipkin", "otlp,zipkin", "otlp;console"]),
    ("OTEL_TRACES_SAMPLER",): (
        [
            "always_on",
            "always_off",
            "traceidratio",
            "parentbased_always_on",
            "parentbased_always_off",
            "parentbased_traceidratio",
        ],
        ["sometimes", "always"],
    ),
    ("OTEL_TRACES_SAMPLER_ARG",): (["0", "0.25", "1"], ["2", "-0.1", "nan", "half"]),
    ("OTEL_RESOURCE_ATTRIBUTES",): (["team=agents", "team=agents, stage=a%20b", "empty="], ["team", "=agents"]),
    ENDPOINTS: (
        ["http://localhost:4318", "https://collector/v1/traces", "http://[::1]:4318"],
        [
            "localhost:4318",
            "collector",
            "ftp://collector",
            "http://",
            "http://collector:port",
            "http://collector:99999",
        ],
    ),
    PROTOCOLS: (["http/protobuf", "grpc"], ["http/json", "thrift"]),
    HEADERS: (["api-key=secret", "api-key=a%20b,x-tenant=1"], ["secret", "api-key:secret", "=secret"]),
    ("OTEL_EXPORTER_OTLP_TIMEOUT", "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT"): (["10", "0.5"], ["0", "-1", "inf", "10s"]),
    ("OTEL_EXPORTER_OTLP_COMPRESSION", "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION"): (
        ["gzip", "deflate", "none"],
        ["brotli", "GZIP!"],
    ),
    FILES: ([__file__], ["/nowhere/file.pem"]),
    ("OTEL_BSP_SCHEDULE_DELAY", "OTEL_BSP_EXPORT_TIMEOUT"): (["1", "5000"], ["0", "-1", "1.5", "soon"]),
    ("OTEL_BSP_MAX_QUEUE_SIZE",): (["1", "2048"], ["0", "-1", "1.5", "many"]),
    ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE",): (["1", "512"], ["0", "-1", "1.5", "many"]),
    LIMITS: (["0", "128"], ["-1", "1.5", "unlimited"]),
}
"""Variables with values that they take and values that they do not."""

GOOD = [(name, value) for names, (values, _) in VALUES.items() for name in names for value in values]
BAD = [(name, value) for names, (_, values) in VALUES.items() for name in names for value in values]


def settings_of(**environment: str) -> TraceSettings:
    return TraceSettings.from_environment(environment)


@pytest.mark.parametrize(("name", "value"), GOOD)
def test_a_good_value_is_taken(name: str, value: str) -> None:
    settings_of(**{name: value})


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_value_is_an_error_that_names_the_variable(name: str, value: str) -> None:
    with pytest.raises(TelemetryError, match=rf"^{name}\b"):
        settings_of(**{name: value})


@pytest.mark.parametrize("name", sorted({name for name, _ in BAD}))
def test_an_empty_value_means_the_same_as_none(name: str) -> None:
    assert settings_of(**{name: " "}) == settings_of()


@pytest.mark.parametrize("name", HEADERS)
def test_the_error_about_headers_never_quotes_them(name: str) -> None:
    with pytest.raises(TelemetryError) as raised:
        settings_of(**{name: "api-key=fine,tr0ub4dor"})

    assert "tr0ub4dor" not in str(raised.value)
    assert "fine" not in str(raised.value)


@pytest.mark.parametrize(("name", "value"), [("OTEL_TRACES_SAMPLER", "sometimes"), ("OTEL_BSP_MAX_QUEUE_SIZE", "0")])
def test_an_app_with_a_bad_variable_cannot_be_made(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)

    with pytest.raises(TelemetryError, match=rf"{name}.*{value}"):
        BedrockAgentCoreApp()


@pytest.mark.parametrize("protocol_variable", PROTOCOLS)
def test_grpc_without_its_package_is_an_error_that_names_both(
    protocol_variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc.trace_exporter", None)
    environment = {ENDPOINTS[0]: "http://localhost:4317", protocol_variable: "grpc"}

    with pytest.raises(TelemetryError, match=rf"{protocol_variable}\b.*\[grpc\]"):
        Tracing(dict, "1", environment)


def test_a_propagator_that_does_not_exist_is_an_error_that_names_the_variable() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from litestar_agentcore import BedrockAgentCoreApp; BedrockAgentCoreApp()"],
        env={"OTEL_PROPAGATORS": "tracecontext,pigeon", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 1
    assert "OTEL_PROPAGATORS" in done.stderr.splitlines()[-1]
    assert "pigeon" in done.stderr.splitlines()[-1]


def test_a_batch_larger_than_the_queue_is_an_error_that_names_both_variables() -> None:
    with pytest.raises(TelemetryError, match=r"OTEL_BSP_MAX_EXPORT_BATCH_SIZE.*OTEL_BSP_MAX_QUEUE_SIZE"):
        settings_of(OTEL_BSP_MAX_QUEUE_SIZE="10", OTEL_BSP_MAX_EXPORT_BATCH_SIZE="11")


def test_a_queue_smaller_than_the_default_batch_makes_the_batch_smaller() -> None:
    assert settings_of(OTEL_BSP_MAX_QUEUE_SIZE="10").max_export_batch_size == 10


def test_without_endpoint_and_exporter_there_is_no_exporter() -> None:
    assert settings_of(OTEL_SERVICE_NAME="agent", OTEL_TRACES_SAMPLER="always_on").exporters == ()


@pytest.mark.parametrize("name", ENDPOINTS)
def test_an_endpoint_asks_for_the_otlp_exporter(name: str) -> None:
    assert settings_of(**{name: "http://localhost:4318"}).exporters == ("otlp",)


def test_exporters_can_be_named_without_an_endpoint() -> None:
    assert settings_of(OTEL_TRACES_EXPORTER="otlp, console").exporters == ("otlp", "console")


def test_the_exporter_none_wins_over_an_endpoint() -> None:
    assert settings_of(OTEL_TRACES_EXPORTER="none", **{ENDPOINTS[0]: "http://localhost:4318"}).exporters == ()


def test_the_protocol_of_the_traces_wins_over_the_general_one() -> None:
    assert settings_of().protocol == "http/protobuf"
    assert settings_of(OTEL_EXPORTER_OTLP_PROTOCOL="grpc").protocol == "grpc"
    both = settings_of(OTEL_EXPORTER_OTLP_PROTOCOL="grpc", OTEL_EXPORTER_OTLP_TRACES_PROTOCOL="http/protobuf")
    assert both.protocol == "http/protobuf"


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


@pytest.mark.parametrize(("value", "disabled"), [("true", True), ("TRUE", True), ("false", False)])
def test_the_sdk_can_be_disabled(value: str, disabled: bool) -> None:
    assert settings_of(OTEL_SDK_DISABLED=value).disabled is disabled
