"""The ``OTEL_*`` variables, read by the rules of the OpenTelemetry specification.

A value that is not understood is named in one warning and counts as unset; of a list, the unknown member alone is left
out (https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/). The SDK itself raises at some
values, partly at import, and logs others without naming the variable, so it is only shown what was understood here.
"""

import importlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import msgspec

from agentcore_telemetry.locks import ForkSafeLock

HTTP, GRPC = "http/protobuf", "grpc"
OTLP_MODULES = {
    HTTP: "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    GRPC: "opentelemetry.exporter.otlp.proto.grpc.trace_exporter",
}
"""The modules of the SDK's OTLP exporters, by protocol."""

EXPORTERS = "opentelemetry_traces_exporter"
SAMPLERS = "opentelemetry_traces_sampler"
ID_GENERATORS = "opentelemetry_id_generator"
"""Groups of entry points."""

Parser = Callable[[str], str]
"""Returns a value in the form that the SDK takes, or raises :exc:`ValueError` with what was expected instead."""

_environment_lock = ForkSafeLock()


class TraceSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the environment asks of the traces."""

    disabled: bool
    """``OTEL_SDK_DISABLED``: nothing is recorded."""

    exporters: tuple[str, ...]
    """``otlp``, ``console``, or names of entry points; none where neither an exporter nor an endpoint is named."""

    protocol: str
    """Of the exporter ``otlp``: :data:`HTTP` or :data:`GRPC`."""

    provides_session: bool
    """Whether the environment names what makes the session of the exporter over HTTP."""

    sampler: str | None
    """The name of the sampler's entry point; ``None`` for the SDK's own samplers."""

    sampler_argument: str | None

    id_generator: str | None
    """The name of the id generator's entry point; ``None`` for the SDK's default."""

    names_service: bool
    """Whether the environment says what the service is called."""

    sdk_metrics: bool
    """Whether the SDK counts the spans that it makes."""

    max_queue_size: int
    """How many ended spans may wait for their export."""

    max_export_batch_size: int
    """How many spans go into one export."""

    schedule_delay: float
    """How long a span waits for others to be exported with, in seconds."""

    variables: dict[str, str]
    """The ``OTEL_*`` variables without what is empty or not understood."""

    warnings: tuple[str, ...]
    """One for each variable that holds something that is not understood."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "TraceSettings":
        """Read the variables.

        Args:
            environment: The variables, by name.
        """
        reader = _Reader(environment)
        for name, parser in _PARSERS.items():
            reader.parse(name, parser)
        for name, parser in _LIST_PARSERS.items():
            reader.parse_list(name, parser)
        values = reader.values
        protocol = values.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", values.get("OTEL_EXPORTER_OTLP_PROTOCOL", HTTP))
        _parse_exporter_options(reader, protocol)
        queue_size = int(values.get("OTEL_BSP_MAX_QUEUE_SIZE", 2048))
        within_queue = partial(_integer, 1, queue_size, " (OTEL_BSP_MAX_QUEUE_SIZE)")
        batch_size = reader.parse("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", within_queue) or min(512, queue_size)
        sampler = values.get("OTEL_TRACES_SAMPLER")
        if sampler in _RATIO_SAMPLERS:
            reader.parse("OTEL_TRACES_SAMPLER_ARG", _ratio)
            values.setdefault("OTEL_TRACES_SAMPLER_ARG", "1.0")  # the default, without which the SDK warns
        id_generator = values.get("OTEL_PYTHON_ID_GENERATOR")
        has_endpoint = any(f"{prefix}ENDPOINT" in values for prefix in _OTLP)
        exporters = _members(values.get("OTEL_TRACES_EXPORTER", "otlp" if has_endpoint else "none"))
        attributes = _members(values.get("OTEL_RESOURCE_ATTRIBUTES", ""))
        return cls(
            disabled=values.get("OTEL_SDK_DISABLED") == "true",
            exporters=tuple(name for name in exporters if name != "none"),
            protocol=protocol,
            provides_session=any(name in values for name in _HTTP_SESSIONS),
            sampler=None if sampler in _SDK_SAMPLERS else sampler,
            sampler_argument=values.get("OTEL_TRACES_SAMPLER_ARG"),
            id_generator=None if id_generator == "random" else id_generator,
            names_service="OTEL_SERVICE_NAME" in values
            or any(pair.partition("=")[0].strip() == "service.name" for pair in attributes),
            sdk_metrics=values.get("OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED") == "true",
            max_queue_size=queue_size,
            max_export_batch_size=int(batch_size),
            schedule_delay=int(values.get("OTEL_BSP_SCHEDULE_DELAY", 5000)) / 1000,
            variables=values,
            warnings=tuple(reader.warnings),
        )

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Have the ``OTEL_*`` variables of ``os.environ`` be :attr:`variables` while the block runs.

        There are variables that the SDK reads at import, and that no argument overrides. Where all were understood as
        they stand, nothing changes. Other threads see the change.
        """
        with _environment_lock:
            original = {name: value for name, value in os.environ.items() if name.startswith("OTEL_")}
            changed = {name for name, _ in original.items() ^ self.variables.items()}
            _set_variables({name: self.variables.get(name) for name in changed})
            try:
                yield
            finally:
                _set_variables({name: original.get(name) for name in changed})


def _set_variables(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def import_module(name: str) -> ModuleType:
    """Import a module of OpenTelemetry that raises where an ``OTEL_*`` variable is not understood.

    Args:
        name: Its absolute name.
    """
    if name in sys.modules:
        return importlib.import_module(name)
    with TraceSettings.from_environment(os.environ).in_force():
        return importlib.import_module(name)


def find_entry_point(group: str, name: str) -> EntryPoint | None:
    """Find an installed entry point.

    Args:
        group: Its group.
        name: Its name, in any case.
    """
    return {entry.name.lower(): entry for entry in entry_points(group=group)}.get(name.lower())


class _Reader:
    """Reads variables one by one, removes what is not understood, and warns of it."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        values = {name: value.strip() for name, value in environment.items() if name.startswith("OTEL_")}
        self.values = {name: value for name, value in values.items() if value}  # empty means unset
        self.warnings: list[str] = []

    def parse(self, name: str, parser: Parser) -> str | None:
        return self._parse(name, [self.values[name]] if name in self.values else [], parser)

    def parse_list(self, name: str, parser: Parser) -> str | None:
        return self._parse(name, _members(self.values.get(name, "")), parser)

    def _parse(self, name: str, members: list[str], parser: Parser) -> str | None:
        self.values.pop(name, None)
        understood, unknown, expected = [], [], ""
        for member in members:
            try:
                understood.append(parser(member))
            except ValueError as error:
                unknown.append(_quoted(name, member))
                expected = str(error)
        if unknown:
            what = f"{', '.join(unknown)} {'is' if len(unknown) == 1 else 'are'} not understood and ignored"
            self.warnings.append(f"{name}: {what}: expected {expected}")
        if understood:
            self.values[name] = ",".join(dict.fromkeys(understood))
        return self.values.get(name)


def _parse_exporter_options(reader: _Reader, protocol: str) -> None:
    """Read what is understood over gRPC and not over HTTP, or the other way round."""
    exporters = _members(reader.values.get("OTEL_TRACES_EXPORTER", "otlp"))
    over_http = "otlp_proto_http" in exporters or (protocol == HTTP and "otlp" in exporters)
    over_grpc = "otlp_proto_grpc" in exporters or (protocol == GRPC and "otlp" in exporters)
    only_grpc = over_grpc and not over_http
    for prefix in _OTLP:
        reader.parse(f"{prefix}ENDPOINT", _grpc_target if only_grpc else _url)
        compression = reader.parse(f"{prefix}COMPRESSION", _one_of("none", "gzip", *([] if only_grpc else ["deflate"])))
        if only_grpc and compression == "none":
            del reader.values[f"{prefix}COMPRESSION"]  # the default, and nothing that the exporter takes


def _members(value: str) -> list[str]:
    return [member.strip() for member in value.split(",") if member.strip()]


_MAX_QUOTED = 100
"""Characters."""


def _quoted(name: str, value: str) -> str:
    """A value as a warning may show it: without credentials."""
    if name.endswith("HEADERS"):
        return "a member"
    return repr(value.rpartition("@")[2][:_MAX_QUOTED])


def _one_of(*words: str, group: str | None = None) -> Parser:
    def parse(value: str) -> str:
        if value.lower() in words:
            return value.lower()
        if group is not None and (entry := find_entry_point(group, value)) is not None:
            return entry.name
        installed = [f"an installed entry point of {group}"] if group else []
        raise ValueError(" or ".join(filter(None, [", ".join(words), *installed])))

    return parse


def _protocol(value: str) -> str:
    protocol = _one_of(HTTP, GRPC)(value)
    if protocol == GRPC and not _is_installed(OTLP_MODULES[GRPC]):
        raise ValueError(f"{HTTP}, as litestar-agentcore[grpc] is not installed")
    return protocol


def _exporter(value: str) -> str:
    try:
        return _one_of("otlp", "console", "none", group=EXPORTERS)(value)
    except ValueError as error:
        extra = "; it comes with litestar-agentcore[grpc]" if value.lower() == "otlp_proto_grpc" else ""
        raise ValueError(f"{error}{extra}") from None


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ImportError:
        return False


def _integer(least: int, most: int, meaning: str, value: str) -> str:
    if not (value.isascii() and value.isdigit() and len(value) <= _INTEGER_DIGITS and least <= int(value) <= most):
        raise ValueError(f"a whole number from {least} to {most}{meaning}")
    return value


_INTEGER_DIGITS = 10
_MAX_INTEGER = 2**31 - 1
_at_least_0 = partial(_integer, 0, _MAX_INTEGER, "")
_at_least_1 = partial(_integer, 1, _MAX_INTEGER, "")
_MAX_SECONDS = _MAX_INTEGER // 1000


def _number(value: str, least: float, most: float, expected: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = -1
    if not least <= number <= most:
        raise ValueError(expected)
    return number


def _seconds(value: str) -> str:
    # A timeout of zero means none.
    return value if _number(value, 0, _MAX_SECONDS, "a number of seconds") else str(_MAX_SECONDS)


def _ratio(value: str) -> str:
    _number(value, 0, 1, "a ratio between 0 and 1")
    return value


def _is_server(value: str) -> bool:
    """Whether something is a URL's host, with or without a port."""
    try:
        parts = urlsplit(value)
        return bool(parts.hostname) and parts.port != 0 and not re.search(r"\s", value)
    except ValueError:
        return False


def _url(value: str) -> str:
    if not re.match(r"https?://", value, re.IGNORECASE) or not _is_server(value):
        raise ValueError("a URL such as http://localhost:4318")
    return value


_GRPC_NAME = re.compile(r"(dns|unix|unix-abstract|ipv4|ipv6|vsock|xds):\S+")
"""https://github.com/grpc/grpc/blob/master/doc/naming.md"""


def _grpc_target(value: str) -> str:
    if _GRPC_NAME.fullmatch(value) or ("/" not in value and _is_server(f"//{value}")):
        return value
    try:
        return _url(value)
    except ValueError:
        raise ValueError("a URL such as http://localhost:4317, or what gRPC takes, such as localhost:4317") from None


def _file(value: str) -> str:
    if not (Path(value).is_file() and os.access(value, os.R_OK)):
        raise ValueError("the path of a file that can be read")
    return value


_ATTRIBUTE = re.compile(r"[^\s=]+\s*=.*", re.DOTALL)


def _resource_attribute(value: str) -> str:
    if not _ATTRIBUTE.fullmatch(value):
        raise ValueError("key=value")
    return value


_HEADER = re.compile(r"[!#-'*+.0-9A-Z^-z|~-]+[ \t]*=[ !#-+\--:<-\[\]-~]*")
"""The exporters take no other, and log what they do not take with its value."""


def _header(value: str) -> str:
    name, _, content = map(unquote, value.partition("="))
    if not _HEADER.fullmatch(value) or not f"{name}{content}".isprintable() or max(content, default="") > "\xff":
        raise ValueError("name=value, percent-encoded")
    return value


_OTLP = ("OTEL_EXPORTER_OTLP_TRACES_", "OTEL_EXPORTER_OTLP_")
_HTTP_SESSIONS = (
    "OTEL_PYTHON_EXPORTER_OTLP_HTTP_CREDENTIAL_PROVIDER",
    "OTEL_PYTHON_EXPORTER_OTLP_HTTP_TRACES_CREDENTIAL_PROVIDER",
)
_RATIO_SAMPLERS = ("traceidratio", "parentbased_traceidratio")
_SDK_SAMPLERS = ("always_on", "always_off", "parentbased_always_on", "parentbased_always_off", *_RATIO_SAMPLERS)
_GRPC_STATUS_CODES = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
    "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip
_boolean = _one_of("true", "false")
_credential_provider = _one_of(group="opentelemetry_otlp_credential_provider")

_PARSERS: dict[str, Parser] = {
    "OTEL_SDK_DISABLED": _boolean,
    "OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED": _boolean,
    "OTEL_TRACES_SAMPLER": _one_of(*_SDK_SAMPLERS, group=SAMPLERS),
    "OTEL_PYTHON_ID_GENERATOR": _one_of("random", group=ID_GENERATORS),
    "OTEL_BSP_SCHEDULE_DELAY": _at_least_1,
    "OTEL_BSP_EXPORT_TIMEOUT": _at_least_0,
    "OTEL_BSP_MAX_QUEUE_SIZE": _at_least_1,
    **{
        f"{prefix}{name}": parser
        for prefix in _OTLP
        for name, parser in {
            "PROTOCOL": _protocol,
            "TIMEOUT": _seconds,
            "INSECURE": _boolean,
            "CERTIFICATE": _file,
            "CLIENT_CERTIFICATE": _file,
            "CLIENT_KEY": _file,
        }.items()
    },
    **{
        f"OTEL_PYTHON_EXPORTER_OTLP_{transport}_{kind}CREDENTIAL_PROVIDER": _credential_provider
        for transport in ("HTTP", "GRPC")
        for kind in ("", "TRACES_")
    },
    **{
        f"OTEL_{kind}_LIMIT": _at_least_0
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
_LIST_PARSERS: dict[str, Parser] = {
    "OTEL_TRACES_EXPORTER": _exporter,
    "OTEL_PROPAGATORS": _one_of("tracecontext", "baggage", "none", group="opentelemetry_propagator"),
    "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS": _one_of("otel", "*", group="opentelemetry_resource_detector"),
    "OTEL_RESOURCE_ATTRIBUTES": _resource_attribute,
    "OTEL_PYTHON_EXPORTER_OTLP_GRPC_RETRYABLE_ERROR_CODES": _one_of(*(code.lower() for code in _GRPC_STATUS_CODES)),
    **{f"{prefix}HEADERS": _header for prefix in _OTLP},
}
