"""The ``OTEL_*`` variables: read as the OpenTelemetry specification has them, and refused where they make no sense.

The SDK logs a bad value and goes on with a default, and an operator finds out when the traces are missing. Here it is
an error at start-up that names the variable.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

SAMPLERS = frozenset(
    {
        "always_on",
        "always_off",
        "traceidratio",
        "parentbased_always_on",
        "parentbased_always_off",
        "parentbased_traceidratio",
    }
)
EXPORTERS = frozenset({"otlp", "console", "none"})
PROTOCOLS = frozenset({"http/protobuf", "grpc"})
COMPRESSIONS = frozenset({"none", "gzip", "deflate"})

_PAIR = re.compile(r"\s*[^\s=,;]+\s*=[^,]*")


class TelemetryError(ValueError):
    """An ``OTEL_*`` variable holds a value that makes no sense. The message names the variable."""


class TraceSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the environment asks of the traces."""

    disabled: bool
    """Whether ``OTEL_SDK_DISABLED`` is set: nothing is recorded then."""

    exporters: tuple[str, ...]
    """``otlp`` or ``console``; none where neither an exporter nor an endpoint is named."""

    protocol: str
    """Of OTLP: ``http/protobuf`` or ``grpc``."""

    protocol_variable: str
    """The variable that says so, for whoever has to be told that it cannot be had."""

    names_service: bool
    """Whether the environment says what the service is called."""

    max_queue_size: int
    """How many ended spans may wait for their export."""

    max_export_batch_size: int
    """How many spans go into one export."""

    schedule_delay: float
    """How long a span waits for others to be exported with, in seconds."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "TraceSettings":
        """Read and check the variables.

        Args:
            environment: The variables, by name.

        Returns:
            What they ask for.

        Raises:
            TelemetryError: One of them makes no sense.
        """
        # The specification has an empty value mean the same as none.
        values = {name: value.strip() for name, value in environment.items() if value.strip()}
        for name, check in _CHECKS.items():
            if (value := values.get(name)) is not None:
                check(name, value)
        endpoint = any(f"OTEL_EXPORTER_OTLP_{kind}ENDPOINT" in values for kind in ("TRACES_", ""))
        named = [name.strip() for name in values.get("OTEL_TRACES_EXPORTER", "otlp" if endpoint else "none").split(",")]
        queue = int(values.get("OTEL_BSP_MAX_QUEUE_SIZE", 2048))
        batch = int(values.get("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", min(512, queue)))
        if batch > queue:
            raise TelemetryError(
                f"OTEL_BSP_MAX_EXPORT_BATCH_SIZE={batch} makes no sense: OTEL_BSP_MAX_QUEUE_SIZE is {queue}"
            )
        return cls(
            disabled=values.get("OTEL_SDK_DISABLED", "").lower() == "true",
            exporters=tuple(name for name in named if name != "none"),
            protocol=values.get(
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", values.get("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
            ),
            protocol_variable="OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"
            if "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL" in values
            else "OTEL_EXPORTER_OTLP_PROTOCOL",
            names_service="OTEL_SERVICE_NAME" in values
            or "service.name" in _names(values.get("OTEL_RESOURCE_ATTRIBUTES", "")),
            max_queue_size=queue,
            max_export_batch_size=batch,
            schedule_delay=int(values.get("OTEL_BSP_SCHEDULE_DELAY", 5000)) / 1000,
        )


def _names(pairs: str) -> set[str]:
    return {pair.partition("=")[0].strip() for pair in pairs.split(",")}


def _refuse(name: str, value: str, expected: str) -> None:
    raise TelemetryError(f"{name}={value!r} makes no sense: expected {expected}")


def _one_of(words: frozenset[str]) -> Callable[[str, str], None]:
    def check(name: str, value: str) -> None:
        if value not in words:
            _refuse(name, value, "one of " + ", ".join(sorted(words)))

    return check


def _each_of(words: frozenset[str]) -> Callable[[str, str], None]:
    def check(name: str, value: str) -> None:
        if not {word.strip() for word in value.split(",")} <= words:
            _refuse(name, value, "a list of " + ", ".join(sorted(words)))

    return check


def _boolean(name: str, value: str) -> None:
    if value.lower() not in {"true", "false"}:
        _refuse(name, value, "true or false")


def _whole_number(least: int) -> Callable[[str, str], None]:
    def check(name: str, value: str) -> None:
        if not value.isascii() or not value.isdigit() or int(value) < least:
            _refuse(name, value, f"a whole number from {least} up")

    return check


def _seconds(name: str, value: str) -> None:
    try:
        good = 0 < float(value) < float("inf")
    except ValueError:
        good = False
    if not good:
        _refuse(name, value, "a number of seconds")


def _ratio(name: str, value: str) -> None:
    try:
        good = 0 <= float(value) <= 1
    except ValueError:
        good = False
    if not good:
        _refuse(name, value, "a ratio between 0 and 1")


def _url(name: str, value: str) -> None:
    try:
        parts = urlsplit(value)
        good = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        _refuse(name, value, "a URL such as http://localhost:4318")


def _file(name: str, value: str) -> None:
    if not Path(value).is_file():
        _refuse(name, value, "the path of a file")


def _pairs(name: str, value: str) -> None:
    if not all(_PAIR.fullmatch(pair) for pair in value.split(",") if pair.strip()):
        # the value may be a credential
        raise TelemetryError(f"{name} makes no sense: expected a list of key=value, separated by commas")


_CHECKS: dict[str, Callable[[str, str], None]] = {
    "OTEL_SDK_DISABLED": _boolean,
    "OTEL_TRACES_EXPORTER": _each_of(EXPORTERS),
    "OTEL_TRACES_SAMPLER": _one_of(SAMPLERS),
    "OTEL_TRACES_SAMPLER_ARG": _ratio,
    "OTEL_RESOURCE_ATTRIBUTES": _pairs,
    "OTEL_BSP_SCHEDULE_DELAY": _whole_number(1),
    "OTEL_BSP_EXPORT_TIMEOUT": _whole_number(1),
    "OTEL_BSP_MAX_QUEUE_SIZE": _whole_number(1),
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": _whole_number(1),
    **{
        f"OTEL_EXPORTER_OTLP_{kind}{name}": check
        for kind in ("", "TRACES_")
        for name, check in {
            "ENDPOINT": _url,
            "PROTOCOL": _one_of(PROTOCOLS),
            "HEADERS": _pairs,
            "TIMEOUT": _seconds,
            "COMPRESSION": _one_of(COMPRESSIONS),
            "CERTIFICATE": _file,
            "CLIENT_CERTIFICATE": _file,
            "CLIENT_KEY": _file,
        }.items()
    },
    **{
        f"OTEL_{kind}_LIMIT": _whole_number(0)
        for kind in (
            "ATTRIBUTE_VALUE_LENGTH",
            "ATTRIBUTE_COUNT",
            "SPAN_ATTRIBUTE_VALUE_LENGTH",
            "SPAN_ATTRIBUTE_COUNT",
            "SPAN_EVENT_COUNT",
            "SPAN_LINK_COUNT",
            "EVENT_ATTRIBUTE_COUNT",
            "LINK_ATTRIBUTE_COUNT",
        )
    },
}
